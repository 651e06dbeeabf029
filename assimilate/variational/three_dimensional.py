r"""3D-Var, cycled: the most probable state under a background and one time's observations.

    J(v) = 1/2 |v|^2 - log p(y | x_b + L v),      x_a = x_b + L v*,      B = L L^T   (`background.py`)

The forecast of x_a is the next x_b; B stays what it is, or is made of the members (`hybrid.py`). Members come from

    "draws"      one analysis an experiment. Members are draws around it from the Gauss-Newton posterior covariance
                 (`laplace.py`), those of the background from B; their mean is the analysis, to rounding.
    "perturbed"  every member is forecast and analysed by itself, with observations perturbed by their own noise
                 (an ensemble of data assimilations). Only this gives a hybrid its members.

With linear operators and Gaussian noise the analysis is that of optimal interpolation with this B, and "perturbed" with
B of the members alone is the stochastic EnKF.

References:
    Lorenc (1986), Analysis methods for numerical weather prediction, https://doi.org/10.1002/qj.49711247414
    Parrish, Derber (1992), The National Meteorological Center's spectral statistical-interpolation analysis system,
    https://doi.org/10.1175/1520-0493(1992)120<1747:TNMCSS>2.0.CO;2
    Hamill, Snyder (2000), A hybrid ensemble Kalman filter-3D variational analysis scheme,
    https://doi.org/10.1175/1520-0493(2000)128<2905:AHEKFV>2.0.CO;2
    Isaksen et al. (2010), Ensemble of data assimilations at ECMWF, https://doi.org/10.21957/obke4k60
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Literal, NamedTuple, get_args

import torch
from torch import Tensor

from assimilate.filters.base import Exactness, Info, check_finite, check_members, forecast
from assimilate.filters.departures import observed_values
from assimilate.posterior.weights import uniform_log_weights
from assimilate.variational.background import Background, state_mean
from assimilate.variational.hybrid import Hybrid
from assimilate.variational.laplace import centred_normals, half_log_determinant, posterior_draws
from assimilate.variational.minimise import Cost, GaussNewton, Minimiser, tangent
from dynamics.base import Dynamics
from dynamics.errors import CapabilityError
from dynamics.random import Rng
from observations.likelihood import Observation
from observations.noise import GaussianNoise

Spread = Literal["draws", "perturbed"]
FirstGuess = Literal["forecast", "climate"]


class VariationalState(NamedTuple):
    """The state of a cycled variational analysis.

    Attributes:
        control: `(E, 1, *event)`, the analysis; with "perturbed" the members' mean.
        members: `(E, N, *event)`.
        time: in the time unit of the dynamics.
        gradient_norm: `(E, K)`, where the last minimisation stopped, K = 1 or N; prior standard deviations.
    """

    control: Tensor
    members: Tensor
    time: float
    gradient_norm: Tensor


@dataclass(frozen=True)
class ThreeDVar:
    """3D-Var as a filter.

    Args:
        dynamics: the system; only `step` is used.
        background: B, or a `Hybrid` of it and the members (needs `spread = "perturbed"`).
        spread: where members come from, "draws" (default) or "perturbed".
        minimiser: `GaussNewton()` (default) for Gaussian noise, `LBFGS()` for any that is differentiable.
        first_guess: "forecast" (default), or "climate": every analysis starts from `background.mean`, which is
            optimal interpolation of each time alone.
        evidence: whether to compute log p(y | x_b, B) (Laplace's approximation; exact for linear operators and Gaussian
            noise). It costs as many products as there are observed values; otherwise it is NaN.

    Raises:
        CapabilityError: a residual without gradient, or noise that the minimiser or "perturbed" cannot take.
        ValueError: a setting that does not exist, or a hybrid without an ensemble of its own.

    With noise that is not Gaussian the draws have the curvature of Gaussian noise of equal variance.
    """

    dynamics: Dynamics
    background: Background | Hybrid
    spread: Spread = "draws"
    minimiser: Minimiser = GaussNewton()
    first_guess: FirstGuess = "forecast"
    evidence: bool = False
    name: ClassVar[str] = "3D-Var"
    exactness: ClassVar[Exactness] = "biased"

    def __post_init__(self) -> None:
        """Check the settings."""
        check_choice("spread", self.spread, Spread)
        check_choice("first_guess", self.first_guess, FirstGuess)
        if isinstance(self.background, Hybrid) and self.spread == "draws":
            raise ValueError('a Hybrid needs members that are forecast one by one: set spread = "perturbed"')
        if self.first_guess == "climate" and self.background.mean is None:
            raise ValueError(
                "first_guess = 'climate' needs a background with a mean, such as DenseBackground.climatology"
            )
        if self.evidence and self.spread == "perturbed":
            raise ValueError('the evidence is that of one analysis: set spread = "draws"')

    def init(self, members: Tensor, time: float = 0.0) -> VariationalState:
        """The analysis at the start is the mean of the initial members `(E, N, *event)`."""
        check_members(members)
        return VariationalState(
            members.mean(1, keepdim=True), members, float(time), members.new_zeros(members.shape[0], 1)
        )

    def step(
        self, state: VariationalState, observation: Observation | None, time: float, *, rng: Rng
    ) -> tuple[VariationalState, Info]:
        """Forecast to `time`, then analyse; see `Filter.step`."""
        analyse = self._analyse_one if self.spread == "draws" else self._analyse_each
        found, background, evidence = analyse(state, observation, float(time), rng)
        check_finite(found.members, self.name, time, state.time, "members after the analysis")
        experiments, n = background.shape[:2]
        return found, Info(background, evidence, background.new_full((experiments,), float(n)))

    def ensemble(self, state: VariationalState) -> tuple[Tensor, Tensor]:
        """Members `(E, N, *event)` and their equal log weights."""
        return state.members, uniform_log_weights(state.members)

    def _analyse_one(
        self, state: VariationalState, observation: Observation | None, time: float, rng: Rng
    ) -> tuple[VariationalState, Tensor, Tensor]:
        guess = forecast(self.dynamics, state.control, state.time, time, rng=None, method=self.name)
        guess = self._first_guess(guess)
        covariance = self.background.at(state.members)
        experiments, n = state.members.shape[:2]
        place: dict[str, Any] = {"dtype": guess.dtype, "device": guess.device}
        scatter = centred_normals(rng, (experiments, n, covariance.size), **place)
        background = guess + covariance.root(scatter)
        if observation is None:
            still = VariationalState(guess, background, time, guess.new_zeros(experiments, 1))
            return still, background, guess.new_zeros(experiments)
        cost = cost_of(observation, guess, covariance)
        best = self.minimiser(cost, guess.new_zeros(experiments, 1, covariance.size))
        near = tangent(cost.residual, best.control.expand(-1, n, -1))
        noise = centred_normals(rng, tuple(near.value.shape), **place)
        draws = best.control + posterior_draws(near, scatter, noise)
        control = guess + covariance.root(best.control)
        members = guess + covariance.root(draws)
        observed = observed_values(observation, background).any(-1)
        evidence = torch.where(observed, torch.nan, 0.0).to(guess.dtype)
        if self.evidence:
            evidence = laplace_evidence(cost, observation, control, best.control).to(guess.dtype)[:, 0]
        return VariationalState(control, members, time, best.gradient_norm), background, evidence

    def _analyse_each(
        self, state: VariationalState, observation: Observation | None, time: float, rng: Rng
    ) -> tuple[VariationalState, Tensor, Tensor]:
        background = forecast(self.dynamics, state.members, state.time, time, rng=rng, method=self.name)
        experiments, n = background.shape[:2]
        members, norm = background, background.new_zeros(experiments, 1)
        evidence = background.new_zeros(experiments)
        if observation is not None:
            guess = self._first_guess(background)
            covariance = self.background.at(background)
            cost = cost_of(observation, guess, covariance, shake=rng)
            best = self.minimiser(cost, guess.new_zeros(experiments, n, covariance.size))
            observed = observed_values(observation, background).any(-1)
            analysed = guess + covariance.root(best.control)
            members = torch.where(observed.reshape(-1, *[1] * (analysed.ndim - 1)), analysed, background)
            norm = best.gradient_norm
            evidence = torch.where(observed, torch.nan, 0.0).to(background.dtype)
        return VariationalState(members.mean(1, keepdim=True), members, time, norm), background, evidence

    def _first_guess(self, guess: Tensor) -> Tensor:
        if self.first_guess == "forecast":
            return guess
        return state_mean(self.background.mean, self.dynamics.space.event_shape, guess).expand_as(guess)


def cost_of(observation: Observation, guess: Tensor, covariance: Background, *, shake: Rng | None = None) -> Cost:
    """J of the controls around `guess`, `(E, K, *event)`.

    Args:
        observation: at the time of `guess`.
        guess: x_b.
        covariance: B.
        shake: draws the perturbations of the observations, different for every row; None: none.
    """
    likelihood, y = observation
    observed = observed_values(observation, guess).unsqueeze(1)

    def residual(control: Tensor) -> Tensor:
        return likelihood.residual(y, guess + covariance.root(control)).flatten(2)

    def misfit(control: Tensor) -> Tensor:
        return -likelihood.log_prob(y, guess + covariance.root(control))

    centre = guess.new_zeros(1)
    gaussian = isinstance(likelihood.noise, GaussianNoise)
    if shake is None:
        return Cost(residual, centre, None if gaussian else misfit)
    if not gaussian:
        raise CapabilityError(
            f"perturbed observations need Gaussian noise; {type(likelihood.noise).__name__} was given: set "
            'spread = "draws"'
        )
    shape = (*guess.shape[:2], observed.shape[-1])
    noise = centred_normals(shake, shape, dtype=guess.dtype, device=guess.device) * observed
    return Cost(lambda control: residual(control) + noise, centre)


def laplace_evidence(cost: Cost, observation: Observation, x: Tensor, control: Tensor) -> Tensor:
    """Log p(y), `(E, K)`, from the minimum `control` and its states `x`; see `laplace.py`."""
    fit = observation.likelihood.log_prob(observation.y, x) - 0.5 * control.square().sum(-1)
    return fit.double() - half_log_determinant(tangent(cost.residual, control), control.shape[-1])


def check_choice(name: str, given: str, choices: Any) -> None:
    """Raise a ValueError unless `given` is one of a Literal's values."""
    if given not in get_args(choices):
        raise ValueError(f"{name} is {given!r}; expected one of {', '.join(get_args(choices))}")
