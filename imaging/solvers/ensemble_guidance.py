r"""Ensemble Kalman guidance: an ensemble of noisy images is moved towards the measurement by its own statistics.

Neither the operator nor the network is differentiated. At a level, each particle `x_i` is carried to its clean image by
the probability-flow ODE and observed, `y_i = A(ODE(x_i))`; sample covariances of noisy images and what is observed of
them do the rest. Because the ODE is a bijection, a noisy image is as good a description of the clean one as any: drawn
given y, it flows to a clean image given y, *without* further guidance. Two rules follow:

    "tempered"    x_i <- x_i + C_xy (C_yy + a R)^-1 (y + sqrt(a) e_i - y_i),    e_i ~ N(0, R),   a = number of levels
    "published"   x_i <- x_i - (scale / |c|_F) sum_j c_ij (x_j - mean),         c_ij = (y_i - y)^T R^-1 (y_j - mean) / P

The tempered rule takes in y once, in equal shares, one a level (inverse variances add up): exact for a Gaussian prior
and a linear operator, as particles and levels grow. The published step has a fixed length, whatever R is, and collapses
the ensemble onto a best fit.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from assimilate.posterior.paths import Path
from assimilate.posterior.predictors import Clean, Context, Predictor
from assimilate.posterior.samplers import Ancestral
from assimilate.posterior.weights import uniform_log_weights
from dynamics.random import Streams, normal
from imaging.solvers.base import Need, Solution, Task
from imaging.solvers.particles import ParticleSolver, draw_members


@dataclass(frozen=True)
class EnKG(ParticleSolver):
    """Ensemble Kalman diffusion guidance.

    About `steps * ode_steps` network evaluations for every particle.

    Args:
        steps: levels (paper: 80).
        particles: of the ensemble (paper: 2048). The update stays in their span, and sampling errors take away variance
            of about `observed values / particles` where there are fewer particles than values.
        rule: "tempered" or "published", see the module docstring.
        ode_steps: most Euler steps to a clean image (paper: 20).
        updates: of the published rule, at each level (paper: 2).
        scale: length of its step (paper: 2, dimensionless).

    Exactness: biased; the tempered rule is consistent for Gaussian priors and linear operators.

    Differs from the paper: the tempered rule (Emerick, Reynolds 2013, Ensemble smoother with multiple data
    assimilation, https://doi.org/10.1016/j.cageo.2012.03.011, here at the levels of a diffusion) is the default;
    residuals are in units of the noise.
    """

    name: ClassVar[str] = "EnKG"
    reference: ClassVar[str] = (
        "Zheng, Chu, Wang, Kovachki, Baptista, Yue (2024), Ensemble Kalman diffusion guidance: a derivative-free "
        "method for inverse problems, https://arxiv.org/abs/2409.20175"
    )
    needs: ClassVar[tuple[Need, ...]] = ("gaussian",)
    couples: ClassVar[bool] = True

    steps: int = 80
    particles: int = 512
    rule: Literal["tempered", "published"] = "tempered"
    ode_steps: int = 20
    updates: int = 2
    scale: float = 2.0

    def __post_init__(self) -> None:
        """Check the settings."""
        super().__post_init__()
        if self.rule not in ("tempered", "published"):
            raise ValueError(f"rule is {self.rule!r}; expected 'tempered' or 'published'")
        if self.ode_steps < 1 or self.updates < 1 or not self.scale > 0:
            raise ValueError(f"{self!r}: expected ode_steps >= 1, updates >= 1 and a positive scale")

    @classmethod
    def published(cls, **settings: float) -> EnKG:
        """The paper's rule, 2048 particles."""
        return cls(**{"rule": "published", "particles": 2048, **settings})  # type: ignore[arg-type]

    def solve(self, task: Task, rng: Streams) -> Solution:
        """See `Solver.solve`."""
        own = self.streams(rng)
        path = self.path(task)
        times, counted = self.times(task, path), self.predictor(task, path)
        x = self.initial(task, path, times, own)
        flow = _Flow(counted, path, own, task.event_dims)
        y = task.y.to(x)
        with torch.no_grad():
            for level in range(len(times) - 1):
                for _ in range(self.updates if self.rule == "published" else 1):
                    end = flow.follow(x, self._thinned(times[level:]))
                    # In units of the noise, and 0 where nothing was observed.
                    residual = task.likelihood.residual(y, end).flatten(2)
                    x = self._towards(x, residual, len(times) - 1, own)
                x = flow.follow(x, times[level : level + 2])
        return Solution(draw_members(x, uniform_log_weights(x), rng), counted.calls[0])

    def _thinned(self, times: Tensor) -> Tensor:
        """At most `ode_steps` steps from the first of the times to the last."""
        count = min(self.ode_steps, len(times) - 1)
        return times[torch.linspace(0, len(times) - 1, count + 1).round().long()]

    def _towards(self, x: Tensor, residual: Tensor, levels: int, rng: Streams) -> Tensor:
        """One update of `(E, P, *event)` by whitened residuals `(E, P, m)`, in the span of the ensemble."""
        anomaly = x - x.mean(1, keepdim=True)
        # Anomalies of what is observed: the residual falls where it rises.
        seen = residual.mean(1, keepdim=True) - residual
        if self.rule == "published":
            pull = residual @ seen.mT / self.particles
            length = torch.linalg.vector_norm(pull, dim=(-2, -1), keepdim=True)
            share = self.scale * pull / length.clamp_min(torch.finfo(x.dtype).tiny)
        else:
            e = normal(rng, tuple(residual.shape), dtype=x.dtype, device=x.device)
            goal = residual + levels**0.5 * e
            left, singular, right = torch.linalg.svd(seen, full_matrices=False)
            # C_xy (C_yy + a)^-1 by the singular values of the anomalies, whichever side is the smaller. What was not
            # observed has no anomalies, and its part of the goal drops out.
            gain = singular / (singular**2 + (self.particles - 1) * levels)
            share = ((goal @ right.mT) * gain[..., None, :]) @ left.mT
        return x + (share @ anomaly.flatten(2)).reshape(x.shape)


@dataclass(frozen=True)
class _Flow:
    """The probability-flow ODE by Euler steps."""

    predictor: Predictor
    path: Path
    rng: Streams
    event_dims: int

    def follow(self, x: Tensor, times: Tensor) -> Tensor:
        """From the first time to the last."""
        context = Context()

        def ask(state: Tensor, time: Tensor) -> Clean:
            return self.predictor(state, time, context)

        euler = Ancestral(eta=0.0)
        for t, s in zip(times[:-1], times[1:], strict=True):
            x, _ = euler.step(x, t, s, ask(x, t), ask, self.path, context, self.rng, False, self.event_dims)
        return x
