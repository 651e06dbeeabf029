r"""FISTA: accelerated proximal gradient steps for `min_x f(x) + g(x)`, f quadratic, g with a proximal step.

    x_k = prox_{g/L}( z_k - grad f(z_k) / L ),     z_{k+1} = x_k + (t_k - 1) / t_{k+1} (x_k - x_{k-1})

`L` bounds the curvature of f. Momentum that points uphill is dropped, sample by sample, which turns the ripples of the
plain method into a linear rate near the minimiser.

References:
    Beck, Teboulle (2009), A fast iterative shrinkage-thresholding algorithm for linear inverse problems,
    https://doi.org/10.1137/080716542
    O'Donoghue, Candes (2015), Adaptive restart for accelerated gradient schemes, https://arxiv.org/abs/1204.3982
    Differs from the first: restarts.
"""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from imaging.baselines.data_term import DataTerm


class Proximal(Protocol):
    """`argmin_x 1/2 |x - v|^2 + step g(x)`, `step` `(*b, 1, ...)`; with what it remembers from call to call."""

    def __call__(self, v: Tensor, step: Tensor, memory: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """The image and what to remember."""
        ...


def proximal_gradient(data: DataTerm, proximal: Proximal, start: Tensor, *, iterations: int) -> Tensor:
    """The last iterate.

    Args:
        data: f.
        proximal: of g.
        start: first image, `(*b, *event)`.
        iterations: gradient steps; their number is fixed, so that no sample waits for another.
    """
    step = 1 / data.curvature
    events = tuple(range(-len(data.operator.event_shape), 0))
    memory: Tensor | None = None
    x = ahead = start
    t = torch.ones_like(start.sum(events, keepdim=True))
    for _ in range(iterations):
        moved, memory = proximal(ahead - step * data.gradient(ahead), step, memory)
        uphill = ((ahead - moved) * (moved - x)).sum(events, keepdim=True) > 0
        t = torch.where(uphill, 1.0, t)
        after = (1 + torch.sqrt(1 + 4 * t * t)) / 2
        ahead, x, t = moved + (t - 1) / after * (moved - x), moved, after
    return x
