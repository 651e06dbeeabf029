"""Diffusion posterior sampling: the likelihood of the clean mean itself.

    score form:  g = (dm/dx)^T grad log p(y | m)               S = R, over-confident where x_t says little of x_1
    norm form:   g = - grad_x || y - A(m) ||_2                 the published code; its size does not shrink with the
                                                               misfit and does not know the noise

References:
    Chung, Kim, Mccann, Klasky, Ye (2023), Diffusion posterior sampling for general noisy inverse problems,
    https://arxiv.org/abs/2209.14687

Differs from the paper: norms are per sample (the published code takes one over the batch), and the norm form's
strength is in the units of the path's `x_t`. The paper's line has the squared norm, its code the plain one.
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


@dataclass(frozen=True)
class DPS(Guided):
    """Guidance by the likelihood of the clean mean.

    Args:
        gain: see `Guided`. The published algorithm is `DPS(form="norm", gain="constant", strength=zeta)` with zeta
            0.3 (deblurring, super-resolution) to 1 (phase retrieval) for 1000 DDPM steps on images in [-1, 1].
        strength: see `Guided`.
        form: "score" or "norm".

    Exactness: biased.
    """

    form: Literal["score", "norm"] = "score"

    def __post_init__(self) -> None:
        """Check the settings."""
        super().__post_init__()
        if self.form not in ("score", "norm"):
            raise ValueError(f"form is {self.form!r}; expected 'score' or 'norm'")

    def gradient(self, clean: Clean, x: Tensor, t: Tensor, context: Context, problem: Problem) -> Tensor:
        """See `Guided`."""
        if self.form == "score":
            objective = problem.likelihood.log_prob(problem.y, clean.mean)
        else:
            predicted = observe_flat(problem.likelihood.operator, clean.mean)
            objective = -torch.linalg.vector_norm(observed_residual(predicted, problem), dim=-1)
        return torch.autograd.grad(objective.sum(), x)[0]
