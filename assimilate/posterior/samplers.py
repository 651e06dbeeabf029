r"""Samplers: from the start of a path to clean data, over any time grid, with any predictor.

A sampler never sees an observation: a conditioned predictor gives a shifted clean mean, and the path rebuilds the
step from it. The stochastic samplers are Gaussian kernels

    x_s = mu(x_t, m) + std z,

affine in the clean mean m, so a guided step differs from the prior's by `d = mu(x_t, m_y) - mu(x_t, m)` alone, and
its importance ratio on the same grid is

    log p(x_s | x_t) - log q(x_s | x_t) = - sum over std > 0 of [ d.z / std + |d|^2 / (2 std^2) ].

`Ancestral` steps by the exact transition of the Foellmer process for a fixed clean mean (for VP it is DDPM):

    x_s - alpha_s x_0 = beta_s [ (1 - q) m + pull_t / snr_s (x_t - alpha_t x_0) ] + noise_s sqrt(1 - q) z,
    q = snr_t / snr_s,

so it needs far fewer steps than Euler-Maruyama and is never 0/0 at t = 0.

References:
    Ho, Jain, Abbeel (2020), Denoising diffusion probabilistic models, https://arxiv.org/abs/2006.11239
    Song, Meng, Ermon (2021), Denoising diffusion implicit models, https://arxiv.org/abs/2010.02502
    Song et al. (2021), Score-based generative modeling through SDEs, https://arxiv.org/abs/2011.13456
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from assimilate.posterior.covariance import Covariance, Isotropic
from assimilate.posterior.paths import Path
from assimilate.posterior.predictors import Clean, Context, Predictor
from dynamics.random import Rng, normal


class Sample(NamedTuple):
    """What a sampler returns.

    Attributes:
        x: the state at the last time of the grid, `(*b, *event)`.
        log_ratio: log of prior density over guided density of the noise path, `(*b,)`; None unless asked for.
        evaluations: predictor calls.
    """

    x: Tensor
    log_ratio: Tensor | None
    evaluations: int


Trace = Callable[[float, Tensor, Clean], None]


class Sampler(ABC):
    """A loop over a time grid; subclasses say what one step is."""

    @abstractmethod
    def step(
        self, x: Tensor, t: Tensor, s: Tensor, clean: Clean, again: Callable[[Tensor, Tensor], Clean], path: Path,
        context: Context, rng: Rng, weighted: bool, event_dims: int,
    ) -> tuple[Tensor, Tensor | None]:
        """One step from time t to time s: the new state and the log ratio of the step (None: it has none).

        Args:
            x: state at t.
            t: this time, `()`.
            s: next time, `()`.
            clean: belief at `(x, t)`.
            again: the predictor at another state and time, for samplers that need it.
            path: the path.
            context: base and condition.
            rng: random numbers.
            weighted: whether the log ratio is wanted.
            event_dims: trailing dims of one event.
        """

    def __call__(
        self,
        predictor: Predictor,
        path: Path,
        x: Tensor,
        *,
        times: Tensor,
        event_dims: int,
        rng: Rng,
        context: Context | None = None,
        weighted: bool = False,
        trace: Trace | None = None,
    ) -> Sample:
        """Carry `x` along the grid.

        Args:
            predictor: unconditioned or conditioned.
            path: the path.
            x: state at `times[0]`, `(*b, *event)`.
            times: increasing, `(K,)`, in [0, 1].
            event_dims: trailing dims of one event.
            rng: random numbers.
            context: base and condition.
            weighted: return the importance ratio of the guided steps.
            trace: called with `(time, x, clean)` before every step.

        Raises:
            ValueError: if a ratio is asked of a sampler or a gain that has none.
        """
        context = context or Context()
        total = x.new_zeros(x.shape[: x.ndim - event_dims]) if weighted else None
        calls = 0

        def ask(state: Tensor, time: Tensor) -> Clean:
            nonlocal calls
            calls += 1
            with torch.no_grad():
                return predictor(state, time, context)

        for t, s in zip(times[:-1], times[1:], strict=True):
            clean = ask(x, t)
            if trace is not None:
                trace(float(t), x, clean)
            if weighted and clean.kick is not None:
                raise ValueError("a constant-gain guidance moves states outside the path's step and has no importance "
                                 "weight; use gain='exact' or ask for no weights")
            x, ratio = self.step(x, t, s, clean, ask, path, context, rng, weighted, event_dims)
            if clean.kick is not None:
                x = x + clean.kick
            if total is not None and ratio is not None:
                total = total + ratio
        return Sample(x, total, calls)


class Kernel(NamedTuple):
    """The Gaussian law of one step.

    Attributes:
        mean: `(*b, *event)`.
        std: of the independent noise, broadcastable against the mean.
        extra: `(factor, covariance)` of correlated noise drawn on top, or None.
    """

    mean: Tensor
    std: Tensor
    extra: tuple[Tensor, Covariance] | None


class GaussianSampler(Sampler):
    """A sampler whose step is a Gaussian kernel, affine in the clean mean."""

    @abstractmethod
    def kernel(
        self, x: Tensor, t: Tensor, s: Tensor, mean: Tensor, covariance: Covariance | None, path: Path, context: Context
    ) -> Kernel:
        """The law of `x_s` given `x_t = x` when the clean state has this mean and covariance."""

    def step(
        self, x: Tensor, t: Tensor, s: Tensor, clean: Clean, again: Callable[[Tensor, Tensor], Clean], path: Path,
        context: Context, rng: Rng, weighted: bool, event_dims: int,
    ) -> tuple[Tensor, Tensor | None]:
        """See `Sampler.step`. A noiseless step has no density; with weights it stays unguided."""
        prior = clean.unguided if weighted else None
        # The ratio of two laws with one covariance needs the mean's shift alone: weighted steps keep the prior's.
        covariance = clean.covariance if prior is None else prior.covariance
        centre, std, extra = self.kernel(x, t, s, clean.mean, covariance, path, context)
        noiseless = std <= 0
        if bool(noiseless.all()) and extra is None:
            if prior is not None:
                centre = self.kernel(x, t, s, prior.mean, covariance, path, context).mean
            return centre, None
        z = normal(rng, tuple(x.shape), dtype=x.dtype, device=x.device)
        moved = centre + std * z
        if extra is not None:
            if weighted:
                raise ValueError("steps with correlated noise have no importance weight here; use variance='upper' or "
                                 "'lower', or ask for no weights")
            factor, correlated = extra
            moved = moved + factor * correlated.draw(rng, tuple(x.shape), dtype=x.dtype, device=x.device)
        if prior is None:
            return moved, None
        unguided = self.kernel(x, t, s, prior.mean, covariance, path, context).mean
        shift = torch.where(noiseless, 0.0, (centre - unguided) / torch.where(noiseless, 1.0, std))
        events = tuple(range(-event_dims, 0))
        return moved, -(shift * z + 0.5 * shift.square()).sum(events)


@dataclass(frozen=True)
class Ancestral(GaussianSampler):
    """DDPM and DDIM on every path, the interpolant's included.

    Args:
        eta: 1 for the stochastic sampler (DDPM; the Foellmer process), 0 for the deterministic one (DDIM); a factor on
            the standard deviation, as in the DDIM paper. A step that leaves a point mass (an interpolant's start) has
            no noise to carry along and is taken with eta = 1.
        variance: with eta = 1, what is added to the kernel's variance `noise_s^2 (1 - q)` because the clean state is
            not known: `beta_s^2 (1 - q)^2 V`. "lower" adds nothing, V = 0; "upper" takes independent Gaussian clean
            values of the path's own spread p, `V = 1 / (snr_t + 1 / p^2)` (these two are DDPM's choices); "clean"
            takes the predictor's own covariance of the clean state. All meet as the grid is refined, but "lower"
            loses variance on a coarse one (4 % at 200 steps from rho = 50), and with the right V a Gaussian is drawn
            exactly in any number of steps. A correlated V ("clean" on a grid) leaves no importance weight.

    References:
        Bao, Li, Zhu, Zhang (2022), Analytic-DPM: an analytic estimate of the optimal reverse variance in diffusion
        probabilistic models, https://arxiv.org/abs/2201.06503 ("clean", there with one number for all data).
    """

    eta: float = 1.0
    variance: Literal["lower", "upper", "clean"] = "lower"

    def __post_init__(self) -> None:
        """Check the settings."""
        if not 0 <= self.eta <= 1 or self.variance not in ("lower", "upper", "clean"):
            raise ValueError(f"{self!r}: expected eta from 0 to 1 and variance 'lower', 'upper' or 'clean'")

    def kernel(
        self, x: Tensor, t: Tensor, s: Tensor, mean: Tensor, covariance: Covariance | None, path: Path, context: Context
    ) -> Kernel:
        """See `GaussianSampler.kernel`."""
        now, then = path.coefficients(t, x), path.coefficients(s, x)
        base = context.base
        centred = x if base is None else x - now.alpha * base
        finite = torch.isfinite(then.snr)
        share = torch.where(finite, now.snr / then.snr, 0.0)
        fresh = (1 - share).clamp_min(0)
        if self.eta == 1 or bool((now.noise == 0).all()):
            centre = then.beta * (fresh * mean + torch.where(finite, now.pull / then.snr, 0.0) * centred)
            variance, extra = then.noise**2 * fresh, None
            if self.variance == "upper":
                variance = variance + (then.beta * fresh) ** 2 / (now.snr + 1 / path.spread(x) ** 2)
            elif self.variance == "clean":
                if isinstance(covariance, Isotropic):
                    variance = variance + (then.beta * fresh) ** 2 * covariance.variance.detach()
                elif covariance is not None:
                    extra = (then.beta * fresh, covariance)
                else:
                    raise ValueError("variance='clean' needs a predictor that gives the covariance of the clean state; "
                                     "use 'upper' or 'lower'")
            std = torch.sqrt(variance)
        else:
            std = self.eta * then.noise * torch.sqrt(fresh)
            rest = torch.sqrt((then.noise**2 - std**2).clamp_min(0))
            centre, extra = then.beta * mean + rest * (centred - now.beta * mean) / now.noise, None
        return Kernel(centre if base is None else centre + then.alpha * base, std, extra)


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


@dataclass(frozen=True)
class Renoise(Sampler):
    """Draw the clean state, then noise it afresh: `x_1 ~ N(m, V)`, `x_s = beta_s x_1 + alpha_s x_0 + noise_s z`.

    Each step forgets the noise of the last, so that errors of the Gaussian `N(m, V)` do not add up along the path: at
    a fixed level it is a Gibbs sampler of the pair (clean, noisy). Needs a predictor with the covariance of the clean
    state; after guidance it must be that of the posterior (`JacobianFree(covariance="clean")` gives it).

    References:
        Zhang, Chu, Berner, Meng, Anandkumar, Song (2024), Improving diffusion inverse problem solving with decoupled
        noise annealing (DAPS), https://arxiv.org/abs/2407.01521

    Differs from the paper: the draw of the clean state is the Gaussian posterior with the predictor's own covariance,
    not a Langevin chain around an ODE endpoint with variance rho^2, which inflates the spread.
    """

    def step(
        self, x: Tensor, t: Tensor, s: Tensor, clean: Clean, again: Callable[[Tensor, Tensor], Clean], path: Path,
        context: Context, rng: Rng, weighted: bool, event_dims: int,
    ) -> tuple[Tensor, Tensor | None]:
        """See `Sampler.step`."""
        if weighted or clean.covariance is None:
            raise ValueError("Renoise has no importance weight and needs the covariance of the clean state; use "
                             "Ancestral, or a predictor with a covariance and no weights")
        shape = tuple(x.shape)
        drawn = clean.mean + clean.covariance.draw(rng, shape, dtype=x.dtype, device=x.device)
        z = normal(rng, shape, dtype=x.dtype, device=x.device)
        return path.sample(s, drawn, context.base, z), None


@dataclass(frozen=True)
class PredictorCorrector(Sampler):
    """A sampler's step followed by Langevin corrections at the new time.

    Correction: `x <- x + noise (delta s + sqrt(2 delta) z)` with `s = noise * score` and
    `delta = tau / mean(s^2)` per sample, as in SDA.

    Args:
        inner: the sampler that steps.
        corrections: Langevin corrections a step (SDA: 0-16).
        tau: their signal-to-noise ratio, dimensionless (SDA: 0.25-0.5).
    """

    inner: Sampler = Ancestral(eta=0.0)
    corrections: int = 1
    tau: float = 0.25

    def step(
        self, x: Tensor, t: Tensor, s: Tensor, clean: Clean, again: Callable[[Tensor, Tensor], Clean], path: Path,
        context: Context, rng: Rng, weighted: bool, event_dims: int,
    ) -> tuple[Tensor, Tensor | None]:
        """See `Sampler.step`."""
        if weighted:
            raise ValueError("Langevin corrections have no importance weight; ask for no weights")
        x, _ = self.inner.step(x, t, s, clean, again, path, context, rng, False, event_dims)
        noise = path.coefficients(s, x).noise
        if not bool((noise > 0).all()):
            return x, None
        events = tuple(range(-event_dims, 0))
        for _ in range(self.corrections):
            score = path.from_mean(x, s, again(x, s).mean, "score", context.base) * noise
            delta = self.tau / score.square().mean(events, keepdim=True)
            z = normal(rng, tuple(x.shape), dtype=x.dtype, device=x.device)
            x = x + noise * (delta * score + torch.sqrt(2 * delta) * z)
        return x, None
