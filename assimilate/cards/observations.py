"""The tables of a card about what is measured: [observations], [[instrument]] and [quality].

Every key is a field below; its docstring says what it means. See `assimilate.cards.card` for the whole card.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator


class Table(BaseModel):
    """A TOML table whose keys are all known."""

    model_config = ConfigDict(extra="forbid", frozen=True, populate_by_name=True)


class Component(BaseModel):
    """A class and its settings: `{type = "Lorenz63", preset = "flowdas"}`; settings are checked against the class."""

    model_config = ConfigDict(extra="allow", frozen=True)
    type: str
    """Name in the registry (`assimilate list`), or `module:Class`."""
    preset: str | None = None
    """A class method that makes the object, such as a published setting."""

    def spec(self) -> dict[str, Any]:
        """The table as it stands in the card."""
        return self.model_dump(exclude_none=True)


Layout = Literal["grid", "stations", "table"]


class Window(Table):
    """Windows of observations that one analysis takes together."""

    every: float = Field(gt=0)
    """Time between two analyses, in `truth.time_unit` where times are dates."""
    length: float | None = Field(None, gt=0)
    """How much time a window holds; default: `every`."""
    ending: bool = False
    """Whether a window ends at its analysis; default: it is centred there."""


class Quality(Table):
    """Values that are not assimilated; they are flagged in the result (`assimilate.quality`)."""

    gross: list[float] | None = Field(None, min_length=2, max_length=2)
    """Lowest and highest value that can be, in Space units."""
    background: float | None = Field(None, gt=0)
    """Largest departure from the forecast, in standard deviations of what is expected of it. Of filters only."""


class Observations(Table):
    """What is measured: made from the truth, or read from a file."""

    operator: Component | None = None
    """What one measurement sees of the state; default: the values of grid cells themselves."""
    noise: Annotated[float, Field(ge=0.0, allow_inf_nan=False)] | Component = 0.0
    """Standard deviation in Space units (log(1 + mm) for transformed rain), or a noise with settings."""
    every: int = Field(1, ge=1)
    """Cycles between two observation times."""
    fraction: float | None = Field(None, gt=0, le=1)
    """Share of the grid cells that are observed: the same cells at every time, drawn from the seed."""
    seed: int | None = None
    """Seed of cells and noise; default: the card's."""
    data: str | None = None
    """Path of measured values: a gridded variable with gaps (NaN), or a table of stations."""
    variable: str | None = None
    """Which variable of that file; default: its only one."""
    layout: Layout = "grid"
    """What `data` holds: values on the grid of the state, on (time, station), or a table with one row a measurement,
    anywhere and at any time (CSV, netCDF with a `location` dim, IODA groups), which may bring errors of its own."""
    schedule: Literal["exact", "nearest", "substep", "window"] = "exact"
    """When measured values are assimilated: at their own times ("exact": whole model steps; "substep": the model takes
    shorter ones), at the nearest model step, or in windows."""
    window: Window | None = None
    """The windows of schedule = "window"."""
    interpolation: Literal["nearest", "bilinear"] = "bilinear"
    """How the state is read at stations."""

    @model_validator(mode="after")
    def _consistent(self) -> Observations:
        if self.data is not None and (self.fraction is not None or self.every != 1):
            raise ValueError("'fraction' and 'every' make observations from the truth; 'data' reads them from a file")
        if self.fraction is not None and self.operator is not None:
            raise ValueError("give either 'operator' or 'fraction', not both")
        own = self.layout == "table" or "noise" not in self.model_fields_set
        if isinstance(self.noise, float) and self.noise == 0.0 and not own:
            raise ValueError("'noise' is needed: the standard deviation of the observation error, above 0")
        if (self.schedule == "window") != (self.window is not None):
            raise ValueError("'window' goes with schedule = \"window\", and only with it")
        return self


class Instrument(Table):
    """One source of measured values."""

    name: str = Field(min_length=1)
    """What it is called in flags and statistics."""
    data: str
    """Path of its values."""
    layout: Layout = "table"
    """What `data` holds, see `observations.layout`."""
    variable: str | None = None
    """The column or variable with the values; default: "value" of a table, the only one of a grid."""
    noise: Annotated[float, Field(ge=0.0, allow_inf_nan=False)] | Component | None = None
    """Standard deviation of its errors, Space units, or a noise with settings (grids); a table's own come first."""
    operator: Component | None = None
    """Of a grid: what a measurement sees of the state; default: the values of its cells."""
    interpolation: Literal["nearest", "bilinear"] = "bilinear"
    """Of a table: how the state is read at its places."""
    quality: Quality | None = None
    """Its limits; default: those of [quality]."""

    @model_validator(mode="after")
    def _consistent(self) -> Instrument:
        if self.layout == "stations":
            raise ValueError("layout 'stations' of an instrument is layout = \"table\": one row a measurement")
        if self.layout == "grid" and self.noise is None:
            raise ValueError("'noise' is needed: a grid has no errors of its own")
        if self.layout == "table" and (self.operator is not None or isinstance(self.noise, Component)):
            raise ValueError("'operator' and a noise with settings belong to layout = \"grid\"")
        return self
