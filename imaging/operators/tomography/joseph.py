"""The matrix of line integrals by Joseph's method.

    integral of the image along a line  ~  sum over steps of  h [ (1 - w) x_low + w x_high ]

A ray steps along the axis to which it is closer, one row or column of pixels at a time. At each step it reads the
image by linear interpolation between the two pixels beside it across that axis (0 outside the image), and h is the
length of the step, in the unit of the pixel size. The error is of second order in the pixel for a smooth image.

References:
    Joseph (1982), An improved algorithm for reprojecting rays through pixel images,
    https://doi.org/10.1109/TMI.1982.4307572
    Differs from the paper: the weights are kept as a sparse matrix, so that the adjoint is its exact transpose.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from imaging.operators.tomography.geometry import Lines, PixelGrid

_CHUNK = 2**20
"""Most ray steps that are worked on at once: bounds the memory of the construction to some ten MB."""


def joseph_matrix(lines: Lines, grid: PixelGrid) -> Any:
    """The matrix of line integrals, `(number of lines, rows * columns)`, SciPy compressed rows, float64.

    Args:
        lines: any shape; C order gives the rows of the matrix.
        grid: the pixels; C order gives the columns.
    """
    from scipy import sparse

    theta, offset = lines.theta.reshape(-1), lines.offset.reshape(-1)
    count = max(1, _CHUNK // max(grid.rows, grid.columns))
    parts = [_rows(theta[k : k + count], offset[k : k + count], grid) for k in range(0, theta.size, count)]
    return sparse.vstack(parts, format="csr")


def _rows(theta: np.ndarray, offset: np.ndarray, grid: PixelGrid) -> Any:
    """The matrix rows of some lines."""
    from scipy import sparse

    cosine, sine = np.cos(theta), np.sin(theta)
    # A line runs along (-sin, cos). In units of pixels it is closer to the x axis when this holds.
    level = np.abs(sine) * grid.height >= np.abs(cosine) * grid.width
    x, y = grid.axes
    flat, steep = np.flatnonzero(level), np.flatnonzero(~level)
    height = (offset[flat, None] - x * cosine[flat, None]) / sine[flat, None]
    across = (grid.rows - 1) / 2 - height / grid.height
    first = _entries(flat, across, grid.rows, grid.width / np.abs(sine[flat]))
    place = (offset[steep, None] - y * sine[steep, None]) / cosine[steep, None]
    across = place / grid.width + (grid.columns - 1) / 2
    second = _entries(steep, across, grid.columns, grid.height / np.abs(cosine[steep]))

    # (ray, step, pixel across the step): columns are the steps of level rays, rows those of steep ones.
    ray = np.concatenate([first[0], second[0]])
    pixel = np.concatenate([first[2] * grid.columns + first[1], second[1] * grid.columns + second[2]])
    weight = np.concatenate([first[3], second[3]])
    return sparse.csr_matrix((weight, (ray, pixel)), shape=(theta.size, grid.rows * grid.columns))


def _entries(rays: np.ndarray, across: np.ndarray, size: int, step: np.ndarray) -> tuple[np.ndarray, ...]:
    """Ray, step, pixel and weight of the two neighbours at each step, those within the image only."""
    low = np.floor(across)
    high_weight = across - low
    found: list[tuple[np.ndarray, ...]] = []
    for pixel, weight in ((low, 1 - high_weight), (low + 1, high_weight)):
        ray, place = np.nonzero((pixel >= 0) & (pixel < size) & (weight > 0))
        found.append((rays[ray], place, pixel[ray, place].astype(np.int64), weight[ray, place] * step[ray]))
    return tuple(np.concatenate(columns) for columns in zip(*found, strict=True))
