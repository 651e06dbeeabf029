"""Inpainting: some pixels of an image are seen, the others are not.

    y = x[mask]

All channels of a pixel are seen together. The operators are `observations.Mask`: the observed values are flat, the
singular values are 1, and `adjoint` puts values back in their place, with 0 elsewhere (`picture`: with NaN).

References:
    Chung et al. (2023), Diffusion posterior sampling, https://arxiv.org/abs/2209.14687 (random 30 to 70 % missing; a
    box of half the side, 1/16 of it away from the edge)
    Zhang et al. (2024), Improving diffusion inverse problem solving with decoupled noise annealing,
    https://arxiv.org/abs/2407.01521 (70 % missing)
"""

from __future__ import annotations

import torch
from torch import Tensor

from dynamics.random import Streams, uniform
from imaging.operators.images import image_shape
from observations.base import SpaceOrShape
from observations.sampling import Mask, random_mask


def random_inpainting(space: SpaceOrShape, missing: float = 0.7, seed: int = 0) -> Mask:
    """Pixels at random places are missing.

    Args:
        space: Space of the image, or `(channel, rows, columns)`.
        missing: share of the pixels that are not seen, 0 <= missing < 1 (default 0.7, as published with DAPS).
        seed: seed of the places; with one seed, what is seen of fewer pixels is part of what is seen of more.

    Returns:
        A `Mask`, obs `(channel * seen pixels,)`.

    Raises:
        ValueError: `missing` out of range, or `space` is no image.
    """
    image_shape(space, full=False)
    if not 0 <= missing < 1:
        raise ValueError(f"missing={missing}; expected a share from 0 to below 1")
    return random_mask(space, 1.0 - missing, seed)


def box_inpainting(
    space: SpaceOrShape,
    size: int | None = None,
    top: int | None = None,
    left: int | None = None,
    margin: int | None = None,
    seed: int = 0,
) -> Mask:
    """A square of pixels is missing.

    Args:
        space: Space of the image, or `(channel, rows, columns)`.
        size: side of the square in pixels (default: half the shorter side; published: 128 of 256).
        top: its first row (default: drawn).
        left: its first column (default: drawn).
        margin: least distance of a drawn square from the edge in pixels (default: 1/16 of the shorter side; published
            with DPS: 16 of 256).
        seed: seed of the place.

    Returns:
        A `Mask`, obs `(channel * seen pixels,)`.

    Raises:
        ValueError: the square does not fit, or nothing is left to see.
    """
    _, rows, columns = image_shape(space, full=False)
    shorter = min(rows, columns)
    side = shorter // 2 if size is None else size
    edge = shorter // 16 if margin is None else margin
    # Both numbers are always drawn, so that giving the row does not move the column.
    draw = uniform(Streams(seed), (1, 1, 2), dtype=torch.float64)[0, 0].tolist()
    corner = []
    for name, given, length, chance in (("top", top, rows, draw[0]), ("left", left, columns, draw[1])):
        last = length - side - edge
        if given is None and (edge < 0 or last < edge):
            raise ValueError(f"a square of {side} pixels with margin {edge} does not fit into {rows} x {columns}")
        start = edge + int(chance * (last - edge + 1)) if given is None else given
        if side < 1 or start < 0 or start + side > length:
            raise ValueError(f"size={side}, {name}={start}: the square does not fit into {rows} x {columns} pixels")
        corner.append(start)
    seen = torch.ones(rows, columns, dtype=torch.bool)
    seen[corner[0] : corner[0] + side, corner[1] : corner[1] + side] = False
    return Mask(space, seen)


def picture(operator: Mask, y: Tensor) -> Tensor:
    """Observed values as an image, NaN at the pixels that are not seen; `(*b, m)` -> `(*b, channel, rows, columns)`.

    Args:
        operator: what `random_inpainting` or `box_inpainting` made.
        y: observed values.
    """
    seen = operator.adjoint(torch.ones(operator.obs_shape, dtype=y.dtype, device=y.device)) > 0
    return operator.adjoint(y).masked_fill(~seen, torch.nan)
