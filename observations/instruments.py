r"""Instruments: what measures, what it measured, and what that says of a state.

    Instrument("radar", grid, likelihood)          a Dataset with a time dim, and its operator and noise
    Instrument("gauges", table)                    a table of points: the operator reads the state where each row is

A list of them is assimilated together: at each time those that saw something are stacked. A table needs no operator;
its rows may be at other places at every time.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from numbers import Real
from typing import Any, Literal

import numpy as np
import torch
import xarray as xr

from dynamics.errors import DataError
from dynamics.space import Space
from observations.base import ObservationOperator, stack
from observations.likelihood import Likelihood
from observations.noise import GaussianNoise, Noise
from observations.sampling import Mask, Stations
from observations.tables import LOCATION, channels_of, check_table, places_of

Interpolation = Literal["nearest", "bilinear"]
RowOperator = Callable[[Space, xr.Dataset], ObservationOperator]
"""A function that gives the operator of some rows of a table; its values are those rows, in their order."""


@dataclass(frozen=True, eq=False)
class Instrument:
    """One source of observations.

    Args:
        name: what it is called in feedback and statistics.
        observations: values in Space units: a Dataset with a `time` dim, or a table with a `location` dim.
        likelihood: of a Dataset with a `time` dim: operator and noise, or a function that gives them for the Dataset
            of one time.
        interpolation: how a state is read at the places of a table, see `Stations`.
        error: standard deviation of the error for the rows of a table that have none.
        law: of a table: makes the noise from the errors of some rows; a Gaussian by default.
        operator: of a table: makes the operator from some rows, instead of reading the state at their places.

    Raises:
        ValueError: parts that do not go together.
        DataError: the table is no table of observations.
    """

    name: str
    observations: xr.Dataset
    likelihood: Likelihood | Callable[[xr.Dataset], Likelihood] | None = None
    interpolation: Interpolation = "bilinear"
    error: float | None = None
    law: Callable[[Any], Noise] = GaussianNoise
    operator: RowOperator | None = None

    def __post_init__(self) -> None:
        """Check that the parts go together."""
        if not isinstance(self.observations, xr.Dataset):
            raise ValueError(f"instrument {self.name!r} was given a {type(self.observations).__name__}, no Dataset")
        if not self.name or not isinstance(self.name, str):
            raise ValueError(f"an instrument is called {self.name!r}; expected a name")
        if self.interpolation not in ("nearest", "bilinear"):
            raise ValueError(f"interpolation={self.interpolation!r}; expected 'nearest' or 'bilinear'")
        if not self.tabular:
            if self.likelihood is None:
                raise ValueError(
                    f"instrument {self.name!r} has the dims {list(map(str, self.observations.dims))}: values on a grid "
                    f"need a likelihood; a table has the dim '{LOCATION}'"
                )
            if isinstance(self.likelihood, ObservationOperator | Noise) or not (
                isinstance(self.likelihood, Likelihood) or callable(self.likelihood)
            ):
                raise ValueError(
                    f"the likelihood of instrument {self.name!r} is a {type(self.likelihood).__name__}; expected "
                    "Likelihood(operator, noise), or a function that gives one for the Dataset of one time"
                )
            if "time" not in self.observations.dims:
                raise ValueError(
                    f"instrument {self.name!r} has the dims {list(map(str, self.observations.dims))}; expected 'time'"
                )
            return
        if self.likelihood is not None:
            raise ValueError(f"instrument {self.name!r} is a table: its errors are its own; leave out the likelihood")
        object.__setattr__(self, "observations", check_table(self.observations, f"instrument {self.name!r}"))
        if self.error is not None and not (isinstance(self.error, Real) and 0 < self.error < np.inf):
            raise ValueError(f"instrument {self.name!r}: error={self.error!r}; expected a standard deviation above 0")

    @property
    def tabular(self) -> bool:
        """Whether the observations are a table."""
        return LOCATION in self.observations.dims

    def errors(self) -> np.ndarray:
        """Standard deviations of the rows of a table.

        Raises:
            DataError: a row has none, and the instrument neither.
        """
        table = self.observations
        count = table.sizes[LOCATION]
        found = table["error"].values.astype(np.float64) if "error" in table else np.full(count, np.nan)
        if self.error is not None:
            found = np.where(np.isnan(found), self.error, found)
        if "error" not in table and self.error is None:
            raise DataError(
                f"instrument {self.name!r}: the table has no 'error', and no error=... was given for all rows"
            )
        return found

    def row_likelihood(self, space: Space, rows: xr.Dataset, errors: np.ndarray) -> Likelihood:
        """Operator and noise of some rows of a table; values in the order of the rows."""
        operator = self.operator(space, rows) if self.operator is not None else self._reading(space, rows)
        if operator.obs_size != rows.sizes[LOCATION]:
            raise ValueError(
                f"instrument {self.name!r}: the operator of {rows.sizes[LOCATION]} rows has {operator.obs_size} values"
            )
        same = bool((errors == errors[0]).all())
        return Likelihood(operator, self.law(float(errors[0]) if same else torch.from_numpy(errors)))

    def _reading(self, space: Space, rows: xr.Dataset) -> ObservationOperator:
        channels = channels_of(rows, space)
        if not space.grid:
            return Mask(space, channels)
        points = places_of(rows, space)
        wanted = sorted(set(channels.tolist()))
        if len(wanted) == 1:
            return Stations(space, points, self.interpolation, channels=wanted)
        parts = stack(*(Stations(space, points[channels == c], self.interpolation, channels=[c]) for c in wanted))
        # Row by row again: the stack is sorted by channel.
        order = np.argsort(np.argsort(channels, kind="stable"), kind="stable")
        return Mask((parts.obs_size,), order) @ parts

    def usable(self, space: Space) -> np.ndarray:
        """Whether the state can be read at each row of a table: inside the grid, next to a cell with data.

        Raises:
            DataError: at none, with the reason of the first; or the table does not fit the Space.
        """
        count = self.observations.sizes[LOCATION]
        if self.operator is not None or not space.grid:
            channels_of(self.observations, space)
            return np.ones(count, dtype=bool)
        points, channels = places_of(self.observations, space), channels_of(self.observations, space)
        good = np.zeros(count, dtype=bool)
        reasons: dict[int, str] = {}
        for channel in set(channels.tolist()):
            open_parts = [np.flatnonzero(channels == channel)]
            # Halves of a part that does not fit, until each row that does not is alone.
            while open_parts:
                part = open_parts.pop()
                try:
                    Stations(space, points[part], self.interpolation, channels=[channel], names=[str(i) for i in part])
                    good[part] = True
                except ValueError as error:
                    if len(part) == 1:
                        reasons[int(part[0])] = str(error)
                    else:
                        open_parts += np.array_split(part, 2)
        if count and not good.any():
            raise DataError(f"instrument {self.name!r}: {reasons[min(reasons)]}")
        return good
