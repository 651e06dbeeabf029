r"""The ensemble score filter (EnSF): a diffusion model whose data are the forecast members, sampled given y.

The forecast law is a mixture of kernels around the members (`member_mixture.py`), whose clean mean m is known in closed
form: there is nothing to train. The analysis members are draws of the reverse diffusion with `condition(m, y,
guidance)`, the package's own core. The published rule adds the gradient of the likelihood at the noisy state itself,
damped in the time t of the path,

    g = t grad log p(y | x)|_{x = x_t},

which is 0 at the start, right at the end and wrong in between. Where the weights fall on one member (many values,
few members) the mixture is no better than that member: `score = "member"` takes each analysis member's own forecast
alone, so that member n is carried from its forecast towards the observations.

References:
    Bao, Zhang, Zhang (2024), An ensemble score filter for tracking high-dimensional nonlinear dynamical systems,
    https://arxiv.org/abs/2309.00983
    Bao, Chipilski, Liang, Zhang, Whitaker (2024), Nonlinear ensemble filtering with diffusion models: application to
    the surface quasi-geostrophic dynamics, https://arxiv.org/abs/2404.00844 (relaxation of the spread)
"""

from __future__ import annotations

import math
from dataclasses import KW_ONLY, dataclass, field
from typing import ClassVar, Literal, get_args

import torch
from torch import Tensor

from assimilate.filters.base import EnsembleFilter, Exactness, FilterState, Info, check_finite, forecast
from assimilate.filters.departures import observed_values
from assimilate.filters.ensemble import anywhere
from assimilate.filters.inflation import add_noise, check_spread_settings, inflate
from assimilate.filters.member_mixture import MemberDenoiser, Rescaled, Scaling, Units
from assimilate.posterior.condition import Guidance, Problem, condition
from assimilate.posterior.guidance import MMPS
from assimilate.posterior.guidance.base import Guided
from assimilate.posterior.paths import VE, Coefficients, Path
from assimilate.posterior.predictors import Clean, Context, OnPath
from assimilate.posterior.samplers import Ancestral, EulerMaruyama, Sampler
from assimilate.posterior.time_grids import uniform_times
from dynamics.base import Dynamics
from dynamics.covariance import Covariance
from dynamics.random import Rng, normal
from dynamics.settings import COUNT, NOT_NEGATIVE, check_settings, number
from observations.likelihood import Likelihood, Observation

LARGEST = 4096
"""Values of a state up to which its covariance matrix is decomposed: 134 MB in float64."""

Score = Literal["ensemble", "member"]


@dataclass(frozen=True)
class LinearVariance(Path):
    """The path of the paper: `beta = a + (1 - a) t`, `noise^2 = 1 - (1 - b) t`.

    Args:
        signal: a, signal left at the start, dimensionless (0.05, the paper's code for its first experiment).
        noise: b, variance of the noise left at the end, in units of the state squared (0).
    """

    signal: float = 0.05
    noise: float = 0.0

    def __post_init__(self) -> None:
        """Check the settings."""
        check_settings(self, signal=number(0, below=1), noise=number(0, below=1))

    def coefficients(self, t: Tensor, x: Tensor) -> Coefficients:
        """See `Path.coefficients`."""
        t = t.to(x).reshape(*t.shape, *(1,) * (x.ndim - t.ndim))
        d_beta = torch.full_like(t, 1 - self.signal)
        beta = self.signal + d_beta * t
        variance, d_variance = 1 - (1 - self.noise) * t, -(1 - self.noise)
        level = variance.clamp_min(0).sqrt()
        foellmer = 2 * variance * d_beta / beta - d_variance
        bend = d_variance / variance - d_beta / beta
        zero, sigma = torch.zeros_like(t), foellmer.sqrt()
        return Coefficients(
            alpha=zero,
            beta=beta,
            noise=level,
            d_alpha=zero,
            d_beta=d_beta,
            d_noise=0.5 * d_variance / level,
            sigma=sigma,
            d_sigma=sigma * bend,
            snr=beta.square() / variance,
            pull=beta / variance,
            bend=bend,
            foellmer=foellmer,
        )

    def ratio(self, t: float) -> float:
        """See `Path.ratio`."""
        beta = self.signal + (1 - self.signal) * t
        return math.inf if beta == 0 else math.sqrt(1 - (1 - self.noise) * t) / beta


