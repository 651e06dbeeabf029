"""Quantisation: values are rounded to a few levels.

    y = low + step round( (clip(x, low, high) - low) / step ),     step = (high - low) / (levels - 1)

The map is a staircase: its derivative is 0 almost everywhere, which tells a solver nothing. `straight_through` gives it
the derivative of the clip instead, 1 between `low` and `high`; that is a choice for the solver, not a property of H.

The law of exact quantised data is no Gaussian: y says that x lies in one cell, each place in it equally well. Gaussian
noise of standard deviation step / sqrt(12) (`rounding_std`) has the variance of a place in a cell; it is a good model
where the image varies by many steps, and with it `Identity` is as good an operator as this one. With noise added before
the rounding, add the variances.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from observations.base import ObservationOperator, SpaceOrShape, space_name


@dataclass(frozen=True, eq=False)
class Quantise(ObservationOperator):
    """The nearest of some evenly spaced levels, obs shape = event shape.

    Args:
        space: Space of the image, or its event shape.
        levels: number of levels, `low` and `high` among them, at least 2; 2^n for n bits.
        low: lowest level, in the units of the image.
        high: highest level, likewise.
        straight_through: the gradient is that of the clip; else the true one, 0.

    Raises:
        ValueError: fewer than two levels, or an empty range.
    """

    space: SpaceOrShape
    levels: int = 8
    low: float = 0.0
    high: float = 1.0
    straight_through: bool = True

    def __post_init__(self) -> None:
        """Check the settings."""
        if self.levels < 2 or not self.low < self.high:
            raise ValueError(f"levels={self.levels}, low={self.low}, high={self.high}; expected 2 or more, low < high")

    @property
    def step(self) -> float:
        """Distance of the levels, in the units of the image."""
        return (self.high - self.low) / (self.levels - 1)

    @property
    def rounding_std(self) -> float:
        """Standard deviation of a place within a cell, step / sqrt(12), in the units of the image."""
        return self.step / math.sqrt(12)

    def forward(self, x: Tensor) -> Tensor:
        """The nearest level; half-way cases go to the even one."""
        clipped = x.clamp(self.low, self.high)
        staircase = self.low + self.step * torch.round((clipped - self.low) / self.step)
        if not self.straight_through:
            return staircase
        # The difference is exactly 0, so the values are those of the staircase to the last bit.
        return staircase + (clipped - clipped.detach())

    def carry(self, positions: Tensor) -> Tensor:
        """The same places."""
        return positions

    def __repr__(self) -> str:
        return f"Quantise({space_name(self.space)}, levels={self.levels}, low={self.low}, high={self.high})"
