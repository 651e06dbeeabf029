"""Heun's second-order step on the probability-flow ODE.

References:
    Karras, Aittala, Aila, Laine (2022), Elucidating the design space of diffusion-based generative models,
    https://arxiv.org/abs/2206.00364
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from assimilate.posterior.paths import Path
from assimilate.posterior.predictors import Clean, Context
from assimilate.posterior.samplers.base import Sampler
from dynamics.random import Rng


@dataclass(frozen=True)
class Heun(Sampler):
    """Heun's second-order step on the probability-flow ODE, deterministic; Euler on a last step to zero noise.

    The ODE is stepped in `u = (x - alpha x_0) / beta` against `rho`, as in EDM: `du/drho = (u - m) / rho`. Needs a
    path whose start holds signal (VP, VE), or a grid that begins after t = 0.
    """

    def step(
        self, x: Tensor, t: Tensor, s: Tensor, clean: Clean, again: Callable[[Tensor, Tensor], Clean], path: Path,
        context: Context, rng: Rng, weighted: bool, event_dims: int,
    ) -> tuple[Tensor, Tensor | None]:
        """See `Sampler.step`."""
        if weighted:
            raise ValueError("Heun is deterministic, so a guided step has no importance weight; use Ancestral or "
                             "EulerMaruyama, or ask for no weights")
        now, then = path.coefficients(t, x), path.coefficients(s, x)
        offset = 0.0 if context.base is None else context.base
        rho, next_rho = now.noise / now.beta, then.noise / then.beta
        unit = (x - now.alpha * offset) / now.beta
        slope = (unit - clean.mean) / rho
        ahead = unit + (next_rho - rho) * slope
        if bool((next_rho > 0).all()):
            second = again(then.beta * ahead + then.alpha * offset, s)
            slope = 0.5 * (slope + (ahead - second.mean) / next_rho)
            ahead = unit + (next_rho - rho) * slope
        return then.beta * ahead + then.alpha * offset, None
