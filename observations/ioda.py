r"""Observations and feedback in groups, as IODA files have them.

    MetaData/latitude, longitude, dateTime, ...   (Location)     when and where
    ObsValue/NAME, ObsError/NAME, PreQC/NAME      (Location)     one array a variable; PreQC above 0 is rejected
    hofx/NAME, ombg/NAME, oman/NAME, EffectiveQC/NAME            added: H(x_b), y - H(x_b), y - H(x_a), what was used

`dateTime` is a number of seconds since the date in its units. Fill values are missing values. A variable with a second
dim (the channels of a radiometer) becomes the variables NAME[1], NAME[2]...

References:
    Joint Center for Satellite Data Assimilation, JEDI documentation, the Interface for Observation Data Access,
    https://jointcenterforsatellitedataassimilation-jedi-docs.readthedocs-hosted.com
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import xarray as xr

from dynamics.errors import DataError

LOCATION = "location"
_PLACES = {"latitude": "degrees_north", "longitude": "degrees_east"}
_FEEDBACK = {"background_mean": "hofx", "background_departure": "ombg", "analysis_departure": "oman"}
_EPOCH = np.datetime64("1970-01-01T00:00:00", "ns")


def from_groups(source: Any) -> xr.Dataset:
    """A table (see `observations.tables`) from groups of Datasets.

    Args:
        source: a DataTree, or a mapping from names of groups to Datasets.

    Raises:
        DataError: a group is missing, or its variables do not fit each other.
    """
    groups = _groups(source)
    for needed in ("MetaData", "ObsValue"):
        if needed not in groups:
            raise DataError(f"the observations have the groups {sorted(groups)}; expected MetaData and ObsValue")
    about = groups["MetaData"]
    if "dateTime" not in about.variables:
        raise DataError(f"MetaData has no dateTime; it has {sorted(map(str, about.variables))}")
    rows = str(about["dateTime"].dims[0])
    times = _dates(about["dateTime"])
    names = {"latitude": "lat", "longitude": "lon", "dateTime": "time", "stationIdentification": "station"}
    columns = {
        names.get(str(n), str(n)): v.values.astype(str) if v.dtype.kind in "OSU" else v.values
        for n, v in about.variables.items()
        if v.dims == (rows,) and n not in ("dateTime", rows)
    }
    parts: list[dict[str, np.ndarray]] = []
    for name, array in groups["ObsValue"].data_vars.items():
        for label, chosen in _channels(str(name), array, rows):
            values = array.isel(chosen).values.astype(np.float64)
            found = {"value": np.where(np.abs(values) > 1e30, np.nan, values)}
            for group, column in (("ObsError", "error"), ("PreQC", "flag")):
                held = groups.get(group)
                if held is None or name not in held:
                    continue
                more = held[name].isel({k: v for k, v in chosen.items() if k in held[name].dims}).values
                found[column] = more
            # An error that is missing, or no error at all, says that the value is not to be used.
            if "error" in found:
                errors = found["error"].astype(np.float64)
                usable = (errors > 0) & (errors < 1e30)
                found["error"] = np.where(usable, errors, np.nan)
            found["variable"] = np.full(values.shape, label)
            parts.append(found)
    if not parts:
        raise DataError("ObsValue holds no variable")
    merged = {n: np.concatenate([p[n] for p in parts]) for n in ("value", "variable")}
    sizes = [len(p["value"]) for p in parts]
    if any("error" in p for p in parts):
        merged["error"] = np.concatenate(
            [p.get("error", np.full(s, np.nan)) for p, s in zip(parts, sizes, strict=True)]
        )
    if any("flag" in p for p in parts):
        flags = [np.nan_to_num(p.get("flag", np.zeros(s)), nan=1) for p, s in zip(parts, sizes, strict=True)]
        merged["flag"] = np.concatenate(flags).astype(np.int64)
    repeated = {n: (LOCATION, np.tile(v, len(parts))) for n, v in columns.items()}
    coords = {"time": (LOCATION, np.tile(times, len(parts))), **repeated}
    coords["variable"] = (LOCATION, merged.pop("variable"))
    table = xr.Dataset({n: (LOCATION, v) for n, v in merged.items()}, coords)
    for name, units in (("lat", "degrees_north"), ("lon", "degrees_east")):
        if name in table:
            table[name].attrs["units"] = units
    return table


def to_groups(table: xr.Dataset) -> xr.DataTree:
    """A table, with or without feedback, as a DataTree of groups; a row of the table is a Location.

    Several experiments stay a dim `experiment` of the arrays.
    """
    rows = table.rename({LOCATION: "Location"})
    count = rows.sizes["Location"]
    variables = rows["variable"].values.astype(str) if "variable" in rows else np.full(count, "value")
    if "instrument" in rows:
        variables = np.where(variables == "", rows["instrument"].values.astype(str), variables)
    groups: dict[str, dict[str, Any]] = {"MetaData": {}}
    for name, array in rows.coords.items():
        if array.dims != ("Location",) or name in ("variable", "Location"):
            continue
        label = {"lat": "latitude", "lon": "longitude", "station": "stationIdentification"}.get(str(name), str(name))
        groups["MetaData"][label] = ("Location", array.values, {"units": _PLACES[label]} if label in _PLACES else {})
    times = rows["time"].values
    groups["MetaData"].pop("time", None)
    if times.dtype.kind == "M":
        seconds = np.round((times.astype("datetime64[ns]") - _EPOCH) / np.timedelta64(1, "s")).astype(np.int64)
        times, units = seconds, "seconds since 1970-01-01T00:00:00Z"
    else:
        units = "1"
    groups["MetaData"]["dateTime"] = ("Location", times, {"units": units})
    named = {"value": "ObsValue", "error": "ObsError", **_FEEDBACK}
    if "background_mean" in rows:
        rows = rows.assign(background_departure=rows["value"] - rows["background_mean"])
        named["flag"] = "EffectiveQC"
        if "analysis_mean" in rows:
            rows = rows.assign(analysis_departure=rows["value"] - rows["analysis_mean"])
    elif "flag" in rows:
        named["flag"] = "PreQC"
    for column, group in named.items():
        if column not in rows:
            continue
        array = rows[column].transpose(..., "Location")
        for name in np.unique(variables):
            where = variables == name
            whole = array.dtype.kind in "iu"
            values = np.where(where, array.values, np.int32(1) if whole else np.nan)
            values = values.astype(np.int32) if whole else values.astype(np.float64)
            groups.setdefault(group, {})[str(name)] = (array.dims, values)
    return xr.DataTree.from_dict({name: xr.Dataset(variables) for name, variables in groups.items()})


def _groups(source: Any) -> Mapping[str, xr.Dataset]:
    if isinstance(source, xr.DataTree):
        return {str(name): child.to_dataset() for name, child in source.children.items()}
    if isinstance(source, Mapping):
        return {str(name): dataset for name, dataset in source.items()}
    raise DataError(
        f"{type(source).__name__} is no table of observations: give a pandas DataFrame, a Dataset with a 'location' "
        "dim, a DataTree with the groups MetaData and ObsValue, or a path"
    )


def _channels(name: str, array: xr.DataArray, rows: str) -> list[tuple[str, dict[str, int]]]:
    """Names of the variables that an array holds, and the index of each."""
    others = [str(d) for d in array.dims if d != rows]
    if rows not in array.dims or len(others) > 1:
        raise DataError(f"ObsValue/{name} has dims {array.dims}; expected ({rows}) or ({rows}, channel)")
    if not others:
        return [(name, {})]
    dim = others[0]
    labels = array[dim].values if dim in array.coords else np.arange(array.sizes[dim])
    return [(f"{name}[{label}]", {dim: k}) for k, label in enumerate(labels)]


def _dates(array: xr.DataArray) -> np.ndarray:
    """Times as datetime64, or as numbers where their units name no date."""
    if array.dtype.kind == "M":
        return array.values
    units = str(array.attrs.get("units", ""))
    if "since" not in units:
        return array.values
    decoded = xr.decode_cf(xr.Dataset({"t": (array.dims, array.values, {"units": units})}))
    return decoded["t"].values
