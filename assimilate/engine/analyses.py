"""One analysis after another: the loop of filters and baselines, in which experiments that diverge drop out.

    state_k, info_k = method.step(state_{k-1}, observation_k, t_k, rng=streams.at(k))

What an experiment gets depends neither on the others nor on how often the loop was stopped: analysis k has its own
random numbers, `streams.at(k)`, and states are brought into one form in memory. Seconds are those of the method alone.
"""

from __future__ import annotations

import time as wall_clock
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any, cast

import numpy as np
import torch
import xarray as xr

from assimilate.baselines.base import Baseline
from assimilate.engine.cycle import Cycle, looked_at, observation_of, since
from assimilate.engine.divergence import (
    Loss,
    OnDivergence,
    Running,
    check_mean,
    fields_of,
    missing,
    outlast,
    reason,
    spread_out,
    warn,
)
from assimilate.engine.inspection import Looked, Record, inspected_step, keep
from assimilate.engine.results import Slice, moments, slice_of
from assimilate.engine.states import rows_of, settled
from assimilate.errors import UserError
from assimilate.filters.base import Filter, Info
from dynamics.random import Streams
from observations.likelihood import Observation


def analyse(
    cycle: Cycle,
    running: Running,
    block: xr.Dataset,
    first: int,
    progress: Callable[[int], None] | None = None,
    *,
    on_divergence: OnDivergence = "record",
) -> Iterator[tuple[Running, Slice, float]]:
    """Forecast and analysis for each time of a block, one after another.

    Args:
        cycle: settings.
        running: of the method before the first time of the block.
        block: observations of the block.
        first: index of its first analysis; decides the random numbers.
        progress: called with the index of each finished analysis.
        on_divergence: "record" takes experiments that diverge out and goes on with the others, see
            `assimilate.engine.divergence`; "raise" lets the error through.

    Yields:
        For each time: what the next analysis needs, the analysis, and the seconds spent in the method.

    Raises:
        Diverged: with "raise".
    """
    marks = block["time"].values
    for offset, time in enumerate(cycle.clock.numbers(block["time"])):
        now = block.isel(time=offset)
        looked = None if cycle.inspection is None else looked_at(cycle, now)
        observation = observation_of(cycle, now) if cycle.inspection is None else looked and looked.observation
        mark = marks[offset]
        when = int(mark.astype(np.int64)) if isinstance(mark, np.datetime64) else float(mark)
        with torch.no_grad():
            running, one, seconds = _advance(
                cycle, running, observation, float(time), when, first + offset, on_divergence, looked
            )
        if progress is not None:
            progress(first + offset)
        yield running, one, seconds


def _advance(
    cycle: Cycle,
    running: Running,
    observation: Observation | None,
    time: float,
    when: float | int,
    index: int,
    on_divergence: OnDivergence,
    looked: Looked | None,
) -> tuple[Running, Slice, float]:
    """One analysis of the experiments that go on; what only describes it is outside of the method's time."""
    experiments = cycle.streams.rows[0]
    if isinstance(cycle.method, Baseline):
        began = wall_clock.perf_counter()
        one = _estimate(cycle, observation, time)
        return running, one, since(cycle, began)
    if not running.alive:
        return running, missing(running, cycle), 0.0
    seconds, record = 0.0, cast(Record | None, None)

    def step(rows: tuple[int, ...]) -> tuple[Any, Slice]:
        nonlocal seconds, record
        state, seen, streams = _share(cycle, running, observation, rows)
        assert isinstance(cycle.method, Filter)
        began = wall_clock.perf_counter()
        if cycle.inspection is None:
            state, info = cycle.method.step(state, seen, time, rng=streams.at(index))
        else:
            known = None if looked is None or seen is None else looked._replace(observation=seen)
            state, info, compare = inspected_step(cycle.inspection, cycle.method, state, known, time, streams.at(index))
        seconds += since(cycle, began)
        one = _slice_of_filter(cycle.method, state, info)
        if cycle.inspection is not None:
            record = compare()
            one = one._replace(chi_square=record.chi_square.to(one.mean), rejected=record.rejected.to(one.mean))
        check_mean(one.mean, cycle.method.name, time)
        return settled(state), one

    if on_divergence == "raise":
        state, one = step(tuple(range(experiments)))
        _keep(cycle, looked, record, running.alive)
        return running._replace(state=state), one, seconds
    found, lost, error = outlast(step, len(running.alive))
    if lost:
        losses = tuple(Loss(running.alive[k], when, reason(error)) for k in lost)
        left = tuple(e for k, e in enumerate(running.alive) if k not in lost)
        warn(cycle.method.name, losses, len(left), time)
        running = running._replace(alive=left, losses=running.losses + losses)
    if found is None:
        return running._replace(state=None), missing(running, cycle), seconds
    state, one = found
    running = running._replace(state=state, fields=fields_of(one))
    _keep(cycle, looked, record, running.alive)
    return running, one if running.whole else spread_out(one, running.alive, experiments), seconds


def _keep(cycle: Cycle, looked: Looked | None, record: Record | None, alive: tuple[int, ...]) -> None:
    """Feedback of an analysis that was made."""
    if cycle.inspection is not None and looked is not None and record is not None:
        keep(cycle.inspection, looked, record, alive, cycle.streams.rows[0])


def _share(
    cycle: Cycle, running: Running, observation: Observation | None, rows: tuple[int, ...]
) -> tuple[Any, Observation | None, Streams]:
    """State, observation and random numbers of some of the experiments that go on."""
    streams = cycle.streams
    if running.whole and len(rows) == len(running.alive):
        return running.state, observation, streams
    picks = [running.alive[k] for k in rows]
    if observation is not None and observation.y.ndim > len(observation.likelihood.operator.obs_shape):
        y = observation.y
        observation = observation._replace(y=y[picks] if y.shape[0] == streams.rows[0] else y)
    state = rows_of(running.state, rows, len(running.alive)) if len(rows) < len(running.alive) else running.state
    return state, observation, replace(streams, experiments=tuple(picks))


def _estimate(cycle: Cycle, observation: Observation | None, time: float) -> Slice:
    """The analysis of a baseline."""
    method = cycle.method
    assert isinstance(method, Baseline)
    mean, std = method.estimate(observation, time)
    if not bool(torch.isfinite(mean).all()):
        raise UserError(f"{method.name} has no estimate at time {time:g}: nothing is observed there")
    event = (cycle.streams.rows[0], *cycle.space.event_shape)
    return Slice(mean.to(cycle.dtype).expand(event), None if std is None else std.to(cycle.dtype).expand(event))


def _slice_of_filter(method: Filter[Any], state: Any, info: Info) -> Slice:
    members, log_weights = method.ensemble(state)
    background_mean, background_std = None, None
    if info.background is not None:
        background_mean, background_std = moments(info.background, info.background_log_weights)
    return slice_of(
        members,
        log_weights,
        background_mean=background_mean,
        background_std=background_std,
        log_evidence=info.log_evidence,
        ess=info.ess,
    )
