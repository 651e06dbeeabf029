"""Moment-matching posterior sampling: the clean covariance is the denoiser's Jacobian.

    S = R + A V A^T,      V = noise^2 / beta dm/dx,      S w = y - A(m) by a few Krylov iterations

Exact for Gaussian priors.

References:
    Rozet, Andry, Lanusse, Louppe (2024), Learning diffusion priors from observations by expectation maximization,
    https://arxiv.org/abs/2405.13712

Differs from the paper: the Jacobian of a learned denoiser is not symmetric, and conjugate gradients then diverge, so
GMRES is the default; products are with `V^T`, which needs reverse mode alone.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from assimilate.posterior.condition import Problem
from assimilate.posterior.guidance.base import Linearized, inverse_pull, solve_observed
from assimilate.posterior.linearize import linearize
from assimilate.posterior.predictors import Clean
from assimilate.posterior.solvers import conjugate_gradient, gmres
from dynamics.settings import COUNT, check_settings


@dataclass(frozen=True)
class MMPS(Linearized):
    """Guidance with the full covariance of the clean state; `iterations + 1` backward passes.

    Args:
        gain: see `Guided`.
        strength: see `Guided`.
        iterations: Krylov iterations; as many as observed values solve the system exactly, 1-5 are usual.
        solver: "gmres", or "cg" for a symmetric Jacobian (exact predictors).

    Exactness: exact for Gaussian priors, biased otherwise.
    """

    iterations: int = 5
    solver: Literal["gmres", "cg"] = "gmres"

    def __post_init__(self) -> None:
        """Check the settings."""
        super().__post_init__()
        if self.solver not in ("gmres", "cg"):
            raise ValueError(f"solver is {self.solver!r}; expected 'gmres' or 'cg'")
        check_settings(self, iterations=COUNT)

    def weights(self, residual: Tensor, clean: Clean, x: Tensor, t: Tensor, problem: Problem) -> Tensor:
        """See `Linearized`."""
        _, forward, adjoint = linearize(problem.likelihood.operator, clean.mean.detach())
        scale = inverse_pull(problem.path, t, x)

        def product(w: Tensor) -> Tensor:
            return forward(scale * torch.autograd.grad(clean.mean, x, adjoint(w), retain_graph=True)[0])

        solver = gmres if self.solver == "gmres" else conjugate_gradient
        return solve_observed(product, residual, problem, solver, self.iterations)
