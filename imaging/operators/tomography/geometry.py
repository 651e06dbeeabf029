"""Where the pixels of a scanned image lie, and along which lines it is measured.

The image lies in the plane with its centre at the origin, x to the right along a row and y upwards, so that row 0 is
the top row whatever the order of a coordinate. A line is given by the direction of its normal and by its distance from
the origin,

    x cos(theta) + y sin(theta) = t

which is the usual convention of the Radon transform. Angles are in degrees in settings and in radians in arrays.
Lengths are in the unit of the pixel size.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from dynamics.space import Space
from imaging.operators.images import image_shape
from observations.base import SpaceOrShape

PixelSize = float | tuple[float, float]
"""Side of a pixel, or its (height, width)."""


class Lines(NamedTuple):
    """Straight lines: the angle of the normal in radians and the signed distance from the origin, float64."""

    theta: np.ndarray
    offset: np.ndarray


@dataclass(frozen=True)
class PixelGrid:
    """A grid of pixels centred on the origin.

    Args:
        rows: number of rows.
        columns: number of columns.
        height: distance between rows.
        width: distance between columns.
    """

    rows: int
    columns: int
    height: float
    width: float

    @property
    def sides(self) -> tuple[float, float]:
        """Height and width of the whole image."""
        return self.rows * self.height, self.columns * self.width

    @property
    def axes(self) -> tuple[np.ndarray, np.ndarray]:
        """Places x of the columns and y of the rows, float64."""
        x = (np.arange(self.columns) - (self.columns - 1) / 2) * self.width
        y = ((self.rows - 1) / 2 - np.arange(self.rows)) * self.height
        return x, y

    @property
    def diagonal(self) -> float:
        """Diameter of the circle around the image."""
        return math.hypot(*self.sides)

    def centres(self) -> tuple[np.ndarray, np.ndarray]:
        """Places (x, y) of the pixels' centres, C order, float64 `(rows * columns,)` each."""
        x, y = self.axes
        return np.tile(x, self.rows), np.repeat(y, self.columns)


def pixel_grid(space: SpaceOrShape, pixel_size: PixelSize | None = None) -> PixelGrid:
    """The pixels of an image.

    Args:
        space: Space of the image, or its event shape `(channel, rows, columns)`.
        pixel_size: side of a pixel, or (height, width). Default: the spacing of the Space's coordinates; for a bare
            shape, or dimensions without coordinate, 2 / (pixels along the longer side), so that the image is 2 wide:
            the square [-1, 1]^2 on which phantoms are drawn.

    Raises:
        ValueError: an event that is no image or has no-data cells, coordinates that are not evenly spaced, or a size
            that is not positive.
    """
    _, rows, columns = image_shape(space)
    if pixel_size is None:
        height, width = _spacing(space) or (2.0 / max(rows, columns),) * 2
    else:
        height, width = (pixel_size, pixel_size) if isinstance(pixel_size, int | float) else pixel_size
    if not (0 < height < math.inf and 0 < width < math.inf):
        raise ValueError(f"pixel_size={pixel_size}; expected a positive length, or (height, width)")
    return PixelGrid(rows, columns, float(height), float(width))


def view_angles(views: int, arc: float, first: float) -> np.ndarray:
    """Angles of evenly spaced views in radians, first + arc v / views, float64 `(views,)`.

    Args:
        views: number of views.
        arc: angle that they cover, degrees; the end is left out, as it would repeat a view of the full circle.
        first: angle of the first view, degrees.

    Raises:
        ValueError: no view, or an arc of 0 or of more than 360 degrees.
    """
    if views < 1:
        raise ValueError(f"views={views}; expected at least 1")
    if not (0 < abs(arc) <= 360 and math.isfinite(first)):
        raise ValueError(f"arc={arc}, first={first}; expected an arc from -360 to 360 degrees, not 0")
    return np.deg2rad(first + arc * np.arange(views) / views)


def detector_cells(extent: float, detectors: int | None, spacing: float) -> np.ndarray:
    """Places of the cells of a detector, centred on 0, float64 `(detectors,)`.

    Args:
        extent: length to cover where no number is given.
        detectors: number of cells, or None for as many as cover the extent.
        spacing: distance between them.

    Raises:
        ValueError: no cell, or a spacing that is not positive.
    """
    if not 0 < spacing < math.inf or (detectors is not None and detectors < 1):
        raise ValueError(f"detectors={detectors}, spacing={spacing}; expected at least 1 cell and a positive spacing")
    if detectors is None:
        # A hair too much from round-off adds no cell.
        detectors = max(1, math.ceil(extent / spacing - 1e-9))
    return (np.arange(detectors) - (detectors - 1) / 2) * spacing


def _spacing(space: SpaceOrShape) -> tuple[float, float] | None:
    """Height and width of a pixel by the coordinates; None if they only count cells."""
    if not isinstance(space, Space) or any(space.coords[dim].counted for dim in space.grid):
        return None
    sizes = []
    for dim in space.grid:
        values = space.coords[dim].numbers
        steps = np.diff(values)
        if steps.size == 0:
            return None
        # Float32 files hold coordinates that are even to a thousandth of a pixel only.
        if not np.allclose(steps, steps.mean(), rtol=2e-3):
            raise ValueError(f"the coordinate {dim!r} is not evenly spaced; interpolate the image, or pass pixel_size")
        sizes.append(float(abs(values[-1] - values[0])) / steps.size)
    return sizes[0], sizes[1]
