r"""The extended Kalman filter and its iterated form: Kalman's formulas with the tangents of dynamics and operator.

    forecast    m <- f(m),        A <- [A F^T; Q^1/2]            F = df/dx at m
    analysis    r(x) = R^-1/2 (y - H(x)) ~ r(x_i) - H_i (x - x_i),    then the linear update of `square_root.py`

One analysis linearises at `x_0 = m`. The iterated filter linearises again at the last estimate: Gauss-Newton steps
towards the minimum over c of `|c|^2 + |r(m + A^T c)|^2`, the mode of the posterior. A step that does not lower that
cost is halved.

F and H_i are Jacobians by automatic differentiation, for all experiments at once: memory is `E d^2` numbers for the
dynamics and `E m d` for m observed values, times what the function keeps for its backward pass.

References:
    Jazwinski (1970), Stochastic processes and filtering theory, Academic Press, sections 8.3 (extended), 9.7 (iterated)
    Bell, Cathey (1993), The iterated Kalman filter update as a Gauss-Newton method, https://doi.org/10.1109/9.250476
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import ClassVar

import torch
from torch import Tensor

from assimilate.filters.base import Exactness
from assimilate.filters.kalman import Prior
from assimilate.filters.square_root import SquareRootFilter, array_update, noise_root, with_noise
from dynamics.base import Dynamics, TransitionDensity, steps_between
from dynamics.settings import check_settings, whole
from observations.likelihood import Observation

HALVINGS = 4
"""How often a Gauss-Newton step is halved before the estimate stays where it is."""


@dataclass(frozen=True)
class ExtendedKalmanFilter(SquareRootFilter):
    """The extended Kalman filter (EKF); with more than one iteration the iterated EKF.

    Args:
        dynamics: a `TransitionDensity` that automatic differentiation can follow; noise of 0 is fine.
        iterations: linearisations of the operator in one analysis; 1 is the EKF, more the iterated EKF (5 to 10).
        covariance_inflation: factor of the forecast covariance per unit of time, `P <- factor^dt F P F^T + Q` (1:
            none). Deterministic chaotic systems need one: without it the filter becomes sure of itself and is lost.
        prior: where the law at the start comes from. "members" (default): mean and sample covariance of the initial
            members, of which there should be more than variables. "dynamics": exact, from `dynamics.prior_moments`.

    The log evidence is that of the linearised problem, at the last linearisation.

    Raises:
        CapabilityError: the dynamics has no `moments`, or the noise of an observation is not Gaussian.

    Differs from the books: a root of the covariance is carried instead of the covariance, and Gauss-Newton steps are
    halved where they do not lower the cost.
    """

    dynamics: Dynamics
    iterations: int = 1
    covariance_inflation: float = 1.0
    prior: Prior = "members"
    name: ClassVar[str] = "extended Kalman filter"
    exactness: ClassVar[Exactness] = "consistent"

    def __post_init__(self) -> None:
        """Check the settings."""
        self._check()
        check_settings(self, iterations=whole(1, words="a whole number, 1 (the EKF) or more"))

    def _forecast(self, mean: Tensor, root: Tensor, start: float, end: float) -> tuple[Tensor, Tensor]:
        dynamics = self.dynamics
        assert isinstance(dynamics, TransitionDensity)
        event = dynamics.space.event_shape
        growth = self.covariance_inflation ** (dynamics.dt / 2)
        for k in range(steps_between(dynamics, start, end)):
            time = start + k * dynamics.dt
            _, covariance = dynamics.moments(mean.reshape(-1, *event), time)
            mean, slope = _linearise(partial(dynamics.step, time=time, rng=None), mean, event, mean.shape[-1])
            rows, noise = root @ slope.mT, noise_root(covariance, mean)
            # Without noise there is nothing to fold in: the rows are a root already.
            root = growth * rows if noise is None else with_noise(growth * rows, noise)
        return mean, root

    def _analysis(self, mean: Tensor, root: Tensor, observation: Observation) -> tuple[Tensor, Tensor, Tensor]:
        event = self.dynamics.space.event_shape
        likelihood = observation.likelihood
        y = observation.y.to(mean.device, mean.dtype)

        def residual(x: Tensor) -> Tensor:
            return likelihood.residual(y, x).flatten(2)

        def cost(c: Tensor) -> Tensor:
            x = mean + (c.unsqueeze(1) @ root).squeeze(1)
            return c.square().sum(-1) + residual(x.reshape(-1, 1, *event)).square().sum((-2, -1))

        c = mean.new_zeros(root.shape[:2])
        for k in range(self.iterations):
            x = mean + (c.unsqueeze(1) @ root).squeeze(1)
            at, slope = _linearise(residual, x, event, likelihood.operator.obs_size)
            # The residual falls by `spread` along a row of A; at c = 0 it is larger by what c explains.
            spread = -root @ slope.mT
            found = array_update(root, spread, at + (c.unsqueeze(1) @ spread).squeeze(1))
            if k < self.iterations - 1:
                c = _descend(cost, c, found.coefficients)
        return mean + found.increment, found.root, found.log_evidence


def _linearise(
    function: Callable[[Tensor], Tensor], x: Tensor, event: tuple[int, ...], outputs: int
) -> tuple[Tensor, Tensor]:
    """Value `(E, k)` and Jacobian `(E, k, d)` of a function `(E, c, *event) -> (E, c, k...)` at x `(E, d)`.

    One backward pass: copy i of the state is asked for the gradient of value i. Forward differentiation would do with
    fewer numbers, but costs ten times more on small systems.
    """
    copies = x.unsqueeze(1).expand(-1, max(outputs, 1), -1).reshape(x.shape[0], -1, *event)
    with torch.enable_grad():
        leaf = copies.detach().requires_grad_()
        values = function(leaf).flatten(2)
        (rows,) = torch.autograd.grad(torch.diagonal(values, dim1=1, dim2=2).sum(), leaf)
    return values[:, 0].detach(), rows.flatten(2)


def _descend(cost: Callable[[Tensor], Tensor], start: Tensor, goal: Tensor) -> Tensor:
    """The first of `goal` and the points half, a quarter... of the way to it that lowers the cost, else `start`."""
    now, found = cost(start), torch.zeros_like(start[:, 0], dtype=torch.bool)
    best, share = start, 1.0
    for _ in range(HALVINGS + 1):
        trial = start + share * (goal - start)
        better = (cost(trial) <= now) & ~found
        best = torch.where(better.unsqueeze(-1), trial, best)
        found, share = found | better, share / 2
        if bool(found.all()):
            break
    return best
