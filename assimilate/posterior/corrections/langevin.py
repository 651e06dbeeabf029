r"""Langevin draws of a clean state around a centre, for any likelihood.

    target   p(x) ~ p(y | x) N(x; c, V),     V = diag(variance)
    steps    w <- w + h (V^1/2 grad log p(y | x) - w) + sqrt(2 h) z,     x = c + V^1/2 w,     h = step / (1 + L)

with `L` the stiffness of the data term in w, so that `step` is dimensionless and the stiffest direction relaxes in
about 1 / step steps. The walk starts from a draw of N(c, V): directions that the data do not see are right from the
start, and only what the data change has to relax. Unadjusted: the variance of the stiffest directions comes out larger
by 1 / (1 - step / 2), and directions of far smaller singular values are reached by more steps only.

With a `rate` the walk is a short one instead: it starts at the centre and each step injects at most noise of variance
`2 rate`, so that it ends before it has spread over N(c, V) where V is wide. That is how the published code of DAPS
draws: less variance than the target, and a picture that stays near the centre where the data say nothing.

References:
    Roberts, Tweedie (1996), Exponential convergence of Langevin distributions and their discrete approximations,
    https://doi.org/10.2307/3318418
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from assimilate.posterior.corrections.data_term import slope, steady, stiffness
from dynamics.random import Rng, normal
from observations.likelihood import Likelihood


def langevin(
    centre: Tensor,
    variance: Tensor,
    likelihood: Likelihood,
    y: Tensor,
    *,
    steps: int,
    step: float,
    rng: Rng,
    rate: float | None = None,
) -> Tensor:
    """A draw of `p(y | x) N(x; centre, variance)` for every row, `(*b, *event)`.

    Args:
        centre: `(*b, *event)`.
        variance: broadcastable against `centre`; it may differ by channel.
        likelihood: operator and any noise.
        y: observed values; NaN = not observed.
        steps: Langevin steps, one gradient of the data term each.
        step: length, in units of the stiffest direction's time; below 2, of order 0.1.
        rng: random numbers, `steps + 1` draws.
        rate: largest step, units of the state squared; the walk then starts at the centre.
    """
    shape, std = tuple(centre.shape), variance.sqrt()

    def noise() -> Tensor:
        return normal(rng, shape, dtype=centre.dtype, device=centre.device)

    w = noise() if rate is None else torch.zeros_like(centre)
    stiff = stiffness(likelihood, y, centre + std * w, std)
    for count in range(steps):
        if count % 10 == 9 and not steady(likelihood):
            # A walk that comes to steeper ground must shorten its steps; it never lengthens them again.
            stiff = torch.maximum(stiff, stiffness(likelihood, y, centre + std * w, std, iterations=10))
        h = step / (1 + stiff)
        if rate is not None:
            h = torch.minimum(h, rate / variance)
        drift = std * slope(likelihood, y, centre + std * w) - w
        w = w + h * drift + math.sqrt(2.0) * torch.sqrt(h) * noise()
    return centre + std * w
