r"""Blur kernels: point-spread functions `(rows, columns)` of sum 1, float64, in pixels.

    Gaussian:  k(r) ~ exp( -|r|^2 / (2 std^2) )
    motion:    k(r) = mean over time of the place of a camera that drifts, its heading a smooth random walk

The middle pixel `(rows // 2, columns // 2)` is the one that stays in place.

References:
    Chung et al. (2023), Diffusion posterior sampling, https://arxiv.org/abs/2209.14687 (61 x 61 pixels for images of
    256 x 256; standard deviation 3, motion of intensity 0.5)

Differs from the paper: the motion's law is our own, so a kernel of one intensity is like the published ones, not equal.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from dynamics.random import Rng, normal, uniform

_STEPS = 512
_PERSISTENCE = 0.99
_REACH = 0.4


def gaussian_kernel(size: int = 61, std: float = 3.0) -> Tensor:
    """A round Gaussian, `(size, size)`.

    Args:
        size: side in pixels, odd.
        std: standard deviation in pixels.

    Raises:
        ValueError: an even size, or a standard deviation that is not positive.
    """
    _check_size(size)
    if not std > 0:
        raise ValueError(f"std={std}; expected a positive number of pixels")
    line = torch.arange(size, dtype=torch.float64) - size // 2
    profile = torch.exp(-0.5 * (line / std) ** 2)
    profile = profile / profile.sum()
    return profile[:, None] * profile[None, :]


def motion_kernel(size: int = 61, intensity: float = 0.5, *, rng: Rng) -> Tensor:
    """The track of a moving camera, `(size, size)`.

    The heading turns by an Ornstein-Uhlenbeck process of standard deviation `intensity` times 180 degrees, and the
    speed varies likewise. The track has its mean in the middle pixel and reaches 0.4 sizes from it; every moment of it
    is shared among the four nearest pixels.

    Args:
        size: side in pixels, odd, at least 3.
        intensity: 0 is a straight line at even speed; 1 an erratic track.
        rng: a generator, or `Streams(seed)` (one row) for the same kernel on every machine.

    Raises:
        ValueError: an even size or one below 3, or a negative intensity.
    """
    _check_size(size)
    if size < 3 or not intensity >= 0:
        raise ValueError(f"size={size}, intensity={intensity}; expected a size of at least 3 and an intensity >= 0")
    first = 2 * math.pi * uniform(rng, (1, 1, 1), dtype=torch.float64)[0, 0]
    noise = normal(rng, (1, 1, 2, _STEPS), dtype=torch.float64)[0, 0].cpu()
    turn, pace = (_smooth(row) for row in noise)
    heading = first.cpu() + math.pi * intensity * turn
    speed = torch.exp(intensity * pace)
    track = torch.cumsum(speed * torch.stack([heading.sin(), heading.cos()]), -1)
    track = track - track.mean(-1, keepdim=True)
    track = track * (_REACH * size / track.norm(dim=0).max()) + size // 2
    corner = track.floor()
    part = track - corner
    kernel = torch.zeros(size * size, dtype=torch.float64)
    for down in (0, 1):
        for across in (0, 1):
            rows, columns = corner[0].long() + down, corner[1].long() + across
            weight = (part[0] if down else 1 - part[0]) * (part[1] if across else 1 - part[1])
            kernel.index_add_(0, rows * size + columns, weight)
    return kernel.reshape(size, size) / kernel.sum()


def _smooth(noise: Tensor) -> Tensor:
    """A stationary first-order autoregression of variance 1 that is driven by white noise `(steps,)`."""
    lag = torch.arange(noise.numel(), dtype=noise.dtype)
    memory = torch.where(lag[:, None] >= lag, _PERSISTENCE ** (lag[:, None] - lag).clamp_min(0), 0.0)
    drive = noise * math.sqrt(1 - _PERSISTENCE**2)
    drive[0] = noise[0]
    return memory @ drive


def _check_size(size: int) -> None:
    if size < 1 or size % 2 == 0:
        raise ValueError(f"size={size}; a kernel has an odd number of pixels a side, so that it has a middle one")
