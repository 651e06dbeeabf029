"""Images and raw measurements from files, as DataArrays.

    PNG, JPEG, TIFF        whole numbers of 8 or 16 bits divided by 255 or 65535; floating-point TIFF as it is
    NPY, NPZ               the array as it is: sinograms, complex k-space, pictures
    netCDF, Zarr           one variable, with its coordinates
    DICOM                  Hounsfield units or what the file says, pixel spacing in mm (needs pydicom)
    NIfTI                  one slice, spacing in mm (needs nibabel)

What was done to the values stands in the attribute `scaling`. Row 0 is the top of the picture.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr

from assimilate.errors import DataError, UserError, suggestion

PICTURES = (".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff")
LUMA = (0.299, 0.587, 0.114)
"""Grey of red, green and blue (ITU-R BT.601)."""


def open_image(
    path: str | os.PathLike[str],
    *,
    colour: bool = False,
    variable: str | None = None,
    slice: int | str | None = None,
) -> xr.DataArray:
    """Read an image or a raw measurement.

    Args:
        path: the file; netCDF and Zarr may be folders.
        colour: keep red, green and blue as a `channel` dim, `(channel, y, x)`; else colour becomes grey.
        variable: which one of a netCDF, Zarr or NPZ file; default: the only one.
        slice: which picture of a stack (TIFF pages, DICOM frames, NIfTI): its number along the first axis (pages, or z
            upwards), or along another one of a volume: "x=40", "y=40".

    Returns:
        `(y, x)`, `(channel, y, x)`, or the dims of the file (`axis_0`... for NPY). Attributes: `units`, `scaling`,
        `source_format`.

    Raises:
        DataError: no such file, one that cannot be read, a library that is missing, or a stack without `slice`.
    """
    file = Path(path)
    if not file.exists():
        raise DataError(f"there is no file '{path}'")
    name = file.name.lower()
    readers: tuple[tuple[tuple[str, ...], Callable[[], xr.DataArray]], ...] = (
        (PICTURES, lambda: _picture(file, colour, slice)),
        ((".npy", ".npz"), lambda: _numpy(file, variable)),
        ((".nc", ".nc4", ".cdf", ".zarr"), lambda: _labelled(file, variable)),
        ((".nii", ".nii.gz"), lambda: _medical("read_nifti", file, slice)),
        ((".dcm", ".dicom", ".ima"), lambda: _medical("read_dicom", file, slice)),
    )
    for endings, read in readers:
        if name.endswith(endings):
            return read()
    if file.is_file() and _is_dicom(file):
        return _medical("read_dicom", file, slice)
    raise DataError(f"'{path}': unknown kind of file; expected PNG, JPEG, TIFF, NPY, NPZ, netCDF, Zarr, DICOM or NIfTI")


def _picture(file: Path, colour: bool, slice: int | str | None) -> xr.DataArray:
    from PIL import Image, UnidentifiedImageError

    try:
        _refuse_deep_colour(file)
        with Image.open(file) as opened:
            pages = int(getattr(opened, "n_frames", 1))
            if pages > 1:
                opened.seek(whole_number(slice, pages, file.name, "pages"))
            elif slice is not None:
                raise DataError(f"'{file.name}' holds one picture; leave out slice")
            mode = opened.mode
            bits = getattr(opened, "tag_v2", {}).get(258, 8)
            if mode in ("RGB", "RGBA") and max(bits if isinstance(bits, tuple) else (bits,)) > 8:
                # Pillow cuts these to 8 bits as well.
                values = _deep_tiff(file, DataError("its colours have more than 8 bits"))
            elif mode in ("P", "CMYK", "YCbCr", "PA"):
                seen = opened.convert("RGBA" if "transparency" in opened.info or mode == "PA" else "RGB")
                values = np.asarray(seen)
            else:
                values = np.asarray(opened)
    except (UnidentifiedImageError, OSError, SyntaxError) as error:
        if file.suffix.lower() in (".tif", ".tiff"):
            values = _deep_tiff(file, error)
        else:
            raise DataError(f"'{file}' cannot be read as a picture: {error}") from error
    values, scaling = _to_unit(values, file)
    values = _opaque(values, file)
    if values.ndim == 3 and not colour:
        values = values @ np.asarray(LUMA, dtype=values.dtype)
        scaling += ", colour to grey (0.299 R + 0.587 G + 0.114 B)"
    attrs = {"units": "1", "long_name": "image", "scaling": scaling, "source_format": file.suffix[1:].upper()}
    if values.ndim == 3:
        coords = {"channel": ["red", "green", "blue"]}
        return xr.DataArray(np.moveaxis(values, -1, 0), dims=("channel", "y", "x"), coords=coords, attrs=attrs)
    return xr.DataArray(values, dims=("y", "x"), attrs=attrs)


def _to_unit(values: np.ndarray, file: Path) -> tuple[np.ndarray, str]:
    """Whole numbers as parts of their range, float32."""
    if values.dtype == bool:
        return values.astype(np.float32), "black and white as 0 and 1"
    if values.dtype.kind == "f":
        return values.astype(np.float32), "values as stored"
    if values.dtype == np.uint8:
        return values.astype(np.float32) / 255, "8-bit values divided by 255"
    if values.dtype == np.uint16 or (values.dtype.kind in "iu" and values.min() >= 0 and values.max() <= 65535):
        return (values.astype(np.float64) / 65535).astype(np.float32), "16-bit values divided by 65535"
    raise DataError(f"'{file.name}' holds {values.dtype} values outside 0..65535; convert it to floating point or NPY")


def _opaque(values: np.ndarray, file: Path) -> np.ndarray:
    """Without the alpha channel, which must say nothing."""
    if values.ndim == 2 or values.shape[-1] == 3:
        return values
    if values.shape[-1] in (2, 4):
        if float(values[..., -1].min()) < 1:
            raise DataError(f"'{file.name}' is transparent in places; save it without an alpha channel")
        return values[..., 0] if values.shape[-1] == 2 else values[..., :3]
    raise DataError(f"'{file.name}' has {values.shape[-1]} channels; expected grey or red, green and blue")


def _refuse_deep_colour(file: Path) -> None:
    """Pillow reads 16-bit colour PNGs as 8-bit ones without a word."""
    head = file.read_bytes()[:26] if file.is_file() else b""
    if head.startswith(b"\x89PNG") and len(head) == 26 and head[24] == 16 and head[25] != 0:
        raise DataError(f"'{file.name}' is a 16-bit colour PNG, which cannot be read in full; save it as TIFF or NPY")


def _deep_tiff(file: Path, error: Exception) -> np.ndarray:
    """TIFFs that Pillow does not know, by tifffile where it is installed."""
    try:
        import tifffile
    except ImportError:
        raise DataError(f"'{file.name}' cannot be read: {error}; tifffile may: pip install tifffile") from error
    try:
        values = np.asarray(tifffile.imread(file))
    except (tifffile.TiffFileError, ValueError, OSError, KeyError) as deeper:
        raise DataError(f"'{file}' cannot be read as a TIFF: {deeper}") from deeper
    if values.ndim not in (2, 3) or (values.ndim == 3 and values.shape[-1] not in (2, 3, 4)):
        raise DataError(f"'{file.name}' has shape {values.shape}; expected (rows, columns) or (rows, columns, colours)")
    return values


def _numpy(file: Path, variable: str | None) -> xr.DataArray:
    try:
        held: Any = np.load(file, allow_pickle=False)
        if isinstance(held, np.lib.npyio.NpzFile):
            with held:
                values = held[one_of(list(held.files), variable, file.name)]
        else:
            values = held
    except (ValueError, OSError, EOFError, KeyError) as error:
        if isinstance(error, UserError):
            raise
        raise DataError(f"'{file}' cannot be read as a NumPy array: {error}") from error
    if values.dtype.kind not in "biufc":
        raise DataError(f"'{file.name}' holds {values.dtype} values; expected numbers")
    attrs = {"scaling": "values as stored", "source_format": file.suffix[1:].upper()}
    dims = [f"axis_{k}" for k in range(values.ndim)]
    return xr.DataArray(values, dims=dims, attrs=attrs)


def _labelled(file: Path, variable: str | None) -> xr.DataArray:
    try:
        opened = xr.open_zarr(file) if file.suffix == ".zarr" else xr.open_dataset(file)
        with opened:
            array = opened[one_of([str(n) for n in opened.data_vars], variable, file.name)].load()
    except (OSError, ValueError, KeyError, ImportError) as error:
        if isinstance(error, UserError):
            raise
        raise DataError(f"'{file}' cannot be read: {error}") from error
    kind = "Zarr" if file.suffix == ".zarr" else "netCDF"
    return array.assign_attrs({"scaling": "values as stored", "source_format": kind})


def _medical(reader: str, file: Path, slice: int | str | None) -> xr.DataArray:
    from imaging import medical

    return getattr(medical, reader)(file, slice)


def _is_dicom(file: Path) -> bool:
    with file.open("rb") as opened:
        return opened.read(132)[128:] == b"DICM"


def one_of(names: list[str], wanted: str | None, file: str) -> str:
    """The name asked for, or the only one.

    Raises:
        DataError: it is not there, or there are several and none was asked for.
    """
    if wanted is not None:
        if wanted not in names:
            raise DataError(f"'{file}' has no variable '{wanted}'{suggestion(wanted, names)}")
        return wanted
    if len(names) != 1:
        raise DataError(f"'{file}' holds {', '.join(names) or 'no variable'}; choose one with variable=")
    return names[0]


def whole_number(slice: int | str | None, count: int, file: str, what: str) -> int:
    """The number of a slice, checked; text of digits counts as a number.

    Raises:
        DataError: none is given, or it is out of range.
    """
    try:
        number = None if slice is None else int(slice)
    except ValueError:
        number = None
    if number is None or not -count <= number < count:
        raise DataError(f"'{file}' holds {count} {what}; choose one with slice=0 to {count - 1}")
    return number % count
