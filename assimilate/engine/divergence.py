"""Experiments that diverge, in a batch whose others go on.

A filter raises `Diverged` when members are no longer finite or no weight is left. Experiments do not look at each
other, so those that are named are taken out of the state, of the random streams and of the observed values, and the
analysis is made again for the others: its random numbers belong to a step and a row and are the same. In the result
the lost ones are NaN from that time on, and are named:

    diverged_at   (experiment)      time of the first missing analysis; NaN or NaT for those that finished
    attribute `divergence`          the same in words

Nothing is started again and nothing is repaired.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple, TypeVar

import numpy as np
import torch
import xarray as xr
from torch import Tensor

from assimilate.engine.cycle import Cycle
from assimilate.engine.results import MOMENTS, Slice
from assimilate.filters.base import Diverged, DivergenceWarning

OnDivergence = Literal["record", "raise"]
Made = TypeVar("Made")


class Loss(NamedTuple):
    """An experiment that diverged.

    Attributes:
        experiment: its number in the batch.
        when: the time of its first missing analysis: a number, or a date counted in the unit of the time axis.
        why: what was wrong, in words.
    """

    experiment: int
    when: float | int
    why: str


class Running(NamedTuple):
    """A method on its way: all that the next analysis depends on, besides settings and observations.

    Attributes:
        state: the method's own, of the experiments in `alive`; None for a baseline.
        alive: numbers of the experiments that go on, increasing.
        losses: those that do not.
        fields: what an analysis of this method holds; the fields of a `Slice` that are not None.
    """

    state: Any
    alive: tuple[int, ...]
    losses: tuple[Loss, ...] = ()
    fields: tuple[str, ...] = ()

    @property
    def whole(self) -> bool:
        """Whether every experiment goes on."""
        return not self.losses


LOST = (Diverged, torch.linalg.LinAlgError, FloatingPointError)
"""What a step raises that some rows cannot make: theirs are not the settings, which are the same for all."""


def outlast(
    step: Callable[[tuple[int, ...]], Made], count: int
) -> tuple[Made | None, tuple[int, ...], Exception | None]:
    """Make a step for as many rows as can make it.

    Args:
        step: makes the step for the given rows, or raises one of `LOST`: `Diverged`, or the error of a factorisation or
            a minimisation that failed.
        count: number of rows.

    Returns:
        What `step` returned (None: no row is left), the rows that are lost, and the first error.

    Raises:
        Exception: that of `step`, if every row can make the step alone.
    """
    rows, first = tuple(range(count)), None
    while rows:
        try:
            return step(rows), tuple(r for r in range(count) if r not in rows), first
        except LOST as error:
            lost = _lost(step, rows, error)
            if not lost:
                raise
            first = first or error
            rows = tuple(r for r in rows if r not in lost)
    return None, tuple(range(count)), first


def _lost(step: Callable[[tuple[int, ...]], Any], rows: tuple[int, ...], error: Exception) -> set[int]:
    """The rows behind an error: those that it names, or those that fail in smaller and smaller groups."""
    named = error.experiments if isinstance(error, Diverged) else ()
    if named:
        return {rows[k] for k in named}
    if len(rows) == 1:
        return set(rows)
    lost: set[int] = set()
    for part in (rows[: len(rows) // 2], rows[len(rows) // 2 :]):
        try:
            step(part)
        except LOST as again:
            lost |= _lost(step, part, again)
    return lost


def check_mean(mean: Tensor, method: str, time: float) -> None:
    """Raise `Diverged` for a method that returned an analysis `(E, *event)` that is not finite, and said nothing."""
    if bool(torch.isfinite(mean.sum())):
        return
    lost = (~torch.isfinite(mean)).flatten(1).any(-1).nonzero().flatten().tolist()
    if lost:
        raise Diverged(method, time, time, f"the analysis of experiment(s) {lost} is not finite", lost)


def spread_out(one: Slice, alive: Sequence[int], experiments: int) -> Slice:
    """The analysis of some experiments as that of all, NaN for the others."""

    def full(part: Tensor | None) -> Tensor | None:
        if part is None:
            return None
        out = part.new_full((experiments, *part.shape[1:]), torch.nan)
        out[list(alive)] = part
        return out

    return Slice._make(full(part) for part in one)


def missing(running: Running, cycle: Cycle) -> Slice:
    """The analysis of nobody: NaN in the fields that the method's analyses have had."""
    (experiments, members), event = cycle.streams.rows, cycle.space.event_shape
    shapes = {"members": (experiments, members, *event)} | {name: (experiments, *event) for name in MOMENTS}
    usual = ("mean", *(("std",) if members > 1 else ()), "members", "log_evidence", "ess")
    like = torch.empty(0, dtype=cycle.dtype, device=cycle.device)
    held = [name for name in running.fields or usual if name != "log_weights"]
    return Slice(**{name: like.new_full(shapes.get(name, (experiments,)), torch.nan) for name in held})


