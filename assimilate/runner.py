"""Methods on Datasets: `run` one over a window of observations, or `stream` the observations as they come.

    analysis = run(EnKF(Lorenz63()), observations, likelihood=likelihood, members=50, seed=1)

    analyses = stream(EnKF(Lorenz63()), likelihood=likelihood, members=50, seed=1)
    analysis = analyses.send(observations_of_now)

Both give the same numbers: analysis k draws from `Streams(seed, E, N).at(k)`. Observations may be dask-backed and
larger than memory; they are read one chunk of times at a time. What a result looks like: `assimilate.engine.results`.

    run(..., out="analysis.nc", resume=True)

writes the result to a file and, whenever it was killed, goes on from its last checkpoint: `assimilate.engine.restart`.
An experiment that diverges is recorded and the others go on: `assimilate.engine.divergence`.
"""

from __future__ import annotations

import time as wall_clock
from collections.abc import Callable, Generator
from dataclasses import dataclass, replace
from itertools import repeat
from pathlib import Path
from typing import Any, Literal

import torch
import xarray as xr
from torch import Tensor

from assimilate.devices import device_in_words, find_device
from assimilate.engine import cycle as engine
from assimilate.engine.analyses import analyse
from assimilate.engine.clock import Clock
from assimilate.engine.cycle import Cycle, LikelihoodOrRule, Method
from assimilate.engine.delivery import Delivery, opened
from assimilate.engine.divergence import OnDivergence, Running, recorded
from assimilate.engine.fingerprints import chained, digest, fixed_part, hash_of, mark, marks_of_all, to_text
from assimilate.engine.inspection import Inspection
from assimilate.engine.intake import Given, begin_feedback, check_arguments, take_in
from assimilate.engine.restart import PARTS, Journal, Reached
from assimilate.engine.results import to_dataset
from assimilate.errors import UserError
from assimilate.feedback import Feedback
from assimilate.filters.base import Filter
from assimilate.quality import Quality
from assimilate.schedule import Schedule
from assimilate.smoothers.base import Smoother
from dynamics.random import Streams

CHECKPOINT_SECONDS = 60.0
"""A run that writes to a file makes a checkpoint after each part, and when the last one is this old."""


@dataclass(frozen=True)
class Settings:
    """Settings that `run` and `stream` share; see `run` for what they mean."""

    likelihood: LikelihoodOrRule | Literal["own"] | None
    members: int = 64
    seed: int = 0
    initial: xr.Dataset | Tensor | None = None
    initial_std: float | tuple[float, ...] | None = None
    start: Any = None
    first: int = 0
    time_unit: str = "h"
    dtype: torch.dtype = torch.float32
    device: str | torch.device = "cpu"
    on_divergence: OnDivergence = "record"
    inspection: Inspection | None = None


