r"""Gaussian paths: every generative prior of the package is one of these.

A path joins a start `x_0` to clean data `x_1` by

    x_t = beta(t) x_1 + alpha(t) x_0 + noise(t) z,        z ~ N(0, I),   t = 0 start, t = 1 clean.

Diffusion (`VP`, `VE`) and flow matching have `alpha = 0`; the stochastic interpolant of FlowDAS starts from the
previous state (or a forecast made from it) and has `noise(t) = sigma(t) sqrt(t)`, because there `sigma` multiplies a
Wiener process. Symbols used below, all for one path at one time:

    rho    = noise / beta                       noise-to-signal ratio; x_t is x_1 + rho z after (x_t - alpha x_0) / beta
    snr    = beta^2 / noise^2                   its inverse square
    pull   = beta / noise^2                     finite where snr is zero, as at the start of an interpolant
    v      = alpha' x_0 + beta' m + noise' E[z]         velocity of the probability-flow ODE
    b      = v + sigma^2/2 score                        drift when the SDE keeps its diffusion sigma
    g_F^2  = 2 noise^2 (beta'/beta - noise'/noise)      Foellmer diffusion: the guided path is then an h-transform

with `m = E[x_1 | x_t, x_0]`, the **clean mean**, from which everything else follows affinely. For VP, VE and flow
matching the Foellmer diffusion is the usual reversal (DDPM) of the noising process.

Times are tensors: zero-dimensional, or with the leading dims of the state (one time a sample).

References:
    Albergo, Boffi, Vanden-Eijnden (2023), Stochastic interpolants, https://arxiv.org/abs/2303.08797
    Chen, Goldstein, Hua, Albergo, Boffi, Vanden-Eijnden (2024), Probabilistic forecasting with stochastic
    interpolants and Foellmer processes, https://arxiv.org/abs/2403.13724
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Literal, NamedTuple, get_args

import torch
from torch import Tensor

from dynamics.settings import NOT_NEGATIVE, POSITIVE, check_settings, number, one_or_several, whole

Kind = Literal["clean", "noise", "score", "velocity", "drift"]


class Coefficients(NamedTuple):
    """The numbers of a path at one time, each broadcastable against the state, dimensionless but for `noise`'s scale.

    `bend` is d/dt log(noise^2 / beta) and `foellmer` is g_F^2; both are given apart because their closed forms stay
    finite where the quotients that define them do not.
    """

    alpha: Tensor
    beta: Tensor
    noise: Tensor
    d_alpha: Tensor
    d_beta: Tensor
    d_noise: Tensor
    sigma: Tensor
    d_sigma: Tensor
    snr: Tensor
    pull: Tensor
    bend: Tensor
    foellmer: Tensor


class Path(ABC):
    """A Gaussian path. Subclasses give `coefficients`; the affine maps between parameterisations live here."""

    @abstractmethod
    def coefficients(self, t: Tensor, x: Tensor) -> Coefficients:
        """Coefficients at time `t`, shaped to broadcast against `x`.

        Args:
            t: time in [0, 1], shape `()` or the first dims of `x`.
            x: the state `(*b, *event)`; only its shape, dtype and device are used.
        """

    @abstractmethod
    def ratio(self, t: float) -> float:
        """`rho(t) = noise / beta` for a unit scale; infinite at a start that holds no signal."""

    def spread(self, x: Tensor) -> Tensor:
        """Standard deviation of `x_1` (given `x_0`) that the path is made for, broadcastable against `x`: 1."""
        return torch.ones((), dtype=x.dtype, device=x.device)

    def start(self, base: Tensor, z: Tensor) -> Tensor:
        """A draw of `x_0`'s end of the path: `alpha(0) base + noise(0) z` (the data term is absent or negligible)."""
        c = self.coefficients(torch.zeros((), dtype=z.dtype, device=z.device), z)
        return c.alpha * base + c.noise * z

    def sample(self, t: Tensor, clean: Tensor, base: Tensor | None, z: Tensor) -> Tensor:
        """`x_t` for given clean data, start and noise."""
        c = self.coefficients(t, clean)
        x = c.beta * clean + c.noise * z
        return x if base is None else x + c.alpha * base

    def target(self, t: Tensor, clean: Tensor, base: Tensor | None, z: Tensor, kind: Kind) -> Tensor:
        """What a network of this `kind` regresses on at `x_t = sample(t, clean, base, z)`.

        The drift's target is `alpha' x_0 + beta' x_1 + sigma' sqrt(t) z` with `noise = sigma sqrt(t)`.
        """
        c = self.coefficients(t, clean)
        if kind == "clean":
            return clean
        if kind == "noise":
            return z
        if kind == "score":
            return -z / c.noise
        motion = c.d_beta * clean if base is None else c.d_beta * clean + c.d_alpha * base
        if kind == "velocity":
            return motion + c.d_noise * z
        if kind == "drift":
            # noise / sigma = sqrt(t) on an interpolant, where sigma is zero at the end.
            return motion + c.d_sigma * torch.where(c.sigma > 0, c.noise / c.sigma, torch.ones_like(c.sigma)) * z
        raise ValueError(_unknown_kind(kind))

    def to_mean(self, x: Tensor, t: Tensor, output: Tensor, kind: Kind, base: Tensor | None = None) -> Tensor:
        """The clean mean `E[x_1 | x_t, x_0]` from a network's output: exact, affine, no further network call.

        Args:
            x: state `(*b, *event)`.
            t: time, shape `()` or the first dims of `x`.
            output: the network's output at `(x, t)`, in the parameterisation `kind`.
            kind: "clean", "noise", "score", "velocity" (of the probability-flow ODE) or "drift" (of the SDE that keeps
                its diffusion `sigma`; it differs from the velocity by `sigma^2/2` times the score).
            base: `x_0`, needed where `alpha` is not zero.
        """
        if kind == "clean":
            return output
        c = self.coefficients(t, x)
        centred = x if base is None else x - c.alpha * base
        if kind == "noise":
            return (centred - c.noise * output) / c.beta
        if kind == "score":
            return (centred + c.noise**2 * output) / c.beta
        level, d_level = (c.noise, c.d_noise) if kind == "velocity" else (c.sigma, c.d_sigma)
        if kind not in ("velocity", "drift"):
            raise ValueError(_unknown_kind(kind))
        moved = output if base is None else output - c.d_alpha * base
        return (level * moved - d_level * centred) / (level * c.d_beta - d_level * c.beta)

    def from_mean(self, x: Tensor, t: Tensor, mean: Tensor, kind: Kind, base: Tensor | None = None) -> Tensor:
        """The inverse of `to_mean`: noise, score, velocity or drift of a given clean mean."""
        if kind == "clean":
            return mean
        c = self.coefficients(t, x)
        rest = x - c.beta * mean if base is None else x - c.beta * mean - c.alpha * base
        motion = c.d_beta * mean if base is None else c.d_beta * mean + c.d_alpha * base
        if kind == "noise":
            return rest / c.noise
        if kind == "score":
            return -rest / c.noise**2
        if kind == "velocity":
            return motion + c.d_noise / c.noise * rest
        if kind == "drift":
            return motion + c.d_sigma / c.sigma * rest
        raise ValueError(_unknown_kind(kind))

    def time(self, ratio: float) -> float:
        """The time at which `rho` equals `ratio`, by bisection in float64 (`rho` decreases in t)."""
        low, high = 0.0, 1.0
        for _ in range(80):
            middle = 0.5 * (low + high)
            low, high = (middle, high) if self.ratio(middle) > ratio else (low, middle)
        return 0.5 * (low + high)


