"""Cards: one experiment in one TOML file, checked before anything is computed.

    title, description, source, seed, draws
    [data]            root, which stands for `{root}` in every `data` below
    [truth]           simulated (dynamics, steps, ...) or read from a file (data, variables, ...)
    [observations]    made from the truth (operator, noise, every, fraction) or read from a file (data, variable, noise)
    [[instrument]]    instead: measured values of several files, tables or grids, assimilated together
    [quality]         limits of what is assimilated: gross errors, the background check
    [verification]    share of the stations or observed cells that no method sees and that score it
    [initial]         where ensembles start: "prior", "known" or "perturbed"
    [[method]]        type, label, members, transition or dynamics, and the settings of the class itself
    [scores]          names, dropped cycles, normalisation, thresholds
    [[task]]          another setting of the same experiment: a name, and any keys of the tables above that differ
    [[expected]]      a score that must come out, with its tolerance and source
    [fit]             how to train the transition that the card uses; [[fit]] with names where there are several

Every key is a field below; its docstring says what it means. An unknown key is an error that names the file, the key
path and the nearest valid key (`assimilate.cards.files`).
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from assimilate.cards.observations import Component, Instrument, Observations, Quality, Table

Finite = Annotated[float, Field(allow_inf_nan=False)]


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
    seed: int | None = Field(None, ge=0)
    """Seed of the simulation; default: the card's."""
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
    periodic: list[str] = Field(default_factory=list)
    """Dimensions of a file that close on themselves."""
    region: dict[str, list[int]] = Field(default_factory=dict)
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


class Data(Table):
    """Where files of a card lie, for cards that come without them."""

    root: str
    """Replaces `{root}` in every `data` of the card: `--set data.root=DIR` points all of them at one's own archive."""


class Verification(Table):
    """Observations that are kept from every method and used as its examiners."""

    withhold: float = Field(0.0, ge=0, lt=1)
    """Share of the stations (or observed cells), drawn from the seed."""


class Initial(Table):
    """The law of the ensemble at the first time."""

    law: Literal["prior", "known", "perturbed"] = "prior"
    """"prior": drawn from the dynamics' prior; "known": the true first state; "perturbed": the truth plus noise."""
    std: Finite | list[Finite] | None = None
    """"perturbed": standard deviation in Space units, one number or one per channel."""
    dynamics: Component | None = None
    """"prior": the system whose prior it is; default: that of each method."""
    transition: str | None = None
    """"prior": a learned transition (name or checkpoint) from whose stored states members are drawn: the climate, the
    same for all methods."""
    frames: int = Field(1, ge=1)
    """"known": how many true states are known, the first ones; observations begin with the state after them."""
    before: float = Field(0.0, ge=0)
    """"prior" of a file: how long before the first observation the ensemble is drawn, in `truth.time_unit`."""

    @model_validator(mode="after")
    def _std_where_needed(self) -> Initial:
        if (self.law == "perturbed") != (self.std is not None):
            raise ValueError("'std' goes with law = \"perturbed\", and only with it")
        if self.law != "prior" and (self.dynamics is not None or self.transition is not None or self.before):
            raise ValueError("'dynamics', 'transition' and 'before' go with law = \"prior\"")
        if self.frames > 1 and self.law != "known":
            raise ValueError("'frames' goes with law = \"known\"")
        if self.dynamics is not None and self.transition is not None:
            raise ValueError("give either 'dynamics' or 'transition': each says where the prior is from")
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
    variant: Literal["learned", "gaussian", "published"] = "learned"
    """How the transition is used: "gaussian" replaces what it learned around its forecast by a Gaussian of the same
    spread; "published" runs it from the previous state on the FlowDAS paper's path."""
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
    """How results are scored; names and definitions are those of `assimilate.verification.statistics`."""

    names: list[str] = Field(default_factory=lambda: ["rmse", "crps", "spread_skill", "seconds"])
    """Scores of the printed table, in this order; scores.json has all."""
    drop: int = Field(0, ge=0)
    """Cycles at the beginning that are not scored."""
    offset: list[float] = Field(default_factory=lambda: [0.0])
    """Offset of the normalised units of `nrmse`."""
    scale: list[float] = Field(default_factory=lambda: [1.0])
    """Scale of the normalised units of `nrmse`."""
    csi: Thresholds | None = None
    """Thresholds in units of the data."""
    weights: Literal["area", "equal"] = "area"
    """Whether cells count by their areas."""
    diverged: float | None = Field(None, gt=0)
    """Time-mean RMSE of an experiment, in Space units, above which it has diverged: it is left out of `rmse_time`."""
    reference: str | None = None
    """Label of a method that is as good as the truth's own law, such as a filter with the true model and many members:
    the others are scored by their distance from it (`assimilate.verification.reference`)."""