@dataclass(frozen=True)
class DampedLikelihood(Guided):
    """The published rule: `g = t^power grad log p(y | x)` at the noisy state itself; nothing is differentiated twice.

    Args:
        gain: see `Guided`.
        strength: see `Guided`.
        power: exponent of the damping (1, the paper's).

    Exactness: biased.
    """

    power: float = 1.0

    def __post_init__(self) -> None:
        """Check the settings."""
        super().__post_init__()
        check_settings(self, power=NOT_NEGATIVE)

    @property
    def backpropagates(self) -> bool:
        """The gradient is that of the likelihood alone."""
        return False

    def gradient(self, clean: Clean, x: Tensor, t: Tensor, context: Context, problem: Problem) -> Tensor:
        """See `Guided`."""
        with torch.enable_grad():
            leaf = x.detach().requires_grad_()
            (slope,) = torch.autograd.grad(problem.likelihood.log_prob(problem.y, leaf).sum(), leaf)
        return t.to(x).reshape(*t.shape, *(1,) * (x.ndim - t.ndim)) ** self.power * slope


@dataclass(frozen=True)
class EnSF(EnsembleFilter):
    """The ensemble score filter.

    Args:
        dynamics: the system; only `step` is used.
        guidance: how the observations enter (default: moment matching, which knows the covariance of the mixture).
            Those that linearise need Gaussian noise; `DampedLikelihood` and `DPS` take any.
        sampler: of the reverse diffusion.
        path: of the diffusion, in the units of `scaling`.
        steps: of the sampler, equal in the time of the path (30).
        score: "ensemble" (default), the mixture of all members, or "member", each member's own kernel.
        bandwidth: h of the kernels, in the same units; None (default) is Scott's `N^(-1/(d+4))`, 0 points. The
            members are drawn to their mean by `sqrt(1 - h^2)`, so that kernels add no variance.
        scaling: the units u of the diffusion: "covariance" (default), in which the sample covariance of the forecast
            members is I, so that the kernels have their shape (a d x d matrix: up to `LARGEST` values); "spread", in
            which each value has a standard deviation of 1 (any size; cells then inform each other through the
            weights of the members alone); "none", Space units.
        inflation: factor of the anomalies after the analysis, dimensionless (1: none).
        relaxation: relaxation to the prior spread (RTPS), a fraction (0: none; Bao et al. 2024 need it).
        additive: standard deviation in Space units of noise that is added after the analysis (0: none), or a
            covariance from which it is drawn.

    Raises:
        ValueError: a setting is out of its range.

    Exactness: biased. Draws are independent, so that sampling noise enters at every analysis and the spread needs
    inflation. There is no evidence: `Info.log_evidence` is NaN where something was observed.

    Which setting: measured on Lorenz-96, 40 variables, all observed (two runs). Linear, noise 1, at every step: the
    default with 100 members and `inflation = 1.1` has an error of the mean of 0.25 (a LETKF 0.20), `published` 0.9.
    The paper's case, arctan(x) with noise 0.05 at intervals of 0.1 and members that start far from the truth:
    `published` with 20 members finds it and has 0.2 to 0.3; the default, like a LETKF, linearises an arctan that is
    flat there and does not (above 1).

    Differs from the papers: kernels, standardised units, guidance and sampler; `EnSF.published` has theirs.
    """

    dynamics: Dynamics
    _: KW_ONLY
    guidance: Guidance = field(default_factory=lambda: MMPS(iterations=3, solver="cg"))
    sampler: Sampler = field(default_factory=lambda: Ancestral(variance="clean"))
    path: Path = field(default_factory=lambda: VE(smallest=0.02, largest=20.0))
    steps: int = 30
    score: Score = "ensemble"
    bandwidth: float | None = None
    scaling: Scaling = "covariance"
    inflation: float = 1.0
    relaxation: float = 0.0
    additive: float | Covariance = 0.0
    name: ClassVar[str] = "ensemble score filter"
    exactness: ClassVar[Exactness] = "biased"

    def __post_init__(self) -> None:
        """Check the settings."""
        event = self.dynamics.space.event_shape
        if self.scaling not in get_args(Scaling):
            raise ValueError(f"scaling is {self.scaling!r}; expected one of {', '.join(get_args(Scaling))}")
        if self.scaling == "covariance" and math.prod(event) > LARGEST:
            raise ValueError(
                f"scaling is 'covariance' for states of {math.prod(event)} values; expected at most {LARGEST}: use "
                "scaling='spread'"
            )
        check_spread_settings(self.inflation, self.relaxation, additive=self.additive, event_shape=event)
        if self.score not in get_args(Score):
            raise ValueError(f"score is {self.score!r}; expected one of {', '.join(get_args(Score))}")
        width = number(0, 1, none=True, words="0 to 1, in standard deviations, or None")
        check_settings(self, steps=COUNT, bandwidth=width)

    @classmethod
    def published(
        cls, dynamics: Dynamics, *, steps: int = 500, relaxation: float = 0.0, inflation: float = 1.0
    ) -> EnSF:
        """The setting of the authors' code for Lorenz-96: 500 Euler steps, each member's own score, damped likelihood.

        Its path leaves noise of variance 0.025 on the states, in Space units, and half of the signal at the start.
        """
        return cls(
            dynamics,
            guidance=DampedLikelihood(),
            sampler=EulerMaruyama("foellmer"),
            path=LinearVariance(signal=0.5, noise=0.025),
            steps=steps,
            score="member",
            bandwidth=0.0,
            scaling="none",
            relaxation=relaxation,
            inflation=inflation,
        )

    def step(
        self, state: FilterState, observation: Observation | None, time: float, *, rng: Rng
    ) -> tuple[FilterState, Info]:
        """Forecast to `time`, then sample the analysis; see `Filter.step`."""
        background = forecast(self.dynamics, state.members, state.time, time, rng=rng, method=self.name)
        experiments, n = background.shape[:2]
        info = Info(background, background.new_zeros(experiments), background.new_full((experiments,), float(n)))
        if observation is None:
            return FilterState(background, state.log_weights, float(time)), info
        observed = observed_values(observation, background)
        seen = anywhere(observed, background)
        members = torch.where(seen.unsqueeze(1), self._sample(background, observation, rng=rng), background)
        check_finite(members, self.name, time, state.time, "members after the analysis")
        members = inflate(members, background, seen, inflation=self.inflation, relaxation=self.relaxation)
        if not isinstance(self.additive, int | float) or self.additive > 0:
            members = add_noise(members, seen, self.additive, rng=rng)
        evidence = torch.where(observed.any(-1), torch.nan, info.log_evidence)
        return FilterState(members, state.log_weights, float(time)), info._replace(log_evidence=evidence)

    def _sample(self, background: Tensor, observation: Observation, *, rng: Rng) -> Tensor:
        """Draws of the analysis, `(E, N, *event)`."""
        n, size = background.shape[1], math.prod(background.shape[2:])
        if n < 2 and self.scaling != "none":
            raise ValueError(f"{self.name} needs at least 2 members to know their spread; 1 was given")
        width = n ** (-1 / (size + 4)) if self.bandwidth is None else self.bandwidth
        units = Units.of(background, self.scaling)
        centres = units.into(background)
        likelihood = Likelihood(Rescaled(observation.likelihood.operator, units), observation.likelihood.noise)
        if self.score == "ensemble":
            middle = centres.mean(1, keepdim=True)
            centres = middle + math.sqrt(1 - width**2) * (centres - middle)
        predictor = OnPath(MemberDenoiser(centres, width, self.score == "member"), self.path)
        guided = condition(
            predictor, self.path, likelihood, observation.y, self.guidance, event_dims=background.ndim - 2, rng=rng
        )
        z = normal(rng, tuple(background.shape), dtype=background.dtype, device=background.device)
        sample = self.sampler(
            guided,
            self.path,
            self.path.start(torch.zeros_like(z), z),
            times=uniform_times(self.steps, dtype=background.dtype).to(background.device),
            event_dims=background.ndim - 2,
            rng=rng,
        )
        return units.back(sample.x)
