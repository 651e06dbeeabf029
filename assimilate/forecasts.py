"""Forecasts started from analyses, and their scores by lead time.

    x(t + l) ~ p(. | x_n(t)),    n = 1..N members of the analysis at t

    ahead = forecast(Lorenz63(), analysis.isel(time=slice(None, None, 10)), leads=[0.5, 1.0, 2.0])
    skill = forecast_scores(ahead, truth)              # rmse, crps, spread_skill... with a dim lead_time

Dims are those of the forecast archives: `time` is when a forecast starts, `lead_time` how far it looks, `valid_time`
(time, lead_time) when it is for.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
import xarray as xr

from assimilate.devices import find_device
from assimilate.engine.clock import Clock, places_in
from assimilate.engine.cycle import with_time
from assimilate.errors import UserError
from assimilate.verification.statistics import Scoring, scores, statistics
from dynamics.base import Dynamics, advance
from dynamics.random import Streams
from dynamics.space import Space


def forecast(
    dynamics: Dynamics,
    analysis: xr.Dataset,
    leads: Sequence[float],
    *,
    seed: int = 0,
    time_unit: str = "h",
    dtype: torch.dtype = torch.float32,
    device: str | torch.device = "cpu",
) -> xr.Dataset:
    """Let every member of every analysis run on.

    Args:
        dynamics: the model, the one that assimilated or another on the same Space.
        analysis: what `run` returned, with a `member` dim; choose the starts with `isel` or `sel`.
        leads: how far ahead, in the unit of `dynamics.dt`, increasing; 0 is the analysis itself.
        seed: of the model noise; row (experiment, member) of start k keeps its numbers when others are added.
        time_unit: what 1.0 of `dynamics.dt` means where times are dates.
        dtype: float32 or float64.
        device: "cpu", "cuda"...

    Returns:
        The fields with dims (experiment, member, time, lead_time, *grid), `log_weights` where the analysis has them,
        and the coordinates `lead_time` and `valid_time`.

    Raises:
        UserError: no members, or leads that do not increase from 0 on or are no whole number of steps.
        FloatingPointError: a forecast is no longer finite.
    """
    if "member" not in analysis.dims:
        raise UserError(
            "forecasts start from members, and the analysis has no `member` dim; its own mean is none of them"
        )
    steps = np.asarray(leads, dtype=np.float64).reshape(-1)
    if steps.size == 0 or steps[0] < 0 or (np.diff(steps) <= 0).any():
        raise UserError(f"leads are {list(leads)}; expected increasing numbers from 0 on")
    analysis = with_time(analysis)
    space, clock, place = dynamics.space, Clock.of(analysis["time"], time_unit), find_device(device)
    streams = Streams(seed, analysis.sizes.get("experiment", 1), analysis.sizes["member"])
    parts = []
    for index, start in enumerate(clock.numbers(analysis["time"])):
        x = space.to_tensor(analysis.isel(time=index), dtype=dtype, device=place)
        x = x if "experiment" in analysis.dims else x.unsqueeze(0)
        parts.append(_run_on(dynamics, x, float(start), steps, streams.at(index)))
    found = torch.stack(parts, 2)
    lead = _lead_times(steps, clock)
    lead_time = xr.DataArray(lead, dims="lead_time", attrs={"long_name": "time since the start of the forecast"})
    dims = ("experiment", "member", "time", "lead_time")
    some = slice(None) if "experiment" in analysis.dims else slice(1, None)
    out = space.to_dataset(
        found if "experiment" in analysis.dims else found[0],
        dims[some],
        {"time": analysis["time"], "lead_time": lead_time},
        {"dynamics": repr(dynamics), "seed": seed},
    )
    out = out.assign_coords(valid_time=out["time"] + out["lead_time"])
    return out.assign(log_weights=analysis["log_weights"]) if "log_weights" in analysis else out


def forecast_scores(
    forecasts: xr.Dataset, truth: xr.Dataset, *, space: Space | None = None, scoring: Scoring | None = None
) -> xr.Dataset:
    """Scores of forecasts by lead time.

    Args:
        forecasts: what `forecast` returned.
        truth: states at the times that forecasts are for; those it does not have are left out.
        space: the state's Space, for its transforms and no-data cells; default: that of the truth.
        scoring: normalisation, thresholds; see `assimilate.verification.statistics`, and there also what each score is.

    Returns:
        One variable a score, dims (lead_time), and `forecasts`, how many starts are behind it; NaN where it is 0.
    """
    rows: list[dict[str, float]] = []
    for index in range(forecasts.sizes["lead_time"]):
        ahead = forecasts.isel(lead_time=index)
        places, known = places_in(ahead["valid_time"].values, truth["time"].values)
        ahead = ahead.isel(time=known).drop_vars(["lead_time", "valid_time"])
        ahead = ahead.assign_coords(time=truth["time"].values[places[known]])
        count = ahead.sizes["time"]
        found = scores(statistics(ahead, truth, space=space, scoring=scoring), scoring) if count else {}
        rows.append({**found, "forecasts": count})
    names = list(dict.fromkeys(name for row in rows for name in row))
    variables = {name: ("lead_time", [row.get(name, np.nan) for row in rows]) for name in names}
    return xr.Dataset(variables, {"lead_time": forecasts["lead_time"]})


def _run_on(dynamics: Dynamics, x: torch.Tensor, start: float, leads: np.ndarray, rng: Streams) -> torch.Tensor:
    """States at all leads, `(E, N, lead, *event)`."""
    now, states = start, []
    for lead in leads:
        try:
            with torch.no_grad():
                x = advance(dynamics, x, now, start + float(lead), rng=rng)
        except ValueError as error:
            raise UserError(f"lead {lead:g}: {error}") from None
        now = start + float(lead)
        if not bool(torch.isfinite(x).all()):
            raise FloatingPointError(f"the forecast from time {start:g} is not finite at lead {lead:g}")
        states.append(x.cpu())
    return torch.stack(states, 2)


def _lead_times(leads: np.ndarray, clock: Clock) -> np.ndarray:
    if clock.origin is None:
        return leads
    return (leads * clock.one.astype(np.int64)).round().astype("timedelta64[ns]")
