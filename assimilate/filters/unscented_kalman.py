r"""The unscented Kalman filter: a Gaussian law sent through dynamics and operator on a few well-chosen points.

With a root A of the covariance (rows a_i, i = 1..d) and the centre weight w0, the 2 d + 1 points

    m,    m +- sqrt(d / (1 - w0)) a_i        weights w0 and (1 - w0) / (2 d)

have mean m and covariance A^T A. They go through the function, whatever it is; mean and covariance of what comes out
are the new law, right to second order where the extended filter is right to first. Rows `sqrt(weight) (x - mean)` are
a root again, so that all is done by QR decompositions (`square_root.py`).

References:
    Julier, Uhlmann (2004), Unscented filtering and nonlinear estimation, https://doi.org/10.1109/JPROC.2003.823141
    Van der Merwe, Wan (2001), The square-root unscented Kalman filter for state and parameter-estimation,
    https://doi.org/10.1109/ICASSP.2001.940586
    Arasaratnam, Haykin (2009), Cubature Kalman filters, https://doi.org/10.1109/TAC.2009.2019800 (w0 = 0)
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from assimilate.filters.base import Exactness
from assimilate.filters.kalman import Prior
from assimilate.filters.square_root import SquareRootFilter, array_update, noise_root, triangular, with_noise
from dynamics.base import Dynamics, TransitionDensity, steps_between
from dynamics.settings import check_settings, number
from observations.likelihood import Observation


@dataclass(frozen=True)
class UnscentedKalmanFilter(SquareRootFilter):
    """The unscented Kalman filter (UKF), in square-root form; with `centre_weight = 0` the cubature Kalman filter.

    Args:
        dynamics: a `TransitionDensity` whose noise does not depend on the state; nothing is differentiated.
        centre_weight: w0, the weight of the point at the mean, a number from 0 (default) to less than 1. Julier and
            Uhlmann's `1 - d / 3` matches the fourth moments of a Gaussian for d <= 3 variables.
        covariance_inflation: factor of the forecast covariance per unit of time, `P <- factor^dt P + Q` (1: none).
        prior: where the law at the start comes from. "members" (default): mean and sample covariance of the initial
            members, of which there should be more than variables. "dynamics": exact, from `dynamics.prior_moments`.

    Raises:
        CapabilityError: the dynamics has no `moments`, or the noise of an observation is not Gaussian.

    Differs from the papers: negative weights are refused, with which the covariance may stop being one; the points are
    drawn anew after noise was added, at every step of the dynamics, and carried through steps without noise.
    """

    dynamics: Dynamics
    centre_weight: float = 0.0
    covariance_inflation: float = 1.0
    prior: Prior = "members"
    name: ClassVar[str] = "unscented Kalman filter"
    exactness: ClassVar[Exactness] = "consistent"

    def __post_init__(self) -> None:
        """Check the settings."""
        self._check()
        check_settings(self, centre_weight=number(0, below=1))

    def _forecast(self, mean: Tensor, root: Tensor, start: float, end: float) -> tuple[Tensor, Tensor]:
        dynamics = self.dynamics
        assert isinstance(dynamics, TransitionDensity)
        event = dynamics.space.event_shape
        steps = steps_between(dynamics, start, end)
        if steps == 0:
            return mean, root
        growth, weights = 1.0, self._weights(root)
        points = self._points(mean, root)
        for k in range(steps):
            time = start + k * dynamics.dt
            states = points.reshape(*points.shape[:2], *event)
            noise = noise_root(dynamics.moments(states[:, 0], time)[1], mean)
            points = dynamics.step(states, time, rng=None).flatten(2)
            growth = growth * self.covariance_inflation ** (dynamics.dt / 2)
            if noise is not None:
                mean, rows = _spread(points, weights)
                root, growth = with_noise(growth * rows, noise), 1.0
                points = self._points(mean, root)
        if noise is None:
            mean, rows = _spread(points, weights)
            root = triangular(growth * rows)
        return mean, root

    def _analysis(self, mean: Tensor, root: Tensor, observation: Observation) -> tuple[Tensor, Tensor, Tensor]:
        points, weights = self._points(mean, root), self._weights(root)
        states = points.reshape(*points.shape[:2], *self.dynamics.space.event_shape)
        y = observation.y.to(mean.device, mean.dtype)
        departure, spread = _spread(observation.likelihood.residual(y, states).flatten(2), weights)
        found = array_update(weights.sqrt().unsqueeze(-1) * (points - mean.unsqueeze(1)), -spread, departure)
        return mean + found.increment, found.root, found.log_evidence

    def _points(self, mean: Tensor, root: Tensor) -> Tensor:
        """Sigma points `(E, 2 d + 1, d)`."""
        reach = (root.shape[1] / (1 - self.centre_weight)) ** 0.5 * root
        return mean.unsqueeze(1) + torch.cat([torch.zeros_like(reach[:, :1]), reach, -reach], 1)

    def _weights(self, root: Tensor) -> Tensor:
        """Weights `(2 d + 1,)` of the sigma points."""
        size = root.shape[1]
        weights = root.new_full((2 * size + 1,), (1 - self.centre_weight) / (2 * size))
        weights[0] = self.centre_weight
        return weights


def _spread(values: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
    """Weighted mean `(E, k)` of values `(E, p, k)`, and rows `(E, p, k)` that are a root of their covariance."""
    mean = torch.einsum("p,epk->ek", weights, values)
    return mean, weights.sqrt().unsqueeze(-1) * (values - mean.unsqueeze(1))
