"""Computed tomography as a linear operator: a sinogram of line integrals of an image.

    y[view, detector] = integral of x along the line of that view and detector cell

What a scanner's geometry adds is which lines it measures. The image is an attenuation per length (1/mm with a pixel
size in mm), so the sinogram has no unit. Channels are scanned each alone.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from functools import cached_property

import torch
from torch import Tensor

from dynamics.space import SpaceMismatch
from imaging.operators.sparse import SparsePair, sparse_pair, sparse_product
from imaging.operators.tomography.geometry import Lines, PixelGrid
from imaging.operators.tomography.joseph import joseph_matrix
from observations.base import SVD, LinearOperator

_DENSE = 2**25
"""Most entries of a matrix that is decomposed: 268 MB in float64."""
_CUTOFF = 1e-6
"""Singular values below this part of the largest count as zero."""


class LineIntegrals(LinearOperator):
    """Line integrals along the lines of a geometry, `(*b, channel, rows, columns)` -> `(*b, channel, views, detectors)`.

    The matrix of Joseph's method is built in float64 at the first use of a dtype and device and kept there with its
    transpose, so the adjoint is exact.

    Attributes:
        views: number of views.
        detectors: number of detector cells.
        decompose: whether `svd` may decompose the matrix.
        grid: the pixels.
    """

    views: int
    detectors: int
    decompose: bool
    grid: PixelGrid

    @abstractmethod
    def lines(self) -> Lines:
        """The measured lines, `(views, detectors)` float64."""

    @cached_property
    def obs_shape(self) -> tuple[int, ...]:
        """Shape of a sinogram, `(channel, views, detectors)`."""
        return (self.event_shape[0], self.views, self.detectors)

    def forward(self, x: Tensor) -> Tensor:
        """The sinogram of an image."""
        product = sparse_product(x.reshape(-1, self.grid.rows * self.grid.columns), self._pair(x))
        return product.reshape(*x.shape[:-2], self.views, self.detectors)

    def adjoint(self, y: Tensor) -> Tensor:
        """The unfiltered back-projection A^T y, `(*b, channel, views, detectors)` -> `(*b, channel, rows, columns)`."""
        if tuple(y.shape[-3:]) != self.obs_shape:
            raise SpaceMismatch(
                f"the adjoint of {self!r} was given shape {tuple(y.shape)}; expected (*b, *{self.obs_shape})"
            )
        product = sparse_product(y.reshape(-1, self.views * self.detectors), self._pair(y).flipped)
        return product.reshape(*y.shape[:-2], self.grid.rows, self.grid.columns)

    def svd(self) -> SVD | None:
        """The decomposition of the dense matrix if `decompose` is set, else None: no closed form is known.

        It is computed once in float64; singular values below 1e-6 of the largest are dropped.
        """
        if not self.decompose:
            return None
        rank = self.singular.numel()

        def project(x: Tensor) -> Tensor:
            return (x.flatten(-2) @ self.on("right", x)).flatten(-2)

        def expand(c: Tensor) -> Tensor:
            rows = c.unflatten(-1, (-1, rank)) @ self.on("right", c).mT
            return rows.unflatten(-1, (self.grid.rows, self.grid.columns))

        def project_observed(y: Tensor) -> Tensor:
            return (y.flatten(-2) @ self.on("left", y)).flatten(-2)

        def expand_observed(c: Tensor) -> Tensor:
            rows = c.unflatten(-1, (-1, rank)) @ self.on("left", c).mT
            return rows.unflatten(-1, (self.views, self.detectors))

        singular = self.singular.repeat(self.event_shape[0])
        return SVD(singular, project, expand, project_observed, expand_observed)

    @property
    def left(self) -> Tensor:
        """U, float64 `(views * detectors, rank)`."""
        return self._decomposition[0]

    @property
    def singular(self) -> Tensor:
        """The singular values of one channel, float64 `(rank,)`, falling."""
        return self._decomposition[1]

    @property
    def right(self) -> Tensor:
        """V, float64 `(rows * columns, rank)`."""
        return self._decomposition[2]

    def check_decompose(self) -> None:
        """Check that the matrix is small enough for `decompose`.

        Raises:
            ValueError: it is not.
        """
        size = self.views * self.detectors * self.grid.rows * self.grid.columns
        if self.decompose and size > _DENSE:
            raise ValueError(
                f"decompose=True needs a dense matrix of {size} entries, above the limit of {_DENSE}; "
                "use fewer views or a coarser image, or a solver that needs no SVD"
            )

    @cached_property
    def _decomposition(self) -> tuple[Tensor, Tensor, Tensor]:
        matrix = torch.from_numpy(joseph_matrix(self.lines(), self.grid).toarray())
        # The smaller side first: the factorisation works on the tall matrix.
        right, singular, left = torch.linalg.svd(matrix.mT, full_matrices=False)
        kept = int((singular > _CUTOFF * singular[0]).sum())
        return left.mT[:, :kept].contiguous(), singular[:kept], right[:, :kept].contiguous()

    def _pair(self, like: Tensor) -> SparsePair:
        if like.dtype not in (torch.float32, torch.float64):
            raise TypeError(f"{self!r} was given {like.dtype}; expected float32 or float64 (complex: its two parts)")
        key = (like.device, like.dtype)
        if key not in self._pairs:
            matrix = joseph_matrix(self.lines(), self.grid)
            self._pairs[key] = sparse_pair(matrix, dtype=like.dtype, device=like.device)
        return self._pairs[key]

    @cached_property
    def _pairs(self) -> dict[tuple[torch.device, torch.dtype], SparsePair]:
        return {}


def enough_cells(extent: float, spacing: float) -> int:
    """How many detector cells cover an extent; a hair too much from round-off adds no cell."""
    return max(1, math.ceil(extent / spacing - 1e-9))
