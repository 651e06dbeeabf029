r"""Covariances of the clean state given the noisy one, and the Gaussian update that uses them.

With `x_1 | x_t ~ N(m, V)` and `y = A x_1 + e`, `e ~ N(0, R)`,

    m_y = m + V A^T (A V A^T + R)^-1 (y - A m).

`gaussian_update` gives the shift `m_y - m`: by a Cholesky factor of the observed block where the operator samples
single values (gauges), by conjugate gradients otherwise. A nonlinear operator is linearised at m. Values of y that
are NaN are not observed and contribute nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from assimilate.posterior.linearize import linearize
from assimilate.posterior.solvers import conjugate_gradient
from observations.likelihood import Likelihood
from observations.sampling import Mask


class Covariance(Protocol):
    """A symmetric positive semi-definite operator on events, one for each sample or one for all."""

    def apply(self, v: Tensor) -> Tensor:
        """The product `V v`, `(*b, *event) -> (*b, *event)`."""
        ...

    def draw(self, z: Tensor) -> Tensor:
        """`L z` with `L L^T = V` for standard normal `z`, `(*b, *event)`."""
        ...

    def block(self, indices: Tensor) -> Tensor | None:
        """`V` between the flat event `indices` (m,), `(*b, m, m)`; None where only products are affordable."""
        ...


@dataclass(frozen=True)
class Isotropic:
    """`V = variance I`, `variance` broadcastable against the state."""

    variance: Tensor

    def apply(self, v: Tensor) -> Tensor:
        """See `Covariance`."""
        return self.variance * v

    def draw(self, z: Tensor) -> Tensor:
        """See `Covariance`."""
        return torch.sqrt(self.variance) * z

    def block(self, indices: Tensor) -> Tensor | None:
        """See `Covariance`; products are as cheap as it gets."""
        return None


@dataclass(frozen=True)
class Dense:
    """A matrix over the flattened event, `(d, d)` or `(*b, d, d)`; the event has `event_dims` dims."""

    matrix: Tensor
    event_dims: int

    def _multiply(self, matrix: Tensor, v: Tensor) -> Tensor:
        flat = v.reshape(*v.shape[: v.ndim - self.event_dims], -1, 1)
        return (matrix @ flat).reshape(v.shape)

    def apply(self, v: Tensor) -> Tensor:
        """See `Covariance`."""
        return self._multiply(self.matrix, v)

    def draw(self, z: Tensor) -> Tensor:
        """See `Covariance`; through the eigenvectors, so that singular matrices are welcome."""
        values, vectors = torch.linalg.eigh(self.matrix)
        return self._multiply(vectors * values.clamp_min(0).sqrt()[..., None, :], z)

    def block(self, indices: Tensor) -> Tensor | None:
        """See `Covariance`."""
        return self.matrix[..., indices[:, None], indices[None, :]]


@dataclass(frozen=True)
class Modulated:
    r"""A correlation that depends on the lag alone, modulated by a standard deviation in every cell.

    `V_ij = s_i s_j rho(|row_i - row_j|, |column_i - column_j|)` on a grid of cells, for each channel by itself.

    Args:
        std: `s`, `(*b, channel, rows, columns)`, in the units of the state.
        correlation: `rho` at lags `(rows, columns)`, so that `correlation[0, 0] = 1`; one for all samples.
    """

    std: Tensor
    correlation: Tensor

    def _spectrum(self) -> Tensor:
        """Spectrum of the even extension to twice the grid, where products do not wrap around."""
        table = self.correlation
        rows = torch.cat([table, torch.zeros_like(table[:1]), table[1:].flip(0)], 0)
        both = torch.cat([rows, torch.zeros_like(rows[:, :1]), rows[:, 1:].flip(1)], 1)
        return torch.fft.rfft2(both).real

    def _filter(self, v: Tensor, spectrum: Tensor) -> Tensor:
        rows, columns = v.shape[-2:]
        size = (2 * rows, 2 * columns)
        return torch.fft.irfft2(torch.fft.rfft2(v, s=size) * spectrum, s=size)[..., :rows, :columns]

    def apply(self, v: Tensor) -> Tensor:
        """See `Covariance`."""
        return self.std * self._filter(self.std * v, self._spectrum())

    def draw(self, z: Tensor) -> Tensor:
        """See `Covariance`.

        White noise on the grid alone cannot be filtered into the exact covariance near the edges; the root filter is
        rescaled to unit variance in every cell instead.
        """
        root = self._spectrum().clamp_min(0).sqrt()
        kernel = torch.fft.irfft2(root)
        ones = torch.ones_like(z[:1].reshape(-1, *z.shape[-2:])[:1])
        weight = self._filter(ones, torch.fft.rfft2(kernel.square()).real).clamp_min(1e-12)
        return self.std * self._filter(z, root) / weight.sqrt()

    def block(self, indices: Tensor) -> Tensor | None:
        """See `Covariance`; one channel."""
        if self.std.shape[-3] != 1:
            return None
        columns = self.std.shape[-1]
        row, column = indices // columns, indices % columns
        table = self.correlation[(row[:, None] - row[None, :]).abs(), (column[:, None] - column[None, :]).abs()]
        s = self.std.flatten(-3)[..., indices]
        return s[..., :, None] * table * s[..., None, :]


def gaussian_update(
    mean: Tensor, covariance: Covariance, likelihood: Likelihood, y: Tensor, *, iterations: int = 100
) -> Tensor:
    """The shift `V A^T (A V A^T + R)^-1 (y - A m)` of the mean, `(*b, *event)`.

    Args:
        mean: `(*b, *event)`.
        covariance: of the clean state.
        likelihood: operator and Gaussian noise.
        y: observed values, broadcastable against `A(mean)`; NaN = not observed.
        iterations: most conjugate-gradient iterations, where no factor can be had.
    """
    value, forward, adjoint = linearize(likelihood.operator, mean)
    y = y.reshape(*y.shape[: y.ndim - len(likelihood.operator.obs_shape)], -1)
    observed = (~torch.isnan(y)).expand(value.shape)
    residual = torch.where(observed, y - value, 0.0)
    operator = likelihood.operator
    block = covariance.block(operator.index.to(mean.device)) if isinstance(operator, Mask) else None
    if block is not None:
        eye = torch.eye(block.shape[-1], dtype=mean.dtype, device=mean.device)
        weights = _factor_solve(block + likelihood.noise.product(eye), residual, observed)
    else:

        def matvec(w: Tensor) -> Tensor:
            return torch.where(observed, forward(covariance.apply(adjoint(w))) + likelihood.noise.product(w), 0.0)

        weights = conjugate_gradient(matvec, residual, iterations=iterations)
    return covariance.apply(adjoint(weights))


def _factor_solve(matrix: Tensor, residual: Tensor, observed: Tensor) -> Tensor:
    """Solve with the observed rows and columns alone; the others are replaced by those of the identity."""
    if not bool(observed.all()):
        pair = observed[..., :, None] & observed[..., None, :]
        matrix = torch.where(pair, matrix, 0.0) + torch.diag_embed((~observed).to(matrix.dtype))
    factor, failed = torch.linalg.cholesky_ex(matrix)
    if bool((failed > 0).any()):
        # A tabulated correlation is positive definite only up to its rounding; the noise usually covers that.
        jitter = 1e-4 * torch.diagonal(matrix, dim1=-2, dim2=-1).mean(-1)[..., None, None]
        eye = torch.eye(matrix.shape[-1], dtype=matrix.dtype, device=matrix.device)
        factor = torch.linalg.cholesky(matrix + jitter * eye)
    return torch.cholesky_solve(residual[..., None], factor).squeeze(-1)
