"""Time axes: from the times of a Dataset, numbers or dates, to the floats that dynamics count in.

    t = (time - origin) / unit        for dates; numbers are taken as they are

The unit is that of `dynamics.dt`: hours for hourly rain, so that dt = 1 is an hour.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import xarray as xr

SECONDS = {"s": 1, "min": 60, "h": 3600, "D": 86400}
"""Units of model time, in seconds."""


@dataclass(frozen=True)
class Clock:
    """Turns times into floats.

    Args:
        origin: the date that is 0; None for times that are numbers already.
        unit: what 1.0 means where times are dates: "s", "min", "h" (default) or "D".
    """

    origin: np.datetime64 | None = None
    unit: str = "h"

    @classmethod
    def of(cls, times: xr.DataArray | np.ndarray, unit: str = "h") -> Clock:
        """The clock of a time axis, starting at its first time where it holds dates."""
        if unit not in SECONDS:
            raise ValueError(f"time unit '{unit}'; expected one of {', '.join(SECONDS)}")
        values = np.asarray(times)
        if not values.size:
            raise ValueError("there is no time; expected one or more")
        dates = np.issubdtype(values.dtype, np.datetime64)
        return cls(values.reshape(-1)[0] if dates else None, unit)

    def numbers(self, times: xr.DataArray | np.ndarray) -> np.ndarray:
        """Times as float64, in units of the clock.

        Raises:
            ValueError: what is no time, or dates where the clock counts numbers (and the other way round).
        """
        values = np.atleast_1d(np.asarray(times))
        check_times(values, "a time axis")
        dates = np.issubdtype(values.dtype, np.datetime64)
        if dates != (self.origin is not None):
            raise ValueError("dates and plain numbers are mixed on one time axis")
        if self.origin is None:
            return values.astype(np.float64)
        return (values - self.origin) / self.one

    def moments(self, numbers: np.ndarray) -> np.ndarray:
        """The inverse of `numbers`: dates, to the nanosecond, or the numbers themselves."""
        if self.origin is None:
            return np.asarray(numbers, dtype=np.float64)
        nanoseconds = np.round(np.asarray(numbers, dtype=np.float64) * self.one.astype(np.int64)).astype(np.int64)
        return self.origin.astype("datetime64[ns]") + nanoseconds.astype("timedelta64[ns]")

    @property
    def one(self) -> np.timedelta64:
        """The length of 1.0, where times are dates."""
        return np.timedelta64(SECONDS[self.unit], "s").astype("timedelta64[ns]")


def check_times(times: np.ndarray, what: str) -> None:
    """Raise a ValueError unless these are finite numbers or dates; durations and texts are neither."""
    if times.dtype.kind not in "iufM":
        raise ValueError(f"{what} holds {times.dtype}; expected numbers or dates (datetime64)")
    lost = ~np.isfinite(times)
    if lost.any():
        raise ValueError(f"{what} holds {times[lost][0]}; every time must be a finite number or a date")


def check_increasing(times: xr.DataArray | np.ndarray, what: str) -> None:
    """Raise a ValueError unless times increase strictly; the message names the first that does not."""
    values = np.atleast_1d(np.asarray(times))
    if values.ndim > 1 or not values.size:
        raise ValueError(f"{what}: time has the shape {values.shape}; expected one time or more, along one dim")
    check_times(values, f"{what}: time")
    behind = np.flatnonzero(values[1:] <= values[:-1])
    if behind.size:
        k = int(behind[0])
        raise ValueError(f"{what}: time is not increasing, {values[k + 1]} comes after {values[k]}")


def places_in(wanted: np.ndarray, times: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """For each wanted time the place of the nearest of `times` (increasing), and whether it is that but for rounding.

    Sums of decimal fractions differ in their last bits; a millionth of the spacing of the times is no other time.
    """
    after = np.searchsorted(times, wanted).clip(0, len(times) - 1)
    before = (after - 1).clip(0)
    places = np.where(np.abs(times[before] - wanted) < np.abs(times[after] - wanted), before, after)
    apart = np.abs(times[places] - wanted)
    return places, apart <= (np.diff(times).min() if len(times) > 1 else wanted[:1] - wanted[:1]) * 1e-6


def at_times_of(times: xr.DataArray, truth: xr.Dataset) -> xr.Dataset:
    """The truth at these times, with these times as its labels.

    Raises:
        ValueError: a time that the truth does not have.
    """
    have = truth["time"].values
    places, known = places_in(np.atleast_1d(times.values), have)
    if not known.all():
        missing = np.atleast_1d(times.values)[~known]
        raise ValueError(
            f"the truth has no time {missing[0]} ({len(missing)} such times of {len(known)}); it has {len(have)} from "
            f"{have[0]} to {have[-1]}: choose the times that both have, or start the analyses on a time of the truth"
        )
    chosen = truth.isel(time=places if times.ndim else int(places[0]))
    return chosen.assign_coords(time=times)