@dataclass(frozen=True)
class VP(Path):
    """Variance-preserving diffusion with SDA's cosine schedule.

    `beta(t) = cos^2(w (1 - t))`, `w = arccos(sqrt(floor))`, `noise^2 = 1 - beta^2 + floor^2`, so `beta(0) = floor`.

    Args:
        floor: signal left at the start and noise left at the end, dimensionless; SDA's code uses 1e-3.

    References:
        Rozet, Louppe (2023), Score-based data assimilation, https://arxiv.org/abs/2306.10574
    """

    floor: float = 1e-3

    def __post_init__(self) -> None:
        """Check the settings."""
        check_settings(self, floor=number(above=0, below=1))

    def coefficients(self, t: Tensor, x: Tensor) -> Coefficients:
        """See `Path.coefficients`."""
        t = _align(t, x)
        w = math.acos(math.sqrt(self.floor))
        beta = torch.cos(w * (1 - t)) ** 2
        d_beta = w * torch.sin(2 * w * (1 - t))
        noise = torch.sqrt(1 - beta**2 + self.floor**2)
        return _diffusion(beta, noise, d_beta, -beta * d_beta / noise)

    def ratio(self, t: float) -> float:
        """See `Path.ratio`."""
        beta = math.cos(math.acos(math.sqrt(self.floor)) * (1 - t)) ** 2
        return math.sqrt(1 - beta**2 + self.floor**2) / beta


