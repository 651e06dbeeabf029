"""Training data: windows of consecutive states, from a simulator or from a Dataset of one's own.

    states (trajectory, time, *event)  ->  windows (n, length, *event)

A window never straddles two trajectories or a gap in the time axis. Held-out data are whole trajectories where there
are several, else the end of the time axis, so that no held-out state is a neighbour in time of a training one.

States are in Space units: transform applied, no-data cells 0.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Protocol, cast, runtime_checkable

import numpy as np
import torch
from torch import Tensor

from assimilate.errors import DataError
from dynamics import Dynamics, Rng, Space, Streams, simulate, uniform
from dynamics.settings import COUNT, SEED, check_settings, whole

if TYPE_CHECKING:
    import xarray as xr


IN_MEMORY = 4 * 2**30
"""Bytes of a Dataset beyond which its states are read as they are drawn."""


@dataclass(frozen=True)
class Standardisation:
    """The affine map, one pair of numbers a channel, to coordinates of mean 0 and standard deviation 1.

    Args:
        mean: mean of each channel, in Space units.
        std: standard deviation of each channel, in Space units.
        grid_dims: number of grid dims behind the channel.
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]
    grid_dims: int = 0

    def __post_init__(self) -> None:
        """Check the numbers; they may come from JSON as lists."""
        object.__setattr__(self, "mean", tuple(float(value) for value in self.mean))
        object.__setattr__(self, "std", tuple(float(value) for value in self.std))
        if len(self.mean) != len(self.std) or not all(value > 0 for value in self.std):
            raise ValueError(f"mean {self.mean} and std {self.std}: expected as many positive std as means")

    def encode(self, x: Tensor) -> Tensor:
        """Space units -> network coordinates, `(*b, channel, *grid)`."""
        return (x - self._column(self.mean, x)) / self._column(self.std, x)

    def decode(self, u: Tensor) -> Tensor:
        """Network coordinates -> Space units."""
        return self._column(self.mean, u) + self._column(self.std, u) * u

    def _column(self, values: tuple[float, ...], like: Tensor) -> Tensor:
        return torch.tensor(values, dtype=like.dtype, device=like.device).reshape(-1, *(1,) * self.grid_dims)


def redrawn(
    states: Tensor, shape: tuple[int, ...], *, rng: Rng, dtype: torch.dtype, device: torch.device | str
) -> Tensor:
    """Stored states `(n, *event)` drawn with replacement, `(*shape, *event)`: the prior of a learned system."""
    # One draw a row whatever the row's shape, as counter-based streams want it.
    pick = uniform(rng, tuple(shape), dtype=torch.float64, device=device)
    index = (pick * len(states)).long().clamp_max(len(states) - 1)
    return states.to(dtype=dtype, device=device)[index]


@dataclass(frozen=True)
class Simulation:
    """How training data are simulated; the defaults are SDA's and FlowDAS's Lorenz-63 data.

    Args:
        trajectories: number of trajectories.
        states: states kept of each.
        spinup: steps dropped beforehand.
        every: keep one state in `every`.
        seed: seed of the trajectories.
    """

    trajectories: int = 819
    states: int = 1024
    spinup: int = 1024
    every: int = 1
    seed: int = 42

    def __post_init__(self) -> None:
        """Check the settings."""
        check_settings(self, trajectories=COUNT, states=COUNT, spinup=whole(0), every=COUNT, seed=SEED)


