r"""Gradient steps on the data term: the data half of DCDP.

    u <- momentum u + rate / L grad log p(y | x),        x <- x + u

`L` is the stiffness of the data term, so the rate is dimensionless and stable below 2 (1 + momentum). A published
learning rate eta for the mean of n squared residuals is `rate = 2 eta ||A||^2 / n` here: DCDP's 1e3 to 1e5 for three
channels of 256 x 256 are 0.01 to 1 for an operator of norm 1. Where the stiffness differs from place to place
(nonlinear operators, counts) a step that does not climb is taken back, and the sample goes on from rest at half the
rate.

References:
    Li, Zhang, Qu et al. (2024), Decoupled data consistency with diffusion purification for image restoration,
    https://arxiv.org/abs/2403.06054
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from assimilate.posterior.condition import Problem
from assimilate.posterior.corrections.data_term import slope, steady, stiffness
from assimilate.posterior.predictors import Clean, Context
from dynamics.settings import COUNT, POSITIVE, check_settings, number
from observations.likelihood import Likelihood


@dataclass(frozen=True)
class GradientSteps:
    """Gradient ascent on `log p(y | x)` from the clean mean, stopped early; no term holds the clean mean.

    Args:
        steps: G.
        rate: in units of 1 / L, see the module.
        momentum: heavy-ball momentum (published code: 0.9).

    Exactness: biased (a point, not a draw).
    """

    steps: int = 100
    rate: float = 1.0
    momentum: float = 0.9

    def __post_init__(self) -> None:
        """Check the settings."""
        check_settings(self, steps=COUNT, momentum=number(0, below=1), rate=POSITIVE)
        if not self.rate < 2 * (1 + self.momentum):
            raise ValueError(f"{self!r}: expected a rate below 2 (1 + momentum), where gradient steps are stable")

    @property
    def backpropagates(self) -> bool:
        """Never."""
        return False

    def __call__(self, clean: Clean, x: Tensor, t: Tensor, context: Context, problem: Problem) -> Clean:
        """See `Guidance`."""
        return clean._replace(mean=self.ascend(clean.mean, problem.likelihood, problem.y), covariance=None)

    def ascend(self, x: Tensor, likelihood: Likelihood, y: Tensor) -> Tensor:
        """The state after the steps, `(*b, *event)`.

        Args:
            x: where they start.
            likelihood: operator and any noise.
            y: observed values; NaN = not observed.
        """
        norm = stiffness(likelihood, y, x)
        rate = self.rate / torch.where(norm > 0, norm, 1.0)
        motion, sure = torch.zeros_like(x), steady(likelihood)
        height = None if sure else likelihood.log_prob(y, x).reshape(rate.shape)
        for _ in range(self.steps):
            motion = self.momentum * motion + rate * slope(likelihood, y, x)
            trial = x + motion
            if height is None:
                x = trial
                continue
            reached = likelihood.log_prob(y, trial).reshape(rate.shape)
            climbed = reached >= height
            x, height = torch.where(climbed, trial, x), torch.where(climbed, reached, height)
            motion, rate = torch.where(climbed, motion, 0.0), torch.where(climbed, rate, rate / 2)
        return x