@dataclass(frozen=True)
class VE(Path):
    """Variance-exploding diffusion on the EDM grid: `beta = 1`, `noise` from `largest` to `smallest`.

    `noise(t) = (largest^(1/rho) + t (smallest^(1/rho) - largest^(1/rho)))^rho`, so that equal steps in t are the
    levels of Karras et al.

    Args:
        smallest: last noise level, in data units (0.002 in the paper).
        largest: first noise level, in data units (80 in the paper).
        exponent: the paper's rho (7).

    References:
        Karras, Aittala, Aila, Laine (2022), Elucidating the design space of diffusion-based generative models,
        https://arxiv.org/abs/2206.00364
    """

    smallest: float = 0.002
    largest: float = 80.0
    exponent: float = 7.0

    def __post_init__(self) -> None:
        """Check the settings."""
        check_settings(self, smallest=NOT_NEGATIVE, largest=POSITIVE, exponent=POSITIVE)
        if not self.largest > self.smallest:
            raise ValueError(f"largest is {self.largest}; expected more than smallest, {self.smallest}")

    def coefficients(self, t: Tensor, x: Tensor) -> Coefficients:
        """See `Path.coefficients`."""
        t = _align(t, x)
        first, last = self.largest ** (1 / self.exponent), self.smallest ** (1 / self.exponent)
        root = first + t * (last - first)
        noise = root**self.exponent
        d_noise = self.exponent * root ** (self.exponent - 1) * (last - first)
        return _diffusion(torch.ones_like(noise), noise, torch.zeros_like(noise), d_noise)

    def ratio(self, t: float) -> float:
        """See `Path.ratio`."""
        first, last = self.largest ** (1 / self.exponent), self.smallest ** (1 / self.exponent)
        return (first + t * (last - first)) ** self.exponent


@dataclass(frozen=True)
class FlowMatching(Path):
    """The straight path of rectified flow: `beta = t`, `noise = 1 - t`.

    References:
        Lipman, Chen, Ben-Hamu, Nickel, Le (2022), Flow matching for generative modeling,
        https://arxiv.org/abs/2210.02747
    """

    def coefficients(self, t: Tensor, x: Tensor) -> Coefficients:
        """See `Path.coefficients`."""
        t = _align(t, x)
        one = torch.ones_like(t)
        return _diffusion(t, 1 - t, one, -one)

    def ratio(self, t: float) -> float:
        """See `Path.ratio`."""
        return math.inf if t == 0 else (1 - t) / t


