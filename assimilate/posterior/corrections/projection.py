r"""The observation enforced on the noisy state itself, between the steps of a sampler, without the network.

At the noisy state `x = beta x_1 + noise z` a linear observation is compared with

    y_s = beta y + noise A z,      z ~ N(0, I)                  the measurement, noised like the state

    `Replacement`    x <- x + strength A^+ (y_s - A x)          the part that A sees is replaced, or mixed
    `AdjointStep`    x <- x + strength / |A|^2 A^T (beta y - A x)      a gradient step on the misfit of y itself
    `NoisyState`     the score of N(y; A x / beta, R + rho^2 A A^T), as a guidance: exact where the prior is flat

Values of y that are NaN are not observed and change nothing.

References:
    Song, Shen, Xing, Ermon (2022), Solving inverse problems in medical imaging with score-based generative models,
    https://arxiv.org/abs/2111.08005 (replacement, in the domain of the measurement)
    Choi, Kim, Jeong, Gwon, Yoon (2021), ILVR: conditioning method for denoising diffusion probabilistic models,
    https://arxiv.org/abs/2108.02938 (replacement of the low frequencies of an image)
    Chung, Ye (2022), Score-based diffusion models for accelerated MRI, https://arxiv.org/abs/2110.05243 (adjoint step)
    Jalal et al. (2021), Robust compressed sensing MRI with deep generative priors, https://arxiv.org/abs/2108.01368
    (score with the variance of the level)

Differs from the papers: any linear operator, by its pseudo-inverse; Jalal et al. add a number to the variance of y,
`NoisyState` what the noise of the level is worth through A.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from assimilate.posterior.condition import Problem
from assimilate.posterior.corrections.null_space import MeasuredPart
from assimilate.posterior.covariance import Isotropic
from assimilate.posterior.paths import Path
from assimilate.posterior.predictors import Clean, Context
from assimilate.posterior.update import gaussian_update
from dynamics.random import Rng, normal
from dynamics.settings import COUNT, FRACTION, NOT_NEGATIVE, check_settings, number
from observations.base import LinearOperator


@dataclass(frozen=True, eq=False)
class Replacement:
    """The seen part of the state replaced by the noised measurement; a `Projection`.

    Args:
        part: operator and measurement.
        strength: 1 replaces, less mixes the two (dimensionless).

    Raises:
        ValueError: a strength outside 0 to 1.
    """

    part: MeasuredPart
    strength: float = 1.0

    def __post_init__(self) -> None:
        """Check the settings."""
        check_settings(self, strength=FRACTION)

    def __call__(self, x: Tensor, s: Tensor, path: Path, rng: Rng) -> Tensor:
        """See `Projection`."""
        c = path.coefficients(s, x)
        z = normal(rng, tuple(x.shape), dtype=x.dtype, device=x.device)
        # beta y + A (noise z) - A x in one product: the operator may be costly.
        target = _scaled(c.beta, self.part.y, self.part.operator)
        return x + self.strength * self.part.towards(target, x - c.noise * z)


@dataclass(frozen=True, eq=False)
class AdjointStep:
    """A gradient step on `|beta y - A x|^2 / 2`; a `Projection`.

    Args:
        part: operator and measurement.
        norm: |A|, the operator's largest singular value; 0 is an operator that sees nothing.
        strength: length of the step in units of `1 / |A|^2`; stable below 2, and 1 is the projection where all
            singular values are equal.

    Raises:
        ValueError: a strength outside 0 to 2 or a negative norm.
    """

    part: MeasuredPart
    norm: float
    strength: float = 1.0

    def __post_init__(self) -> None:
        """Check the settings."""
        check_settings(self, strength=number(0, below=2), norm=NOT_NEGATIVE)

    def __call__(self, x: Tensor, s: Tensor, path: Path, rng: Rng) -> Tensor:
        """See `Projection`; draws nothing."""
        if self.norm == 0:
            return x
        operator = self.part.operator
        target = _scaled(path.coefficients(s, x).beta, self.part.y, operator)
        residual = torch.where(self.part.observed, target - operator(x), 0.0)
        return x + self.strength / self.norm**2 * operator.adjoint(residual)


@dataclass(frozen=True)
class NoisyState:
    """Guidance by the likelihood of the noisy state: `g = A^T (R + rho^2 A A^T)^-1 (y - A x / beta) / beta`.

    Needs no derivative of the network, and its step is stable however small R is: the curvature never exceeds
    `1 / rho^2`. Nonlinear operators are linearised at `x / beta`.

    Args:
        iterations: most conjugate-gradient iterations.

    Exactness: exact for a flat prior, and for any prior as rho goes to 0; biased where the prior is narrower than rho.
    """

    iterations: int = 50

    def __post_init__(self) -> None:
        """Check the settings."""
        check_settings(self, iterations=COUNT)

    @property
    def backpropagates(self) -> bool:
        """Never."""
        return False

    def __call__(self, clean: Clean, x: Tensor, t: Tensor, context: Context, problem: Problem) -> Clean:
        """See `Guidance`."""
        c = problem.path.coefficients(t, x)
        covariance = Isotropic((c.noise / c.beta) ** 2)
        shift, _ = gaussian_update(
            x / c.beta, covariance, problem.likelihood, problem.y, iterations=self.iterations
        )
        return clean._replace(mean=clean.mean + shift, covariance=None)


def _scaled(factor: Tensor, y: Tensor, operator: LinearOperator) -> Tensor:
    """`factor y`, for a factor that broadcasts against states."""
    lead = max(factor.ndim - len(operator.event_shape), 0)
    return factor.reshape(*factor.shape[:lead], *(1,) * len(operator.obs_shape)) * y
