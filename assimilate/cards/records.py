"""What a run leaves behind: its outcome as rows, as a table, and as the attributes of the result file."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
import xarray as xr

from assimilate.cards.card import Card
from assimilate.cards.judging import Judge
from assimilate.cards.problem import Problem
from assimilate.devices import device_in_words
from assimilate.engine.network import Network
from assimilate.engine.results import working_units
from assimilate.verification.by_field import BY_FIELD
from assimilate.verification.statistics import units_of


@dataclass
class Outcome:
    """What came out of a run.

    Args:
        labels: methods in the order of the card.
        scores: `{label: {score: value}}`, means over the draws.
        spreads: `{label: {score: standard deviation over the draws}}`; empty with one draw.
        units: `{score: units}`.
        failures: methods that failed, with their errors.
        checks: expected scores and whether they came out.
        folder: where the files are.
        task: name of the task, where the card has several.
    """

    labels: list[str]
    scores: dict[str, dict[str, float]] = field(default_factory=dict)
    spreads: dict[str, dict[str, float]] = field(default_factory=dict)
    units: dict[str, str] = field(default_factory=dict)
    failures: list[dict[str, str]] = field(default_factory=list)
    checks: list[dict[str, Any]] = field(default_factory=list)
    folder: Path = Path()
    task: str | None = None

    def rows(self) -> list[dict[str, Any]]:
        """The rows of scores.json."""
        first = {} if self.task is None else {"task": self.task}
        return [
            first | {"method": label, "score": name, "value": value, "units": self.units[name]}
            for label in self.labels
            for name, value in self.scores.get(label, {}).items()
        ]


def score_table(outcome: Outcome, problem: Problem, card: Card) -> xr.Dataset:
    """All scores as a Dataset (label, score); NaN for what a method has not."""
    known = [*card.scores.names, *(n for s in outcome.scores.values() for n in s)]
    names = sorted(set(known) | set(Judge.possible(problem)), key=lambda n: [*known, n].index(n))
    values = np.full((len(outcome.labels), len(names)), np.nan)
    spreads = values.copy()
    for i, label in enumerate(outcome.labels):
        for j, name in enumerate(names):
            values[i, j] = outcome.scores.get(label, {}).get(name, math.nan)
            spreads[i, j] = outcome.spreads.get(label, {}).get(name, math.nan)
    by_name = units_of_scores(names, problem)
    units = [by_name[n] for n in names]
    # Not "method": that is an argument of Dataset.sel.
    dims = ("label", "score")
    table = {"value": (dims, values), "units": ("score", np.array(units, dtype=object))}
    if card.draws > 1:
        table["spread_over_draws"] = (dims, spreads)
    coords = {"label": np.array(outcome.labels, dtype=object), "score": np.array(names, dtype=object)}
    return xr.Dataset(table, coords)


def describe(card: Card, name: str, problem: Problem, outcome: Outcome, device: str) -> dict[str, Any]:
    """Attributes of the result file: what was done, by what, and what came out."""
    from assimilate import __version__
    from dynamics.transforms import transform_to_dict

    initial = card.initial
    law = {
        "prior": "drawn from the prior",
        "known": "the true first state",
        "perturbed": f"truth + N(0, {initial.std}^2)",
    }
    attrs = {
        "Conventions": "CF-1.11",
        "title": card.title,
        "description": card.description,
        "source": card.source,
        "card": name,
        "settings": card.model_dump_json(indent=2, exclude_defaults=True),
        "seed": card.seed,
        "version": f"assimilate-da {__version__}, torch {torch.__version__}",
        "device": device_in_words(torch.device(device)),
        "units": working_of(problem),
        "dynamics": repr(problem.dynamics) if problem.dynamics is not None else "",
        "likelihood": likelihood_in_words(problem),
        "initial": law[initial.law],
        "labels": json.dumps(outcome.labels),
        "columns": json.dumps(card.scores.names),
        "transforms": json.dumps({f.name: transform_to_dict(f.transform) for f in problem.space.fields}),
        "facts": json.dumps(facts(card, problem), ensure_ascii=False),
        "failures": json.dumps(outcome.failures, ensure_ascii=False),
        "expected": json.dumps(outcome.checks, ensure_ascii=False),
        "scores_note": scores_note(card, problem),
    }
    if problem.cells is not None:
        attrs["observed_cells"] = json.dumps(problem.cells.tolist())
    return attrs


def likelihood_in_words(problem: Problem) -> str:
    """What is observed and how well."""
    if isinstance(problem.likelihood, Network):
        return repr(problem.likelihood)
    return f"{problem.likelihood.operator!r}, {problem.likelihood.noise!r}"


def facts(card: Card, problem: Problem) -> list[str]:
    """The experiment in a few short phrases."""
    space = problem.space
    grid = " × ".join(str(n) for n in space.grid_shape) + " cells" if space.grid else f"{space.size} variables"
    count = problem.observations.sizes["time"]
    said = [grid, f"{count} analyses"]
    if problem.experiments > 1:
        said.append(f"{problem.experiments} truths")
    seen, size = problem.values_at_a_time, space.size
    share = f" ({100 * seen / size:.3g} %)" if problem.cells is not None else ""
    if isinstance(problem.likelihood, Network):
        said.append(f"up to {seen} observed value{'s' if seen > 1 else ''} at a time")
        names = [part.instrument.name for part in problem.likelihood.parts]
        said += [f"instruments {', '.join(names)}"] if len(names) > 1 else []
    else:
        said.append(f"{seen} observed value{'s' if seen > 1 else ''} at a time{share}")
        said.append(f"noise {problem.likelihood.noise!r}".replace("GaussianNoise(std=", "std ").rstrip(")"))
    if problem.examiners is not None:
        said.append(f"{problem.examiners.likelihood.operator.obs_size} values withheld")
    if card.draws > 1:
        said.append(f"{card.draws} draws of the observations")
    return said


def scores_note(card: Card, problem: Problem) -> str:
    """What a reader of the table needs to know."""
    units = working_of(problem)
    parts = []
    if units not in ("", "1"):
        parts.append(f"Errors are in {units}, over all cells and times.")
    if any(n.startswith("csi") for n in card.scores.names):
        parts.append("CSI: hits / (hits + misses + false alarms) of the mean, transformed back.")
    parts.append("CRPS of a method without an ensemble: that of its Gaussian, or its mean absolute error.")
    if card.scores.drop:
        parts.append(f"The first {card.scores.drop} analyses are not scored.")
    if card.draws > 1:
        parts.append(f"Means and standard deviations over {card.draws} draws of the observations; pictures: the first.")
    return " ".join(parts)


def inputs_of(problem: Problem) -> dict[str, xr.Dataset]:
    """The groups that every method was given."""
    groups = {} if problem.truth is None else {"truth": problem.truth}
    return groups | {"observations": problem.observations}


def units_of_scores(names: Iterable[str], problem: Problem) -> dict[str, str]:
    """Units of scores by their names; those of a single field are its own."""
    fields = {f"{s}_{f.name}": units_of(s, working_units(f)) for f in problem.space.fields for s in BY_FIELD}
    known = working_of(problem)
    return {n: fields.get(n, units_of(n.removeprefix("withheld_"), known)) for n in names}


def working_of(problem: Problem) -> str:
    """Units of the state in tensors, which are those of its errors."""
    found = {working_units(f) for f in problem.space.fields}
    return found.pop() if len(found) == 1 else "mixed units"
