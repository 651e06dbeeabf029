r"""The Gaussian update of a clean state with independent values, `V = v I`: proximal points and draws around a centre.

    shift   v A^T (v A A^T + R)^-1 (y - A m)        draw   N(m + shift, (I / v + A^T R^-1 A)^-1)

Where the operator knows its singular values s, the noise is white and nothing is missing, both are closed forms in its
basis,

    shift = V [ v s / (v s^2 + r) ] (U^T y - s V^T m),      draw = e + V [ sqrt(r / (v s^2 + r)) - 1 ] V^T e,

with `r` the noise variance and `e ~ N(0, v I)`: no iterations, and right for tiny noise too. Otherwise it is
`assimilate.posterior.update.gaussian_update`.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from assimilate.posterior.covariance import Block, Covariance, Isotropic
from assimilate.posterior.update import gaussian_update
from dynamics.random import Rng, normal
from observations.base import SVD, LinearOperator
from observations.likelihood import Likelihood
from observations.noise import GaussianNoise


@dataclass(frozen=True, eq=False)
class Spectral:
    """The covariance `(I / v + A^T A / r)^-1`, diagonal in the basis of the operator.

    Args:
        variance: v, one number a sample, broadcastable against the state.
        share: `r / (v s^2 + r)`, `(*b, k)`: what is left of the variance along the k right singular vectors.
        svd: of the operator.
    """

    variance: Tensor
    share: Tensor
    svd: SVD

    def apply(self, v: Tensor) -> Tensor:
        """See `Covariance`."""
        return self.variance * (v + self.svd.expand((self.share - 1) * self.svd.project(v)))

    def draw(self, rng: Rng, shape: tuple[int, ...], *, dtype: torch.dtype, device: torch.device | str) -> Tensor:
        """See `Covariance`."""
        e = self.variance.sqrt() * normal(rng, shape, dtype=dtype, device=device)
        return e + self.svd.expand((self.share.sqrt() - 1) * self.svd.project(e))

    def block(self, index: Tensor) -> Block | None:
        """See `Covariance`; products are cheap."""
        return None


def isotropic_update(
    mean: Tensor, variance: Tensor, likelihood: Likelihood, y: Tensor, *, iterations: int = 100
) -> tuple[Tensor, Covariance]:
    """The shift `m_y - m`, `(*b, *event)`, and the covariance after the observation.

    Args:
        mean: `(*b, *event)`.
        variance: v, broadcastable against `mean`; it may differ by channel.
        likelihood: operator (linearised at the mean if it is not linear) and Gaussian noise.
        y: observed values, broadcastable against `A(mean)`; NaN = not observed.
        iterations: most conjugate-gradient iterations, where there is no closed form.
    """
    operator, noise = likelihood.operator, likelihood.noise
    dims = len(operator.event_shape)
    one = all(size == 1 for size in variance.shape[max(variance.ndim - dims, 0) :])
    white = isinstance(noise, GaussianNoise) and isinstance(noise.std, float | int)
    y = y.to(mean)
    if one and white and isinstance(operator, LinearOperator) and not bool(torch.isnan(y).any()):
        svd = operator.svd()
        if svd is not None:
            assert isinstance(noise, GaussianNoise)
            s = svd.singular.to(mean)
            v = variance.reshape(*variance.shape[: max(variance.ndim - dims, 0)], 1)
            total = v * s**2 + noise.std**2
            shift = svd.expand(v * s / total * (svd.project_observed(y) - s * svd.project(mean)))
            return shift, Spectral(variance, noise.std**2 / total, svd)
    return gaussian_update(mean, Isotropic(variance), likelihood, y, iterations=iterations)
