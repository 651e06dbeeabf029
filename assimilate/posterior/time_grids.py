"""Time grids for samplers: equal steps in time, or in a power of the noise-to-signal ratio.

References:
    Karras, Aittala, Aila, Laine (2022), Elucidating the design space of diffusion-based generative models,
    https://arxiv.org/abs/2206.00364
"""

from __future__ import annotations

import torch
from torch import Tensor

from assimilate.posterior.paths import Path


def uniform_times(steps: int, *, first: float = 0.0, last: float = 1.0, dtype: torch.dtype = torch.float32) -> Tensor:
    """`steps + 1` equally spaced times."""
    return torch.linspace(first, last, steps + 1, dtype=torch.float64).to(dtype)


def ratio_times(
    path: Path,
    steps: int,
    *,
    largest: float,
    smallest: float,
    start: bool = True,
    exponent: float = 7.0,
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """Times at which `rho` runs from `largest` to `smallest` (Karras et al.'s spacing), then t = 1.

    Args:
        path: gives the time of a ratio.
        steps: predictor calls; the grid has `steps + 1` times.
        largest: first ratio after the start, for a path of unit scale.
        smallest: last ratio before t = 1: the detail below it is left as the clean mean has it.
        start: whether the grid begins at t = 0 (needed where x is the start of an interpolant).
        exponent: 7 in the paper; large values space the logarithm equally.
        dtype: of the result.
    """
    inner = steps - 1 if start else steps
    if inner < 1 or not largest > smallest > 0:
        raise ValueError(f"steps {steps}, largest {largest}, smallest {smallest}: expected at least "
                         f"{2 if start else 1} steps and largest > smallest > 0")
    grid = torch.linspace(largest ** (1 / exponent), smallest ** (1 / exponent), inner, dtype=torch.float64)
    times = [path.time(float(r) ** exponent) for r in grid]
    return torch.tensor([*([0.0] if start else []), *times, 1.0], dtype=torch.float64).to(dtype)
