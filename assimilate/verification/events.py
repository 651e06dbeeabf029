"""Events of the critical success index: a field is at least as high as a threshold.

    csi = hits / (hits + misses + false alarms)

The index does not reward the many cells in which nothing was forecast and nothing happened.

References:
    Schaefer (1990), The critical success index as an indicator of warning skill,
    https://doi.org/10.1175/1520-0434(1990)005<0570:TCSIAA>2.0.CO;2
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
import xarray as xr

from dynamics.space import Space


def events(
    mean: xr.DataArray,
    target: xr.DataArray,
    threshold: float,
    space: Space,
    average: Callable[[xr.DataArray], xr.DataArray],
) -> dict[str, xr.DataArray]:
    """Shares of cells that are hits, misses and false alarms for "at least the threshold".

    Args:
        mean: the forecast, Space units, dims (experiment, time, channel, *cells), some absent.
        target: what happened, likewise.
        threshold: in units of the data.
        space: of the state, for its transforms.
        average: mean over the cells.

    Returns:
        `hits_T`, `misses_T` and `false_alarms_T`, T the threshold.
    """
    value = torch.tensor(threshold, dtype=torch.float64)
    per_field = {f.name: float(f.transform.forward(value)) for f in space.fields}
    # Round-off of float32 data must not turn "exactly 1 mm" into "less than 1 mm".
    limits = [per_field[name.partition("[")[0]] * (1.0 - 1e-6) for name in space.channels]
    limit = xr.DataArray(limits, dims="channel")
    forecast, event = mean >= limit, target >= limit
    counts: Mapping[str, xr.DataArray] = {
        "hits": forecast & event,
        "misses": ~forecast & event,
        "false_alarms": forecast & ~event,
    }
    return {f"{name}_{threshold:g}": average(found.astype(float)) for name, found in counts.items()}


def success_index(mean: xr.Dataset, threshold: float) -> float:
    """The index from the shares of `events`, pooled over times; NaN where nothing was forecast and nothing happened."""
    hits, misses, alarms = (float(mean[f"{k}_{threshold:g}"].mean()) for k in ("hits", "misses", "false_alarms"))
    happened = hits + misses + alarms
    return hits / happened if happened else float("nan")
