"""The iterative ensemble Kalman filter (IEnKF): an observation corrects the state before it, the model runs again.

    window      the states at the last `lag` analyses and the forecast to y_k
    analysis    Gauss-Newton steps over the window's first state (and model noise), `smoothers/gauss_newton.py`
    slide       the window's second state starts the next one

Where the model is nonlinear between two observations the forecast ensemble is far from Gaussian, but the ensemble
before it is less so: the update is made there. With one iteration this is the ETKF.

References:
    Sakov, Oliver, Bertino (2012), An iterative EnKF for strongly nonlinear systems,
    https://doi.org/10.1175/MWR-D-11-00176.1 (lag 1)
    Bocquet, Sakov (2014), An iterative ensemble Kalman smoother, https://doi.org/10.1002/qj.2236 (longer lags, each
    observation assimilated once)
    Bocquet, Sakov (2012), Combining inflation-free and iterative ensemble Kalman filters for strongly nonlinear
    systems, https://doi.org/10.5194/npg-19-383-2012 (IEnKF-N: `certainty`)
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor

from assimilate.filters.base import Exactness, Info, check_finite, check_members
from assimilate.filters.inflation import check_spread_settings, inflate, rotate
from assimilate.posterior.weights import uniform_log_weights
from assimilate.smoothers.controls import Controls, draw_path, join_noise
from assimilate.smoothers.gauss_newton import Slopes, check_iterations, minimise
from dynamics.base import Dynamics, steps_between
from dynamics.random import Rng
from dynamics.settings import COUNT, check_settings, number
from observations.likelihood import Observation


class WindowState(NamedTuple):
    """The members over the window that the next analysis corrects.

    Attributes:
        path: `(E, N, K, *event)`, the last one is the present state.
        noise: `(E, N, J, *event)`, model noise of the J steps of the window; None where there is none.
        times: K times, in the time unit of the dynamics.
    """

    path: Tensor
    noise: Tensor | None
    times: tuple[float, ...]

    @property
    def time(self) -> float:
        """The present."""
        return self.times[-1]


@dataclass(frozen=True)
class IEnKF:
    """The iterative ensemble Kalman filter, in the deterministic (transform) form.

    Args:
        dynamics: the system, with additive noise or none; only `step` is used.
        lag: how many analyses the window reaches back (1).
        iterations: most runs of the model in search of the minimum (10), beside the forecast before and the run of the
            posterior after it; with `lag = 1`, 1 is the ETKF and runs nothing again.
        tolerance: a step shorter than this many prior standard deviations is the last (0.01).
        inflation: factor of the anomalies of the window after the analysis, dimensionless (1: none).
        rotate: whether a random rotation that keeps mean and covariance follows the analysis.
        certainty: finite-size variant (IEnKF-N), which inflates by itself: factor of the law of the inflation,
            dimensionless (1: the Jeffreys prior; larger: the members are trusted more); None (default): no such law.
            With `lag = 1` and one iteration this is the EnKF-N.
        slopes: how the model is linearised in search of the minimum: "members", by the mean slope over the posterior
            of the moment, "tangent", by the derivative, or "auto" (default), the former unless there are more members
            than values to correct; see `smoothers/gauss_newton.py`.

    Differs from the papers: see `smoothers/gauss_newton.py`.
    """

    dynamics: Dynamics
    lag: int = 1
    iterations: int = 10
    tolerance: float = 0.01
    inflation: float = 1.0
    rotate: bool = False
    certainty: float | None = None
    slopes: Slopes = "auto"
    name: ClassVar[str] = "IEnKF"
    exactness: ClassVar[Exactness] = "consistent"

    def __post_init__(self) -> None:
        """Check the settings."""
        check_spread_settings(self.inflation)
        check_iterations(self.iterations, self.tolerance, self.slopes)
        words = "a positive factor (1: the Jeffreys prior), or None"
        check_settings(self, lag=COUNT, certainty=number(above=0, none=True, words=words))

    def init(self, members: Tensor, time: float = 0.0) -> WindowState:
        """A window of one state, the members `(E, N, *event)` at `time`."""
        check_members(members)
        if members.shape[1] < 2:
            raise ValueError("an ensemble Kalman filter needs at least 2 members; 1 was given")
        return WindowState(members.unsqueeze(2), None, (float(time),))

    def ensemble(self, state: WindowState) -> tuple[Tensor, Tensor]:
        """The present members `(E, N, *event)` and their equal log weights."""
        members = state.path[:, :, -1]
        return members, uniform_log_weights(members)

    def step(
        self, state: WindowState, observation: Observation | None, time: float, *, rng: Rng
    ) -> tuple[WindowState, Info]:
        """Forecast to `time`, then assimilate; see `Filter.step`."""
        last = state.times[-1]
        new, drawn = draw_path(self.dynamics, state.path[:, :, -1], (last, time), rng=rng, method=self.name)
        background = new[:, :, -1]
        inside = steps_between(self.dynamics, state.times[0], last)
        noise = join_noise(state.path, state.noise, inside, drawn, steps_between(self.dynamics, last, time))
        window = WindowState(torch.cat([state.path, new[:, :, 1:]], 2), noise, (*state.times, float(time)))
        experiments, n = background.shape[:2]
        evidence = background.new_zeros(experiments)
        if observation is not None:
            window, gained = self._analyse(window, observation, rng)
            evidence = gained.to(background.dtype)
        info = Info(background, evidence, background.new_full((experiments,), float(n)))
        return self._slide(window), info

    def _analyse(self, window: WindowState, observation: Observation, rng: Rng) -> tuple[WindowState, Tensor]:
        times = window.times
        found = minimise(
            self.dynamics,
            Controls(window.path[:, :, 0], window.noise),
            window.path,
            times,
            [*[None] * (len(times) - 1), observation],
            iterations=self.iterations,
            tolerance=self.tolerance,
            method=self.name,
            certainty=self.certainty,
            slopes=self.slopes,
        )
        check_finite(found.path, self.name, times[-1], times[-2], "members after the analysis")
        # States and noise together: a member stays one trajectory.
        joint = Controls(found.path, found.controls.noise)
        rows = joint.flat()
        rows = inflate(rows, rows, found.observed.unsqueeze(-1), inflation=self.inflation)
        if self.rotate:
            rows = rotate(rows, found.observed, rng=rng)
        joint = joint.rebuilt(torch.where(found.observed[:, None, None], rows, joint.flat()))
        return WindowState(joint.start, joint.noise, times), found.log_evidence

    def _slide(self, window: WindowState) -> WindowState:
        """The last `lag` states of a window, and the noise between them."""
        drop = max(len(window.times) - self.lag, 0)
        steps = steps_between(self.dynamics, window.times[0], window.times[drop])
        noise = window.noise[:, :, steps:] if window.noise is not None else None
        if noise is not None and noise.shape[2] == 0:
            noise = None
        return WindowState(window.path[:, :, drop:], noise, window.times[drop:])
