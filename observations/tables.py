r"""Tables of point observations: one row a measurement, anywhere and at any time.

A table is a Dataset with one dim, `location`:

    value (location) or (experiment, location)      in Space units; NaN = not observed
    error (location)                                standard deviation of its error, Space units; optional
    flag (location)                                 quality as it came, 0 good, anything else rejected; optional
    withheld (location)                             True: compared with the analysis, not assimilated; optional
    time, lat, lon (location)                       coords: when and where, with the names of the grid's coordinates
    variable, instrument, station (location)        coords: field (or channel) of the Space, and names; optional

Rows come in any order, times need not be those of a model, and places may be new at every time. `read_table` makes such
a table from a pandas DataFrame, a CSV or netCDF file, a Dataset, or groups laid out like those of IODA.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr

from dynamics.errors import DataError
from dynamics.labels import is_latitude, is_longitude, nearest_name
from dynamics.space import Space, SpaceMismatch
from observations.places import point_array

if TYPE_CHECKING:
    import pandas as pd

LOCATION = "location"
_ALIASES = {
    "time": ("time", "datetime", "dateTime", "date", "valid_time"),
    "value": ("value", "observation", "obs"),
    "error": ("error", "std", "obs_error"),
    "flag": ("flag", "qc", "quality"),
    "variable": ("variable",),
    "instrument": ("instrument", "platform"),
    "station": ("station", "name", "id"),
}
"""Column names of a table of one's own, and what they become."""


def read_table(source: Any, *, value: str | Sequence[str] | None = None, error: float | None = None) -> xr.Dataset:
    """A table of point observations.

    Args:
        source: a pandas DataFrame; a table; a mapping or DataTree of groups `MetaData`, `ObsValue`...; or the path of a
            CSV or netCDF file that holds one of these. Columns that are no value, error, flag or name say where.
        value: the column with the values (default: "value"); several columns become rows with that `variable`.
        error: standard deviation of the error, Space units, where the source has none.

    Returns:
        The table; see the module.

    Raises:
        DataError: no such file, a column that is missing or holds something else, an infinite value.
    """
    name = "the table"
    if isinstance(source, str | Path):
        name = f"'{source}'"
        source = _opened(Path(source))
    if isinstance(source, xr.Dataset):
        table = _renamed(source)
    elif hasattr(source, "columns"):
        table = _from_frame(source, value, name)
    else:
        from observations.ioda import from_groups

        table = from_groups(source)
    if "error" not in table and error is not None:
        table = table.assign(error=(LOCATION, np.full(table.sizes.get(LOCATION, 0), float(error))))
    return check_table(table, name)


def check_table(table: xr.Dataset, name: str = "the table") -> xr.Dataset:
    """A table whose parts all have their place; `name` is for the messages.

    Raises:
        DataError: what is wrong with it.
    """
    if LOCATION not in table.dims:
        raise DataError(f"{name} has the dims {list(map(str, table.dims))}; a table of observations has '{LOCATION}'")
    for needed in ("value", "time"):
        if needed not in table.variables:
            raise DataError(f"{name} has no '{needed}'; it has {sorted(map(str, table.variables))}")
    table = table.set_coords([n for n in ("time", "variable", "instrument", "station") if n in table.data_vars])
    table = table.set_coords([n for n, v in table.data_vars.items() if is_latitude(v.attrs) or is_longitude(v.attrs)])
    for part, dims in (
        ("value", ({LOCATION}, {LOCATION, "experiment"})),
        ("error", ({LOCATION},)),
        ("flag", ({LOCATION},)),
    ):
        if part in table and set(table[part].dims) not in dims:
            raise DataError(f"{name}: '{part}' has dims {table[part].dims}; expected ({LOCATION})")
    if table["time"].dims != (LOCATION,):
        raise DataError(f"{name}: 'time' has dims {table['time'].dims}; expected ({LOCATION})")
    moments = table["time"].values
    if moments.dtype.kind not in "fiuM":
        raise DataError(f"{name}: 'time' holds {moments.dtype}; expected numbers or dates (datetime64)")
    if bool((moments != moments).any()):
        raise DataError(f"{name}: row {int(np.argmax(moments != moments))} has no time")
    values = table["value"].values.astype(np.float64)
    if np.isinf(values).any():
        raise DataError(f"{name} holds an infinite value; NaN means not observed")
    if "error" in table:
        errors = table["error"].values.astype(np.float64)
        bad = ~((errors > 0) & np.isfinite(errors)) & ~np.isnan(errors)
        if bad.any():
            raise DataError(f"{name}: the error of row {int(np.argmax(bad))} is {errors[bad][0]}; expected above 0")
    return table.transpose(..., LOCATION)


