"""Covariances of the clean state given the noisy one.

Each is a symmetric positive semi-definite operator on events, one for each sample or one for all, with products, draws
and, where it is affordable, the block between some values of the event. `assimilate.posterior.update` uses them to
take in an observation.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from dynamics.random import Rng, normal


class Block(NamedTuple):
    """A covariance between chosen values, `V_ij = scale_i scale_j matrix_ij`.

    Attributes:
        scale: `(*b, m)`.
        matrix: `(m, m)`, or `(*b, m, m)`.
    """

    scale: Tensor
    matrix: Tensor


class Covariance(Protocol):
    """The contract of a covariance of events `(*b, *event)`."""

    def apply(self, v: Tensor) -> Tensor:
        """The product `V v`, `(*b, *event) -> (*b, *event)`."""
        ...

    def draw(self, rng: Rng, shape: tuple[int, ...], *, dtype: torch.dtype, device: torch.device | str) -> Tensor:
        """Draws of N(0, V), shape `(*b, *event)`; with `Streams` the leading dims are its rows."""
        ...

    def block(self, index: Tensor) -> Block | None:
        """`V` between the flat event indices `index` (m,); None where only products are affordable."""
        ...


@dataclass(frozen=True, eq=False)
class Isotropic:
    """Independent values, `V = diag(variance)`, `variance` broadcastable against the state."""

    variance: Tensor

    def apply(self, v: Tensor) -> Tensor:
        """See `Covariance`."""
        return self.variance * v

    def draw(self, rng: Rng, shape: tuple[int, ...], *, dtype: torch.dtype, device: torch.device | str) -> Tensor:
        """See `Covariance`."""
        return torch.sqrt(self.variance) * normal(rng, shape, dtype=dtype, device=device)

    def block(self, index: Tensor) -> Block | None:
        """See `Covariance`; products are as cheap as it gets."""
        return None


@dataclass(frozen=True, eq=False)
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

    @cached_property
    def _root(self) -> Tensor:
        values, vectors = torch.linalg.eigh(self.matrix)
        return vectors * values.clamp_min(0).sqrt()[..., None, :]

    def draw(self, rng: Rng, shape: tuple[int, ...], *, dtype: torch.dtype, device: torch.device | str) -> Tensor:
        """See `Covariance`; through the eigenvectors, so that singular matrices are welcome."""
        return self._multiply(self._root, normal(rng, shape, dtype=dtype, device=device))

    def block(self, index: Tensor) -> Block | None:
        """See `Covariance`."""
        matrix = self.matrix[..., index[:, None], index[None, :]]
        return Block(torch.ones_like(matrix[..., 0]), matrix)


@dataclass(frozen=True, eq=False)
class Modulated:
    r"""An isotropic correlation, modulated by a standard deviation in every cell.

    `V_ij = s_i s_j rho(|i - j|)`, one channel. The correlation lives on a torus that is larger than the grid, so that
    the grid does not see itself across the edge, and is diagonal in its Fourier basis. A tabulated correlation need
    not be positive definite; the negative part of its spectrum is dropped and the rest rescaled to unit variance.

    Args:
        std: `s`, `(*b, 1, rows, columns)`, in the units of the state.
        correlation: `rho` at distances of 0, 1, 2... cells, linear in between and 0 beyond the last, `(lags,)`, or
            `(*b', lags)` with b' broadcasting against b.
    """

    std: Tensor
    correlation: Tensor

    @cached_property
    def torus(self) -> tuple[int, int]:
        """Rows and columns of the torus."""
        rows, columns = self.std.shape[-2:]
        lags = self.correlation.shape[-1]
        return rows + min(rows, lags), columns + min(columns, lags)

    @cached_property
    def spectrum(self) -> Tensor:
        """Of the correlation on the torus, as `torch.fft.rfft2` gives it, `(*b', 1, rows, columns)`."""
        gaps = [torch.minimum(torch.arange(n), n - torch.arange(n)).to(self.correlation) for n in self.torus]
        table = at_lag(self.correlation, torch.sqrt(gaps[0][:, None] ** 2 + gaps[1][None] ** 2))
        spectrum = torch.fft.rfft2(table).real.clamp_min(0.0)
        unit = torch.fft.irfft2(spectrum, s=self.torus)[..., :1, :1]
        return (spectrum / unit).unsqueeze(-3)

    def _filter(self, v: Tensor, response: Tensor) -> Tensor:
        rows, columns = self.std.shape[-2:]
        return torch.fft.irfft2(torch.fft.rfft2(v, s=self.torus) * response, s=self.torus)[..., :rows, :columns]

    def apply(self, v: Tensor) -> Tensor:
        """See `Covariance`."""
        return self.std * self._filter(self.std * v, self.spectrum)

    def draw(self, rng: Rng, shape: tuple[int, ...], *, dtype: torch.dtype, device: torch.device | str) -> Tensor:
        """See `Covariance`; exact, because the noise is drawn on the whole torus."""
        white = normal(rng, (*shape[:-2], *self.torus), dtype=dtype, device=device)
        return self.std * self._filter(white, self.spectrum.sqrt())

    def block(self, index: Tensor) -> Block | None:
        """See `Covariance`; the correlations by their lags."""
        rows, columns = index // self.std.shape[-1], index % self.std.shape[-1]
        table = torch.fft.irfft2(self.spectrum, s=self.torus).squeeze(-3)
        down = (rows[:, None] - rows[None, :]) % self.torus[0]
        across = (columns[:, None] - columns[None, :]) % self.torus[1]
        return Block(self.std.flatten(-3)[..., index], table[..., down, across])


def at_lag(correlation: Tensor, distance: Tensor) -> Tensor:
    """A correlation tabulated at whole distances `(*b, lags)`, at any `distance` `(...)`: `(*b, ...)`."""
    last = correlation.shape[-1] - 1
    below = distance.floor().long().clamp_max(last - 1)
    share = distance - below
    between = (1 - share) * correlation[..., below] + share * correlation[..., below + 1]
    return torch.where(distance > last, 0.0, between)
