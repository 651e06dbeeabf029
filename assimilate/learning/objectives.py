r"""What a network is trained on: one objective for each way of using a Gaussian path.

`PathRegression`    regress the path's own target (clean, noise, velocity, drift) at a uniform time:
                    E | F(x_t, t, condition) - target |^2.
`Denoising`         regress the clean state at a random noise level with EDM's weight 1 / c_out^2, under which every
                    level has a target of variance one; with a second output v also the Gaussian log likelihood of the
                    error, c_out^2 exp(v) being its variance.
`MeanRegression`    regress E[x_1 | condition]: a forecast.

Each is called as `objective(model, batch, rng) -> loss`, a scalar. Values whose weight is zero (no-data cells,
unobserved values) contribute nothing, and losses are means over the others.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple, Protocol

import torch
from torch import Tensor, nn

from assimilate.learning.denoiser import EDMDenoiser
from assimilate.posterior.paths import Kind, Path
from dynamics.random import normal, uniform


class Batch(NamedTuple):
    """Training samples.

    Attributes:
        clean: `x_1`, `(B, *event)`, in the network's coordinates.
        base: `x_0` of an interpolant, `(B, *event)`.
        condition: what the network is conditioned on.
        weight: weight of each value, broadcastable against `clean`; None = 1.
    """

    clean: Tensor
    base: Tensor | None = None
    condition: Tensor | None = None
    weight: Tensor | None = None


class Objective(Protocol):
    """`(model, batch, rng) -> loss`."""

    def __call__(self, model: nn.Module, batch: Batch, rng: torch.Generator) -> Tensor:
        """The loss, a scalar that carries its graph."""
        ...


class NoiseLevels(Protocol):
    """A law of noise levels: `(n, rng) -> (n,)`."""

    def __call__(self, count: int, rng: torch.Generator) -> Tensor:
        """Draw levels, in units of the clean data's standard deviation."""
        ...


@dataclass(frozen=True)
class LogUniform:
    """Noise levels uniform in their logarithm, with a share of them drawn from a narrower range.

    Args:
        smallest: smallest level.
        largest: largest level.
        emphasis: `(smallest, largest)` of the narrower range.
        share: part of the levels drawn from it, 0 to 1.
    """

    smallest: float
    largest: float
    emphasis: tuple[float, float] = (0.0, 0.0)
    share: float = 0.0

    def __call__(self, count: int, rng: torch.Generator) -> Tensor:
        """See `NoiseLevels`."""
        low = torch.full((count,), self.smallest, device=rng.device)
        high = torch.full((count,), self.largest, device=rng.device)
        if self.share > 0:
            chosen = uniform(rng, (count,), device=rng.device) < self.share
            low = torch.where(chosen, self.emphasis[0], low)
            high = torch.where(chosen, self.emphasis[1], high)
        return low * (high / low) ** uniform(rng, (count,), device=rng.device)


@dataclass(frozen=True)
class OfPath:
    """The noise-to-signal ratios of a path at uniform times.

    Args:
        path: a path of unit scale: ratios are in units of the clean data's standard deviation.
        largest: ratios are cut here: beyond it nothing of the clean state is left to see.
    """

    path: Path
    largest: float = 80.0

    def __call__(self, count: int, rng: torch.Generator) -> Tensor:
        """See `NoiseLevels`."""
        times = uniform(rng, (count,), device=rng.device)
        c = self.path.coefficients(times, times)
        return (c.noise / c.beta.clamp_min(1e-12)).clamp(1e-6, self.largest)


@dataclass(frozen=True)
class PathRegression:
    """Regress the path's target of one kind.

    Args:
        path: the path.
        kind: what the network gives, see `assimilate.posterior.paths.Kind`.
        margin: times are uniform in `[margin, 1 - margin]`; score and noise are singular at the ends.
    """

    path: Path
    kind: Kind
    margin: float = 0.0

    def __call__(self, model: nn.Module, batch: Batch, rng: torch.Generator) -> Tensor:
        """See `Objective`; the model is called as `model(x_t, t, condition)`."""
        clean = batch.clean
        t = self.margin + (1 - 2 * self.margin) * uniform(rng, (len(clean),), device=clean.device)
        z = normal(rng, tuple(clean.shape), device=clean.device)
        noisy = self.path.sample(t, clean, batch.base, z)
        target = self.path.target(t, clean, batch.base, z, self.kind)
        return weighted_mean((model(noisy, t, batch.condition) - target).square(), batch.weight)


@dataclass(frozen=True)
class Denoising:
    """Train an `EDMDenoiser` over a law of noise levels.

    Args:
        levels: the law.
        variance: factor on the log likelihood of the error, for denoisers with a second output. Its gradient does not
            reach the mean, so a wrong variance cannot spoil it.
    """

    levels: NoiseLevels
    variance: float = 0.1

    def __call__(self, model: nn.Module, batch: Batch, rng: torch.Generator) -> Tensor:
        """See `Objective`."""
        if not isinstance(model, EDMDenoiser):
            raise TypeError(f"Denoising trains an EDMDenoiser; given {type(model).__name__}")
        clean = batch.clean
        ratio = self.levels(len(clean), rng).to(clean.device)
        z = normal(rng, tuple(clean.shape), device=clean.device)
        noisy = clean + ratio.reshape(-1, *(1,) * (clean.ndim - 1)) * z
        unit = model.unit(noisy, ratio, batch.condition)
        error = model.error(unit, clean).square()
        weight = batch.weight
        if weight is not None and model.basis is not None:
            # A principal direction mixes all channels of a cell: it counts where all of them have data.
            weight = weight.amin(-model.event_dims, keepdim=True)
        loss = weighted_mean(error, weight)
        if unit.log_variance is None:
            return loss
        surprise = 0.5 * (unit.log_variance + error.detach() * torch.exp(-unit.log_variance))
        return loss + self.variance * weighted_mean(surprise, weight)


@dataclass(frozen=True)
class MeanRegression:
    """Regress the clean state on the condition: `model(condition)` tends to `E[x_1 | condition]`."""

    def __call__(self, model: nn.Module, batch: Batch, rng: torch.Generator) -> Tensor:
        """See `Objective`."""
        return weighted_mean((model(batch.condition) - batch.clean).square(), batch.weight)


def weighted_mean(values: Tensor, weight: Tensor | None) -> Tensor:
    """The mean over values of positive weight."""
    if weight is None:
        return values.mean()
    weight = weight.expand(values.shape)
    return (weight * values).sum() / weight.sum().clamp_min(1e-12)
