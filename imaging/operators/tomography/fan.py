"""Fan-beam tomography: the rays of a view leave one source and fall on a flat detector.

    theta = beta + gamma,     t = D sin(gamma),     tan(gamma) = u / (D + E)

beta is the angle of the view, u the place on the detector, D and E the distances of the source and of the detector
from the centre. The source stands at D (-sin(beta), cos(beta)), and the detector opposite to it, so that beta and the
angle of a parallel view agree for the central ray.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from imaging.operators.tomography.geometry import (
    Lines,
    PixelSize,
    detector_positions,
    pixel_grid,
    view_angles,
)
from imaging.operators.tomography.line_integrals import LineIntegrals, enough_cells
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
    detectors: int | None = None  # type: ignore[assignment]
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
        source = max(grid.sides) if self.source_radius is None else float(self.source_radius)
        if not grid.diagonal / 2 < source < math.inf:
            raise ValueError(
                f"source_radius={source:g}; the source must stand outside the circle around the image, whose radius is "
                f"{grid.diagonal / 2:g} (in the unit of the pixel size)"
            )
        detector = source if self.detector_radius is None else float(self.detector_radius)
        if not 0 <= detector < math.inf:
            raise ValueError(f"detector_radius={detector:g}; expected a distance of 0 or more")
        object.__setattr__(self, "source_radius", source)
        object.__setattr__(self, "detector_radius", detector)
        if self.spacing is None:
            object.__setattr__(self, "spacing", min(grid.height, grid.width) * self.magnification)
        if self.detectors is None:
            half = (source + detector) * math.tan(math.asin(grid.diagonal / 2 / source))
            object.__setattr__(self, "detectors", enough_cells(2 * half, self.spacing))  # type: ignore[arg-type]
        self.lines()
        self.check_decompose()

    @property
    def magnification(self) -> float:
        """Size on the detector of a length 1 at the centre, (D + E) / D."""
        return 1 + self.detector_radius / self.source_radius  # type: ignore[operator]

    @property
    def angles(self) -> Tensor:
        """Angles beta of the views in radians, float64 `(views,)`."""
        return view_angles(self.views, self.arc, self.first)

    @property
    def positions_on_detector(self) -> Tensor:
        """Places u of the detector cells, float64 `(detectors,)`."""
        return detector_positions(self.detectors, self.spacing)  # type: ignore[arg-type]

    @property
    def opening(self) -> Tensor:
        """Angle gamma between each cell's ray and the central one in radians, float64 `(detectors,)`."""
        return torch.atan(self.positions_on_detector / (self.source_radius + self.detector_radius))  # type: ignore[operator]

    def lines(self) -> Lines:
        """The measured lines, `(views, detectors)`."""
        gamma = self.opening
        offset = (self.source_radius * gamma.sin()).expand(self.views, -1)  # type: ignore[operator]
        return Lines(self.angles[:, None] + gamma, offset)

    def __repr__(self) -> str:
        return (
            f"FanBeam({space_name(self.space)}, views={self.views}, detectors={self.detectors}, "
            f"spacing={self.spacing:.6g}, arc={self.arc:g}, first={self.first:g}, "
            f"source_radius={self.source_radius:g}, detector_radius={self.detector_radius:g}, "
            f"pixel_size=({self.grid.height:.6g}, {self.grid.width:.6g}))"
        )
