r"""A forecast, corrected towards the observations by a variational step: what a neural forecaster makes of them.

    x_b = f(x_a, past)                                                   no noise is drawn
    x_a = argmin |y - H(x)|^2 / (2 gamma^2) + weight / 2 |x - x_b|^2

with the law of the observations' noise where it is not of one gamma. The background term knows no covariance: what is
not observed directly moves only as far as H mixes it with what is. It is the baseline that FlowDAS is held against as
"FNO-DA" and "Transolver-DA": the same rule with another f. One member an experiment is all that it needs; further ones
follow the same rule from where they start.

For linear operators and Gaussian noise the minimum is solved for by conjugate gradients, else it is found by
Gauss-Newton or L-BFGS (`assimilate.variational.minimise`).

References:
    Chen et al. (2024), FlowDAS: a stochastic interpolant-based framework for data assimilation,
    https://arxiv.org/abs/2501.16642 (the comparison)
    Lorenc (1986), Analysis methods for numerical weather prediction, https://doi.org/10.1002/qj.49711247414

Differs from the paper, which does not give the details of its baselines: the minimum is exact, and the weight is tuned
on validation data (`CorrectedForecast.tuned`), the same for all times.
"""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor

from assimilate.baselines.base import without_no_data
from assimilate.baselines.persistence import without_evidence
from assimilate.filters.base import Diverged, Exactness, HistoryState, Info, check_finite, check_members
from assimilate.learning.forecast import PastForecast
from assimilate.learning.samples import Simulation, Trajectories
from assimilate.posterior.covariance import Isotropic
from assimilate.posterior.update import gaussian_update
from assimilate.posterior.weights import uniform_log_weights
from assimilate.variational.background import DiagonalBackground, amplitude
from assimilate.variational.minimise import LBFGS, GaussNewton, Minimiser
from assimilate.variational.three_dimensional import cost_of
from dynamics.base import Dynamics, steps_between
from dynamics.errors import SpaceMismatch
from dynamics.random import Rng, Streams, normal
from dynamics.settings import check_settings, number
from observations.likelihood import Observation
from observations.noise import GaussianNoise

if TYPE_CHECKING:
    import xarray as xr

TRIED = 9
"""Weights tried where none are given."""


