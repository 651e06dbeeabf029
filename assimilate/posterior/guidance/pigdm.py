"""Pseudo-inverse guidance: the clean state is isotropic Gaussian given `x_t`.

    S = R + r^2 A A^T,      r^2 = rho^2 p^2 / (rho^2 + p^2)

Exact for a prior N(mean, p^2 I).

References:
    Song, Vahdat, Mardani, Kautz (2023), Pseudoinverse-guided diffusion models for inverse problems,
    https://openreview.net/forum?id=9_gsMA8MRKQ
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from assimilate.posterior.condition import Problem
from assimilate.posterior.guidance.base import Linearized, isotropic_variance, solve_observed
from assimilate.posterior.linearize import linearize
from assimilate.posterior.predictors import Clean
from assimilate.posterior.solvers import conjugate_gradient
from dynamics.settings import COUNT, check_settings, number


@dataclass(frozen=True)
class PiGDM(Linearized):
    """Guidance with an isotropic clean covariance.

    Args:
        gain: see `Guided`.
        strength: see `Guided`.
        prior_std: standard deviation p of the clean state given the context, in units of the state; the path's own
            spread by default (1, or the interpolant's scale).
        iterations: most conjugate-gradient iterations for `S w = r`.

    Exactness: exact for an isotropic Gaussian prior, biased otherwise.

    Differs from the paper: noisy observations and nonlinear operators (by their tangent) are covered by the same solve
    instead of a pseudo-inverse.
    """

    prior_std: float | None = None
    iterations: int = 50

    def __post_init__(self) -> None:
        """Check the settings."""
        super().__post_init__()
        check_settings(self, prior_std=number(above=0, none=True), iterations=COUNT)

    def weights(self, residual: Tensor, clean: Clean, x: Tensor, t: Tensor, problem: Problem) -> Tensor:
        """See `Linearized`."""
        variance = isotropic_variance(problem.path, t, x, self.prior_std)
        _, forward, adjoint = linearize(problem.likelihood.operator, clean.mean.detach())
        return solve_observed(
            lambda w: forward(variance * adjoint(w)), residual, problem, conjugate_gradient, self.iterations
        )
