"""Volumes as stacks of slices: a two-dimensional prior and a two-dimensional instrument, slice by slice.

An event of a volume is `(slices, rows, columns)`. `SlicedPrior` shows the slices to a prior of single images as if they
were different samples; `PerSlice` scans each with the same instrument. With both, every solver of images reconstructs
volumes slice by slice: the baseline that a prior across slices has to beat. Operators that take channels each alone
(tomography does) see a volume's slices as channels and need no wrapper.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from assimilate.posterior.covariance import Covariance, Isotropic
from assimilate.posterior.denoisers import Prior
from assimilate.posterior.predictors import Clean
from dynamics.random import Rng
from imaging.wrapped_prior import WrappedPrior
from observations.base import SVD, LinearOperator, SpaceOrShape


@dataclass(frozen=True, eq=False)
class SlicedPrior(WrappedPrior):
    """A prior of images as one of volumes with independent slices.

    Args:
        prior: of images `(1, rows, columns)`, or of vectors `(d,)` (then a volume is `(slices, d)`).
        axis: the dim of the volume along which slices are counted.
        slices: how many, for `event_shape`; a volume with any other number is served too.

    Raises:
        ValueError: an image with several channels, or an axis that the volume does not have.
    """

    prior: Prior
    axis: int = 0
    slices: int = 1

    def __post_init__(self) -> None:
        """Check the shapes."""
        event = self.prior.event_shape
        if len(event) == 3 and event[0] != 1:
            raise ValueError(f"the prior is of images with {event[0]} channels; slices of a volume have one")
        if not 0 <= self.axis <= len(self._slice_shape):
            raise ValueError(f"axis={self.axis}; a volume has dims 0 to {len(self._slice_shape)}")

    @property
    def _slice_shape(self) -> tuple[int, ...]:
        event = self.prior.event_shape
        return tuple(event[1:]) if len(event) == 3 else tuple(event)

    @property
    def event_shape(self) -> tuple[int, ...]:
        """Shape of a volume."""
        shape = self._slice_shape
        return (*shape[: self.axis], self.slices, *shape[self.axis :])

    def split(self, volume: Tensor) -> Tensor:
        """Volumes `(*b, *volume)` as images `(*b, slices, *image)`."""
        stack = volume.movedim(self.axis - len(self.event_shape), -len(self.event_shape))
        return stack.unsqueeze(-3) if len(self.prior.event_shape) == 3 else stack

    def join(self, images: Tensor) -> Tensor:
        """The inverse of `split`."""
        stack = images.squeeze(-3) if len(self.prior.event_shape) == 3 else images
        return stack.movedim(-len(self.event_shape), self.axis - len(self.event_shape))

    def __call__(self, noisy: Tensor, ratio: Tensor, condition: Tensor | None = None) -> Clean:
        """See `Prior`; `ratio` is `()` or has the leading dims of the volumes."""
        ratio = torch.as_tensor(ratio)
        clean = self.prior(self.split(noisy), ratio.unsqueeze(-1) if ratio.ndim else ratio, condition)
        covariance: Covariance | None = clean.covariance
        if isinstance(covariance, Isotropic):
            covariance = Isotropic(self.join(covariance.variance.expand(clean.mean.shape)))
        elif covariance is not None:
            covariance = SlicedCovariance(covariance, self)
        return Clean(self.join(clean.mean), covariance=covariance)


@dataclass(frozen=True, eq=False)
class SlicedCovariance:
    """The covariance of a volume with independent slices.

    Args:
        inner: of the images, `(*b, slices, *image)`.
        layout: says which dim counts slices.
    """

    inner: Covariance
    layout: SlicedPrior

    def apply(self, v: Tensor) -> Tensor:
        """See `Covariance`."""
        return self.layout.join(self.inner.apply(self.layout.split(v)))

    def draw(self, rng: Rng, shape: tuple[int, ...], *, dtype: torch.dtype, device: torch.device | str) -> Tensor:
        """See `Covariance`."""
        images = self.layout.split(torch.empty(shape, device="meta")).shape
        return self.layout.join(self.inner.draw(rng, tuple(images), dtype=dtype, device=device))

    def block(self, index: Tensor) -> None:
        """See `Covariance`; products only."""
        return None


@dataclass(frozen=True, eq=False)
class PerSlice(LinearOperator):
    """One instrument on every slice, `(*b, slices, rows, columns) -> (*b, slices, *obs)`.

    Args:
        operator: linear, of images `(1, rows, columns)`, or of vectors `(d,)` (then a volume is `(slices, d)`).
        slices: how many.

    Raises:
        ValueError: the operator is not linear, or sees several channels.
    """

    operator: LinearOperator
    slices: int

    def __post_init__(self) -> None:
        """Check the operator."""
        if not isinstance(self.operator, LinearOperator):
            raise ValueError(f"PerSlice needs a linear operator; given {self.operator!r}")
        event = self.operator.event_shape
        if len(event) == 3 and event[0] != 1:
            raise ValueError(f"{self.operator!r} sees images with {event[0]} channels; slices of a volume have one")

    @property
    def _flat(self) -> bool:
        return len(self.operator.event_shape) == 3

    @property
    def space(self) -> SpaceOrShape:  # type: ignore[override]
        """Event shape of the volume."""
        event = self.operator.event_shape
        return (self.slices, *(event[1:] if self._flat else event))

    @cached_property
    def obs_shape(self) -> tuple[int, ...]:
        """Shape of the observed values of a volume."""
        return (self.slices, *self.operator.obs_shape)

    def _split(self, x: Tensor) -> Tensor:
        return x.unsqueeze(-3) if self._flat else x

    def _join(self, x: Tensor) -> Tensor:
        return x.squeeze(-3) if self._flat else x

    def forward(self, x: Tensor) -> Tensor:
        """The values of each slice."""
        return self.operator.forward(self._split(x))

    def adjoint(self, y: Tensor) -> Tensor:
        """The adjoint of each slice."""
        return self._join(self.operator.adjoint(y))

    @property
    def available(self) -> Tensor | None:
        """Which values have a meaning."""
        flags = self.operator.available
        return None if flags is None else flags.expand(self.obs_shape)

    def svd(self) -> SVD | None:
        """That of one slice, repeated; None where it is not known."""
        inner = self.operator.svd()
        if inner is None:
            return None
        count = self.slices
        return SVD(
            inner.singular.repeat(count),
            lambda x: inner.project(self._split(x)).flatten(-2),
            lambda c: self._join(inner.expand(c.unflatten(-1, (count, -1)))),
            lambda y: inner.project_observed(y).flatten(-2),
            lambda c: inner.expand_observed(c.unflatten(-1, (count, -1))),
        )

    def __repr__(self) -> str:
        return f"PerSlice({self.operator!r}, slices={self.slices})"
