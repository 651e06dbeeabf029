"""Observation operators: what an instrument would read if the state were x.

    y = H(x) + noise,     H: (*b, *event) -> (*b, *obs)

An operator is built for one event shape, given as a `Space` or as the bare shape, takes any leading dims and treats
each row alone. A `LinearOperator` also has its adjoint, <H x, y> = <x, H* y>: by automatic differentiation unless a
class gives it. Operators combine as `outer @ inner` and `stack(first, second)`.

A user's own operator is one class with a `space` and a `forward`; `check_operator` tells whether it is right.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from dynamics.space import Space, SpaceMismatch

SpaceOrShape = Space | tuple[int, ...]
"""What an operator observes: a Space, or the bare event shape (then there are no positions)."""


class ObservationOperator(ABC):
    """A map from states to observed values.

    Attributes:
        space: the Space of the state, or its event shape.
    """

    space: SpaceOrShape

    @abstractmethod
    def forward(self, x: Tensor) -> Tensor:
        """Observed values `(*b, *obs)` of states `(*b, *event)`, differentiable."""

    def carry(self, positions: Tensor) -> Tensor | None:
        """Places of the observed values, given the places of the event's values, or None where they have none.

        Args:
            positions: `(n, n_dims)`, n = number of values in an event, C order.

        Returns:
            `(m, n_dims)`, m = number of observed values, C order. The default is None.
        """
        return None

    def __call__(self, x: Tensor) -> Tensor:
        """`forward`, after a check of the event shape.

        Raises:
            SpaceMismatch: `x` does not end in the event shape.
        """
        event = self.event_shape
        if x.ndim < len(event) or tuple(x.shape[x.ndim - len(event) :]) != event:
            raise SpaceMismatch(f"{self!r} was given states of shape {tuple(x.shape)}; expected (*b, *{event})")
        return self.forward(x)

    @property
    def event_shape(self) -> tuple[int, ...]:
        """Shape of one state."""
        return self.space.event_shape if isinstance(self.space, Space) else tuple(self.space)

    @cached_property
    def obs_shape(self) -> tuple[int, ...]:
        """Shape of the observed values of one state."""
        with torch.no_grad():
            return tuple(self.forward(torch.zeros(self.event_shape)).shape)

    @property
    def obs_size(self) -> int:
        """Number of observed values of one state."""
        return math.prod(self.obs_shape)

    @property
    def positions(self) -> Tensor | None:
        """Places of the observed values, float64 `(m, n_dims)`, columns as `Space.position_names`; None if unknown."""
        if not isinstance(self.space, Space):
            return None
        cells = self.space.positions()
        return self.carry(cells.repeat(self.event_shape[0], 1))

    @property
    def available(self) -> Tensor | None:
        """False where an observed value has no meaning (it sees no-data cells only); None = all have. Shape obs."""
        return None

    def __matmul__(self, inner: ObservationOperator) -> ObservationOperator:
        """`(self @ inner)(x) = self(inner(x))`."""
        return compose(self, inner)

    def on(self, name: str, like: Tensor, *, cast: bool = True) -> Tensor:
        """The tensor attribute `name` on the device of `like` (and in its dtype), kept there for the next call."""
        key = (name, like.device, like.dtype if cast else None)
        if key not in self._placed:
            value = getattr(self, name).to(like.device)
            self._placed[key] = value.to(like.dtype) if cast else value
        return self._placed[key]

    @cached_property
    def _placed(self) -> dict[tuple[str, torch.device, torch.dtype | None], Tensor]:
        return {}


@dataclass(frozen=True)
class SVD:
    """H = U diag(singular) V^T as functions, for operators whose decomposition is known.

    Args:
        singular: the non-zero singular values `(r,)`.
        project: V^T, `(*b, *event)` -> `(*b, r)`.
        expand: V, `(*b, r)` -> `(*b, *event)`.
        project_observed: U^T, `(*b, *obs)` -> `(*b, r)`.
        expand_observed: U, `(*b, r)` -> `(*b, *obs)`.
    """

    singular: Tensor
    project: Callable[[Tensor], Tensor]
    expand: Callable[[Tensor], Tensor]
    project_observed: Callable[[Tensor], Tensor]
    expand_observed: Callable[[Tensor], Tensor]


class LinearOperator(ObservationOperator):
    """An operator with H(a x + b z) = a H(x) + b H(z)."""

    def adjoint(self, y: Tensor) -> Tensor:
        """H* y, `(*b, *obs)` -> `(*b, *event)`, differentiable in `y`; by automatic differentiation of `forward`."""
        event, obs = self.event_shape, self.obs_shape
        if y.ndim < len(obs) or tuple(y.shape[y.ndim - len(obs) :]) != obs:
            raise SpaceMismatch(f"the adjoint of {self!r} was given shape {tuple(y.shape)}; expected (*b, *{obs})")
        zeros = torch.zeros(*y.shape[: y.ndim - len(obs)], *event, dtype=y.dtype, device=y.device)
        _, pullback = torch.func.vjp(self.forward, zeros)
        return pullback(y)[0]

    def svd(self) -> SVD | None:
        """The singular value decomposition, or None where it is not known in closed form."""
        return None

    def matrix(self, *, dtype: torch.dtype = torch.float64, device: torch.device | str = "cpu") -> Tensor:
        """The dense matrix `(m, d)` on flattened events; for small systems."""
        size = math.prod(self.event_shape)
        basis = torch.eye(size, dtype=dtype, device=device).reshape(size, *self.event_shape)
        with torch.no_grad():
            return self.forward(basis).reshape(size, -1).mT.contiguous()


@dataclass(frozen=True, eq=False)
class Compose(ObservationOperator):
    """`outer(inner(x))`; build it with `outer @ inner`, which knows when the result is linear.

    Args:
        outer: operator on the values of `inner`.
        inner: operator on the state.
    """

    outer: ObservationOperator
    inner: ObservationOperator

    def __post_init__(self) -> None:
        """Check that the shapes meet."""
        if self.inner.obs_shape != self.outer.event_shape:
            raise SpaceMismatch(
                f"{self.inner!r} gives shape {self.inner.obs_shape}; {self.outer!r} expects {self.outer.event_shape}"
            )

    @property
    def space(self) -> SpaceOrShape:  # type: ignore[override]
        """The Space of the inner operator."""
        return self.inner.space

    def forward(self, x: Tensor) -> Tensor:
        """outer(inner(x))."""
        return self.outer.forward(self.inner.forward(x))

    @property
    def positions(self) -> Tensor | None:
        """Places of the values, where the outer operator keeps track of them."""
        places = self.inner.positions
        return None if places is None else self.outer.carry(places)

    @property
    def available(self) -> Tensor | None:
        """Which values have a meaning: those made of values of the inner operator that have."""
        flags = self.inner.available
        carried = None if flags is None else self.outer.carry(flags.double().reshape(-1, 1))
        return None if carried is None else (carried[:, 0] > 0).reshape(self.obs_shape)

    def __repr__(self) -> str:
        return f"{self.outer!r} @ {self.inner!r}"


class LinearCompose(Compose, LinearOperator):
    """The composition of two linear operators."""

    def adjoint(self, y: Tensor) -> Tensor:
        """inner*(outer* y)."""
        inner, outer = self.inner, self.outer
        assert isinstance(inner, LinearOperator) and isinstance(outer, LinearOperator)
        return inner.adjoint(outer.adjoint(y))


@dataclass(frozen=True, eq=False)
class Stack(ObservationOperator):
    """The values of several operators on one state, flattened, one after another: obs `(m_1 + m_2 + ...,)`.

    Build it with `stack(...)`, which knows when the result is linear.
    """

    parts: tuple[ObservationOperator, ...]

    def __post_init__(self) -> None:
        """Check that all parts see the same state."""
        shapes = [part.event_shape for part in self.parts]
        if not shapes or len(set(shapes)) > 1:
            raise SpaceMismatch(f"stack() needs operators on one event shape; given {shapes}")

    @property
    def space(self) -> SpaceOrShape:  # type: ignore[override]
        """The Space of the first part that has one."""
        return next((part.space for part in self.parts if isinstance(part.space, Space)), self.parts[0].space)

    def forward(self, x: Tensor) -> Tensor:
        """All values, `(*b, m)`."""
        lead = x.ndim - len(self.event_shape)
        return torch.cat([part.forward(x).flatten(lead) for part in self.parts], -1)

    @property
    def positions(self) -> Tensor | None:
        """Places of the values, if all parts know theirs."""
        places = [part.positions for part in self.parts]
        known = [place for place in places if place is not None]
        return torch.cat(known) if len(known) == len(places) else None

    @property
    def available(self) -> Tensor | None:
        """Which values have a meaning."""
        flags = [part.available for part in self.parts]
        if all(flag is None for flag in flags):
            return None
        parts = zip(self.parts, flags, strict=True)
        return torch.cat([torch.ones(p.obs_size, dtype=torch.bool) if f is None else f.flatten() for p, f in parts])

    def __repr__(self) -> str:
        return f"stack({', '.join(repr(part) for part in self.parts)})"


class LinearStack(Stack, LinearOperator):
    """The stack of linear operators."""


def compose(outer: ObservationOperator, inner: ObservationOperator) -> ObservationOperator:
    """`outer(inner(x))`, a `LinearOperator` if both are."""
    linear = isinstance(outer, LinearOperator) and isinstance(inner, LinearOperator)
    return LinearCompose(outer, inner) if linear else Compose(outer, inner)


def stack(*parts: ObservationOperator) -> ObservationOperator:
    """The flattened values of several operators on one state, a `LinearOperator` if all are."""
    linear = all(isinstance(part, LinearOperator) for part in parts)
    return LinearStack(tuple(parts)) if linear else Stack(tuple(parts))


def space_name(space: SpaceOrShape) -> str:
    """A short text for an operator's repr: its event shape."""
    return str(space.event_shape if isinstance(space, Space) else tuple(space))
