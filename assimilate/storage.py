"""Files of results: written whole or not at all, and parts appended along time.

A result is one netCDF file with groups (a DataTree): `truth`, `observations`, one per method, `scores`. Everything is
written to a temporary file beside the target, which then takes its place in one step, so that a reader, a crash or a
full disk never leaves half a file.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr


@contextmanager
def replacing(path: Path, *, copy: bool = False) -> Iterator[Path]:
    """A temporary path that takes the place of `path` when the block ends well (if it was written).

    Args:
        path: the target.
        copy: start from a copy of the target.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        if copy and path.exists():
            shutil.copyfile(path, draft)
        yield draft
        if draft.exists():
            os.replace(draft, path)
    finally:
        draft.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write a text file, whole or not at all."""
    with replacing(path) as draft:
        draft.write_text(text, encoding="utf-8")


def write_rows(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Write a list of rows as JSON, one row a line."""
    lines = ",\n".join(f"  {json.dumps(row, ensure_ascii=False)}" for row in rows)
    write_text(path, f"[\n{lines}\n]\n")


def write_groups(path: Path, groups: Mapping[str, xr.Dataset], attrs: Mapping[str, Any] | None = None) -> None:
    """Write a new result file with these groups."""
    with replacing(path) as draft:
        xr.Dataset(attrs=dict(attrs or {})).to_netcdf(draft, mode="w")
        for name, dataset in groups.items():
            _add(draft, name, dataset)


def add_group(
    path: Path,
    name: str,
    dataset: xr.Dataset,
    also: Mapping[str, xr.Dataset] | None = None,
    attrs: Mapping[str, Any] | None = None,
) -> None:
    """Add a group (and others) to a result file and renew its attributes; earlier content is kept whatever happens.

    The file is written anew: changing attributes in place has crashed HDF5 2.2 (a longer text among many attributes).
    """
    added = {name: dataset, **(also or {})}
    with replacing(path) as draft:
        with xr.open_dataset(path) as root:
            renewed = {**root.attrs, **(attrs or {})}
        xr.Dataset(attrs=renewed).to_netcdf(draft, mode="w")
        for group in _group_names(path):
            if group not in added:
                # As it lies in the file, not decoded: what comes out is what went in.
                with xr.open_dataset(path, group=group, decode_cf=False) as held:
                    _add(draft, group, held.load())
        for group, content in added.items():
            _add(draft, group, content)


def _group_names(path: Path) -> list[str]:
    import netCDF4

    with netCDF4.Dataset(path) as file:
        return [str(name) for name in file.groups]


def append(part: xr.Dataset, path: Path, *, new: bool) -> None:
    """Append a part along `time` to a netCDF file; the first part makes the file."""
    if new:
        path.parent.mkdir(parents=True, exist_ok=True)
        part.to_netcdf(path, mode="w", unlimited_dims=["time"], encoding=_encoding(part))
        return
    import netCDF4

    with netCDF4.Dataset(path, "a") as file:
        begin = len(file.dimensions["time"])
        for name, array in part.variables.items():
            if "time" not in array.dims:
                continue
            target = file[str(name)]
            values: Any = array.values
            if np.issubdtype(values.dtype, np.datetime64):
                values = netCDF4.date2num(values.astype("datetime64[us]").tolist(), target.units, target.calendar)
            where = tuple(slice(begin, None) if d == "time" else slice(None) for d in array.dims)
            target[where] = values


def safe_name(label: str) -> str:
    """A netCDF group name for a label: letters, digits, dot, dash and underscore."""
    kept = "".join(c if c.isalnum() or c in ".-_" else "_" for c in label.strip())
    while "__" in kept:
        kept = kept.replace("__", "_")
    return kept.strip("_") or "method"


def _add(path: Path, group: str, dataset: xr.Dataset) -> None:
    dataset.to_netcdf(path, mode="a", group=group, encoding=_encoding(dataset))


def _encoding(dataset: xr.Dataset) -> dict[str, dict[str, Any]]:
    """Light compression of floating-point fields."""
    big = (n for n, v in dataset.data_vars.items() if v.dtype.kind == "f" and v.size > 4096)
    return {str(n): {"zlib": True, "complevel": 1, "shuffle": True} for n in big}
