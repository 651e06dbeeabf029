"""Parallel-beam tomography: at each view all rays have one direction.

    t = (k - (n - 1) / 2) spacing,     theta = first + arc v / views

A few views over 180 degrees are the sparse-view problem, an arc below 180 degrees is the limited-angle problem.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from imaging.operators.tomography.geometry import (
    Lines,
    PixelSize,
    detector_cells,
    pixel_grid,
    view_angles,
)
from imaging.operators.tomography.line_integrals import LineIntegrals
from observations.base import SpaceOrShape, space_name


@dataclass(frozen=True, eq=False)
class ParallelBeam(LineIntegrals):
    """Line integrals along parallel rays, `(*b, channel, rows, columns)` -> `(*b, channel, views, detectors)`.

    Args:
        space: Space of the image, or its event shape `(channel, rows, columns)`.
        views: number of view angles (20: the sparse-view setting of Hu et al. 2024, with 8 and 60).
        detectors: number of detector cells (default: enough for the diagonal of the image).
        spacing: distance between them, in the unit of the pixel size (default: the shorter side of a pixel).
        arc: angle covered by the views, degrees, the end left out; 90 or 120 for a limited angle.
        first: angle of the normal of the first view's rays, degrees from the x axis towards y (upwards).
        pixel_size: side of a pixel, or (height, width); default: by the Space's coordinates, else the longer side of
            the image is 2. The image is an attenuation per this unit of length.
        decompose: whether `svd` gives the numeric decomposition of the dense matrix (20 views of 64 x 64 pixels take
            about 4 s once, on one core).

    Raises:
        ValueError: an event that is no image, a number or length that is not positive, an arc of 0 or above 360, or
            a matrix too large to decompose.

    References:
        Kak, Slaney (1988), Principles of computerized tomographic imaging, chapter 3, https://doi.org/10.1137/1.9780898719277
        Hu et al. (2024), Learning image priors through patch-based diffusion models for solving inverse problems,
        https://arxiv.org/abs/2406.02462 (views, arcs of 180 and 120 degrees)
    """

    space: SpaceOrShape
    views: int = 20
    detectors: int | None = None
    spacing: float | None = None
    arc: float = 180.0
    first: float = 0.0
    pixel_size: PixelSize | None = None
    decompose: bool = False

    def __post_init__(self) -> None:
        """Work out the defaults; check the settings."""
        grid = pixel_grid(self.space, self.pixel_size)
        object.__setattr__(self, "grid", grid)
        pitch = min(grid.height, grid.width) if self.spacing is None else float(self.spacing)
        cells = detector_cells(grid.diagonal, self.detectors, pitch)
        resolved = {"detectors": cells.size, "spacing": pitch, "cells": cells, "pitch": pitch}
        for name, value in resolved.items():
            object.__setattr__(self, name, value)
        self.lines()
        self.check_decompose()

    @property
    def angles(self) -> np.ndarray:
        """Angles of the views in radians, float64 `(views,)`."""
        return view_angles(self.views, self.arc, self.first)

    def lines(self) -> Lines:
        """The measured lines, `(views, detectors)`."""
        theta, offset = np.broadcast_arrays(self.angles[:, None], self.cells)
        return Lines(theta, offset)

    def __repr__(self) -> str:
        return (
            f"ParallelBeam({space_name(self.space)}, views={self.views}, detectors={self.detectors}, "
            f"spacing={self.pitch}, arc={self.arc}, first={self.first}, "
            f"pixel_size=({self.grid.height}, {self.grid.width}), decompose={self.decompose})"
        )
