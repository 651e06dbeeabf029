"""The catalogue of the SEVIR archive: which events there are, which split each belongs to, and where it is stored.

One row of CATALOG.csv is an event seen by one sensor; here are those of the radar (`img_type` "vil"). Ids that occur
twice are a known error of the archive and are left out, as in the published loaders.
"""

from __future__ import annotations

import threading
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np

from dynamics.errors import DataError
from dynamics.labels import nearest_name

if TYPE_CHECKING:
    import pandas as pd
    import xarray as xr

Split = Literal["train", "validation", "test"]

TEST_AFTER = np.datetime64("2019-06-01")
"""Events later than this are test data; the published date."""
HELD_OUT = 10
"""One day in so many before that date is validation data."""
_NEEDED = ("id", "file_name", "file_index", "img_type", "time_utc", "minute_offsets")
_ONE_THREAD = threading.Lock()


@dataclass(frozen=True)
class Stored:
    """Where an event is.

    Args:
        file: the HDF5 file.
        index: of the event in it.
        shape: of the file's array, (event, row, column, frame).
    """

    file: Path
    index: int
    shape: tuple[int, ...]


def read_catalogue(folder: Path) -> pd.DataFrame:
    """The rows of VIL, in order of time.

    Raises:
        DataError: no such file, or one without the columns.
    """
    import pandas as pd

    path = folder / "CATALOG.csv"
    if not path.is_file():
        raise DataError(f"{folder} has no CATALOG.csv; give the folder of the SEVIR archive that holds it")
    try:
        table = pd.read_csv(path, low_memory=False)
        missing = [name for name in _NEEDED if name not in table]
        if missing:
            raise DataError(f"{path} has no column {missing[0]!r}; it has {list(table)}")
        table["time_utc"] = pd.to_datetime(table["time_utc"], format="ISO8601")
    except DataError:
        raise
    except (ValueError, UnicodeDecodeError, pd.errors.ParserError) as error:
        raise DataError(f"{path} is not a readable catalogue: {str(error).splitlines()[0]}") from error
    table = table[table["img_type"] == "vil"].drop_duplicates("id", keep=False)
    return table.sort_values(["time_utc", "id"], kind="stable")


def chosen(
    table: pd.DataFrame, folder: Path, *, split: Split | None, events: int | Sequence[str] | None, complete: bool
) -> pd.DataFrame:
    """The rows of a split, all or some of its events; see `open_sevir` for the arguments.

    Raises:
        DataError: no such split, no such event, or none at all.
    """
    if split not in (None, "train", "validation", "test"):
        raise DataError(f"split is {split!r}; expected 'train', 'validation', 'test' or None")
    if complete and "pct_missing" in table:
        table = table[table["pct_missing"] == 0]
    if split is not None:
        # A checksum of the day: the same on every machine and for every part of the archive.
        days = table["time_utc"].dt.strftime("%Y-%m-%d").map(lambda day: zlib.crc32(day.encode()) % HELD_OUT == 0)
        late = table["time_utc"] > TEST_AFTER
        table = table[{"test": late, "validation": ~late & days, "train": ~late & ~days}[split]]
    if len(table) == 0:
        which = ("complete " if complete else "") + "VIL event" + (f" for {split}" if split else "")
        raise DataError(f"{folder}/CATALOG.csv has no {which}")
    if events is None:
        return table
    if isinstance(events, int):
        if not 1 <= events <= len(table):
            raise DataError(f"{events} events were asked for; {folder} has {len(table)} to choose from")
        return table.iloc[np.linspace(0, len(table) - 1, events).round().astype(int)]
    known = set(table["id"])
    for name in events:
        if name not in known:
            hint = nearest_name(name, table["id"])
            raise DataError(f"{folder} has no event {name!r} among the {len(table)} to choose from{hint}")
    return table.set_index("id", drop=False).loc[list(events)]


def find(rows: pd.DataFrame, folder: Path) -> list[Stored]:
    """Where each event is; the head of every file is read, no image.

    Raises:
        DataError: a file that is missing or has no images like the others, an index beyond its end.
    """
    heads: dict[str, tuple[Path, tuple[int, ...]]] = {}
    found: list[Stored] = []
    for name, file_name, index in zip(rows["id"], rows["file_name"], rows["file_index"], strict=True):
        if file_name not in heads:
            places = [folder / "data" / file_name, folder / file_name]
            place = next((one for one in places if one.is_file()), None)
            if place is None:
                raise DataError(f"{places[0]}: no such file; the catalogue has event {name!r} in it")
            with variable(place) as vil:
                heads[file_name] = place, tuple(vil.shape)
        file, shape = heads[file_name]
        if len(shape) != 4 or (found and shape[1:] != found[0].shape[1:]):
            raise DataError(f"{file}: vil has shape {shape}; expected (event, row, column, frame), alike in all files")
        if not 0 <= index < shape[0]:
            raise DataError(f"{file} has {shape[0]} events; the catalogue has {name!r} at index {index}")
        found.append(Stored(file, int(index), shape))
    return found


@contextmanager
def variable(file: Path) -> Iterator[xr.DataArray]:
    """The array `vil` of a file, lazily; netCDF's library reads plain HDF5, whose dimensions have no names, as well.

    One thread at a time: HDF5 is not made for several, and xarray guards reading alone, not opening.

    Raises:
        DataError: not such a file.
    """
    import xarray as xr

    with _ONE_THREAD:
        try:
            ds = xr.open_dataset(file, engine="netcdf4", decode_cf=False, cache=False)
        except (OSError, ValueError, RuntimeError) as error:
            raise DataError(f"{file} is not a readable HDF5 file ({type(error).__name__})") from error
        with ds:
            if "vil" not in ds:
                raise DataError(f"{file} has no array 'vil'; it has {sorted(map(str, ds.variables))}")
            yield ds["vil"]


def offsets_of(rows: pd.DataFrame, stored: Stored, folder: Path) -> np.ndarray:
    """Nominal minutes of the frames from the event's time, `(frame,)`, the same for all events.

    Raises:
        DataError: the catalogue's are no numbers, or not as many as there are frames.
    """
    frames = stored.shape[-1]
    text = str(rows["minute_offsets"].iloc[0])
    try:
        offsets = np.array([float(part) for part in text.split(":")])
    except ValueError as error:
        raise DataError(f"{folder}/CATALOG.csv: minute_offsets are {text!r}; expected -120:-115:...:120") from error
    if len(offsets) == 2 * frames - 1:
        # A reduced archive whose catalogue is still that of the full one.
        offsets = offsets[::2]
    if len(offsets) != frames or frames < 2:
        raise DataError(f"{folder}: an event has {frames} frames and the catalogue {len(offsets)} minute_offsets")
    # Mosaics may be a minute late; the frames are nominally even.
    return np.linspace(offsets[0], offsets[-1], frames)
