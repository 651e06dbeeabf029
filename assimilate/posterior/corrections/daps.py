r"""DAPS's correction: a draw of the clean state around a centre, given the observation.

    x_1 ~ p(y | x_1) N(x_1; c, r^2 I)

The Gaussian stands for `p(x_1 | x_t)`, and decides whether samples spread as they should:

    this package   c = m (clean mean),           r^2 = rho^2 p^2 / (rho^2 + p^2), p the spread of the data
    the paper      c = end of the flow from x_t, r   = rho

For a prior N(0, p^2 I) the first is exact. The second is not, on two counts: the end of the probability flow is
already a draw, whose own scatter adds to r^2, and r = rho forgets that the prior bounds the clean state at high noise.
Samples then have 1.6 times the posterior variance [measured on Gaussian priors].

References:
    Zhang, Chu, Berner, Meng, Anandkumar, Song (2024), Improving diffusion inverse problem solving with decoupled
    noise annealing, https://arxiv.org/abs/2407.01521

Differs from the paper: centre and variance, unless asked for; the draw is exact for linear observations with Gaussian
noise; the likelihood has the noise's own standard deviation (the code: 0.01 whatever the noise); Langevin steps are in
units of the stiffness and start from a draw of the Gaussian, not from its centre, unless a short walk is asked for.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar, Literal

import torch
from torch import Tensor

from assimilate.posterior.condition import Problem
from assimilate.posterior.corrections.draw_around import DrawAround, Inner
from assimilate.posterior.guidance.base import isotropic_variance
from assimilate.posterior.paths import Path
from assimilate.posterior.predictors import Clean, Context
from assimilate.posterior.samplers import Ancestral
from dynamics.random import Rng
from dynamics.settings import COUNT, check_settings, number


@dataclass(frozen=True)
class DAPS:
    """DAPS's correction; go on with `Renoise(clean="given")`.

    Args:
        centre: "mean", or "flow": the end of the probability flow from the noisy state.
        variance: "matched", `rho^2 p^2 / (rho^2 + p^2)`, or "noise", `rho^2`.
        prior_std: p, in units of the state; the path's own spread by default (one a channel on an interpolant).
        flow_steps: Euler steps of the flow (5), one network evaluation each.
        inner: how the state is drawn: "exact" (linear, Gaussian noise), "langevin" (any), "auto", or "short": the walk
            of the published code, which ends early.
        steps: Langevin steps (the paper: 100).
        step: their length, dimensionless, see `assimilate.posterior.corrections.langevin`.
        iterations: most conjugate-gradient iterations of the exact draw.
        rate: largest step of a short walk, units of the state squared; it falls as `rho^2 / p^2` below rho = p (the
            code's falls with the number of the step, which ties it to one grid).

    Exactness: exact for a Gaussian prior with independent values of spread p, biased otherwise.

    Raises:
        ValueError: an unknown setting; or variance "noise" at a start without signal, where it is infinite.
    """

    draws: ClassVar[bool] = True

    centre: Literal["mean", "flow"] = "mean"
    variance: Literal["matched", "noise"] = "matched"
    prior_std: float | None = None
    flow_steps: int = 5
    inner: Inner = "auto"
    steps: int = 100
    step: float = 0.1
    iterations: int = 100
    rate: float | None = None

    def __post_init__(self) -> None:
        """Check the settings."""
        if self.centre not in ("mean", "flow") or self.variance not in ("matched", "noise"):
            raise ValueError(f"{self!r}: expected centre 'mean' or 'flow', variance 'matched' or 'noise'")
        check_settings(self, flow_steps=COUNT, prior_std=number(above=0, none=True))
        _ = self._draw

    @property
    def backpropagates(self) -> bool:
        """Never."""
        return False

    @property
    def _draw(self) -> DrawAround:
        return DrawAround(self.inner, self.steps, self.step, self.iterations, self.rate)

    def _draw_at(self, t: Tensor, path: Path) -> DrawAround:
        """The draw with the rate of this level."""
        if self.rate is None:
            return self._draw
        share = path.ratio(float(t)) / (1.0 if self.prior_std is None else self.prior_std)
        return replace(self._draw, rate=self.rate * min(1.0, share**2))

    def __call__(self, clean: Clean, x: Tensor, t: Tensor, context: Context, problem: Problem) -> Clean:
        """See `Guidance`."""
        assert problem.rng is not None
        if self.variance == "matched":
            variance = isotropic_variance(problem.path, t, x, self.prior_std)
        else:
            variance = 1 / problem.path.coefficients(t, x).snr
        if not bool(torch.isfinite(variance).all()):
            raise ValueError("variance='noise' is infinite where the path holds no signal; use variance='matched', or "
                             "a time grid that begins after the start")
        centre = clean.mean if self.centre == "mean" else self._flow_end(clean, x, t, context, problem, problem.rng)
        state = self._draw_at(t, problem.path)(centre, variance, problem.likelihood, problem.y, problem.rng)
        return clean._replace(mean=state, covariance=None)

    def _flow_end(self, clean: Clean, x: Tensor, t: Tensor, context: Context, problem: Problem, rng: Rng) -> Tensor:
        """Where the probability flow ends, by Euler steps in rho from the state's own level to 0."""
        path = problem.path
        first = path.ratio(float(t))
        # Published: down to 0.01 for images in [-1, 1], whose spread is near 1/2.
        last = 0.02 * (1.0 if self.prior_std is None else self.prior_std)
        if self.flow_steps == 1 or first <= last or first == float("inf"):
            # One Euler step; at a point mass the flow has one end, the mean.
            return clean.mean
        roots = torch.linspace(first ** (1 / 7), last ** (1 / 7), self.flow_steps, dtype=torch.float64)
        grid = [float(t), *(path.time(float(root) ** 7) for root in roots[1:]), 1.0]
        times = torch.tensor(grid, dtype=t.dtype, device=t.device)
        known: list[Clean] = [clean]

        def predictor(x: Tensor, t: Tensor, context: Context) -> Clean:
            # The first belief is known already.
            return known.pop() if known else problem.predictor(x, t, context)

        sample = Ancestral(eta=0.0)(
            predictor, path, x, times=times, event_dims=problem.event_dims, rng=rng, context=context
        )
        return sample.x
