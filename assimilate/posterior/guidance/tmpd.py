"""Tweedie moment projected diffusion: the clean covariance from the denoiser, by its row sums.

    S = R + diag(A V A^T 1),      V = noise^2 / beta dm/dx

References:
    Boys, Girolami, Pidstrigach, Reich, Mosca, Akyildiz (2023), Tweedie moment projected diffusions for inverse
    problems, https://arxiv.org/abs/2310.06721

Differs from the paper: row sums below zero, which an operator with signs can give, are taken as zero.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from assimilate.posterior.condition import Problem
from assimilate.posterior.guidance.base import Linearized, inverse_pull, observed
from assimilate.posterior.linearize import gaussian_noise, linearize
from assimilate.posterior.predictors import Clean


@dataclass(frozen=True)
class TMPD(Linearized):
    """Guidance with the row sums of the denoiser's covariance; one more backward pass than DPS.

    Args:
        gain: see `Guided`.
        strength: see `Guided`.

    Exactness: exact where `A V A^T` is a multiple of the identity, biased otherwise.
    """

    def weights(self, residual: Tensor, clean: Clean, x: Tensor, t: Tensor, problem: Problem) -> Tensor:
        """See `Linearized`."""
        _, forward, adjoint = linearize(problem.likelihood.operator, clean.mean.detach())
        seen = observed(residual, problem)
        ones = adjoint(seen.to(residual.dtype))
        rows = torch.autograd.grad(clean.mean, x, ones, retain_graph=True)[0]
        extra = forward(inverse_pull(problem.path, t, x) * rows).clamp_min(0.0)
        return gaussian_noise(problem.likelihood).solve(residual, seen, extra)
