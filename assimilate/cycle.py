"""The assimilation cycle on tensors: observations in, one `Slice` per time out.

    state_k, info_k = method.step(state_{k-1}, observation_k, t_k, rng=streams.at(k))

`prepare` turns what the user gave (Datasets, laws, a seed) into a `Cycle`, the settings that stay the same, and an
initial state; `analyse` moves the state over a block of times. Nothing is hidden in between, so `run` and `stream`
are the same computation, and a run stopped at step k goes on from its state with `first = k`.

Shapes: E experiments, N members; members (E, N, *event), observed values (E, 1, *obs).
"""

from __future__ import annotations

import math
import time as wall_clock
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import xarray as xr
from torch import Tensor

from assimilate.clock import Clock, check_increasing
from assimilate.errors import UserError
from assimilate.filters.base import Filter, FilterState, Info
from assimilate.posterior.weights import log_normalize
from assimilate.results import Slice, moments, slice_of
from dynamics.random import Streams, normal
from dynamics.space import Space
from observations.likelihood import Likelihood, Observation

LikelihoodOrRule = Likelihood | Callable[[xr.Dataset], Likelihood]
"""One likelihood for all times, or a function that gives that of a time from its observations Dataset."""
INITIAL_STEP = 0xFFFFFFFF
"""The step index whose random numbers draw the initial ensemble."""


@dataclass(frozen=True)
class Cycle:
    """What stays the same from one analysis to the next.

    Args:
        method: the filter.
        space: of its state.
        likelihood: see `LikelihoodOrRule`; None for a method that gets no observations.
        streams: random numbers of all rows; analysis k uses `streams.at(k)`.
        clock: turns times into floats.
        dtype: of all tensors.
        device: of all tensors.
    """

    method: Filter[Any]
    space: Space
    likelihood: LikelihoodOrRule | None
    streams: Streams
    clock: Clock
    dtype: torch.dtype
    device: torch.device


def prepare_ensemble(
    cycle: Cycle, initial: xr.Dataset | Tensor | None, std: float | tuple[float, ...] | None
) -> tuple[Tensor, Tensor | None]:
    """Initial members (E, N, *event) and their log weights (None: equal).

    Args:
        cycle: gives the rows, the Space and the random numbers.
        initial: None draws from the dynamics' prior; a Dataset or tensor without members is one known state for all;
            with members it is the ensemble (and its `log_weights`).
        std: standard deviation, in Space units, of noise that is added to `initial`; one number or one per channel.
    """
    experiments, members = cycle.streams.rows
    rng = cycle.streams.at(INITIAL_STEP)
    event = cycle.space.event_shape
    place = {"dtype": cycle.dtype, "device": cycle.device}
    if initial is None:
        if std is not None:
            raise UserError("an initial std needs an initial state to which noise is added")
        return cycle.method.dynamics.prior((experiments, members), rng=rng, **place), None
    log_weights = None
    if isinstance(initial, xr.Dataset):
        states = cycle.space.to_tensor(initial, **place)
        if "member" not in initial.dims:
            states = states.unsqueeze(1 if "experiment" in initial.dims else 0)
        if "experiment" not in initial.dims:
            states = states.unsqueeze(0)
        if "log_weights" in initial:
            log_weights = torch.as_tensor(initial["log_weights"].values, **place).reshape(states.shape[:2])
            log_weights = log_normalize(log_weights)[0]
    else:
        states = initial.to(**place)
    lead = tuple(states.shape[: states.ndim - len(event)])
    if len(lead) != 2 or lead[0] not in (1, experiments) or lead[1] not in (1, members):
        raise UserError(
            f"the initial state has {lead} (experiment, member) rows; expected 1 or {experiments} experiments and "
            f"1 or {members} members"
        )
    states = states.expand(experiments, members, *event).clone()
    if log_weights is not None:
        log_weights = log_weights.expand(experiments, members).clone()
    if std is not None:
        scale = torch.as_tensor(std, **place).reshape(-1, *[1] * (len(event) - 1))
        states = states + scale * normal(rng, (experiments, members, *event), **place)
    return states, log_weights


def initial_state(cycle: Cycle, members: Tensor, log_weights: Tensor | None, time: float) -> Any:
    """The method's state before the first analysis."""
    state = cycle.method.init(members, time)
    if log_weights is None:
        return state
    if not isinstance(state, FilterState):
        raise UserError(f"{cycle.method.name} cannot start from weighted members")
    return state._replace(log_weights=log_weights)


