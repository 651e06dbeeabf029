r"""Several instruments as one stream of observations: a Dataset with a `time` dim, and what it says of a state.

    observations, network = gather([Instrument(...), ...], space, ...)
    run(method, observations, likelihood=network)

The Dataset has one time for each analysis and one variable for each instrument, NaN where it saw nothing. A table is
packed: `NAME (time, NAME_slot)` has as many slots as the fullest analysis has rows, and `NAME_row` says which row of
the table a slot holds (-1: none). A `Network` is the rule that turns the Dataset of one time into a likelihood: the
operators of the instruments that saw something, stacked.

Rows that came with a bad flag are NaN in the Dataset: they are compared with the state, not assimilated.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import xarray as xr

from assimilate.engine.clock import Clock
from assimilate.engine.flags import MISSING, OUTSIDE, REJECTED, UNDECIDED, WITHHELD
from assimilate.errors import UserError
from assimilate.schedule import Schedule
from dynamics.errors import DataError
from dynamics.space import Space
from observations.blocks import joined
from observations.instruments import Instrument
from observations.likelihood import Likelihood
from observations.tables import LOCATION, channels_of, places_of

RESERVED = {"time", "experiment", "member", LOCATION}
"""Names of dims, which no instrument can have."""


class Rows(NamedTuple):
    """What is known of the m observed values of one time, in their order.

    Attributes:
        value: `(E', m)`, E' = 1 where all experiments see the same; as given, also where rejected.
        error: `(m,)` standard deviations.
        flag: `(m,)`, see `assimilate.engine.flags`; UNDECIDED: neither rejected nor missing so far.
        time: `(m,)`, when they were made.
        places: `(m, n_dims)`, columns `Space.position_names`; NaN where unknown.
        variable: `(m,)` texts.
        instrument: `(m,)` texts.
        station: `(m,)` texts.
        listed: `(m,)`, whether it is a row of a table: one that is listed even where it is missing.
    """

    value: np.ndarray
    error: np.ndarray
    flag: np.ndarray
    time: np.ndarray
    places: np.ndarray
    variable: np.ndarray
    instrument: np.ndarray
    station: np.ndarray
    listed: np.ndarray


@dataclass(frozen=True, eq=False)
class TableRows:
    """What the rows of a table bring along.

    Args:
        errors: standard deviations, `(rows,)`; NaN where there is none, then the row is rejected.
        flags: `(rows,)`, see `assimilate.engine.flags`.
    """

    errors: np.ndarray
    flags: np.ndarray

    @classmethod
    def of(cls, instrument: Instrument, space: Space) -> TableRows:
        """Rows that are missing, rejected by their flag or error, or where the state cannot be read, are flagged."""
        table, errors = instrument.observations, instrument.errors()
        values = np.atleast_2d(table["value"].values.astype(np.float64))
        flags = np.where(np.isnan(values).all(0), MISSING, UNDECIDED)
        lost = np.isnan(errors)
        if "flag" in table:
            lost |= table["flag"].values != 0
        flags = np.where(lost, REJECTED, flags)
        if "withheld" in table:
            flags = np.where(table["withheld"].values.astype(bool), WITHHELD, flags)
        flags = np.where(instrument.usable(space), flags, OUTSIDE)
        return cls(errors, flags)


@dataclass(frozen=True, eq=False)
class Part:
    """One instrument in the joint Dataset.

    Args:
        instrument: it.
        names: variables of the joint Dataset, and what they are called in the instrument's own.
        back: dims and coords of the joint Dataset, and what they are called in the instrument's own.
        rows: of a table: errors and flags of its rows.
        times: of a Dataset with a time dim: when the values of each analysis were made.
    """

    instrument: Instrument
    names: dict[str, str]
    back: dict[str, str]
    rows: TableRows | None = None
    times: np.ndarray | None = None

    @property
    def row(self) -> str:
        """Coordinate that says which row of the table a slot holds."""
        return f"{self.instrument.name}_row"

    def own(self, now: xr.Dataset) -> xr.Dataset:
        """The Dataset of one time with the names of the instrument itself."""
        mine = now[list(self.names)]
        known = {*mine.dims, *mine.coords}
        return mine.rename(
            {new: old for new, old in {**self.names, **self.back}.items() if new in {*known, *self.names}}
        )


@dataclass(frozen=True, eq=False)
class Network:
    """The rule that gives the likelihood of one time from the joint Dataset of several instruments.

    Args:
        parts: the instruments.
        space: of the state.
        times: of the analyses.
    """

    parts: tuple[Part, ...]
    space: Space
    times: np.ndarray

    def seen(self, now: xr.Dataset) -> xr.Dataset:
        """The Dataset of one time without the instruments that saw nothing and without empty slots."""
        kept: list[str] = []
        slots: dict[str, np.ndarray] = {}
        for part in self.parts:
            if part.rows is not None:
                filled = np.flatnonzero(now.variables[part.row].values >= 0)
                if filled.size:
                    kept += part.names
                    slots[f"{part.instrument.name}_slot"] = filled
            elif any(bool(np.isfinite(now.variables[name].values).any()) for name in part.names):
                kept += part.names
        return now[kept].isel(slots) if slots else now[kept]

    def __call__(self, seen: xr.Dataset) -> Likelihood:
        """Operator and noise of the values of `seen`, in their order."""
        return joined([likelihood for _, likelihood in self._each(seen)])

    def rows(self, seen: xr.Dataset) -> Rows:
        """What is known of the values of `seen`."""
        found = []
        for part, likelihood in self._each(seen):
            size = likelihood.operator.obs_size
            name = np.full(size, part.instrument.name)
            if part.rows is not None:
                found.append(self._rows_of_table(part, seen[part.row].values, name))
                continue
            y = flat_values(seen[list(part.names)])
            found.append(rows_of_grid(y, likelihood, self.space, self._made(part, seen), name))
        count = max(r.value.shape[0] for r in found)
        values = np.concatenate([np.broadcast_to(r.value, (count, r.value.shape[1])) for r in found], 1)
        return Rows(values, *(np.concatenate([r[k] for r in found]) for k in range(1, len(Rows._fields))))

    def outside(self) -> list[Rows]:
        """Rows of tables that no analysis has: the state cannot be read there, or their time is in no window."""
        found = []
        for part in self.parts:
            lost = np.zeros(0, np.int64) if part.rows is None else np.flatnonzero(part.rows.flags == OUTSIDE)
            if lost.size:
                found.append(self._rows_of_table(part, lost, np.full(lost.size, part.instrument.name)))
        return found

    def _each(self, seen: xr.Dataset) -> list[tuple[Part, Likelihood]]:
        out = []
        for part in self.parts:
            if not set(part.names) <= set(seen.data_vars):
                continue
            instrument = part.instrument
            if part.rows is not None:
                index = seen[part.row].values
                rows = instrument.observations.isel({LOCATION: index})
                # Rows without an error are NaN, whatever stands for it.
                errors = np.nan_to_num(part.rows.errors[index], nan=1.0)
                out.append((part, instrument.row_likelihood(self.space, rows, errors)))
            elif isinstance(instrument.likelihood, Likelihood):
                out.append((part, instrument.likelihood))
            else:
                assert instrument.likelihood is not None
                out.append((part, instrument.likelihood(part.own(seen))))
        return out

    def _made(self, part: Part, seen: xr.Dataset) -> Any:
        """When the values of a grid were made."""
        assert part.times is not None
        return part.times[int(np.searchsorted(self.times, seen["time"].values))]

    def _rows_of_table(self, part: Part, index: np.ndarray, name: np.ndarray) -> Rows:
        table = part.instrument.observations.isel({LOCATION: index})
        value = table["value"].values.astype(np.float64).reshape(-1, index.size)
        assert part.rows is not None
        try:
            places = places_of(table, self.space)
        except DataError:
            places = np.full((index.size, len(self.space.position_names)), np.nan)
        names = np.asarray(self.space.channels)
        variable = (
            table["variable"].values.astype(str) if "variable" in table else names[channels_of(table, self.space)]
        )
        own = table["instrument"].values.astype(str) if "instrument" in table else name
        station = table["station"].values.astype(str) if "station" in table else np.full(index.size, "")
        own_rows = (part.rows.errors[index], part.rows.flags[index], table["time"].values)
        return Rows(value, *own_rows, places, variable, own, station, np.full(index.size, True))

    def __repr__(self) -> str:
        return f"Network({', '.join(part.instrument.name for part in self.parts)})"


def gather(
    instruments: Sequence[Instrument],
    space: Space,
    *,
    schedule: Schedule | str = "exact",
    start: Any = None,
    dt: float | None = None,
    time_unit: str = "h",
) -> tuple[xr.Dataset, Network]:
    """The observations of several instruments as one Dataset, and the rule for their likelihood.

    Args:
        instruments: with different names.
        space: of the state.
        schedule: when analyses are made.
        start: time of the initial ensemble (a number, a date or a DataArray); default: the first observation.
        dt: length of a model step, None for a method without a model.
        time_unit: what 1.0 of `dt` means where times are dates.

    Raises:
        UserError: names that repeat, tables that do not fit the state, dates mixed with numbers, no observations.
    """
    names = [i.name for i in instruments]
    if not names or len(set(names)) < len(names) or RESERVED & set(names):
        raise UserError(f"instruments need names of their own, none of {sorted(RESERVED)}; given {names}")
    try:
        held = [TableRows.of(i, space) if i.tabular else None for i in instruments]
        raw = [i.observations["time"].values for i in instruments]
        used = [t if rows is None else t[rows.flags != OUTSIDE] for t, rows in zip(raw, held, strict=True)]
        if not any(t.size for t in used):
            raise UserError(f"there are no observations to assimilate; {', '.join(names)}: no values at any time")
        if len({t.dtype.kind == "M" for t in used if t.size}) > 1:
            raise UserError(f"the instruments {', '.join(names)} mix dates and plain numbers on one time axis")
        if start is None:
            start = min(t.min() for t in used if t.size)
        clock = Clock.of(xr.DataArray(start), time_unit)
        numbers = [clock.numbers(t) if t.size else np.zeros(0) for t in used]
        began = float(clock.numbers(xr.DataArray(start))[0])
        assigned = Schedule.of(schedule).assign(numbers, clock, began, dt)
        parts, pieces = [], []
        for instrument, rows, index in zip(instruments, held, assigned.numbers, strict=True):
            check_order(instrument.observations, space, f"instrument '{instrument.name}'")
            count = len(assigned.times)
            made = _gridded(instrument, index, count) if rows is None else _packed(instrument, rows, index, count)
            for part, piece in made:
                parts.append(part)
                pieces.append(piece)
    except UserError:
        raise
    except (DataError, ValueError, KeyError) as error:
        raise UserError(str(error)) from error
    sizes = {p.sizes["experiment"] for p in pieces if "experiment" in p.dims} - {1}
    labels = [str(n) for p in pieces for n in {*p.variables, *p.dims} - {"time", "experiment"}]
    double = {n for n in labels if labels.count(n) > 1}
    if double:
        raise UserError(f"the instruments {names} would have two variables '{min(double)}'; rename one of them")
    if len(sizes) > 1:
        raise UserError(f"instruments have {sorted(sizes)} experiments; expected one number, or 1")
    whole = xr.merge(pieces, compat="override", join="override", combine_attrs="drop")
    times = clock.moments(assigned.times)
    return whole.assign_coords(time=times), Network(tuple(parts), space, times)


def check_order(observations: xr.Dataset, space: Space, what: str) -> None:
    """Raise a UserError where values have the dims of the grid in another order: they are taken in C order."""
    for name, array in observations.data_vars.items():
        order = [str(d) for d in array.dims if d in space.grid]
        wanted = [d for d in space.grid if d in order]
        if order != wanted:
            raise UserError(f"{what}: '{name}' has the dims {order}, the grid {wanted}; transpose it to that order")


def flat_values(now: xr.Dataset) -> np.ndarray:
    """All values of the Dataset of one time, `(E', m)`, variable after variable."""
    parts = []
    for array in now.data_vars.values():
        lead = ("experiment",) if "experiment" in array.dims else ()
        parts.append(
            array.transpose(*lead, ...).values.reshape(array.sizes.get("experiment", 1), -1).astype(np.float64)
        )
    rows = max(len(p) for p in parts)
    return np.concatenate([np.broadcast_to(p, (rows, p.shape[1])) for p in parts], axis=1)


def rows_of_grid(y: np.ndarray, likelihood: Likelihood, space: Space, time: Any, name: np.ndarray) -> Rows:
    """What is known of the values of an operator."""
    import torch

    operator, size = likelihood.operator, y.shape[1]
    where = operator.positions
    width = len(space.position_names)
    places = np.full((size, width), np.nan) if where is None or where.shape[1] != width else where.numpy()
    try:
        error = likelihood.noise.variance(size, dtype=torch.float64).sqrt().numpy()
    except (TypeError, ValueError):  # a law without a variance, or one that depends on the signal
        error = np.full(size, np.nan)
    flag = np.where(np.isnan(y).all(0), MISSING, UNDECIDED)
    empty = np.full(size, "")
    # Several fields may share an observed value; the only one has it for itself.
    variable = np.full(size, space.channels[0]) if likelihood.linear and len(space.channels) == 1 else empty
    return Rows(y, error, flag, np.full(size, time), places, variable, name, empty, np.full(size, False))


def _packed(instrument: Instrument, rows: TableRows, index: np.ndarray, count: int) -> list[tuple[Part, xr.Dataset]]:
    """A table as `(time, slot)`; `index` is of the rows that are not outside."""
    numbers = np.flatnonzero(rows.flags != OUTSIDE)
    flags = rows.flags.copy()
    flags[numbers[index < 0]] = OUTSIDE
    rows = TableRows(rows.errors, flags)
    numbers, index = numbers[index >= 0], index[index >= 0]
    order = np.argsort(index, kind="stable")
    numbers, index = numbers[order], index[order]
    slots = np.arange(index.size) - np.searchsorted(index, index)
    name = instrument.name
    packed = np.full((count, int(slots.max(initial=0)) + 1), -1, dtype=np.int64)
    packed[index, slots] = numbers
    values = instrument.observations["value"].values.astype(np.float64)
    values = np.where(rows.flags == UNDECIDED, values, np.nan)
    # A slot without a row, -1, takes what stands after the last one.
    values = np.concatenate([values, np.full((*values.shape[:-1], 1), np.nan)], -1)[..., packed]
    dims = (*(["experiment"] if values.ndim == 3 else []), "time", f"{name}_slot")
    return [
        (
            Part(instrument, {name: "value"}, {}, rows),
            xr.Dataset({name: (dims, values)}, {f"{name}_row": (("time", f"{name}_slot"), packed)}),
        )
    ]


def _gridded(instrument: Instrument, index: np.ndarray, count: int) -> list[tuple[Part, xr.Dataset]]:
    """A Dataset with a time dim at the times of the analyses; one more part for each further time that falls to one."""
    ds = instrument.observations
    taken = np.flatnonzero(index >= 0)
    taken = taken[np.argsort(index[taken], kind="stable")]
    slots = np.arange(taken.size) - np.searchsorted(index[taken], index[taken])
    out = []
    for slot in range(int(slots.max(initial=0)) + 1):
        name = instrument.name if slot == 0 else f"{instrument.name}.{slot + 1}"
        source = np.full(count, -1, dtype=np.int64)
        source[index[taken[slots == slot]]] = taken[slots == slot]
        held = ds.isel(time=np.maximum(source, 0)).drop_vars("time")
        held = held.where(xr.DataArray(source >= 0, dims="time"))
        single = len(ds.data_vars) == 1
        names = {name if single else f"{name}_{v}": str(v) for v in ds.data_vars}
        others = {str(n) for n in (*held.dims, *held.coords)} - {"time", "experiment"}
        back = {f"{name}_{n}": n for n in sorted(others)}
        held = held.drop_vars("experiment", errors="ignore").drop_indexes(
            [n for n in held.xindexes if n != "experiment"], errors="ignore"
        )
        renamed = held.rename({old: new for new, old in {**names, **back}.items()})
        own = ds["time"].values[np.maximum(source, 0)]
        out.append((Part(instrument, names, back, times=own), renamed))
    return out