def run(
    method: Method,
    observations: Given,
    *,
    likelihood: LikelihoodOrRule | Literal["own"] | None = "own",
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
    on_divergence: OnDivergence = "record",
    schedule: Schedule | str = "exact",
    quality: Quality | None = None,
    feedback: Feedback | None = None,
    out: str | Path | None = None,
    resume: bool = False,
    overwrite: bool = False,
    checkpoint_every: int | None = None,
) -> xr.Dataset:
    """Assimilate a window of observations.

    Args:
        method: a filter, baseline or smoother; its Space is that of the result.
        observations: variables with a `time` dim, (experiment, time, *obs), in Space units; NaN is not observed. May be
            dask-backed: time is read chunk by chunk. Or instruments, one or several, or a table of points
            (`observations.instruments`), whose likelihoods are their own.
        likelihood: operator and noise; or a function that gives them for the observations of one time, when places or
            instruments change; None assimilates nothing; "own" (default): that of the instruments.
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
        each: called with every finished part of the result, all members in it; this is where scores are made. A run
            that goes on shows it the earlier parts again.
        progress: called with the index of each finished analysis.
        on_divergence: "record" (default): experiments of a filter that diverge are NaN from then on and named in
            `diverged_at`, with a `DivergenceWarning`; the others go on. "raise": `Diverged` ends the run.
        schedule: when analyses are made: "exact" (default), "nearest", "substep" or windows; `assimilate.schedule`.
        quality: checks of the observed values, for all or by instrument; `assimilate.quality`. The result then has
            `rejected` and `chi_square`. Baselines and smoothers take gross limits only.
        feedback: is filled with every observed value, its flag and its counterparts; filters only; in memory, so that a
            run that uses it cannot be resumed. See `assimilate.feedback`.
        out: netCDF file (.nc) or Zarr store (.zarr) for the result, which is then opened lazily. It appears when it is
            whole; until then what is finished lies in a folder beside it, see `assimilate.engine.restart`.
        resume: go on with the unfinished run in that folder, bit for bit as if it had never stopped; begin where there
            is none; return the file where it is finished. Observations may have grown by later times meanwhile.
        overwrite: begin anew; what is at `out` stays until the new result is whole.
        checkpoint_every: analyses between two checkpoints; default: one minute (and after each part of 64 MiB).

    Returns:
        The analysis; see `assimilate.engine.results`. Attributes: method, seed, members, seconds, device, version; with
        `out` also `fingerprint`, the marks by which a run is known again.

    Raises:
        UserError: the observations do not fit the likelihood, times do not increase, the device is not there; `out` is
            there already, or of a run with other settings (the message names them).
        Diverged: with on_divergence="raise", members became NaN or infinite. Smoothers always raise.
    """
    check_arguments(
        on_divergence, first, out=out, resume=resume, overwrite=overwrite, checkpoint_every=checkpoint_every,
        feedback=feedback,
    )  # fmt: skip
    method, observations, likelihood, start, inspection = take_in(
        method, observations, likelihood, schedule=schedule, quality=quality, feedback=feedback, initial=initial,
        start=start, time_unit=time_unit,
    )  # fmt: skip
    settings = Settings(
        likelihood, members, seed, initial, initial_std, start, first, time_unit, dtype, device, on_divergence,
        inspection,
    )  # fmt: skip
    journal = None if out is None else Journal(out)
    setup, state, began = _begin(method, observations, settings)
    many = "experiment" in observations.dims or setup.streams.rows[0] > 1
    begin_feedback(setup, many)
    sink = Delivery(setup, observations["time"], many=many, keep=keep, each=each, journal=journal)
    reached = Reached(Running(state, tuple(range(setup.streams.rows[0]))))
    marks: dict[str, str] = {}
    if journal is not None:
        marks = _marks(setup, settings, began, sink, observations)
        journal.begin(resume=resume, overwrite=overwrite)
        if journal.finished(marks, observations):
            finished = opened(journal)
            sink.show_again(finished)
            journal.clear()
            return finished
        if not isinstance(method, Smoother):
            reached = journal.reached(marks, observations, setup.device) or reached
            sink.go_on(reached)
    try:
        if isinstance(method, Smoother):
            reached = _smooth(setup, state, began, observations, sink)
        else:
            reached = _filter(setup, settings, observations, reached, sink, marks, progress, checkpoint_every)
    except Exception:
        if journal is not None and not (reached.done or sink.held or sink.parts):
            journal.clear()  # nothing was made, and nothing is left
        raise
    about = _provenance(method, settings, reached.seconds)
    if journal is not None:
        about["fingerprint"] = to_text(marks | marks_of_all(observations, reached.seen))
    return sink.result(about, reached.running.losses)


def _filter(
    setup: Cycle,
    settings: Settings,
    observations: xr.Dataset,
    reached: Reached,
    sink: Delivery,
    marks: dict[str, str],
    progress: Callable[[int], None] | None,
    checkpoint_every: int | None,
) -> Reached:
    """All analyses that are still to be made; everything is flushed."""
    running, done, seconds, seen = reached.running, reached.done, reached.seconds, reached.seen
    journal = sink.journal

    def now() -> Reached:
        return Reached(running, tuple(sink.held), done, sink.parts, sink.weighted, seconds, seen)

    if journal is not None and not done:
        # Says whether the state can be written before anything is computed.
        journal.write(now(), marks)
    written = wall_clock.monotonic()
    for indices in engine.blocks(observations):
        if indices.stop <= done:
            continue
        block = observations.isel(time=slice(max(indices.start, done), indices.stop)).load()
        hashes = repeat("") if journal is None else chained(block, seen)
        steps = analyse(setup, running, block, settings.first + done, progress, on_divergence=settings.on_divergence)
        # The analyses first: at the end of a block it is they that have no next one.
        for (after, one, spent), hashed in zip(steps, hashes, strict=False):
            running, done, seconds, seen = after, done + 1, seconds + spent, hashed
            ended = sink.add(one, running.losses)
            if journal is None:
                continue
            old = wall_clock.monotonic() - written > CHECKPOINT_SECONDS
            if ended or (old if checkpoint_every is None else done % checkpoint_every == 0):
                journal.write(now(), marks)
                written = wall_clock.monotonic()
    if sink.held:
        sink.flush(running.losses)
        if journal is not None:
            journal.write(now(), marks)
    return now()


