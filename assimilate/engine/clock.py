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
        dates = np.issubdtype(values.dtype, np.datetime64)
        return cls(values.reshape(-1)[0] if dates else None, unit)

    def numbers(self, times: xr.DataArray | np.ndarray) -> np.ndarray:
        """Times as float64, in units of the clock."""
        values = np.atleast_1d(np.asarray(times))
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


def check_increasing(times: xr.DataArray | np.ndarray, what: str) -> None:
    """Raise a ValueError unless times increase strictly; the message names the first that does not."""
    values = np.atleast_1d(np.asarray(times))
    behind = np.flatnonzero(values[1:] <= values[:-1])
    if behind.size:
        k = int(behind[0])
        raise ValueError(f"{what}: time is not increasing, {values[k + 1]} comes after {values[k]}")
