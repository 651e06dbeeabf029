"""Linear operators that pick values: everything, channels, masks, gauges, stations, and a plain matrix.

y = x,   y = x[channels],   y = x[mask],   y_i = sum_k w_ik x[cell_ik],   y = A x
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dynamics.random import Streams, uniform
from dynamics.settings import COUNT, check_number, whole
from dynamics.space import Space
from observations.base import SVD, LinearOperator, SpaceOrShape, space_name
from observations.places import corners, fractional_indices, point_array


@dataclass(frozen=True, eq=False)
class Identity(LinearOperator):
    """Every value of the state, obs shape = event shape; values at no-data cells are not available.

    Args:
        space: Space of the state, or its event shape.
    """

    space: SpaceOrShape

    def forward(self, x: Tensor) -> Tensor:
        """X itself."""
        return x

    def adjoint(self, y: Tensor) -> Tensor:
        """Y itself."""
        return y

    def carry(self, positions: Tensor) -> Tensor:
        """The same places."""
        return positions

    @property
    def available(self) -> Tensor | None:
        """False at no-data cells."""
        return _valid(self.space)

    def svd(self) -> SVD:
        """All singular values are 1."""
        event = self.event_shape
        return _selection_svd(torch.arange(math.prod(event)), event, event)

    def __repr__(self) -> str:
        return f"Identity({space_name(self.space)})"


@dataclass(frozen=True, eq=False)
class Select(LinearOperator):
    """Some channels, `(*b, channel, *grid)` -> `(*b, len(channels), *grid)`.

    Args:
        space: Space of the state, or its event shape.
        channels: indices, or names in the Space; a single one may stand alone.
    """

    space: SpaceOrShape
    channels: Any

    def __post_init__(self) -> None:
        """Turn names into indices."""
        object.__setattr__(self, "channels", channel_indices(self.space, self.channels))

    def forward(self, x: Tensor) -> Tensor:
        """The chosen channels."""
        axis = x.ndim - len(self.event_shape)
        return x.index_select(axis, self.on("index", x, cast=False))

    def carry(self, positions: Tensor) -> Tensor:
        """Places of the chosen channels."""
        event = self.event_shape
        return positions[torch.arange(math.prod(event)).reshape(event)[list(self.channels)].flatten()]

    @cached_property
    def index(self) -> Tensor:
        """The channels as a tensor."""
        return torch.tensor(self.channels, dtype=torch.int64)

    @property
    def available(self) -> Tensor | None:
        """False at no-data cells."""
        valid = _valid(self.space)
        return None if valid is None else valid[list(self.channels)]

    def svd(self) -> SVD:
        """All singular values are 1."""
        event = self.event_shape
        flat = torch.arange(math.prod(event)).reshape(event)[list(self.channels)].flatten()
        return _selection_svd(flat, event, (len(self.channels), *event[1:]))

    def __repr__(self) -> str:
        return f"Select({space_name(self.space)}, {list(self.channels)})"


@dataclass(frozen=True, eq=False)
class Mask(LinearOperator):
    """Some values of the state, flattened: obs `(m,)` in C order of the event (or in the order of the indices).

    Args:
        space: Space of the state, or its event shape.
        mask: True where observed, of the event's or the grid's shape (then for every channel); or integer indices into
            the flattened event.

    Raises:
        ValueError: another shape, an index out of range, nothing observed, or a no-data cell observed.
    """

    space: SpaceOrShape
    mask: Any

    def __post_init__(self) -> None:
        """Turn the mask into flat indices and check them."""
        given = torch.as_tensor(np.array(self.mask) if not isinstance(self.mask, Tensor) else self.mask).cpu()
        event = self.event_shape
        size = math.prod(event)
        if given.dtype == torch.bool:
            if tuple(given.shape) not in (event, event[1:]):
                raise ValueError(f"mask has shape {tuple(given.shape)}; expected {event} or {event[1:]}")
            index = given.expand(event).flatten().nonzero()[:, 0]
        else:
            index = given.to(torch.int64).flatten()
        if index.numel() == 0:
            raise ValueError("the mask observes nothing; give it at least one value")
        if int(index.min()) < 0 or int(index.max()) >= size:
            raise ValueError(f"an index is out of range: the state has {size} values")
        valid = _valid(self.space)
        if valid is not None and not bool(valid.flatten()[index].all()):
            raise ValueError("the mask observes a no-data cell of the Space")
        object.__setattr__(self, "mask", index)

    @classmethod
    def every(cls, space: SpaceOrShape, stride: int, *, first: int = 0) -> Mask:
        """Every `stride`-th cell along each dim of the grid (or value of a state without one), no-data cells left out.

        In a card: `{type = "Mask", preset = "every", stride = 4}`.

        Args:
            space: Space of the state, or its event shape.
            stride: cells from one observed cell to the next, in every dim; 1 observes all.
            first: index of the first observed cell in every dim.

        Raises:
            ValueError: a stride or first cell that is none, or nothing observed.
        """
        check_number("stride", stride, COUNT)
        check_number("first", first, whole(0))
        event = space if isinstance(space, tuple) else space.event_shape
        observed = torch.zeros(event, dtype=torch.bool)
        some = slice(first, None, stride)
        observed[(some,) if len(event) == 1 else (slice(None), *[some] * (len(event) - 1))] = True
        valid = _valid(space)
        return cls(space, observed if valid is None else observed & valid)

    @property
    def index(self) -> Tensor:
        """Flat indices of the observed values, `(m,)`."""
        return self.mask

    def forward(self, x: Tensor) -> Tensor:
        """The observed values, `(*b, m)`."""
        return x.flatten(x.ndim - len(self.event_shape)).index_select(-1, self.on("mask", x, cast=False))

    def carry(self, positions: Tensor) -> Tensor:
        """Places of the observed values."""
        return positions[self.mask]

    def svd(self) -> SVD | None:
        """All singular values are 1 (None if a value is observed twice)."""
        if self.mask.unique().numel() < self.mask.numel():
            return None
        return _selection_svd(self.mask, self.event_shape, self.obs_shape)

    def __repr__(self) -> str:
        return f"Mask({space_name(self.space)}, {self.mask.numel()} values)"


@dataclass(frozen=True, eq=False)
class Stations(LinearOperator):
    """Values at given places, obs `(m,)`; `(channels, m)` if several channels are observed.

    Args:
        space: a Space with a grid.
        points: places `(m, n_dims)` with columns `Space.position_names` (latitude, longitude in degrees first on the
            sphere), or a mapping or Dataset from those names to `(m,)` values.
        method: "nearest" or "bilinear" (linear in each grid index; next to no-data cells the others share the weight).
        channels: indices or names (default: all).
        names: names of the stations, for messages.

    Raises:
        ValueError: a station lies outside the grid or on a no-data cell; the message names it.
    """

    space: Space
    points: Any
    method: str = "nearest"
    channels: Any = None
    names: Sequence[str] | None = None

    def __post_init__(self) -> None:
        """Find the stations on the grid."""
        points = point_array(self.space, self.points)
        cells, weights = corners(self.space, fractional_indices(self.space, points, self.names), self.method)
        every = range(self.event_shape[0]) if self.channels is None else self.channels
        channels = channel_indices(self.space, every)
        valid = _valid(self.space)
        if valid is not None:
            usable = valid.flatten(1)[list(channels)].all(0).numpy()[cells]
            weights = np.where(usable, weights, 0.0)
            lost = weights.sum(1) < 1e-9
            if lost.any():
                first = int(np.argmax(lost))
                label = first if self.names is None else self.names[first]
                raise ValueError(f"station {label} at {points[first]} lies on no-data cells; drop it")
            weights = weights / weights.sum(1, keepdims=True)
        for name, value in (("points", points), ("channels", channels)):
            object.__setattr__(self, name, value)
        object.__setattr__(self, "cells", torch.from_numpy(cells))
        object.__setattr__(self, "weights", torch.from_numpy(weights))
        object.__setattr__(self, "index", torch.tensor(channels, dtype=torch.int64))

    def forward(self, x: Tensor) -> Tensor:
        """Interpolated values, `(*b, m)` or `(*b, channels, m)`."""
        lead = x.ndim - len(self.event_shape)
        flat = x.flatten(lead + 1)
        if len(self.channels) < self.event_shape[0] or self.channels != tuple(range(self.event_shape[0])):
            flat = flat.index_select(-2, self.on("index", x, cast=False))
        cells = self.on("cells", x, cast=False)
        values = flat.index_select(-1, cells.flatten()).reshape(*flat.shape[:-1], *cells.shape)
        out = (values * self.on("weights", x)).sum(-1)
        return out.squeeze(-2) if len(self.channels) == 1 else out

    @property
    def positions(self) -> Tensor:
        """Places of the stations, repeated for each channel."""
        return torch.from_numpy(np.array(self.points)).repeat(len(self.channels), 1)

    def __repr__(self) -> str:
        return f"Stations({space_name(self.space)}, {len(self.points)} points, method={self.method!r})"


@dataclass(frozen=True, eq=False)
class Matrix(LinearOperator):
    """y = A x on the flattened state, obs `(m,)`.

    Args:
        space: Space of the state, or its event shape.
        array: A, `(m, d)`.
    """

    space: SpaceOrShape
    array: Any

    def __post_init__(self) -> None:
        """Convert to a float64 tensor and check its width."""
        array = torch.as_tensor(self.array, dtype=torch.float64)
        if array.ndim != 2 or array.shape[1] != math.prod(self.event_shape):
            raise ValueError(f"matrix has shape {tuple(array.shape)}; expected (m, {math.prod(self.event_shape)})")
        object.__setattr__(self, "array", array)

    def forward(self, x: Tensor) -> Tensor:
        """A x, `(*b, m)`."""
        return x.flatten(x.ndim - len(self.event_shape)) @ self.on("array", x).mT

    def adjoint(self, y: Tensor) -> Tensor:
        """A^T y, `(*b, *event)`."""
        return (y @ self.on("array", y)).reshape(*y.shape[:-1], *self.event_shape)

    def svd(self) -> SVD:
        """The numerical decomposition, singular values below the round-off dropped."""
        return self._decomposition

    @cached_property
    def _decomposition(self) -> SVD:
        u, s, vh = torch.linalg.svd(self.array, full_matrices=False)
        kept = s > s[0] * max(self.array.shape) * torch.finfo(s.dtype).eps
        u, s, vh = u[:, kept], s[kept], vh[kept]
        event = self.event_shape
        return SVD(
            s,
            lambda x: x.flatten(x.ndim - len(event)) @ vh.to(x).mT,
            lambda c: (c @ vh.to(c)).reshape(*c.shape[:-1], *event),
            lambda y: y @ u.to(y),
            lambda c: c @ u.to(c).mT,
        )

    def __repr__(self) -> str:
        return f"Matrix({space_name(self.space)}, {tuple(self.array.shape)})"


def random_mask(space: SpaceOrShape, fraction: float | None = None, seed: int = 0, *, count: int | None = None) -> Mask:
    """Gauges at random cells, the same for every channel; no-data cells have none.

    With one seed a smaller network is part of a larger one: networks are nested, and the same on every machine.

    Args:
        space: Space of the state, or its event shape.
        fraction: share of the cells with data that have a gauge, above 0 and at most 1 (rounded to a whole number).
        seed: seed of the draw.
        count: number of gauges, instead of `fraction`.
    """
    if (fraction is None) == (count is None):
        raise ValueError("random_mask needs either a fraction or a count")
    event = space.event_shape if isinstance(space, Space) else tuple(space)
    valid = _valid(space)
    cells = torch.arange(math.prod(event[1:]))
    if valid is not None:
        cells = cells[valid.flatten(1).all(0)]
    if fraction is not None:
        if not 0 < fraction <= 1:
            raise ValueError(f"fraction={fraction}; expected above 0 and at most 1")
        count = max(1, round(fraction * cells.numel()))
    assert count is not None
    if not 0 < count <= cells.numel():
        raise ValueError(f"count={count}; there are {cells.numel()} cells with data")
    draw = uniform(Streams(seed), (1, 1, cells.numel()), dtype=torch.float64)[0, 0]
    chosen = cells[torch.argsort(draw, stable=True)[:count]]
    mask = torch.zeros(math.prod(event[1:]), dtype=torch.bool)
    mask[chosen] = True
    return Mask(space, mask.reshape(event[1:]))


def channel_indices(space: SpaceOrShape, channels: Any) -> tuple[int, ...]:
    """Channel indices from indices or names, one or several."""
    several = [channels] if isinstance(channels, int | str) else list(channels)
    if isinstance(space, Space):
        return tuple(space.channel(name) for name in several)
    count = space[0]
    for index in several:
        if not isinstance(index, int) or not -count <= index < count:
            raise ValueError(f"channel {index!r}; an event of shape {tuple(space)} has channels 0 to {count - 1}")
    return tuple(index % count for index in several)


def _valid(space: SpaceOrShape) -> Tensor | None:
    """True at cells with data, event shape; None if all have."""
    if not isinstance(space, Space) or space.mask is None:
        return None
    return torch.from_numpy(~space.mask)


def _selection_svd(index: Tensor, event: tuple[int, ...], obs: tuple[int, ...]) -> SVD:
    """The SVD of picking values `index`: V^T = H, U = 1."""

    def project(x: Tensor) -> Tensor:
        return x.flatten(x.ndim - len(event)).index_select(-1, index.to(x.device))

    def expand(c: Tensor) -> Tensor:
        zeros = torch.zeros(*c.shape[:-1], math.prod(event), dtype=c.dtype, device=c.device)
        return zeros.index_copy(-1, index.to(c.device), c).reshape(*c.shape[:-1], *event)

    return SVD(
        torch.ones(index.numel()),
        project,
        expand,
        lambda y: y.flatten(y.ndim - len(obs)),
        lambda c: c.reshape(*c.shape[:-1], *obs),
    )