@dataclass(frozen=True, eq=False)
class Trajectories:
    """States of a system, in memory, and the windows that can be cut from them.

    Args:
        states: `(trajectory, time, *event)`, Space units.
        space: what a state is.
        dt: time between states.
        joined: `(time - 1,)`, whether states k and k + 1 are one `dt` apart; None = all are.
        source: where they come from, for the training record.
    """

    states: Tensor
    space: Space
    dt: float
    joined: Tensor | None = None
    source: str = ""

    @classmethod
    def from_dataset(cls, ds: xr.Dataset, space: Space | None = None, *, dt: float | None = None) -> Trajectories:
        """The states of a Dataset with a time dimension.

        Args:
            ds: Dataset with dims time and perhaps experiment and member (each of which is a trajectory).
            space: what a state is; default `Space.from_dataset(ds)`.
            dt: time between states, in the units of the time axis (datetimes: seconds); default its median spacing.

        Raises:
            DataError: no time dimension, fewer than two times, times that do not increase, a value that is not finite
                outside the no-data cells.
        """
        from dynamics.labels import leading_dims

        space = space or Space.from_dataset(ds)
        roles = leading_dims(ds, exclude=space.grid)
        if "time" not in roles:
            raise DataError(f"the training data have dims {tuple(map(str, ds.sizes))}; expected a time dimension")
        dt, joined = cls.times_of(ds.rename({roles["time"]: "time"}), dt)
        states = space.to_tensor(ds)
        count = len(space.event_shape)
        states = states.reshape(-1, *states.shape[states.ndim - count - 1 :])
        source = str(ds.attrs.get("dynamics") or ds.attrs.get("title") or ds.encoding.get("source") or "Dataset")
        return cls(states, space, dt, joined, source)

    @staticmethod
    def times_of(ds: xr.Dataset, dt: float | None) -> tuple[float, Tensor | None]:
        """Time between the states of a Dataset, and which neighbours are so far apart (None: all).

        Raises:
            DataError: fewer than two times, or times that do not increase.
        """
        if "time" not in ds.dims:
            raise DataError(f"the training data have dims {tuple(map(str, ds.sizes))}; expected a time dimension")
        times = ds["time"].values
        if times.dtype.kind == "M":
            times = (times - times[0]) / np.timedelta64(1, "s")
        times = np.asarray(times, dtype=np.float64)
        steps = np.diff(times)
        if steps.size == 0 or not (steps > 0).all():
            raise DataError("the training data's times must increase and be at least two; sort them, drop repetitions")
        dt = float(np.median(steps)) if dt is None else dt
        joined = torch.from_numpy(np.abs(steps - dt) <= 1e-3 * dt)
        return dt, None if bool(joined.all()) else joined

    @classmethod
    def simulated(
        cls, dynamics: Dynamics, *, trajectories: int, states: int, spinup: int, seed: int, every: int = 1
    ) -> Trajectories:
        """States of a simulator, after a spin-up from its prior.

        A simulator whose step does not know all of its state has `events`, whole sequences: those are cut instead.

        Args:
            dynamics: the simulator.
            trajectories: number of trajectories.
            states: states kept of each.
            spinup: steps dropped beforehand.
            seed: seed of their streams.
            every: keep one state in `every`.
        """
        if isinstance(dynamics, Sequences):
            found = _sequences(dynamics, trajectories, spinup + (states - 1) * every + 1, seed)
            kept = found[:, spinup::every].contiguous()
            return cls(kept, dynamics.space, dynamics.dt * every, None, repr(dynamics))
        ds = simulate(
            dynamics, steps=(states - 1) * every, trajectories=trajectories, seed=seed, every=every, spinup=spinup
        )
        return replace(cls.from_dataset(ds, dynamics.space, dt=dynamics.dt * every), source=repr(dynamics))

    @classmethod
    def of(cls, source: Dynamics | xr.Dataset | Trajectories, simulation: Simulation) -> Trajectories:
        """Trajectories from whatever is at hand; `simulation` is for a simulator.

        A Dataset larger than `IN_MEMORY` becomes `StoredTrajectories`, which has the same interface.

        Raises:
            DataError: something else was given.
        """
        from assimilate.learning.archive import StoredTrajectories

        if isinstance(source, Trajectories | StoredTrajectories):
            return cast(Trajectories, source)
        if isinstance(source, Dynamics):
            s = simulation
            return cls.simulated(
                source, trajectories=s.trajectories, states=s.states, spinup=s.spinup, seed=s.seed, every=s.every
            )
        if not hasattr(source, "data_vars"):
            raise DataError(f"a {type(source).__name__} was given to train on; expected a Dynamics or a Dataset")
        return cls.opened(source)

    @classmethod
    def opened(cls, ds: xr.Dataset, space: Space | None = None) -> Trajectories:
        """The states of a Dataset, in memory or, where many are larger than `IN_MEMORY`, read as they are drawn."""
        from assimilate.learning.archive import StoredTrajectories
        from dynamics.labels import leading_dims

        if ds.nbytes > IN_MEMORY and "experiment" in leading_dims(ds):
            return cast(Trajectories, StoredTrajectories.from_dataset(ds, space))
        return cls.from_dataset(ds, space)

    def described(self, held_out: float) -> dict[str, Any]:
        """What these data are, for a training record."""
        count, times = self.states.shape[:2]
        return {"source": self.source, "trajectories": count, "states": times, "dt": self.dt, "held_out": held_out}

    @property
    def valid(self) -> Tensor | None:
        """Which cells hold data, `(*event)`; None = all."""
        return None if self.space.mask is None else torch.from_numpy(~self.space.mask)

    def split(self, held_out: float) -> tuple[Trajectories, Trajectories]:
        """Training and held-out part.

        Args:
            held_out: share that is held out: the last trajectories if this is at least one, else the last times.

        Raises:
            DataError: one part would be without data.
        """
        count, times = self.states.shape[:2]
        kept = count - round(held_out * count)
        if 0 < kept < count:
            return replace(self, states=self.states[:kept]), replace(self, states=self.states[kept:])
        kept = times - round(held_out * times)
        if not 1 < kept < times - 1:
            raise DataError(f"{count} trajectories of {times} states cannot be split with {held_out} of them held out")
        first, second = (None, None) if self.joined is None else (self.joined[: kept - 1], self.joined[kept:])
        return (
            replace(self, states=self.states[:, :kept], joined=first),
            replace(self, states=self.states[:, kept:], joined=second),
        )

    def starts(self, length: int) -> Tensor:
        """Times at which a window of `length` consecutive states can begin.

        Raises:
            DataError: there is no such window.
        """
        return self.possible_starts(self.states.shape[1], length, self.joined, self.dt)

    @staticmethod
    def possible_starts(times: int, length: int, joined: Tensor | None, dt: float) -> Tensor:
        """See `starts`; of trajectories with `times` states."""
        good = torch.ones(max(times - length + 1, 0), dtype=torch.bool)
        if joined is not None:
            for k in range(length - 1):
                good &= joined[k : k + len(good)]
        if not bool(good.any()):
            raise DataError(f"the training data have no {length} consecutive states {dt:g} apart in time")
        return good.nonzero().squeeze(1)

    def windows(
        self, count: int, length: int, rng: torch.Generator, *, patch: tuple[int, ...] | None = None
    ) -> tuple[Tensor, Tensor | None]:
        """Random windows and the weights of their values.

        Args:
            count: number of windows.
            length: states in each.
            rng: random numbers.
            patch: size of a random patch of the grid; None = the whole grid.

        Returns:
            `(count, length, *event)` and, where there are no-data cells, `(count, *event)` with 0 there, else None.
        """
        starts = self.starts(length)
        trajectory = torch.randint(len(self.states), (count,), generator=rng)
        start = starts[torch.randint(len(starts), (count,), generator=rng)]
        times = start[:, None] + torch.arange(length)
        found = self.states[trajectory[:, None], times]
        weight = None if self.valid is None else self.valid.to(found.dtype).expand(count, *self.valid.shape)
        if patch is None or tuple(patch) == self.space.grid_shape:
            return found, weight
        return crop(found, weight, patch, self.space.grid_shape, rng)

    def standardisation(self) -> Standardisation:
        """Mean and standard deviation of each channel over the cells with data."""
        return _moments(self.states, self.valid, len(self.space.grid_shape))

    def increments(self) -> Standardisation:
        """Mean and standard deviation of each channel's increments over one `dt`."""
        difference = self.states[:, 1:] - self.states[:, :-1]
        if self.joined is not None:
            difference = difference[:, self.joined]
        return _moments(difference, self.valid, len(self.space.grid_shape))


