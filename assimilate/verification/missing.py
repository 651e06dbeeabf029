"""Experiments that diverged, in the scores: left out of them, and counted.

A result that names them (`diverged_at`, see `assimilate.engine.divergence`) is NaN from then on. Its statistics are NaN
there too, and an experiment with such a time is in no score: the mean over the others says what the method does where
it works, `diverged` how often it does not. NaN that no record explains stays an error.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
import xarray as xr

from assimilate.engine.results import moment_space
from dynamics.space import Space


def gone_of(analysis: xr.Dataset) -> xr.DataArray | None:
    """Where a result is missing, (experiment, time) without coordinates; None where it is whole."""
    if "diverged_at" not in analysis:
        return None
    since = analysis["diverged_at"].reset_coords(drop=True).drop_vars("experiment", errors="ignore")
    times = xr.DataArray(np.atleast_1d(analysis["time"].values), dims="time")
    if "time" not in analysis["time"].dims:
        times = times[0]
    gone = times >= since
    return gone if bool(gone.any()) else None


def filled(analysis: xr.Dataset, space: Space, gone: xr.DataArray) -> xr.Dataset:
    """A result with numbers where it is missing, so that it can be computed with; `blanked` takes them out again."""
    names = {f.name: float(f.transform.inverse(torch.zeros((), dtype=torch.float64))) for f in space.fields}
    names |= {f.name: 0.0 for f in moment_space(space, "mean").fields}
    names |= {f.name: 1.0 for f in moment_space(space, "std").fields}
    names["log_weights"] = 0.0
    return analysis.assign({n: analysis[n].where(~gone, value) for n, value in names.items() if n in analysis})


def blanked(statistics: xr.Dataset, gone: xr.DataArray | None) -> xr.Dataset:
    """Statistics with NaN where the result is missing; `weight` stays, it is of the truth."""
    if gone is None:
        return statistics
    dims = set(gone.dims)
    return statistics.assign(
        {n: v.where(~gone) for n, v in statistics.data_vars.items() if n != "weight" and dims <= set(v.dims)}
    )


def missing_experiments(statistics: xr.Dataset) -> list[int]:
    """Numbers of the experiments with a missing time; without an `experiment` dim there is one, number 0."""
    error = statistics["squared_error"].where(statistics["weight"] > 0, 0.0)
    lost = error.isnull().any([d for d in error.dims if d != "experiment"])
    return [int(k) for k in np.flatnonzero(np.atleast_1d(lost.values))]


def present(statistics: xr.Dataset) -> tuple[xr.Dataset | None, list[int]]:
    """Statistics of the experiments that are whole, and the numbers of these; None if there is none."""
    count = statistics.sizes.get("experiment", 1)
    lost = missing_experiments(statistics)
    kept = [k for k in range(count) if k not in lost]
    if not kept:
        return None, kept
    return (statistics.isel(experiment=kept) if lost else statistics), kept


def whole(analysis: xr.Dataset) -> xr.Dataset:
    """A result without the experiments that diverged; unchanged if there is none, or if they are all it has."""
    if "diverged_at" not in analysis or "experiment" not in analysis["diverged_at"].dims:
        return analysis
    kept: Sequence[int] = np.flatnonzero(analysis["diverged_at"].isnull().values).tolist()
    return analysis.isel(experiment=kept) if kept else analysis
