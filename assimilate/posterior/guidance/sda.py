"""SDA's guidance: one scalar stands for the covariance of the clean state.

    S = R + gamma rho^2 I,      rho = noise / beta

References:
    Rozet, Louppe (2023), Score-based data assimilation, https://arxiv.org/abs/2306.10574
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from assimilate.posterior.condition import Problem
from assimilate.posterior.guidance.base import Linearized, observed
from assimilate.posterior.linearize import gaussian_noise
from assimilate.posterior.predictors import Clean
from dynamics.settings import NOT_NEGATIVE, check_settings


@dataclass(frozen=True)
class SDA(Linearized):
    """Guidance with the inflated noise of score-based data assimilation.

    Args:
        gain: see `Guided`.
        strength: see `Guided`.
        gamma: variance of an observed value of `x_1` given `x_t`, over `rho^2`, dimensionless. It must be tuned to
            operator and prior: the paper uses 0.01-0.1; 1 over-disperses.

    Exactness: biased.
    """

    gamma: float = 0.01

    def __post_init__(self) -> None:
        """Check the settings."""
        super().__post_init__()
        check_settings(self, gamma=NOT_NEGATIVE)

    def weights(self, residual: Tensor, clean: Clean, x: Tensor, t: Tensor, problem: Problem) -> Tensor:
        """See `Linearized`."""
        snr = problem.path.coefficients(t, x).snr
        # The scale may differ by channel; an operator mixes channels, so their mean stands for all.
        extra = self.gamma / snr.reshape(*snr.shape[: t.ndim], -1).mean(-1)
        extra = extra.reshape(*t.shape, *(1,) * (residual.ndim - t.ndim)).expand(residual.shape)
        return gaussian_noise(problem.likelihood).solve(residual, observed(residual, problem), extra)
