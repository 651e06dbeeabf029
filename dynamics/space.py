"""Space: what a state is; the only conversion between an xarray Dataset and a tensor.

A Dataset with named variables, dimensions in any order and units becomes a tensor `(*leading, channel, *grid)`,

    leading = (experiment, member, time), absent ones dropped;   channel = fields (and levels) one after another

with each field's transform applied, and back again. NaN marks a no-data cell of the Space's mask and nothing else:
such cells are 0 in tensors and NaN in Datasets.

Labels follow CF (https://cfconventions.org).
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import torch
import xarray as xr
from torch import Tensor

from dynamics import conversion
from dynamics.errors import SpaceMismatch
from dynamics.fields import Coordinate, Field, decode_array, encode_array
from dynamics.geometry import cell_areas, flat_distance, great_circle
from dynamics.transforms import Identity, LogOnePlus, Transform

__all__ = ["Coordinate", "Field", "Identity", "LogOnePlus", "Space", "SpaceMismatch"]


@dataclass(frozen=True, eq=False)
class Space:
    """The variables, grid, units and no-data cells of a state.

    Args:
        fields: the variables, in channel order.
        coords: `{name: Coordinate}` for every grid dimension, and auxiliary coordinates (2-D latitude, longitude).
            A plain array stands for a dimension coordinate without labels, an integer for the size of a dimension
            without coordinate.
        periodic: names of the dimensions that close on themselves (their coordinate must be evenly spaced).
        mask: True at no-data cells; shape of the grid or of the event. None = every cell holds data.
        channel_dims: dimensions that become channels (levels); dimensions that not all fields share always do.

    Raises:
        ValueError: a dimension without coordinate or size, fields whose grids differ, a mask of another shape.
    """

    fields: tuple[Field, ...]
    coords: Mapping[str, Coordinate] = field(default_factory=dict)
    periodic: tuple[str, ...] = ()
    mask: np.ndarray | None = None
    channel_dims: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        """Normalise the arguments and check that they fit together."""
        fields = (self.fields,) if isinstance(self.fields, Field) else tuple(self.fields)
        periodic = (self.periodic,) if isinstance(self.periodic, str) else tuple(self.periodic)
        coords = {name: _coordinate(name, value) for name, value in self.coords.items()}
        for name, value in (("fields", fields), ("periodic", periodic), ("coords", coords)):
            object.__setattr__(self, name, value)
        object.__setattr__(self, "channel_dims", tuple(self.channel_dims))
        names = [entry.name for entry in fields]
        if not fields or len(set(names)) < len(names):
            raise ValueError(f"a Space needs fields with different names; given {names}")
        for dim in {dim for entry in fields for dim in entry.dims}:
            if dim not in coords or coords[dim].dims != (dim,):
                raise ValueError(f"dimension {dim!r} has no coordinate: pass coords={{{dim!r}: values or size}}")
        for entry in fields:
            if tuple(dim for dim in entry.dims if dim in self.grid) != self.grid:
                raise ValueError(f"field {entry.name!r} has dims {entry.dims}; the grid of this Space is {self.grid}")
        for dim in periodic:
            self._period(dim)
        if self.mask is not None:
            mask = np.asarray(self.mask, dtype=bool)
            if mask.shape not in (self.grid_shape, self.event_shape):
                raise ValueError(f"mask has shape {mask.shape}; expected {self.grid_shape} or {self.event_shape}")
            mask = np.broadcast_to(mask, self.event_shape).copy()
            mask.setflags(write=False)
            object.__setattr__(self, "mask", mask if mask.any() else None)

    # ---------------------------------------------------------------------------------------------- construction

    @classmethod
    def scalars(cls, *names: str, units: str = "1") -> Space:
        """A Space of fields without grid, such as the three of Lorenz-63: event shape `(len(names),)`."""
        return cls(tuple(Field(name, units) for name in names))

    @classmethod
    def from_dataset(
        cls,
        ds: xr.Dataset,
        *,
        variables: Sequence[str] | None = None,
        transforms: Mapping[str, Transform] | None = None,
        periodic: Iterable[str] = (),
        channel_dims: Iterable[str] = (),
        mask: str | np.ndarray | None = "all",
    ) -> Space:
        """The Space of the states in a Dataset.

        Args:
            ds: Dataset; only the mask reads values.
            variables: names of the variables, in channel order (default: all data variables).
            transforms: `{name: transform}`.
            periodic: names of periodic dimensions.
            channel_dims: dimensions to turn into channels.
            mask: "all" (default): no data = NaN at all times (reads everything once, chunk by chunk), "first": NaN in
                the first state (reads one), an array, or None.

        Raises:
            SpaceMismatch: a variable that the Dataset has not.
        """
        return conversion.space_of(ds, variables, transforms or {}, tuple(periodic), tuple(channel_dims), mask)

    # ---------------------------------------------------------------------------------------------- shape

    @cached_property
    def grid(self) -> tuple[str, ...]:
        """Names of the grid dimensions, in order: those that all fields share, less `channel_dims`."""
        shared = [dim for dim in self.fields[0].dims if all(dim in entry.dims for entry in self.fields)]
        return tuple(dim for dim in shared if dim not in self.channel_dims)

    @cached_property
    def grid_shape(self) -> tuple[int, ...]:
        """Sizes of the grid dimensions; `()` for scalar fields."""
        return tuple(self.coords[dim].values.size for dim in self.grid)

    @cached_property
    def channels(self) -> tuple[str, ...]:
        """One name per channel: `"rain"`, or `"temperature[850]"` for a level."""
        return tuple(name for entry in self.fields for name in self.channel_names(entry))

    @cached_property
    def event_shape(self) -> tuple[int, ...]:
        """Shape `(channel, *grid)` of one state."""
        return (len(self.channels), *self.grid_shape)

    @property
    def size(self) -> int:
        """Number of values in one state."""
        return math.prod(self.event_shape)

    def channel(self, name: str | int) -> int:
        """The index of a channel given by name or index."""
        if isinstance(name, str):
            if name not in self.channels:
                raise SpaceMismatch(f"no channel {name!r}; there are {list(self.channels)}")
            return self.channels.index(name)
        if not -len(self.channels) <= name < len(self.channels):
            raise SpaceMismatch(f"channel {name} was asked of a Space with {len(self.channels)} channels")
        return name % len(self.channels)

    # ---------------------------------------------------------------------------------------------- conversion

    def to_tensor(
        self, ds: xr.Dataset | xr.DataArray, *, dtype: torch.dtype = torch.float32, device: torch.device | str = "cpu"
    ) -> Tensor:
        """The states of a Dataset as a tensor.

        Args:
            ds: Dataset with this Space's variables (others are not read), dimensions in any order; a DataArray will
                do for a Space of one field. The ensemble may be called member, number, realization or ensemble.
            dtype: float32 or float64.
            device: where the tensor lives.

        Returns:
            Tensor `(*leading, channel, *grid)`, transform applied, 0 at no-data cells.

        Raises:
            SpaceMismatch: a variable, dimension, size, coordinate or unit differs, or a value is NaN outside the mask.
        """
        return conversion.to_tensor(self, ds, dtype, device)

    def to_dataset(
        self,
        x: Tensor,
        dims: Sequence[str] | None = None,
        coords: Mapping[str, Any] | None = None,
        attrs: Mapping[str, Any] | None = None,
    ) -> xr.Dataset:
        """States as a labelled Dataset, the exact inverse of `to_tensor`.

        Args:
            x: tensor `(*leading, channel, *grid)`.
            dims: names of the leading dimensions. Default by their number: none, ("member", "time"), or all three;
                a single one must be named.
            coords: values of the leading coordinates (arrays or DataArrays, whose attributes are kept).
            attrs: attributes of the Dataset.

        Raises:
            SpaceMismatch: the tensor's last dimensions are not the event shape, or its leading ones are not `dims`.
        """
        return conversion.to_dataset(self, x, dims, coords, attrs)

    # ---------------------------------------------------------------------------------------------- places

    @cached_property
    def spherical(self) -> tuple[str, str] | None:
        """Names of the latitude and longitude of the grid, or None on a plane."""
        if not self.grid:
            return None
        found = []
        for wanted in ("latitude", "longitude"):
            names = [n for n, c in self.coords.items() if getattr(c, wanted) and set(c.dims) <= set(self.grid)]
            if len(names) != 1:
                return None
            found.append(names[0])
        return found[0], found[1]

    @cached_property
    def position_names(self) -> tuple[str, ...]:
        """What the columns of `positions()` are: (latitude, longitude, other dims), or the grid dims on a plane."""
        if self.spherical is None:
            return self.grid
        covered = {dim for name in self.spherical for dim in self.coords[name].dims}
        return (*self.spherical, *(dim for dim in self.grid if dim not in covered))

    def positions(self) -> Tensor:
        """Coordinates of the grid cells, float64 `(n_grid, n_dims)`, cells in C order, columns `position_names`."""
        return self._positions

    def distance(self, a: Tensor, b: Tensor) -> Tensor:
        """Distances between places `(m, n_dims)` and `(k, n_dims)` -> `(m, k)`.

        Great-circle km where the grid has a latitude and a longitude; else Euclidean in the units of the coordinates,
        the shorter way round along periodic dimensions. Scalar fields are all at distance 0.

        Raises:
            SpaceMismatch: positions of another width, or coordinates whose units cannot be added.
        """
        width = len(self.position_names)
        if a.shape[-1] != width or b.shape[-1] != width:
            raise SpaceMismatch(
                f"positions have {a.shape[-1]} and {b.shape[-1]} columns; expected {self.position_names}"
            )
        units = {self.coords[name].units for name in self.position_names[2 * (self.spherical is not None) :]}
        if len(units) + (self.spherical is not None) > 1:
            raise SpaceMismatch(
                f"the coordinates {self.position_names} have different units and no common distance; "
                "make the levels channels (channel_dims=...) or give the coordinates one unit"
            )
        if self.spherical is not None:
            return great_circle(a, b)
        return flat_distance(a, b, tuple(self._period(dim) if dim in self.periodic else None for dim in self.grid))

    def cell_weights(self) -> Tensor:
        """Relative areas of the grid cells, float64 of the grid's shape, mean 1 over it, for means over the domain.

        Cosine of a 1-D latitude; computed cell areas for 2-D latitudes and longitudes; 1 on a plane.
        """
        weights = np.ones(self.grid_shape)
        if self.spherical is not None:
            latitude, longitude = (self.coords[name] for name in self.spherical)
            areas = np.cos(np.deg2rad(latitude.numbers)).clip(0)
            if len(latitude.dims) == 2:
                turned = longitude.numbers if longitude.dims == latitude.dims else longitude.numbers.T
                areas = cell_areas(latitude.numbers, turned)
            weights = weights * self._on_grid(areas, latitude.dims)
        return torch.from_numpy(np.ascontiguousarray(weights / weights.mean()))

    # ---------------------------------------------------------------------------------------------- identity

    def to_json(self) -> str:
        """The Space as JSON text, exact; for the header of a checkpoint."""
        return json.dumps(
            {
                "fields": [entry.to_dict() for entry in self.fields],
                "coords": {name: coordinate.to_dict() for name, coordinate in self.coords.items()},
                "periodic": list(self.periodic),
                "mask": None if self.mask is None else encode_array(self.mask),
                "channel_dims": list(self.channel_dims),
            }
        )

    @classmethod
    def from_json(cls, text: str, *, transforms: dict[str, type] | None = None) -> Space:
        """Rebuild a Space; `transforms` gives the classes of transforms that are not built in."""
        entry = json.loads(text)
        return cls(
            tuple(Field.from_dict(one, transforms) for one in entry["fields"]),
            {name: Coordinate.from_dict(one) for name, one in entry["coords"].items()},
            tuple(entry["periodic"]),
            None if entry["mask"] is None else decode_array(entry["mask"]),
            tuple(entry["channel_dims"]),
        )

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Space) and self.to_json() == other.to_json()

    def __hash__(self) -> int:
        return hash((self.fields, self.event_shape, self.periodic))

    def __repr__(self) -> str:
        fields = ", ".join(f"{entry.name} [{entry.units}]" for entry in self.fields)
        grid = ", ".join(f"{dim}={size}" for dim, size in zip(self.grid, self.grid_shape, strict=True))
        masked = "" if self.mask is None else f", {int(self.mask.sum())} no-data values"
        around = f", periodic in {', '.join(self.periodic)}" if self.periodic else ""
        return f"Space({fields}; event {self.event_shape}{'; ' + grid if grid else ''}{around}{masked})"

    # ---------------------------------------------------------------------------------------------- inside

    def channel_names(self, entry: Field) -> tuple[str, ...]:
        """Names of the channels of one field."""
        inner = [self.coords[dim].values for dim in entry.dims if dim not in self.grid]
        if not inner:
            return (entry.name,)
        sizes = [range(values.size) for values in inner]
        grids = np.meshgrid(*sizes, indexing="ij")
        rows = zip(*(values[index.ravel()] for values, index in zip(inner, grids, strict=True)), strict=True)
        return tuple(f"{entry.name}[{', '.join(str(value) for value in row)}]" for row in rows)

    def _period(self, dim: str) -> float:
        """The length after which a dimension repeats: number of cells times their spacing."""
        if dim not in self.coords:
            raise ValueError(f"periodic dimension {dim!r} is not a dimension of this Space")
        numbers = self.coords[dim].numbers
        steps = np.diff(numbers)
        if steps.size == 0 or not np.allclose(steps, steps[0], rtol=1e-3, atol=0.0):
            raise ValueError(f"periodic dimension {dim!r} must have an evenly spaced coordinate")
        return float(abs(numbers[-1] - numbers[0]) * numbers.size / (numbers.size - 1))

    def _on_grid(self, values: np.ndarray, dims: tuple[str, ...]) -> np.ndarray:
        """Values over some grid dimensions, broadcast to the grid."""
        order = [dims.index(dim) for dim in self.grid if dim in dims]
        shape = [size if dim in dims else 1 for dim, size in zip(self.grid, self.grid_shape, strict=True)]
        return np.broadcast_to(np.transpose(values, order).reshape(shape), self.grid_shape)

    @cached_property
    def _positions(self) -> Tensor:
        columns = [self._on_grid(self.coords[n].numbers, self.coords[n].dims).ravel() for n in self.position_names]
        flat = np.stack(columns, -1) if columns else np.zeros((1, 0))
        return torch.from_numpy(np.ascontiguousarray(flat, dtype=np.float64))


def _coordinate(name: str, value: Any) -> Coordinate:
    if isinstance(value, Coordinate):
        return value
    if isinstance(value, int):
        return Coordinate.count(name, value)
    return Coordinate(np.asarray(value), (name,))