def analyse(
    cycle: Cycle, state: Any, block: xr.Dataset, first: int, progress: Callable[[int], None] | None = None
) -> tuple[Any, list[Slice], float]:
    """Forecast and analysis for each time of a block.

    Args:
        cycle: the settings.
        state: of the method, before the block.
        block: observations with a `time` dim, in memory; without variables the block is a forecast.
        first: index of the block's first analysis.
        progress: called with the index of each finished analysis.

    Returns:
        The state after the block, one `Slice` per time, and the seconds spent in the method.
    """
    slices: list[Slice] = []
    seconds = 0.0
    for offset, time in enumerate(cycle.clock.numbers(block["time"])):
        now = block.isel(time=offset)
        observation = observation_of(cycle, now)
        began = wall_clock.perf_counter()
        with torch.no_grad():
            state, info = cycle.method.step(state, observation, float(time), rng=cycle.streams.at(first + offset))
        if cycle.device.type == "cuda":
            torch.cuda.synchronize(cycle.device)
        seconds += wall_clock.perf_counter() - began
        slices.append(_slice(cycle, state, info))
        if progress is not None:
            progress(first + offset)
    return state, slices, seconds


def _slice(cycle: Cycle, state: Any, info: Info) -> Slice:
    members, log_weights = cycle.method.ensemble(state)
    background_mean, background_std = moments(info.background, info.background_log_weights)
    return slice_of(
        members,
        log_weights,
        background_mean=background_mean,
        background_std=background_std,
        log_evidence=info.log_evidence,
        ess=info.ess,
    )


def observation_of(cycle: Cycle, now: xr.Dataset) -> Observation | None:
    """The observation of one time; None where nothing is to be assimilated (no variable, or all NaN).

    Raises:
        UserError: the number of values is not that of the operator, or a value is infinite.
    """
    if cycle.likelihood is None or not now.data_vars:
        return None
    likelihood = cycle.likelihood if isinstance(cycle.likelihood, Likelihood) else cycle.likelihood(now)
    y = values_of(now, likelihood, cycle.streams.rows[0])
    if bool(torch.isnan(y).all()):
        return None
    return Observation(likelihood, y.to(dtype=cycle.dtype, device=cycle.device))


def values_of(now: xr.Dataset, likelihood: Likelihood, experiments: int) -> Tensor:
    """Observed values (E, 1, *obs), or (*obs) where all experiments see the same, from the Dataset of one time.

    All variables of the Dataset that vary with the observations are taken, one after another, in C order of their dims.
    """
    shape = likelihood.operator.obs_shape
    parts, shared = [], True
    for array in now.data_vars.values():
        if "experiment" in array.dims:
            shared = False
            values = array.transpose("experiment", ...).values.reshape(array.sizes["experiment"], -1)
        else:
            values = array.values.reshape(1, -1)
        parts.append(values.astype(np.float64))
    rows = max(len(p) for p in parts)
    y = np.concatenate([np.broadcast_to(p, (rows, p.shape[1])) for p in parts], axis=1)
    if y.shape[1] != math.prod(shape):
        raise UserError(
            f"one time of the observations has {y.shape[1]} values, the operator {likelihood.operator!r} has {math.prod(shape)}"
        )
    if np.isinf(y).any():
        raise UserError("the observations hold an infinite value; NaN means not observed")
    tensor = torch.from_numpy(np.ascontiguousarray(y))
    if shared:
        return tensor.reshape(shape)
    if rows not in (1, experiments):
        raise UserError(f"the observations have {rows} experiments, the ensemble has {experiments}")
    return tensor.reshape(rows, 1, *shape)


def blocks(observations: xr.Dataset) -> list[slice]:
    """Index ranges along time in which observations are read: their dask chunks, or everything at once."""
    chunks = observations.chunksizes.get("time") if observations.chunks else None
    count = observations.sizes["time"]
    if not chunks:
        return [slice(0, count)]
    ends = np.cumsum(chunks)
    return [slice(int(end - size), int(end)) for size, end in zip(chunks, ends, strict=True)]


def with_time(observations: xr.Dataset) -> xr.Dataset:
    """Observations with a `time` dim (added to those of one time), their times checked.

    Raises:
        UserError: no time, or times that do not increase.
    """
    if "time" not in observations.coords:
        raise UserError(f"observations have no 'time' coordinate; they have {sorted(map(str, observations.coords))}")
    if "time" not in observations.dims:
        observations = observations.expand_dims("time")
    try:
        check_increasing(observations["time"], "observations")
    except ValueError as error:
        raise UserError(str(error)) from None
    return observations
