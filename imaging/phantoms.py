r"""Random-ellipse phantoms, flat and textured: the pictures that the shipped priors have learned.

    x(r) = clip( sum_k a_k E_k(r) [ 1 + texture_k(r) ] , 0, 1 )

`E_k` is the indicator of an ellipse, softened over one pixel; the first is the body, which holds the others. Flat
phantoms have no texture: piecewise constant images are total variation's own class. Textures are Gaussian random fields
with spectrum `|k|^-slope`, stretched along a random direction.

Shapes: `(count, 1, size, size)`. Values are relative attenuations from 0 to 1 (units "1").
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from dynamics.random import Rng, normal, uniform

Style = Literal["mixed", "flat", "textured"]


@dataclass(frozen=True)
class Phantoms:
    """A law of pictures.

    Args:
        size: pixels along each side.
        style: "flat", "textured", or "mixed": half of each.
        ellipses: most ellipses within the body.

    Raises:
        ValueError: an unknown style or a size below 8.
    """

    size: int = 64
    style: Style = "mixed"
    ellipses: int = 10

    def __post_init__(self) -> None:
        """Check the settings."""
        if self.style not in ("mixed", "flat", "textured") or self.size < 8:
            raise ValueError(f"{self!r}: expected style 'mixed', 'flat' or 'textured' and a size of at least 8")

    def __call__(self, count: int, rng: Rng, *, device: torch.device | str = "cpu") -> Tensor:
        """Draw phantoms, `(count, 1, size, size)`, float32 in [0, 1].

        Args:
            count: how many.
            rng: a generator; with `Streams` its rows must be `(count, ...)`-shaped draws, so a generator is usual.
            device: where they live.
        """

        def between(low: float, high: float, *shape: int) -> Tensor:
            return low + (high - low) * uniform(rng, (count, *shape), device=device)

        inner = self.ellipses
        # The body, then what lies in it; how many of those exist differs from picture to picture.
        angle = between(0.0, math.pi, inner + 1)
        radius, direction = between(0.0, 0.62, inner) ** 0.8, between(0.0, 2 * math.pi, inner)
        axes = torch.cat([between(0.55, 0.95, 1, 2), 0.04 + between(0.0, 0.66, inner, 2) ** 1.5], 1)
        centre = torch.cat(
            [between(-0.08, 0.08, 1, 2), torch.stack([radius * direction.cos(), radius * direction.sin()], -1)], 1
        )
        values = torch.cat([between(0.15, 0.6, 1), between(-0.45, 0.55, inner)], 1)
        some = between(3.0, inner + 1.0, 1).floor()
        values[:, 1:] *= torch.arange(inner, device=device) < some
        masks = self._ellipses(centre, axes, angle)
        body = masks[:, :1]
        masks = torch.cat([body, masks[:, 1:] * body], 1)
        picture = (values[:, :, None, None] * masks).sum(1, keepdim=True)
        if self.style != "flat":
            amplitude = between(0.04, 0.22, 2) * (1.0 if self.style == "textured" else (between(0, 1, 1) < 0.5))
            half = masks[:, 1 : 1 + inner // 2].amax(1, keepdim=True)
            texture = self._textures(count, rng, device)
            weight = torch.cat([body * (1 - half), half], 1) * amplitude[:, :, None, None]
            picture = picture + (texture * weight).sum(1, keepdim=True)
        return picture.clamp(0.0, 1.0)

    def _grid(self, device: torch.device) -> tuple[Tensor, Tensor]:
        line = (torch.arange(self.size, device=device) + 0.5) / self.size * 2 - 1
        return line[:, None], line[None, :]

    def _ellipses(self, centre: Tensor, axes: Tensor, angle: Tensor) -> Tensor:
        """Soft indicators `(count, k, size, size)`; the edge is about one pixel wide."""
        rows, columns = self._grid(centre.device)
        down = rows - centre[:, :, 0, None, None]
        across = columns - centre[:, :, 1, None, None]
        cosine, sine = angle.cos()[:, :, None, None], angle.sin()[:, :, None, None]
        first, second = axes[:, :, 0, None, None], axes[:, :, 1, None, None]
        u, v = (cosine * down + sine * across) / first, (cosine * across - sine * down) / second
        distance = (torch.sqrt(u * u + v * v) - 1) * torch.minimum(first, second)
        return (0.5 - distance * self.size / 2).clamp(0.0, 1.0)

    def _textures(self, count: int, rng: Rng, device: torch.device | str) -> Tensor:
        """Two unit-variance random fields a picture, `(count, 2, size, size)`."""
        white = normal(rng, (count, 2, self.size, self.size), device=device)
        slope, turn, stretch = (
            low + (high - low) * uniform(rng, (count, 2), device=device)[:, :, None, None]
            for low, high in ((0.8, 2.6), (0.0, math.pi), (0.0, 1.2))
        )
        vertical = torch.fft.fftfreq(self.size, device=device)[:, None] * self.size
        horizontal = torch.fft.rfftfreq(self.size, device=device)[None, :] * self.size
        along = turn.cos() * vertical + turn.sin() * horizontal
        across = turn.cos() * horizontal - turn.sin() * vertical
        length = torch.sqrt((along * torch.exp(stretch)) ** 2 + across**2 + 4.0)
        field = torch.fft.irfft2(torch.fft.rfft2(white) * length**-slope, s=(self.size, self.size))
        return field / field.std((-2, -1), keepdim=True).clamp_min(1e-6)


def volume(slices: int, size: int, rng: torch.Generator, *, style: Style = "flat", ellipsoids: int = 12) -> Tensor:
    """A volume of ellipsoids, `(slices, size, size)` in [0, 1]: its slices change slowly, as a body's do.

    Args:
        slices: along the first axis, which spans as much of the body as `slices / size` of its width.
        size: pixels along the sides of a slice.
        rng: random numbers.
        style: "flat" or "textured" ("mixed" counts as textured).
        ellipsoids: within the body.
    """
    depth = (torch.arange(slices) + 0.5) / size * 2 - slices / size
    line = (torch.arange(size) + 0.5) / size * 2 - 1
    places = torch.stack(torch.meshgrid(depth, line, line, indexing="ij"), -1)

    def indicator(centre: Tensor, axes: Tensor, frame: Tensor) -> Tensor:
        local = (places - centre) @ frame / axes
        return (0.5 - (local.norm(dim=-1) - 1) * axes.min() * size / 2).clamp(0, 1)

    body = indicator(torch.zeros(3), torch.tensor([1.5, 0.85, 0.7]), torch.eye(3))
    picture = 0.35 * body
    for _ in range(ellipsoids):
        frame = torch.linalg.qr(torch.randn(3, 3, generator=rng))[0]
        centre = (torch.rand(3, generator=rng) - 0.5) * torch.tensor([2.0 * slices / size, 1.0, 0.9])
        axes = 0.08 + 0.3 * torch.rand(3, generator=rng)
        value = 0.9 * float(torch.rand(1, generator=rng)) - 0.35
        picture = picture + value * body * indicator(centre, axes, frame)
    if style != "flat":
        white = torch.randn(slices, size, size, generator=rng)
        waves = [torch.fft.fftfreq(n)[(slice(None), *(None,) * (2 - k))] * n for k, n in enumerate(white.shape)]
        length = torch.sqrt(sum((w * size / n) ** 2 for w, n in zip(waves, white.shape, strict=True)) + 4.0)
        texture = torch.fft.ifftn(torch.fft.fftn(white) * length**-1.5).real
        picture = picture + 0.08 * body * texture / texture.std()
    return picture.clamp(0.0, 1.0)
