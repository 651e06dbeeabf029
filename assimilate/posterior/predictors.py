"""Predictors: whatever knows `E[x_1 | x_t, context]`, the clean mean, along a Gaussian path.

    predictor(x, t, context) -> Clean

A network in any parameterisation is one affine map away from it (`Path.to_mean`), a Gaussian or a mixture prior has it
in closed form, and a denoiser trained at one set of noise levels serves every path (`OnPath`). Samplers and guidance
see nothing else.

Shapes: states are `(*b, *event)`; times are `()` or `(*b,)`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from assimilate.posterior.covariance import Covariance, Dense
from assimilate.posterior.paths import Kind, Path


class Context(NamedTuple):
    """What a prediction depends on besides the noisy state.

    Attributes:
        base: `x_0`, the start of an interpolant (the previous state or a forecast made from it), `(*b, *event)`.
        condition: previous states, forcing, class, as the network wants them; passed through untouched.
    """

    base: Tensor | None = None
    condition: Tensor | None = None


class Clean(NamedTuple):
    """A belief about the clean state `x_1`.

    Attributes:
        mean: the clean mean, shifted if an observation has been taken in, `(*b, *event)`.
        source: the `x_t` that `mean` was computed from, when a guidance needs to differentiate through it.
        covariance: covariance of `x_1` given `x_t` (and the observation, where a guidance knows it), if known.
        draws: draws of `x_1` given `x_t`, `(draws, *b, *event)`, where a consistency-type network gives those.
        unguided: the belief before the observation; the importance weight of a guided step needs both.
        kick: a displacement of the next state outside the path's own step, `(*b, *event)`: the published
            constant-gain rules. It has no importance weight.
    """

    mean: Tensor
    source: Tensor | None = None
    covariance: Covariance | None = None
    draws: Tensor | None = None
    unguided: Clean | None = None
    kick: Tensor | None = None


class Predictor(Protocol):
    """`(x_t, t, context) -> Clean`."""

    def __call__(self, x: Tensor, t: Tensor, context: Context) -> Clean:
        """The belief about `x_1` at state `x`, time `t`."""
        ...


Network = Callable[[Tensor, Tensor, Tensor | None], Tensor]


@dataclass(frozen=True)
class NetworkPredictor:
    """A network of any parameterisation as a predictor.

    Args:
        network: `(x, t, condition) -> output`, `output` shaped like `x`.
        path: the path it was trained on.
        kind: its parameterisation, see `assimilate.posterior.paths.Kind`.
    """

    network: Network
    path: Path
    kind: Kind

    def __call__(self, x: Tensor, t: Tensor, context: Context) -> Clean:
        """See `Predictor`."""
        output = self.network(x, t, context.condition)
        return Clean(self.path.to_mean(x, t, output, self.kind, context.base))


class Denoiser(Protocol):
    """`(x_1 + rho z, rho, condition) -> Clean`: a predictor in unit space, without a path."""

    def __call__(self, noisy: Tensor, ratio: Tensor, condition: Tensor | None) -> Clean:
        """The belief about `x_1` given `noisy`; `ratio` has the leading dims of `noisy` or shape `()`."""
        ...


@dataclass(frozen=True)
class OnPath:
    """A denoiser on any path: `x_t` is `x_1 + rho z` after `(x_t - alpha x_0) / beta`, so one network serves them all.

    Args:
        denoiser: the unit-space denoiser.
        path: the path to run it on.
        largest: noise level beyond which `x_t` carries nothing that the denoiser could use, in the units of the
            state; at a start without signal (`beta = 0`) the denoiser sees this level.
    """

    denoiser: Denoiser
    path: Path
    largest: float = 80.0

    def __call__(self, x: Tensor, t: Tensor, context: Context) -> Clean:
        """See `Predictor`."""
        c = self.path.coefficients(t, x)
        centred = x if context.base is None else x - c.alpha * context.base
        signal = torch.maximum(c.beta, c.noise / self.largest)
        # At the very start both vanish and any finite quotient will do: the level says that nothing is known.
        ratio = torch.where(signal > 0, c.noise / signal, torch.full_like(signal, self.largest))
        noisy = torch.where(signal > 0, centred / torch.where(signal > 0, signal, 1.0), 0.0)
        level = ratio.reshape(ratio.shape[: t.ndim])
        return self.denoiser(noisy, level, context.condition)


@dataclass(frozen=True)
class GaussianPredictor:
    r"""The exact predictor of a Gaussian clean state, `x_1 | x_0 ~ N(mean, covariance)`.

    `m = mean + beta C (beta^2 C + noise^2 I)^-1 (x - alpha x_0 - beta mean)`,
    `V = C - beta^2 C (beta^2 C + noise^2 I)^-1 C`.

    Args:
        covariance: `(d, d)` for a flattened event of d values.
        path: any path.
        mean: `(*event,)`, or a function of the context for a transition, `context -> (*b, *event)`.
    """

    covariance: Tensor
    path: Path
    mean: Tensor | Callable[[Context], Tensor]

    def __call__(self, x: Tensor, t: Tensor, context: Context) -> Clean:
        """See `Predictor`."""
        mean = self.mean(context) if callable(self.mean) else self.mean
        gain, posterior = _gaussian_gain(self.covariance.to(x), self.path, x, t)
        c = self.path.coefficients(t, x)
        centred = x - c.beta * mean if context.base is None else x - c.beta * mean - c.alpha * context.base
        event = _event_dims(x, self.covariance.shape[-1])
        # With one time a sample the matrices already have those leading dims; further ones broadcast in front.
        lead = x.ndim - event
        gain, posterior = (m.reshape(*t.shape, *(1,) * (lead - t.ndim), *m.shape[-2:]) for m in (gain, posterior))
        flat = (gain @ centred.reshape(*centred.shape[:lead], -1, 1)).squeeze(-1)
        return Clean(mean + flat.reshape(x.shape), covariance=Dense(posterior, event))


@dataclass(frozen=True)
class MixturePredictor:
    """The exact predictor of a Gaussian mixture, `p(x_1) = sum_j w_j N(mu_j, C_j)`, on paths without a start.

    Args:
        weights: `(k,)`, summing to 1.
        means: `(k, d)`.
        covariances: `(k, d, d)`.
        path: VP, VE or flow matching.
    """

    weights: Tensor
    means: Tensor
    covariances: Tensor
    path: Path

    def __call__(self, x: Tensor, t: Tensor, context: Context) -> Clean:
        """See `Predictor`; `x` is `(*b, d)`, `t` is zero-dimensional."""
        c = self.path.coefficients(t, x)
        identity = torch.eye(x.shape[-1], dtype=x.dtype, device=x.device)
        marginal = c.beta**2 * self.covariances + c.noise**2 * identity
        factor = torch.linalg.cholesky(marginal)
        centred = (x[..., None, :] - c.beta * self.means)[..., None]
        white = torch.linalg.solve_triangular(factor, centred, upper=False)
        log_det = torch.diagonal(factor, dim1=-2, dim2=-1).log().sum(-1)
        log_parts = torch.log(self.weights) - 0.5 * white.square().sum((-2, -1)) - log_det
        share = torch.softmax(log_parts, -1)[..., None]
        inner = torch.cholesky_solve(centred, factor)
        parts = self.means + c.beta * (self.covariances @ inner).squeeze(-1)
        mean = (share * parts).sum(-2)
        within = self.covariances - c.beta**2 * self.covariances @ torch.cholesky_solve(self.covariances, factor)
        spread = parts - mean[..., None, :]
        covariance = (share[..., None] * (within + spread[..., :, None] * spread[..., None, :])).sum(-3)
        return Clean(mean, covariance=Dense(covariance, 1))


def _gaussian_gain(covariance: Tensor, path: Path, x: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
    """Gain `beta C (beta^2 C + noise^2 I)^-1` and posterior covariance, in the eigenbasis so that noise may be zero."""
    values, vectors = torch.linalg.eigh(covariance)
    values = values.clamp_min(0)
    c = path.coefficients(t, x.new_zeros(*(1,) * t.ndim, 1))
    if c.noise.shape[-1] != 1:
        raise ValueError("an exact Gaussian predictor needs one noise scale for the whole state; rescale the channels")
    total = c.beta**2 * values + c.noise**2
    known = total > 0
    divisor = torch.where(known, total, 1.0)
    gain = torch.where(known, c.beta * values / divisor, 0.0)
    rest = values * torch.where(known, c.noise**2 / divisor, 1.0)
    return (vectors * gain[..., None, :]) @ vectors.T, (vectors * rest[..., None, :]) @ vectors.T


def _event_dims(x: Tensor, size: int) -> int:
    """How many trailing dims of `x` hold `size` values."""
    count = 1
    for dims in range(1, x.ndim + 1):
        count *= x.shape[-dims]
        if count == size:
            return dims
    raise ValueError(f"the state has shape {tuple(x.shape)}; no trailing dims hold the {size} values of the covariance")
