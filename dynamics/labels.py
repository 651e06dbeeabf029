"""Reading the labels of a Dataset: which dimension is the ensemble, the time, the latitude; do units agree.

Follows the CF conventions (https://cfconventions.org) where a file does, and common names where it does not.
"""

from __future__ import annotations

import difflib
from collections.abc import Hashable, Iterable, Mapping
from typing import Any

import xarray as xr

LEADING = ("experiment", "member", "time")
"""The leading dimensions of every tensor, in their fixed order."""

_NAMES = {
    "experiment": ("experiment", "trajectory"),
    "member": ("member", "number", "realization", "ensemble", "ens"),
    "time": ("time", "valid_time"),
}
_STANDARD_NAMES = {"member": "realization", "time": "time"}
_NORTH = {"degrees_north", "degree_north", "degree_n", "degrees_n", "degreen", "degreesn"}
_EAST = {"degrees_east", "degree_east", "degree_e", "degrees_e", "degreee", "degreese"}
# Spellings of one unit. A kilogram of water on a square metre is a millimetre deep.
_SAME_UNITS = (
    {"", "1", "dimensionless", "none"},
    {"mm", "kg m-2", "kg/m2", "kg m**-2", "kg/m^2", "millimeter", "millimetre"},
    {"m s-1", "m/s", "m s**-1", "meter/second"},
    {"k", "kelvin"},
    {"m", "meter", "metre", "meters", "metres"},
    {"km", "kilometer", "kilometre", "kilometers", "kilometres"},
)


def leading_dims(labelled: xr.Dataset | xr.DataArray, exclude: Iterable[str] = ()) -> dict[str, str]:
    """Which dimension of a Dataset plays which leading role.

    Args:
        labelled: Dataset or DataArray.
        exclude: dimensions that belong to the grid and have no leading role.

    Returns:
        `{"member": "number", "time": "time"}`: roles found, in the order experiment, member, time.
    """
    found: dict[str, str] = {}
    skip = set(exclude)
    for role in LEADING:
        for dim in map(str, labelled.dims):
            if dim in skip or dim in found.values():
                continue
            if dim in _NAMES[role] or (
                role in _STANDARD_NAMES
                and dim in labelled.coords
                and labelled[dim].attrs.get("standard_name") == _STANDARD_NAMES[role]
            ):
                found[role] = dim
                break
    return found


def is_latitude(attrs: Mapping[Any, Any]) -> bool:
    """Whether attributes say latitude (standard_name, or units degrees_north)."""
    return attrs.get("standard_name") == "latitude" or str(attrs.get("units", "")).lower() in _NORTH


def is_longitude(attrs: Mapping[Any, Any]) -> bool:
    """Whether attributes say longitude (standard_name, or units degrees_east)."""
    return attrs.get("standard_name") == "longitude" or str(attrs.get("units", "")).lower() in _EAST


def same_units(a: str, b: str) -> bool:
    """Whether two unit strings are spellings of one unit (no conversion is ever made)."""
    first, second = (" ".join(str(unit).split()).lower() for unit in (a, b))
    return first == second or any({first, second} <= group for group in _SAME_UNITS)


def nearest_name(name: str, known: Iterable[Hashable]) -> str:
    """`"; did you mean 'rain'?"`, or an empty string where nothing is near."""
    close = difflib.get_close_matches(name, [str(other) for other in known], n=1)
    return f"; did you mean {close[0]!r}?" if close else ""