def places_of(table: xr.Dataset, space: Space) -> np.ndarray:
    """Places of the rows, float64 `(rows, n_dims)`, columns `Space.position_names`; no columns without a grid.

    Raises:
        DataError: a coordinate of the grid has no counterpart in the table.
    """
    if not space.grid:
        return np.zeros((table.sizes[LOCATION], 0))
    columns = {str(n): v.values for n, v in table.variables.items() if v.dims == (LOCATION,)}
    for name in space.position_names:
        coordinate = space.coords[name]
        if name in columns:
            continue
        for array in table.variables.values():
            said = (coordinate.latitude and is_latitude(array.attrs)) or (
                coordinate.longitude and is_longitude(array.attrs)
            )
            if said and array.dims == (LOCATION,):
                columns[name] = array.values
    try:
        return point_array(space, columns)
    except ValueError as error:
        raise DataError(f"{error}; the columns of a table say where, by the names of the grid's coordinates") from None


def channels_of(table: xr.Dataset, space: Space) -> np.ndarray:
    """Channel of the Space that each row is of, `(rows,)`.

    Raises:
        DataError: a variable that the Space has not, or none where the Space has several channels.
    """
    count = table.sizes[LOCATION]
    if "variable" not in table.variables:
        if space.event_shape[0] > 1:
            raise DataError(
                f"the state has the channels {list(space.channels)}; the table needs a column 'variable' that says "
                "which of them a row is of"
            )
        return np.zeros(count, dtype=np.int64)
    names = table["variable"].values.astype(str)
    found = np.zeros(count, dtype=np.int64)
    for name in map(str, np.unique(names)):
        try:
            found[names == name] = space.channel(name)
        except SpaceMismatch:
            near = nearest_name(name, space.channels)
            raise DataError(f"no variable {name!r} in the state; it has {list(space.channels)}{near}") from None
    return found


def _opened(path: Path) -> Any:
    """What a file holds: a DataFrame, a Dataset, or a DataTree where it has groups."""
    if not path.exists():
        raise DataError(f"{path}: no such file")
    if path.suffix.lower() in (".csv", ".txt"):
        import pandas as pd

        try:
            return pd.read_csv(path)
        except (ValueError, UnicodeDecodeError, pd.errors.ParserError) as error:
            raise DataError(f"'{path}' is not a readable CSV table: {error}") from error
    try:
        tree = xr.open_datatree(path)
    except (OSError, ValueError, KeyError) as error:
        raise DataError(f"'{path}' is not a readable netCDF file ({str(error).splitlines()[0]})") from error
    with tree:
        return tree.load() if tree.children else tree.to_dataset().load()


def _renamed(table: xr.Dataset) -> xr.Dataset:
    """A Dataset with the names of this module; a lone dim of another name is the rows."""
    if LOCATION not in table.dims:
        rows = [str(d) for d in table.dims if d != "experiment"]
        if len(rows) == 1 and rows[0] not in ("time",):
            table = table.drop_indexes(rows[0], errors="ignore").rename_dims({rows[0]: LOCATION})
    names = {
        other: wanted
        for wanted, aliases in _ALIASES.items()
        if wanted not in table.variables
        for other in aliases
        if other in table.variables
    }
    return table.rename_vars({old: new for old, new in names.items() if old != new})


def _from_frame(frame: pd.DataFrame, value: str | Sequence[str] | None, name: str) -> xr.Dataset:
    """A table from a DataFrame."""
    import pandas as pd

    frame = frame.rename(columns={c: str(c).strip() for c in frame.columns})
    if frame.index.name is not None and frame.index.name not in frame:
        frame = frame.reset_index()
    several = [value] if isinstance(value, str) else list(value or ())
    for column in several:
        if column not in frame:
            raise DataError(f"{name} has no column '{column}'{nearest_name(column, frame.columns)}")
    keep = {
        other: wanted
        for wanted, aliases in _ALIASES.items()
        for other in aliases
        if wanted not in frame and other in frame and other not in several
    }
    frame = frame.rename(columns=keep)
    if len(several) == 1:
        frame = frame.rename(columns={several[0]: "value"})
    elif several:
        others = [c for c in frame.columns if c not in several]
        frame = frame.melt(others, several, var_name="variable", value_name="value")
    for needed in ("time", "value"):
        if needed not in frame:
            raise DataError(
                f"{name} has no column '{needed}'; it has {list(frame.columns)}"
                + ("" if needed == "time" else "; say which column holds the values")
            )
    if not pd.api.types.is_numeric_dtype(frame["time"]):
        try:
            moments = pd.to_datetime(frame["time"], utc=True, format="mixed")
        except ValueError as error:
            raise DataError(f"{name}: column 'time' holds something that is not a time: {error}") from error
        frame["time"] = moments.dt.tz_localize(None)
    for column in ("value", "error", "flag"):
        if column in frame and not pd.api.types.is_numeric_dtype(frame[column]):
            raise DataError(f"{name}: column '{column}' does not hold numbers")
    variables = {
        str(c): (LOCATION, frame[c].to_numpy(str) if frame[c].dtype.kind not in "fiubM" else frame[c].to_numpy())
        for c in frame.columns
    }
    held = {n: variables.pop(n) for n in ("value", "error", "flag") if n in variables}
    return xr.Dataset(held, variables)
