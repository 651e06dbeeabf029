r"""Weights of an ensemble analysis on a coarser grid, interpolated to all cells.

Local weights change slowly from cell to cell (observations enter and leave at weight zero), so a filter may compute
them in every s-th cell along each dimension only and interpolate linearly between these. With the corner cells p of the
box around a cell g and their multilinear factors,

    x_g,n = x_g,n + sum_p factor_gp sum_k C_p,nk a_g,k,      C = T - I + 1 w^T

The interpolated matrices are never formed: each corner's is applied to all cells of the box at once. Factors count
cells, not lengths, so curvilinear grids are as easy as regular ones. The last cell of a side that is not periodic is
always a corner: nothing is extrapolated.

References:
    Yang, Kalnay, Hunt, Bowler (2009), Weight interpolation for efficient data assimilation with the local ensemble
    transform Kalman filter, https://doi.org/10.1002/qj.353
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from dynamics.errors import CapabilityError
from dynamics.settings import check_number, whole
from dynamics.space import Space


@dataclass(frozen=True)
class CoarseGrid:
    """Every `stride`-th cell of a grid, and the boxes between them.

    Args:
        sizes: of the grid dimensions.
        stride: cells from one corner to the next, at least 1.
        periodic: which dimensions close on themselves.
    """

    sizes: tuple[int, ...]
    stride: int
    periodic: tuple[bool, ...]

    @classmethod
    def of(cls, space: Space, stride: int, *, method: str) -> CoarseGrid:
        """The coarse grid of a Space.

        Raises:
            CapabilityError: cells beside each other in the Space's order are not beside each other on the ground.
        """
        if len(space.position_names) != len(space.grid):
            raise CapabilityError(
                f"{method} cannot interpolate weights on {space!r}: its {space.grid} is a list of cells, so that cells "
                "in a row need not be neighbours; use interpolation=1"
            )
        return cls(space.grid_shape, stride, tuple(dim in space.periodic for dim in space.grid))

    @cached_property
    def cells(self) -> Tensor:
        """The corners: `(K,)` int64, grid cells in C order."""
        return _flat([corners for corners, _, _ in self._sides], self.sizes)

    @cached_property
    def boxes(self) -> Tensor:
        """Cells of the box that begins at each corner, `(K, stride^d)` int64; -1 where a box is shorter."""
        axes = []
        for corners, following, size in self._sides:
            inside = corners[:, None] + torch.arange(self.stride)
            ends = torch.where(following > corners, following, size)
            axes.append(torch.where(inside < ends[:, None], inside, -1))
        index = torch.zeros([1] * (2 * len(axes)), dtype=torch.int64)
        valid = torch.ones_like(index, dtype=torch.bool)
        for side, (axis, size) in enumerate(zip(axes, self.sizes, strict=True)):
            shaped = self._along(side, axis)
            index = index * size + shaped
            valid = valid & (shaped >= 0)
        return torch.where(valid, index, -1).reshape(self.cells.numel(), -1)

    @cached_property
    def corners(self) -> list[tuple[Tensor, Tensor]]:
        """The 2^d corners of all boxes: indices `(K,)` into `cells`, and factors `(K, stride^d)` of the box's cells."""
        out = []
        for upper in itertools.product((False, True), repeat=len(self.sizes)):
            factor = torch.ones([1] * (2 * len(self.sizes)), dtype=torch.float64)
            picked, counts = [], []
            for side, (up, (corners, following, size)) in enumerate(zip(upper, self._sides, strict=True)):
                length = torch.where(following > corners, following, size) - corners
                share = torch.arange(self.stride) / length[:, None].double()
                factor = factor * self._along(side, share if up else 1 - share)
                count = corners.numel()
                # After the last corner comes the first: of use on periodic sides; on others that box has one cell.
                picked.append(torch.arange(count).roll(-1) if up else torch.arange(count))
                counts.append(count)
            out.append((_flat(picked, tuple(counts)), factor.reshape(self.cells.numel(), -1)))
        return out

    # ---------------------------------------------------------------------------------------------- inside

    @cached_property
    def _sides(self) -> list[tuple[Tensor, Tensor, int]]:
        """For each dimension the corners, the next ones, and where its last box ends."""
        out = []
        for size, closed in zip(self.sizes, self.periodic, strict=True):
            corners = torch.arange(0, size, self.stride)
            if not closed and corners[-1] < size - 1:
                corners = torch.cat([corners, torch.tensor([size - 1])])
            out.append((corners, corners.roll(-1), size))
        return out

    def _along(self, side: int, values: Tensor) -> Tensor:
        """`(corners, stride)` of one dimension in the layout `(corners of all dimensions, strides of all)`."""
        d = len(self.sizes)
        shape = [1] * (2 * d)
        shape[side], shape[d + side] = values.shape
        return values.reshape(shape)


def apply_interpolated(grid: CoarseGrid, changes: Tensor, anomalies: Tensor, boxes: slice) -> tuple[Tensor, Tensor]:
    """Increments of the members in some of the boxes.

    Args:
        grid: the corners.
        changes: C at the corners, `(E, K, N, N)`; rows are the new members.
        anomalies: `(E, N, channels, cells)`.
        boxes: which of the K boxes.

    Returns:
        The cells `(k,)` int64 and their increments `(E, N, channels, k)`.
    """
    inside = grid.boxes[boxes].to(anomalies.device)
    experiments, n, channels = anomalies.shape[:3]
    count, length = inside.shape
    block = anomalies[..., inside.clamp_min(0).flatten()].reshape(experiments, n, channels, count, length)
    block = block.permute(0, 3, 1, 2, 4)
    total = torch.zeros(experiments, count, n, channels * length, dtype=block.dtype, device=block.device)
    for picked, factor in grid.corners:
        weighted = block * factor[boxes].to(block)[:, None, None, :]
        corner = changes[:, picked[boxes].to(changes.device)].to(block.dtype)
        total = total + corner @ weighted.reshape(experiments, count, n, channels * length)
    total = total.reshape(experiments, count, n, channels, length).permute(0, 2, 3, 1, 4).flatten(-2)
    real = (inside >= 0).flatten()
    return inside.flatten()[real], total[..., real]


def box_pieces(grid: CoarseGrid, size: int) -> list[slice]:
    """The boxes in pieces of about `size` cells."""
    step = max(1, size // grid.stride ** len(grid.sizes))
    return [slice(start, start + step) for start in range(0, math.prod(grid.cells.shape), step)]


def check_stride(stride: int) -> None:
    """Raise a ValueError unless `stride` is a whole number of cells."""
    check_number("interpolation", stride, whole(1, words="a stride of the analysis grid in cells (1: none)"))


def _flat(axes: list[Tensor], sizes: tuple[int, ...]) -> Tensor:
    """Indices in C order of all combinations of indices along the dimensions."""
    index = torch.zeros(1, dtype=torch.int64)
    for axis, size in zip(axes, sizes, strict=True):
        index = (index[:, None] * size + axis).flatten()
    return index
