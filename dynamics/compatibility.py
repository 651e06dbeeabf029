"""Does a Dataset fit a Space? Every difference is named; nothing is repaired.

The one exception to silence is precision: coordinates may differ by a thousandth of their spacing, since files in
float32 do.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import xarray as xr

from dynamics.errors import SpaceMismatch
from dynamics.labels import leading_dims, nearest_name, same_units

if TYPE_CHECKING:
    from dynamics.fields import Coordinate
    from dynamics.space import Space


def check(space: Space, ds: xr.Dataset) -> dict[str, str]:
    """Check variables, units, dimensions, sizes and coordinates.

    Returns:
        Roles and names of the Dataset's leading dimensions, in the order of a tensor.

    Raises:
        SpaceMismatch: the first difference found.
    """
    for entry in space.fields:
        if entry.name not in ds.data_vars:
            raise SpaceMismatch(
                f"the Dataset has no variable {entry.name!r}; it has {list(ds.data_vars)}"
                + nearest_name(entry.name, ds.data_vars)
            )
        units = ds[entry.name].attrs.get("units")
        if units is not None and not same_units(units, entry.units):
            raise SpaceMismatch(f"variable {entry.name!r} is in {units!r}; this Space expects {entry.units!r}")
    inner = {dim for entry in space.fields for dim in entry.dims}
    chosen = ds[[entry.name for entry in space.fields]]
    leading = leading_dims(chosen, exclude=inner)
    for entry in space.fields:
        dims = set(map(str, ds[entry.name].dims))
        lacking = [dim for dim in entry.dims if dim not in dims]
        if lacking:
            raise SpaceMismatch(f"variable {entry.name!r} has no dimension {lacking[0]!r}; it has {sorted(dims)}")
        extra = sorted(dims - set(entry.dims) - set(leading.values()))
        if extra:
            raise SpaceMismatch(
                f"variable {entry.name!r} has the dimension {extra[0]!r}, which this Space has not; "
                f"select one with .isel({extra[0]}=0), or rename it if it is the ensemble or the time"
            )
        unlike = [dim for dim in leading.values() if dim not in dims]
        if unlike:
            raise SpaceMismatch(f"variable {entry.name!r} has no dimension {unlike[0]!r} while other variables have")
    for name, coordinate in space.coords.items():
        if set(coordinate.dims) <= inner:
            _check_coordinate(name, coordinate, chosen)
    return leading


def _check_coordinate(name: str, expected: Coordinate, ds: xr.Dataset) -> None:
    for dim, size in zip(expected.dims, expected.values.shape, strict=True):
        if ds.sizes[dim] != size:
            raise SpaceMismatch(f"dimension {dim!r} has size {ds.sizes[dim]}; this Space expects {size}")
    if name not in ds.coords or expected.counted:
        return
    if set(ds[name].dims) != set(expected.dims):
        raise SpaceMismatch(f"coordinate {name!r} runs over {ds[name].dims}; this Space expects {expected.dims}")
    array = ds[name].transpose(*expected.dims)
    given = array.values
    units = array.attrs.get("units")
    if units is not None and expected.units and not same_units(units, expected.units):
        raise SpaceMismatch(f"coordinate {name!r} is in {units!r}; this Space expects {expected.units!r}")
    if expected.values.dtype.kind in "fiu" and given.dtype.kind in "fiu":
        equal = np.abs(given - expected.numbers) <= expected.tolerance
    else:
        equal = given == expected.values
    if np.all(equal):
        return
    place = tuple(int(i) for i in np.argwhere(~np.broadcast_to(equal, given.shape))[0])
    hint = ""
    if given.ndim == 1 and np.array_equal(np.sort(given), np.sort(expected.values)):
        hint = f"; the values are the same in another order: sort them with .sortby({name!r}), descending or not"
    raise SpaceMismatch(
        f"coordinate {name!r} differs at index {place if len(place) > 1 else place[0]}: "
        f"{given[place]} was given, {expected.values[place]} is expected{hint}"
    )


def to_floats(values: np.ndarray) -> np.ndarray:
    """Writable native float32 or float64 values, C-contiguous, in memory of their own."""
    kind = np.float32 if values.dtype.kind == "f" and values.dtype.itemsize <= 4 else np.float64
    return np.array(values, dtype=kind, order="C")


def check_finite(values: np.ndarray, mask: np.ndarray | None, name: str, leading: list[str]) -> None:
    """Raise for the first non-finite value outside the mask; `values` is `(*leading, channel, *grid)`."""
    bad = ~np.isfinite(values)
    if mask is not None:
        bad &= ~mask
    if bad.any():
        place = [int(i) for i in np.argwhere(bad)[0]]
        lead = ", ".join(f"{dim}={i}" for dim, i in zip(leading, place, strict=False))
        cell = tuple(place[len(leading) + 1 :])
        where = ", ".join(part for part in (lead, f"cell {cell}" if cell else "") if part) or "its only value"
        raise SpaceMismatch(
            f"variable {name!r} is {values[tuple(place)]} at {where} ({int(bad.sum())} such values); "
            "only no-data cells of the Space's mask may be NaN: fill the value or build the Space with a mask"
        )


def infer_mask(space: Space, ds: xr.Dataset, rule: str) -> np.ndarray | None:
    """No-data cells of a Dataset: NaN at all times ("all", one pass chunk by chunk) or in its first state ("first")."""
    if rule not in ("all", "first"):
        raise ValueError(f"mask={rule!r}; expected 'all', 'first', an array or None")
    blocks = []
    for entry in space.fields:
        array = ds[entry.name]
        leading = [dim for dim in array.dims if dim not in entry.dims]
        if rule == "first":
            array = array.isel({dim: 0 for dim in leading})
            leading = []
        missing = array.isnull().all(leading) if leading else array.isnull()
        inner = (*(dim for dim in entry.dims if dim not in space.grid), *space.grid)
        blocks.append(missing.transpose(*inner).values.reshape(-1, *space.grid_shape))
    mask = np.concatenate(blocks)
    return mask if mask.any() else None
