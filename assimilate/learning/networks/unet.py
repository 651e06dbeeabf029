"""A small convolutional U-Net that runs on any two-dimensional grid.

Equation: h = conv_in([x, context, inside]); going down, h <- block(h), kept, then halved; going up, doubled, added to
what was kept, h <- block(h); output conv_out(silu(h)). A block is

    h + conv(silu((1 + a) conv(silu(h)) + b)),        (a, b) = linear(silu(embedding of the noise level))

Shapes: x (B, C, H, W), noise (B,) or (B, F), context (B, C', H, W) or None, result (B, C_out, H, W).

There is no normalisation over the grid: a statistic over the grid makes a network that was trained on patches depend on
the size of the grid. The last convolution of each block starts at zero instead, so a new network is stable without.
"Inside" is a channel of ones, zero where the grid was padded to a multiple of the coarsest cell: it tells the network
where the domain ends.

References:
    Ronneberger, Fischer, Brox (2015), U-Net: convolutional networks for biomedical image segmentation,
    https://arxiv.org/abs/1505.04597
    Karras, Aittala, Aila, Laine (2022), Elucidating the design space of diffusion-based generative models,
    https://arxiv.org/abs/2206.00364 (noise level as ln(sigma) / 4)
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import Literal, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from dynamics.settings import COUNT, check_settings, several, whole

Padding = Literal["zeros", "replicate", "circular"]


@dataclass(frozen=True)
class UNetSettings:
    """Architecture of a `UNet`.

    Args:
        channels: channels of the state, C.
        outputs: channels of the result.
        context: channels of the conditioning fields; 0 for none.
        widths: features at each resolution, finest first; every further entry halves the resolution.
        blocks: residual blocks at each resolution, on the way down and again on the way up.
        noise_features: numbers that describe the noise level; 1 for the scalar c_noise.
        embedding: width of the embedding of the noise level.
        padding: what lies outside the domain: "zeros", "replicate" (the edge continued) or "circular" (periodic).

    Raises:
        ValueError: unknown padding, or no resolution at all.
    """

    channels: int = 1
    outputs: int = 1
    context: int = 0
    widths: tuple[int, ...] = (24, 40, 56, 64)
    blocks: int = 1
    noise_features: int = 1
    embedding: int = 64
    padding: Padding = "zeros"

    def __post_init__(self) -> None:
        """Check what torch would only report deep inside a convolution."""
        if self.padding not in ("zeros", "replicate", "circular"):
            raise ValueError(f"padding is {self.padding!r}; expected 'zeros', 'replicate' or 'circular'")
        check_settings(self, channels=COUNT, outputs=COUNT, context=whole(0), widths=several(COUNT))
        check_settings(self, blocks=COUNT, noise_features=COUNT, embedding=COUNT)
        if not self.widths:
            raise ValueError("widths is empty; give the features of at least one resolution")
        # A settings object read back from JSON carries lists; a tuple keeps it hashable and its repr exact.
        object.__setattr__(self, "widths", tuple(self.widths))


class Block(nn.Module):
    """One residual block whose features are scaled and shifted by the noise level."""

    def __init__(self, width: int, settings: UNetSettings) -> None:
        super().__init__()
        self.first = nn.Conv2d(width, width, 3, padding=1, padding_mode=settings.padding)
        self.modulation = nn.Linear(settings.embedding, 2 * width)
        self.second = nn.Conv2d(width, width, 3, padding=1, padding_mode=settings.padding)
        for layer in (self.modulation, self.second):
            for parameter in layer.parameters():
                nn.init.zeros_(parameter)

    def forward(self, h: Tensor, embedding: Tensor) -> Tensor:
        """Features (B, width, H, W) and embedding (B, E) -> features of the same shape."""
        scale, shift = self.modulation(embedding)[:, :, None, None].chunk(2, 1)
        inner = torch.addcmul(shift, self.first(functional.silu(h)), 1.0 + scale)
        return h + self.second(functional.silu(inner))


class UNet(nn.Module):
    """Convolutional U-Net for any grid size; see the module docstring.

    Args:
        settings: the architecture.
    """

    def __init__(self, settings: UNetSettings) -> None:
        super().__init__()
        self.settings = settings
        widths, mode = settings.widths, settings.padding
        features = 9 * settings.noise_features
        self.embed = nn.Sequential(
            nn.Linear(features, settings.embedding), nn.SiLU(), nn.Linear(settings.embedding, settings.embedding)
        )
        entering = settings.channels + settings.context + 1
        self.enter = nn.Conv2d(entering, widths[0], 3, padding=1, padding_mode=mode)
        self.down = nn.ModuleList(
            nn.ModuleList(Block(width, settings) for _ in range(settings.blocks)) for width in widths
        )
        self.shrink = nn.ModuleList(nn.Conv2d(a, b, 2, stride=2) for a, b in pairwise(widths))
        self.up = nn.ModuleList(
            nn.ModuleList(Block(width, settings) for _ in range(settings.blocks)) for width in widths
        )
        self.grow = nn.ModuleList(nn.Conv2d(b, a, 1) for a, b in pairwise(widths))
        self.leave = nn.Conv2d(widths[0], settings.outputs, 3, padding=1, padding_mode=mode)
        for parameter in self.leave.parameters():
            nn.init.zeros_(parameter)
        self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    @property
    def multiple(self) -> int:
        """The coarsest cell in grid cells: a periodic grid must be a multiple of it."""
        return 2 ** (len(self.settings.widths) - 1)

    def forward(self, x: Tensor, noise: Tensor, context: Tensor | None = None) -> Tensor:
        """The network's output on the grid of `x`.

        Args:
            x: state, (B, C, H, W).
            noise: what describes the noise level, (B,) or (B, F), of order one; ln(sigma) / 4 for EDM.
            context: conditioning fields, (B, C', H, W), or None where the settings say `context=0`.

        Returns:
            (B, C_out, H, W).

        Raises:
            ValueError: missing or unexpected context, wrong channels, or a periodic grid that is not a multiple of the
                coarsest cell.
        """
        given = 0 if context is None else context.shape[1]
        if given != self.settings.context or x.shape[1] != self.settings.channels:
            raise ValueError(
                f"the state has {x.shape[1]} and the context {given} channels; this network expects "
                f"{self.settings.channels} and {self.settings.context}"
            )
        height, width = x.shape[-2:]
        inside = x.new_ones(x.shape[0], 1, height, width)
        h = torch.cat([x, inside] if context is None else [x, context.to(x.dtype), inside], 1)
        h = self._pad(h).contiguous(memory_format=torch.channels_last)
        embedding = functional.silu(self.embed(self._features(noise.to(x.dtype))))
        h = self.enter(h)
        kept = []
        for level, blocks in enumerate(self.down):
            for block in cast(nn.ModuleList, blocks):
                h = block(h, embedding)
            if level < len(self.shrink):
                kept.append(h)
                h = self.shrink[level](h)
        for level in reversed(range(len(self.up))):
            if level < len(kept):
                h = kept[level] + functional.interpolate(self.grow[level](h), scale_factor=2.0, mode="nearest")
            for block in cast(nn.ModuleList, self.up[level]):
                h = block(h, embedding)
        return self.leave(functional.silu(h))[..., :height, :width].contiguous()

    def _features(self, noise: Tensor) -> Tensor:
        """The noise numbers themselves and four octaves of sines, (B, 9 F)."""
        noise = noise.reshape(noise.shape[0], -1)
        octaves = noise[:, :, None] * 2.0 ** torch.arange(4, dtype=noise.dtype, device=noise.device)
        return torch.cat([noise, octaves.sin().flatten(1), octaves.cos().flatten(1)], 1)

    def _pad(self, h: Tensor) -> Tensor:
        bottom, right = ((-size) % self.multiple for size in h.shape[-2:])
        if not bottom and not right:
            return h
        if self.settings.padding == "circular":
            raise ValueError(
                f"a periodic grid of {tuple(h.shape[-2:])} cells does not divide into coarse cells of {self.multiple}; "
                "use a grid that is a multiple of it, fewer widths, or padding='replicate'"
            )
        if self.settings.padding == "replicate":
            return functional.pad(h, (0, right, 0, bottom), mode="replicate")
        return functional.pad(h, (0, right, 0, bottom))
