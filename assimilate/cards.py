"""Cards: one experiment in one TOML file, checked before anything is computed.

    title, description, source, seed, draws
    [truth]           simulated (dynamics, steps, ...) or read from a file (data, variables, ...)
    [observations]    made from the truth (operator, noise, every, fraction) or read from a file (data, variable, noise)
    [verification]    share of the stations or observed cells that no method sees and that score it
    [initial]         where ensembles start: "prior", "known" or "perturbed"
    [[method]]        type, label, members, transition or dynamics, and the settings of the class itself
    [scores]          names, dropped cycles, normalisation, thresholds
    [[expected]]      a score that must come out, with its tolerance and source
    [fit]             how to train the transition that the card uses

Every key is a field below; its docstring says what it means. An unknown key is an error that names the file, the key
path and the nearest valid key. `set_value` changes one value by its dotted path, with the type of the schema.
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, get_args

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from assimilate.errors import CardError, UnknownName, UserError, suggestion

CARDS_FOLDER = Path(__file__).resolve().parent.parent / "benchmarks" / "cards"


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


class Truth(Table):
    """What is to be recovered: simulated, or read from a file; neither when only real observations exist."""

    dynamics: Component | None = None
    """The system that is simulated; also the default dynamics of methods."""
    steps: int | None = Field(None, ge=1)
    """Number of states after the first one (every `every`-th model step)."""
    every: int = Field(1, ge=1)
    """Model steps between two states."""
    experiments: int = Field(1, ge=1)
    """Independent truths, assimilated as one batch."""
    spinup: int = Field(0, ge=0)
    """Model steps before the first state."""
    data: str | None = None
    """The name of a data set that ships with the package ("florence"), or a netCDF or Zarr path."""
    variables: list[str] | None = None
    """Fields of the state; default all that have a time and a grid."""
    units: list[str] | None = None
    """Units that the variables must have; anything else is an error."""
    transform: Literal["log1p"] | None = None
    """log(1 + x / scale): the state is assimilated and scored in it."""
    scale: float = Field(1.0, gt=0)
    """Scale of the transform, in units of the data."""
    time: list[str] | None = Field(None, min_length=2, max_length=2)
    """First and last time that is used, inclusive."""
    time_unit: str = "h"
    """Unit of a model step where time is a date: "s", "min", "h" or "D"."""
    region: dict[str, list[int]] = {}
    """Part of the grid: `{x = [0, 40]}` keeps indices 0 to 39."""

    @model_validator(mode="after")
    def _one_source(self) -> Truth:
        if self.dynamics is not None and self.data is not None:
            raise ValueError("give either 'dynamics' (simulated) or 'data' (a file), not both")
        if self.dynamics is not None and self.steps is None:
            raise ValueError("a simulated truth needs 'steps'")
        if self.data is not None and self.steps is not None:
            raise ValueError("'steps' belongs to a simulated truth; use 'time' to choose times of a file")
        return self


class Observations(Table):
    """What is measured: made from the truth, or read from a file."""

    operator: Component | None = None
    """What one measurement sees of the state; default: the values of grid cells themselves."""
    noise: float | Component = Field(default=0.0, ge=0.0)
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
    layout: Literal["grid", "stations"] = "grid"
    """What `data` holds: values on the grid of the state, or on (time, location)."""

    @model_validator(mode="after")
    def _consistent(self) -> Observations:
        if self.data is not None and (self.fraction is not None or self.every != 1):
            raise ValueError("'fraction' and 'every' make observations from the truth; 'data' reads them from a file")
        if self.fraction is not None and self.operator is not None:
            raise ValueError("give either 'operator' or 'fraction', not both")
        if isinstance(self.noise, float) and self.noise == 0.0:
            raise ValueError("'noise' is needed: the standard deviation of the observation error, above 0")
        return self


class Verification(Table):
    """Observations that are kept from every method and used as its examiners."""

    withhold: float = Field(0.0, ge=0, lt=1)
    """Share of the stations (or observed cells), drawn from the seed."""


class Initial(Table):
    """The law of the ensemble at the first time."""

    law: Literal["prior", "known", "perturbed"] = "prior"
    """"prior": drawn from the dynamics' prior; "known": the true first state; "perturbed": the truth plus noise."""
    std: float | list[float] | None = None
    """"perturbed": standard deviation in Space units, one number or one per channel."""

    @model_validator(mode="after")
    def _std_where_needed(self) -> Initial:
        if (self.law == "perturbed") != (self.std is not None):
            raise ValueError("'std' goes with law = \"perturbed\", and only with it")
        return self


