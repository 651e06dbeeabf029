"""Fan-beam tomography: the rays of a view leave one source and fall on a flat detector.

    theta = beta + gamma,     t = D sin(gamma),     tan(gamma) = u / (D + E)

beta is the angle of the view, u the place on the detector, D and E the distances of the source and of the detector
from the centre. The source stands at D (-sin(beta), cos(beta)), and the detector opposite to it, so that beta and the
angle of a parallel view agree for the central ray.
"""

from __future__ import annotations

import math
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
class FanBeam(LineIntegrals):
    """Line integrals along the rays of a fan, `(*b, channel, rows, columns)` -> `(*b, channel, views, detectors)`.

    Args:
        space: Space of the image, or its event shape `(channel, rows, columns)`.
        views: number of positions of the source.
        detectors: number of cells of the flat detector (default: enough for the circle around the image).
        spacing: distance between them, in the unit of the pixel size (default: the shorter side of a pixel, magnified
            as the detector sees it).
        arc: angle covered by the source, degrees, the end left out. Every line is seen by an arc of 180 degrees and
            the opening of the fan.
        first: angle of the first view, degrees.
        source_radius: distance D of the source from the centre (default: the longer side of the image, as in Hu et
            al. 2024: 40 for an image of side 40).
        detector_radius: distance E of the detector from the centre (default: the same); 0 is a virtual detector
            through the centre.
        pixel_size: side of a pixel, or (height, width); default: by the Space's coordinates, else the longer side of
            the image is 2. The image is an attenuation per this unit of length.
        decompose: whether `svd` gives the numeric decomposition of the dense matrix.

    Raises:
        ValueError: an event that is no image, a number or length that is not positive, an arc of 0 or above 360, a
            source within the circle around the image, or a matrix too large to decompose.

    References:
        Kak, Slaney (1988), Principles of computerized tomographic imaging, section 3.4, https://doi.org/10.1137/1.9780898719277
        Hu et al. (2024), Learning image priors through patch-based diffusion models for solving inverse problems,
        https://arxiv.org/abs/2406.02462 (the default distances)
    """

    space: SpaceOrShape
    views: int = 20
    detectors: int | None = None
    spacing: float | None = None
    arc: float = 360.0
    first: float = 0.0
    source_radius: float | None = None
    detector_radius: float | None = None
    pixel_size: PixelSize | None = None
    decompose: bool = False

    def __post_init__(self) -> None:
        """Work out the defaults; check the settings."""
        grid = pixel_grid(self.space, self.pixel_size)
        object.__setattr__(self, "grid", grid)
        source, detector = self.distances
        if not grid.diagonal / 2 < source < math.inf:
            raise ValueError(
                f"source_radius={source:g}; the source must stand outside the circle around the image, whose radius is "
                f"{grid.diagonal / 2:g} (in the unit of the pixel size)"
            )
        if not 0 <= detector < math.inf:
            raise ValueError(f"detector_radius={detector:g}; expected a distance of 0 or more")
        pitch = min(grid.height, grid.width) * self.magnification if self.spacing is None else float(self.spacing)
        half = (source + detector) * math.tan(math.asin(grid.diagonal / 2 / source))
        cells = detector_cells(2 * half, self.detectors, pitch)
        resolved = {"detectors": cells.size, "spacing": pitch, "cells": cells, "pitch": pitch}
        for name, value in {**resolved, "source_radius": source, "detector_radius": detector}.items():
            object.__setattr__(self, name, value)
        self.lines()
        self.check_decompose()

    @property
    def distances(self) -> tuple[float, float]:
        """Distances (D, E) of the source and of the detector from the centre."""
        source = max(self.grid.sides) if self.source_radius is None else float(self.source_radius)
        return source, source if self.detector_radius is None else float(self.detector_radius)

    @property
    def magnification(self) -> float:
        """Size on the detector of a length 1 at the centre, (D + E) / D."""
        return sum(self.distances) / self.distances[0]

    @property
    def angles(self) -> np.ndarray:
        """Angles beta of the views in radians, float64 `(views,)`."""
        return view_angles(self.views, self.arc, self.first)

    @property
    def opening(self) -> np.ndarray:
        """Angle gamma between each cell's ray and the central one in radians, float64 `(detectors,)`."""
        return np.arctan(self.cells / sum(self.distances))

    def lines(self) -> Lines:
        """The measured lines, `(views, detectors)`."""
        gamma = self.opening
        theta, offset = np.broadcast_arrays(self.angles[:, None] + gamma, self.distances[0] * np.sin(gamma))
        return Lines(theta, offset)

    def __repr__(self) -> str:
        return (
            f"FanBeam({space_name(self.space)}, views={self.views}, detectors={self.detectors}, "
            f"spacing={self.pitch}, arc={self.arc}, first={self.first}, source_radius={self.source_radius}, "
            f"detector_radius={self.detector_radius}, pixel_size=({self.grid.height}, {self.grid.width}), "
            f"decompose={self.decompose})"
        )
