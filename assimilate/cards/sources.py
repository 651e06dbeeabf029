"""Data of a card that come from files: the truth, archives, gridded observations with gaps, tables of stations.

Everything is opened lazily and checked before it is used: variables, units, times, finite values, grid. What is wrong
raises a `UserError` of one line that names the file.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import xarray as xr

from assimilate.cards.card import Observations, Truth
from assimilate.engine.clock import check_increasing
from assimilate.errors import DataError, suggestion
from dynamics.errors import DataError as FileError
from dynamics.errors import SpaceMismatch
from dynamics.labels import is_latitude, is_longitude, leading_dims, same_units
from dynamics.space import Identity, LogOnePlus, Space
from dynamics.transforms import Transform

IN_MEMORY = 2**30
"""Bytes of an archive's events beyond which they are read, and checked, only when they are used."""


def located(name: str, folder: Path | None) -> str:
    """A path of a card: relative ones are looked for beside the card, then in the working directory."""
    path = Path(name)
    if folder is not None and not path.is_absolute() and (folder / path).exists():
        return str(folder / path)
    return name


def open_truth(truth: Truth, folder: Path | None = None) -> tuple[xr.Dataset, Space]:
    """The truth of a file and its Space.

    Args:
        truth: the card's table, with `data`.
        folder: of the card.

    Raises:
        DataError: missing file or variable, other units, disordered times, values that are not finite.
    """
    assert truth.data is not None
    archive = archive_of(truth.data)
    data = _open(located(truth.data, folder), truth.variables) if archive is None else archive.open(folder)
    if truth.variables is None:
        moving = [str(n) for n, v in data.data_vars.items() if "time" in v.dims and v.dtype.kind == "f"]
        if not moving:
            raise DataError(f"'{truth.data}' has no variable with a time; it has {list(map(str, data.data_vars))}")
        data = data[moving]
    _check_units(data, truth)
    if truth.time is not None:
        data = _between(data, truth.time, truth.data)
    for dim, ends in truth.region.items():
        if dim not in data.dims or len(ends) != 2:
            raise DataError(
                f"truth.region: '{dim}' = {ends}; expected two indices{suggestion(dim, map(str, data.dims))}"
            )
        data = data.isel({dim: slice(*ends)})
    chosen = transform_of(truth)
    transforms = {str(n): chosen for n in data.data_vars}
    wrong = [dim for dim in truth.periodic if dim not in data.dims]
    if wrong:
        raise DataError(
            f"truth.periodic: there is no dimension '{wrong[0]}'{suggestion(wrong[0], map(str, data.dims))}"
        )
    small = data.nbytes <= IN_MEMORY
    if archive is not None and small:
        # An event is read as a whole; time by time it would be read again and again.
        data = data.load()
    mask = "all" if archive is None else None
    space = Space.from_dataset(data, transforms=transforms, periodic=truth.periodic, mask=mask)
    if archive is None or small:
        check_states(data, space, truth.data)
    return data, space


@dataclass(frozen=True)
class Archive:
    """A folder with an archive of events: `NAME:ROOT`, `NAME-train:ROOT`, `NAME-validation:ROOT` or `NAME-test:ROOT`.

    Args:
        name: "sevir", its reduced version of 128 x 128 cells and 10 minutes, or "sevir-full", 384 x 384 and 5.
        split: which events; None: all.
        root: the folder; "simulated" makes storms of the same shape, of the reduced version only.
    """

    name: str
    split: Literal["train", "validation", "test"] | None
    root: str

    def open(self, folder: Path | None = None) -> xr.Dataset:
        """Its events, lazily; `folder` is that of the card.

        Raises:
            DataError: no such archive, or one that is damaged.
        """
        from dynamics.sevir import open_sevir
        from dynamics.vil import simulated_sevir

        if self.root == "simulated":
            if self.name != "sevir":
                raise DataError(f"'{self.name}:simulated': simulated events are 128 x 128 cells; use 'sevir:simulated'")
            return simulated_sevir(split=self.split)
        size, minutes = (384, 5) if self.name == "sevir-full" else (128, 10)
        try:
            return open_sevir(located(self.root, folder), split=self.split, size=size, minutes=minutes)
        except FileError as error:
            raise DataError(str(error)) from error


def archive_of(name: str) -> Archive | None:
    """The archive that a card's `data` names; None for a file or a shipped sample."""
    found = re.fullmatch(r"(sevir(?:-full)?)(?:-(train|validation|test))?:(.+)", name)
    return None if found is None else Archive(found[1], found[2], found[3])  # type: ignore[arg-type]