class Method(BaseModel):
    """One row of the comparison. Keys that are not below are settings of the class."""

    model_config = ConfigDict(extra="allow", frozen=True)
    type: str
    """Name in the registry (`assimilate list methods`), or `module:Class`."""
    label: str | None = None
    """What tables and pictures call it; starts with the method's usual name, which is the default."""
    members: int = Field(64, ge=1)
    """Ensemble size."""
    transition: str | None = None
    """A learned transition: the name of a pretrained one, or the path of a checkpoint."""
    dynamics: Component | None = None
    """Dynamics of this method; default: the transition, or those of the truth."""
    observed: bool = True
    """False: the method gets no observation (a forecast, for comparison)."""
    keep: int = Field(64, ge=1)
    """Members written to the result; scores use all."""

    def settings(self) -> dict[str, Any]:
        """The keys that belong to the class."""
        return dict(self.model_extra or {})


class Thresholds(Table):
    """Events of the critical success index, "at least this much"."""

    thresholds: list[float]
    unit: str = ""
    """Short unit in the score's name: csi_1mm."""


class Scores(Table):
    """How results are scored; names and definitions are those of `assimilate.verification`."""

    names: list[str] = ["rmse", "crps", "spread_skill", "seconds"]
    """Scores of the printed table, in this order; scores.json has all."""
    drop: int = Field(0, ge=0)
    """Cycles at the beginning that are not scored."""
    offset: list[float] = [0.0]
    """Offset of the normalised units of `nrmse`."""
    scale: list[float] = [1.0]
    """Scale of the normalised units of `nrmse`."""
    csi: Thresholds | None = None
    """Thresholds in units of the data."""
    units: str | None = None
    """Units of the state as printed; default: those of the Space."""


class Expected(Table):
    """A score that must come out."""

    method: str
    """Label of the method."""
    score: str
    max: float | None = None
    min: float | None = None
    value: float | None = None
    tolerance: float | None = Field(None, ge=0)
    """With `value`: largest distance from it."""
    relative_to: str | None = None
    """Label of another method: the score is divided by that method's."""
    source: str
    """Where the number is from: a paper, a table, or "measured here" with the day."""

    @model_validator(mode="after")
    def _has_bound(self) -> Expected:
        if self.max is None and self.min is None and self.value is None:
            raise ValueError("give 'max', 'min', or 'value' with 'tolerance'")
        if (self.value is None) != (self.tolerance is None):
            raise ValueError("'value' and 'tolerance' go together")
        return self


class Fit(BaseModel):
    """How `assimilate fit` trains; keys that are not below are settings of the recipe."""

    model_config = ConfigDict(extra="allow", frozen=True)
    recipe: str
    """A recipe of `assimilate.learning`, or `module:function`."""
    checkpoint: str | None = None
    """File that is written; default: `<out>/<card>.safetensors`."""

    def settings(self) -> dict[str, Any]:
        """The keys that belong to the recipe."""
        return dict(self.model_extra or {})


class Card(Table):
    """A whole experiment."""

    title: str
    description: str = ""
    source: str = ""
    """Papers, data and their licences."""
    seed: int = Field(0, ge=0, lt=2**32)
    draws: int = Field(1, ge=1)
    """Repetitions with other observed cells and noise (seed + 0, 1, ...); scores are averaged over them."""
    truth: Truth = Truth()
    observations: Observations
    verification: Verification = Verification()
    initial: Initial = Initial()
    method: list[Method] = Field(min_length=1)
    scores: Scores = Scores()
    expected: list[Expected] = []
    fit: Fit | None = None

    @model_validator(mode="after")
    def _whole(self) -> Card:
        if self.truth.dynamics is None and self.truth.data is None and self.observations.data is None:
            raise ValueError("a card needs a truth ([truth] dynamics or data) or measured observations")
        return self


def available() -> dict[str, Path]:
    """Cards that ship with the package, by name."""
    return {path.stem: path for path in sorted(CARDS_FOLDER.glob("*.toml"))}


def find(name: str) -> Path:
    """The file of a card: the path of one's own TOML file, or the name of a shipped card.

    Raises:
        UnknownName: neither a file nor a shipped card.
        CardError: a path that does not exist.
    """
    path = Path(name)
    if path.is_file():
        return path
    if path.suffix == ".toml" or len(path.parts) > 1:
        raise CardError(f"there is no card file '{name}'")
    shipped = available()
    if name not in shipped:
        raise UnknownName("card", name, shipped, "; or give the path of a TOML file")
    return shipped[name]


