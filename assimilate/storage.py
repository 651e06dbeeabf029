"""Files of results: written whole or not at all; long ones are written from parts along time.

A result is one netCDF file with groups (a DataTree): `truth`, `observations`, one per method, `scores`. Everything is
written to a temporary file beside the target, which then takes its place in one step, so that a reader, a crash or a
full disk never leaves half a file.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
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
            put_in_place(draft, path)
    finally:
        draft.unlink(missing_ok=True)


def put_in_place(draft: Path, path: Path) -> None:
    """Move a finished file or folder to its place in one step, on the disk before it has its name."""
    if draft.is_dir():
        # A folder cannot take the place of another that is not empty.
        shutil.rmtree(path, ignore_errors=True)
    else:
        flush(draft)
    os.replace(draft, path)
    flush(path.parent)


def flush(path: Path) -> None:
    """Wait until a file, or the names in a folder, are on the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError:
        # Some file systems cannot flush a folder; a kill leaves it right all the same.
        if not path.is_dir():
            raise
    finally:
        os.close(handle)


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


CHUNK_BYTES = 2**20
"""Size of the chunks along time in files that are written from parts."""


def write_parts(parts: Iterable[xr.Dataset], path: Path, times: xr.DataArray) -> None:
    """Write a new netCDF file or Zarr store from consecutive parts along time; one part is in memory at a time.

    Variables without `time` are those of the first part; attributes are the same in all.

    Args:
        parts: with the same variables.
        path: what ends in `.zarr` is a Zarr store. The caller moves it to its place when it is whole.
        times: of all parts; they decide how dates are stored.
    """
    encoding: dict[str, dict[str, Any]] = {}
    for index, part in enumerate(parts):
        if index == 0:
            encoding = _chunked(part, zarr=path.suffix == ".zarr") | _time_encoding(times)
        else:
            part = part.drop_vars([n for n, v in part.variables.items() if "time" not in v.dims])
        if path.suffix == ".zarr":
            more: dict[str, Any] = {"append_dim": "time"} if index else {"mode": "w", "encoding": encoding}
            part.to_zarr(path, consolidated=False, **more)
        elif index == 0:
            part.to_netcdf(path, mode="w", unlimited_dims=["time"], encoding=encoding)
        else:
            _append(part, path, encoding)


def _append(part: xr.Dataset, path: Path, encoding: Mapping[str, Mapping[str, Any]]) -> None:
    import netCDF4

    with netCDF4.Dataset(path, "a") as file:
        begin = len(file.dimensions["time"])
        for name, array in part.variables.items():
            variable = array.variable if isinstance(array, xr.DataArray) else array
            if str(name) == "time" and "units" in encoding.get("time", {}):
                plain = xr.Variable(variable.dims, variable.values, variable.attrs, encoding["time"])
                variable = xr.conventions.encode_cf_variable(plain)
            where = tuple(slice(begin, None) if d == "time" else slice(None) for d in variable.dims)
            file[str(name)][where] = variable.values


def _time_encoding(times: xr.DataArray) -> dict[str, dict[str, Any]]:
    """How dates are stored: in the unit that is right for all of them, not only for those of the first part."""
    if not np.issubdtype(times.dtype, np.datetime64):
        return {}
    attrs = xr.conventions.encode_cf_variable(xr.Variable("time", times.values)).attrs
    return {"time": {"units": attrs["units"], "calendar": attrs["calendar"], "dtype": "int64"}}


def _chunked(part: xr.Dataset, *, zarr: bool) -> dict[str, dict[str, Any]]:
    """Chunks of about `CHUNK_BYTES` along time, and light compression of floating-point fields."""
    out: dict[str, dict[str, Any]] = {}
    for name, variable in part.data_vars.items():
        if "time" not in variable.dims:
            continue
        count = part.sizes["time"]
        times = min(count, max(1, CHUNK_BYTES // max(1, variable.nbytes // count)))
        sizes = tuple(times if d == "time" else part.sizes[d] for d in variable.dims)
        out[str(name)] = {"chunks" if zarr else "chunksizes": sizes}
        if not zarr and variable.dtype.kind == "f" and variable.size > 4096:
            out[str(name)] |= {"zlib": True, "complevel": 1, "shuffle": True}
    return out


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
