r"""Background covariance on a periodic grid: homogeneous and isotropic, diagonal in Fourier space.

    L v = std * F^-1 [ s(k) F v ],      s(k)^2 ~ exp(-length^2 |k|^2 / 2)                            (Gaussian)
                                        s(k)^2 ~ (1 + length^2 |k|^2 / (2 nu))^-(nu + D/2)           (Matern)

scaled so that every value has the variance std^2; D is the number of grid dims. The correlations are

    rho(d) = exp(-d^2 / (2 length^2)),      or Matern's with nu = smoothness and rho''(0) finite for nu > 1

wrapped around the torus; `length` is that of the Gaussian to which Matern's tends as nu grows. One root costs two
fast Fourier transforms.

References:
    Daley (1991), Atmospheric data analysis, Cambridge University Press, chapter 4
    Lindgren, Rue, Lindstroem (2011), An explicit link between Gaussian fields and Gaussian Markov random fields,
    https://doi.org/10.1111/j.1467-9868.2011.00777.x (the spectrum of the Matern family)
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from assimilate.variational.background import Background, Placed, amplitude, per_channel
from dynamics.errors import CapabilityError
from dynamics.settings import check_number, number
from dynamics.space import Space


@dataclass(frozen=True, eq=False)
class SpectralBackground:
    """A homogeneous covariance on a periodic grid.

    Args:
        space: of the state; every grid dimension periodic. Channels are independent.
        std: standard deviation in Space units: a number, one per channel, or one per value.
        length: correlation length in the units of the coordinates, a number or one per channel.
        smoothness: nu of Matern's family, dimensionless; infinity (default) for the Gaussian. 1/2 is
            `exp(-d / length)`.
        mean: see `Background`.

    Raises:
        CapabilityError: the Space has no grid or a dimension that is not periodic.
        ValueError: a setting out of its range.
    """

    space: Space
    std: Any
    length: Any
    smoothness: float = math.inf
    mean: Any = None

    def __post_init__(self) -> None:
        """Check grid and settings."""
        if not self.space.grid or set(self.space.grid) - set(self.space.periodic):
            raise CapabilityError(
                f"SpectralBackground needs a grid that is periodic in every dimension; {self.space!r} is not: use "
                "DiffusionBackground on other grids, DenseBackground for scalar fields"
            )
        # Raises where the coordinates have no common unit of length.
        self.space.distance(self.space.positions()[:1], self.space.positions()[:1])
        check_smoothness(self.smoothness)
        per_channel(self.length, self.space, "length")
        amplitude(self.std, self.space)

    @property
    def size(self) -> int:
        """White noise on the grid, one number a value of the state."""
        return self.space.size

    @property
    def event_shape(self) -> tuple[int, ...]:
        """Shape of a state."""
        return self.space.event_shape

    def root(self, control: Tensor) -> Tensor:
        """See `Background`; symmetric before the amplitude."""
        white = control.reshape(*control.shape[:-1], *self.space.event_shape)
        dims = tuple(range(-len(self.space.grid), 0))
        spectrum = torch.fft.rfftn(white, dim=dims) * self._response.on(white)
        return self._std.on(white) * torch.fft.irfftn(spectrum, s=self.space.grid_shape, dim=dims)

    def at(self, members: Tensor) -> Background:
        """Itself."""
        return self

    @cached_property
    def _std(self) -> Placed:
        return Placed(amplitude(self.std, self.space))

    @cached_property
    def _response(self) -> Placed:
        shape = self.space.grid_shape
        squared = torch.zeros(shape, dtype=torch.float64)
        for axis, (dim, size) in enumerate(zip(self.space.grid, shape, strict=True)):
            numbers = self.space.coords[dim].numbers
            waves = 2 * math.pi * torch.fft.fftfreq(size, d=abs(float(numbers[1] - numbers[0])), dtype=torch.float64)
            squared = squared + waves.square().reshape(-1, *[1] * (len(shape) - 1 - axis))
        response = root_response(squared, per_channel(self.length, self.space, "length"), self.smoothness, len(shape))
        scale = response.square().mean(tuple(range(1, 1 + len(shape))), keepdim=True).sqrt()
        return Placed((response / scale)[..., : shape[-1] // 2 + 1].contiguous())


def root_response(squared: Tensor, length: Tensor, smoothness: float, dims: int) -> Tensor:
    """s(k), the root of the spectrum, up to a factor.

    Args:
        squared: |k|^2, or eigenvalues of minus the Laplacian.
        length: broadcastable against it.
        smoothness: nu, or infinity.
        dims: D.
    """
    if math.isinf(smoothness):
        return torch.exp(-0.25 * length**2 * squared)
    return (1 + length**2 * squared / (2 * smoothness)) ** (-0.5 * (smoothness + dims / 2))


def check_smoothness(smoothness: float) -> None:
    """Raise a ValueError unless `smoothness` is positive."""
    words = "a positive number, or infinity for the Gaussian"
    check_number("smoothness", smoothness, number(above=0, infinite=True, words=words))
