"""Covariance of a state: a multiple of the identity, or a full matrix, acting on tensors `(*b, *event)`.

With P = S S^T and d the number of values in an event,

    log N(r; 0, P) = -1/2 ( |S^-1 r|^2 + log det P + d log 2 pi ),      colour(z) = S z ~ N(0, P).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from dynamics.errors import CapabilityError

_LOG_TWO_PI = math.log(2 * math.pi)


@runtime_checkable
class Covariance(Protocol):
    """What `TransitionDensity.moments` returns beside the mean."""

    event_shape: tuple[int, ...]

    def dense(self) -> Tensor:
        """The matrix `(d, d)` on flattened events."""
        ...

    def diagonal(self) -> Tensor:
        """The variances `(*event)`."""
        ...

    def colour(self, z: Tensor) -> Tensor:
        """S z for standard normal `z` of shape `(*b, *event)`."""
        ...

    def log_prob(self, residual: Tensor) -> Tensor:
        """Log density of `residual` `(*b, *event)` under N(0, P), `(*b,)`."""
        ...


@dataclass(frozen=True, eq=False)
class ScaledIdentity:
    """P = variance I.

    Args:
        variance: 0-dimensional tensor; its dtype and device are those of the results.
        event_shape: shape of an event.
    """

    variance: Tensor
    event_shape: tuple[int, ...]

    def dense(self) -> Tensor:
        """The matrix `(d, d)`."""
        identity = torch.eye(math.prod(self.event_shape), dtype=self.variance.dtype, device=self.variance.device)
        return self.variance * identity

    def diagonal(self) -> Tensor:
        """The variances `(*event)`."""
        return self.variance.expand(self.event_shape)

    def colour(self, z: Tensor) -> Tensor:
        """Sqrt(variance) z."""
        return self.variance.sqrt() * z

    def log_prob(self, residual: Tensor) -> Tensor:
        """Log density `(*b,)`.

        Raises:
            CapabilityError: the variance is 0.
        """
        if not self.variance > 0:
            raise CapabilityError("the noise is 0: the transition has no density; give the dynamics a noise above 0")
        squared = (residual**2).flatten(residual.ndim - len(self.event_shape)).sum(-1)
        count = math.prod(self.event_shape)
        return -0.5 * (squared / self.variance + count * (torch.log(self.variance) + _LOG_TWO_PI))


@dataclass(frozen=True, eq=False)
class FullCovariance:
    """P = matrix, symmetric and positive semi-definite.

    Args:
        matrix: `(d, d)` on flattened events; its dtype and device are those of the results.
        event_shape: shape of an event.

    Raises:
        ValueError: the matrix is not `(d, d)`, not symmetric or has a negative eigenvalue.
    """

    matrix: Tensor
    event_shape: tuple[int, ...]

    def __post_init__(self) -> None:
        """Check shape and symmetry."""
        size = math.prod(self.event_shape)
        if tuple(self.matrix.shape) != (size, size):
            raise ValueError(f"covariance has shape {tuple(self.matrix.shape)}; expected {(size, size)}")
        scale = float(self.matrix.abs().max())
        precision = torch.finfo(self.matrix.dtype).eps
        if float((self.matrix - self.matrix.mT).abs().max()) > 100 * precision * scale:
            raise ValueError("covariance is not symmetric")
        if float(self._eigen[0][0]) < -100 * precision * size * scale:
            raise ValueError(f"covariance has the negative eigenvalue {float(self._eigen[0][0]):.3g}")

    @cached_property
    def _eigen(self) -> tuple[Tensor, Tensor]:
        values, vectors = torch.linalg.eigh(self.matrix)
        return values, vectors

    @cached_property
    def root(self) -> Tensor:
        """A root S with S S^T = P: Cholesky's if P is definite, the symmetric one otherwise."""
        factor, failed = torch.linalg.cholesky_ex(self.matrix)
        if not failed:
            return factor
        values, vectors = self._eigen
        return (vectors * values.clamp_min(0).sqrt()) @ vectors.mT

    def dense(self) -> Tensor:
        """The matrix `(d, d)`."""
        return self.matrix

    def diagonal(self) -> Tensor:
        """The variances `(*event)`."""
        return self.matrix.diagonal().reshape(self.event_shape)

    def colour(self, z: Tensor) -> Tensor:
        """S z."""
        flat = z.flatten(z.ndim - len(self.event_shape))
        return (flat @ self.root.mT).reshape(z.shape)

    def log_prob(self, residual: Tensor) -> Tensor:
        """Log density `(*b,)`.

        Raises:
            CapabilityError: P is singular.
        """
        factor, failed = torch.linalg.cholesky_ex(self.matrix)
        if failed:
            raise CapabilityError("the covariance is singular: there is no density; add noise to every component")
        flat = residual.flatten(residual.ndim - len(self.event_shape))
        white = torch.linalg.solve_triangular(factor, flat.unsqueeze(-1), upper=False).squeeze(-1)
        log_det = 2 * factor.diagonal().log().sum()
        return -0.5 * ((white**2).sum(-1) + log_det + flat.shape[-1] * _LOG_TWO_PI)
