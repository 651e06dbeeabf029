"""Block means: what an instrument with a coarse footprint sees.

    y_B = mean of x over the cells with data of the block B, or of its middle

References:
    Chen et al. (2025), FlowDAS, https://arxiv.org/abs/2501.16642 (super-resolution observations; its code interpolates
    bilinearly without a low-pass filter, which is the mean over the middle 2 x 2 cells of a block: `window=2`)
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from dynamics.geometry import from_unit_vectors, unit_vectors
from dynamics.settings import COUNT, check_settings, one_or_several, whole
from dynamics.space import Space
from observations.base import SVD, LinearOperator, SpaceOrShape, space_name


@dataclass(frozen=True, eq=False)
class BlockMean(LinearOperator):
    """Means over blocks of `factor` cells a side, `(*b, channel, *grid)` -> `(*b, channel, *grid / factor)`.

    No-data cells do not count; a block without any cell with data is not available (and 0).

    Args:
        space: Space of the state, or its event shape.
        factor: side of a block in cells; a number, or one for each grid dimension.
        window: side of the middle part that is averaged, in cells; None for the whole block.

    Raises:
        ValueError: a side does not divide the grid, or the window has no place in the middle of a block.
    """

    space: SpaceOrShape
    factor: Any
    window: int | None = None

    def __post_init__(self) -> None:
        """Check the sides of the block; count the cells with data."""
        check_settings(self, factor=one_or_several(COUNT), window=whole(1, none=True))
        grid = self.event_shape[1:]
        sides = (self.factor,) * len(grid) if isinstance(self.factor, int) else tuple(self.factor)
        if not grid or len(sides) != len(grid):
            raise ValueError(f"factor={self.factor} has {len(sides)} sides; the grid has {len(grid)} dimensions")
        for side, size in zip(sides, grid, strict=True):
            if side < 1 or size % side:
                raise ValueError(f"blocks of {sides} cells do not divide the grid {grid}; crop it or change the factor")
        for side in sides:
            if self.window is not None and not (1 <= self.window <= side and (side - self.window) % 2 == 0):
                raise ValueError(
                    f"window={self.window} is not in the middle of a block of {side} cells; give a number from 1 to "
                    f"{side} that is {'odd' if side % 2 else 'even'}"
                )
        object.__setattr__(self, "factor", sides)
        valid = torch.ones(self.event_shape, dtype=torch.float64)
        if isinstance(self.space, Space) and self.space.mask is not None:
            valid = torch.from_numpy(~self.space.mask).double()
        object.__setattr__(self, "valid", valid)
        object.__setattr__(self, "counts", self._sums(valid))

    def forward(self, x: Tensor) -> Tensor:
        """Means over the blocks."""
        if not self._masked:
            return self._sums(x) / self._cells
        return self._sums(x * self.on("valid", x)) / self.on("counts", x).clamp_min(1)

    def carry(self, positions: Tensor) -> Tensor:
        """Centres of the blocks (on the sphere the direction of the mean of its cells)."""
        sphere = isinstance(self.space, Space) and self.space.spherical is not None and positions.shape[-1] >= 2
        columns = positions
        if sphere:
            columns = torch.cat([unit_vectors(positions[:, :2]), positions[:, 2:]], -1)
        means = self._sums(columns.mT.reshape(-1, *self.event_shape)) / self._cells
        flat = means.reshape(columns.shape[-1], -1).mT
        if not sphere:
            return flat
        # Keep the turn of longitude (0..360 or -180..180) in which the grid lies.
        places = from_unit_vectors(flat[:, :3])
        first = self._corner(positions[:, 1:2])
        places[:, 1] += 360.0 * torch.round((first[:, 0] - places[:, 1]) / 360.0)
        return torch.cat([places, flat[:, 3:]], -1)

    @property
    def available(self) -> Tensor | None:
        """False for blocks of no-data cells."""
        return (self.counts > 0) if self._masked else None  # type: ignore[attr-defined]

    def svd(self) -> SVD | None:
        """Singular values are all 1 / sqrt(cells in a block); None on a grid with no-data cells."""
        if self._masked:
            return None
        obs, root = self.obs_shape, math.sqrt(self._cells)
        return SVD(
            torch.full((math.prod(obs),), 1 / root),
            lambda x: (self.forward(x) * root).flatten(x.ndim - len(obs)),
            lambda c: self._spread(c.reshape(*c.shape[:-1], *obs)) / root,
            lambda y: y.flatten(y.ndim - len(obs)),
            lambda c: c.reshape(*c.shape[:-1], *obs),
        )

    @property
    def _sides(self) -> tuple[int, ...]:
        """Sides of what is averaged."""
        return self.factor if self.window is None else (self.window,) * len(self.factor)

    @property
    def _cells(self) -> int:
        return math.prod(self._sides)

    @property
    def _masked(self) -> bool:
        return isinstance(self.space, Space) and self.space.mask is not None

    def _blocks(self, x: Tensor) -> Tensor:
        """`(*b, channel, n_1, side_1, n_2, side_2, ...)`."""
        grid = x.shape[x.ndim - len(self.factor) :]
        split = [part for size, side in zip(grid, self.factor, strict=True) for part in (size // side, side)]
        return x.reshape(*x.shape[: x.ndim - len(self.factor)], *split)

    def _sums(self, x: Tensor) -> Tensor:
        blocks = self._blocks(x)
        for axis, (side, part) in enumerate(zip(reversed(self.factor), reversed(self._sides), strict=True)):
            blocks = blocks.narrow(-1 - 2 * axis, (side - part) // 2, part)
        return blocks.sum([-1 - 2 * axis for axis in range(len(self.factor))])

    def _corner(self, column: Tensor) -> Tensor:
        """The value of each block's first cell, `(m, 1)`."""
        blocks = self._blocks(column.mT.reshape(-1, *self.event_shape))
        index = [slice(None)] * (blocks.ndim - 2 * len(self.factor))
        for _ in self.factor:
            index += [slice(None), 0]  # type: ignore[list-item]
        return blocks[tuple(index)].reshape(column.shape[-1], -1).mT

    def _spread(self, y: Tensor) -> Tensor:
        """Each block's value at all of the cells that it is the mean of, 0 at the others."""
        for axis, (side, part) in enumerate(zip(reversed(self.factor), reversed(self._sides), strict=True)):
            y = y.repeat_interleave(side, -1 - axis)
            place = torch.arange(y.shape[-1 - axis], device=y.device) % side
            inside = (place >= (side - part) // 2) & (place < (side + part) // 2)
            y = y * inside.to(y.dtype).reshape(-1, *(1,) * axis)
        return y

    def __repr__(self) -> str:
        window = "" if self.window is None else f", window={self.window}"
        return f"BlockMean({space_name(self.space)}, {self.factor}{window})"
