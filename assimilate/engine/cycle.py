"""The assimilation cycle on tensors: observations in, one `Slice` per time out.

    filter      state_k, info_k = method.step(state_{k-1}, observation_k, t_k, rng=streams.at(k))
    baseline    estimate_k = method.estimate(observation_k, t_k)
    smoother    trajectories, info = method.solve(observations, times, N, rng=streams.at(0))

A `Cycle` holds the settings that stay the same; `assimilate.engine.analyses` moves a state over a block of times.
Nothing is hidden in between, so `run` and `stream` are the same computation, and a run stopped at step k goes on from
its state with `first = k`.

Shapes: E experiments, N members; members (E, N, *event), observed values (E, 1, *obs).
"""

from __future__ import annotations

import math
import time as wall_clock
from collections.abc import Callable
from dataclasses import dataclass
from numbers import Integral
from typing import Any

import numpy as np
import torch
import xarray as xr
from torch import Tensor

from assimilate.baselines.base import Baseline
from assimilate.engine.clock import Clock, check_increasing
from assimilate.engine.inspection import Inspection, Looked
from assimilate.engine.network import Network, check_order, flat_values, rows_of_grid
from assimilate.engine.results import Slice, slice_of
from assimilate.errors import UserError
from assimilate.filters.base import Filter
from assimilate.posterior.weights import log_normalize
from assimilate.smoothers.base import Smoother
from dynamics.random import Streams, normal
from dynamics.space import Space
from observations.likelihood import Likelihood, Observation

LikelihoodOrRule = Likelihood | Callable[[xr.Dataset], Likelihood]
"""One likelihood for all times, or a function that gives that of a time from its observations Dataset."""
Method = Filter[Any] | Baseline | Smoother
INITIAL_STEP = 0xFFFFFFFF
"""The step index whose random numbers draw the initial ensemble."""


@dataclass(frozen=True)
class Cycle:
    """What stays the same from one analysis to the next.

    Args:
        method: a filter, baseline or smoother.
        space: of its state.
        likelihood: see `LikelihoodOrRule`; None for a method that gets no observations.
        streams: random numbers of all rows; analysis k uses `streams.at(k)`.
        clock: turns times into floats.
        dtype: of all tensors.
        device: of all tensors.
        inspection: checks of the observed values, and feedback; None: the method just makes its step.
    """

    method: Method
    space: Space
    likelihood: LikelihoodOrRule | None
    streams: Streams
    clock: Clock
    dtype: torch.dtype
    device: torch.device
    inspection: Inspection | None = None

    def __post_init__(self) -> None:
        """Check what a person may have given; random numbers would silently take the nearest seed."""
        seed, (_, members) = self.streams.seed, (self.streams.experiments, self.streams.members)
        if isinstance(seed, bool) or not isinstance(seed, Integral):
            raise UserError(f"seed is {seed!r}; expected a whole number")
        if not isinstance(members, tuple | range) and (not isinstance(members, Integral) or members < 1):
            raise UserError(f"members is {members!r}; expected a whole number of 1 or more")
        if self.dtype not in (torch.float32, torch.float64):
            raise UserError(f"dtype is {self.dtype!r}; expected torch.float32 or torch.float64")


def space_of(method: Method) -> Space:
    """The Space of a method's result: its own, or that of its dynamics or prior.

    Raises:
        UserError: the object is no filter, baseline or smoother.
    """
    if not isinstance(method, Filter | Baseline | Smoother):
        raise UserError(
            f"{type(method).__name__} is no method: expected a filter (init, step, ensemble), a baseline (estimate) or "
            "a smoother (solve), with a name and an exactness"
        )
    if isinstance(method, Filter):
        return method.dynamics.space
    for holder in (method, *(getattr(method, name, None) for name in ("dynamics", "prior"))):
        found = getattr(holder, "space", None)
        if isinstance(found, Space):
            return found
    raise UserError(f"{method.name} has neither a space nor dynamics; a method says in which Space its result is")


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
    place: dict[str, Any] = {"dtype": cycle.dtype, "device": cycle.device}
    if initial is None:
        if std is not None:
            raise UserError("an initial std needs an initial state to which noise is added")
        assert isinstance(cycle.method, Filter)
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
    elif isinstance(initial, Tensor):
        states = initial.to(**place)
    else:
        raise UserError(f"the initial state is a {type(initial).__name__}; expected a Dataset or a tensor")
    if tuple(states.shape[states.ndim - len(event) :]) != event:
        raise UserError(
            f"the initial state has shape {tuple(states.shape)}; expected (experiment, member, {str(event)[1:]}"
        )
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
        scales = np.atleast_1d(np.asarray(std))
        good = scales.dtype.kind in "fiu" and bool(((scales >= 0) & np.isfinite(scales)).all())
        if not good or scales.shape not in ((1,), event[:1]):
            raise UserError(
                f"initial_std is {std!r}; expected a standard deviation of 0 or more in Space units, one number or one "
                f"for each of the {event[0]} channels"
            )
        scale = torch.as_tensor(std, **place).reshape(-1, *[1] * (len(event) - 1))
        states = states + scale * normal(rng, (experiments, members, *event), **place)
    return states, log_weights


