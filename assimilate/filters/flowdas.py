r"""FlowDAS as an ensemble filter: members are drawn from a generative transition while the observation guides them.

For every member i, `x_k^i ~ q(. | x_{k-1}^i, y_k)` is one guided run of the transition's sampler, and its importance
weight on the same time grid is

    log w_i = log W_i + log p(y_k | x_k^i) - sum over noisy steps of [ d_n.z_n / std_n + |d_n|^2 / (2 std_n^2) ],

with `d_n` the guidance's shift of a step, `z_n` the normal drawn and `std_n` the step's standard deviation. It is exact
for the learned transition however poor the guidance: guidance sets the effective sample size, never the target.
`log p(y_k | y_1..k-1) = logsumexp_i log w_i` for normalised `W`. Members are resampled when the effective sample size
falls below `threshold N`.

With the Foellmer diffusion (`Ancestral`, `EulerMaruyama("foellmer")`) and exact guidance every weight tends to
`p(y_k | x_{k-1})`; with the interpolant's own diffusion weights degenerate as the grid is refined. In high dimension
weights collapse whatever the guidance, so above `weight_limit` observed values none are used, and the members are
draws of `p(x_k | x_{k-1}^i, y_k)` as good as the guidance makes them.

References:
    Chen et al. (2024), FlowDAS: a stochastic interpolant-based framework for data assimilation,
    https://arxiv.org/abs/2501.16642

Differs from the paper: the paper carries a single trajectory without weights, which cannot accumulate information
over steps (`FlowDAS.published`); the gain, the clean mean and the diffusion follow from the path.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from assimilate.filters.base import EnsembleFilter, Exactness, FilterState, Info, check_finite, forecast
from assimilate.filters.particle import weigh
from assimilate.posterior.calibration import Calibration
from assimilate.posterior.condition import Guidance
from assimilate.posterior.guidance import JacobianFree, MonteCarlo
from assimilate.posterior.samplers import EulerMaruyama, Sampler
from assimilate.posterior.time_grids import uniform_times
from assimilate.posterior.transition import Bounded, GenerativePrior, GenerativeTransition, draw
from assimilate.posterior.weights import Scheme, effective_sample_size, resample
from dynamics.base import steps_between
from dynamics.random import Rng, Streams
from observations.likelihood import Observation

Weights = Literal["auto", "global", "none"]


@dataclass(frozen=True)
class FlowDAS(EnsembleFilter):
    """Ensemble filter by guided generative transitions.

    Args:
        dynamics: a generative transition (a trained one, or `ExactTransition`).
        guidance: how the observation enters while a member is drawn; None draws from the transition alone, so that
            with weights the method is a bootstrap filter on the learned transition.
        sampler: the transition's own by default.
        times: the sampler's grid; the transition's own by default.
        weights: "global" importance weights, "none", or "auto": global up to `weight_limit` observed values.
        weight_limit: observed values up to which "auto" uses weights; beyond some tens their logarithm varies by more
            than the ensemble can carry.
        resampling: scheme, see `assimilate.posterior.weights`.
        threshold: share of the members below which the effective sample size triggers resampling.
        antithetic: draw the noise of the members in mirrored pairs: the ensemble mean of a nearly Gaussian posterior
            then loses no `1 / N` of its variance. For ensembles without weights; needs `Streams` and an even number.

    Exactness: consistent for the learned transition with global weights, biased without.
    """

    name: ClassVar[str] = "FlowDAS"
    exactness: ClassVar[Exactness] = "consistent"

    dynamics: Any
    guidance: Guidance | None = JacobianFree()
    sampler: Sampler | None = None
    times: Tensor | None = None
    weights: Weights = "auto"
    weight_limit: int = 64
    resampling: Scheme = "systematic"
    threshold: float = 0.5
    antithetic: bool = False

    def __post_init__(self) -> None:
        """Check the settings."""
        if not isinstance(self.dynamics, GenerativeTransition):
            raise ValueError(
                f"FlowDAS needs a generative transition (path, predictor, sampler, times, context), and "
                f"{type(self.dynamics).__name__} is none; load a trained one, or wrap a system with Gaussian steps in "
                "ExactTransition"
            )
        if self.weights not in ("auto", "global", "none"):
            raise ValueError(f"weights is {self.weights!r}; expected 'auto', 'global' or 'none'")
        if not 0 <= self.threshold <= 1:
            raise ValueError(f"threshold is {self.threshold}; expected a share of the members, from 0 to 1")

    @classmethod
    def unguided(cls, dynamics: Any, **settings: Any) -> FlowDAS:
        """The same filter without guidance: a bootstrap filter on the generative transition.

        Args:
            dynamics: a generative transition.
            settings: any other setting of the class.
        """
        return cls(dynamics, guidance=None, **settings)

    @classmethod
    def gauges(cls, dynamics: Any, **settings: Any) -> FlowDAS:
        """The setting for a field seen by many gauges: no backpropagation, no weights, a calibrated covariance.

        Args:
            dynamics: a transition of fields whose predictor knows the covariance of the clean state.
            settings: any other setting of the class.
        """
        guidance = JacobianFree(covariance="clean", iterations=4, calibration=Calibration())
        return cls(dynamics, **{"guidance": guidance, "weights": "none", "antithetic": True, **settings})

    @classmethod
    def published(cls, dynamics: Any, *, strength: float = 2e-4 * 8.5**2, draws: int = 21, steps: int = 600) -> FlowDAS:
        """The paper's rule on Lorenz-63: constant gain, no weights; run it with one member.

        Args:
            dynamics: a transition on the paper's path, `Interpolant(power=2, scale=1)` from the previous state.
            strength: the paper's zeta, units of the state squared over those of the residual. The paper's 2e-4 is for
                states divided by 8-9; for Lorenz-63 in physical units it is 2e-4 times 8.5^2, the default.
            draws: Monte Carlo draws J; 21.
            steps: Euler-Maruyama steps; 600.
        """
        return cls(
            dynamics,
            guidance=MonteCarlo(
                gain="constant", strength=strength, draws=draws, endpoint="second_order", objective="pooled_norm",
                second_at="state",
            ),
            sampler=EulerMaruyama("sigma"),
            times=uniform_times(steps, first=1e-5, last=1.0 - 1.0 / steps),
            weights="none",
        )

    def step(
        self, state: FilterState, observation: Observation | None, time: float, *, rng: Rng
    ) -> tuple[FilterState, Info]:
        """See `Filter.step`: resample, forecast to one step before `time`, then draw the guided step and weigh."""
        if self.antithetic:
            if not isinstance(rng, Streams):
                raise ValueError("antithetic noise needs Streams(seed, experiments, members) as rng, not a generator")
            rng = rng.mirrored()
        start = resample(state.members, state.log_weights, self.resampling, self.threshold, rng=rng)
        seen = 0 if observation is None else most_observed(observation)
        weighted = seen > 0 and (self.weights == "global" or (self.weights == "auto" and seen <= self.weight_limit))
        members, ratio, context = start.members, None, None
        moving = steps_between(self.dynamics, state.time, time) > 0
        if not moving and seen and not weighted and isinstance(self.dynamics, GenerativePrior):
            # Members of a prior ensemble that cannot be weighed: draw from p(x | y) by the same guidance instead.
            context = self.dynamics.prior_context(members)
        if moving or context is not None:
            before = time - self.dynamics.dt if moving else time
            members = forecast(self.dynamics, members, state.time, before, rng=rng, method=self.name)
            sample = draw(
                self.dynamics,
                members,
                before,
                event_dims=members.ndim - 2,
                rng=rng,
                likelihood=observation.likelihood if observation is not None and seen else None,
                y=None if observation is None else observation.y,
                guidance=self.guidance,
                sampler=self.sampler,
                times=None if self.times is None else self.times.to(members.dtype),
                weighted=weighted,
                context=context,
            )
            members, ratio = sample.x, sample.log_ratio
            if isinstance(self.dynamics, Bounded):
                members = self.dynamics.admissible(members)
        if not weighted or observation is None:
            check_finite(members, self.name, time, state.time)
            # Members that were not weighed say nothing of how probable the observation was.
            evidence = members.new_full(members.shape[:1], torch.nan if seen else 0.0)
            ess = effective_sample_size(start.log_weights)
            info = Info(None, evidence, ess, ancestors=start.ancestors, weighting="none" if seen else None)
            return FilterState(members, start.log_weights, float(time)), info
        increments = observation.likelihood.log_prob(observation.y, members)
        if ratio is not None:
            increments = increments + ratio
        after, info = weigh(self.name, state.time, time, start, members, members, increments)
        return after, info._replace(background=None, background_log_weights=None, weighting="global")


def most_observed(observation: Observation) -> int:
    """The largest number of values that one experiment observes."""
    dims = len(observation.likelihood.operator.obs_shape)
    if dims == 0:
        return int((~torch.isnan(observation.y)).any())
    return int((~torch.isnan(observation.y)).sum(tuple(range(-dims, 0))).max())
