r"""Feedback: every observed value beside what the method made of it, as a table.

    feedback = Feedback()
    run(method, instruments, feedback=feedback, ...)
    table = feedback.table()            value, error, flag, background_mean, background_std, analysis_mean, analysis_std

One row a value, `(location)`, or `(experiment, location)` where there are several experiments; coords are those of
`observations.tables`, and `analysis_time`, the time of the analysis that used the row. Means and deviations are over
the members, of H(x) in units of the observed values; the deviation of the noise is not in them. Rows without an
analysis (outside the grid, in no window) come last. `assimilate.engine.flags` says what the flags mean.

The background of a method that makes no forecast (FlowDAS) is NaN, unless a background check makes one.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr

from assimilate.engine.flags import MISSING, NAMES, OUTSIDE
from dynamics.space import Space

if TYPE_CHECKING:
    from assimilate.engine.network import Rows

COLUMNS = ("background_mean", "background_std", "analysis_mean", "analysis_std")
_LABELS = {
    "value": "observed value",
    "error": "standard deviation of the observation error",
    "background_mean": "mean of H(x) over the forecast",
    "background_std": "standard deviation of H(x) over the forecast",
    "analysis_mean": "mean of H(x) over the analysis",
    "analysis_std": "standard deviation of H(x) over the analysis",
}


class Feedback:
    """Collects the observed values of a run and their counterparts; give it to `run` and read it afterwards.

    It is held in memory: six numbers for each value and experiment.
    """

    def __init__(self) -> None:
        self._space: Space | None = None
        self._many = False
        self._parts: list[tuple[Rows, Any, dict[str, np.ndarray]]] = []
        self._outside: list[Rows] = []

    def begin(self, space: Space, many: bool, outside: list[Rows]) -> None:
        """A run starts: what it held is forgotten.

        Args:
            space: of the state.
            many: whether there is an `experiment` dim.
            outside: rows that no analysis has.
        """
        self._space, self._many, self._outside, self._parts = space, many, outside, []

    def add(
        self, rows: Rows, when: Any, found: dict[str, np.ndarray], alive: tuple[int, ...], experiments: int
    ) -> None:
        """The values of one analysis.

        Args:
            rows: about the values.
            when: time of the analysis.
            found: arrays `(len(alive), m)` and `(len(alive),)`.
            alive: experiments that they are of; the others have diverged.
            experiments: number of all.
        """
        if len(alive) < experiments:
            found = {n: _spread(v, alive, experiments, OUTSIDE if n == "flags" else np.nan) for n, v in found.items()}
        self._parts.append((rows, when, found))

    def table(self) -> xr.Dataset:
        """One row a value; see the module.

        Raises:
            ValueError: no run has filled it.
        """
        space = self._space
        if space is None or not (self._parts or self._outside):
            raise ValueError("this feedback holds nothing; give it to run(..., feedback=...) first")
        experiments = max([1, *(f["flags"].shape[0] for _, _, f in self._parts)])
        pieces: dict[str, list[np.ndarray]] = {}

        def put(name: str, values: np.ndarray) -> None:
            pieces.setdefault(name, []).append(values)

        lost = np.datetime64("NaT") if self._parts and isinstance(self._parts[0][1], np.datetime64) else np.nan
        every = [*self._parts, *((rows, lost, None) for rows in self._outside)]
        for rows, when, found in every:
            size = rows.error.size
            shape = (experiments, size)
            flags = np.full(shape, OUTSIDE) if found is None else found["flags"]
            kept = rows.listed | ~(flags == MISSING).all(0)
            put("value", np.broadcast_to(rows.value, shape)[:, kept])
            put("error", rows.error[kept])
            put("flag", flags[:, kept])
            for name in COLUMNS:
                put(name, np.full(shape, np.nan)[:, kept] if found is None else found[name][:, kept])
            put("analysis_time", np.full(int(kept.sum()), when))
            for name in ("time", "places", "variable", "instrument", "station"):
                put(name, getattr(rows, name)[kept])
        by_experiment = ("value", "flag", *COLUMNS)
        whole = {name: np.concatenate(arrays, 1 if name in by_experiment else 0) for name, arrays in pieces.items()}
        return self._labelled(space, whole)

    def beside(self, analysis: xr.Dataset) -> xr.Dataset:
        """An analysis with the table in it, every name led by "feedback_"."""
        table = self.table().reset_coords()
        names = {str(n): f"feedback_{n}" for n in table.data_vars}
        return analysis.assign(table.rename(names).data_vars)

    def innovations(self) -> xr.Dataset:
        """`chi_square` and `rejected` of each analysis, `(time)` or `(experiment, time)`.

        `chi_square` is d^T (HBH^T + R)^-1 d / m over the m values that were used, with the full HBH^T of the members;
        1 is expected where background and noise are what they are taken to be.
        """
        times = np.array([when for _, when, _ in self._parts])
        dims = ("experiment", "time") if self._many else ("time",)
        held = {}
        for name, label in (("chi_square", "normalised innovation chi-square"), ("rejected", "values rejected")):
            values = np.stack([found[name] for _, _, found in self._parts], 1)
            held[name] = (dims, values if self._many else values[0], {"long_name": label, "units": "1"})
        return xr.Dataset(held, {"time": times})

    def _labelled(self, space: Space, whole: dict[str, np.ndarray]) -> xr.Dataset:
        dims = ("experiment", "location") if self._many else ("location",)
        table = xr.Dataset()
        for name in ("value", "error", *COLUMNS):
            values = whole[name]
            row = name == "error"
            table[name] = (("location",) if row else dims, values if row or self._many else values[0])
            table[name].attrs["long_name"] = _LABELS[name]
        flags = whole["flag"].astype(np.int8)
        table["flag"] = (dims, flags if self._many else flags[0])
        table["flag"].attrs = {
            "long_name": "what became of the value",
            "flag_values": np.array(list(NAMES), dtype=np.int8),
            "flag_meanings": " ".join(name.replace(" ", "_") for name in NAMES.values()),
        }
        coords: dict[str, Any] = {n: ("location", whole[n]) for n in ("time", "analysis_time", "instrument")}
        for axis, name in enumerate(space.position_names):
            if bool(np.isfinite(whole["places"][:, axis]).any()):
                coords[name] = ("location", whole["places"][:, axis], space.coords[name].attributes)
        for name in ("variable", "station"):
            if bool((whole[name] != "").any()):
                coords[name] = ("location", whole[name])
        return table.assign_coords(coords).assign_attrs(featureType="point")


def to_ioda(table: xr.Dataset) -> xr.DataTree:
    """Feedback (or any table of observations) as groups MetaData, ObsValue, hofx, ombg, oman, EffectiveQC."""
    from observations.ioda import to_groups

    return to_groups(table)


def _spread(values: np.ndarray, alive: tuple[int, ...], experiments: int, fill: float) -> np.ndarray:
    out = np.full((experiments, *values.shape[1:]), fill, dtype=values.dtype)
    out[list(alive)] = values
    return out