def prepare_past(cycle: Cycle, earlier: xr.Dataset) -> Tensor:
    """Known states before the start, `(E, N, h, *event)`, in the order of their times in the Dataset."""
    experiments, members = cycle.streams.rows
    event = cycle.space.event_shape
    states = cycle.space.to_tensor(earlier, dtype=cycle.dtype, device=cycle.device)
    if "member" not in earlier.dims:
        states = states.unsqueeze(1 if "experiment" in earlier.dims else 0)
    if "experiment" not in earlier.dims:
        states = states.unsqueeze(0)
    return states.expand(experiments, members, -1, *event).clone()


def initial_state(
    cycle: Cycle, members: Tensor, log_weights: Tensor | None, time: float, past: Tensor | None = None
) -> Any:
    """A filter's state before the first analysis.

    Args:
        cycle: gives the method.
        members: `(E, N, *event)`.
        log_weights: of weighted members.
        time: of the members.
        past: states before them, newest first, `(E, N, h, *event)`; for methods that keep a past, no matter to others.
    """
    assert isinstance(cycle.method, Filter)
    state = cycle.method.init(members, time)
    fields = getattr(state, "_fields", ())
    if past is not None and "past" in fields:
        state = state._replace(past=past)
    if log_weights is None:
        return state
    if "log_weights" not in fields:
        raise UserError(f"{cycle.method.name} cannot start from weighted members")
    return state._replace(log_weights=log_weights)


def smooth(cycle: Cycle, initial: Tensor | None, start: float, observations: xr.Dataset) -> tuple[list[Slice], float]:
    """A whole window at once: one `Slice` for each observation time, and the seconds it took.

    A smoother gets every time of its own step from `start` on; those without observations as None. `initial` is the
    known state (E, *event) at `start`, or None.
    """
    assert isinstance(cycle.method, Smoother)
    dt = float(next(h.dt for n in ("dynamics", "prior") if (h := getattr(cycle.method, n, None)) is not None))
    wanted = cycle.clock.numbers(observations["time"])
    count = round((wanted[-1] - start) / dt)
    grid = start + dt * np.arange(count + 1)
    places = np.abs(grid[None] - wanted[:, None]).argmin(1)
    if np.abs(grid[places] - wanted).max() > 1e-4 * dt:
        raise UserError(f"{cycle.method.name} has states every {dt:g}; observations lie in between")
    window: list[Observation | None] = [None] * len(grid)
    for index, place in enumerate(places):
        window[place] = observation_of(cycle, observations.isel(time=index))
    began = wall_clock.perf_counter()
    with torch.no_grad():
        drawn, info = cycle.method.solve(
            window, grid.tolist(), cycle.streams.rows[1], rng=cycle.streams.at(0), initial=initial
        )
    seconds = since(cycle, began)
    known = bool(torch.isfinite(info.log_evidence).all())
    slices = []
    for index, place in enumerate(places):
        evidence = info.log_evidence if index == len(places) - 1 else torch.zeros_like(info.log_evidence)
        one = slice_of(drawn[:, :, place], None, ess=info.ess, log_evidence=evidence if known else None)
        if info.mean is not None:
            one = one._replace(mean=info.mean[:, place].to(cycle.dtype))
        if info.std is not None:
            one = one._replace(std=info.std[:, place].to(cycle.dtype))
        slices.append(one)
    return slices, seconds


def since(cycle: Cycle, began: float) -> float:
    """Seconds from `began` until the device has done its work."""
    if cycle.device.type == "cuda":
        torch.cuda.synchronize(cycle.device)
    return wall_clock.perf_counter() - began


