r"""A few conjugate-gradient steps from the clean mean: DDS's correction.

    (I + gamma A^T R^-1 A / L) h = m + gamma A^T R^-1 y / L,        L = ||A^T R^-1 A||

is solved from `h = m` by M conjugate-gradient steps, for each sample alone. The clean states near the data manifold are
taken to lie close to a Krylov space, so few steps regularise; with many it is a proximal point whose weight does not
know the noise level. `gamma = None` drops the identity: conjugate gradients on the normal equations of the data, early
stopping alone regularises (the paper's noiseless case).

References:
    Chung, Lee, Ye (2024), Decomposed diffusion sampler for accelerating large-scale inverse problems,
    https://arxiv.org/abs/2303.05754

Differs from the paper: gamma is in units of 1 / ||A||^2 (the paper's operators have norm 1), values are weighted by
their own noise where it differs, and the inner products are per sample.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from assimilate.posterior.condition import Problem
from assimilate.posterior.corrections.data_term import flat_values, stiffness
from assimilate.posterior.linearize import gaussian_noise, linearize
from assimilate.posterior.predictors import Clean, Context
from assimilate.posterior.solvers import conjugate_gradient
from dynamics.settings import COUNT, check_settings, number


@dataclass(frozen=True)
class Krylov:
    """DDS's correction; go on with `Renoise(clean="given", per="step", direction="unguided")`.

    Args:
        iterations: M, conjugate-gradient steps (the paper: 5).
        gamma: weight of the data, dimensionless (the paper: 5); None = no identity.

    Exactness: biased (a point, not a draw).
    """

    iterations: int = 5
    gamma: float | None = 5.0

    def __post_init__(self) -> None:
        """Check the settings."""
        check_settings(self, iterations=COUNT, gamma=number(above=0, none=True))

    @property
    def backpropagates(self) -> bool:
        """Never."""
        return False

    def __call__(self, clean: Clean, x: Tensor, t: Tensor, context: Context, problem: Problem) -> Clean:
        """See `Guidance`."""
        mean, likelihood = clean.mean, problem.likelihood
        noise = gaussian_noise(likelihood)
        value, forward, adjoint = linearize(likelihood.operator, mean)
        flat = flat_values(likelihood, problem.y, mean)
        seen = (~torch.isnan(flat)).expand(value.shape)
        norm = stiffness(likelihood, problem.y, mean)
        norm = torch.where(norm > 0, norm, 1.0)

        def pull(residual: Tensor) -> Tensor:
            return adjoint(noise.solve(torch.where(seen, residual, 0.0), seen)) / norm

        lead = mean.shape[: mean.ndim - problem.event_dims]

        def matvec(v: Tensor) -> Tensor:
            state = v.reshape(mean.shape)
            product = pull(forward(state))
            return (product if self.gamma is None else state + self.gamma * product).reshape(v.shape)

        # Conjugate gradients for the change of m from zero are those for h from m.
        right = (1.0 if self.gamma is None else self.gamma) * pull(flat - value)
        change = conjugate_gradient(matvec, right.reshape(*lead, -1), iterations=self.iterations)
        return clean._replace(mean=mean + change.reshape(mean.shape), covariance=None)
