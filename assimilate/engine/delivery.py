"""The way of finished analyses: collected into parts, shown to `each`, kept in memory or in a journal, then joined.

A part ends when its analyses reach `BLOCK_BYTES`, wherever they are kept and however often a run was stopped: what
`each` gets, and every number of the result, is the same.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from numbers import Integral
from typing import Any

import numpy as np
import xarray as xr

from assimilate.engine.cycle import Cycle
from assimilate.engine.divergence import Loss, recorded
from assimilate.engine.restart import Journal, Reached
from assimilate.engine.results import Slice, keep_members, to_dataset
from assimilate.errors import UserError
from assimilate.storage import write_parts

BLOCK_BYTES = 64 * 2**20
"""Members of about this size are turned into a Dataset (and scored, and stored) at a time."""
Each = Callable[[xr.Dataset], None]


class Delivery:
    """Where finished analyses go.

    Args:
        cycle: settings of the run.
        times: of the whole run.
        many: whether the result has an `experiment` dim.
        keep: largest number of members in the result; None: all.
        each: called with every part, all members in it.
        journal: where parts are written; None keeps them in memory.
    """

    def __init__(
        self,
        cycle: Cycle,
        times: xr.DataArray,
        *,
        many: bool,
        keep: int | None = None,
        each: Each | None = None,
        journal: Journal | None = None,
    ) -> None:
        if keep is not None and (not isinstance(keep, Integral) or keep < 1):
            raise UserError(f"keep is {keep!r}; expected a number of members of 1 or more, None for all")
        self.cycle, self.times, self.many, self.each, self.journal = cycle, times, many, each, journal
        # Of as many members as there are all are kept, weights and all.
        self.keep = keep if keep is not None and keep < cycle.streams.rows[1] else None
        self.held: list[Slice] = []
        self.parts = 0
        self.delivered = 0
        self.weighted = False
        self._size = 0
        self._datasets: list[xr.Dataset] = []

    @property
    def whole_members(self) -> bool:
        """Whether parts in the journal hold all members: where all are kept, and where `each` may need them again."""
        return self.keep is None or self.each is not None

    def add(self, one: Slice, losses: Sequence[Loss]) -> bool:
        """Take the analysis of the next time; whether a part has ended with it."""
        if self.journal is not None:
            # What a resumed run reads is on the CPU, and choosing members must not round differently elsewhere.
            one = Slice._make(None if part is None else part.cpu() for part in one)
            if not self.whole_members and one.members is not None and self.keep is not None:
                members, log_weights = keep_members(one.members, one.log_weights, self.keep)
                one = one._replace(members=members, log_weights=log_weights)
        self.held.append(one)
        self._size += one.nbytes
        if self._size < BLOCK_BYTES:
            return False
        self.flush(losses)
        return True

    def flush(self, losses: Sequence[Loss]) -> None:
        """End the part."""
        if not self.held:
            return
        self._show(self.held, losses)
        if self.journal is None:
            self._datasets.append(self._dataset(self.held, self.keep))
        else:
            self.journal.write_part(self.parts, self.held)
            self.weighted |= self.keep is None and any(one.log_weights is not None for one in self.held)
        self.delivered += len(self.held)
        self.parts += 1
        self.held, self._size = [], 0

    def go_on(self, reached: Reached) -> None:
        """Take up what a journal holds: finished parts are shown to `each` again."""
        assert self.journal is not None
        for index in range(reached.parts):
            if self.each is None:
                break
            slices = self.journal.part(index)
            self._show(slices, reached.running.losses)
            self.delivered += len(slices)
        self.delivered = reached.done - len(reached.held)
        self.parts, self.weighted = reached.parts, reached.weighted
        self.held = list(reached.held)
        self._size = sum(one.nbytes for one in self.held)

    def show_again(self, result: xr.Dataset) -> None:
        """Show `each` the parts of a finished result.

        Raises:
            UserError: the result does not hold all members.
        """
        if self.each is None:
            return
        if self.keep is not None:
            raise UserError(
                f"the finished result holds {self.keep} of {self.cycle.streams.rows[1]} members, `each` needs all: "
                "overwrite=True runs anew"
            )
        step = chunk_of(result)
        for begin in range(0, result.sizes["time"], step):
            self.each(result.isel(time=slice(begin, begin + step)).load())

    def result(self, attrs: dict[str, Any], losses: Sequence[Loss]) -> xr.Dataset:
        """The whole result; what was held must have been flushed."""
        if self.journal is None:
            return self._marked(joined(self._datasets), losses).assign_attrs(attrs)
        draft = self.journal.draft
        write_parts(self._written(attrs, losses), draft, self.times)
        self.journal.finish(draft)
        return opened(self.journal)

    def _written(self, attrs: dict[str, Any], losses: Sequence[Loss]) -> Iterator[xr.Dataset]:
        assert self.journal is not None
        self.delivered = 0
        for index in range(self.parts):
            slices = self.journal.part(index)
            dataset = self._dataset(slices, self.keep, weighted=self.weighted)
            self.delivered += len(slices)
            yield self._marked(dataset, losses).assign_attrs(attrs)

    def _show(self, slices: Sequence[Slice], losses: Sequence[Loss]) -> None:
        if self.each is not None:
            self.each(self._marked(self._dataset(slices), losses))

    def _dataset(self, slices: Sequence[Slice], keep: int | None = None, *, weighted: bool = False) -> xr.Dataset:
        times = self.times.isel(time=slice(self.delivered, self.delivered + len(slices)))
        return to_dataset(self.cycle.space, slices, times, experiments=self.many, keep=keep, weighted=weighted)

    def _marked(self, dataset: xr.Dataset, losses: Sequence[Loss]) -> xr.Dataset:
        experiments = self.cycle.streams.rows[0]
        return recorded(dataset, losses, self.cycle.method.name, self.times, experiments, self.many)


def opened(journal: Journal) -> xr.Dataset:
    """A result that is in its place, read part by part when it is used."""
    with journal.opened() as held:
        chunk = chunk_of(held)
    return journal.opened({"time": chunk})


def chunk_of(result: xr.Dataset) -> int:
    """Times that are about `BLOCK_BYTES` of the largest variable, a whole number of the file's own chunks."""
    largest = max((v for v in result.data_vars.values() if "time" in v.dims), key=lambda v: v.nbytes)
    times = max(1, BLOCK_BYTES * result.sizes["time"] // max(1, largest.nbytes))
    stored = largest.encoding.get("chunksizes") or largest.encoding.get("chunks") or (1,) * largest.ndim
    own = int(stored[largest.dims.index("time")])
    return max(own, times // own * own)


def joined(parts: list[xr.Dataset]) -> xr.Dataset:
    """Parts of a result as one along time; parts without weights have equal ones."""
    if len(parts) == 1:
        return parts[0]
    if any("log_weights" in p for p in parts):
        weighted = next(p for p in parts if "log_weights" in p)["log_weights"]
        parts = [p if "log_weights" in p else p.assign(log_weights=_equal_weights(p, weighted)) for p in parts]
    return xr.concat(parts, "time", data_vars="minimal", coords="minimal", compat="override", join="override")


def _equal_weights(part: xr.Dataset, like: xr.DataArray) -> xr.DataArray:
    sizes = {d: part.sizes[d] for d in like.dims}
    return xr.DataArray(np.full(tuple(sizes.values()), -np.log(sizes["member"]), like.dtype), dims=like.dims)
