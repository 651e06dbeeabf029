r"""Vorticity on the torus in Fourier space: transforms, velocity, advection and budgets.

    w(x, y) = 1/n^2 sum_k c_k exp(i k.r),     u = (d psi/dy, -d psi/dx),  lap psi = -w

Only the modes that a quadratic product cannot alias are kept, |k_x|, |k_y| <= K with 3 K < n (the two-thirds rule). The
truncated equations then conserve energy and enstrophy exactly. A real field needs k_x >= 0 only: spectra are
`(*b, n, K + 1)`, rows k_y in FFT order, columns k_x = 0..K. Fields are `(*b, n, n)`, dims (y, x).

The advection is in Basdevant's form, which needs two transforms to the grid and two back:

    u.grad w = (dxx - dyy)(u v) + dxy (v^2 - u^2)

References:
    Orszag (1971), On the elimination of aliasing in finite-difference schemes by filtering high-wavenumber components,
    https://doi.org/10.1175/1520-0469(1971)028<1074:OTEOAI>2.0.CO;2
    Basdevant (1983), Technical improvements for direct numerical simulation of homogeneous three-dimensional
    turbulence, https://doi.org/10.1016/0021-9991(83)90064-5
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import torch
from torch import Tensor


class Multipliers(NamedTuple):
    """Factors of the modes, in one dtype and on one device.

    Args:
        kept: 1 for the modes kept, `(n, K + 1)`, real.
        velocity: from vorticity to (u, v), `(2, n, K + 1)`, complex.
        advection: from (u v, v^2 - u^2) to -u.grad w, `(2, n, K + 1)`, real.
        weight: how many modes an entry stands for (1 in the column k_x = 0, else 2), over n^4; `(n, K + 1)`, real.
        inverse: 1 / |k|^2, 0 for the mean; `(n, K + 1)`, real.
    """

    kept: Tensor
    velocity: Tensor
    advection: Tensor
    weight: Tensor
    inverse: Tensor


@dataclass(frozen=True)
class SpectralGrid:
    """An n x n grid on the periodic square and its dealiased Fourier modes.

    Args:
        size: n, cells along each side.
        length: side of the square (2 pi).
    """

    size: int
    length: float = 2 * math.pi

    @property
    def cut(self) -> int:
        """K, the largest number of waves kept along a side."""
        return (self.size - 1) // 3

    @cached_property
    def waves(self) -> tuple[Tensor, Tensor]:
        """Numbers of waves (k_y, k_x) around the square, float64 `(n, 1)` and `(1, K + 1)`."""
        rows = torch.fft.fftfreq(self.size, d=1 / self.size, dtype=torch.float64)
        return rows[:, None], torch.arange(self.cut + 1, dtype=torch.float64)[None]

    @cached_property
    def squared(self) -> Tensor:
        """|k|^2 in 1 / length^2, float64 `(n, K + 1)`."""
        rows, columns = self.waves
        return (2 * math.pi / self.length) ** 2 * (rows**2 + columns**2)

    def spectrum(self, field: Tensor) -> Tensor:
        """The kept modes of fields, `(*b, n, n)` -> `(*b, n, K + 1)`; the others are dropped."""
        return self._transform(field) * self.multipliers(field).kept

    def field(self, spectrum: Tensor) -> Tensor:
        """The fields with these modes, `(*b, n, K + 1)` -> `(*b, n, n)`."""
        # Columns beyond K are 0: the transform along y skips them, the one along x fills them in.
        return torch.fft.irfft(torch.fft.ifft(spectrum, dim=-2), n=self.size, dim=-1)

    def velocity(self, spectrum: Tensor) -> Tensor:
        """(u, v) on the grid of vorticity spectra, `(*b, n, K + 1)` -> `(*b, 2, n, n)`."""
        return self.field(spectrum.unsqueeze(-3) * self.multipliers(spectrum).velocity)

    def advection(self, spectrum: Tensor) -> Tensor:
        """The spectrum of -u.grad w."""
        u, v = self.velocity(spectrum).unbind(-3)
        products = self._transform(torch.stack([u * v, (v - u) * (v + u)], -3))
        return (products * self.multipliers(spectrum).advection).sum(-3)

    def energy(self, spectrum: Tensor) -> Tensor:
        """Mean kinetic energy <u^2 + v^2> / 2, `(*b,)`."""
        factors = self.multipliers(spectrum)
        return 0.5 * (_power(spectrum) * factors.weight * factors.inverse).sum((-2, -1))

    def enstrophy(self, spectrum: Tensor) -> Tensor:
        """Mean enstrophy <w^2> / 2, `(*b,)`."""
        return 0.5 * (_power(spectrum) * self.multipliers(spectrum).weight).sum((-2, -1))

    def multipliers(self, like: Tensor) -> Multipliers:
        """The factors in the precision and on the device of a field or spectrum, kept for the next call."""
        dtype = like.real.dtype if like.is_complex() else like.dtype
        key = (dtype, like.device)
        if key not in self._placed:
            rows, columns = (2 * math.pi / self.length * waves for waves in self.waves)
            kept = (self.waves[0].abs() <= self.cut).expand_as(self.squared).to(torch.float64)
            inverse = torch.where(self.squared > 0, 1 / self.squared.clamp_min(torch.finfo(torch.float64).tiny), 0.0)
            velocity = torch.stack([rows * inverse, -columns * inverse]) * kept
            # Minus (dxx - dyy) and minus dxy.
            advection = torch.stack([columns**2 - rows**2, rows * columns]) * kept
            weight = (1 + (self.waves[1] > 0).to(torch.float64)).expand_as(self.squared) / self.size**4
            real = (kept, velocity, advection, weight, inverse)
            kept, velocity, advection, weight, inverse = (factor.to(like.device, dtype) for factor in real)
            self._placed[key] = Multipliers(kept, 1j * velocity, advection, weight, inverse)
        return self._placed[key]

    def _transform(self, field: Tensor) -> Tensor:
        return torch.fft.fft(torch.fft.rfft(field, dim=-1)[..., : self.cut + 1], dim=-2)

    @cached_property
    def _placed(self) -> dict[tuple[torch.dtype, torch.device], Multipliers]:
        return {}


def _power(spectrum: Tensor) -> Tensor:
    return spectrum.real**2 + spectrum.imag**2
