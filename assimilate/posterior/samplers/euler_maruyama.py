"""Euler-Maruyama on the SDE of a path.

References:
    Song et al. (2021), Score-based generative modeling through SDEs, https://arxiv.org/abs/2011.13456
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from assimilate.posterior.covariance import Covariance
from assimilate.posterior.paths import Path
from assimilate.posterior.predictors import Context
from assimilate.posterior.samplers.base import GaussianSampler, Kernel


@dataclass(frozen=True)
class EulerMaruyama(GaussianSampler):
    """Euler-Maruyama on the path's SDE.

    Args:
        diffusion: "sigma", the interpolant's own (the paper's), or "foellmer", for which guided steps have importance
            weights that tend to those of the exact posterior. Grids must stop where the diffusion is still finite:
            flow matching's Foellmer diffusion is infinite at t = 0.
    """

    diffusion: Literal["sigma", "foellmer"] = "foellmer"

    def __post_init__(self) -> None:
        """Check the settings."""
        if self.diffusion not in ("sigma", "foellmer"):
            raise ValueError(f"diffusion is {self.diffusion!r}; expected 'sigma' or 'foellmer'")

    def kernel(
        self, x: Tensor, t: Tensor, s: Tensor, mean: Tensor, covariance: Covariance | None, path: Path, context: Context
    ) -> Kernel:
        """See `GaussianSampler.kernel`."""
        c, base = path.coefficients(t, x), context.base
        rest = x - c.beta * mean if base is None else x - c.beta * mean - c.alpha * base
        drift = c.d_beta * mean if base is None else c.d_beta * mean + c.d_alpha * base
        # b = motion + (sigma'/sigma) rest;  foellmer drift = v + g_F^2/2 score = motion + (d/dt log noise^2/beta) rest
        drift = drift + (c.d_sigma / c.sigma if self.diffusion == "sigma" else c.bend) * rest
        diffusion = c.sigma if self.diffusion == "sigma" else torch.sqrt(c.foellmer)
        return Kernel(x + (s - t) * drift, diffusion * torch.sqrt(s - t) + torch.zeros_like(c.alpha), None)