@runtime_checkable
class Sequences(Protocol):
    """A capability of simulators with a hidden state: whole sequences, in which it lives on."""

    def events(
        self,
        shape: tuple[int, ...],
        frames: int,
        *,
        rng: Rng,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ) -> Tensor:
        """Sequences `(*shape, frames, *event)`."""
        ...


def _sequences(system: Any, count: int, frames: int, seed: int) -> Tensor:
    """Sequences `(count, frames, *event)`, each with its own random stream."""
    parts = []
    for first in range(0, count, 16):
        rows = tuple(range(first, min(first + 16, count)))
        parts.append(system.events((len(rows), 1), frames, rng=Streams(seed, experiments=rows, members=1))[:, 0])
    return torch.cat(parts)


def crop(
    found: Tensor, weight: Tensor | None, patch: tuple[int, ...], grid: tuple[int, ...], rng: torch.Generator
) -> tuple[Tensor, Tensor | None]:
    """A random patch of each window `(n, length, channel, *grid)` and of its weights `(n, channel, *grid)`.

    Raises:
        DataError: the patch does not fit into the grid.
    """
    if len(patch) != len(grid) or any(size > full for size, full in zip(patch, grid, strict=True)):
        raise DataError(f"a patch of {tuple(patch)} cells does not fit into the grid {grid}")
    margins = [full - size + 1 for size, full in zip(patch, grid, strict=True)]
    corners = [torch.randint(margin, (len(found),), generator=rng) for margin in margins]
    parts, weights = [], []
    for n in range(len(found)):
        box: tuple[Any, ...] = tuple(slice(int(c[n]), int(c[n]) + size) for c, size in zip(corners, patch, strict=True))
        parts.append(found[n][(..., *box)])
        if weight is not None:
            weights.append(weight[n][(..., *box)])
    return torch.stack(parts), torch.stack(weights) if weights else None


def _moments(values: Tensor, valid: Tensor | None, grid_dims: int) -> Standardisation:
    """Mean and standard deviation of each channel of `(trajectory, time, channel, *grid)`."""
    column = (-1, *(1,) * grid_dims)
    doubled = values.double()
    weight = torch.ones_like(doubled) if valid is None else valid.double().expand_as(doubled)
    axes = (0, 1, *range(3, 3 + grid_dims))
    total = weight.sum(axes)
    mean = (weight * doubled).sum(axes) / total
    std = torch.sqrt((weight * (doubled - mean.reshape(column)).square()).sum(axes) / total)
    return Standardisation(tuple(mean.tolist()), tuple(std.clamp_min(1e-12).tolist()), grid_dims)
