r"""Receive coils: simulated sensitivity maps, and the usual combination of coil images.

    S_c(z) = a(z) / (z - p_c),    sum_c |S_c|^2 = 1,    z = x + i y in the square [-1, 1]^2

The maps are those of thin wires along the bore at places p_c, evenly on a circle: smooth, complex, stronger near their
wire, and each the same as its neighbour but for a turn. The common factor a > 0 makes the squares sum to one, so that
the operator's norm is at most 1. Maps estimated from data (ESPIRiT) are used in the same place.

References:
    Roemer et al. (1990), The NMR phased array, https://doi.org/10.1002/mrm.1910160203
    Pruessmann et al. (1999), SENSE: sensitivity encoding for fast MRI, https://pubmed.ncbi.nlm.nih.gov/10542355/
    Uecker et al. (2014), ESPIRiT, https://doi.org/10.1002/mrm.24751
"""

from __future__ import annotations

import math

import torch
from torch import Tensor


def ring_coils(rows: int, columns: int, coils: int = 8, *, distance: float = 1.6) -> Tensor:
    """Sensitivity maps of coils on a ring, complex128 `(coils, rows, columns)`.

    Args:
        rows: pixels along the first side of the image.
        columns: pixels along the second.
        coils: number of coils.
        distance: radius of the ring in half sides; above sqrt(2), so that no coil lies in the image.

    Raises:
        ValueError: no coil, or a ring that cuts the image.
    """
    if coils < 1 or not distance > math.sqrt(2):
        raise ValueError(f"coils={coils}, distance={distance}: expected at least one, and more than 1.42 half sides")
    down, across = ((torch.arange(side, dtype=torch.float64) + 0.5) / side * 2 - 1 for side in (rows, columns))
    places = torch.complex(*torch.broadcast_tensors(across[None, :], down[:, None]))
    angles = 2 * math.pi * torch.arange(coils, dtype=torch.float64) / coils
    maps = 1 / (places - torch.polar(torch.full_like(angles, distance), angles)[:, None, None])
    return maps / root_sum_of_squares(maps)


def root_sum_of_squares(images: Tensor, dim: int = -3) -> Tensor:
    """sqrt(sum |image_c|^2) over the coils: the magnitude that needs no maps, and is biased by noise.

    Args:
        images: complex or real `(*b, coils, rows, columns)`.
        dim: the dimension of the coils.
    """
    return torch.linalg.vector_norm(images, dim=dim)
