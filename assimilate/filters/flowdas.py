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

Without weights nothing corrects x_{k-1}: a member that starts wrong stays wrong but for what one step of noise can
mend. With `smoothing` the step follows the exact factorisation

    p(x_{k-1}, x_k | y_1..k) = p(x_{k-1} | y_1..k) p(x_k | x_{k-1}, y_k)

in which y_k enters twice and is counted once: an ensemble Kalman filter moves x_{k-1}, with weights from unguided draws
of x_k (which know the noise of the transition), and the guided transition then draws x_k. That is exact for a linear
Gaussian system and exact guidance as members grow. A local particle filter in its place gives localised weights.

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

from assimilate.filters.base import EnsembleFilter, Exactness, FilterState, HistoryState, Info, check_finite
from assimilate.filters.ensemble import EnsembleKalmanFilter, smoothed
from assimilate.filters.local_particle import LocalParticleFilter
from assimilate.filters.particle import weigh
from assimilate.posterior.calibration import Calibration
from assimilate.posterior.condition import Guidance
from assimilate.posterior.guidance import JacobianFree, MonteCarlo
from assimilate.posterior.guidance.monte_carlo import Objective
from assimilate.posterior.predictors import Context
from assimilate.posterior.samplers import EulerMaruyama, Sample, Sampler
from assimilate.posterior.time_grids import uniform_times
from assimilate.posterior.transition import Bounded, GenerativePrior, GenerativeTransition, Historical, draw
from assimilate.posterior.weights import Scheme, effective_sample_size, resample, select
from dynamics.base import steps_between
from dynamics.random import Rng, Streams
from dynamics.settings import check_settings, number, whole
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
        smoothing: an ensemble Kalman filter (LETKF, ETKF...) that moves the previous states where there are no weights,
            or a `LocalParticleFilter`, which does it by localised weights (their effective sample size is then told);
            its inflation and relaxation act on them. None: they stay.

    Exactness: consistent for the learned transition with global weights, biased without.

    A transition that looks at several past states (`Historical`) is given each member's own: they are resampled with
    it.
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
    smoothing: EnsembleKalmanFilter | LocalParticleFilter | None = None

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
        share = number(0, 1, words="a share of the members, from 0 to 1")
        check_settings(self, weight_limit=whole(0), threshold=share)

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
    def published(
        cls,
        dynamics: Any,
        *,
        strength: float = 2e-4 * 8.5**2,
        draws: int = 21,
        steps: int = 600,
        objective: Objective = "pooled_norm",
        second_at: Literal["endpoint", "state"] = "state",
    ) -> FlowDAS:
        """The paper's rule: constant gain, no weights; run it with one member.

        The defaults are those of its Lorenz-63 code. Its Navier-Stokes code has `objective="mean_norm"`,
        `second_at="endpoint"`, 500 draws and steps, and a strength of 1 in units of the state's scale.

        Args:
            dynamics: a transition on the paper's path, `Interpolant(power=2, scale=1)` from the previous state.
            strength: the paper's zeta, units of the state squared over those of the residual. The paper's 2e-4 is for
                states divided by 8-9; for Lorenz-63 in physical units it is 2e-4 times 8.5^2, the default. It belongs
                to a number of steps: it is not multiplied by their length.
            draws: Monte Carlo draws J; 21.
            steps: Euler-Maruyama steps; 600.
            objective: see `MonteCarlo`.
            second_at: see `MonteCarlo`.
        """
        return cls(
            dynamics,
            guidance=MonteCarlo(
                gain="constant", strength=strength, draws=draws, endpoint="second_order", objective=objective,
                second_at=second_at,
            ),
            sampler=EulerMaruyama("sigma"),
            times=uniform_times(steps, first=1e-5, last=1.0 - 1.0 / steps),
            weights="none",
        )

    def init(self, members: Tensor, time: float = 0.0) -> HistoryState:  # type: ignore[override]
        """Equal weights on the members `(E, N, *event)`, at `time`, without a past."""
        first = super().init(members, time)
        return HistoryState(*first, members.new_zeros(*members.shape[:2], 0, *members.shape[2:]))

    def step(
        self, state: FilterState | HistoryState, observation: Observation | None, time: float, *, rng: Rng
    ) -> tuple[HistoryState, Info]:
        """See `Filter.step`: resample, forecast to one step before `time`, then draw the guided step and weigh."""
        if self.antithetic:
            if not isinstance(rng, Streams):
                raise ValueError("antithetic noise needs Streams(seed, experiments, members) as rng, not a generator")
            rng = rng.mirrored()
        start = resample(state.members, state.log_weights, self.resampling, self.threshold, rng=rng)
        past = state.past if isinstance(state, HistoryState) else state.members[:, :, None][:, :, :0]
        if bool(start.triggered.any()):
            past = select(past, start.ancestors)
        seen = 0 if observation is None else most_observed(observation)
        weighted = seen > 0 and (self.weights == "global" or (self.weights == "auto" and seen <= self.weight_limit))
        guided = self.guidance if seen else None
        members, ratio, weighting = start.members, None, None
        ess = effective_sample_size(start.log_weights)
        steps = steps_between(self.dynamics, state.time, time)
        for k in range(steps):
            before = state.time + k * self.dynamics.dt
            last = k == steps - 1
            if last and self.smoothing is not None and observation is not None and seen and not weighted:
                ahead = self._draw(members, self._context(members, before, past), before, None, None, rng=rng).x
                if isinstance(self.smoothing, LocalParticleFilter):
                    members, ess = self.smoothing.smoothed(members, self._within(ahead), observation, rng=rng)
                else:
                    members = smoothed(self.smoothing, members, self._within(ahead), observation, time, rng=rng)
                weighting = "local"
            sample = self._draw(
                members, self._context(members, before, past), before, observation if last else None,
                guided if last else None, rng=rng, weighted=weighted and last,
            )
            past = self._remembered(members, past)
            members, ratio = self._within(sample.x), sample.log_ratio
        if not steps and guided is not None and not weighted and isinstance(self.dynamics, GenerativePrior):
            # Members of a prior ensemble that cannot be weighed: draw from p(x | y) by the same guidance instead.
            context = self.dynamics.prior_context(members)
            members = self._within(self._draw(members, context, time, observation, guided, rng=rng).x)
        if not weighted or observation is None:
            check_finite(members, self.name, time, state.time)
            # Members that were not weighed say nothing of how probable the observation was.
            evidence = members.new_full(members.shape[:1], torch.nan if seen else 0.0)
            weighting = (weighting or "none") if seen else None
            info = Info(None, evidence, ess, ancestors=start.ancestors, weighting=weighting)
            return HistoryState(members, start.log_weights, float(time), past), info
        increments = observation.likelihood.log_prob(observation.y, members)
        if ratio is not None:
            increments = increments + ratio
        after, info = weigh(self.name, state.time, time, start, members, members, increments)
        info = info._replace(background=None, background_log_weights=None, weighting="global")
        return HistoryState(*after, past), info

    def _draw(
        self,
        members: Tensor,
        context: Context,
        time: float,
        observation: Observation | None,
        guidance: Guidance | None,
        *,
        rng: Rng,
        weighted: bool = False,
    ) -> Sample:
        """One run of the transition's sampler from members at `time`."""
        sample = draw(
            self.dynamics,
            members,
            time,
            event_dims=members.ndim - 2,
            rng=rng,
            likelihood=None if observation is None else observation.likelihood,
            y=None if observation is None else observation.y,
            guidance=guidance,
            sampler=self.sampler,
            times=None if self.times is None else self.times.to(members.dtype),
            weighted=weighted,
            context=context,
        )
        check_finite(sample.x, self.name, time + self.dynamics.dt, time)
        return sample

    def _context(self, members: Tensor, time: float, past: Tensor) -> Context:
        """What the transition is told of the states so far."""
        if isinstance(self.dynamics, Historical):
            return self.dynamics.context(members, time, past)
        return self.dynamics.context(members, time)

    def _remembered(self, members: Tensor, past: Tensor) -> Tensor:
        """The past of the next step, newest first, `(E, N, h, *event)`."""
        frames = self.dynamics.frames if isinstance(self.dynamics, Historical) else 1
        return torch.cat([members.unsqueeze(2), past], 2)[:, :, : frames - 1]

    def _within(self, members: Tensor) -> Tensor:
        """Members within the bounds of the state."""
        return self.dynamics.admissible(members) if isinstance(self.dynamics, Bounded) else members


def most_observed(observation: Observation) -> int:
    """The largest number of values that one experiment observes."""
    dims = len(observation.likelihood.operator.obs_shape)
    if dims == 0:
        return int((~torch.isnan(observation.y)).any())
    return int((~torch.isnan(observation.y)).sum(tuple(range(-dims, 0))).max())