def load(name: str, changes: Sequence[str] = ()) -> Card:
    """Read, change and check a card.

    Args:
        name: a shipped card or the path of a TOML file.
        changes: `path=value` with a dotted path, such as `method.FlowDAS.members=32` or `truth.steps=10`.

    Raises:
        UserError: unreadable, or not a valid card; one line with file, key path and what would be right.
    """
    path = find(name)
    try:
        table = tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise CardError(f"{path.name}: not readable as TOML: {error}") from error
    for change in changes:
        set_value(table, change)
    return parse(table, path.name)


def parse(table: Mapping[str, Any], file: str = "card") -> Card:
    """Check a card that was read or built; `file` is its name in messages."""
    try:
        return Card.model_validate(table)
    except ValidationError as error:
        raise CardError(f"{file}: {_first(error, table)}") from None


def set_value(table: dict[str, Any], change: str) -> None:
    """Apply one `path=value` to a card's table; a method is found by its label, its type or its number.

    The value is read as TOML (`32`, `0.5`, `true`, `[1, 2]`, `"text"`), and as text when it is none of these.

    Raises:
        UserError: no `=` in it, or a path that leads through something that is not a table.
    """
    path, equals, text = change.partition("=")
    keys = [key for key in path.strip().split(".") if key]
    if not equals or not keys:
        raise UserError(f"--set '{change}': expected path=value, for example method.FlowDAS.members=32")
    try:
        value = tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        value = text.strip()
    place: Any = table
    for depth, key in enumerate(keys[:-1]):
        place = _enter(place, key, ".".join(keys[: depth + 1]), change)
    if not isinstance(place, dict):
        raise UserError(f"--set '{change}': '{'.'.join(keys[:-1])}' is not a table")
    place[keys[-1]] = value


def _enter(place: Any, key: str, path: str, change: str) -> Any:
    if isinstance(place, list):
        if key.isdigit() and int(key) < len(place):
            return place[int(key)]
        for field in ("label", "type"):
            for entry in place:
                if str(entry.get(field, "")).casefold() == key.casefold():
                    return entry
        names = [str(entry.get("label", entry.get("type"))) for entry in place]
        raise UserError(f"--set '{change}': no entry '{key}' in '{path.rpartition('.')[0]}'{suggestion(key, names)}")
    if not isinstance(place, dict):
        raise UserError(f"--set '{change}': '{path}' is not a table")
    if key not in place and key not in Card.model_fields:
        valid = set(place) | (set(Card.model_fields) if "." not in path else set())
        raise UserError(f"--set '{change}': there is no '{path}'{suggestion(key, valid)}")
    return place.setdefault(key, {})


def _first(error: ValidationError, table: Mapping[str, Any]) -> str:
    """The first problem of a card as `key path: what is wrong`; unknown keys first, since they explain missing ones."""
    problems = sorted(error.errors(), key=lambda e: e["type"] != "extra_forbidden")
    problem = problems[0]
    place = [part for part in problem["loc"] if part not in ("float", "Component", "list[float]")]
    path = _path(place, table)
    if problem["type"] == "extra_forbidden":
        return f"unknown key '{path}'{suggestion(str(place[-1]), _valid_keys(place[:-1]))}"
    if problem["type"] == "missing":
        return f"'{path}' is missing"
    message = problem["msg"].removeprefix("Value error, ")
    given = problem["input"]
    shown = f" (got {given!r})" if isinstance(given, str | int | float | bool) else ""
    return f"{path}: {message}{shown}" if path else message


def _path(place: Sequence[str | int], table: Mapping[str, Any]) -> str:
    """Dotted path; entries of a list are shown by their label or type where they have one."""
    parts: list[str] = []
    here: Any = table
    for part in place:
        here = here[part] if isinstance(here, list | dict) and _holds(here, part) else None
        if isinstance(part, int):
            name = here.get("label") or here.get("type") if isinstance(here, dict) else None
            parts[-1] += f"[{name or part}]"
        else:
            parts.append(part)
    return ".".join(parts)


def _holds(here: Any, part: str | int) -> bool:
    return (isinstance(here, dict) and part in here) or (isinstance(here, list) and isinstance(part, int))


def _valid_keys(place: Sequence[str | int]) -> list[str]:
    model: Any = Card
    for part in place:
        if isinstance(part, int) or not (isinstance(model, type) and issubclass(model, BaseModel)):
            continue
        annotation = model.model_fields[part].annotation if part in model.model_fields else None
        options = [annotation, *get_args(annotation)]
        model = next((o for o in options if isinstance(o, type) and issubclass(o, BaseModel)), None)
    return list(model.model_fields) if isinstance(model, type) and issubclass(model, BaseModel) else []