@dataclass(frozen=True)
class Interpolant(Path):
    r"""The stochastic interpolant of FlowDAS: `alpha = 1 - t`, `beta = t^power`, `sigma = scale (1 - t)`.

    With `power = 1` the Foellmer diffusion is `g_F^2 = scale^2 (1 - t^2)` and nothing is 0/0 at t = 0; the paper's
    schedule is `power = 2`, kept for reproduction.

    Args:
        power: exponent of `beta`, 1 or 2.
        scale: `sigma(0)`, in the units of the state: one number or one a channel. Near the standard deviation of
            `x_1` given `x_0` a network sees targets of order one; the paper uses 1 in normalised units.
        grid_dims: number of grid dims behind the channel, needed when `scale` differs by channel.

    References:
        Chen et al. (2024), FlowDAS: a stochastic interpolant-based framework for data assimilation,
        https://arxiv.org/abs/2501.16642
    """

    power: int = 1
    scale: float | tuple[float, ...] = 1.0
    grid_dims: int = 0

    def __post_init__(self) -> None:
        """Check the settings."""
        check_settings(self, power=whole(1, 2, words="1 (beta = t) or 2 (beta = t^2, the paper's)"))
        check_settings(self, scale=one_or_several(POSITIVE), grid_dims=whole(0))

    def spread(self, x: Tensor) -> Tensor:
        """The scale, one number or one a channel."""
        scale = torch.as_tensor(self.scale, dtype=x.dtype, device=x.device)
        return scale.reshape(-1, *(1,) * self.grid_dims) if scale.ndim else scale

    def coefficients(self, t: Tensor, x: Tensor) -> Coefficients:
        """See `Path.coefficients`."""
        t = _align(t, x)
        scale = self.spread(x)
        root, p = torch.sqrt(t), self.power
        beta, d_beta = t**p, p * t ** (p - 1)
        sigma = scale * (1 - t)
        noise = sigma * root
        # d/dt log(noise^2 / beta) = -2/(1-t) + (1-p)/t: its second part vanishes for p = 1 and is dropped there,
        # because 0/0 would poison the first step.
        bend = -2 / (1 - t) + (0 if p == 1 else (1 - p) / t) + torch.zeros_like(sigma)
        return Coefficients(
            alpha=1 - t,
            beta=beta,
            noise=noise,
            d_alpha=-torch.ones_like(t),
            d_beta=d_beta,
            d_noise=-scale * root + sigma / (2 * root),
            sigma=sigma,
            d_sigma=-scale + torch.zeros_like(sigma),
            snr=t ** (2 * p - 1) / sigma**2,
            pull=t ** (p - 1) / sigma**2,
            bend=bend,
            # 2 t sigma^2 (p/t + 1/(1-t) - 1/(2t)), multiplied out.
            foellmer=scale**2 * (1 - t) * ((2 * p - 1) * (1 - t) + 2 * t),
        )

    def ratio(self, t: float) -> float:
        """See `Path.ratio`; for a unit scale."""
        return math.inf if t == 0 else (1 - t) * math.sqrt(t) / t**self.power


def _diffusion(beta: Tensor, noise: Tensor, d_beta: Tensor, d_noise: Tensor) -> Coefficients:
    """Coefficients of a path without a start: its own diffusion is taken to be the Foellmer one."""
    zero = torch.zeros_like(beta)
    foellmer = 2 * noise**2 * (d_beta / beta - d_noise / noise)
    return Coefficients(
        alpha=zero,
        beta=beta,
        noise=noise,
        d_alpha=zero,
        d_beta=d_beta,
        d_noise=d_noise,
        # `drift` is a word of interpolants; here it is the drift of the reversed noising process, and sigma its
        # diffusion. d_sigma is defined so that b = motion + (sigma'/sigma) rest = v + sigma^2/2 score holds.
        sigma=torch.sqrt(foellmer),
        d_sigma=torch.sqrt(foellmer) * (2 * d_noise / noise - d_beta / beta),
        snr=(beta / noise) ** 2,
        pull=beta / noise**2,
        bend=2 * d_noise / noise - d_beta / beta,
        foellmer=foellmer,
    )


def _align(t: Tensor, x: Tensor) -> Tensor:
    """`t` with singleton dims behind, so that it broadcasts against `x`."""
    t = t.to(dtype=x.dtype, device=x.device)
    return t.reshape(*t.shape, *(1,) * (x.ndim - t.ndim))


def _unknown_kind(kind: str) -> str:
    return f"kind is {kind!r}; expected one of {', '.join(get_args(Kind))}"