def _smooth(setup: Cycle, state: Any, began: float, observations: xr.Dataset, sink: Delivery) -> Reached:
    """The whole window at once."""
    window = observations.load()
    slices, seconds = engine.smooth(setup, state, began, window)
    for one in slices:
        sink.add(one, ())
    sink.flush(())
    seen = "" if sink.journal is None else hash_of(window)
    return Reached(Running(None, tuple(range(setup.streams.rows[0]))), seconds=seconds, seen=seen)


def _marks(setup: Cycle, settings: Settings, began: float, sink: Delivery, observations: xr.Dataset) -> dict[str, str]:
    """All that decides the numbers of a run, besides the observed values."""
    origin = "" if setup.clock.origin is None else f" {setup.clock.unit} after {setup.clock.origin}"
    return {
        "method": mark(setup.method),
        "likelihood": mark(setup.likelihood),
        "members": str(settings.members),
        "experiments": str(setup.streams.rows[0]),
        "seed": str(settings.seed),
        "initial": digest(settings.initial),
        "initial_std": str(settings.initial_std),
        "start": f"{began!r}{origin}",
        "first": str(settings.first),
        "quality": str(None if setup.inspection is None else setup.inspection.quality),
        "dtype": str(settings.dtype),
        "device": setup.device.type,
        "keep": str(sink.keep),
        PARTS: "all" if sink.whole_members else "kept",
        "version": _version(),
        "form of the observations": fixed_part(observations),
    }


def stream(
    method: Method,
    *,
    likelihood: LikelihoodOrRule | Literal["own"] | None = "own",
    members: int = 64,
    seed: int = 0,
    initial: xr.Dataset | Tensor | None = None,
    initial_std: float | tuple[float, ...] | None = None,
    start: Any = None,
    first: int = 0,
    time_unit: str = "h",
    dtype: torch.dtype = torch.float32,
    device: str | torch.device = "cpu",
    on_divergence: OnDivergence = "record",
) -> Generator[xr.Dataset, xr.Dataset, None]:
    """Live assimilation: `send` the observations of one or more new times, get their analysis.

    Send a Dataset with only a `time` coordinate for a forecast to that time, or instruments, as `run` takes them.
    Arguments and results are those of `run`, and so are the numbers; once an experiment has diverged, every answer has
    `diverged_at`.
    """
    settings = Settings(
        likelihood, members, seed, initial, initial_std, start, first, time_unit, dtype, device, on_divergence
    )
    check_arguments(on_divergence, first)
    analyses = _analyses(method, settings)
    next(analyses)
    return analyses


def _analyses(method: Method, settings: Settings) -> Generator[xr.Dataset, xr.Dataset, None]:
    received, likelihood = _received(method, (yield xr.Dataset()), settings)
    if isinstance(method, Smoother):
        raise UserError(f"{method.name} needs the whole window of observations: use run, not stream")
    setup, state, _ = _begin(method, received, replace(settings, likelihood=likelihood))
    many = "experiment" in received.dims or setup.streams.rows[0] > 1
    experiments = setup.streams.rows[0]
    running, index, seconds = Running(state, tuple(range(experiments))), settings.first, 0.0
    while True:
        slices = []
        block = received.load()
        for after, one, spent in analyse(setup, running, block, index, on_divergence=settings.on_divergence):
            running, seconds = after, seconds + spent
            slices.append(one)
        index += len(slices)
        about = _provenance(method, settings, seconds)
        last = received["time"][-1]
        answer = to_dataset(setup.space, slices, received["time"], experiments=many, attrs=about)
        answer = recorded(answer, running.losses, method.name, received["time"], experiments, many)
        received, likelihood = _received(method, (yield answer), settings)
        setup = replace(setup, likelihood=likelihood)
        if not bool(received["time"][0] > last):
            raise UserError(f"observations of {received['time'].values[0]} came after those of {last.values}")


def _received(method: Method, given: Given, settings: Settings) -> tuple[xr.Dataset, LikelihoodOrRule | None]:
    """What was sent, and its likelihood."""
    taken = take_in(method, given, settings.likelihood, time_unit=settings.time_unit)
    return taken.observations, taken.likelihood


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
        None if isinstance(settings.likelihood, str) else settings.likelihood,
        Streams(settings.seed, experiments, settings.members),
        clock,
        settings.dtype,
        find_device(settings.device),
        settings.inspection,
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


def _version() -> str:
    from assimilate import __version__

    return f"assimilate-da {__version__}, torch {torch.__version__}"


def _provenance(method: Any, settings: Settings, seconds: float) -> dict[str, Any]:
    return {
        "method": repr(method),
        "seed": settings.seed,
        "members": settings.members,
        "seconds": round(seconds, 4),
        "device": device_in_words(find_device(settings.device)),
        "dtype": str(settings.dtype).removeprefix("torch."),
        "version": _version(),
    }
