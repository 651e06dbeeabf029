r"""The Gaussian update: what an observation makes of a clean state with mean m and covariance V.

    y = A x_1 + e,  e ~ N(0, R):      m_y = m + V A^T S^-1 (y - A m),      S = A V A^T + R
                                      V_y = V - V A^T S^-1 A V

`S^-1` is a Cholesky factor where the operator picks values (gauges) and V has a block between them, conjugate gradients
otherwise. Where only the scale of V differs from sample to sample, one factor, made with the mean scale, preconditions
the conjugate gradients of all. A nonlinear operator is linearised at m. Values of y that are NaN are not observed and
contribute nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from assimilate.posterior.covariance import Block, Covariance
from assimilate.posterior.linearize import gaussian_noise, linearize
from assimilate.posterior.solvers import conjugate_gradient
from dynamics.random import Rng
from observations.likelihood import Likelihood
from observations.noise import GaussianNoise
from observations.sampling import Mask

Solve = Callable[[Tensor], Tensor]


@dataclass(frozen=True, eq=False)
class Updated:
    """The covariance `V_y` after an observation, as products and draws.

    Args:
        prior: V.
        likelihood: for draws of the noise.
        forward: `A`, `(*b, *event) -> (*b, m)`.
        gain: `V A^T S^-1`, `(*b, m) -> (*b, *event)`.
        observed: which values were, `(*b, m)`.
    """

    prior: Covariance
    likelihood: Likelihood
    forward: Callable[[Tensor], Tensor]
    gain: Callable[[Tensor], Tensor]
    observed: Tensor

    def apply(self, v: Tensor) -> Tensor:
        """See `Covariance`."""
        product = self.prior.apply(v)
        return product - self.gain(self.forward(product))

    def draw(self, rng: Rng, shape: tuple[int, ...], *, dtype: torch.dtype, device: torch.device | str) -> Tensor:
        """See `Covariance`: a draw of V, corrected by what its own synthetic observation says of it."""
        error = self.prior.draw(rng, shape, dtype=dtype, device=device)
        noise = self.likelihood.noise.sample(tuple(self.observed.shape), rng=rng, dtype=dtype, device=device)
        return error - self.gain(self.forward(error) + noise)

    def block(self, index: Tensor) -> Block | None:
        """See `Covariance`."""
        return None


def gaussian_update(
    mean: Tensor, covariance: Covariance, likelihood: Likelihood, y: Tensor, *, iterations: int = 100
) -> tuple[Tensor, Updated]:
    """The shift `m_y - m`, `(*b, *event)`, and the covariance `V_y`.

    Args:
        mean: `(*b, *event)`.
        covariance: of the clean state.
        likelihood: operator and Gaussian noise.
        y: observed values, broadcastable against `A(mean)`; NaN = not observed.
        iterations: most conjugate-gradient iterations.
    """
    operator, noise = likelihood.operator, gaussian_noise(likelihood)
    value, forward, adjoint = linearize(operator, mean)
    y = y.reshape(*y.shape[: y.ndim - len(operator.obs_shape)], -1)
    observed = (~torch.isnan(y)).expand(value.shape)
    residual = torch.where(observed, y - value, 0.0)
    block = covariance.block(operator.index.to(mean.device)) if isinstance(operator, Mask) else None
    if block is not None:
        solve = _block_solver(block, noise, observed, iterations)
    else:

        def matvec(w: Tensor) -> Tensor:
            return torch.where(observed, forward(covariance.apply(adjoint(w))) + noise.product(w), 0.0)

        def solve(r: Tensor) -> Tensor:
            return conjugate_gradient(matvec, r, iterations=iterations)

    def gain(r: Tensor) -> Tensor:
        return covariance.apply(adjoint(solve(torch.where(observed, r, 0.0))))

    return gain(residual), Updated(covariance, likelihood, forward, gain, observed)


def _block_solver(block: Block, noise: GaussianNoise, observed: Tensor, iterations: int) -> Solve:
    """`S^-1` from the block of V between the observed values."""
    scale, matrix = block
    eye = torch.eye(matrix.shape[-1], dtype=matrix.dtype, device=matrix.device)
    errors = noise.product(eye)
    if scale.ndim < 2 or (matrix.ndim > 2 and matrix.shape[-3] == scale.shape[-2] > 1):
        factor = _factor(scale[..., :, None] * matrix * scale[..., None, :] + errors, observed)
        return lambda r: torch.cholesky_solve(r[..., None], factor).squeeze(-1)
    # Rows along the last sample dim (the members) share the matrix and nearly the scale.
    shared = scale.square().mean(-2).sqrt()
    common = matrix if matrix.ndim == 2 else matrix.squeeze(-3)
    factor = _factor(shared[..., :, None] * common * shared[..., None, :] + errors, observed.any(-2))

    def precondition(r: Tensor) -> Tensor:
        return torch.cholesky_solve(r.mT, factor).mT

    def matvec(w: Tensor) -> Tensor:
        return torch.where(observed, scale * ((scale * w) @ common) + noise.product(w), w)

    return lambda r: torch.where(
        observed,
        conjugate_gradient(matvec, r, iterations=iterations, tolerance=1e-3, precondition=precondition),
        0.0,
    )


def _factor(matrix: Tensor, observed: Tensor) -> Tensor:
    """Cholesky factor with the rows and columns of unobserved values replaced by those of the identity."""
    if not bool(observed.all()):
        pair = observed[..., :, None] & observed[..., None, :]
        matrix = torch.where(pair, matrix, 0.0) + torch.diag_embed((~observed).to(matrix.dtype))
    factor, failed = torch.linalg.cholesky_ex(matrix)
    if bool((failed > 0).any()):
        # float32 rounding can leave a matrix with tiny noise indefinite; the smallest jitter that cures it is used.
        diagonal = torch.diagonal(matrix, dim1=-2, dim2=-1).mean(-1)[..., None, None]
        eye = torch.eye(matrix.shape[-1], dtype=matrix.dtype, device=matrix.device)
        for power in range(-6, 0):
            factor, failed = torch.linalg.cholesky_ex(matrix + 10.0**power * diagonal * eye)
            if not bool((failed > 0).any()):
                break
        else:
            raise ValueError("the covariance of the observed values is not positive definite")
    return factor
