"""Computed tomography as a linear operator: a sinogram of line integrals of an image.

    y[view, detector] = integral of x along the line of that view and detector cell

What a scanner's geometry adds is which lines it measures. The image is an attenuation per length (1/mm with a pixel
size in mm), so the sinogram has no unit. Channels are scanned each alone.
"""

from __future__ import annotations

from abc import abstractmethod
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from dynamics.space import SpaceMismatch
from imaging.operators.sparse import SparseMatrix
from imaging.operators.tomography.geometry import Lines, PixelGrid
from imaging.operators.tomography.joseph import joseph_matrix
from observations.base import SVD, LinearOperator

_DENSE = 2**25
"""Most entries of a matrix that is decomposed: 268 MB in float64."""
_CUTOFF = 1e-6
"""Singular values below this part of the largest count as zero."""


class LineIntegrals(LinearOperator):
    """Line integrals of images `(*b, channel, rows, columns)`, as sinograms `(*b, channel, views, detectors)`.

    The matrix of Joseph's method is built in float64 at the first use of a dtype and device and kept there with its
    transpose, so the adjoint is exact. In float32 both take 16 bytes for each pixel that a ray reads: 113 MB for 60
    parallel views of 256 x 256 pixels.

    Attributes:
        views: number of views.
        decompose: whether `svd` may decompose the matrix.
        grid: the pixels.
        cells: places of the detector cells, float64 `(detectors,)`, in the unit of the pixel size.
        pitch: distance between them.
    """

    views: int
    decompose: bool
    grid: PixelGrid
    cells: np.ndarray
    pitch: float

    @abstractmethod
    def lines(self) -> Lines:
        """The measured lines, `(views, detectors)` float64."""

    @cached_property
    def obs_shape(self) -> tuple[int, ...]:
        """Shape of a sinogram, `(channel, views, detectors)`."""
        return (self.event_shape[0], self.views, self.cells.size)

    def forward(self, x: Tensor) -> Tensor:
        """The sinogram of an image."""
        self._check_dtype(x)
        product = self._matrix.product(x.reshape(-1, self.grid.rows * self.grid.columns))
        return product.reshape(*x.shape[:-2], *self.obs_shape[1:])

    def adjoint(self, y: Tensor) -> Tensor:
        """The unfiltered back-projection A^T y, `(*b, channel, views, detectors)` -> `(*b, channel, rows, columns)`."""
        if tuple(y.shape[-3:]) != self.obs_shape:
            raise SpaceMismatch(
                f"the adjoint of {self!r} was given shape {tuple(y.shape)}; expected (*b, *{self.obs_shape})"
            )
        self._check_dtype(y)
        product = self._matrix.transposed_product(y.reshape(-1, self.views * self.cells.size))
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
            return rows.unflatten(-1, self.obs_shape[1:])

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
        size = self.views * self.cells.size * self.grid.rows * self.grid.columns
        if self.decompose and size > _DENSE:
            raise ValueError(
                f"decompose=True needs a dense matrix of {size} entries, above the limit of {_DENSE}; "
                "use fewer views or a coarser image, or a solver that needs no SVD"
            )

    @cached_property
    def _decomposition(self) -> tuple[Tensor, Tensor, Tensor]:
        matrix = joseph_matrix(self.lines(), self.grid)
        # Rays that miss the image only make the factorisation larger. It is faster on a tall matrix than on a wide one.
        hit = np.unique(matrix.nonzero()[0])
        v, singular, u = torch.linalg.svd(torch.from_numpy(matrix[hit].toarray()).mT, full_matrices=False)
        kept = int((singular > _CUTOFF * singular[0]).sum())
        left = torch.zeros(matrix.shape[0], kept, dtype=torch.float64)
        left[torch.from_numpy(hit)] = u[:kept].mT
        return left, singular[:kept].clone(), v[:, :kept].contiguous()

    def _check_dtype(self, value: Tensor) -> None:
        if value.dtype not in (torch.float32, torch.float64):
            raise TypeError(f"{self!r} was given {value.dtype}; expected float32 or float64 (complex: its two parts)")

    @cached_property
    def _matrix(self) -> SparseMatrix:
        return SparseMatrix(lambda: joseph_matrix(self.lines(), self.grid))
