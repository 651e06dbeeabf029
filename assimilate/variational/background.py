r"""Background covariances as operators: B = L L^T, given by its root L, never as a matrix on a large grid.

    x = x_b + L v,     v ~ N(0, I)     so that     x ~ N(x_b, B)

The control v is flat, `(*b, size)`, and may have another size than the state; L v is `(*b, *event)`, in the units of
the state (the Field's transform applied). Roots are differentiable: the transpose follows by automatic differentiation.
Here are the two that need no grid. On grids see `spectral.py` (periodic), `diffusion.py` (any) and `hybrid.py` (from
members).

References:
    Bannister (2008), A review of forecast error covariance statistics in atmospheric variational data assimilation II,
    https://doi.org/10.1002/qj.340 (the control-variable transform)
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor

from assimilate.filters.kalman import GaussianPrior
from dynamics.base import Dynamics
from dynamics.covariance import FullCovariance
from dynamics.errors import SpaceMismatch
from dynamics.random import Streams
from dynamics.space import Space


@runtime_checkable
class Background(Protocol):
    """The contract of a background covariance.

    Attributes:
        size: number of values in a control.
        event_shape: shape of a state.
        mean: `(*event)` or a number, the climate's mean, where a method has no forecast to start from; None: unknown.
    """

    @property
    def size(self) -> int:
        """Number of values in a control."""
        ...

    @property
    def event_shape(self) -> tuple[int, ...]:
        """Shape of a state."""
        ...

    @property
    def mean(self) -> Any:
        """The climate's mean, or None."""
        ...

    def root(self, control: Tensor) -> Tensor:
        """L v, `(*b, size) -> (*b, *event)`; row by row, differentiable."""
        ...

    def at(self, members: Tensor) -> Background:
        """The covariance where the forecast members are `(E, N, *event)`; a static one is itself."""
        ...


def transpose(background: Background, x: Tensor) -> Tensor:
    """L^T x, `(*b, *event) -> (*b, size)`."""
    lead = x.shape[: x.ndim - len(background.event_shape)]
    with torch.enable_grad():
        zero = x.new_zeros(*lead, background.size, requires_grad=True)
        (found,) = torch.autograd.grad(background.root(zero), zero, x, create_graph=x.requires_grad)
    return found


def product(background: Background, x: Tensor) -> Tensor:
    """B x, `(*b, *event) -> (*b, *event)`."""
    return background.root(transpose(background, x))


def dense(background: Background, *, dtype: torch.dtype = torch.float64) -> Tensor:
    """B as a matrix `(d, d)` on flattened events, for small systems."""
    columns = background.root(torch.eye(background.size, dtype=dtype)).flatten(1)
    return columns.mT @ columns


@dataclass(frozen=True, eq=False)
class DiagonalBackground:
    """Independent errors.

    Args:
        space: of the state.
        std: standard deviation in Space units: a number, one per channel, or one per value (shape of the event).
        mean: see `Background`.
    """

    space: Space
    std: Any
    mean: Any = None

    def __post_init__(self) -> None:
        """Check the amplitude."""
        amplitude(self.std, self.space)

    @property
    def size(self) -> int:
        """One number a value of the state."""
        return self.space.size

    @property
    def event_shape(self) -> tuple[int, ...]:
        """Shape of a state."""
        return self.space.event_shape

    def root(self, control: Tensor) -> Tensor:
        """See `Background`."""
        return self._std.on(control) * control.reshape(*control.shape[:-1], *self.space.event_shape)

    def at(self, members: Tensor) -> Background:
        """Itself."""
        return self

    @cached_property
    def _std(self) -> Placed:
        return Placed(amplitude(self.std, self.space))


