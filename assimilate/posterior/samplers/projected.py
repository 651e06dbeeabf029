"""A projection of the noisy state behind every step of another sampler.

Methods that enforce the observation on `x_s` itself (ILVR, MCG, Score-MRI, the replacement of noised measurements) do
it between the steps, and know the observation; the sampler does not.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from assimilate.posterior.paths import Path
from assimilate.posterior.predictors import Clean, Context
from assimilate.posterior.samplers.base import Sampler
from dynamics.random import Rng


class Projection(Protocol):
    """`(x_s, s, path, rng) -> x_s`, closer to what the observation asks for."""

    def __call__(self, x: Tensor, s: Tensor, path: Path, rng: Rng) -> Tensor:
        """The projected state, `(*b, *event)`."""
        ...


@dataclass(frozen=True)
class Projected(Sampler):
    """A sampler whose every step ends with a projection.

    Args:
        inner: the sampler that steps.
        projection: what follows; it holds the observation.
        last: whether the last step, which leaves the clean state, is projected too.
    """

    inner: Sampler
    projection: Projection
    last: bool = True

    def step(
        self, x: Tensor, t: Tensor, s: Tensor, clean: Clean, again: Callable[[Tensor, Tensor], Clean], path: Path,
        context: Context, rng: Rng, weighted: bool, event_dims: int,
    ) -> tuple[Tensor, Tensor | None]:
        """See `Sampler.step`."""
        if weighted:
            raise ValueError("a projected step has no importance weight; ask for no weights")
        x, _ = self.inner.step(x, t, s, clean, again, path, context, rng, False, event_dims)
        if float(s) == 1.0 and not self.last:
            return x, None
        # The loop adds a constant-gain guidance's displacement to what is returned; the projection comes after it.
        kick = torch.zeros_like(x) if clean.kick is None else clean.kick
        return self.projection(x + kick, s, path, rng) - kick, None
