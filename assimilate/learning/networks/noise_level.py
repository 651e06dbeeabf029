"""How a noise level enters a network: an embedding that scales and shifts features.

Equation: e = silu(second(silu(first([c, sin(2^k c), cos(2^k c)])))), k = 0 .. 3;
(a, b) = linear(e);  h <- (1 + a) h + b.

Shapes: c (B,) or (B, F), e (B, E), a and b (B, width). The linear map starts at zero: a new network ignores the level.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

OCTAVES = 4
"""Frequencies of the sines and cosines of each number."""


class NoiseLevel(nn.Module):
    """The embedding of the noise level.

    Args:
        features: numbers that describe the level, of order one; 1 for ln(sigma) / 4 of EDM.
        width: of the embedding, E.
    """

    def __init__(self, features: int, width: int) -> None:
        super().__init__()
        self.first = nn.Linear(features * (1 + 2 * OCTAVES), width)
        self.second = nn.Linear(width, width)

    def forward(self, noise: Tensor) -> Tensor:
        """Noise level (B,) or (B, F) -> embedding (B, E)."""
        noise = noise.reshape(noise.shape[0], -1)
        angles = (noise[:, :, None] * 2.0 ** torch.arange(OCTAVES, dtype=noise.dtype, device=noise.device)).flatten(1)
        entered = self.first(torch.cat([noise, angles.sin(), angles.cos()], 1))
        return functional.silu(self.second(functional.silu(entered)))


class Modulation(nn.Module):
    """Scale and shift of features by the embedding.

    Args:
        embedding: its width, E.
        width: number of features.
    """

    def __init__(self, embedding: int, width: int) -> None:
        super().__init__()
        self.linear = nn.Linear(embedding, 2 * width)
        nn.init.zeros_(self.linear.weight)
        nn.init.zeros_(self.linear.bias)

    def forward(self, h: Tensor, embedding: Tensor) -> Tensor:
        """Features (B, ..., width) and embedding (B, E) -> features of the same shape."""
        pair = self.linear(embedding)
        scale, shift = pair.reshape(len(pair), *(1,) * (h.ndim - 2), -1).chunk(2, -1)
        return torch.addcmul(shift, h, 1.0 + scale)