def transform_of(truth: Truth) -> Transform:
    """The transform that the card asks for."""
    return LogOnePlus(truth.scale) if truth.transform == "log1p" else Identity()


def check_states(data: xr.Dataset, space: Space, name: str) -> None:
    """Read all states once, chunk by chunk, and check that they fit the Space.

    Raises:
        DataError: a value is not finite outside the no-data cells, or is outside what the transform takes.
    """
    from assimilate.engine.cycle import blocks

    for indices in blocks(data):
        try:
            block = space.to_tensor(data.isel(time=indices))
        except (SpaceMismatch, ValueError) as error:
            raise DataError(f"'{name}': {error}") from error
        if not bool(block.isfinite().all()):
            raise DataError(f"'{name}': values are not finite after the transform; log1p needs values of at least 0")


def open_grid(wanted: Observations, space: Space | None, transform: Transform, folder: Path | None) -> xr.Dataset:
    """Observed values on the grid of the state, NaN where there is none, in Space units.

    Args:
        wanted: the card's table, with `data`.
        space: of the state; None where the observations themselves define it.
        transform: of the state.
        folder: of the card.

    Raises:
        DataError: the grid differs, or the variable is not clear.
    """
    assert wanted.data is not None
    data = _open(located(wanted.data, folder), None if wanted.variable is None else [wanted.variable])
    name = _only(data, wanted)
    array = data[name]
    if np.isinf(array).any():
        raise DataError(f"'{wanted.data}': '{name}' holds an infinite value; NaN means not observed")
    grid = [str(d) for d in array.dims if d not in ("time", "experiment")]
    if space is not None:
        _same_grid(array, space, wanted.data)
        grid = list(space.grid)
    values = transformed(array, transform).transpose(..., "time", *grid)
    return values.to_dataset(name="observation")


def open_stations(wanted: Observations, transform: Transform, folder: Path | None) -> xr.Dataset:
    """Station values (time, station) with their places as coordinates, in Space units.

    A netCDF file has a variable (time, station) and coordinates `lat`, `lon` (or those of the grid); a CSV file has
    the columns `time`, those of the places, and the value, one row a measurement.
    """
    assert wanted.data is not None
    path = located(wanted.data, folder)
    data = _table(path, wanted) if Path(path).suffix.lower() in (".csv", ".txt") else _open(path, None)
    name = _only(data, wanted)
    array = data[name]
    others = [str(d) for d in array.dims if d != "time"]
    if len(others) != 1:
        raise DataError(f"'{wanted.data}': '{name}' has dims {array.dims}; stations are (time, station)")
    if np.isinf(array).any():
        raise DataError(f"'{wanted.data}': '{name}' holds an infinite value; NaN means not observed")
    values = transformed(array, transform).rename({others[0]: "station"}).transpose("time", "station")
    return values.to_dataset(name="observation")


def places_of(stations: xr.Dataset, space: Space, name: str) -> dict[str, np.ndarray]:
    """Places of stations with the names of the grid's coordinates.

    Raises:
        DataError: a coordinate of the grid has no counterpart among those of the stations.
    """
    found: dict[str, np.ndarray] = {}
    for wanted in space.position_names:
        coordinate = space.coords[wanted]
        for label, array in stations.coords.items():
            words = {"latitude": ("lat", "latitude"), "longitude": ("lon", "longitude")}
            kind = "latitude" if coordinate.latitude else "longitude" if coordinate.longitude else ""
            known = {"latitude": is_latitude, "longitude": is_longitude}.get(kind, lambda attrs: False)
            if array.dims == ("station",) and (label == wanted or label in words.get(kind, ()) or known(array.attrs)):
                found[wanted] = array.values.astype(float)
                break
        else:
            have = [str(label) for label, array in stations.coords.items() if array.dims == ("station",)]
            raise DataError(f"'{name}': stations have no '{wanted}'; they have {have}")
    return found


def _open(source: str, variables: list[str] | None) -> xr.Dataset:
    from dynamics.datasets import open_dataset

    try:
        data = open_dataset(source, variables=variables)
    except FileError as error:
        raise DataError(str(error)) from error
    roles = {dim: role for role, dim in leading_dims(data).items() if dim != role}
    data = data.rename(roles)
    if "time" not in data.coords:
        raise DataError(f"'{source}' has no time coordinate; it has {sorted(map(str, data.coords))}")
    return data


def _check_units(data: xr.Dataset, truth: Truth) -> None:
    if truth.units is None:
        return
    if len(truth.units) != len(data.data_vars):
        raise DataError(f"truth.units has {len(truth.units)} entries for {len(data.data_vars)} variables")
    for (name, array), units in zip(data.data_vars.items(), truth.units, strict=True):
        given = str(array.attrs.get("units", ""))
        if not same_units(given, units):
            raise DataError(f"'{truth.data}': '{name}' is in '{given}', the card says '{units}'; convert the file")


