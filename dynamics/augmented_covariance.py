"""The covariance of a state and of parameters beside it, for the moments of `dynamics.augmented`.

P = [ P_state    0     ]          C = 1 1^T for one number in every cell, a correlation matrix for a field
[    0     s^2 C   ]
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from dynamics.covariance import Covariance
from dynamics.parameters import ParameterLaw


@dataclass(frozen=True, eq=False)
class AugmentedCovariance:
    """The covariance of a state and of parameters that are independent of it and of each other.

    Args:
        state: that of the model's part.
        laws: of the parameters.
        stds: their standard deviations in tensor units.
        event_shape: shape of the whole state.
    """

    state: Covariance
    laws: tuple[ParameterLaw, ...]
    stds: tuple[float, ...]
    event_shape: tuple[int, ...]

    def dense(self) -> Tensor:
        """The matrix `(d, d)`; one number in every cell is a block of rank 1."""
        matrix = self.state.dense()
        parts = [s**2 * law.correlation.dense().to(matrix) for law, s in zip(self.laws, self.stds, strict=True)]
        return torch.block_diag(matrix, *parts)

    def diagonal(self) -> Tensor:
        """The variances `(*event)`."""
        first = self.state.diagonal()
        parts = [torch.full_like(first[:1], s**2) for s in self.stds]
        return torch.cat([first, *parts])

    def colour(self, z: Tensor) -> Tensor:
        """A root times standard normal `z`, `(*b, *event)`."""
        axis = z.ndim - len(self.event_shape)
        grid = self.event_shape[1:]
        channels = self.event_shape[0] - len(self.laws)
        parts = [self.state.colour(z.narrow(axis, 0, channels))]
        for index, (law, std) in enumerate(zip(self.laws, self.stds, strict=True)):
            own = z.narrow(axis, channels + index, 1).reshape(*z.shape[:axis], 1, -1)
            # The mean over n cells times sqrt(n) is one standard normal number that uses all of them.
            numbers = own.mean(-1, keepdim=True) * math.sqrt(own.shape[-1]) if law.single else own
            parts.append((std * law.coloured(numbers)).reshape(*z.shape[:axis], 1, *grid))
        return torch.cat(parts, axis)

    def log_prob(self, residual: Tensor) -> Tensor:
        """Log density `(*b,)`; a parameter that is one number counts once.

        Raises:
            CapabilityError: a parameter or the state has no noise.
        """
        axis = residual.ndim - len(self.event_shape)
        channels = self.event_shape[0] - len(self.laws)
        total = self.state.log_prob(residual.narrow(axis, 0, channels))
        for index, (law, std) in enumerate(zip(self.laws, self.stds, strict=True)):
            own = residual.narrow(axis, channels + index, 1)
            total = total + law.log_density(own.reshape(*own.shape[:axis], -1), std)
        return total
