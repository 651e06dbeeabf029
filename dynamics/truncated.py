r"""A system on the periodic square, seen on a coarser grid.

    x_k = T F(T^T x_{k-1})

F is the step of the fine system, T^T the trigonometric interpolation to its grid and T the truncation of Fourier modes
to those with |k_x|, |k_y| < n / 2. A coarse grid alone would let enstrophy pile up at its cut; here the fine grid takes
the cascade and only what the coarse one can hold is handed on. The pair is a Markov process on the coarse grid: truth,
filters with the true model, and learned transitions see the same law.

Exact inverses on the modes kept: T T^T = 1, so a step that does nothing changes nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from dynamics.base import Dynamics
from dynamics.fields import Coordinate
from dynamics.random import Rng
from dynamics.settings import check_settings, whole
from dynamics.space import Space


@dataclass(frozen=True)
class Truncated:
    """A system with a square periodic grid on a coarser one.

    Args:
        dynamics: the fine system; event `(channel, n, n)`.
        size: cells along each side of the coarse grid, even and at most n.

    Raises:
        ValueError: the fine grid is not a periodic square, or `size` is odd, below 4 or above n.
    """

    dynamics: Dynamics
    size: int

    def __post_init__(self) -> None:
        """Check both grids."""
        check_settings(self, size=whole(4))
        fine = self.dynamics.space
        shape = fine.grid_shape
        if len(shape) != 2 or shape[0] != shape[1] or set(fine.periodic) != set(fine.grid):
            raise ValueError(f"Truncated needs a periodic square; {type(self.dynamics).__name__} has {fine!r}")
        if not 4 <= self.size <= shape[0] or self.size % 2:
            raise ValueError(f"size is {self.size}; expected an even number from 4 to {shape[0]}, the fine grid's side")

    @classmethod
    def navier_stokes(cls, size: int = 64, fine: int = 128, dt: float = 0.5) -> Truncated:
        """The stochastic Navier-Stokes flow of FlowDAS on a coarser grid than it needs.

        Args:
            size: cells along a side.
            fine: cells along a side of the simulation; 128 or more at this viscosity.
            dt: time between states. 0.5 is the spacing of the published snapshots; FlowDAS keeps every second one.
        """
        from dynamics.navier_stokes import NavierStokes

        return cls(NavierStokes(size=fine, noise=1.0, dt=dt, substeps=round(dt * fine / 2)), size)

    @property
    def dt(self) -> float:
        """The fine system's step."""
        return self.dynamics.dt

    @cached_property
    def space(self) -> Space:
        """The fine system's fields on every (n / size)-th place of its axes."""
        fine = self.dynamics.space
        axes = {}
        for dim in fine.grid:
            numbers = fine.coords[dim].numbers
            step = (numbers[1] - numbers[0]) * len(numbers) / self.size
            axes[dim] = Coordinate(numbers[0] + step * np.arange(self.size), (dim,), fine.coords[dim].units)
        return Space(fine.fields, axes, periodic=fine.periodic)

    def prior(
        self,
        shape: tuple[int, ...],
        *,
        rng: Rng,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ) -> Tensor:
        """Draws of the fine prior, truncated, `(*shape, channel, size, size)`."""
        return resampled(self.dynamics.prior(shape, rng=rng, dtype=dtype, device=device), self.size)

    def step(self, x: Tensor, time: float, *, rng: Rng | None) -> Tensor:
        """A step of the fine system from the interpolated state, truncated."""
        fine = resampled(x, self.dynamics.space.grid_shape[0])
        return resampled(self.dynamics.step(fine, time, rng=rng), self.size)


def resampled(x: Tensor, size: int) -> Tensor:
    """Periodic fields `(*b, n, n)` on a grid of another size, by their Fourier modes: `(*b, size, size)`.

    Upward it interpolates, downward it truncates; modes at the Nyquist wavenumber of the smaller grid are dropped.
    """
    n = x.shape[-1]
    if n == size:
        return x
    half = min(n, size) // 2
    spectrum = torch.fft.rfft2(x)
    out = spectrum.new_zeros(*x.shape[:-2], size, size // 2 + 1)
    out[..., :half, :half] = spectrum[..., :half, :half]
    if half > 1:
        out[..., 1 - half :, :half] = spectrum[..., 1 - half :, :half]
    return torch.fft.irfft2(out, s=(size, size)) * (size / n) ** 2
