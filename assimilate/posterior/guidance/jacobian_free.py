"""Guidance without a backward pass through the network: the clean covariance comes from elsewhere.

    m_y = m + C A^T (A C A^T + R)^-1 (y - A m)

`C` is the predictor's own covariance of `x_1` given `x_t` where it has one (a variance head, an exact prior), else
isotropic. With the exact covariance of a Gaussian prior this is the exact update; at the noisy end it is optimal
interpolation, and the network refines what that leaves. One forward pass a step, so the cheapest guidance here.

References:
    Patel, Wen, Metaxas, Yang (2024), Steering rectified flow models in the vector field for controlled image
    generation (FlowChef), https://arxiv.org/abs/2412.00100

Differs from the paper: FlowChef replaces the Jacobian by the identity in a gradient step of fixed size
(`gain="constant"` here, with the residual weighted by the noise); the covariance solve makes the step's size follow
from the noise and the prior.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from assimilate.posterior.calibration import Calibration
from assimilate.posterior.condition import Problem
from assimilate.posterior.covariance import Covariance, Isotropic, Modulated
from assimilate.posterior.guidance.base import Gain, isotropic_variance, observed, observed_residual
from assimilate.posterior.linearize import gaussian_noise, linearize
from assimilate.posterior.predictors import Clean, Context
from assimilate.posterior.update import gaussian_update
from dynamics.settings import COUNT, NOT_NEGATIVE, check_settings, number


@dataclass(frozen=True)
class JacobianFree:
    """Guidance by a Gaussian update with a given covariance.

    Args:
        gain: "exact" for the update above; "constant" displaces the next state by `strength A'^T R^-1 (y - A m)`.
        strength: factor on the shift (1, dimensionless) or on the displacement.
        covariance: "clean" for the predictor's own (an error where it has none), "isotropic" for
            `r^2 = rho^2 p^2 / (rho^2 + p^2)`.
        prior_std: p, in units of the state; the path's own spread by default.
        iterations: most conjugate-gradient iterations.
        calibration: fits the predictor's covariance to the innovations before it is used; for `Modulated` covariances
            and operators that pick values.

    Exactness: exact for a Gaussian prior with its own covariance, biased otherwise.
    """

    gain: Gain = "exact"
    strength: float = 1.0
    covariance: Literal["clean", "isotropic"] = "isotropic"
    prior_std: float | None = None
    iterations: int = 100
    calibration: Calibration | None = None

    def __post_init__(self) -> None:
        """Check the settings."""
        if self.gain not in ("exact", "constant") or self.covariance not in ("clean", "isotropic"):
            raise ValueError(f"{self!r}: expected gain 'exact' or 'constant', covariance 'clean' or 'isotropic'")
        check_settings(self, strength=NOT_NEGATIVE, prior_std=number(above=0, none=True), iterations=COUNT)

    @property
    def backpropagates(self) -> bool:
        """Never."""
        return False

    def __call__(self, clean: Clean, x: Tensor, t: Tensor, context: Context, problem: Problem) -> Clean:
        """See `Guidance`."""
        likelihood = problem.likelihood
        if self.gain == "constant":
            value, _, adjoint = linearize(likelihood.operator, clean.mean)
            residual = observed_residual(value, problem)
            weights = gaussian_noise(likelihood).solve(residual, observed(residual, problem), None)
            return clean._replace(kick=self.strength * adjoint(weights))
        covariance: Covariance
        if self.covariance == "isotropic":
            covariance = Isotropic(isotropic_variance(problem.path, t, x, self.prior_std))
        elif clean.covariance is not None:
            covariance = clean.covariance
        else:
            raise ValueError(
                f"{self!r} needs a predictor that gives the covariance of the clean state, and "
                f"{type(problem.predictor).__name__} gives none; use covariance='isotropic'"
            )
        if self.calibration is not None:
            if not isinstance(covariance, Modulated):
                raise ValueError(f"calibration fits the covariance of a field, not a {type(covariance).__name__}")
            covariance = self.calibration(clean.mean, covariance, likelihood, problem.y)
        shift, updated = gaussian_update(clean.mean, covariance, likelihood, problem.y, iterations=self.iterations)
        return clean._replace(mean=clean.mean + self.strength * shift, covariance=updated)
