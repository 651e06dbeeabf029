"""A residual multilayer perceptron for states without grid: Lorenz-63, the double well, short windows of either.

Equation: h = enter([x, features(noise), context]);  h <- h + second(silu(first(silu(h)))) for each block;
output leave(silu(h)), with features(c) = [c, sin(2^k c), cos(2^k c)], k = 0 .. octaves - 1.

Shapes: x (*b, C), noise (*b,) or None, context (*b, K) or None, result (*b, outputs).

The last layer starts at zero: behind a preconditioning (`assimilate.learning.denoiser`) a new network is then the exact
answer for a standard normal state, and training only has to learn what differs from it.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from dynamics.settings import COUNT, check_settings, whole


@dataclass(frozen=True)
class MLPSettings:
    """Architecture of an `MLP`.

    Args:
        channels: size of the state, C.
        outputs: size of the result.
        context: size of the context, K; 0 for none.
        noise_features: 1 when a noise level is given, 0 for a network without.
        width: features of the hidden layers.
        blocks: residual blocks of two layers each.
        octaves: frequencies of the noise level's sines and cosines.
        normalise: a layer normalisation in front of each block; it steadies deep networks.

    Raises:
        ValueError: a size that is not positive.
    """

    channels: int
    outputs: int
    context: int = 0
    noise_features: int = 0
    width: int = 128
    blocks: int = 1
    octaves: int = 4
    normalise: bool = False

    def __post_init__(self) -> None:
        """Check the sizes, which torch would only report as a matrix of another shape."""
        check_settings(self, channels=COUNT, outputs=COUNT, context=whole(0), noise_features=whole(0, 1))
        check_settings(self, width=COUNT, blocks=whole(0), octaves=whole(0))


class Block(nn.Module):
    """One residual block: `h + second(silu(first(silu(norm(h)))))`."""

    def __init__(self, settings: MLPSettings) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(settings.width) if settings.normalise else nn.Identity()
        self.first = nn.Linear(settings.width, settings.width)
        self.second = nn.Linear(settings.width, settings.width)

    def forward(self, h: Tensor) -> Tensor:
        """Features `(*b, width)` -> features of the same shape."""
        return h + self.second(functional.silu(self.first(functional.silu(self.norm(h)))))


class MLP(nn.Module):
    """Residual multilayer perceptron; see the module docstring.

    Args:
        settings: the architecture.
    """

    def __init__(self, settings: MLPSettings) -> None:
        super().__init__()
        self.settings = settings
        features = settings.noise_features * (1 + 2 * settings.octaves)
        self.enter = nn.Linear(settings.channels + settings.context + features, settings.width)
        self.blocks = nn.ModuleList(Block(settings) for _ in range(settings.blocks))
        self.leave = nn.Linear(settings.width, settings.outputs)
        nn.init.zeros_(self.leave.weight)
        nn.init.zeros_(self.leave.bias)

    def forward(self, x: Tensor, noise: Tensor | None = None, context: Tensor | None = None) -> Tensor:
        """The network's output.

        Args:
            x: state, `(*b, C)`.
            noise: number that describes the noise level, of order one, `(*b,)`; None where the settings say 0 features.
            context: `(*b, K)`; None where the settings say `context=0`.

        Returns:
            `(*b, outputs)`.

        Raises:
            ValueError: a missing or unexpected input, or one of another size.
        """
        s = self.settings
        given = (x.shape[-1], 0 if context is None else context.shape[-1], int(noise is not None))
        if given != (s.channels, s.context, s.noise_features):
            raise ValueError(
                f"the state has {given[0]} values, the context {given[1]} and the noise level {given[2]}; this network "
                f"expects {s.channels}, {s.context} and {s.noise_features}"
            )
        parts = [x] if context is None else [x, context]
        if noise is not None:
            angles = noise[..., None] * 2.0 ** torch.arange(s.octaves, dtype=x.dtype, device=x.device)
            parts += [noise[..., None], angles.sin(), angles.cos()]
        h = self.enter(torch.cat(parts, -1))
        for block in self.blocks:
            h = block(h)
        return self.leave(functional.silu(h))