def observation_of(cycle: Cycle, now: xr.Dataset) -> Observation | None:
    """The observation of one time; None where nothing is to be assimilated (no variable, or all NaN).

    Raises:
        UserError: the number of values is not that of the operator, or a value is infinite.
    """
    now = _seen(cycle, now)
    if not now.data_vars:
        return None
    observation = _observation(cycle, now)
    return None if bool(torch.isnan(observation.y).all()) else observation


def looked_at(cycle: Cycle, now: xr.Dataset) -> Looked | None:
    """The observation of one time, all NaN or not, and what is known of its values; None where there is no variable."""
    now = _seen(cycle, now)
    if not now.data_vars:
        return None
    observation = _observation(cycle, now)
    if isinstance(cycle.likelihood, Network):
        return Looked(observation, cycle.likelihood.rows(now), now["time"].values[()])
    counts = [array.sizes.get("experiment", 1) for array in now.data_vars.values()]
    sizes = [array.size // count for array, count in zip(now.data_vars.values(), counts, strict=True)]
    name = np.repeat([str(n) for n in now.data_vars], sizes)
    rows = rows_of_grid(flat_values(now), observation.likelihood, cycle.space, now["time"].values, name)
    return Looked(observation, rows, now["time"].values[()])


def _seen(cycle: Cycle, now: xr.Dataset) -> xr.Dataset:
    """The Dataset of one time without what is not there; empty for a method that gets no observations."""
    if cycle.likelihood is None:
        return now[[]]
    return cycle.likelihood.seen(now) if isinstance(cycle.likelihood, Network) and now.data_vars else now


def _observation(cycle: Cycle, now: xr.Dataset) -> Observation:
    assert cycle.likelihood is not None
    likelihood = cycle.likelihood if isinstance(cycle.likelihood, Likelihood) else cycle.likelihood(now)
    if not isinstance(likelihood, Likelihood):
        raise UserError(f"the function for the likelihood gave a {type(likelihood).__name__}; expected a Likelihood")
    y = values_of(now, likelihood, cycle.streams.rows[0])
    return Observation(likelihood, y.to(dtype=cycle.dtype, device=cycle.device))


def values_of(now: xr.Dataset, likelihood: Likelihood, experiments: int) -> Tensor:
    """Observed values (E, 1, *obs), or (*obs) where all experiments see the same, from the Dataset of one time.

    All variables of the Dataset that vary with the observations are taken, one after another, in C order of their dims.
    """
    shape = likelihood.operator.obs_shape
    shared = not any("experiment" in array.dims for array in now.data_vars.values())
    y = flat_values(now)
    rows = len(y)
    if y.shape[1] != math.prod(shape):
        raise UserError(
            f"one time of the observations has {y.shape[1]} values, {likelihood.operator!r} has {math.prod(shape)}"
        )
    if np.isinf(y).any():
        raise UserError("the observations hold an infinite value; NaN means not observed")
    tensor = torch.from_numpy(np.ascontiguousarray(y))
    if shared:
        return tensor.reshape(shape)
    if rows not in (1, experiments):
        raise UserError(f"the observations have {rows} experiments, the ensemble has {experiments}")
    return tensor.reshape(rows, 1, *shape)


def check_values(observations: xr.Dataset, likelihood: LikelihoodOrRule) -> None:
    """Check what can be known of all values before the first analysis, without reading what lies in dask chunks.

    Raises:
        UserError: values that are no numbers, infinite ones, not as many at a time as the operator has, or in another
            order of the grid's dims.
    """
    arrays = observations.data_vars
    for name, array in arrays.items():
        if array.dtype.kind not in "fiub":
            raise UserError(f"the observations '{name}' are of type {array.dtype}; expected numbers, NaN: not observed")
        if array.chunks is None and np.isinf(array.values).any():
            raise UserError(f"the observations '{name}' hold an infinite value; NaN means not observed")
    if isinstance(likelihood, Likelihood) and arrays:
        if isinstance(likelihood.operator.space, Space):
            check_order(observations, likelihood.operator.space, "the observations")
        apart = ("time", "experiment")
        count = sum(math.prod(n for d, n in array.sizes.items() if d not in apart) for array in arrays.values())
        if count != likelihood.operator.obs_size:
            raise UserError(
                f"one time of the observations has {count} values, {likelihood.operator!r} has "
                f"{likelihood.operator.obs_size}"
            )


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
