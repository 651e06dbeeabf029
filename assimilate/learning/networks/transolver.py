r"""Transolver on a two-dimensional grid: attention among a few slices of the field instead of among its places.

A slice is a soft set of places in a similar state. With w_ij the weight of place i in slice j, softmax over j,

    z_j = sum_i w_ij v_i / sum_i w_ij        slices: weighted means over the places
    z'  = attention(z)                       among the slices
    v'_i = sum_j w_ij z'_j                   back to the places

so the cost grows with places times slices. A field that is constant comes back as the constant, the order of the places
does not matter, and neither does their number: the network runs on any grid.

    f = gelu(conv(x, context, position));  h = patches(f);  h <- h + project(slices(norm(h)));  h <- h + mlp(norm(h))
    result = conv(gelu(f + unpatch(h)))

Shapes: x (B, C, H, W), noise (B,) or None, context (B, C', H, W) or None, result (B, C_out, H, W).

References:
    Wu, Luo, Wang, Wang, Long (2024), Transolver: a fast transformer solver for PDEs on general geometries,
    https://arxiv.org/abs/2402.02366

Differs from the paper: places are patches of cells, with the cells' own features added again behind the layers;
positions are sines and cosines on a periodic grid; the temperature of the softmax is kept positive by an exponential
instead of a clamp; the result starts at zero.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from assimilate.learning.networks.fno import entering
from assimilate.learning.networks.noise_level import Modulation, NoiseLevel
from dynamics.settings import COUNT, check_settings, whole


@dataclass(frozen=True)
class TransolverSettings:
    """Architecture of a `Transolver`.

    Args:
        channels: channels of the state, C.
        outputs: channels of the result.
        context: channels of the conditioning fields; 0 for none.
        width: features of a place; a multiple of `heads`.
        layers: attention layers.
        heads: attention heads; each has slices of its own.
        slices: slices of each head.
        patch: cells along a side of a place.
        fine: features of a cell, before and after the layers.
        periodic: whether the grid is periodic; its sides must then be multiples of `patch`.
        noise_features: 1 when a noise level is given, 0 for a network that ignores it.
        embedding: width of the embedding of the noise level.

    Raises:
        ValueError: a size that is not positive, heads that do not divide the width, or more noise features.
    """

    channels: int = 1
    outputs: int = 1
    context: int = 0
    width: int = 96
    layers: int = 4
    heads: int = 4
    slices: int = 32
    patch: int = 4
    fine: int = 16
    periodic: bool = False
    noise_features: int = 0
    embedding: int = 64

    def __post_init__(self) -> None:
        """Check the sizes, which torch would only report as a matrix of another shape."""
        check_settings(self, channels=COUNT, outputs=COUNT, context=whole(0), width=COUNT, layers=COUNT, heads=COUNT)
        check_settings(self, slices=COUNT, patch=COUNT, fine=COUNT, noise_features=whole(0, 1), embedding=COUNT)
        if self.width % self.heads:
            raise ValueError(f"width is {self.width}; expected a multiple of heads = {self.heads}")


def slice_means(values: Tensor, weights: Tensor) -> Tensor:
    """The weighted means z_j.

    Args:
        values: `(*b, places, d)`.
        weights: `(*b, places, slices)`, positive, of sum 1 over the slices.

    Returns:
        `(*b, slices, d)`.
    """
    return (weights / weights.sum(-2, keepdim=True)).mT.to(values.dtype) @ values


def unsliced(means: Tensor, weights: Tensor) -> Tensor:
    """The slices' values at the places, `(*b, slices, d)` and `(*b, places, slices)` -> `(*b, places, d)`."""
    return weights.to(means.dtype) @ means


