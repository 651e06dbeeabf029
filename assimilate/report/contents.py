"""What a report is made of: the result file as Python values."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr

from assimilate.errors import UserError

RESERVED = ("truth", "observations", "scores")


@dataclass(frozen=True)
class Entry:
    """One method of the result.

    Args:
        label: what it is called.
        analysis: its Dataset.
    """

    label: str
    analysis: xr.Dataset

    def field(self, name: str, what: str) -> xr.DataArray | None:
        """The "mean", "std", "background_mean"... of a field, or None."""
        key = f"{name}_{what}"
        return self.analysis.get(key)


@dataclass(frozen=True)
class Contents:
    """A whole result.

    Args:
        path: the result file.
        attrs: title, description, source, card, seed, units...
        truth: None where there is none.
        observations: as given to the methods.
        entries: methods in the order of the card.
        scores: the table, dims (label, score), or None.
    """

    path: Path
    attrs: dict[str, Any]
    truth: xr.Dataset | None
    observations: xr.Dataset
    entries: list[Entry]
    scores: xr.Dataset | None

    @property
    def fields(self) -> list[str]:
        """Names of the state's fields."""
        if self.truth is not None:
            return [str(n) for n in self.truth.data_vars]
        names = [str(n) for e in self.entries for n in e.analysis.data_vars]
        return list(
            dict.fromkeys(n.removesuffix("_mean") for n in names if n.endswith("_mean") and "_background" not in n)
        )

    @property
    def times(self) -> np.ndarray:
        """Times of the analyses."""
        return self.entries[0].analysis["time"].values if self.entries else self.observations["time"].values

    def decoded(self, key: str, default: Any) -> Any:
        """An attribute that holds JSON."""
        return json.loads(self.attrs[key]) if key in self.attrs else default


def read(path: Path) -> Contents:
    """Read a result file, or the `result.nc` of a folder.

    Raises:
        UserError: it is not there, or is not a result of `assimilate run`.
    """
    file = path / "result.nc" if path.is_dir() else path
    if not file.is_file():
        raise UserError(f"there is no result at '{path}'; expected a result.nc of `assimilate run`, or its folder")
    try:
        tree = xr.open_datatree(file)
    except (OSError, ValueError) as error:
        raise UserError(f"'{file}' cannot be read as a result: {error}") from error
    with tree:
        if "observations" not in tree.children:
            raise UserError(f"'{file}' is not a result of `assimilate run`: it has no group 'observations'")
        groups = {name: node.to_dataset().load() for name, node in tree.children.items()}
        attrs = {str(k): v for k, v in tree.attrs.items()}
    order = {label: k for k, label in enumerate(json.loads(attrs.get("labels", "[]")))}
    entries = [Entry(str(d.attrs.get("label", name)), d) for name, d in groups.items() if name not in RESERVED]
    entries.sort(key=lambda e: order.get(e.label, len(order)))
    return Contents(file, attrs, groups.get("truth"), groups["observations"], entries, groups.get("scores"))


def first(array: xr.DataArray) -> xr.DataArray:
    """The first experiment, where there are several."""
    return array.isel(experiment=0) if "experiment" in array.dims else array


def time_text(value: Any, units: str = "") -> str:
    """A time for people: a date to the minute, or a number."""
    if np.issubdtype(np.asarray(value).dtype, np.datetime64):
        return str(np.datetime_as_string(value, unit="m")).replace("T", " ") + " UTC"
    return f"t = {float(value):g}{' ' + units if units else ''}"
