"""Fields as pictures: one small PNG for each field and time, drawn cell by cell and enlarged by the browser.

A cell of the data is a pixel of the picture, so nothing is smoothed away and a page with every hour of every method
stays below a few megabytes. North is up and east is right where latitude and longitude are known.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import xarray as xr

from assimilate.report.colours import Scale, png, state_scale
from assimilate.report.contents import Contents, Entry, first

MAX_FRAMES = 48
"""At most this many times are drawn, evenly chosen."""
LEADING = ("experiment", "member", "time")


@dataclass(frozen=True)
class Panel:
    """Pictures of one thing at every drawn time.

    Args:
        title: what is shown.
        row: "state", "member", "spread" or "error".
        column: 0 for the truth and observations, then 1, 2... for the methods.
        frames: data URIs, one per time; empty when there is nothing to show.
        scale: of the colours.
        note: a line below the picture at each time (the score there), or empty.
    """

    title: str
    row: str
    column: int
    frames: tuple[str, ...]
    scale: Scale | None
    note: tuple[str, ...] = ()


@dataclass(frozen=True)
class Atlas:
    """All pictures of one field.

    Args:
        field: its name.
        label: its name for people.
        times: indices of the analyses that are drawn.
        shape: rows and columns of a picture in cells.
        panels: the pictures.
        states: titles and values (time, row, column) of truth, observations and means, for still pictures.
    """

    field: str
    label: str
    times: tuple[int, ...]
    shape: tuple[int, int]
    panels: tuple[Panel, ...]
    states: tuple[tuple[str, np.ndarray], ...]


class Orientation:
    """How a field over a 2-D grid lies on paper: north up, east right."""

    def __init__(self, field: xr.DataArray, grid: tuple[str, str]) -> None:
        self.grid = grid
        self.flip_rows = _grows(field, grid, grid[0], "lat", "north", default=True)
        self.flip_columns = not _grows(field, grid, grid[1], "lon", "east", default=True)

    def __call__(self, array: np.ndarray) -> np.ndarray:
        """Rows downwards, columns rightwards, of an array whose last dims are the grid."""
        rows = slice(None, None, -1) if self.flip_rows else slice(None)
        columns = slice(None, None, -1) if self.flip_columns else slice(None)
        return array[..., rows, columns]


def _grows(field: xr.DataArray, grid: tuple[str, str], dim: str, word: str, units: str, *, default: bool) -> bool:
    """Whether latitude (longitude) grows along a dim; else whether its own coordinate does; else the default."""
    for name, coordinate in field.coords.items():
        known = str(name).startswith(word) or str(coordinate.attrs.get("units", "")).lower().endswith(units)
        if known and dim in coordinate.dims and set(coordinate.dims) <= set(grid):
            ends = coordinate.isel({dim: [0, -1]}).mean([d for d in coordinate.dims if d != dim]).values
            return bool(ends[1] > ends[0])
    if dim in field.coords and field[dim].size > 1 and np.issubdtype(field[dim].dtype, np.number):
        return bool(field[dim].values[-1] > field[dim].values[0])
    return default


def picture_dims(field: xr.DataArray) -> tuple[str, str] | None:
    """The two dims of a picture of this field: its grid, or time and a 1-D grid; None for scalars."""
    grid = [str(d) for d in field.dims if d not in LEADING]
    if len(grid) >= 2:
        return grid[-2], grid[-1]
    return ("time", grid[0]) if len(grid) == 1 else None


def atlas(contents: Contents, name: str) -> Atlas | None:
    """The pictures of a field: truth, observations, and for each method mean, one member, spread and error."""
    sample = contents.truth[name] if contents.truth is not None else _stand_in(contents, name)
    dims = picture_dims(sample)
    if dims is None:
        return None
    moving = dims[0] != "time"
    count = len(contents.times)
    chosen = (
        np.unique(np.linspace(0, count - 1, min(count, MAX_FRAMES)).round().astype(int)) if moving else np.array([0])
    )
    orient = Orientation(sample, dims)
    if not moving:
        orient.flip_rows = False
    times = contents.times[chosen] if moving else contents.times
    at = _Selector(times, dims, orient)
    means = {e.label: e.field(name, "mean") for e in contents.entries}
    truth = None if contents.truth is None else contents.truth[name]
    scale = state_scale(sample)
    panels: list[Panel] = []
    states: list[tuple[str, np.ndarray]] = []
    seen = observed_field(contents, sample, times)
    for title, row, shown in (("Truth", "state", truth), ("Observations", "member", seen)):
        if shown is not None:
            states.append((title, at.array(shown)))
            panels.append(Panel(title, row, 0, at.frames(shown, scale), scale))
    back = _from_working(contents, name)
    spreads = [at.array(e.field(name, "std")) for e in contents.entries if e.field(name, "std") is not None]
    units = str(next(m for m in means.values() if m is not None).attrs.get("units", ""))
    wide = Scale("spread", 0.0, _upper(spreads), units)
    working_truth = None if truth is None else _to_working(contents, name)(at.array(truth))
    errors = {
        label: at.array(mean) - working_truth
        for label, mean in means.items()
        if mean is not None and working_truth is not None
    }
    limit = _upper([abs(e) for e in errors.values()])
    signed = Scale("signed", -limit, limit, units)
    for column, entry in enumerate(contents.entries, start=1):
        mean, std = means[entry.label], entry.field(name, "std")
        if mean is None:
            continue
        values = back(at.array(mean))
        states.append((entry.label, values))
        panels.append(Panel(entry.label, "state", column, _pictures(values, scale), scale))
        member = _one_member(entry, name)
        if member is not None:
            panels.append(Panel("one member", "member", column, at.frames(member, scale), scale))
        if std is not None:
            panels.append(Panel("spread", "spread", column, _pictures(at.array(std), wide), wide))
        if entry.label in errors:
            error = errors[entry.label]
            panels.append(Panel("error", "error", column, _pictures(error, signed), signed, _notes(error)))
    label = str(sample.attrs.get("long_name", name))
    height, width = (sample.sizes[d] for d in dims)
    shape = (height, width) if moving else (count, width)
    return Atlas(name, label, tuple(int(c) for c in chosen), shape, tuple(panels), tuple(states))


def _stand_in(contents: Contents, name: str) -> xr.DataArray:
    """Where there is no truth: the first mean, in units of the data, with the labels of the field."""
    mean = contents.entries[0].analysis[f"{name}_mean"]
    labels = next((e.analysis[name].attrs for e in contents.entries if name in e.analysis), mean.attrs)
    return mean.copy(data=_from_working(contents, name)(mean.values)).rename(name).assign_attrs(labels)


class _Selector:
    """Takes the drawn times and the first experiment and level of an array, as (time, row, column)."""

    def __init__(self, times: np.ndarray, dims: tuple[str, str], orient: Orientation) -> None:
        self.times, self.dims, self.orient = times, dims, orient

    def array(self, field: xr.DataArray | None) -> np.ndarray:
        assert field is not None
        field = first(field).sel(time=self.times)
        rest = {d: 0 for d in field.dims if d not in ("time", *self.dims)}
        field = field.isel(rest)
        if self.dims[0] == "time":
            return field.transpose("time", self.dims[1]).values[None]
        return self.orient(field.transpose("time", *self.dims).values)

    def frames(self, field: xr.DataArray, scale: Scale) -> tuple[str, ...]:
        return _pictures(self.array(field), scale)


def _pictures(array: np.ndarray, scale: Scale) -> tuple[str, ...]:
    return tuple(png(scale.rgba(frame)) for frame in array)


def _notes(error: np.ndarray) -> tuple[str, ...]:
    return tuple(f"RMSE {np.sqrt(np.nanmean(frame**2)):.3f}" for frame in error)


def _upper(arrays: list[np.ndarray]) -> float:
    """A round number near the 99.5 % quantile of all values: the end of a colour scale."""
    values = np.concatenate([a[np.isfinite(a)].ravel() for a in arrays]) if arrays else np.array([1.0])
    top = float(np.quantile(values, 0.995)) if values.size else 1.0
    if not top > 0:
        return 1.0
    unit = 10.0 ** np.floor(np.log10(top))
    return float(unit * next(r for r in (1, 1.2, 1.6, 2, 2.4, 3.2, 4, 5, 6, 8, 10) if r * unit >= top * (1 - 1e-9)))


def _one_member(entry: Entry, name: str) -> xr.DataArray | None:
    if name not in entry.analysis or "member" not in entry.analysis[name].dims:
        return None
    return entry.analysis[name].isel(member=0) if entry.analysis.sizes["member"] > 1 else None


def _transform(contents: Contents, name: str) -> Any:
    from dynamics.transforms import Identity, transform_from_dict

    known = contents.decoded("transforms", {})
    return transform_from_dict(known[name]) if name in known else Identity()


def _from_working(contents: Contents, name: str) -> Any:
    """From the units of moments, log(1 + mm), to those of the data, mm."""
    import torch

    transform = _transform(contents, name)
    return lambda values: transform.inverse(torch.from_numpy(np.ascontiguousarray(values))).numpy()


def _to_working(contents: Contents, name: str) -> Any:
    import torch

    transform = _transform(contents, name)
    return lambda values: transform.forward(torch.from_numpy(np.ascontiguousarray(values, dtype=np.float64))).numpy()


def observed_field(contents: Contents, sample: xr.DataArray, times: np.ndarray) -> xr.DataArray | None:
    """Observed values laid on the grid of a field, NaN elsewhere; None where they have no places on it.

    Values are in units of the data.
    """
    grid = [str(d) for d in sample.dims if d not in LEADING]
    seen = contents.observations.sel(time=[t for t in times if t in contents.observations["time"].values])
    if seen.sizes["time"] == 0 or not seen.data_vars:
        return None
    array = first(seen[next(iter(seen.data_vars))])
    dims = [str(d) for d in array.dims if d not in LEADING]
    back = _from_working(contents, str(sample.name))
    shape = [sample.sizes[d] for d in grid]
    full = np.full((len(times), int(np.prod(shape))), np.nan)
    rows = [k for k, t in enumerate(times) if t in seen["time"].values]
    if "observed_cells" in contents.attrs and len(dims) == 1:
        cells = np.asarray(contents.decoded("observed_cells", []), dtype=int)
        if array.sizes[dims[0]] != cells.size * len(contents.fields):
            return None
        # Every field is observed at these cells, one field after another.
        values = array.values.reshape(len(rows), -1, cells.size)[:, contents.fields.index(str(sample.name))]
        full[np.asarray(rows)[:, None], cells] = back(values)
    elif [array.sizes[d] for d in dims] == shape or [array.sizes[d] for d in dims] == [1, *shape]:
        full[rows] = back(array.values).reshape(len(rows), -1)
    else:
        return None
    coords = {n: c for n, c in sample.coords.items() if set(c.dims) <= set(grid)}
    return xr.DataArray(full.reshape(len(times), *shape), dims=["time", *grid], coords={**coords, "time": times})