class SliceAttention(nn.Module):
    """Attention among slices; see the module docstring."""

    def __init__(self, settings: TransolverSettings) -> None:
        super().__init__()
        self.heads = settings.heads
        width, mode = settings.width, padding_mode(settings)
        self.describe = nn.Conv2d(width, width, 3, padding=1, padding_mode=mode)
        self.values = nn.Conv2d(width, width, 3, padding=1, padding_mode=mode)
        self.logits = nn.Linear(width // settings.heads, settings.slices)
        nn.init.orthogonal_(self.logits.weight)
        self.log_temperature = nn.Parameter(torch.full((settings.heads, 1, 1), math.log(0.5)))
        self.pairs = nn.Linear(width // settings.heads, 3 * (width // settings.heads), bias=False)
        self.leave = nn.Linear(width, width)

    def weights(self, h: Tensor) -> Tensor:
        """Features (B, width, H, W) -> weights of the places in the slices, (B, heads, H W, slices)."""
        logits = self.logits(self._places(self.describe(h)))
        exact = self.log_temperature.dtype
        return torch.softmax(logits.to(exact) * torch.exp(-self.log_temperature), -1)

    def forward(self, h: Tensor) -> Tensor:
        """Features (B, width, H, W) -> (B, H, W, width)."""
        weights = self.weights(h)
        slices = slice_means(self._places(self.values(h)), weights)
        query, key, value = self.pairs(slices).chunk(3, -1)
        attended = functional.scaled_dot_product_attention(query, key, value)
        places = unsliced(attended, weights)
        return self.leave(places.transpose(1, 2).reshape(len(h), *h.shape[-2:], -1))

    def _places(self, h: Tensor) -> Tensor:
        """(B, width, H, W) -> (B, heads, H W, width / heads)."""
        return h.flatten(2).unflatten(1, (self.heads, -1)).mT


class Layer(nn.Module):
    """Slice attention and a multilayer perceptron, each a residual behind a normalisation of the features."""

    def __init__(self, settings: TransolverSettings) -> None:
        super().__init__()
        width = settings.width
        self.first_norm, self.second_norm = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attention = SliceAttention(settings)
        self.widen, self.narrow = nn.Linear(width, 2 * width), nn.Linear(2 * width, width)
        self.modulation = Modulation(settings.embedding, width) if settings.noise_features else None

    def forward(self, h: Tensor, embedding: Tensor | None) -> Tensor:
        """Features (B, H, W, width) -> features of the same shape."""
        h = h + self.attention(self.first_norm(h).permute(0, 3, 1, 2))
        inner = self.second_norm(h)
        if self.modulation is not None and embedding is not None:
            inner = self.modulation(inner, embedding)
        return h + self.narrow(functional.gelu(self.widen(inner)))


class Transolver(nn.Module):
    """Transolver for any grid; see the module docstring.

    Args:
        settings: the architecture.
    """

    def __init__(self, settings: TransolverSettings) -> None:
        super().__init__()
        self.settings = settings
        s, mode = settings, padding_mode(settings)
        self.embed = NoiseLevel(s.noise_features, s.embedding) if s.noise_features else None
        entered = s.channels + s.context + (8 if s.periodic else 2)
        self.enter = nn.Conv2d(entered, s.fine, 3, padding=1, padding_mode=mode)
        self.patches = nn.Conv2d(s.fine, s.width, s.patch, stride=s.patch)
        self.layers = nn.ModuleList(Layer(settings) for _ in range(s.layers))
        self.norm = nn.LayerNorm(s.width)
        self.unpatch = nn.ConvTranspose2d(s.width, s.fine, s.patch, stride=s.patch)
        self.leave = nn.Conv2d(s.fine, s.outputs, 3, padding=1, padding_mode=mode)
        nn.init.zeros_(self.leave.weight)
        nn.init.zeros_(cast(Tensor, self.leave.bias))

    def forward(self, x: Tensor, noise: Tensor | None = None, context: Tensor | None = None) -> Tensor:
        """The network's output on the grid of `x`.

        Args:
            x: state, (B, C, H, W).
            noise: number that describes the noise level, (B,), of order one; not looked at where the settings say
                `noise_features=0`.
            context: conditioning fields, (B, C', H, W), or None where the settings say `context=0`.

        Returns:
            (B, C_out, H, W).

        Raises:
            ValueError: missing or unexpected context, wrong channels, no noise level where one is needed, or a periodic
                grid that is not a multiple of the patch.
        """
        s = self.settings
        given = entering(x, context, s.channels, s.context)
        embedding = None
        if self.embed is not None:
            if noise is None:
                raise ValueError("this network was built with noise_features=1; pass the noise level")
            embedding = self.embed(noise.to(x.dtype))
        height, width = x.shape[-2:]
        places = positions(height, width, periodic=s.periodic, like=x).expand(len(x), -1, -1, -1)
        given = torch.cat([given, places], 1)
        bottom, right = -height % s.patch, -width % s.patch
        if bottom or right:
            if s.periodic:
                raise ValueError(f"a periodic grid of {height} x {width} cells does not fill patches of {s.patch}")
            given = functional.pad(given, (0, right, 0, bottom))
        fine = functional.gelu(self.enter(given))
        h = self.patches(fine).permute(0, 2, 3, 1)
        for layer in self.layers:
            h = layer(h, embedding)
        fine = fine + self.unpatch(self.norm(h).permute(0, 3, 1, 2))
        return self.leave(functional.gelu(fine))[..., :height, :width].contiguous()


def padding_mode(settings: TransolverSettings) -> Literal["zeros", "circular"]:
    """What lies outside the grid for a convolution."""
    return "circular" if settings.periodic else "zeros"


def positions(height: int, width: int, *, periodic: bool, like: Tensor) -> Tensor:
    """Where a cell is.

    Args:
        height: rows.
        width: columns.
        periodic: sines and cosines of one and two waves around each axis; else the coordinates of the centre, -1 to 1.
        like: gives dtype and device.

    Returns:
        (8, H, W) or (2, H, W).
    """
    place: dict[str, Any] = {"dtype": like.dtype, "device": like.device}
    grids = torch.meshgrid(*((torch.arange(n, **place) + 0.5) / n for n in (height, width)), indexing="ij")
    if not periodic:
        return torch.stack([2 * g - 1 for g in grids])
    angles = torch.stack([2 * math.pi * k * g for k in (1, 2) for g in grids])
    return torch.cat([angles.sin(), angles.cos()])