@dataclass(frozen=True)
class CorrectedForecast:
    """A forecast with a variational correction, as a filter; see the module docstring.

    Args:
        dynamics: f: a step without noise is made. One that looks at several states (`PastForecast`) is given the last
            analyses.
        weight: of the background term, in 1 / (Space units)^2: one over the error variance that the forecast is
            thought to have in every cell.
        minimiser: for operators that are not linear or noise that is not Gaussian; None: `GaussNewton()` for Gaussian
            noise, else `LBFGS()`.
        tuning: the weights that were tried and the RMSE of each on the validation data; empty where none was.
        validation: what these data were.

    Raises:
        ValueError: the weight is not positive.
    """

    dynamics: Dynamics
    weight: float
    minimiser: Minimiser | None = None
    tuning: tuple[tuple[float, float], ...] = ()
    validation: str = ""
    name: ClassVar[str] = "forecast with variational correction"
    exactness: ClassVar[Exactness] = "biased"

    def __post_init__(self) -> None:
        """Check the weight."""
        check_settings(self, weight=number(above=0, words="a positive number, 1 / (Space units)^2"))

    @classmethod
    def tuned(
        cls,
        dynamics: Dynamics,
        observations: Sequence[Observation],
        *,
        validation: Dynamics | xr.Dataset | Trajectories | str | os.PathLike[str],
        weights: Sequence[float] | None = None,
        steps: int = 20,
        every: int = 1,
        experiments: int = 8,
        spinup: int = 100,
        initial_std: float = 0.0,
        seed: int = 0,
        minimiser: Minimiser | None = None,
    ) -> CorrectedForecast:
        """The weight with the smallest RMSE on trajectories that are not those to be assimilated.

        Each weight is used for the same assimilation: the same validation trajectories, seen by the operators and noise
        of `observations` (in turn), with the same noise drawn.

        Args:
            dynamics: see the class.
            observations: their operators and noise are used, not their values.
            validation: a simulator, or states over time as a Dataset, trajectories or the path of a netCDF file. They
                must be none that are scored and should be none that `dynamics` was trained on.
            weights: to try; None: nine, from a forecast error of half the one-step error to twice the climate's
                standard deviation, and more beyond them while the RMSE still falls.
            steps: analyses of each assimilation.
            every: steps of the validation data between two analyses.
            experiments: number of trajectories.
            spinup: steps of a simulator that are dropped beforehand.
            initial_std: standard deviation of the error of the first state, which is the truth plus noise.
            seed: of the simulator and the noise.
            minimiser: see the class.

        Raises:
            ValueError: no weight or no observation, too few data, or a forecast that diverges with every weight.
            SpaceMismatch: the validation data have states of another shape.
        """
        truth, dt, source = _validation(validation, Simulation(experiments, steps * every + 1, spinup, 1, seed))
        event = dynamics.space.event_shape
        if tuple(truth.shape[2:]) != event:
            raise SpaceMismatch(f"the validation states have shape {tuple(truth.shape[2:])}; the dynamics' {event}")
        truth = truth[:experiments, : steps * every + 1 : every]
        if truth.shape[1] < 2 or not observations:
            raise ValueError(
                f"tuning needs an analysis: given {len(observations)} observations and {truth.shape[1]} states, "
                f"one in {every}"
            )
        truth = truth.to(observations[0].y.device).unsqueeze(2)
        tried = _weights(dynamics, truth, every * dt) if weights is None else [float(weight) for weight in weights]
        if not tried:
            raise ValueError("weights is empty; give at least one, or none at all")
        streams = Streams(seed + 1, truth.shape[0], 1)
        seen = [
            Observation(o.likelihood, o.likelihood.sample(truth[:, k + 1], rng=streams.at(k + 1)))
            for k, o in ((k, observations[k % len(observations)]) for k in range(truth.shape[1] - 1))
        ]
        noise = normal(streams.at(0), tuple(truth[:, 0].shape), dtype=truth.dtype, device=truth.device)
        first = without_no_data((truth[:, 0] + initial_std * noise).flatten(0, 1), dynamics.space).unsqueeze(1)

        def error(weight: float) -> float:
            return _error(cls(dynamics, weight, minimiser), first, truth, seen, every * dt, streams)

        table = {weight: error(weight) for weight in tried}
        best = min(table, key=lambda weight: table[weight])
        most = 2 * TRIED if weights is None and math.isfinite(table[best]) else len(table)
        # A best weight at the end of the table may have a better one beyond.
        while len(table) < most and best in (min(table), max(table)):
            ratio = tried[1] / tried[0]
            beyond = best * ratio if best == max(table) else best / ratio
            table[beyond] = error(beyond)
            best = min(table, key=lambda weight: table[weight])
        if not math.isfinite(table[best]):
            raise ValueError(f"the forecast diverges with every weight tried: {list(table)}")
        return cls(dynamics, best, minimiser, tuple(sorted(table.items())), source)

    def init(self, members: Tensor, time: float = 0.0) -> HistoryState:
        """A state without a past from initial members `(E, N, *event)`."""
        check_members(members)
        past = members.new_zeros(*members.shape[:2], 0, *members.shape[2:])
        return HistoryState(members, uniform_log_weights(members), float(time), past)

    def step(
        self, state: HistoryState, observation: Observation | None, time: float, *, rng: Rng
    ) -> tuple[HistoryState, Info]:
        """Forecast to `time`, then correct; see `Filter.step`. Nothing is drawn from `rng`."""
        members, past = state.members, state.past
        for k in range(steps_between(self.dynamics, state.time, time)):
            before = state.time + k * self.dynamics.dt
            if isinstance(self.dynamics, PastForecast):
                ahead = self.dynamics.next_state(members, before, past)
                past = torch.cat([members.unsqueeze(2), past], 2)[:, :, : self.dynamics.frames - 1]
            else:
                ahead = self.dynamics.step(members, before, rng=None)
            members = check_finite(ahead, self.name, before + self.dynamics.dt, before, "members after the forecast")
        info = without_evidence(members, observation)
        if observation is not None:
            members = check_finite(self.correct(members, observation), self.name, time, state.time)
        return HistoryState(members, state.log_weights, float(time), past), info

    def correct(self, background: Tensor, observation: Observation) -> Tensor:
        """x_a from x_b, `(E, N, *event)`, each member by itself."""
        likelihood, y = observation
        space, std = self.dynamics.space, self.weight**-0.5
        gaussian = isinstance(likelihood.noise, GaussianNoise)
        if likelihood.linear and gaussian:
            variance = amplitude(std, space).square().to(background)
            shift, _ = gaussian_update(background, Isotropic(variance), likelihood, y.to(background))
            return background + shift
        covariance = DiagonalBackground(space, std)
        minimiser = self.minimiser or (GaussNewton() if gaussian else LBFGS())
        start = background.new_zeros(*background.shape[:2], covariance.size)
        return background + covariance.root(minimiser(cost_of(observation, background, covariance), start).control)

    def ensemble(self, state: HistoryState) -> tuple[Tensor, Tensor]:
        """Members `(E, N, *event)` and their equal log weights."""
        return state.members, state.log_weights


def _validation(
    given: Dynamics | xr.Dataset | Trajectories | str | os.PathLike[str], simulation: Simulation
) -> tuple[Tensor, float, str]:
    """States `(trajectory, time, *event)`, the time between them, and where they come from."""
    if isinstance(given, str | os.PathLike):
        import xarray as xr

        with xr.open_dataset(given) as opened:
            found = Trajectories.of(opened.load(), simulation)
        return found.states, found.dt, os.fspath(given)
    found = Trajectories.of(given, simulation)
    return found.states, found.dt, found.source


def _weights(dynamics: Dynamics, truth: Tensor, interval: float) -> list[float]:
    """Weights to try, from the forecast's own error and the climate's spread."""
    forecast = truth[:, :-1]
    for k in range(steps_between(dynamics, 0.0, interval)):
        forecast = dynamics.step(forecast, k * dynamics.dt, rng=None)
    error = float((forecast - truth[:, 1:]).double().square().mean().sqrt())
    climate = float(truth.double().std())
    low, high = math.log(error / 2), math.log(2 * climate)
    stds = [math.exp(low + (high - low) * k / (TRIED - 1)) for k in range(TRIED)]
    return sorted(std**-2 for std in stds)


def _error(
    method: CorrectedForecast, first: Tensor, truth: Tensor, seen: list[Observation], interval: float, streams: Streams
) -> float:
    """RMSE of the analyses over experiments, times and values; infinite where the run diverges."""
    state, squared = method.init(first), []
    for k, observation in enumerate(seen):
        try:
            state, _ = method.step(state, observation, (k + 1) * interval, rng=streams.at(k + 1))
        except Diverged:
            return math.inf
        squared.append((state.members - truth[:, k + 1]).double().square().mean())
    return float(torch.stack(squared).mean().sqrt())
