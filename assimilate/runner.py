"""Methods on Datasets: `run` one over a window of observations, or `stream` the observations as they come.

    analysis = run(EnKF(Lorenz63()), observations, likelihood=likelihood, members=50, seed=1)

    analyses = stream(EnKF(Lorenz63()), likelihood=likelihood, members=50, seed=1)
    analysis = analyses.send(observations_of_now)

Both give the same numbers: analysis k draws from `Streams(seed, E, N).at(k)`. Observations may be dask-backed and
larger than memory; they are read one chunk of times at a time. What a result looks like: `assimilate.results`.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import xarray as xr
from torch import Tensor

from assimilate import cycle as engine
from assimilate.clock import Clock
from assimilate.cycle import Cycle, LikelihoodOrRule, Method
from assimilate.devices import device_in_words, find_device
from assimilate.errors import UserError
from assimilate.filters.base import Filter
from assimilate.results import Slice, to_dataset
from assimilate.smoothers.base import Smoother
from dynamics.random import Streams

BLOCK_BYTES = 64 * 2**20
"""Members of about this size are turned into a Dataset (and scored, and stored) at a time."""


@dataclass(frozen=True)
class Settings:
    """Settings that `run` and `stream` share; see `run` for what they mean."""

    likelihood: LikelihoodOrRule | None
    members: int = 64
    seed: int = 0
    initial: xr.Dataset | Tensor | None = None
    initial_std: float | tuple[float, ...] | None = None
    start: Any = None
    first: int = 0
    time_unit: str = "h"
    dtype: torch.dtype = torch.float32
    device: str | torch.device = "cpu"


def run(
    method: Method,
    observations: xr.Dataset,
    *,
    likelihood: LikelihoodOrRule | None,
    members: int = 64,
    seed: int = 0,
    initial: xr.Dataset | Tensor | None = None,
    initial_std: float | tuple[float, ...] | None = None,
    start: Any = None,
    first: int = 0,
    time_unit: str = "h",
    dtype: torch.dtype = torch.float32,
    device: str | torch.device = "cpu",
    keep: int | None = None,
    each: Callable[[xr.Dataset], None] | None = None,
    progress: Callable[[int], None] | None = None,
    path: str | Path | None = None,
) -> xr.Dataset:
    """Assimilate a window of observations.

    Args:
        method: a filter, baseline or smoother; its Space is that of the result.
        observations: variables with a `time` dim, (experiment, time, *obs), in Space units; NaN is not observed. May be
            dask-backed: time is read chunk by chunk.
        likelihood: operator and noise; or a function that gives them for the observations of one time, when places or
            instruments change; None assimilates nothing.
        members: ensemble size N.
        seed: of all random numbers; row (experiment, member) keeps its numbers when others are added.
        initial: None draws members from the dynamics' prior; a Dataset without `member` is one known state; a Dataset
            with it is the ensemble (an earlier analysis, to go on from). Tensors (E, N, *event) serve too. A Dataset of
            several times holds the states up to the start: the last one is it, those before are the past of methods
            that look at several states.
        initial_std: noise added to `initial`, standard deviation in Space units, one number or one per channel.
        start: time of the initial ensemble; default: the `time` of `initial`, else the first observation's.
        first: index of the first analysis; with `initial` an earlier analysis, the number of analyses already done.
        time_unit: what 1.0 of `dynamics.dt` means where times are dates: "s", "min", "h" or "D".
        dtype: float32 or float64.
        device: "cpu", "cuda"...
        keep: members stored in the result (equally likely ones); default all.
        each: called with every finished part of the result, all members in it; this is where scores are made.
        progress: called with the index of each finished analysis.
        path: netCDF file to which the parts are appended as they come, instead of being held in memory; the result is
            then that file, opened lazily.

    Returns:
        The analysis; see `assimilate.results`. Attributes: method, seed, members, seconds, device, version.

    Raises:
        UserError: the observations do not fit the likelihood, times do not increase, the device is not there.
        Diverged: members became NaN or infinite.
    """
    settings = Settings(likelihood, members, seed, initial, initial_std, start, first, time_unit, dtype, device)
    observations = engine.with_time(observations)
    setup, state, began = _begin(method, observations, settings)
    many = "experiment" in observations.dims or setup.streams.rows[0] > 1
    held: list[Slice] = []
    seconds = 0.0
    sink = _Sink(setup, many, keep, each, path)
    if isinstance(method, Smoother):
        held, seconds = engine.smooth(setup, state, began, observations.load())
        sink.waiting.append(observations["time"])
        sink.flush(held)
        return sink.result(_provenance(method, settings, seconds))
    for indices in engine.blocks(observations):
        block = observations.isel(time=indices).load()
        step = max(1, block.sizes["time"] // 64) if path is None else 1
        for begin in range(0, block.sizes["time"], step):
            part = block.isel(time=slice(begin, begin + step))
            state, slices, spent = engine.analyse(setup, state, part, first + indices.start + begin, progress)
            seconds += spent
            held += slices
            sink.waiting.append(part["time"])
            if sum(s.nbytes for s in held) >= BLOCK_BYTES:
                sink.flush(held)
                held = []
    if held:
        sink.flush(held)
    return sink.result(_provenance(method, settings, seconds))


def stream(
    method: Method,
    *,
    likelihood: LikelihoodOrRule | None,
    members: int = 64,
    seed: int = 0,
    initial: xr.Dataset | Tensor | None = None,
    initial_std: float | tuple[float, ...] | None = None,
    start: Any = None,
    first: int = 0,
    time_unit: str = "h",
    dtype: torch.dtype = torch.float32,
    device: str | torch.device = "cpu",
) -> Generator[xr.Dataset, xr.Dataset, None]:
    """Live assimilation: `send` the observations of one or more new times, get their analysis.

    Send a Dataset with only a `time` coordinate for a forecast to that time. Arguments and results are those of `run`,
    and so are the numbers.
    """
    settings = Settings(likelihood, members, seed, initial, initial_std, start, first, time_unit, dtype, device)
    analyses = _analyses(method, settings)
    next(analyses)
    return analyses


def _analyses(method: Method, settings: Settings) -> Generator[xr.Dataset, xr.Dataset, None]:
    received = engine.with_time((yield xr.Dataset()))
    if isinstance(method, Smoother):
        raise UserError(f"{method.name} needs the whole window of observations: use run, not stream")
    setup, state, _ = _begin(method, received, settings)
    many = "experiment" in received.dims or setup.streams.rows[0] > 1
    index, seconds = settings.first, 0.0
    while True:
        state, slices, spent = engine.analyse(setup, state, received.load(), index)
        index, seconds = index + len(slices), seconds + spent
        about = _provenance(method, settings, seconds)
        last = received["time"][-1]
        answer = to_dataset(setup.space, slices, received["time"], experiments=many, attrs=about)
        received = engine.with_time((yield answer))
        if not bool(received["time"][0] > last):
            raise UserError(f"observations of {received['time'].values[0]} came after those of {last.values}")


def _begin(method: Method, observations: xr.Dataset, settings: Settings) -> tuple[Cycle, Any, float]:
    """The cycle, the state before the first analysis and its time.

    The state of a baseline is None, that of a smoother the known first state or None.
    """
    initial, earlier = settings.initial, None
    if isinstance(initial, xr.Dataset) and "time" in initial.dims:
        # Newest first, as methods keep their past.
        earlier = initial.isel(time=slice(None, -1)).isel(time=slice(None, None, -1))
        initial = initial.isel(time=-1)
    experiments = observations.sizes.get("experiment", 1)
    if isinstance(initial, xr.Dataset):
        experiments = max(experiments, initial.sizes.get("experiment", 1))
    elif isinstance(initial, Tensor):
        experiments = max(experiments, initial.shape[0])
    start = settings.start
    if start is None:
        start = observations["time"][0]
        if isinstance(initial, xr.Dataset) and "time" in initial.coords and initial["time"].ndim == 0:
            start = initial["time"]
    clock = Clock.of(xr.DataArray(start), settings.time_unit)
    began, first_time = (float(clock.numbers(t)[0]) for t in (xr.DataArray(start), observations["time"][0]))
    if first_time < began:
        raise UserError(f"the first observation is at time {first_time}, before the start of the ensemble at {began}")
    setup = Cycle(
        method,
        engine.space_of(method),
        settings.likelihood,
        Streams(settings.seed, experiments, settings.members),
        clock,
        settings.dtype,
        find_device(settings.device),
    )
    if isinstance(method, Filter):
        states, log_weights = engine.prepare_ensemble(setup, initial, settings.initial_std)
        past = None if earlier is None else engine.prepare_past(setup, earlier)
        return setup, engine.initial_state(setup, states, log_weights, began, past), began
    if isinstance(method, Smoother) and initial is not None:
        if settings.initial_std is not None:
            raise UserError(f"{method.name} takes a first state that is known or from the prior, not a perturbed one")
        states, _ = engine.prepare_ensemble(replace(setup, streams=Streams(0, experiments, 1)), initial, None)
        return setup, states[:, 0], began
    return setup, None, began


class _Sink:
    """Where finished parts of a result go: a list, or the end of a file."""

    def __init__(
        self,
        setup: Cycle,
        many: bool,
        keep: int | None,
        each: Callable[[xr.Dataset], None] | None,
        path: str | Path | None,
    ) -> None:
        self.setup, self.many, self.keep, self.each = setup, many, keep, each
        self.path = None if path is None else Path(path)
        self.parts: list[xr.Dataset] = []
        self.waiting: list[xr.DataArray] = []
        self.written = 0

    def flush(self, slices: list[Slice]) -> None:
        times = xr.concat(self.waiting, "time")
        self.waiting = []
        if self.each is not None:
            self.each(to_dataset(self.setup.space, slices, times, experiments=self.many))
        # A file's variables are fixed by its first part, so weights are stored from the start.
        weighted = self.path is not None
        part = to_dataset(self.setup.space, slices, times, experiments=self.many, keep=self.keep, weighted=weighted)
        if self.path is None:
            self.parts.append(part)
        else:
            from assimilate.storage import append

            append(part, self.path, new=self.written == 0)
            self.written += part.sizes["time"]

    def result(self, attrs: dict[str, Any]) -> xr.Dataset:
        if self.path is not None:
            return xr.open_dataset(self.path, chunks={"time": 1}).assign_attrs(attrs)
        return joined(self.parts).assign_attrs(attrs)


def joined(parts: list[xr.Dataset]) -> xr.Dataset:
    """Parts of a result as one along time; parts without weights have equal ones."""
    if len(parts) == 1:
        return parts[0]
    if any("log_weights" in p for p in parts):
        weighted = next(p for p in parts if "log_weights" in p)["log_weights"]
        parts = [p if "log_weights" in p else p.assign(log_weights=_equal_weights(p, weighted)) for p in parts]
    return xr.concat(parts, "time", data_vars="minimal", coords="minimal", compat="override", join="override")


def _equal_weights(part: xr.Dataset, like: xr.DataArray) -> xr.DataArray:
    import numpy as np

    sizes = {d: part.sizes[d] for d in like.dims}
    return xr.DataArray(np.full(tuple(sizes.values()), -np.log(sizes["member"]), like.dtype), dims=like.dims)


def _provenance(method: Any, settings: Settings, seconds: float) -> dict[str, Any]:
    from assimilate import __version__

    return {
        "method": repr(method),
        "seed": settings.seed,
        "members": settings.members,
        "seconds": round(seconds, 4),
        "device": device_in_words(find_device(settings.device)),
        "dtype": str(settings.dtype).removeprefix("torch."),
        "version": f"assimilate-da {__version__}, torch {torch.__version__}",
    }
