r"""An ensemble in observation space, factored once for all that an analysis asks of it.

With the whitened spread S `(N, m)`, c = N - 1 and the smaller of the two Gram matrices, `G = S S^T` or `S^T S`, both
the analysis and the evidence need `(G + c I)^-1`:

    Kalman increment          d S^T (S S^T + c I_N)^-1 A  =  d (S^T S + c I_m)^-1 S^T A
    symmetric square root     T A,    T = sqrt(c) (S S^T + c I_N)^-1/2
    innovation statistics     log det(I + G / c),    d (I + S^T S / c)^-1 d^T

A Cholesky factor is enough for the first and the last, the root needs the eigenvectors. Both are taken in float64: the
matrix is tiny beside the ensemble, and its condition number is the square of the ensemble's. Leading dims are batches.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor


class Factored(NamedTuple):
    """The Cholesky factor of `G + c I`.

    Attributes:
        spread: S, `(E, N, m)`, float64.
        root: lower factor, `(E, N, N)`, or `(E, m, m)` where fewer values are observed than there are members.
    """

    spread: Tensor
    root: Tensor

    @classmethod
    def of(cls, spread: Tensor) -> Factored:
        """Factor the smaller Gram matrix of S `(E, N, m)`."""
        s = spread.double()
        return cls(s, torch.linalg.cholesky(shifted(smaller_gram(s), s.shape[-2] - 1)))

    def increments(self, anomalies: Tensor, departures: Tensor) -> Tensor:
        """Kalman increments `(E, K, n)` of the state for whitened departures `(E, K, m)`; see `kalman_increments`."""
        n, m = self.spread.shape[-2:]
        s, d = self.spread, departures.double()
        if m < n:
            coefficients = torch.cholesky_solve(d.mT, self.root).mT
            return coefficients.to(anomalies.dtype) @ (s.to(anomalies.dtype).mT @ anomalies)
        coefficients = torch.cholesky_solve(s @ d.mT, self.root).mT
        return coefficients.to(anomalies.dtype) @ anomalies

    def statistics(self, departure: Tensor) -> tuple[Tensor, Tensor]:
        """The innovation statistics of d `(E, m)`, both `(E,)`; see `innovation_statistics`."""
        n, m = self.spread.shape[-2:]
        d = departure.double().unsqueeze(-1)
        log_det = 2 * torch.log(torch.diagonal(self.root, dim1=-2, dim2=-1)).sum(-1) - min(n, m) * math.log(n - 1)
        if m < n:
            return log_det, (n - 1) * torch.linalg.solve_triangular(self.root, d, upper=False).square().sum((-2, -1))
        explained = torch.linalg.solve_triangular(self.root, self.spread @ d, upper=False).square().sum((-2, -1))
        return log_det, d.square().sum((-2, -1)) - explained


class Decomposed(NamedTuple):
    """The eigenvalues and eigenvectors of G.

    Attributes:
        spread: S, `(E, N, m)`, float64.
        values: `(E, k)`, k the smaller of N and m, not negative.
        vectors: `(E, k, k)`, in the columns.
    """

    spread: Tensor
    values: Tensor
    vectors: Tensor

    @classmethod
    def of(cls, spread: Tensor) -> Decomposed:
        """Decompose the smaller Gram matrix of S `(E, N, m)`."""
        s = spread.double()
        values, vectors = torch.linalg.eigh(smaller_gram(s))
        return cls(s, values.clamp_min(0), vectors)

    def scaled(self, factor: Tensor) -> Decomposed:
        """That of the spread times a positive factor, `(E,)` float64."""
        return Decomposed(factor[:, None, None] * self.spread, factor.square()[:, None] * self.values, self.vectors)

    def analysis(self, anomalies: Tensor, departure: Tensor) -> tuple[Tensor, Tensor]:
        """Increment of the mean `(E, 1, n)` and new anomalies `(E, N, n)`; see `square_root_analysis`."""
        n, m = self.spread.shape[-2:]
        c, dtype = n - 1, anomalies.dtype
        s, d, vectors = self.spread, departure.double().unsqueeze(-2), self.vectors
        shifted_values = self.values + c
        if m >= n:
            weights = ((d @ s.mT @ vectors) / shifted_values.unsqueeze(-2)) @ vectors.mT
            root = (vectors * torch.sqrt(c / shifted_values).unsqueeze(-2)) @ vectors.mT
            return weights.to(dtype) @ anomalies, root.to(dtype) @ anomalies
        projected = vectors.mT.to(dtype) @ (s.to(dtype).mT @ anomalies)
        increment = (d @ vectors) / shifted_values.unsqueeze(-2)
        # (sqrt(c / (c + l)) - 1) / l without its 0 / 0 in unobserved directions.
        shrink = -1 / (shifted_values * (1 + torch.sqrt(c / shifted_values)))
        change = (s @ vectors) * shrink.unsqueeze(-2)
        return increment.to(dtype) @ projected, anomalies + change.to(dtype) @ projected

    def statistics(self, departure: Tensor) -> tuple[Tensor, Tensor]:
        """The innovation statistics of d `(E, m)`, both `(E,)`; see `innovation_statistics`."""
        if self.spread.requires_grad:
            # Eigenvectors of repeated eigenvalues (two values that nobody observed) have no derivative.
            return Factored.of(self.spread).statistics(departure)
        n, m = self.spread.shape[-2:]
        c, d = n - 1, departure.double().unsqueeze(-2)
        log_det = torch.log1p(self.values / c).sum(-1)
        along = (d @ self.vectors if m < n else d @ self.spread.mT @ self.vectors).squeeze(-2).square()
        explained = (along / (self.values + c)).sum(-1)
        return log_det, c * explained if m < n else d.square().sum((-2, -1)) - explained


def smaller_gram(spread: Tensor) -> Tensor:
    """G of S `(E, N, m)`: `S^T S` where fewer values are observed than there are members, else `S S^T`."""
    n, m = spread.shape[-2:]
    return spread.mT @ spread if m < n else spread @ spread.mT


def shifted(matrix: Tensor, shift: float) -> Tensor:
    """`matrix + shift I`."""
    return matrix + shift * torch.eye(matrix.shape[-1], dtype=matrix.dtype, device=matrix.device)
