r"""Super-resolution: what a coarser camera sees, by block means or by anti-aliased bicubic resampling.

    y = W_rows x W_columns^T   in each channel,     (W)_ij  ~  k( (j + 1/2) / factor - (i + 1/2) )

`k` is the cubic convolution kernel with a = -1/2, widened by the factor so that it is its own anti-aliasing filter;
rows of W sum to 1, and the picture is mirrored at its edges (the edge pixel is repeated). The matrix of an image is the
Kronecker product of two small ones, and so is its singular value decomposition: it is exact and cheap.

References:
    Keys (1981), Cubic convolution interpolation for digital image processing,
    https://doi.org/10.1109/TASSP.1981.1163711
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from imaging.operators.images import image_shape
from observations.averaging import BlockMean
from observations.base import SVD, LinearOperator, SpaceOrShape, space_name


def block_mean(space: SpaceOrShape, factor: int = 4) -> BlockMean:
    """Means over squares of `factor` pixels a side.

    Args:
        space: Space of the image, or `(channel, rows, columns)`.
        factor: pixels of the image for one of the measurement, along each side (default 4, as published with DPS).

    Raises:
        ValueError: the factor does not divide the sides.
    """
    image_shape(space, full=False)
    return BlockMean(space, factor)


@dataclass(frozen=True, eq=False)
class Bicubic(LinearOperator):
    """Anti-aliased bicubic downsampling, `(*b, channel, rows, columns)` -> sides divided by `factor`.

    Args:
        space: Space of the image, or `(channel, rows, columns)`.
        factor: pixels of the image for one of the measurement, along each side (default 4, as published with DPS).

    Raises:
        ValueError: the factor does not divide the sides, or the Space has no-data cells.
    """

    space: SpaceOrShape
    factor: int = 4

    def __post_init__(self) -> None:
        """Make the weights of both axes."""
        _, rows, columns = image_shape(self.space)
        if self.factor < 1 or rows % self.factor or columns % self.factor:
            raise ValueError(
                f"factor={self.factor} does not divide {rows} x {columns} pixels; crop the image or change the factor"
            )
        object.__setattr__(self, "rows", bicubic_weights(rows, self.factor))
        object.__setattr__(self, "columns", bicubic_weights(columns, self.factor))

    def forward(self, x: Tensor) -> Tensor:
        """W_rows x W_columns^T."""
        return self.on("rows", x) @ x @ self.on("columns", x).mT

    def adjoint(self, y: Tensor) -> Tensor:
        """W_rows^T y W_columns."""
        return self.on("rows", y).mT @ y @ self.on("columns", y)

    def carry(self, positions: Tensor) -> Tensor:
        """Centres of the coarse pixels."""
        return BlockMean(self.space, self.factor).carry(positions)

    def svd(self) -> SVD:
        """Products of the singular values of the two axes, in each channel."""
        (u, s, v), (p, q, r) = self._axes
        channels = self.event_shape[0]
        singular = (s[:, None] * q[None, :]).flatten().repeat(channels)
        block = (channels, s.numel(), q.numel())

        def flat(values: Tensor) -> Tensor:
            return values.flatten(values.ndim - 3)

        def shaped(c: Tensor) -> Tensor:
            return c.reshape(*c.shape[:-1], *block)

        return SVD(
            singular,
            lambda x: flat(v.to(x).mT @ x @ r.to(x)),
            lambda c: v.to(c) @ shaped(c) @ r.to(c).mT,
            lambda y: flat(u.to(y).mT @ y @ p.to(y)),
            lambda c: u.to(c) @ shaped(c) @ p.to(c).mT,
        )

    @cached_property
    def _axes(self) -> tuple[tuple[Tensor, Tensor, Tensor], tuple[Tensor, Tensor, Tensor]]:
        """U, S, V of the weights along the rows and along the columns, singular values at round-off dropped."""
        result = []
        for weights in (self.rows, self.columns):  # type: ignore[attr-defined]
            u, s, vh = torch.linalg.svd(weights, full_matrices=False)
            kept = s > s[0] * max(weights.shape) * torch.finfo(s.dtype).eps
            result.append((u[:, kept], s[kept], vh[kept].mT))
        return result[0], result[1]

    def __repr__(self) -> str:
        return f"Bicubic({space_name(self.space)}, {self.factor})"


def bicubic_weights(size: int, factor: int) -> Tensor:
    """Weights of `size / factor` coarse pixels on `size` fine ones along one axis, float64, rows of sum 1."""
    coarse = size // factor
    centres = (torch.arange(coarse, dtype=torch.float64) + 0.5) * factor - 0.5
    taps = torch.arange(4 * factor + 1)
    places = torch.ceil(centres - 2 * factor).long()[:, None] + taps
    weights = cubic_kernel((places - centres[:, None]) / factor)
    weights = weights / weights.sum(1, keepdim=True)
    # Mirroring has the period 2 size: 0 1 ... n-1 n-1 ... 1 0.
    turned = places % (2 * size)
    inside = torch.where(turned < size, turned, 2 * size - 1 - turned)
    return torch.zeros(coarse, size, dtype=torch.float64).scatter_add_(1, inside, weights)


def cubic_kernel(distance: Tensor, a: float = -0.5) -> Tensor:
    """Cubic convolution kernel, 1 at 0, 0 at the other whole numbers and from 2 on.

    Args:
        distance: in coarse pixels, any shape.
        a: slope at 1; -1/2 reproduces quadratic functions (Keys).
    """
    d = distance.abs()
    near = ((a + 2) * d - (a + 3)) * d * d + 1
    far = a * (((d - 5) * d + 8) * d - 4)
    return torch.where(d <= 1, near, torch.where(d < 2, far, torch.zeros_like(d)))
