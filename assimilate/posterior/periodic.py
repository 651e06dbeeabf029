r"""A covariance of the clean state on a periodic grid: stationary in correlation, with its own spread in every cell.

    V = diag(s) F^-1 diag(P) F diag(s),      mean of P over all waves = 1

F is the discrete Fourier transform over the grid and P the power of the correlation at each wavevector, so it need not
be isotropic: what is left open about a flow that is driven on eight waves is near those waves. A product costs two fast
Fourier transforms.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from assimilate.posterior.covariance import Block
from dynamics.random import Rng, normal


@dataclass(frozen=True, eq=False)
class Periodic:
    """See the module; a `Covariance` of events `(channel, rows, columns)`.

    Args:
        std: s, `(*b, channel, rows, columns)`, in the units of the state.
        power: P as `torch.fft.rfft2` orders it, `(channel, rows, columns // 2 + 1)`.
    """

    std: Tensor
    power: Tensor

    def _filter(self, v: Tensor, response: Tensor) -> Tensor:
        return torch.fft.irfft2(torch.fft.rfft2(v) * response, s=tuple(v.shape[-2:]))

    def apply(self, v: Tensor) -> Tensor:
        """See `Covariance`."""
        return self.std * self._filter(self.std * v, self.power)

    def draw(self, rng: Rng, shape: tuple[int, ...], *, dtype: torch.dtype, device: torch.device | str) -> Tensor:
        """See `Covariance`."""
        return self.std * self._filter(normal(rng, shape, dtype=dtype, device=device), self.power.sqrt())

    @cached_property
    def correlation(self) -> Tensor:
        """By the gap between two cells, `(channel, rows, columns)`, 1 at no gap."""
        return torch.fft.irfft2(self.power, s=tuple(self.std.shape[-2:]))

    def block(self, index: Tensor) -> Block | None:
        """See `Covariance`; for one channel, whose correlations follow from the gaps."""
        channels, height, width = self.std.shape[-3:]
        if channels != 1:
            return None
        rows, columns = index // width, index % width
        down, across = (rows[:, None] - rows[None]) % height, (columns[:, None] - columns[None]) % width
        return Block(self.std.flatten(-3)[..., index], self.correlation[0, down, across])


def correlation_power(fields: Tensor) -> Tensor:
    """P of fields `(n, channel, rows, columns)` of mean zero and any variance, `(channel, rows, columns // 2 + 1)`."""
    power = torch.fft.rfft2(fields).abs().square().mean(0)
    unit = torch.fft.irfft2(power, s=tuple(fields.shape[-2:]))[..., :1, :1]
    return power / unit