def fields_of(one: Slice) -> tuple[str, ...]:
    """What an analysis holds."""
    return tuple(name for name, part in zip(Slice._fields, one, strict=True) if part is not None)


def reason(error: Exception | None) -> str:
    """What was wrong, without the numbers of experiments: they count the rows of a part of the batch."""
    if isinstance(error, torch.linalg.LinAlgError):
        return f"{str(error).partition(':')[0]} failed"
    what = re.sub(r" of (experiment|row)\(s\) \[.*?\]+", "", str(error).split("): ", 1)[-1])
    return re.split(r"; | \(", what)[0]


def warn(method: str, losses: Sequence[Loss], left: int, time: float) -> None:
    """Say that experiments are lost."""
    numbers = [loss.experiment for loss in losses]
    rest = f"the other {left} go on" if left else "none is left"
    warnings.warn(
        f"{method}: {_experiments(numbers)} diverged at time {time:g} ({losses[0].why}) and "
        f"{'is' if len(numbers) == 1 else 'are'} missing from then on; {rest}",
        DivergenceWarning,
        stacklevel=2,
    )


def recorded(
    dataset: xr.Dataset, losses: Sequence[Loss], method: str, times: xr.DataArray, experiments: int, many: bool
) -> xr.Dataset:
    """A result with `diverged_at` and the attribute `divergence`; unchanged where nothing diverged.

    Args:
        dataset: of `times`, or of some of them.
        losses: of the whole run so far.
        method: its name.
        times: of the run, for their type.
        experiments: number of them.
        many: whether the result has an `experiment` dim.
    """
    if not losses:
        return dataset
    dates = np.issubdtype(times.dtype, np.datetime64)
    when = np.full(experiments, "NaT" if dates else np.nan, times.dtype if dates else np.float64)
    for loss in losses:
        when[loss.experiment] = np.int64(loss.when).view(times.dtype) if dates else loss.when
    attrs = {"long_name": "time of the first missing analysis"}
    units = times.attrs.get("units")
    if units is not None and not dates:
        attrs["units"] = units
    held = xr.Variable("experiment", when, attrs) if many else xr.Variable((), when[0], attrs)
    return dataset.assign(diverged_at=held).assign_attrs(divergence=in_words(losses, method, times.dtype, experiments))


def in_words(losses: Sequence[Loss], method: str, dtype: np.dtype[Any], experiments: int) -> str:
    """Which experiments of a method diverged, and when."""
    said = []
    for when, why in dict.fromkeys((loss.when, loss.why) for loss in losses):
        dates = np.issubdtype(dtype, np.datetime64)
        time = str(np.int64(when).view(dtype)) if dates else f"{when:g}"
        numbers = [loss.experiment for loss in losses if (loss.when, loss.why) == (when, why)]
        said.append(f"{_experiments(numbers)} at time {time} ({why})")
    return f"{method} diverged in {len(losses)} of {experiments} experiments: " + "; ".join(said)


def _experiments(numbers: Sequence[int]) -> str:
    return f"experiment{'s' if len(numbers) > 1 else ''} {', '.join(map(str, numbers))}"