def _between(data: xr.Dataset, ends: list[str], name: str) -> xr.Dataset:
    first, last = (float(e) if data["time"].dtype.kind == "f" else e for e in ends)
    try:
        chosen = data.sel(time=slice(first, last))
    except (KeyError, ValueError, TypeError) as error:
        raise DataError(f"truth.time: {ends} cannot be compared with the times of '{name}': {error}") from error
    if chosen.sizes["time"] == 0:
        times = data["time"].values
        raise DataError(
            f"truth.time: '{name}' has no time between {ends[0]} and {ends[1]}; it has {times[0]} to {times[-1]}"
        )
    return chosen


def _only(data: xr.Dataset, wanted: Observations) -> str:
    names = [str(n) for n, v in data.data_vars.items() if "time" in v.dims and v.dtype.kind in "fiu"]
    if wanted.variable is not None:
        if wanted.variable not in names:
            raise DataError(
                f"'{wanted.data}' has no variable '{wanted.variable}' with a time{suggestion(wanted.variable, names)}"
            )
        return wanted.variable
    if len(names) != 1:
        raise DataError(
            f"'{wanted.data}' has {names or 'no variables'} with a time; say which with observations.variable"
        )
    return names[0]


def _same_grid(array: xr.DataArray, space: Space, name: str) -> None:
    for dim, size in zip(space.grid, space.grid_shape, strict=True):
        if array.sizes.get(dim) != size:
            raise DataError(f"'{name}': dimension '{dim}' has {array.sizes.get(dim, 'no')} cells, the state has {size}")
        expected = space.coords[dim]
        if dim in array.coords and not expected.counted and array[dim].dtype.kind in "fiu":
            apart = np.abs(array[dim].values - expected.numbers).max()
            if apart > expected.tolerance:
                raise DataError(f"'{name}': coordinate '{dim}' differs from that of the state by up to {apart:g}")


def transformed(array: xr.DataArray, transform: Transform) -> xr.DataArray:
    """Values in Space units, lazily."""
    if isinstance(transform, Identity):
        return array
    import torch

    def forward(values: np.ndarray) -> np.ndarray:
        return transform.forward(torch.from_numpy(np.ascontiguousarray(values))).numpy()

    return xr.apply_ufunc(forward, array, dask="parallelized", output_dtypes=[array.dtype], keep_attrs=False)


def _table(path: str, wanted: Observations) -> xr.Dataset:
    """A CSV file with one measurement a row as (time, station)."""
    import pandas as pd

    if not Path(path).is_file():
        raise DataError(f"{path}: no such file")
    try:
        rows = pd.read_csv(path)
    except (ValueError, UnicodeDecodeError, pd.errors.ParserError) as error:
        raise DataError(f"'{path}' is not a readable CSV table: {error}") from error
    rows.columns = [str(c).strip() for c in rows.columns]
    if "time" not in rows:
        raise DataError(f"'{path}' has no column 'time'; it has {list(rows.columns)}")
    if not pd.api.types.is_numeric_dtype(rows["time"]):
        try:
            rows["time"] = pd.to_datetime(rows["time"])
        except ValueError as error:
            raise DataError(f"'{path}': column 'time' holds something that is not a time: {error}") from error
    value = wanted.variable or str(rows.columns[-1])
    if value not in rows or not pd.api.types.is_numeric_dtype(rows[value]):
        raise DataError(f"'{path}' has no column of numbers '{value}'{suggestion(value, rows.columns)}")
    places = [c for c in rows.columns if c not in ("time", value, "station", "name", "id")]
    if not places:
        raise DataError(f"'{path}' has no columns that say where: lat and lon, or the grid's coordinates")
    double = rows.duplicated(["time", *places])
    if double.any():
        raise DataError(f"'{path}': row {int(np.argmax(double)) + 2} repeats a time and place")
    stations = rows[places].drop_duplicates().reset_index(drop=True)
    times = np.unique(rows["time"].to_numpy())
    check_increasing(times, path)
    values = np.full((len(times), len(stations)), np.nan)
    index = pd.MultiIndex.from_frame(stations)
    values[
        np.searchsorted(times, rows["time"].to_numpy()), index.get_indexer(pd.MultiIndex.from_frame(rows[places]))
    ] = rows[value]
    coords: dict[str, Any] = {p: ("station", stations[p].to_numpy()) for p in places}
    return xr.Dataset({value: (("time", "station"), values)}, {"time": times, **coords})
