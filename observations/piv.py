r"""Velocity at particles, seen by particle image velocimetry, of a state that is vorticity on the torus.

    lap psi = -w,     u = d psi / dy,     v = -d psi / dx,     y_p = (u, v)(r_p)

    (u, v)(r) = 1 / (n_y n_x) sum_k i (k_y, -k_x) / |k|^2 w_k exp(i k.r)

Camera and software follow tracer particles from one picture to the next: what they give is the velocity where the
particles are, which depends on the vorticity everywhere. All modes below the Nyquist wavenumbers count; those at it
have no unique derivative and are dropped. The mean vorticity moves nothing, and there is no mean flow.

References:
    Adrian (1991), Particle-imaging techniques for experimental fluid mechanics,
    https://doi.org/10.1146/annurev.fl.23.010191.001401
    Chen et al. (2025), FlowDAS, https://arxiv.org/abs/2501.16642 (vorticity from the velocity at particles)
    Differs: number, places and noise of the particles, which that paper's code does not hold, are our own choice.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal, get_args

import numpy as np
import torch
from torch import Tensor

from dynamics.errors import CapabilityError
from dynamics.random import Streams, uniform
from dynamics.settings import SEED, check_settings, whole
from dynamics.space import Space
from observations.base import LinearOperator, space_name
from observations.places import corners, fractional_indices, point_array

Sampling = Literal["spectral", "bilinear"]


@dataclass(frozen=True, eq=False)
class ParticleVelocity(LinearOperator):
    """The velocity at particles, `(*b, 1, n_y, n_x)` -> `(*b, 2, m)`: u along x first, then v along y.

    Args:
        space: vorticity on a plane grid of dims (y, x) that is periodic in both, event `(1, n_y, n_x)`.
        points: places `(m, 2)` of the particles with columns (y, x) in the units of the coordinates, or a mapping or
            Dataset from the names of the dims to `(m,)` values. A place outside the square counts as its image inside.
        count: number of particles at places drawn uniformly, instead of `points`.
        seed: seed of that draw; with one seed, fewer particles are part of more.
        sampling: "spectral" (default), the exact value of the Fourier series at each place; or "bilinear", between the
            four cells around it (off by up to h^2 / 8 (|d2u/dy2| + |d2u/dx2|) at the spacing h), which is cheaper.

    Raises:
        CapabilityError: the Space is not one field on a grid that is periodic in two dims of a plane.
        ValueError: neither or both of `points` and `count`, places that are not finite, or another `sampling`.

    The unit of a value is that of the vorticity times that of the coordinates. Particles that move are a new operator
    at every time, `dataclasses.replace(operator, points=...)`: an `Observation` brings its own.
    """

    space: Space
    points: Any = None
    count: int | None = None
    seed: int = 0
    sampling: Sampling = "spectral"

    def __post_init__(self) -> None:
        """Check the grid, draw or read the places."""
        check_settings(self, count=whole(1, none=True), seed=SEED)
        space = self.space
        if not isinstance(space, Space) or len(space.grid) != 2 or space.spherical or len(space.channels) != 1:
            raise CapabilityError(
                f"ParticleVelocity needs one field, vorticity, on a grid (y, x) of a plane: {space!r}"
            )
        if set(space.grid) - set(space.periodic):
            raise CapabilityError(
                f"ParticleVelocity needs a grid that is periodic in both dims; {space!r} is not: without its boundary "
                "values a vorticity does not tell the velocity"
            )
        if self.sampling not in get_args(Sampling):
            raise ValueError(f"sampling is {self.sampling!r}; expected one of {', '.join(get_args(Sampling))}")
        if (self.points is None) == (self.count is None):
            raise ValueError("ParticleVelocity needs either points or a count")
        points = self._drawn() if self.points is None else point_array(space, self.points)
        cells, weights = corners(space, fractional_indices(space, points), "bilinear")
        # `count` has done its work: replace(operator, points=...) must not find both.
        object.__setattr__(self, "count", None)
        object.__setattr__(self, "points", points)
        object.__setattr__(self, "cells", torch.from_numpy(cells))
        object.__setattr__(self, "weights", torch.from_numpy(weights))

    def forward(self, x: Tensor) -> Tensor:
        """Velocities at the particles, `(*b, 2, m)`."""
        half = torch.fft.rfft2(x)
        field = torch.fft.irfft2(half * self.on("multipliers", half), s=self.space.grid_shape)
        if self.sampling == "bilinear":
            cells = self.on("cells", x, cast=False)
            values = field.flatten(-2).index_select(-1, cells.flatten()).unflatten(-1, tuple(cells.shape))
            return (values * self.on("weights", x)).sum(-1)
        # Along x to the particles first, then along y: two small products instead of one large one.
        return ((field @ self.on("series_x", x)) * self.on("series_y", x)).sum(-2)

    def adjoint(self, y: Tensor) -> Tensor:
        """The vorticity that velocities at the particles belong to, `(*b, 2, m)` -> `(*b, 1, n_y, n_x)`."""
        if self.sampling == "bilinear":
            flat = y.new_zeros(*y.shape[:-1], math.prod(self.space.grid_shape))
            cells = self.on("cells", y, cast=False).flatten()
            flat = flat.index_add(-1, cells, (y.unsqueeze(-1) * self.on("weights", y)).flatten(-2))
            field = flat.unflatten(-1, self.space.grid_shape)
        else:
            field = (y.unsqueeze(-2) * self.on("series_y", y)) @ self.on("series_x", y).mT
        half = torch.fft.rfft2(field)
        spectrum = (half * self.on("multipliers", half).conj()).sum(-3, keepdim=True)
        return torch.fft.irfft2(spectrum, s=self.space.grid_shape)

    @property
    def positions(self) -> Tensor:
        """Places of the particles, once for u and once for v, `(2 m, 2)`."""
        return torch.from_numpy(np.array(self.points)).repeat(2, 1)

    @cached_property
    def multipliers(self) -> Tensor:
        """From vorticity to (u, v) in Fourier space, `(2, n_y, n_x // 2 + 1)`; 0 for the mean and at Nyquist."""
        k_y, k_x = self._wavenumbers
        squared = k_y**2 + k_x**2
        rows, columns = self._wave_counts
        kept = (2 * rows.abs() < self.space.grid_shape[0]) & (2 * columns < self.space.grid_shape[1]) & (squared > 0)
        inverse = torch.where(kept, 1 / torch.where(kept, squared, 1.0), 0.0)
        return 1j * torch.stack([k_y * inverse, -k_x * inverse])

    @cached_property
    def series_y(self) -> Tensor:
        """What each row counts in the Fourier series along y at the particles, `(n_y, m)`."""
        return self._series(0)

    @cached_property
    def series_x(self) -> Tensor:
        """What each column counts in the Fourier series along x at the particles, `(n_x, m)`."""
        return self._series(1)

    def _series(self, axis: int) -> Tensor:
        """1/n sum over |k| < n / 2 of exp(i k (r_p - r_j)), for the cells j along an axis."""
        size = self.space.grid_shape[axis]
        turns = self._places[:, axis] / self._axes[1][axis]
        angle = 2 * math.pi * (turns - torch.arange(size, dtype=torch.float64)[:, None] / size)
        waves = torch.arange(1, (size + 1) // 2, dtype=torch.float64)
        return (1 + 2 * torch.cos(waves[:, None, None] * angle).sum(0)) / size

    @cached_property
    def _wave_counts(self) -> tuple[Tensor, Tensor]:
        """Numbers of waves around the grid, float64 `(n_y, 1)` and `(1, n_x // 2 + 1)`."""
        rows, columns = self.space.grid_shape
        along_y = torch.fft.fftfreq(rows, d=1 / rows, dtype=torch.float64)
        return along_y[:, None], torch.arange(columns // 2 + 1, dtype=torch.float64)[None]

    @cached_property
    def _wavenumbers(self) -> tuple[Tensor, Tensor]:
        """(k_y, k_x) of the modes; negative where a coordinate decreases along the grid."""
        periods = self._axes[1]
        first, second = (2 * math.pi / period * n for period, n in zip(periods, self._wave_counts, strict=True))
        return first, second

    @cached_property
    def _places(self) -> Tensor:
        """Places relative to the first cell, float64 `(m, 2)`."""
        return torch.from_numpy(self.points - self._axes[0])

    @cached_property
    def _axes(self) -> tuple[np.ndarray, np.ndarray]:
        """Coordinates of the first cell, and signed periods, along (y, x)."""
        numbers = [self.space.coords[dim].numbers for dim in self.space.grid]
        periods = [(axis[-1] - axis[0]) * axis.size / (axis.size - 1) for axis in numbers]
        return np.array([axis[0] for axis in numbers]), np.array(periods)

    def _drawn(self) -> np.ndarray:
        """`count` places, uniform over the torus."""
        if self.count is None or self.count < 1:
            raise ValueError(f"count={self.count}; expected a number of particles of at least 1")
        first, periods = self._axes
        # One stream a particle, so that a smaller number of them is the beginning of a larger one.
        share = uniform(Streams(self.seed, members=self.count), (1, self.count, 2), dtype=torch.float64)[0].numpy()
        return first + share * periods

    def __repr__(self) -> str:
        return f"ParticleVelocity({space_name(self.space)}, {len(self.points)} particles, {self.sampling})"
