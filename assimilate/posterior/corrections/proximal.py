r"""The proximal point of the data term: DiffPIR's clean update.

    h = argmin_x  -2 log p(y | x) + lam / rho^2 |x - m|^2,        rho = noise / beta

With a linear operator and Gaussian noise it is the mean of a Gaussian update with `V = rho^2 / lam I`, in closed form
or by conjugate gradients for each sample. A nonlinear operator is linearised and the point found by a few Gauss-Newton
steps, each halved until it lowers the objective of its own sample.

References:
    Zhu et al. (2023), Denoising diffusion models for plug-and-play image restoration (DiffPIR),
    https://arxiv.org/abs/2305.08995

Differs from the paper: the noise may differ by value; nonlinear operators take Gauss-Newton steps where the published
code takes one gradient step, which is unstable unless the operator is small.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from assimilate.posterior.condition import Problem
from assimilate.posterior.corrections.data_term import flat_values
from assimilate.posterior.corrections.isotropic import isotropic_update
from assimilate.posterior.linearize import gaussian_noise, linearize
from assimilate.posterior.predictors import Clean, Context
from assimilate.posterior.solvers import conjugate_gradient
from dynamics.settings import COUNT, POSITIVE, check_settings
from observations.base import LinearOperator
from observations.likelihood import Likelihood


@dataclass(frozen=True)
class Proximal:
    """DiffPIR's correction; go on with `Renoise(clean="given", fresh=zeta)`.

    Args:
        strength: lam, dimensionless: how firmly the clean mean holds; 1 is a clean variance of rho^2 (the paper: 1-25,
            7 to 8 most often).
        iterations: most conjugate-gradient iterations.
        newton: Gauss-Newton steps for nonlinear operators.

    Exactness: biased (a mode, not a draw).

    Raises:
        ValueError: a setting out of range, or a path that starts without noise-to-signal ratio (an interpolant at 0).
    """

    strength: float = 7.0
    iterations: int = 100
    newton: int = 5

    def __post_init__(self) -> None:
        """Check the settings."""
        check_settings(self, strength=POSITIVE, iterations=COUNT, newton=COUNT)

    @property
    def backpropagates(self) -> bool:
        """Never."""
        return False

    def __call__(self, clean: Clean, x: Tensor, t: Tensor, context: Context, problem: Problem) -> Clean:
        """See `Guidance`."""
        snr = problem.path.coefficients(t, x).snr
        if not bool((snr > 0).all()):
            raise ValueError("a proximal point needs a finite noise-to-signal ratio, and this path starts without "
                             "signal; use a time grid that begins after the start")
        variance = 1 / (self.strength * snr)
        point = proximal_point(
            clean.mean, variance, problem.likelihood, problem.y, iterations=self.iterations, newton=self.newton
        )
        return clean._replace(mean=point, covariance=None)


def proximal_point(
    mean: Tensor, variance: Tensor, likelihood: Likelihood, y: Tensor, *, iterations: int = 100, newton: int = 5
) -> Tensor:
    """`argmin_x -2 log p(y | x) + |x - mean|^2 / variance` for every row, `(*b, *event)`.

    Args:
        mean: `(*b, *event)`.
        variance: broadcastable against it.
        likelihood: operator and Gaussian noise.
        y: observed values; NaN = not observed.
        iterations: most conjugate-gradient iterations.
        newton: Gauss-Newton steps for nonlinear operators.
    """
    if isinstance(likelihood.operator, LinearOperator):
        return mean + isotropic_update(mean, variance, likelihood, y, iterations=iterations)[0]
    events = tuple(range(-len(likelihood.operator.event_shape), 0))

    def objective(x: Tensor) -> Tensor:
        anchor = ((x - mean).square() / variance).sum(events, keepdim=True)
        return anchor - 2 * likelihood.log_prob(y, x).reshape(anchor.shape)

    point, best = mean, objective(mean)
    for _ in range(newton):
        step = _tangent_point(point, mean, variance, likelihood, y, iterations) - point
        # Far from the solution the tangent lies: the longest of four lengths that lowers the row's objective is taken.
        for length in (1.0, 0.5, 0.25, 0.125):
            trial = point + length * step
            reached = objective(trial)
            better = reached < best
            point, best = torch.where(better, trial, point), torch.where(better, reached, best)
            step = torch.where(better, 0.0, step)
    return point


def _tangent_point(
    point: Tensor, mean: Tensor, variance: Tensor, likelihood: Likelihood, y: Tensor, iterations: int
) -> Tensor:
    """The proximal point of the operator's tangent at `point`."""
    noise, flat = gaussian_noise(likelihood), flat_values(likelihood, y, mean)
    value, forward, adjoint = linearize(likelihood.operator, point)
    seen = (~torch.isnan(flat)).expand(value.shape)

    def matvec(w: Tensor) -> Tensor:
        return torch.where(seen, forward(variance * adjoint(w)) + noise.product(w), 0.0)

    residual = torch.where(seen, flat - value - forward(mean - point), 0.0)
    return mean + variance * adjoint(conjugate_gradient(matvec, residual, iterations=iterations))
