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
from numbers import Real
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
        value: the column with the values (default: "value"); several columns become rows with that `variable`. Of
            groups: the variables to take.
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
    columns = [value] if isinstance(value, str) else list(value or ())
    if isinstance(source, xr.Dataset):
        table = _renamed(_valued(source, columns, name))
    elif hasattr(source, "columns"):
        table = _from_frame(source, columns, name)
    else:
        from observations.ioda import from_groups

        table = _of_variables(from_groups(source), columns, name)
    if "error" not in table and error is not None:
        if not (isinstance(error, Real) and error > 0):
            raise DataError(f"error={error!r}; expected a standard deviation above 0")
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
        *((part, ({LOCATION},)) for part in ("flag", "withheld", "time", "variable", "instrument", "station")),
    ):
        if part in table.variables and set(table[part].dims) not in dims:
            raise DataError(f"{name}: '{part}' has dims {table[part].dims}; expected ({LOCATION})")
        if part in ("value", "error", "flag") and part in table and table[part].dtype.kind not in "fiub":
            raise DataError(f"{name}: '{part}' holds {table[part].dtype}; expected numbers")
    moments = table["time"].values
    if moments.dtype.kind not in "fiuM":
        raise DataError(f"{name}: 'time' holds {moments.dtype}; expected numbers or dates (datetime64)")
    lost = ~np.isfinite(moments)
    if lost.any():
        raise DataError(f"{name}: row {int(np.argmax(lost))} has no time; it holds {moments[lost][0]}")
    values = table["value"].values.astype(np.float64)
    if np.isinf(values).any():
        raise DataError(f"{name} holds an infinite value; NaN means not observed")
    if "error" in table:
        errors = table["error"].values.astype(np.float64)
        bad = ~((errors > 0) & np.isfinite(errors)) & ~np.isnan(errors)
        if bad.any():
            raise DataError(f"{name}: the error of row {int(np.argmax(bad))} is {errors[bad][0]}; expected above 0")
    if "withheld" in table.variables:
        # A text is true whatever it says, and so is NaN.
        kept_back = table["withheld"].values
        if kept_back.dtype.kind not in "biuf" or not np.isin(kept_back, (0, 1)).all():
            raise DataError(f"{name}: 'withheld' holds {kept_back.dtype}; expected true or false (1 or 0) in every row")
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
            raise DataError(f"'{path}' is not a readable CSV table: {' '.join(str(error).split())}") from error
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


def _valued(table: xr.Dataset, columns: Sequence[str], name: str) -> xr.Dataset:
    """A Dataset whose column of values is called so."""
    if len(columns) > 1:
        raise DataError(f"{name} is a Dataset: one variable holds its values, {list(columns)} are several")
    for column in columns:
        if column not in table.variables:
            raise DataError(f"{name} has no variable '{column}'{nearest_name(column, table.variables)}")
        if column != "value":
            table = table.drop_vars("value", errors="ignore").rename_vars({column: "value"})
    return table


def _of_variables(table: xr.Dataset, wanted: Sequence[str], name: str) -> xr.Dataset:
    """The rows of some variables; all where none is named."""
    held = table["variable"].values.astype(str)
    for variable in wanted:
        if variable not in held:
            raise DataError(f"{name} has no variable '{variable}'{nearest_name(variable, np.unique(held))}")
    return table.isel({LOCATION: np.flatnonzero(np.isin(held, wanted))}) if wanted else table


def _from_frame(frame: pd.DataFrame, several: Sequence[str], name: str) -> xr.Dataset:
    """A table from a DataFrame."""
    import pandas as pd

    frame = frame.rename(columns={c: str(c).strip() for c in frame.columns})
    if frame.index.name is not None and frame.index.name not in frame:
        frame = frame.reset_index()
    double = frame.columns[frame.columns.duplicated()]
    if len(double):
        raise DataError(f"{name} has two columns '{double[0]}'; give each a name of its own")
    for column in several:
        if column not in frame:
            raise DataError(f"{name} has no column '{column}'{nearest_name(column, frame.columns)}")
    if several and several != ["value"] and "value" in frame:
        if "value" in several:
            raise DataError(f"{name}: of several columns with values none can be called 'value'; rename it")
        frame = frame.drop(columns="value")
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
    if frame.empty:
        # Columns without rows have no type of their own.
        frame = frame.astype({c: float for c in ("time", "value", "error", "flag") if c in frame})
    if not pd.api.types.is_numeric_dtype(frame["time"]):
        if pd.api.types.infer_dtype(frame["time"]).startswith("mixed-integer"):
            raise DataError(f"{name}: column 'time' mixes numbers and texts; expected numbers, or dates")
        try:
            moments = pd.to_datetime(frame["time"], utc=True, format="mixed")
        except (ValueError, TypeError) as error:
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
