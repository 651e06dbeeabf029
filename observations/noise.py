"""Gaussian observation noise: one standard deviation, one per value, or a full covariance.

    y - H(x) = r ~ N(0, R),    log p = -1/2 ( |R^-1/2 r|^2 + log det R + m log 2 pi )

Values are flattened: residuals are `(*b, m)`. Missing values are marginalised exactly: the density of the observed
ones is that with their block R_oo, for a full covariance too. Units are those of the observed values.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from torch import Tensor

from dynamics.random import Rng, normal, uniform
from dynamics.settings import POSITIVE

_LOG_TWO_PI = math.log(2 * math.pi)


@runtime_checkable
class Noise(Protocol):
    """The law of y - H(x) on flattened values `(*b, m)`; `observed` is boolean, `(m,)` or `(*b, m)`."""

    def log_prob(self, residual: Tensor, observed: Tensor | None = None) -> Tensor:
        """Log density of the observed values, `(*b,)`."""
        ...

    def whiten(self, residual: Tensor, observed: Tensor | None = None) -> Tensor:
        """Residuals of unit variance, `(*b, m)`, 0 where not observed."""
        ...

    def sample(
        self, shape: tuple[int, ...], *, rng: Rng, dtype: torch.dtype = ..., device: torch.device | str = ...
    ) -> Tensor:
        """Draws of the noise, shape `(*b, *obs)`."""
        ...

    def variance(self, size: int, *, dtype: torch.dtype = ..., device: torch.device | str = ...) -> Tensor:
        """Variances `(size,)`."""
        ...


@runtime_checkable
class SignalNoise(Protocol):
    """Noise whose law depends on the clean observation, such as counts; `Likelihood` asks for it where it is needed."""

    def at(self, expected: Tensor) -> Noise:
        """The law of y - H(x) where H(x) is `expected`, `(*b, m)`; differentiable in it."""
        ...


def noise_at(noise: Noise, expected: Tensor) -> Noise:
    """The law of the residual at clean observations `(*b, m)`: the noise itself, unless it depends on the signal."""
    return noise.at(expected) if isinstance(noise, SignalNoise) else noise


@dataclass(frozen=True, eq=False)
class GaussianNoise:
    """Gaussian noise of mean 0.

    Args:
        std: standard deviation, a number, or a tensor with one for each observed value (shape obs or flat).
        covariance: instead of `std`, the full covariance `(m, m)` of the flattened values.

    Raises:
        ValueError: neither or both are given, a standard deviation is not positive, or the covariance is not
            symmetric and positive definite.
    """

    std: Any = None
    covariance: Any = None

    def __post_init__(self) -> None:
        """Convert to float64 tensors (a number stays one) and check."""
        if (self.std is None) == (self.covariance is None):
            raise ValueError("GaussianNoise needs either std=... or covariance=...")
        if self.std is not None:
            std = self.std
            check_positive(std, "GaussianNoise(std)")
            if not isinstance(std, int | float):
                std = torch.as_tensor(std, dtype=torch.float64)
                std = float(std) if std.ndim == 0 else std.flatten()
            object.__setattr__(self, "std", std)
            return
        matrix = torch.as_tensor(self.covariance, dtype=torch.float64)
        if matrix.ndim != 2 or matrix.shape[0] != matrix.shape[1]:
            raise ValueError(f"covariance has shape {tuple(matrix.shape)}; expected (m, m)")
        symmetric = bool(torch.allclose(matrix, matrix.mT, rtol=1e-6, atol=1e-12))
        _, failed = torch.linalg.cholesky_ex(matrix)
        if failed or not symmetric:
            raise ValueError("the noise covariance must be symmetric and positive definite")
        object.__setattr__(self, "covariance", matrix)

    @property
    def diagonal(self) -> bool:
        """Whether the errors of different values are independent."""
        return self.std is not None

    def log_prob(self, residual: Tensor, observed: Tensor | None = None) -> Tensor:
        """Log density of the observed values.

        Args:
            residual: y - H(x), `(*b, m)`; its values at missing places do not matter if finite.
            observed: True where observed, `(m,)` or broadcast to `(*b, m)`; None = all.

        Returns:
            `(*b,)`; 0 where nothing is observed.
        """
        white = self.whiten(residual, observed)
        if observed is None:
            observed = torch.ones(residual.shape[-1], dtype=torch.bool, device=residual.device)
        return -0.5 * (white**2).sum(-1) + self.log_normalizer(residual, observed)

    def log_normalizer(self, like: Tensor, observed: Tensor) -> Tensor:
        """Log density of a residual of zero, `(*b,)`: -1/2 (log det R_oo + m log 2 pi) of the m observed values.

        Args:
            like: `(*b, m)`, whose dtype and device the result has.
            observed: see `log_prob`.
        """
        count = observed.sum(-1).to(like.dtype)
        if isinstance(self.std, float | int):
            return -(0.5 * _LOG_TWO_PI + math.log(self.std)) * count
        return -0.5 * _LOG_TWO_PI * count - self._log_scale(like, observed)

    def whiten(self, residual: Tensor, observed: Tensor | None = None) -> Tensor:
        """R_oo^-1/2 r at the observed places (lower Cholesky factor), 0 elsewhere; `(*b, m)`."""
        if observed is not None:
            residual = torch.where(observed, residual, 0.0)
        if self.diagonal:
            return residual / self._std(residual)
        factor = self._factor(residual, observed)
        white = torch.linalg.solve_triangular(factor, residual.unsqueeze(-1), upper=False).squeeze(-1)
        return white if observed is None else torch.where(observed, white, 0.0)

    def sample(
        self,
        shape: tuple[int, ...],
        *,
        rng: Rng,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ) -> Tensor:
        """Draws of shape `(*b, *obs)`; with `Streams` the leading dims are its rows."""
        z = normal(rng, tuple(shape), dtype=dtype, device=device)
        if isinstance(self.std, float | int):
            return self.std * z
        size = self._size
        lead = z.ndim
        while lead > 0 and math.prod(shape[lead:]) < size:
            lead -= 1
        if math.prod(shape[lead:]) != size:
            raise ValueError(f"the noise has {size} values; a draw of shape {tuple(shape)} does not end in them")
        flat = z.reshape(*shape[:lead], size)
        coloured = flat * self._std(flat) if self.diagonal else flat @ self._factor(flat, None).mT
        return coloured.reshape(shape)

    def variance(self, size: int, *, dtype: torch.dtype = torch.float32, device: torch.device | str = "cpu") -> Tensor:
        """Variances `(size,)` of the flattened values."""
        if isinstance(self.std, float | int):
            return torch.full((size,), self.std**2, dtype=dtype, device=device)
        self._check_size(size)
        return (self.std**2 if self.diagonal else self.covariance.diagonal()).to(device, dtype)

    def product(self, v: Tensor) -> Tensor:
        """R v for flattened values `(*b, m)`."""
        if self.diagonal:
            std = self._std(v)
            return std * std * v
        self._check_size(v.shape[-1])
        return v @ self.covariance.to(v.device, v.dtype)

    def solve(self, residual: Tensor, observed: Tensor | None = None, extra: Tensor | None = None) -> Tensor:
        """(R + diag(extra))_oo^-1 r at the observed places, 0 elsewhere; all `(*b, m)`.

        Args:
            residual: r.
            observed: True where observed; None = all.
            extra: variances added to those of the noise; None = 0.
        """
        if self.diagonal:
            std = self._std(residual)
            weighted = residual / (std * std + (0.0 if extra is None else extra))
            return weighted if observed is None else torch.where(observed, weighted, 0.0)
        matrix = self.covariance.to(residual.device, residual.dtype)
        if extra is not None:
            matrix = matrix + torch.diag_embed(extra)
        if observed is not None:
            keep = observed.unsqueeze(-1) & observed.unsqueeze(-2)
            matrix = torch.where(keep, matrix, torch.eye(self._size, dtype=matrix.dtype, device=matrix.device))
            residual = torch.where(observed, residual, 0.0)
        return torch.linalg.solve(matrix, residual.unsqueeze(-1)).squeeze(-1)

    def covariance_matrix(
        self, size: int, *, dtype: torch.dtype = torch.float32, device: torch.device | str = "cpu"
    ) -> Tensor:
        """R, `(size, size)`."""
        if self.diagonal:
            return torch.diag(self.variance(size, dtype=dtype, device=device))
        self._check_size(size)
        return self.covariance.to(device, dtype)

    @property
    def _size(self) -> int:
        return self.std.numel() if self.diagonal else self.covariance.shape[0]

    def _check_size(self, size: int) -> None:
        if size != self._size:
            raise ValueError(f"the noise has {self._size} values; {size} were observed")

    def _std(self, like: Tensor) -> Tensor | float:
        if isinstance(self.std, float | int):
            return self.std
        self._check_size(like.shape[-1])
        key = (like.device, like.dtype)
        if key not in self._placed:
            self._placed[key] = self.std.to(like.device, like.dtype)
        return self._placed[key]

    def _factor(self, like: Tensor, observed: Tensor | None) -> Tensor:
        """Lower Cholesky factor of R, with missing rows and columns replaced by those of the identity.

        The replaced matrix is block diagonal up to a permutation, so its Cholesky factor holds that of R_oo: exact
        marginalisation without a loop over patterns.
        """
        self._check_size(like.shape[-1])
        key = (like.device, like.dtype)
        if observed is None:
            if key not in self._placed:
                self._placed[key] = torch.linalg.cholesky(self.covariance).to(like.device, like.dtype)
            return self._placed[key]
        matrix = self.covariance.to(like.device)
        keep = observed.unsqueeze(-1) & observed.unsqueeze(-2)
        identity = torch.eye(self._size, dtype=matrix.dtype, device=matrix.device)
        return torch.linalg.cholesky(torch.where(keep, matrix, identity)).to(like.dtype)

    def _log_scale(self, like: Tensor, observed: Tensor) -> Tensor:
        """1/2 log det R_oo, where there is more than one standard deviation."""
        if self.diagonal:
            std = self._std(like)
            assert isinstance(std, Tensor)
            return torch.where(observed, std.log(), 0.0).sum(-1)
        return self._factor(like, observed).diagonal(dim1=-2, dim2=-1).log().sum(-1)

    @cached_property
    def _placed(self) -> dict[tuple[torch.device, torch.dtype], Tensor]:
        return {}

    def __repr__(self) -> str:
        if isinstance(self.std, float | int):
            return f"GaussianNoise(std={self.std})"
        kind = "per value" if self.diagonal else "full covariance"
        return f"GaussianNoise({kind}, {self._size} values)"


def open_uniform(rng: Rng, shape: tuple[int, ...], device: torch.device | str) -> Tensor:
    """Float64 uniform numbers in (0, 1), without the 0 that a generator may give."""
    return uniform(rng, shape, dtype=torch.float64, device=device).clamp_min(2.0**-54)


def check_positive(given: Any, what: str) -> None:
    """Raise a ValueError unless `given` is a positive number, or several, and all are finite."""
    array = given if isinstance(given, Tensor) else np.asarray(given)
    if not POSITIVE.hold(array):
        raise ValueError(f"{what} is {given}; expected positive numbers")


def positive_numbers(given: Any, what: str) -> float | Tensor:
    """A positive number, or a flat float64 tensor of them.

    Raises:
        ValueError: one is not positive and finite.
    """
    check_positive(given, what)
    if isinstance(given, int | float):
        return float(given)
    value = torch.as_tensor(given, dtype=torch.float64)
    return float(value) if value.ndim == 0 else value.flatten().cpu()
