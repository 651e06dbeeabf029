r"""Guidance for operators without a derivative: differences along random directions.

    g = (dm/dx)^T v,      v = (1/J) sum_j u_j [ L(m + mu u_j) - L(m - mu u_j) ] / (2 mu),      u_j ~ N(0, I)

with `L(m) = log p(y | m)` (score form) or `- |y - A(m)|` (norm form). v is the gradient of L smoothed over a ball of
radius about mu, without bias; its relative error is `sqrt((d + 1) / J)` for a state of d values. The operator is only
evaluated, 2 J times a level; the network is differentiated once.

References:
    Nesterov, Spokoiny (2017), Random gradient-free minimization of convex functions,
    https://doi.org/10.1007/s10208-015-9296-2
    Zheng, Chu, Wang, Kovachki, Baptista, Yue (2024), Ensemble Kalman diffusion guidance: a derivative-free method for
    inverse problems, https://arxiv.org/abs/2409.20175 (the central difference in DPS, as a baseline)

Differs from the papers: the score form with the exact gain is the default.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from assimilate.posterior.condition import Problem
from assimilate.posterior.guidance.base import Guided, observed_residual
from assimilate.posterior.linearize import observe_flat
from assimilate.posterior.predictors import Clean, Context
from dynamics.random import normal
from dynamics.settings import COUNT, POSITIVE, check_settings

_AT_ONCE = 16


@dataclass(frozen=True)
class ZeroOrder(Guided):
    """DPS with the operator's derivative estimated from evaluations.

    Args:
        gain: see `Guided`; with the norm form "constant" is how it is published (strength 0.1).
        strength: see `Guided`.
        trust: see `Guided`.
        draws: directions J (published: 1024, which are 2048 evaluations).
        radius: mu, in units of the state (published: 0.01 for images in [-1, 1]).
        form: "score" or "norm", see `DPS`.

    Raises:
        ValueError: no directions, or a radius that is not positive.

    Exactness: biased, as DPS is; it tends to DPS as J grows and mu falls.
    """

    draws: int = 256
    radius: float = 0.01
    form: Literal["score", "norm"] = "score"

    def __post_init__(self) -> None:
        """Check the settings."""
        super().__post_init__()
        check_settings(self, draws=COUNT, radius=POSITIVE)
        if self.form not in ("score", "norm"):
            raise ValueError(f"form is {self.form!r}; expected 'score' or 'norm'")

    def gradient(self, clean: Clean, x: Tensor, t: Tensor, context: Context, problem: Problem) -> Tensor:
        """See `Guided`."""
        with torch.no_grad():
            slope = self._slope(clean.mean.detach(), problem)
        return torch.autograd.grad((slope * clean.mean).sum(), x)[0]

    def _slope(self, mean: Tensor, problem: Problem) -> Tensor:
        """The estimate v of the gradient of L, `(*b, *event)`."""
        assert problem.rng is not None, "condition() refuses guidances that draw without rng"
        lead, dims = mean.shape[: mean.ndim - problem.event_dims], problem.event_dims
        total = torch.zeros_like(mean)
        for first in range(0, self.draws, _AT_ONCE):
            count = min(_AT_ONCE, self.draws - first)
            shape = (*lead, count, *mean.shape[len(lead) :])
            # Directions stand in front of all rows, so that y broadcasts as ever.
            u = normal(problem.rng, shape, dtype=mean.dtype, device=mean.device).movedim(len(lead), 0)
            rise = self._objective(mean + self.radius * u, problem) - self._objective(mean - self.radius * u, problem)
            total = total + (rise.reshape(*rise.shape, *(1,) * dims) * u).sum(0)
        return total / (2 * self.radius * self.draws)

    def _objective(self, state: Tensor, problem: Problem) -> Tensor:
        """L for states `(draws, *b, *event)`: `(draws, *b)`."""
        if self.form == "score":
            return problem.likelihood.log_prob(problem.y, state)
        residual = observed_residual(observe_flat(problem.likelihood.operator, state), problem)
        return -torch.linalg.vector_norm(residual, dim=-1)
