r"""Total variation: finite differences of images, their adjoint, shrinkage, and the proximal step.

    D x = (x[i+1, j] - x[i, j],  x[i, j+1] - x[i, j])      0 across the last row and column
    TV(x) = sum |(D x)_ij|_2   (isotropic)   or   sum |(D x)_ij|_1   (anisotropic)
    prox(v) = argmin_x  1/2 |x - v|^2 + w TV(x)   within bounds

The proximal step climbs the dual, `max over |p| <= w` of the value at `x = clip(v - D^T p)`, by accelerated projected
gradients; `||D||^2 <= 8`. Images are `(*b, channel, rows, columns)`, differences `(*b, channel, 2, rows, columns)`.
Channels count each alone, or together (`coupled`): then real and imaginary parts, or colours, share their edges.

References:
    Rudin, Osher, Fatemi (1992), Nonlinear total variation based noise removal algorithms,
    https://doi.org/10.1016/0167-2789(92)90242-F
    Chambolle (2004), An algorithm for total variation minimization and applications,
    https://doi.org/10.1023/B:JMIV.0000011325.36760.1e
    Beck, Teboulle (2009), Fast gradient-based algorithms for constrained total variation image denoising and
    deblurring problems, https://doi.org/10.1109/TIP.2009.2028250
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

Bounds = tuple[float, float] | None


def differences(x: Tensor) -> Tensor:
    """`D x`, `(*b, channel, rows, columns) -> (*b, channel, 2, rows, columns)`."""
    down, across = torch.zeros_like(x), torch.zeros_like(x)
    down[..., :-1, :] = x[..., 1:, :] - x[..., :-1, :]
    across[..., :-1] = x[..., 1:] - x[..., :-1]
    return torch.stack([down, across], -3)


def differences_adjoint(p: Tensor) -> Tensor:
    """`D^T p`, `(*b, channel, 2, rows, columns) -> (*b, channel, rows, columns)`."""
    down, across = p[..., 0, :-1, :], p[..., 1, :, :-1]
    x = p.new_zeros(*p.shape[:-3], *p.shape[-2:])
    x[..., 1:, :] += down
    x[..., :-1, :] -= down
    x[..., 1:] += across
    x[..., :-1] -= across
    return x


@dataclass(frozen=True)
class Variation:
    """Which total variation.

    Args:
        isotropic: Euclidean length of the gradient; else the sum of its two parts.
        coupled: the length is taken over the channels too.
    """

    isotropic: bool = True
    coupled: bool = False

    def length(self, p: Tensor) -> Tensor:
        """Lengths of differences, broadcastable against them."""
        over = tuple(dim for dim, wanted in ((-3, self.isotropic), (-4, self.coupled)) if wanted)
        return p.square().sum(over, keepdim=True).sqrt() if over else p.abs()

    def __call__(self, x: Tensor) -> Tensor:
        """`TV(x)` in the units of the image, `(*b, channel, rows, columns) -> (*b,)`."""
        return self.length(differences(x)).sum((-4, -3, -2, -1))

    def shrink(self, p: Tensor, threshold: float) -> Tensor:
        """`argmin_q 1/2 |q - p|^2 + threshold |q|`: lengths shrink by `threshold`, short ones to 0."""
        return p - self.confine(p, threshold)

    def confine(self, p: Tensor, radius: Tensor | float) -> Tensor:
        """The nearest differences of length at most `radius`."""
        length = self.length(p)
        return torch.where(length > radius, p * (radius / length.clamp_min(torch.finfo(p.dtype).tiny)), p)

    def proximal(
        self, v: Tensor, weight: Tensor | float, *, iterations: int, bounds: Bounds = None, dual: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """The proximal step and its dual variable.

        Args:
            v: `(*b, channel, rows, columns)`.
            weight: w, in the units of the image, a number or `(*b, 1, 1, 1)`.
            iterations: accelerated projected gradient steps.
            bounds: range of the result; None = any.
            dual: p to start from, from an earlier call with the same weight; None = 0.

        Returns:
            The image, and p.
        """
        radius = weight.unsqueeze(-3) if isinstance(weight, Tensor) else weight
        low, high = bounds or (-math.inf, math.inf)
        p = torch.zeros_like(differences(v)) if dual is None else dual
        ahead, t = p, 1.0
        for _ in range(iterations):
            inside = (v - differences_adjoint(ahead)).clamp(low, high)
            moved = self.confine(ahead + differences(inside) / 8, radius)
            after = (1 + math.sqrt(1 + 4 * t * t)) / 2
            ahead, p, t = moved + (t - 1) / after * (moved - p), moved, after
        return (v - differences_adjoint(p)).clamp(low, high), p
