r"""SITCOM's correction: the noisy state that denoises to what was measured.

    v = argmin |R^-1/2 (y - A(m(v)))|^2 + lam (p / 0.5)^2 |w|^2 / r,     v = x_t + c w,     h = m(v)

by K Adam steps on w through the predictor, with `c = beta sqrt(rho^2 + (p / 0.5)^2)`, p the spread of the data and r
the mean noise variance. In these coordinates, and for images in [-1, 1] with p near 1/2, w is a displacement of the
paper's variance-preserving state, and the learning rate is the paper's. A sample stands still once its mean squared
whitened residual is below `stop`; the last iterate is what counts, never the best one.

References:
    Alkhouri, Liang, Huang, Dai, Qu, Ravishankar, Wang (2024), SITCOM: step-wise triple-consistent diffusion sampling
    for inverse problems, https://arxiv.org/abs/2410.04479
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from assimilate.posterior.condition import Problem
from assimilate.posterior.corrections.data_term import flat_values
from assimilate.posterior.linearize import gaussian_noise, observe_flat
from assimilate.posterior.predictors import Clean, Context
from dynamics.settings import COUNT, NOT_NEGATIVE, POSITIVE, check_settings, number


@dataclass(frozen=True)
class SITCOM:
    """SITCOM's correction; go on with `Renoise(clean="given")`.

    Args:
        iterations: K, Adam steps a level, one network evaluation and one backward pass each (the paper: 20-40).
        rate: Adam's learning rate (0.01), in the paper's coordinates.
        penalty: lam, weight of the displacement against squared residuals of images in [-1, 1] (1).
        stop: mean squared whitened residual at which a sample stands still; the paper's `(sigma_y + 0.001)^2` at 0.05.
        prior_std: p, in units of the state; the path's own spread by default.

    Exactness: biased (a point, not a draw; the spread comes from the noise that is put on again).
    """

    iterations: int = 20
    rate: float = 0.01
    penalty: float = 1.0
    stop: float = 1.04
    prior_std: float | None = None

    def __post_init__(self) -> None:
        """Check the settings."""
        check_settings(self, iterations=COUNT, rate=POSITIVE, penalty=NOT_NEGATIVE, stop=NOT_NEGATIVE)
        check_settings(self, prior_std=number(above=0, none=True))

    @property
    def backpropagates(self) -> bool:
        """Through the predictor, K times a level."""
        return True

    def __call__(self, clean: Clean, x: Tensor, t: Tensor, context: Context, problem: Problem) -> Clean:
        """See `Guidance`."""
        likelihood = problem.likelihood
        noise = gaussian_noise(likelihood)
        y = flat_values(likelihood, problem.y, x)
        seen = ~torch.isnan(y)
        data = torch.where(seen, y, 0.0)
        variance = noise.variance(y.shape[-1], dtype=x.dtype, device=x.device).mean()
        unit = 2 * (problem.path.spread(x) if self.prior_std is None else torch.as_tensor(self.prior_std).to(x))
        c = problem.path.coefficients(t, x)
        scale = torch.sqrt(c.noise**2 + (c.beta * unit) ** 2)
        w = torch.zeros_like(x)
        first, second = torch.zeros_like(x), torch.zeros_like(x)
        source, mean = x, clean.mean
        for count in range(1, self.iterations + 1):
            value = observe_flat(likelihood.operator, mean)
            here = seen.expand(value.shape)
            white = noise.whiten(torch.where(here, data - value, 0.0), here)
            chi = white.square().sum(-1)
            moving = (chi > self.stop * here.sum(-1)).reshape(*chi.shape, *(1,) * problem.event_dims)
            if not bool(moving.any()):
                break
            pull = torch.autograd.grad(chi.sum(), source)[0]
            slope = (scale * pull + 2 * self.penalty * unit**2 / variance * w).detach()
            first, second = 0.9 * first + 0.1 * slope, 0.999 * second + 0.001 * slope**2
            length = torch.sqrt(second / (1 - 0.999**count)) + 1e-8
            w = torch.where(moving, w - self.rate * first / (1 - 0.9**count) / length, w)
            source = (x + scale * w).detach().requires_grad_()
            mean = problem.predictor(source, t, context).mean
        return clean._replace(mean=mean.detach(), covariance=None)
