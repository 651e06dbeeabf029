"""`condition`: a predictor and an observation in, a predictor out.

An observation enters in one way only: it shifts the clean mean,

    m_y = m + (noise^2 / beta) g,      g = gradient of log p(y | x_t, x_0) with respect to x_t,

and the path rebuilds its own step from the shifted mean. Samplers therefore never see an observation, and every
guidance works with every path and every sampler.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from assimilate.posterior.paths import Path
from assimilate.posterior.predictors import Clean, Context, Predictor
from dynamics.random import Rng
from observations.likelihood import Likelihood


class Problem(NamedTuple):
    """What stays fixed while one observation is taken in.

    Attributes:
        predictor: the unconditioned predictor.
        path: its path.
        likelihood: `p(y | x_1)`.
        y: observed values, broadcastable against `operator(x_1)`; NaN = not observed.
        event_dims: trailing dims of the state that make one event.
        rng: random numbers for the guidances that draw.
    """

    predictor: Predictor
    path: Path
    likelihood: Likelihood
    y: Tensor
    event_dims: int
    rng: Rng | None


class Guidance(Protocol):
    """An estimator of `g`, given as the shifted belief.

    `backpropagates` says whether the guidance differentiates through the predictor; if so `clean.source` is the leaf.
    """

    @property
    def backpropagates(self) -> bool:
        """Whether `clean.mean` must carry its graph."""
        ...

    def __call__(self, clean: Clean, x: Tensor, t: Tensor, context: Context, problem: Problem) -> Clean:
        """The belief about `x_1` once `problem.y` is taken in."""
        ...


@dataclass(frozen=True)
class Conditioned:
    """The predictor that `condition` returns; its `Clean` carries the guided mean, the unguided one and any kick."""

    problem: Problem
    guidance: Guidance

    def __call__(self, x: Tensor, t: Tensor, context: Context) -> Clean:
        """See `Predictor`. The result is detached: guidance holds its graph no longer than one call."""
        backpropagates = self.guidance.backpropagates
        with torch.set_grad_enabled(backpropagates):
            source = x.detach().requires_grad_(backpropagates)
            clean = self.problem.predictor(source, t, context)._replace(source=source)
            guided = self.guidance(clean, source, t, context, self.problem)
        return Clean(
            mean=guided.mean.detach(),
            covariance=guided.covariance,
            unguided=Clean(clean.mean.detach(), covariance=clean.covariance),
            kick=None if guided.kick is None else guided.kick.detach(),
        )


def condition(
    predictor: Predictor,
    path: Path,
    likelihood: Likelihood,
    y: Tensor,
    guidance: Guidance,
    *,
    event_dims: int,
    rng: Rng | None = None,
) -> Conditioned:
    """The predictor of `x_1` given `x_t` and the observation.

    Args:
        predictor: of the prior or of a transition.
        path: the path that the predictor speaks about.
        likelihood: operator and noise.
        y: observed values; leading dims broadcast against the state's.
        guidance: how the observation's gradient is estimated.
        event_dims: trailing dims of the state that make one event, e.g. 1 for Lorenz-63, 3 for a channel on a grid.
        rng: random numbers, for guidances that draw (`MonteCarlo`).

    Raises:
        ValueError: if the guidance draws and no `rng` is given.
    """
    if rng is None and getattr(guidance, "draws", None):
        raise ValueError(f"{guidance!r} draws random numbers; pass rng to condition()")
    return Conditioned(Problem(predictor, path, likelihood, y, event_dims, rng), guidance)
