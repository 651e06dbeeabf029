r"""Renoising: each step puts noise on a clean state, new noise or some of that which it came with.

    x_s = beta_s h + alpha_s x_0 + noise_s ( sqrt(1 - f) e + sqrt(f) z )
    e   = (x_t - alpha_t x_0 - beta_t m) / noise_t

`h` is the clean state: the belief's mean after an observation has been taken in, or a draw. `f` is the share of new
noise. With f = 1 every step forgets the noise of the last, so that errors of the belief do not add up along the path:
at a fixed level it is a Gibbs sampler of the pair (clean, noisy).

References:
    Zhang, Chu, Berner, Meng, Anandkumar, Song (2024), Improving diffusion inverse problem solving with decoupled
    noise annealing (DAPS), https://arxiv.org/abs/2407.01521
    Zhu et al. (2023), Denoising diffusion models for plug-and-play image restoration (DiffPIR),
    https://arxiv.org/abs/2305.08995
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from assimilate.posterior.paths import Path
from assimilate.posterior.predictors import Clean, Context
from assimilate.posterior.samplers.base import Sampler
from dynamics.random import Rng, normal
from dynamics.settings import FRACTION, check_settings


@dataclass(frozen=True)
class Renoise(Sampler):
    """Noise on a clean state.

    Args:
        clean: what `h` is. "drawn": a draw of `N(m, V)`, for beliefs with a covariance; after guidance it must be that
            of the posterior (`JacobianFree(covariance="clean")` gives it), and a Gaussian is then sampled exactly.
            "given": the mean itself, for corrections that return a draw or the state to go on from.
        fresh: share f of new noise in the variance, 0 to 1.
        per: what f is a share of. "level": all noise of the new level (DiffPIR's zeta; eta^2 of DDNM and DDRM); "step":
            the part of it that a DDPM step renews, `1 - snr_t / snr_s` (eta^2 of DDIM).
        direction: whether the old noise `e` is what the guided mean leaves of the state, or the unguided one (the
            network's own prediction of the noise, as in DDIM, DDNM and DDS).

    Raises:
        ValueError: a setting out of range.
    """

    clean: Literal["drawn", "given"] = "drawn"
    fresh: float = 1.0
    per: Literal["level", "step"] = "level"
    direction: Literal["guided", "unguided"] = "guided"

    def __post_init__(self) -> None:
        """Check the settings."""
        check_settings(self, fresh=FRACTION)
        if self.clean not in ("drawn", "given") or self.per not in ("level", "step"):
            raise ValueError(f"{self!r}: expected clean 'drawn' or 'given', per 'level' or 'step'")
        if self.direction not in ("guided", "unguided"):
            raise ValueError(f"direction is {self.direction!r}; expected 'guided' or 'unguided'")

    def step(
        self, x: Tensor, t: Tensor, s: Tensor, clean: Clean, again: Callable[[Tensor, Tensor], Clean], path: Path,
        context: Context, rng: Rng, weighted: bool, event_dims: int,
    ) -> tuple[Tensor, Tensor | None]:
        """See `Sampler.step`."""
        if weighted:
            raise ValueError("Renoise has no importance weight; use Ancestral, or ask for no weights")
        shape, state = tuple(x.shape), clean.mean
        if self.clean == "drawn":
            if clean.covariance is None:
                raise ValueError("Renoise draws the clean state and needs its covariance; use a predictor that gives "
                                 "one, clean='given', or another sampler")
            state = state + clean.covariance.draw(rng, shape, dtype=x.dtype, device=x.device)
        then = path.coefficients(s, x)
        base = context.base
        moved = then.beta * state if base is None else then.beta * state + then.alpha * base
        share = self._share(t, s, x, path)
        if bool((share > 0).any()):
            moved = moved + then.noise * share.sqrt() * normal(rng, shape, dtype=x.dtype, device=x.device)
        if bool((share < 1).any()):
            now = path.coefficients(t, x)
            mean = clean.mean if self.direction == "guided" or clean.unguided is None else clean.unguided.mean
            rest = x - now.beta * mean if base is None else x - now.beta * mean - now.alpha * base
            moved = moved + then.noise * (1 - share).sqrt() * rest / now.noise
        return moved, None

    def _share(self, t: Tensor, s: Tensor, x: Tensor, path: Path) -> Tensor:
        """`f`, as a share of the new level's variance."""
        now, then = path.coefficients(t, x), path.coefficients(s, x)
        if bool((now.noise == 0).all()):
            # A point mass carries no noise along.
            return torch.ones_like(now.noise)
        if self.per == "level":
            return torch.full_like(now.noise, self.fresh)
        return self.fresh * torch.where(torch.isfinite(then.snr), 1 - now.snr / then.snr, 1.0).clamp(0, 1)
