"""Which points of k-space a scan samples: lines or points, evenly, by a Gaussian law, or as a Poisson disc.

A mask is boolean in the centred convention: the zero frequency stands at index n // 2. A Cartesian scan reads whole
lines, given as `(columns,)`; a scan with two phase-encoding directions reads points, `(rows, columns)`. Every mask
holds a fully sampled centre and, with it, exactly round(n / acceleration) lines or points.

References:
    Zbontar et al. (2018), fastMRI: an open dataset and benchmarks for accelerated MRI,
    https://arxiv.org/abs/1811.08839 (centre fractions)
    Lustig, Donoho, Pauly (2007), Sparse MRI, https://doi.org/10.1002/mrm.21391 (variable density)
    Bridson (2007), Fast Poisson disk sampling in arbitrary dimensions, https://doi.org/10.1145/1278780.1278807
    Differs: candidates are the points of the grid in a random order, and the number of points is exact.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from dynamics.random import Streams, uniform


def default_centre(acceleration: float) -> float:
    """The usual share of the centre: 8 % up to an acceleration of 6, 4 % beyond (fastMRI: 8 % at 4, 4 % at 8)."""
    return 0.08 if acceleration <= 6 else 0.04


def uniform_lines(
    columns: int, acceleration: float = 4.0, *, centre_fraction: float | None = None, seed: int = 0
) -> Tensor:
    """Evenly spaced lines around the centre, `(columns,)`; the seed shifts them.

    Spacings outside the centre differ by at most one line, so that the number of lines is exact.

    Args:
        columns: number of lines of the full scan.
        acceleration: lines of the full scan per line measured.
        centre_fraction: share of the lines that is fully sampled in the centre (None: `default_centre`).
        seed: seed of the shift.

    Raises:
        ValueError: an acceleration below 1, a fraction out of [0, 1], or a centre larger than the whole scan.
    """
    mask = _centre((columns,), acceleration, centre_fraction)
    rest = torch.nonzero(~mask)[:, 0]
    missing = _missing(mask, acceleration)
    if missing:
        shift = float(_draws(seed, 1)[0])
        chosen = ((torch.arange(missing, dtype=torch.float64) + shift) * (len(rest) / missing)).long()
        mask[rest[chosen.clamp_max(len(rest) - 1)]] = True
    return mask


def gaussian_lines(
    columns: int, acceleration: float = 4.0, *, centre_fraction: float | None = None, std: float = 0.2, seed: int = 0
) -> Tensor:
    """Random lines, denser towards the centre, `(columns,)`.

    Args:
        columns: number of lines of the full scan.
        acceleration: lines of the full scan per line measured.
        centre_fraction: share of the lines that is fully sampled in the centre (None: `default_centre`).
        std: standard deviation of the density, as a share of `columns` (0.2, a choice of this package).
        seed: seed of the lines.

    Raises:
        ValueError: as `uniform_lines`, or a standard deviation that is not positive.
    """
    return _weighted((columns,), acceleration, centre_fraction, std, seed)


def gaussian_points(
    rows: int,
    columns: int,
    acceleration: float = 4.0,
    *,
    centre_fraction: float | None = None,
    std: float = 0.2,
    seed: int = 0,
) -> Tensor:
    """Random points, denser towards the centre, `(rows, columns)`.

    Args:
        rows: points of the full scan along the first direction.
        columns: points along the second.
        acceleration: points of the full scan per point measured.
        centre_fraction: share of each side of the fully sampled box in the centre (None: `default_centre`).
        std: standard deviation of the density, as a share of each side (0.2, a choice of this package).
        seed: seed of the points.

    Raises:
        ValueError: as `gaussian_lines`.
    """
    return _weighted((rows, columns), acceleration, centre_fraction, std, seed)


def poisson_disc(
    rows: int,
    columns: int,
    acceleration: float = 4.0,
    *,
    centre_fraction: float | None = None,
    slope: float = 1.0,
    seed: int = 0,
) -> Tensor:
    """Random points that keep their distance from each other, `(rows, columns)`.

    Outside the centre a point keeps all later ones at least r away, r = r_0 (1 + slope |k|), with |k| = 1 in the
    middle of each side. The largest r_0 that leaves room for all points is found by bisection.

    Args:
        rows: points of the full scan along the first direction.
        columns: points along the second.
        acceleration: points of the full scan per point measured.
        centre_fraction: share of each side of the fully sampled box in the centre (None: `default_centre`).
        slope: how much sparser the edge is than the centre (0: the same everywhere).
        seed: seed of the points.

    Raises:
        ValueError: as `uniform_lines`, or a negative slope.
    """
    if slope < 0:
        raise ValueError(f"slope={slope}; expected 0 (even density) or more")
    centre = _centre((rows, columns), acceleration, centre_fraction)
    missing = _missing(centre, acceleration)
    order = torch.argsort(_draws(seed, rows * columns))
    order = order[~centre.flatten()[order]]
    growth = 1 + slope * _radius((rows, columns))
    # Discs of at most one cell block nothing but their own point, so the smallest r_0 always leaves room.
    low, high = 1 / float(growth.max()), math.sqrt(rows * columns)
    best = _throw(order, low * growth, missing)
    for _ in range(12):
        middle = math.sqrt(low * high)
        points = _throw(order, middle * growth, missing)
        low, high = (middle, high) if len(points) == missing else (low, middle)
        best = points if len(points) == missing else best
    mask = centre.flatten()
    mask[torch.tensor(best, dtype=torch.int64)] = True
    return mask.reshape(rows, columns)


def achieved_acceleration(mask: Tensor) -> float:
    """Points of the full scan per point measured."""
    return mask.numel() / int(mask.sum())


def _throw(order: Tensor, radius: Tensor, wanted: int) -> list[int]:
    """Points in the given order that no earlier point blocks, at most `wanted`; flat indices."""
    reach = radius.numpy()
    rows, columns = reach.shape
    free = np.ones((rows, columns), dtype=bool)
    down, across = np.arange(rows)[:, None], np.arange(columns)[None]
    points: list[int] = []
    for index in order.tolist():
        if len(points) == wanted:
            break
        row, column = divmod(index, columns)
        if not free[row, column]:
            continue
        points.append(index)
        r = float(reach[row, column])
        span = math.ceil(r)
        box = np.s_[max(0, row - span) : row + span + 1, max(0, column - span) : column + span + 1]
        free[box] &= (down[box[0]] - row) ** 2 + (across[:, box[1]] - column) ** 2 >= r * r
    return points


def _weighted(
    shape: tuple[int, ...], acceleration: float, centre_fraction: float | None, std: float, seed: int
) -> Tensor:
    """The centre and a draw without replacement from the rest with a Gaussian density."""
    if not std > 0:
        raise ValueError(f"std={std}; expected a positive share of the side")
    mask = _centre(shape, acceleration, centre_fraction)
    log_density = -0.5 * (_radius(shape, relative=True) / std) ** 2
    # The largest of log p + Gumbel noise are a sample without replacement.
    keys = log_density.flatten() - torch.log(-torch.log(_draws(seed, mask.numel())))
    keys[mask.flatten()] = -torch.inf
    flat = mask.flatten()
    flat[torch.topk(keys, _missing(mask, acceleration)).indices] = True
    return flat.reshape(shape)


def _centre(shape: tuple[int, ...], acceleration: float, centre_fraction: float | None) -> Tensor:
    """The mask with the centre alone."""
    fraction = default_centre(acceleration) if centre_fraction is None else centre_fraction
    if acceleration < 1 or not 0 <= fraction <= 1:
        raise ValueError(
            f"acceleration={acceleration}, centre_fraction={fraction}: expected at least 1, and a share from 0 to 1"
        )
    mask = torch.zeros(shape, dtype=torch.bool)
    box = tuple(_middle(side, round(side * fraction)) for side in shape)
    mask[box] = True
    return mask


def _middle(side: int, count: int) -> slice:
    first = side // 2 - count // 2
    return slice(first, first + count)


def _missing(mask: Tensor, acceleration: float) -> int:
    """How many lines or points are still to choose."""
    target, there = round(mask.numel() / acceleration), int(mask.sum())
    if target < max(there, 1):
        raise ValueError(
            f"acceleration {acceleration} leaves {target} of {mask.numel()} lines or points, and the centre alone has "
            f"{there}: take a smaller centre_fraction or acceleration"
        )
    return target - there


def _radius(shape: tuple[int, ...], *, relative: bool = False) -> Tensor:
    """Distance from the zero frequency, float64: 1 in the middle of a side, or (relative) in shares of the sides."""
    total = torch.zeros(shape, dtype=torch.float64)
    for axis, side in enumerate(shape):
        steps = (torch.arange(side, dtype=torch.float64) - side // 2) / (side if relative else side / 2)
        total = total + steps.reshape(-1, *(1,) * (len(shape) - axis - 1)) ** 2
    return total.sqrt()


def _draws(seed: int, count: int) -> Tensor:
    return uniform(Streams(seed), (1, 1, count), dtype=torch.float64)[0, 0]
