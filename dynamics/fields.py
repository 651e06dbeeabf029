"""Field and Coordinate: one variable of a state and one axis of its grid, with their CF labels."""

from __future__ import annotations

import base64
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from dynamics.labels import is_latitude, is_longitude
from dynamics.transforms import Identity, Transform, transform_from_dict, transform_to_dict

_PLAIN_VALUES = 64
"""Arrays up to this size are readable numbers in JSON; longer ones are compressed bytes, exact to the last bit."""


@dataclass(frozen=True)
class Field:
    """One variable of the state.

    Args:
        name: the variable's name in a Dataset.
        units: its units there (CF spelling; "1" for a dimensionless one).
        dims: names of its grid dimensions, in the order of the grid; none for a scalar such as a Lorenz-63 component.
        long_name: a phrase for axes and legends.
        standard_name: the CF standard name, if there is one.
        transform: map from `units` to what a tensor holds (None = `Identity()`).
        attrs: further attributes to write with the variable.
    """

    name: str
    units: str = "1"
    dims: tuple[str, ...] = ()
    long_name: str = ""
    standard_name: str = ""
    transform: Transform = field(default_factory=Identity)
    attrs: Mapping[str, Any] = field(default_factory=dict, hash=False)

    def __post_init__(self) -> None:
        """Normalise `dims` to a tuple and a missing transform to the identity."""
        object.__setattr__(self, "dims", (self.dims,) if isinstance(self.dims, str) else tuple(self.dims))
        if self.transform is None:
            object.__setattr__(self, "transform", Identity())

    @property
    def attributes(self) -> dict[str, Any]:
        """The attributes of the variable in a Dataset."""
        return {**self.attrs, **_named(self)}

    def to_dict(self) -> dict[str, Any]:
        """The JSON form."""
        return {
            "name": self.name,
            "units": self.units,
            "dims": list(self.dims),
            "long_name": self.long_name,
            "standard_name": self.standard_name,
            "transform": transform_to_dict(self.transform),
            "attrs": {key: _plain(value) for key, value in self.attrs.items()},
        }

    @classmethod
    def from_dict(cls, entry: dict[str, Any], transforms: dict[str, type] | None = None) -> Field:
        """Rebuild from the JSON form."""
        return cls(
            **{**entry, "dims": tuple(entry["dims"]), "transform": transform_from_dict(entry["transform"], transforms)}
        )


@dataclass(frozen=True, eq=False)
class Coordinate:
    """The values of a dimension, or an auxiliary coordinate such as a 2-D latitude.

    Args:
        values: numbers, datetimes or strings; one axis per entry of `dims`.
        dims: dimensions it runs over. A dimension coordinate runs over itself.
        units: CF units.
        standard_name: CF standard name.
        long_name: a phrase for axes.
        counted: True for a dimension without coordinate in the data: the values count cells and are not written.
    """

    values: np.ndarray
    dims: tuple[str, ...]
    units: str = ""
    standard_name: str = ""
    long_name: str = ""
    counted: bool = False

    def __post_init__(self) -> None:
        """Check that labels are text and that the values have one axis per dimension."""
        for name in ("units", "standard_name", "long_name"):
            if not isinstance(getattr(self, name), str):
                raise TypeError(f"{name}={getattr(self, name)!r}; expected text")
        values = np.array(self.values)
        values.setflags(write=False)
        object.__setattr__(self, "values", values)
        object.__setattr__(self, "dims", tuple(self.dims))
        if values.ndim != len(self.dims):
            raise ValueError(f"a coordinate of {values.ndim} axes was given for the dimensions {self.dims}")

    @classmethod
    def count(cls, dim: str, size: int) -> Coordinate:
        """The cell numbers 0 .. size - 1 of a dimension that has no coordinate."""
        return cls(np.arange(size, dtype=np.float64), (dim,), counted=True)

    @property
    def attributes(self) -> dict[str, str]:
        """The attributes of the coordinate in a Dataset."""
        return _named(self)

    @property
    def latitude(self) -> bool:
        """Whether this is a latitude."""
        return is_latitude({"units": self.units, "standard_name": self.standard_name})

    @property
    def longitude(self) -> bool:
        """Whether this is a longitude."""
        return is_longitude({"units": self.units, "standard_name": self.standard_name})

    @property
    def numbers(self) -> np.ndarray:
        """The values as float64; datetimes as seconds since the first one.

        Raises:
            ValueError: the values are text.
        """
        if np.issubdtype(self.values.dtype, np.datetime64):
            return np.asarray((self.values - self.values.flat[0]) / np.timedelta64(1, "s"), dtype=np.float64)
        if self.values.dtype.kind not in "fiu":
            raise ValueError(f"coordinate over {self.dims} holds {self.values.dtype} values and has no distances")
        return self.values.astype(np.float64)

    @property
    def tolerance(self) -> float:
        """How far values may be off and still count as equal: a thousandth of the closest spacing (float32 files)."""
        numbers = self.numbers
        gaps = [np.abs(np.diff(numbers, axis=axis)) for axis in range(numbers.ndim) if numbers.shape[axis] > 1]
        gaps = [gap[gap > 0] for gap in gaps]
        smallest = min((float(gap.min()) for gap in gaps if gap.size), default=0.0)
        return 1e-3 * smallest if smallest else 1e-6 * max(1.0, float(np.abs(numbers).max(initial=0.0)))

    def to_dict(self) -> dict[str, Any]:
        """The JSON form."""
        labels = {"units": self.units, "standard_name": self.standard_name, "long_name": self.long_name}
        return {"values": encode_array(self.values), "dims": list(self.dims), **labels, "counted": self.counted}

    @classmethod
    def from_dict(cls, entry: dict[str, Any]) -> Coordinate:
        """Rebuild from the JSON form."""
        return cls(**{**entry, "values": decode_array(entry["values"]), "dims": tuple(entry["dims"])})


def encode_array(values: np.ndarray) -> dict[str, Any]:
    """An array as JSON: exact, readable when short."""
    values = np.ascontiguousarray(values)
    if values.dtype.kind == "O":
        values = values.astype(str)
    head = {"dtype": values.dtype.str, "shape": list(values.shape)}
    if values.size <= _PLAIN_VALUES and values.dtype.kind in "fiubU":
        return {**head, "values": values.ravel().tolist()}
    return {**head, "zlib": base64.b64encode(zlib.compress(values.tobytes(), 9)).decode("ascii")}


def decode_array(entry: dict[str, Any]) -> np.ndarray:
    """The inverse of `encode_array`."""
    dtype, shape = np.dtype(entry["dtype"]), tuple(entry["shape"])
    if "values" in entry:
        return np.array(entry["values"], dtype=dtype).reshape(shape)
    return np.frombuffer(zlib.decompress(base64.b64decode(entry["zlib"])), dtype=dtype).reshape(shape)


def _named(labelled: Field | Coordinate) -> dict[str, str]:
    labels = {name: getattr(labelled, name) for name in ("units", "long_name", "standard_name")}
    return {name: value for name, value in labels.items() if value}


def _plain(value: Any) -> Any:
    """An attribute value as JSON can hold it."""
    if isinstance(value, np.ndarray | np.generic):
        return value.tolist()
    return value if isinstance(value, str | int | float | bool | list | type(None)) else str(value)
