r"""When analyses are made, given when observations were: irregular times meet a model that moves in steps.

    "exact"     at every time at which something was observed; each must be a whole number of model steps away
    "nearest"   at the model steps nearest to the observations: t -> start + dt round((t - start) / dt)
    "substep"   at every time at which something was observed; the model takes shorter steps where it has to
    windows     at given times (or every so often); each takes what was observed around it, or since a while before

Observations of a window are used as if they were made at its time. The error of that is the model's motion over the
distance in time: count it in the error of the observations, or take "substep", or a smoother, which needs no windows.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np

from assimilate.engine.clock import Clock
from assimilate.errors import UserError
from dynamics.settings import check_settings, number

Rule = Literal["exact", "nearest", "substep", "window"]
_RULES = ("exact", "nearest", "substep", "window")


class Assigned(NamedTuple):
    """Which analysis uses which observation.

    Attributes:
        times: of the analyses, in units of the clock, increasing.
        numbers: for each group of given times, the number of the analysis of each; -1: used by none.
    """

    times: np.ndarray
    numbers: list[np.ndarray]


@dataclass(frozen=True)
class Schedule:
    """When analyses are made.

    Args:
        rule: see the module.
        every: "window": time between two analyses, in the clock's unit, counted from the start; one at the start itself
            is made only if its window holds an observation.
        times: "window": the times of the analyses themselves (numbers, or dates), instead of `every`.
        length: "window": how much time an analysis takes observations from; default: `every`.
        ending: "window": whether it ends at the analysis; otherwise it is centred there. A window holds its later
            edge, not its earlier one.

    Raises:
        ValueError: settings that do not go together.
    """

    rule: Rule = "exact"
    every: float | None = None
    times: Sequence[Any] | None = None
    length: float | None = None
    ending: bool = False

    def __post_init__(self) -> None:
        """Check that the settings go together."""
        if self.rule not in _RULES:
            raise ValueError(f"schedule {self.rule!r}; expected one of {', '.join(_RULES)}")
        if self.rule != "window":
            if self.every is not None or self.times is not None or self.length is not None or self.ending:
                raise ValueError(f"every, times, length and ending belong to Schedule('window'), not to {self.rule!r}")
            return
        if (self.every is None) == (self.times is None):
            raise ValueError("Schedule('window') needs either every=... or times=...")
        positive = number(above=0, none=True, words="a positive time")
        check_settings(self, every=positive, length=positive)
        if self.times is not None and self.length is None:
            raise ValueError("Schedule('window', times=...) needs the length of the windows")

    @classmethod
    def of(cls, given: Schedule | str) -> Schedule:
        """A schedule, or one of the rules that need no settings by name."""
        return given if isinstance(given, Schedule) else cls(given)  # type: ignore[arg-type]

    @property
    def divides_steps(self) -> bool:
        """Whether the model takes shorter steps where observations fall between its steps."""
        return self.rule == "substep"

    def assign(self, groups: Sequence[np.ndarray], clock: Clock, start: float, dt: float | None) -> Assigned:
        """The analyses of observations at these times.

        Args:
            groups: times of the observations of each instrument, in units of the clock.
            clock: of the times.
            start: of the ensemble.
            dt: length of a model step, or None for a method without a model.

        Raises:
            UserError: there is no observation, or none that an analysis uses; or "nearest" without a model.
        """
        every = np.concatenate([np.asarray(g, dtype=np.float64) for g in groups]) if groups else np.zeros(0)
        if every.size == 0:
            raise UserError("there are no observations to assimilate")
        if self.rule in ("exact", "substep"):
            wanted = every
        elif self.rule == "nearest":
            if dt is None:
                raise UserError('the schedule "nearest" needs a model with steps; the method has none: use "exact"')
            steps = np.floor((every - start) / dt + 0.5)
            wanted = np.where(steps >= 0, start + steps * dt, np.nan)
        else:
            wanted = self._windowed(every, clock, start)
        regular = self._regular(every, clock, start) if self.rule == "window" else wanted
        times = np.unique(regular[~np.isnan(regular)])
        if not np.isfinite(wanted).any():
            raise UserError(
                f"no observation, at times {every.min():g} to {every.max():g}, falls to an analysis ({self})"
            )
        index = np.where(np.isnan(wanted), -1, np.searchsorted(times, np.nan_to_num(wanted, nan=0.0)))
        ends = np.cumsum([len(g) for g in groups])[:-1]
        return Assigned(times, [part.astype(np.int64) for part in np.split(index, ends)])

    def _regular(self, every: np.ndarray, clock: Clock, start: float) -> np.ndarray:
        """Times of all analyses of windows, those without observations too."""
        if self.times is not None:
            return np.sort(clock.numbers(np.asarray(self.times)))
        assert self.every is not None
        reach = self._reach()
        count = max(1, int(np.ceil((every.max() - start - reach[1]) / self.every - 1e-9)))
        first = bool(((every > start - reach[0]) & (every <= start + reach[1])).any())
        return start + self.every * np.arange(0 if first else 1, count + 1)

    def _reach(self) -> tuple[float, float]:
        """How far a window reaches before and after its analysis."""
        length = self.length if self.length is not None else self.every
        assert length is not None
        return (length, 0.0) if self.ending else (length / 2, length / 2)

    def _windowed(self, every: np.ndarray, clock: Clock, start: float) -> np.ndarray:
        times, (before, after) = self._regular(every, clock, start), self._reach()
        # The first analysis whose later edge is not passed; its earlier edge must be.
        slack = 1e-9 * (1.0 + np.abs(times).max())
        place = np.searchsorted(times + after + slack, every)
        chosen = times[np.minimum(place, len(times) - 1)]
        inside = (place < len(times)) & (every > chosen - before + slack)
        return np.where(inside, chosen, np.nan)
