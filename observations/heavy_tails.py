r"""Heavy-tailed noise: errors that are mostly small and now and then large. Laplace and Student's t.

    Laplace:      log p(r) = - |r| / scale - log(2 scale),                             variance 2 scale^2
    Student's t:  log p(r) = - (n + 1)/2 log( 1 + r^2 / (n scale^2) ) + constant,      variance scale^2 n / (n - 2)

The errors of different values are independent, so missing values drop out. A Laplace error pulls with constant force
however large it is, a Student one with less and less: outliers do not drag the estimate along. Both are laws of the
residual `(*b, m)`, in the units of the observed values.

References:
    Bailey (1994), Polar generation of random variates with the t-distribution,
    https://doi.org/10.2307/2153537
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from dynamics.errors import CapabilityError
from dynamics.random import Rng
from dynamics.settings import POSITIVE, check_settings
from observations.noise import open_uniform, positive_numbers


class IndependentNoise(ABC):
    """Independent errors of one law, each with its scale; what Laplace and Student's t share.

    Attributes:
        scale: a number, or a float64 tensor with one for each observed value, flat.
    """

    scale: Any

    @abstractmethod
    def log_density(self, residual: Tensor) -> Tensor:
        """Log density at residuals of scale 1, value by value."""

    @abstractmethod
    def unit_variance(self) -> float:
        """Variance at scale 1."""

    @abstractmethod
    def unit_sample(self, shape: tuple[int, ...], rng: Rng, device: torch.device | str) -> Tensor:
        """Float64 draws at scale 1."""

    def log_prob(self, residual: Tensor, observed: Tensor | None = None) -> Tensor:
        """Log density of the observed values.

        Args:
            residual: y - H(x), `(*b, m)`; its values at missing places do not matter if finite.
            observed: True where observed, `(m,)` or broadcast to `(*b, m)`; None = all.

        Returns:
            `(*b,)`; 0 where nothing is observed.
        """
        if observed is not None:
            residual = torch.where(observed, residual, 0.0)
        scale = self._scale(residual)
        each = self.log_density(residual / scale) - scale.log()
        return (each if observed is None else torch.where(observed, each, 0.0)).sum(-1)

    def whiten(self, residual: Tensor, observed: Tensor | None = None) -> Tensor:
        """Residuals over their standard deviation, 0 where not observed; `(*b, m)`.

        Raises:
            CapabilityError: the law has no variance.
        """
        if observed is not None:
            residual = torch.where(observed, residual, 0.0)
        return residual / (self._scale(residual) * math.sqrt(self.unit_variance()))

    def sample(
        self,
        shape: tuple[int, ...],
        *,
        rng: Rng,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ) -> Tensor:
        """Draws of shape `(*b, *obs)`; with `Streams` the leading dims are its rows."""
        draw = self.unit_sample(tuple(shape), rng, device)
        if isinstance(self.scale, Tensor):
            lead = draw.ndim
            while lead > 0 and math.prod(shape[lead:]) < self.scale.numel():
                lead -= 1
            flat = draw.reshape(*shape[:lead], -1)
            draw = (flat * self._scale(flat)).reshape(shape)
        else:
            draw = draw * self.scale
        return draw.to(dtype)

    def variance(self, size: int, *, dtype: torch.dtype = torch.float32, device: torch.device | str = "cpu") -> Tensor:
        """Variances `(size,)` of the flattened values.

        Raises:
            CapabilityError: the law has no variance.
        """
        like = torch.zeros(size, dtype=dtype, device=device)
        return self.unit_variance() * self._scale(like).square().expand(size)

    def _scale(self, like: Tensor) -> Tensor:
        if isinstance(self.scale, Tensor) and like.shape[-1] != self.scale.numel():
            raise ValueError(f"the noise has {self.scale.numel()} values; {like.shape[-1]} were observed")
        key = (like.device, like.dtype)
        if key not in self._placed:
            self._placed[key] = torch.as_tensor(self.scale, dtype=torch.float64).to(like.device, like.dtype)
        return self._placed[key]

    @cached_property
    def _placed(self) -> dict[tuple[torch.device, torch.dtype], Tensor]:
        return {}

    def _scale_name(self) -> str:
        return f"{self.scale.numel()} values" if isinstance(self.scale, Tensor) else str(self.scale)


@dataclass(frozen=True, eq=False)
class Laplace(IndependentNoise):
    """Laplace noise of mean 0. Its gradient at a residual of exactly 0 is 0.

    Args:
        scale: mean absolute error, a number, or a tensor with one for each observed value (shape obs or flat); the
            standard deviation is sqrt(2) times as large.

    Raises:
        ValueError: a scale that is not positive.
    """

    scale: Any

    def __post_init__(self) -> None:
        """Check and convert the scale."""
        object.__setattr__(self, "scale", positive_numbers(self.scale, "Laplace(scale)"))

    def log_density(self, residual: Tensor) -> Tensor:
        """See `IndependentNoise`."""
        return -residual.abs() - math.log(2.0)

    def unit_variance(self) -> float:
        """See `IndependentNoise`."""
        return 2.0

    def unit_sample(self, shape: tuple[int, ...], rng: Rng, device: torch.device | str) -> Tensor:
        """The inverse distribution function at a uniform number."""
        u = open_uniform(rng, shape, device)
        return torch.where(u < 0.5, torch.log(2 * u), -torch.log(2 * (1 - u)))

    def __repr__(self) -> str:
        return f"Laplace(scale={self._scale_name()})"


@dataclass(frozen=True, eq=False)
class StudentT(IndependentNoise):
    """Student's t noise of mean 0.

    Args:
        degrees: degrees of freedom, above 0; small ones have heavy tails, and up to 2 there is no variance.
        scale: a number, or a tensor with one for each observed value (shape obs or flat); the standard deviation is
            sqrt(degrees / (degrees - 2)) times as large.

    Raises:
        ValueError: degrees or a scale that is not positive.
    """

    degrees: float
    scale: Any = 1.0

    def __post_init__(self) -> None:
        """Check and convert the scale."""
        check_settings(self, degrees=POSITIVE)
        object.__setattr__(self, "scale", positive_numbers(self.scale, "StudentT(scale)"))

    def log_density(self, residual: Tensor) -> Tensor:
        """See `IndependentNoise`."""
        n = self.degrees
        constant = math.lgamma((n + 1) / 2) - math.lgamma(n / 2) - 0.5 * math.log(n * math.pi)
        return constant - (n + 1) / 2 * torch.log1p(residual.square() / n)

    def unit_variance(self) -> float:
        """See `IndependentNoise`."""
        if self.degrees <= 2:
            raise CapabilityError(
                f"Student's t with {self.degrees} degrees of freedom has no variance; give more than 2"
            )
        return self.degrees / (self.degrees - 2)

    def unit_sample(self, shape: tuple[int, ...], rng: Rng, device: torch.device | str) -> Tensor:
        """Bailey's polar formula, exact for any degrees: sqrt(n (u^(-2/n) - 1)) cos(2 pi v)."""
        n = self.degrees
        u, v = open_uniform(rng, shape, device), open_uniform(rng, shape, device)
        return torch.sqrt(n * torch.expm1(-2 / n * torch.log(u))) * torch.cos(2 * math.pi * v)

    def __repr__(self) -> str:
        return f"StudentT(degrees={self.degrees}, scale={self._scale_name()})"
