"""DICOM and NIfTI files as DataArrays, with physical units and pixel spacing in mm.

Coordinates are millimetres: of DICOM images from the corner pixel, rows downwards; of NIfTI slices in the scanner's own
frame (right, anterior and superior are positive), with what is anterior or superior on top.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr

from assimilate.errors import DataError
from imaging.reading import whole_number

_AXES = ("x", "y", "z")


def read_dicom(file: Path, slice: int | str | None = None) -> xr.DataArray:
    """One image of a DICOM file, `(y, x)` float32: slope times stored value plus intercept.

    Args:
        file: path.
        slice: number of the frame, if there are several.

    Raises:
        DataError: pydicom is missing, the file is damaged or without pixels, or a stack without `slice`.
    """
    try:
        import pydicom
        from pydicom.errors import InvalidDicomError
    except ImportError as error:
        raise DataError(f"'{file.name}' is a DICOM file: pip install pydicom to read it") from error
    try:
        held = pydicom.dcmread(file)
        stored = np.asarray(held.pixel_array)
    except (InvalidDicomError, AttributeError, ValueError, RuntimeError, OSError, KeyError) as error:
        raise DataError(f"'{file}' cannot be read as a DICOM image: {error}") from error
    if int(getattr(held, "SamplesPerPixel", 1)) != 1:
        raise DataError(f"'{file.name}' is a colour DICOM image; expected one value for each pixel")
    if stored.ndim == 3:
        stored = stored[whole_number(slice, stored.shape[0], file.name, "frames")]
    elif slice is not None and slice not in (0, "0"):
        raise DataError(f"'{file.name}' holds one image; leave out slice")
    slope, intercept = float(getattr(held, "RescaleSlope", 1)), float(getattr(held, "RescaleIntercept", 0))
    values = (stored.astype(np.float64) * slope + intercept).astype(np.float32)
    modality = str(getattr(held, "Modality", ""))
    kind = str(getattr(held, "RescaleType", ""))
    units = "HU" if kind == "HU" or (not kind and modality == "CT") else (kind if kind not in ("", "US") else "1")
    coords: dict[str, Any] = {}
    spacing = getattr(held, "PixelSpacing", getattr(held, "ImagerPixelSpacing", None))
    if spacing is not None and len(spacing) == 2:
        for dim, step, size in zip(("y", "x"), spacing, values.shape, strict=True):
            labels = {"units": "mm", "long_name": "row" if dim == "y" else "column"}
            coords[dim] = (dim, np.arange(size) * float(step), labels)
    attrs = {
        "units": units,
        "long_name": "CT number" if units == "HU" else "image",
        "scaling": f"stored values times {slope:g} plus {intercept:g}",
        "source_format": "DICOM",
        "modality": modality,
    }
    return xr.DataArray(values, dims=("y", "x"), coords=coords, attrs=attrs)


def read_nifti(file: Path, slice: int | str | None = None) -> xr.DataArray:
    """One slice of a NIfTI volume, float32.

    Args:
        file: path.
        slice: number along z (from below), or "x=40", "y=40", "z=40"; "z=40,t=2" for a series.

    Raises:
        DataError: nibabel is missing, the file is damaged, or no such slice.
    """
    try:
        import nibabel
        from nibabel.filebasedimages import ImageFileError
    except ImportError as error:
        raise DataError(f"'{file.name}' is a NIfTI file: pip install nibabel to read it") from error
    try:
        image: Any = nibabel.as_closest_canonical(nibabel.load(file))
        volume = np.asarray(image.dataobj, dtype=np.float32)
    except (ImageFileError, OSError, EOFError, ValueError, TypeError) as error:
        raise DataError(f"'{file}' cannot be read as a NIfTI image: {error}") from error
    affine = np.asarray(image.affine, dtype=np.float64)
    spacing = np.linalg.norm(affine[:3, :3], axis=0)
    volume = volume.reshape(*volume.shape, *(1,) * (3 - volume.ndim))
    axis, number, volume = _chosen(volume, slice, file.name)
    plane = np.take(volume, number, axis)
    across, up = (a for a in range(3) if a != axis)
    # Rows go downwards: the largest y or z comes first.
    values = np.ascontiguousarray(plane.T[::-1])
    along = {a: affine[a, 3] + spacing[a] * np.arange(volume.shape[a]) for a in (across, up)}
    dims = (_AXES[up], _AXES[across])
    directions = {"x": "right", "y": "anterior", "z": "superior"}
    coords = {
        _AXES[a]: (_AXES[a], along[a][::-1] if a == up else along[a], _labels(directions[_AXES[a]]))
        for a in (across, up)
    }
    attrs = {
        "units": "1",
        "long_name": "image",
        "scaling": "values as stored, with the file's own slope and intercept",
        "source_format": "NIfTI",
        "slice": f"{_AXES[axis]}={number}",
    }
    # A slice that lies askew in the scanner has its spacing along its own axes.
    if not np.allclose(affine[:3, :3], np.diag(spacing), atol=1e-3 * spacing.max()):
        attrs["oblique"] = "the volume lies askew in the scanner; coordinates run along its own axes"
    return xr.DataArray(values, dims=dims, coords=coords, attrs=attrs)


def _chosen(volume: np.ndarray, slice: int | str | None, file: str) -> tuple[int, int, np.ndarray]:
    """Axis and number of a slice, and the volume of one time."""
    wanted: dict[str, str] = {}
    for part in str("" if slice is None else slice).replace(" ", "").split(","):
        name, equals, value = part.partition("=")
        wanted |= {name: value} if equals else ({"z": part} if part else {})
    unknown = [name for name in wanted if name not in (*_AXES, "t")]
    if unknown:
        raise DataError(f"slice='{slice}': unknown axis '{unknown[0]}'; expected x, y, z or t")
    if volume.ndim > 3:
        series = volume.reshape(*volume.shape[:3], -1)
        volume = series[..., whole_number(wanted.get("t"), series.shape[-1], file, "volumes (slice='z=...,t=...')")]
    places = [name for name in _AXES if name in wanted]
    if not places and volume.shape[2] == 1:
        return 2, 0, volume
    if len(places) != 1:
        sizes = ", ".join(f"{n}=0 to {s - 1}" for n, s in zip(_AXES, volume.shape, strict=True))
        raise DataError(f"'{file}' is a volume; choose one slice, {sizes}, with slice='z={volume.shape[2] // 2}'")
    axis = _AXES.index(places[0])
    return axis, whole_number(wanted[places[0]], volume.shape[axis], file, f"slices along {places[0]}"), volume


def _labels(direction: str) -> dict[str, str]:
    return {"units": "mm", "long_name": f"distance to the {direction}"}
