"""Priors of images: by name, from a file, and a prior of grey images used on several channels.

A prior is a denoiser in the units of the image (`assimilate.posterior.denoisers.Prior`). Whatever has those attributes
serves: shipped weights, a checkpoint, an exact prior, a network of another library (`imaging.adapters`).
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from assimilate.errors import UnknownName, UserError
from assimilate.learning.pretrained import WEIGHTS, list_pretrained, load_pretrained
from assimilate.posterior.covariance import Block, Covariance, Isotropic
from assimilate.posterior.denoisers import Prior
from assimilate.posterior.predictors import Clean
from dynamics.random import Rng
from imaging.wrapped_prior import WrappedPrior

PRIOR_ATTRIBUTES = ("event_shape", "spread", "smallest", "largest", "bounds")
"""What a solver asks of a prior, beside calling it."""


def load_prior(prior: str | os.PathLike[str] | Prior, *, device: torch.device | str = "cpu") -> Prior:
    """The prior of a name, of a file, or the one given.

    Args:
        prior: name of shipped weights (`assimilate list pretrained`), path of a checkpoint, or a prior.
        device: where named weights go; a prior that is given stays where it is.

    Raises:
        UnknownName: neither a shipped prior nor a file.
        UserError: the weights are no prior of single images, or the object lacks what a solver asks of a prior.
    """
    found: Any = prior
    if isinstance(prior, str | os.PathLike):
        name = os.fspath(prior)
        if not os.path.isfile(name) and not (WEIGHTS / f"{name}.safetensors").is_file():
            names = [key for key, entry in list_pretrained().items() if entry["kind"] == "prior"]
            raise UnknownName("prior", name, names, "; or give the path of a checkpoint file")
        found = load_pretrained(name, device=device)
    missing = [name for name in PRIOR_ATTRIBUTES if not hasattr(found, name)]
    if missing or not callable(found):
        raise UserError(
            f"prior {prior if isinstance(prior, str) else type(found).__name__!r} is no prior of images: it has no "
            f"{', '.join(missing) or '__call__'} (see assimilate.posterior.denoisers.Prior)"
        )
    return found


@dataclass(frozen=True, eq=False)
class Channels(WrappedPrior):
    """A prior of one channel, used on each of several channels alone.

    Channels are then independent: what one colour tells of another is not known to it.

    Args:
        prior: of events `(1, rows, columns)`.
        count: number of channels.

    Raises:
        UserError: the prior has several channels.
    """

    prior: Prior
    count: int

    def __post_init__(self) -> None:
        """Check the channels."""
        if len(self.prior.event_shape) != 3 or self.prior.event_shape[0] != 1 or self.count < 1:
            raise UserError(
                f"{type(self).__name__} repeats a prior of events (1, rows, columns) on {self.count} channels; given "
                f"{self.prior.event_shape}"
            )

    @property
    def event_shape(self) -> tuple[int, ...]:
        """`(count, rows, columns)`."""
        return (self.count, *self.prior.event_shape[1:])

    def __call__(self, noisy: Tensor, ratio: Tensor, condition: Tensor | None = None) -> Clean:
        """See `Prior`; the channels become one more leading dim."""
        lead = noisy.shape[:-3]
        level = torch.as_tensor(ratio, dtype=noisy.dtype, device=noisy.device)
        if level.ndim:
            level = level.expand(lead).unsqueeze(-1).expand(*lead, self.count)
        clean = self.prior(noisy.unsqueeze(-3), level, condition)
        covariance = clean.covariance
        if isinstance(covariance, Isotropic):
            # One variance for all has nothing to take a channel out of.
            variance = covariance.variance
            covariance = Isotropic(variance.squeeze(-3) if variance.ndim >= 4 else variance)
        elif covariance is not None:
            covariance = ByChannel(covariance)
        return Clean(clean.mean.squeeze(-3), covariance=covariance)

    def to(self, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> Channels:
        """A copy on another device or in another precision."""
        return replace(self, prior=moved(self.prior, device, dtype))

    def __repr__(self) -> str:
        return f"Channels({prior_name(self.prior)}, {self.count})"


class Complex(Channels):
    """A prior of real images, used on the real and on the imaginary part of complex ones, events `(2, rows, columns)`.

    Both parts have the same law, with the same range: right for networks trained on such parts, and only a stand-in
    for images of small phase, whose imaginary part is near 0.

    Args:
        prior: of events `(1, rows, columns)`.
    """

    def __init__(self, prior: Prior) -> None:
        super().__init__(prior, 2)

    def to(self, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> Complex:
        """A copy on another device or in another precision."""
        return Complex(moved(self.prior, device, dtype))

    def __repr__(self) -> str:
        return f"Complex({prior_name(self.prior)})"


@dataclass(frozen=True, eq=False)
class ByChannel:
    """A covariance of `(*b, count)` events of one channel as one of events of `count` independent channels."""

    inner: Covariance

    def apply(self, v: Tensor) -> Tensor:
        """See `Covariance`."""
        return self.inner.apply(v.unsqueeze(-3)).squeeze(-3)

    def draw(self, rng: Rng, shape: tuple[int, ...], *, dtype: torch.dtype, device: torch.device | str) -> Tensor:
        """See `Covariance`."""
        return self.inner.draw(rng, (*shape[:-2], 1, *shape[-2:]), dtype=dtype, device=device).squeeze(-3)

    def block(self, index: Tensor) -> Block | None:
        """See `Covariance`; only products."""
        return None


def moved(prior: Prior, device: torch.device | str | None, dtype: torch.dtype | None) -> Prior:
    """The prior on another device and in another precision, if it holds anything that can move."""
    to = getattr(prior, "to", None)
    return prior if to is None else to(device=device, dtype=dtype)


def prior_name(prior: Prior) -> str:
    """A short text for a prior: its repr if it says more than where it lies in memory."""
    text = repr(prior)
    # A network's repr is long and says little; its record says more.
    plain = hasattr(prior, "record") or len(text) > 300 or " object at 0x" in text or "tensor(" in text
    return f"{type(prior).__name__}{tuple(prior.event_shape)}" if plain else text


def training_summary(prior: Prior) -> str:
    """What a prior was trained on, in a line; empty where it does not say."""
    inner: Any = getattr(prior, "prior", prior)
    parts = []
    for name in ("data", "record"):
        held = getattr(inner, name, None)
        if isinstance(held, Mapping):
            plain = {k: v for k, v in held.items() if isinstance(v, str | int | float | bool) and str(v)}
            parts += [f"{k}: {v:.4g}" if isinstance(v, float) else f"{k}: {v}" for k, v in plain.items()]
    return "; ".join(parts)