class Task(BaseModel):
    """One of several settings of a card, run in a folder of its own and compared in one table.

    Every key but the name is one of the card, and what it holds replaces what the card has there:

        [[task]]
        name = "5 % of the cells"
        observations.fraction = 0.05
        method.FlowDAS.members = 32
    """

    model_config = ConfigDict(extra="allow", frozen=True)
    name: str = Field(min_length=1)
    """What tables call it; the name of its folder is made from it."""

    def changes(self) -> dict[str, Any]:
        """The keys that differ, as nested tables."""
        return dict(self.model_extra or {})


class Expected(Table):
    """A score that must come out."""

    method: str
    """Label of the method."""
    score: str
    max: Finite | None = None
    min: Finite | None = None
    value: Finite | None = None
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


class ExpectedInTask(Expected):
    """A score that must come out, of one task or of all."""

    task: str | None = None
    """Name of the task; default: all of them."""


class Fit(BaseModel):
    """How `assimilate fit` trains; keys that are not below are settings of the recipe, as tables."""

    model_config = ConfigDict(extra="allow", frozen=True)
    name: str | None = None
    """What it is called where a card trains several: its checkpoint is CARD-NAME."""
    recipe: str
    """"transition", "window"..., a key of `assimilate.learning.recipes.RECIPES`."""
    dynamics: Component | None = None
    """Simulator that makes the training data; default: that of the truth."""
    data: str | None = None
    """A data set to train on instead: a netCDF or Zarr path."""
    variables: list[str] | None = None
    """Fields of that data set; transforms are those of [truth]."""
    half: bool = False
    """Whether the weights are stored in half precision: half the file."""
    checkpoint: str | None = None
    """File that is written; default: out/CARD.safetensors, or out/CARD-NAME.safetensors."""

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
    data: Data | None = None
    draws: int = Field(1, ge=1)
    """Repetitions with other observed cells and noise (seed + 0, 1, ...); scores are averaged over them."""
    truth: Truth = Truth()
    observations: Observations = Observations()
    instrument: list[Instrument] = Field(default_factory=list)
    quality: Quality | None = None
    verification: Verification = Verification()
    initial: Initial = Initial()
    method: list[Method] = Field(min_length=1)
    scores: Scores = Scores()
    task: list[Task] = Field(default_factory=list)
    expected: list[ExpectedInTask] = Field(default_factory=list)
    fit: list[Fit] = Field(default_factory=list)

    @field_validator("fit", mode="before")
    @classmethod
    def _one_or_several(cls, value: Any) -> Any:
        return [value] if isinstance(value, dict) else value

    @model_validator(mode="before")
    @classmethod
    def _with_root(cls, value: Any) -> Any:
        root = value.get("data", {}).get("root") if isinstance(value, dict) else None
        return value if root is None else _rooted(value, str(root))

    @model_validator(mode="after")
    def _whole(self) -> Card:
        seen = self.observations
        if self.instrument and (seen.data is not None or seen.operator is not None or seen.fraction is not None):
            raise ValueError("give either [observations] with values of its own or [[instrument]] tables, not both")
        if not self.instrument and seen.layout != "table" and isinstance(seen.noise, float) and seen.noise == 0.0:
            raise ValueError(
                "observations: 'noise' is needed: the standard deviation of the observation error, above 0"
            )
        if seen.schedule != "exact" and not self.instrument and seen.layout != "table":
            raise ValueError("observations.schedule is about tables: layout = \"table\", or [[instrument]]")
        if self.truth.dynamics is None and self.truth.data is None and seen.data is None and not self.instrument:
            raise ValueError("a card needs a truth ([truth] dynamics or data) or measured observations")
        names = [fit.name for fit in self.fit]
        if len(set(names)) < len(names):
            raise ValueError("two [[fit]] tables have the same 'name'; give each its own (one may have none)")
        return self


def _rooted(value: Any, root: str, key: str = "") -> Any:
    """A table with `{root}` replaced in every text that stands under `data`."""
    if isinstance(value, dict):
        return {k: _rooted(v, root, str(k)) for k, v in value.items()}
    if isinstance(value, list):
        return [_rooted(v, root, key) for v in value]
    return value.replace("{root}", root) if isinstance(value, str) and key == "data" else value
