"""The SEVIR archive: vertically integrated liquid (VIL) of storms over the United States, opened lazily.

An event is a cut-out of 384 km x 384 km that follows four hours of weather: 49 radar mosaics, 5 minutes apart, cells of
1 km. The archive is a table and HDF5 files,

    ROOT/CATALOG.csv                              one row for each event and sensor
    ROOT/data/vil/2019/SEVIR_VIL_..._2019_...h5   `vil` (event, row, column, frame), one byte a value; `id` (event)

(or ROOT/vil/...: both are in use). A byte X is a code of the liquid: 0 to 254, 255 = missing; see `dynamics.vil`. The
state here is X / 255, in [0, 1], as FlowDAS and most forecasting papers score it. A network is usually given
10 (X / 255 - 0.5), in [-5, 5]: noise of standard deviation 0.001 there is 1e-4 here.

The reduced version is made on the fly: means over 3 x 3 cells and every second frame give 128 x 128 cells of 3 km and
25 frames. SEVIR-LR, the published reduced archive, has the layout above with such arrays in it and is read as it is.

Thresholds of the critical success index. FlowDAS's table heads them tau_20 (0.3) and tau_40 (0.5), and its script uses
0.3 and 0.5 of X / 255: codes 76.5 and 127.5, or 0.83 and 3.1 kg m-2. Taken as codes, 20 and 40 would be 0.0784 and
0.157 of X / 255. Both pairs are in `THRESHOLDS`; a score must say which it is.

Numbers are the archive's: nothing is clipped or filled. Events of which the catalogue says that a pixel is missing are
left out unless they are asked for, as in the published loaders; there a missing pixel, and a mean over one, is NaN.

References:
    Veillette, Samsi, Mattioli (2020), SEVIR: a storm event imagery dataset for deep learning applications in radar and
    satellite meteorology, https://registry.opendata.aws/sevir/ (open data; radar of NOAA)
    Gao et al. (2022), Earthformer: exploring space-time transformers for Earth system forecasting,
    https://arxiv.org/abs/2207.05833 (SEVIR-LR)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from dynamics.errors import DataError
from dynamics.sevir_catalogue import Split, Stored, chosen, find, offsets_of, read_catalogue, variable

if TYPE_CHECKING:
    import xarray as xr

MISSING = 255
"""Code of a missing pixel."""
THRESHOLDS = {"published": (0.3, 0.5), "codes": (20 / 255, 40 / 255)}
"""Thresholds of the critical success index on [0, 1]: the published ones, and 20 and 40 read as codes."""
LABELS = {"units": "1", "long_name": "code of the vertically integrated liquid / 255"}
_EXTENT = 384.0
"""Width of a cut-out in km, if the catalogue does not say."""
_CORNERS = {"south": "llcrnrlat", "west": "llcrnrlon", "north": "urcrnrlat", "east": "urcrnrlon"}


def open_sevir(
    root: str | Path,
    *,
    split: Split | None = None,
    size: int = 128,
    minutes: int = 10,
    events: int | Sequence[str] | None = None,
    complete: bool = True,
) -> xr.Dataset:
    """VIL events of the archive; no image is read before it is used.

    Args:
        root: folder with CATALOG.csv.
        split: "test" is what is later than 2019-06-01; of the rest a tenth of the days is "validation" and the others
            are "train". Whole days, because cut-outs of one storm overlap (the published split draws single events).
            None: all events.
        size: cells along each side: 384, or a divisor of it, in means over blocks.
        minutes: between frames: 5, or a multiple of it that divides the 240 minutes.
        events: ids to take, in this order; or a number of events, evenly spaced in time. None: all of the split.
        complete: only events without a missing pixel, by the catalogue.

    Returns:
        Dataset of dask arrays, one chunk an event, in order of time: `vil` (experiment, time, y, x) on [0, 1]; `time`
        in minutes from the event's own time; `y` (rows of the file) and `x` in km. Each event is an experiment, with
        its id `event`, `event_time` (UTC), `event_type`, and its corners `south`, `west`, `north`, `east` in degrees.

    Raises:
        DataError: no catalogue, a column, file or variable that is missing, an index beyond the end of a file, no such
            event or none at all, a size or spacing that does not divide the archive's.
    """
    import dask.array as da
    import xarray as xr

    folder = Path(root)
    rows = chosen(read_catalogue(folder), folder, split=split, events=events, complete=complete)
    stored = find(rows, folder)
    offsets = offsets_of(rows, stored[0], folder)
    images = _images(stored, offsets, size, minutes, folder)
    values = da.from_array(images, chunks=(1, *images.shape[1:]), fancy=False)
    # No units on the time axis: "minutes" alone would be decoded as a duration when a result is read again.
    coords: dict[str, Any] = {
        "time": ("time", offsets[:: images.every], {"long_name": "minutes from the time of the event"}),
        "event": ("experiment", rows["id"].to_numpy(str)),
        "event_time": ("experiment", rows["time_utc"].to_numpy("datetime64[ns]")),
    }
    for dim, column, count in (("y", "height_m", images.shape[2]), ("x", "width_m", images.shape[3])):
        extent = float(rows[column].iloc[0]) / 1000 if column in rows else _EXTENT
        coords[dim] = (dim, (np.arange(count) + 0.5) * extent / count, {"units": "km"})
    if "event_type" in rows:
        coords["event_type"] = ("experiment", rows["event_type"].astype(object).fillna("").to_numpy(str))
    for name, column in _CORNERS.items():
        if column in rows:
            units = "degrees_north" if name in ("south", "north") else "degrees_east"
            coords[name] = ("experiment", rows[column].to_numpy(float), {"units": units})
    attrs = {
        "title": f"SEVIR, vertically integrated liquid, {len(rows)} events" + (f" ({split})" if split else ""),
        "source": "SEVIR, https://registry.opendata.aws/sevir/; NEXRAD mosaics",
        "references": "Veillette, Samsi, Mattioli (2020), SEVIR",
    }
    return xr.Dataset({"vil": (("experiment", "time", "y", "x"), values, LABELS)}, coords, attrs)


def _images(stored: list[Stored], offsets: np.ndarray, size: int, minutes: float, folder: Path) -> Images:
    """The array of all events on the grid and at the frames that were asked for."""
    rows, columns, frames = stored[0].shape[1:]
    spacing = offsets[1] - offsets[0]
    every, block = round(minutes / spacing), rows // max(1, size)
    if every < 1 or every * spacing != minutes or (frames - 1) % every:
        raise DataError(
            f"minutes={minutes}: {folder} has {frames} frames {spacing:g} minutes apart; expected a multiple that "
            f"divides {offsets[-1] - offsets[0]:g}"
        )
    if block < 1 or block * size != rows or columns % block:
        raise DataError(f"size={size}: {folder} has {rows} x {columns} cells; expected a divisor of {rows}")
    files, indices = tuple(str(one.file) for one in stored), tuple(one.index for one in stored)
    return Images(files, indices, (rows, columns, frames), every, block)


@dataclass(frozen=True)
class Images:
    """The images of events as one array (event, frame, row, column), float32; what is indexed is read.

    Args:
        files: of each event.
        indices: of each event in its file.
        stored: shape (row, column, frame) of an event in its file.
        every: frames from one that is kept to the next.
        block: cells that are averaged along each side.
    """

    files: tuple[str, ...]
    indices: tuple[int, ...]
    stored: tuple[int, ...]
    every: int
    block: int

    @cached_property
    def shape(self) -> tuple[int, int, int, int]:
        """(event, frame, row, column)."""
        rows, columns, frames = self.stored
        return len(self.files), (frames - 1) // self.every + 1, rows // self.block, columns // self.block

    @property
    def dtype(self) -> np.dtype:
        """float32."""
        return np.dtype(np.float32)

    @property
    def ndim(self) -> int:
        """4."""
        return 4

    def __getitem__(self, key: tuple[Any, ...]) -> np.ndarray:
        """Read the events of a part, indices and slices of all axes; the other axes are cut in memory."""
        rows = np.arange(len(self.files))[key[0]]
        if rows.ndim == 0:
            return self._read(int(rows))[key[1:]]
        found = [self._read(int(n))[key[1:]] for n in rows]
        return np.stack(found) if found else np.empty((0, *self.shape[1:]), self.dtype)[(slice(None), *key[1:])]

    def _read(self, n: int) -> np.ndarray:
        with variable(Path(self.files[n])) as vil:
            codes = vil[self.indices[n]].values[..., :: self.every]
        values = np.moveaxis(codes, -1, 0).astype(self.dtype)
        values[values == MISSING] = np.nan
        frames, rows, columns = self.shape[1:]
        return values.reshape(frames, rows, self.block, columns, self.block).mean((2, 4)) / np.float32(255)