@dataclass(frozen=True, eq=False)
class DenseBackground:
    """A covariance matrix, for small systems such as Lorenz-63.

    Args:
        space: of the state.
        matrix: `(d, d)` on flattened events, positive semi-definite, in Space units squared.
        mean: see `Background`.

    Raises:
        ValueError: it is no covariance matrix of that size.
    """

    space: Space
    matrix: Tensor
    mean: Any = None

    def __post_init__(self) -> None:
        """Check the matrix."""
        object.__setattr__(self, "matrix", torch.as_tensor(self.matrix, dtype=torch.float64))
        FullCovariance(self.matrix, self.space.event_shape)

    @classmethod
    def climatology(
        cls,
        dynamics: Dynamics,
        *,
        scale: float = 1.0,
        steps: int = 2000,
        trajectories: int = 16,
        spinup: int = 500,
        every: int = 5,
        seed: int = 0,
    ) -> DenseBackground:
        """The covariance (times `scale`) and the mean of the states of a long free run.

        Args:
            dynamics: the system.
            scale: factor of the covariance, dimensionless: forecast errors are smaller than the climate's spread.
            steps: of each run.
            trajectories: number of independent runs.
            spinup: steps made and dropped beforehand.
            every: one state in `every` is used.
            seed: of the runs.

        Raises:
            ValueError: `scale` is not positive.
            FloatingPointError: the run is not finite.
        """
        if not scale > 0:
            raise ValueError(f"scale is {scale}; expected a positive factor of the climate's covariance")
        streams = Streams(seed, trajectories, 1)
        x = dynamics.prior((trajectories, 1), rng=streams.at(0), dtype=torch.float64)
        kept = []
        with torch.no_grad():
            for k in range(spinup + steps):
                x = dynamics.step(x, k * dynamics.dt, rng=streams.at(k + 1))
                if k >= spinup and (k - spinup) % every == 0:
                    kept.append(x.flatten(1))
        states = torch.cat(kept)
        if not bool(torch.isfinite(states).all()):
            raise FloatingPointError(f"{dynamics!r} is not finite in its free run; take a smaller dt")
        mean = states.mean(0).reshape(dynamics.space.event_shape)
        return cls(dynamics.space, scale * torch.cov(states.mT).reshape(mean.numel(), -1), mean)

    @classmethod
    def prior(cls, dynamics: Dynamics, *, draws: int = 4000, seed: int = 0) -> DenseBackground:
        """Covariance and mean of the dynamics' prior: exact where it knows them, else those of `draws` draws."""
        if isinstance(dynamics, GaussianPrior):
            mean, covariance = dynamics.prior_moments(dtype=torch.float64, device="cpu")
            return cls(dynamics.space, covariance.dense(), mean)
        states = dynamics.prior((draws, 1), rng=Streams(seed, draws, 1), dtype=torch.float64).flatten(1)
        mean = states.mean(0).reshape(dynamics.space.event_shape)
        return cls(dynamics.space, torch.cov(states.mT).reshape(mean.numel(), -1), mean)

    @property
    def size(self) -> int:
        """One number a value of the state."""
        return self.space.size

    @property
    def event_shape(self) -> tuple[int, ...]:
        """Shape of a state."""
        return self.space.event_shape

    def root(self, control: Tensor) -> Tensor:
        """See `Background`; the symmetric root."""
        return (control @ self._root.on(control)).reshape(*control.shape[:-1], *self.space.event_shape)

    def at(self, members: Tensor) -> Background:
        """Itself."""
        return self

    @cached_property
    def _root(self) -> Placed:
        values, vectors = torch.linalg.eigh(self.matrix)
        return Placed((vectors * values.clamp_min(0).sqrt()) @ vectors.mT)

    def __repr__(self) -> str:
        return f"DenseBackground({self.space!r})"


@dataclass(frozen=True, eq=False)
class Placed:
    """A float64 tensor, kept in each precision and on each device where it was asked for."""

    value: Tensor

    def on(self, like: Tensor) -> Tensor:
        """The tensor in the dtype and on the device of `like`."""
        key = (like.dtype, like.device)
        if key not in self._kept:
            self._kept[key] = self.value.to(like.device, like.dtype)
        return self._kept[key]

    @cached_property
    def _kept(self) -> dict[tuple[torch.dtype, torch.device], Tensor]:
        return {}


def amplitude(std: Any, space: Space) -> Tensor:
    """Standard deviations of the shape of the event, float64, 0 at no-data cells.

    Args:
        std: a number, one per channel, or one per value.
        space: of the state.

    Raises:
        ValueError: another shape, or one that is not positive and finite.
    """
    event = space.event_shape
    given = per_channel(std, space, "std") if torch.as_tensor(std).ndim < 2 else torch.as_tensor(std).double()
    if tuple(given.shape) not in (event, (event[0], *[1] * (len(event) - 1))):
        raise ValueError(f"std has shape {tuple(given.shape)}; expected a number, {event[:1]} or {event}")
    if not bool(((given > 0) & torch.isfinite(given)).all()):
        raise ValueError(f"std is {std}; expected positive standard deviations")
    given = given.expand(event).clone()
    return given if space.mask is None else given.masked_fill(torch.from_numpy(space.mask.copy()), 0.0)


def per_channel(value: Any, space: Space, what: str) -> Tensor:
    """One positive number for each channel, float64 `(channel, 1, ...)`, from one number or a sequence."""
    event = space.event_shape
    given = torch.as_tensor(value, dtype=torch.float64).flatten()
    if given.numel() not in (1, event[0]):
        raise ValueError(f"{what} has {given.numel()} values; expected one, or one for each of {event[0]} channels")
    if not bool(((given > 0) & torch.isfinite(given)).all()):
        raise ValueError(f"{what} is {value}; expected positive numbers")
    return given.expand(event[0]).reshape(-1, *[1] * (len(event) - 1))


def state_mean(mean: Any, event: tuple[int, ...], like: Tensor) -> Tensor:
    """A `mean` setting (a number or a tensor) as a state `(*event)` in the dtype and on the device of `like`.

    Raises:
        SpaceMismatch: it has another shape.
    """
    given = torch.as_tensor(mean, dtype=like.dtype, device=like.device)
    if given.ndim and math.prod(given.shape) != math.prod(event):
        raise SpaceMismatch(f"mean has shape {tuple(given.shape)}; expected a number or a state of shape {event}")
    return given.expand(event) if given.ndim == 0 else given.reshape(event)
