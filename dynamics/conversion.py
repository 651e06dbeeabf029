"""From a labelled Dataset to a tensor and back: the work behind `Space.to_tensor` and `Space.to_dataset`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import xarray as xr
from torch import Tensor

from dynamics import compatibility
from dynamics.errors import SpaceMismatch
from dynamics.fields import Coordinate, Field
from dynamics.labels import LEADING, leading_dims, nearest_name
from dynamics.transforms import Identity, Transform

if TYPE_CHECKING:
    from dynamics.space import Space


def to_tensor(space: Space, ds: xr.Dataset | xr.DataArray, dtype: torch.dtype, device: torch.device | str) -> Tensor:
    """See `Space.to_tensor`."""
    labelled = ds.to_dataset(name=space.fields[0].name) if isinstance(ds, xr.DataArray) else ds
    leading = list(compatibility.check(space, labelled).values())
    shape = tuple(labelled.sizes[dim] for dim in leading)
    out = torch.empty((*shape, *space.event_shape), dtype=dtype)
    for entry, block in _blocks(space):
        inner = [dim for dim in entry.dims if dim not in space.grid]
        array = labelled[entry.name].transpose(*leading, *inner, *space.grid)
        values = compatibility.to_floats(array.values).reshape(*shape, block.stop - block.start, *space.grid_shape)
        missing = None if space.mask is None else torch.from_numpy(space.mask[block].copy())
        compatibility.check_finite(values, None if missing is None else missing.numpy(), entry.name, leading)
        part = torch.from_numpy(values)
        if missing is None:
            part = entry.transform.forward(part)
        else:
            # Filled before the transform as well, since it need not be defined at NaN.
            part = entry.transform.forward(part.masked_fill(missing, 0.0)).masked_fill(missing, 0.0)
        out[_channels(space, block)] = part.to(dtype)
    return out.to(device)


def to_dataset(
    space: Space,
    x: Tensor,
    dims: Sequence[str] | None,
    coords: Mapping[str, Any] | None,
    attrs: Mapping[str, Any] | None,
) -> xr.Dataset:
    """See `Space.to_dataset`."""
    count = x.ndim - len(space.event_shape)
    if count < 0 or tuple(x.shape[count:]) != space.event_shape:
        raise SpaceMismatch(f"tensor has shape {tuple(x.shape)}; expected it to end in the event {space.event_shape}")
    names = _default_dims(count) if dims is None else tuple(dims)
    if len(names) != count:
        raise SpaceMismatch(f"tensor has {count} leading dimensions; dims={names} names {len(names)}")
    lead = tuple(x.shape[:count])
    values = x.detach().cpu()
    variables = {}
    for entry, block in _blocks(space):
        part = entry.transform.inverse(values[_channels(space, block)])
        if space.mask is not None:
            part = part.masked_fill(torch.from_numpy(space.mask[block].copy()), torch.nan)
        inner = [dim for dim in entry.dims if dim not in space.grid]
        sizes = [space.coords[dim].values.size for dim in inner]
        # A copy: the Dataset must not change when the tensor does.
        array = np.array(part.reshape((*lead, *sizes, *space.grid_shape)).numpy())
        variable = xr.Variable((*names, *inner, *space.grid), array, entry.attributes)
        variables[entry.name] = variable.transpose(*names, *entry.dims)
    return xr.Dataset(variables, {**grid_coords(space), **leading_coords(names, lead, coords)}, attrs)


def space_of(
    ds: xr.Dataset,
    variables: Sequence[str] | None,
    transforms: Mapping[str, Transform],
    periodic: tuple[str, ...],
    channel_dims: tuple[str, ...],
    mask: str | np.ndarray | None,
) -> Space:
    """See `Space.from_dataset`."""
    from dynamics.space import Space

    names = [str(name) for name in (ds.data_vars if variables is None else variables)]
    for name in [*names, *transforms]:
        if name not in ds.data_vars:
            hint = nearest_name(name, ds.data_vars)
            raise SpaceMismatch(f"the Dataset has no variable {name!r}; it has {list(ds.data_vars)}{hint}")
    leading = set(leading_dims(ds[names]).values())
    fields = []
    for name in names:
        attrs = dict(ds[name].attrs)
        labels = {key: str(attrs.pop(key, "")) for key in ("units", "long_name", "standard_name")}
        dims = tuple(str(dim) for dim in ds[name].dims if dim not in leading)
        fields.append(Field(name, dims=dims, transform=transforms.get(name, Identity()), attrs=attrs, **labels))
    # One order of the grid for all fields: that in which the dimensions first appear.
    order = list(dict.fromkeys(dim for entry in fields for dim in entry.dims))
    fields = [replace(entry, dims=tuple(sorted(entry.dims, key=order.index))) for entry in fields]
    coords = {dim: Coordinate.count(dim, ds.sizes[dim]) for dim in order}
    for key, array in ds[names].coords.items():
        if array.dims and set(array.dims) <= set(order):
            units, standard, long = (str(array.attrs.get(k, "")) for k in ("units", "standard_name", "long_name"))
            coords[str(key)] = Coordinate(array.values, tuple(map(str, array.dims)), units, standard, long)
    space = Space(tuple(fields), coords, periodic, None, channel_dims)
    if isinstance(mask, str):
        mask = compatibility.infer_mask(space, ds, mask)
    return replace(space, mask=mask)


def grid_coords(space: Space) -> dict[str, xr.Variable]:
    """The coordinates of the grid as xarray variables."""
    used = {dim for entry in space.fields for dim in entry.dims}
    return {
        name: xr.Variable(coordinate.dims, coordinate.values, coordinate.attributes)
        for name, coordinate in space.coords.items()
        if not coordinate.counted and set(coordinate.dims) <= used
    }


def leading_coords(
    names: Sequence[str], sizes: Sequence[int], given: Mapping[str, Any] | None = None
) -> dict[str, xr.Variable]:
    """Coordinates of the leading dimensions with their CF attributes; they count from 0 unless given.

    Args:
        names: leading dimensions.
        sizes: their sizes.
        given: values to use instead (a DataArray keeps its attributes); further coordinates pass through.
    """
    attributes = {"member": {"standard_name": "realization", "units": "1"}, "time": {"standard_name": "time"}}
    counted = {name: np.arange(size) for name, size in zip(names, sizes, strict=True)}
    out: dict[str, xr.Variable] = {}
    for name, value in {**counted, **(given or {})}.items():
        labels = attributes.get(name, {})
        if isinstance(value, xr.DataArray | xr.Variable):
            out[name] = xr.Variable(value.dims, value.values, {**labels, **value.attrs})
        else:
            array = np.asarray(value)
            out[name] = xr.Variable((name,) if array.ndim else (), array, labels)
    return out


def _blocks(space: Space) -> list[tuple[Field, slice]]:
    """Each field with its channels."""
    out, start = [], 0
    for entry in space.fields:
        stop = start + len(space.channel_names(entry))
        out.append((entry, slice(start, stop)))
        start = stop
    return out


def _channels(space: Space, block: slice) -> tuple[Any, ...]:
    return (..., block, *(slice(None),) * len(space.grid))


def _default_dims(count: int) -> tuple[str, ...]:
    if count == 1:
        raise SpaceMismatch('one leading dimension: say which with dims=("member",) or dims=("time",)')
    if count > len(LEADING):
        raise SpaceMismatch(f"{count} leading dimensions: name them with dims=(...)")
    return LEADING[len(LEADING) - count :]
