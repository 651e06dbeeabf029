"""Imaging cards: one comparison of solvers on the same measurements, in one TOML file.

    title, description, source, seed
    [images]          the pictures: phantoms, a folder, scikit-image, a volume...
    [operator]        what is measured of them
    noise             standard deviation, in the units of the measurement
    prior             shipped weights or a checkpoint
    [tuning]          validation pictures on which solvers with a `tune` table choose their settings
    [[solver]]        type, label, samples, tune, and the settings of the class itself
    [[expected]]      a score that must come out
    [fit]             how to train the prior on these pictures

A card is an imaging card if it has an [images] table. It is run, changed and trained by the same commands as any other.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from assimilate.cards.card import Component, Expected, Table
from assimilate.cards.files import CARDS_FOLDER, checked, read_table

FOLDER = CARDS_FOLDER.parent / "imaging"
"""Where the imaging cards are that ship with the package."""

SCORES = (
    "psnr", "ssim", "psnr_sample", "ssim_sample", "spread_skill", "coverage", "chi_square", "evaluations", "seconds",
)  # fmt: skip


class Images(Table):
    """The pictures; see `imaging.pictures.Pictures`."""

    source: Literal["phantoms", "phantom-volume", "folder", "idx", "scikit-image", "head-ct", "mni-t1"] = "phantoms"
    count: int = Field(4, ge=1)
    """How many, at most."""
    size: int = Field(64, ge=8)
    style: Literal["mixed", "flat", "textured"] = "mixed"
    path: str | None = None
    names: list[str | int] = Field(default_factory=list)
    seed: int = Field(0, ge=0)
    slices: int = Field(16, ge=2)
    """Of a volume."""


class Tuning(Table):
    """Validation pictures: phantoms of another seed, never the pictures that are scored."""

    count: int = Field(4, ge=1)
    seed: int = Field(10_000, ge=0)
    style: Literal["mixed", "flat", "textured"] | None = None
    """Default: that of the pictures, or mixed."""


class SolverEntry(BaseModel):
    """One solver; keys that are not below are settings of its class."""

    model_config = ConfigDict(extra="allow", frozen=True)
    type: str
    """Name of the solver (`assimilate list solvers`), or `module:Class`."""
    label: str | None = None
    prior: str | None = None
    """Another prior than the card's."""
    samples: int = Field(1, ge=1)
    """Samples of each picture."""
    tune: dict[str, list[Any]] = {}
    """Settings to choose among on the validation pictures: name -> candidates."""
    pick: Literal["residual"] | None = None
    """Keep one of the samples: the one whose residual is least (never the one nearest to the truth)."""

    def settings(self) -> dict[str, Any]:
        """The keys that belong to the class."""
        return {k: tuple(v) if isinstance(v, list) else v for k, v in (self.model_extra or {}).items()}

    @property
    def title(self) -> str:
        """The label, or the type."""
        return self.label or self.type


class ImagingFit(BaseModel):
    """How `assimilate fit` trains; keys that are not below are settings of the recipe."""

    model_config = ConfigDict(extra="allow", frozen=True)
    recipe: Literal["prior", "consistency"] = "prior"
    start: str | None = None
    """Weights to go on from."""
    teacher: str | None = None
    """Prior that a consistency model is distilled from."""
    checkpoint: str | None = None

    def settings(self) -> dict[str, Any]:
        """The keys that belong to the recipe."""
        return dict(self.model_extra or {})


class ImagingCard(Table):
    """A comparison of solvers."""

    title: str
    description: str = ""
    source: str = ""
    seed: int = Field(0, ge=0, lt=2**32)
    images: Images
    operator: Component | None = None
    noise: float | Component = Field(default=0.0, ge=0.0)
    """Standard deviation in the units of the measurement, or a noise with settings."""
    prior: str | None = None
    tuning: Tuning = Tuning()
    solver: list[SolverEntry] = Field(default_factory=list)
    scores: list[str] = Field(default_factory=lambda: list(SCORES))
    align: bool = False
    """Score up to half a turn and a shift, which amplitudes of a Fourier transform cannot tell."""
    expected: list[Expected] = Field(default_factory=list)
    fit: ImagingFit | None = None

    @model_validator(mode="after")
    def _whole(self) -> ImagingCard:
        if self.solver and (self.operator is None or self.noise == 0.0 or self.prior is None):
            raise ValueError("a comparison of solvers needs [operator], 'noise' and 'prior'")
        if not self.solver and self.fit is None:
            raise ValueError("a card needs at least one [[solver]], or a [fit] table")
        labels = [entry.title for entry in self.solver]
        if len(set(labels)) < len(labels):
            raise ValueError(f"labels of solvers must differ; given {labels}")
        unknown = [s for s in self.scores if s not in SCORES and s not in ("nrmse", "crps")]
        if unknown:
            raise ValueError(f"unknown score '{unknown[0]}'; there are {', '.join(SCORES)}")
        return self


def shipped() -> dict[str, Path]:
    """Imaging cards that ship with the package, by name."""
    return {path.stem: path for path in sorted(FOLDER.glob("*.toml"))}


def is_imaging(path: Path) -> bool:
    """Whether a TOML file is an imaging card.

    Raises:
        CardError: it is not TOML.
    """
    return "images" in read_table(path)


def load(path: Path, changes: Sequence[str] = ()) -> ImagingCard:
    """Read, change and check an imaging card; see `assimilate.cards.files.load`."""
    return checked(read_table(path), changes, ImagingCard, path.name)
