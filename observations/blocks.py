r"""Several likelihoods at once: the values of all, one after another, with errors that are independent between them.

    y = (y_1, y_2, ...),    H = stack(H_1, H_2, ...),    log p(y | x) = sum_j log p_j(y_j | x)

Gaussian noises join to one Gaussian noise: a diagonal where all are diagonal, blocks of a full covariance otherwise.
Other laws stay side by side.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from dynamics.random import Rng
from observations.base import stack
from observations.likelihood import Likelihood
from observations.noise import GaussianNoise, Noise, SignalNoise, noise_at


@dataclass(frozen=True, eq=False)
class BlockNoise:
    """Independent noises of blocks of values, each of its own law.

    Args:
        parts: the noises.
        sizes: numbers of values of the blocks.
    """

    parts: tuple[Noise, ...]
    sizes: tuple[int, ...]

    def log_prob(self, residual: Tensor, observed: Tensor | None = None) -> Tensor:
        """Log density of the observed values, the sum over the blocks, `(*b,)`."""
        pieces = self._each(residual, observed)
        return torch.stack([noise.log_prob(r, o) for noise, r, o in pieces]).sum(0)

    def whiten(self, residual: Tensor, observed: Tensor | None = None) -> Tensor:
        """Residuals of unit variance, `(*b, m)`, 0 where not observed."""
        return torch.cat([noise.whiten(r, o) for noise, r, o in self._each(residual, observed)], -1)

    def sample(
        self,
        shape: tuple[int, ...],
        *,
        rng: Rng,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ) -> Tensor:
        """Draws of shape `(*b, m)`, block after block."""
        if not shape or shape[-1] != sum(self.sizes):
            raise ValueError(f"the noise has {sum(self.sizes)} values; a draw of shape {tuple(shape)} was asked")
        lead = tuple(shape[:-1])
        blocks = zip(self.parts, self.sizes, strict=True)
        return torch.cat([n.sample((*lead, size), rng=rng, dtype=dtype, device=device) for n, size in blocks], -1)

    def variance(self, size: int, *, dtype: torch.dtype = torch.float32, device: torch.device | str = "cpu") -> Tensor:
        """Variances `(size,)`."""
        if size != sum(self.sizes):
            raise ValueError(f"the noise has {sum(self.sizes)} values; {size} were observed")
        blocks = zip(self.parts, self.sizes, strict=True)
        return torch.cat([n.variance(count, dtype=dtype, device=device) for n, count in blocks])

    def _each(self, residual: Tensor, observed: Tensor | None) -> list[tuple[Noise, Tensor, Tensor | None]]:
        ends = [0, *torch.tensor(self.sizes).cumsum(0).tolist()]
        return [
            (noise, residual[..., a:b], None if observed is None else observed[..., a:b])
            for noise, (a, b) in zip(self.parts, pairwise(ends), strict=True)
        ]

    def __repr__(self) -> str:
        return f"{type(self).__name__}({', '.join(map(repr, self.parts))})"


class SignalBlockNoise(BlockNoise):
    """Blocks of which one depends on the clean values, such as counts."""

    def at(self, expected: Tensor) -> BlockNoise:
        """The laws at clean observations `(*b, m)`."""
        pieces = self._each(expected, None)
        return BlockNoise(tuple(noise_at(noise, part) for noise, part, _ in pieces), self.sizes)


def joined_noise(parts: Sequence[Noise], sizes: Sequence[int]) -> Noise:
    """The noise of several blocks of values; a Gaussian one where all are."""
    gaussian = [noise for noise in parts if isinstance(noise, GaussianNoise)]
    if len(gaussian) < len(parts):
        kind = SignalBlockNoise if any(isinstance(noise, SignalNoise) for noise in parts) else BlockNoise
        return kind(tuple(parts), tuple(sizes))
    stds = {noise.std for noise in gaussian if isinstance(noise.std, float | int)}
    if len(stds) == 1 and all(isinstance(noise.std, float | int) for noise in gaussian):
        return GaussianNoise(std=stds.pop())
    pairs = list(zip(gaussian, sizes, strict=True))
    if all(noise.diagonal for noise in gaussian):
        return GaussianNoise(std=torch.cat([noise.variance(size, dtype=torch.float64) for noise, size in pairs]).sqrt())
    blocks = [noise.covariance_matrix(size, dtype=torch.float64) for noise, size in pairs]
    return GaussianNoise(covariance=torch.block_diag(*blocks))


def joined(parts: Sequence[Likelihood]) -> Likelihood:
    """One likelihood of the flattened values of several, in their order; a single one stays what it is.

    Args:
        parts: at least one, all of the same event.
    """
    if len(parts) == 1:
        return parts[0]
    operators = [part.operator for part in parts]
    return Likelihood(stack(*operators), joined_noise([p.noise for p in parts], [o.obs_size for o in operators]))
