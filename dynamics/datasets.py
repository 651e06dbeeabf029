"""Opening real gridded data as labelled Datasets, lazily.

Files are opened with dask, chunked along time, so that they may be larger than memory; nothing is read before it is
used. What cannot serve as data raises a `DataError` of one line.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from dynamics.errors import DataError
from dynamics.labels import leading_dims, nearest_name
from dynamics.space import LogOnePlus, Space

if TYPE_CHECKING:
    import xarray as xr

_CHUNK_BYTES = 2**26
"""Size of a chunk in memory, all variables together: 64 MiB."""
_FLORENCE_SPACING = 4.0
"""Nominal spacing of the Stage IV grid in km; true distances here are 3.9 to 4.1 km."""


def open_dataset(source: str | Path, *, variables: Sequence[str] | None = None, chunk: int | None = None) -> xr.Dataset:
    """A gridded data set, lazily.

    Args:
        source: path of a netCDF file or of a Zarr store, or the name of a shipped sample ("florence", "soap-film",
            "soap-film-common").
        variables: variables to keep (default: all).
        chunk: time steps in a chunk (default: as many as make 64 MiB).

    Returns:
        Dataset backed by dask arrays, chunked along time.

    Raises:
        DataError: no such file, not a readable format, no such variable, or a time axis that does not increase.
    """
    name = str(source)
    ds = SAMPLES[name]() if name in SAMPLES else _open(Path(source))
    for variable in variables or ():
        if variable not in ds.data_vars:
            raise DataError(
                f"{name} has no variable {variable!r}; it has {list(ds.data_vars)}"
                + nearest_name(variable, ds.data_vars)
            )
    ds = ds[list(variables)] if variables else ds
    time = leading_dims(ds).get("time")
    if time is None:
        return ds.chunk({})
    _check_time(ds, time, name)
    per_step = sum(variable.nbytes for variable in ds.data_vars.values()) / max(1, ds.sizes[time])
    length = chunk or max(1, int(_CHUNK_BYTES / max(1.0, per_step)))
    return ds.chunk({dim: length if dim == time else -1 for dim in ds.dims})


def florence() -> xr.Dataset:
    """The rain of hurricane Florence: 23 hours, 118 x 87 cells of 4 km, in mm (NCEP Stage IV, public domain).

    Returns:
        Dataset with `precipitation(time, y, x)` in mm, hourly sums from 2018-09-13 19 UTC to 2018-09-14 17 UTC, 2-D
        `lat` and `lon`, and nominal distances `y` and `x` in km. See data/ATTRIBUTION.txt.
    """
    ds = _open(Path(__file__).parent / "data" / "stage4_florence_2018.nc")
    for dim in ("y", "x"):
        axis = _FLORENCE_SPACING * np.arange(ds.sizes[dim], dtype=np.float64)
        ds = ds.assign_coords({dim: (dim, axis, {"units": "km", "long_name": f"nominal distance along {dim}"})})
    # One kg of water on a square metre is one mm deep; the CF name changes with the unit.
    labels = {"units": "mm", "standard_name": "lwe_thickness_of_precipitation_amount"}
    ds["precipitation"].attrs.update(labels)
    return ds


def florence_space() -> Space:
    """The Space of the Florence sample: log(1 + mm), event `(1, 118, 87)`."""
    return Space.from_dataset(florence(), transforms={"precipitation": LogOnePlus(1.0)}, mask=None)


def soap_film(*, common: bool = False) -> xr.Dataset:
    """The flow in a soap film: five fields of 63 x 63 velocities, 0.31 mm apart (particle image velocimetry).

    Args:
        common: whether a vector that is flagged in one frame is left out of all five. A Space has one mask for all
            times: only the common vectors can be a state.

    Returns:
        Dataset with `u(time, y, x)` along x and `v` along y in m/s, NaN where the PIV software flagged a vector (8.9 to
        10.1 % of a frame; 18.9 % with `common`), `y` (upwards) and `x` in mm. `time` is the number of the frame: the
        time between frames is not known. See data/ATTRIBUTION.txt.
    """
    ds = _open(Path(__file__).parent / "data" / "soap_film_piv.nc").rename(frame="time").sortby("y")
    labels = {"units": "1", "long_name": "frame number (the time between frames is not known)", "standard_name": "time"}
    ds = ds.assign_coords(time=("time", ds["time"].values.astype(np.float64), labels))
    valid = ds["quality"] > 0
    return ds[["u", "v"]].where(valid.all("time") if common else valid)


SAMPLES: dict[str, Callable[[], xr.Dataset]] = {
    "florence": florence,
    "soap-film": soap_film,
    "soap-film-common": partial(soap_film, common=True),
}
"""Shipped samples by name."""


def _open(path: Path) -> xr.Dataset:
    """Open a file or store; every failure is a `DataError`."""
    import xarray as xr

    if not path.exists():
        raise DataError(f"{path}: no such file; shipped samples are {', '.join(SAMPLES)}")
    store = path.is_dir()
    if store:
        try:
            import zarr  # noqa: F401
        except ImportError:
            raise DataError(
                f"{path} looks like a Zarr store; reading it needs: pip install 'assimilate-da[zarr]'"
            ) from None
    try:
        return xr.open_dataset(path, engine="zarr") if store else xr.open_dataset(path)
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        kind = "Zarr store" if store else "netCDF file"
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise DataError(f"{path} is not a readable {kind} ({reason})") from error


def _check_time(ds: xr.Dataset, time: str, name: str) -> None:
    if time not in ds.coords:
        return
    values = ds[time].values
    if values.dtype.kind in "fMm" and bool(np.any(values != values)):
        raise DataError(f"{name}: the time axis {time!r} has missing values")
    later = values[1:] > values[:-1]
    if not np.all(later):
        first = int(np.argmin(later))
        raise DataError(
            f"{name}: time does not increase: {values[first]} at index {first} is followed by {values[first + 1]}; "
            f"sort with .sortby({time!r}) and drop duplicates"
        )
