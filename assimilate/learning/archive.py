"""Training data larger than memory: windows drawn from trajectories on disk.

`StoredTrajectories` has the interface of `Trajectories`. A draw of n windows opens n / 4 trajectories at random and
cuts four windows from each at random times (and places, with patches): an event of a radar archive costs more to read
than to train on. Every window is equally likely; only windows of one batch share their trajectories. What was read last
stays in memory, which changes the speed and nothing else: a draw depends on the data and the random numbers alone, so
that a resumed training goes on as it was.

Moments are those of a sample of trajectories, evenly spaced along the data.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from assimilate.errors import DataError
from assimilate.learning.samples import Standardisation, Trajectories, crop
from dynamics import Space

if TYPE_CHECKING:
    import xarray as xr


class Recent:
    """The trajectories that were read last.

    Args:
        capacity: how many are kept.
    """

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self.kept: OrderedDict[int, Tensor] = OrderedDict()

    def get(self, index: int) -> Tensor | None:
        """A trajectory, if it is in memory; it is then the latest."""
        if index in self.kept:
            self.kept.move_to_end(index)
        return self.kept.get(index)

    def put(self, index: int, states: Tensor) -> None:
        """Keep a trajectory; the one unused for longest goes."""
        self.kept[index] = states
        while len(self.kept) > self.capacity:
            self.kept.popitem(last=False)


@dataclass(frozen=True, eq=False)
class StoredTrajectories:
    """States of a system in a lazy Dataset, and the windows that can be cut from them; stands for `Trajectories`.

    Args:
        data: Dataset of the Space's variables with dims (experiment, time, *grid), dask-backed, a chunk a trajectory.
        space: what a state is.
        dt: time between states.
        chosen: the trajectories that belong to this part, positions along `experiment`.
        joined: `(time - 1,)`, whether states k and k + 1 are one `dt` apart; None = all are.
        source: where they come from, for the training record.
        together: windows that are cut from one trajectory in a draw.
        sample: trajectories from which moments are computed; these are held in memory once they are asked for.
        recent: what was read last.
    """

    data: xr.Dataset
    space: Space
    dt: float
    chosen: tuple[int, ...]
    joined: Tensor | None = None
    source: str = ""
    together: int = 4
    sample: int = 64
    recent: Recent = field(default_factory=lambda: Recent(512), repr=False)

    @classmethod
    def from_dataset(
        cls,
        ds: xr.Dataset,
        space: Space | None = None,
        *,
        dt: float | None = None,
        together: int = 4,
        sample: int = 64,
        cached: int = 512,
    ) -> StoredTrajectories:
        """The states of a lazy Dataset; nothing but its coordinates is read.

        Args:
            ds: Dataset with dims time, experiment and those of the grid.
            space: what a state is; default that of the Dataset, without no-data cells.
            dt: time between states, in the units of the time axis (datetimes: seconds); default its median spacing.
            together: see the class.
            sample: see the class.
            cached: trajectories kept in memory; 512 events of the reduced SEVIR are 0.8 GB.

        Raises:
            DataError: no dimension of trajectories or of time, times that do not increase.
        """
        from dynamics.labels import leading_dims

        space = space or Space.from_dataset(ds, mask=None)
        roles = leading_dims(ds, exclude=space.grid)
        if "experiment" not in roles or "member" in roles:
            raise DataError(
                f"stored training data have dims {tuple(map(str, ds.sizes))}; expected experiment (one trajectory "
                "each) and time"
            )
        ds = ds[[entry.name for entry in space.fields]]
        ds = ds.rename({dim: role for role, dim in roles.items() if dim != role})
        dt, joined = Trajectories.times_of(ds, dt)
        source = str(ds.attrs.get("title") or ds.encoding.get("source") or "Dataset")
        everything = tuple(range(ds.sizes["experiment"]))
        return cls(ds, space, dt, everything, joined, source, together, sample, Recent(cached))

    @property
    def states(self) -> Tensor:
        """The states of the sample, `(trajectory, time, *event)`, for what needs some states in memory."""
        return self.in_memory.states

    @cached_property
    def in_memory(self) -> Trajectories:
        """The sample as ordinary trajectories."""
        count = min(self.sample, len(self.chosen))
        places = torch.linspace(0, len(self.chosen) - 1, count).round().long().tolist()
        found = torch.stack(self._read([self.chosen[place] for place in places]))
        return Trajectories(found, self.space, self.dt, self.joined, self.source)

    @property
    def valid(self) -> Tensor | None:
        """Which cells hold data, `(*event)`; None = all."""
        return None if self.space.mask is None else torch.from_numpy(~self.space.mask)

    def described(self, held_out: float) -> dict[str, Any]:
        """What these data are, for a training record."""
        times = self.data.sizes["time"]
        return {
            "source": self.source,
            "trajectories": len(self.chosen),
            "states": times,
            "dt": self.dt,
            "held_out": held_out,
        }

    def split(self, held_out: float) -> tuple[StoredTrajectories, StoredTrajectories]:
        """Training and held-out part: the last trajectories are held out, at least one.

        Args:
            held_out: share that is held out.

        Raises:
            DataError: one part would be without data.
        """
        count = len(self.chosen)
        kept = min(count - round(held_out * count), count - 1)
        if not 0 < kept < count or not 0 < held_out < 1:
            raise DataError(f"{count} stored trajectories cannot be split with {held_out} of them held out")
        return replace(self, chosen=self.chosen[:kept]), replace(self, chosen=self.chosen[kept:])

    def starts(self, length: int) -> Tensor:
        """Times at which a window of `length` consecutive states can begin; see `Trajectories.starts`."""
        return Trajectories.possible_starts(self.data.sizes["time"], length, self.joined, self.dt)

    def windows(
        self, count: int, length: int, rng: torch.Generator, *, patch: tuple[int, ...] | None = None
    ) -> tuple[Tensor, Tensor | None]:
        """Random windows and the weights of their values; see `Trajectories.windows`.

        Args:
            count: number of windows.
            length: states in each.
            rng: random numbers.
            patch: size of a random patch of the grid; None = the whole grid.
        """
        starts = self.starts(length)
        opened = -(-count // self.together)
        drawn = torch.randint(len(self.chosen), (opened,), generator=rng)
        start = starts[torch.randint(len(starts), (count,), generator=rng)]
        events = self._read([self.chosen[place] for place in drawn.tolist()])
        found = torch.stack([events[k // self.together][int(s) : int(s) + length] for k, s in enumerate(start)])
        weight = None if self.valid is None else self.valid.to(found.dtype).expand(count, *self.valid.shape)
        if patch is None or tuple(patch) == self.space.grid_shape:
            return found, weight
        return crop(found, weight, patch, self.space.grid_shape, rng)

    def standardisation(self) -> Standardisation:
        """Mean and standard deviation of each channel over the sample."""
        return self.in_memory.standardisation()

    def increments(self) -> Standardisation:
        """Mean and standard deviation of each channel's increments over one `dt`, over the sample."""
        return self.in_memory.increments()

    def _read(self, wanted: list[int]) -> list[Tensor]:
        """Trajectories `(time, *event)`; those that are not in memory are read together.

        Raises:
            SpaceMismatch: a value is missing where the Space has data.
        """
        found = {index: states for index in wanted if (states := self.recent.get(index)) is not None}
        missing = [index for index in dict.fromkeys(wanted) if index not in found]
        if missing:
            read = self.space.to_tensor(self.data.isel(experiment=missing))
            for index, states in zip(missing, read, strict=True):
                # A copy: a view would keep all that was read with it.
                found[index] = states.clone()
                self.recent.put(index, found[index])
        return [found[index] for index in wanted]
