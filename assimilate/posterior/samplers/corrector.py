"""Langevin corrections between the steps of another sampler.

References:
    Song et al. (2021), Score-based generative modeling through SDEs, https://arxiv.org/abs/2011.13456
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from assimilate.posterior.paths import Path
from assimilate.posterior.predictors import Clean, Context
from assimilate.posterior.samplers.ancestral import Ancestral
from assimilate.posterior.samplers.base import Sampler
from dynamics.random import Rng, normal
from dynamics.settings import POSITIVE, check_settings, whole


@dataclass(frozen=True)
class PredictorCorrector(Sampler):
    """A sampler's step followed by Langevin corrections at the new time.

    Correction: `x <- x + noise (delta s + sqrt(2 delta) z)` with `s = noise * score` and
    `delta = tau / mean(s^2)` per sample, as in SDA.

    Args:
        inner: the sampler that steps.
        corrections: Langevin corrections a step (SDA: 0-16).
        tau: their signal-to-noise ratio, dimensionless (SDA: 0.25-0.5).
    """

    inner: Sampler = Ancestral(eta=0.0)
    corrections: int = 1
    tau: float = 0.25

    def __post_init__(self) -> None:
        """Check the settings."""
        check_settings(self, corrections=whole(0), tau=POSITIVE)

    def step(
        self, x: Tensor, t: Tensor, s: Tensor, clean: Clean, again: Callable[[Tensor, Tensor], Clean], path: Path,
        context: Context, rng: Rng, weighted: bool, event_dims: int,
    ) -> tuple[Tensor, Tensor | None]:
        """See `Sampler.step`."""
        if weighted:
            raise ValueError("Langevin corrections have no importance weight; ask for no weights")
        x, _ = self.inner.step(x, t, s, clean, again, path, context, rng, False, event_dims)
        noise = path.coefficients(s, x).noise
        if not bool((noise > 0).all()):
            return x, None
        events = tuple(range(-event_dims, 0))
        for _ in range(self.corrections):
            score = path.from_mean(x, s, again(x, s).mean, "score", context.base) * noise
            delta = self.tau / score.square().mean(events, keepdim=True)
            z = normal(rng, tuple(x.shape), dtype=x.dtype, device=x.device)
            x = x + noise * (delta * score + torch.sqrt(2 * delta) * z)
        return x, None
