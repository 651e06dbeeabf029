"""Running a card: every method on the same problem, scored in the same way, written as each one finishes.

Nothing is computed or written before the whole card, its files and its methods have been checked. A method that fails
is recorded by name; the others go on, and what is written stays.

    DIR/result.nc     groups truth, observations, one per method (first draw), scores
    DIR/scores.json   rows {method, score, value, units}
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
import xarray as xr

from assimilate import registry
from assimilate.cards import Card, Method
from assimilate.devices import device_in_words, find_device
from assimilate.errors import CardError, UserError, suggestion
from assimilate.experiment import child_seed
from assimilate.judging import Judge, expectations
from assimilate.methods import check_labels, initial_prior, method_of
from assimilate.problem import Problem, prepare
from assimilate.results import working_units
from assimilate.runner import run
from assimilate.storage import add_group, replacing, safe_name, write_groups, write_rows
from assimilate.verification import units_of


class Listener(Protocol):
    """Someone who wants to know how far a run is."""

    def started(self, label: str, analyses: int) -> None:
        """A method begins."""

    def advanced(self, label: str) -> None:
        """One analysis is done."""

    def finished(self, label: str, scores: dict[str, float]) -> None:
        """A method is done and written."""

    def failed(self, label: str, error: str) -> None:
        """A method stopped with an error."""


class Silent:
    """A listener that says nothing."""

    def started(self, label: str, analyses: int) -> None:
        """Nothing."""

    def advanced(self, label: str) -> None:
        """Nothing."""

    def finished(self, label: str, scores: dict[str, float]) -> None:
        """Nothing."""

    def failed(self, label: str, error: str) -> None:
        """Nothing."""


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
    """

    labels: list[str]
    scores: dict[str, dict[str, float]] = field(default_factory=dict)
    spreads: dict[str, dict[str, float]] = field(default_factory=dict)
    units: dict[str, str] = field(default_factory=dict)
    failures: list[dict[str, str]] = field(default_factory=list)
    checks: list[dict[str, Any]] = field(default_factory=list)
    folder: Path = Path()

    def rows(self) -> list[dict[str, Any]]:
        """The rows of scores.json."""
        return [
            {"method": label, "score": name, "value": value, "units": self.units[name]}
            for label in self.labels
            for name, value in self.scores.get(label, {}).items()
        ]


def execute(
    card: Card,
    folder: Path,
    *,
    name: str = "card",
    beside: Path | None = None,
    device: str = "cpu",
    dtype: torch.dtype = torch.float32,
    listener: Listener | None = None,
) -> Outcome:
    """Run all methods of a card.

    Args:
        card: a checked card.
        folder: where results go; made when the first method has finished.
        name: of the card, for the record.
        beside: folder of the card's file, for relative paths.
        device: "cpu", "cuda"...
        dtype: float32 or float64.
        listener: is told of the progress.

    Returns:
        Scores, failures and expected scores.

    Raises:
        UserError: whatever is wrong with the card, its files or the device; nothing has been written then.
    """
    listener = listener or Silent()
    place = find_device(device)
    labels = check_labels(card)
    for index, entry in enumerate(card.method):
        registry.check("method", {"type": entry.type, **entry.settings()}, f"method[{labels[index]}]")
    problems = {0: prepare(card, folder=beside, dtype=dtype)}
    first = problems[0]
    setting: dict[str, Any] = {"folder": beside, "dtype": dtype, "device": place}
    methods = [
        method_of(first, entry, f"method[{label}]", **setting) for entry, label in zip(card.method, labels, strict=True)
    ]
    check_scores(card, first)
    make_folder(folder)
    outcome = Outcome(labels, folder=folder)
    path = folder / "result.nc"
    fresh = True
    for entry, label, method in zip(card.method, labels, methods, strict=True):
        times = first.observations.sizes["time"]
        listener.started(label, times * card.draws)
        try:
            analysis, scores, spreads = _all_draws(card, entry, label, method, problems, beside, dtype, place, listener)
        except KeyboardInterrupt:
            raise
        except Exception as error:  # one failing method must not take the others' results with it
            outcome.failures.append({"method": label, "error": _in_words(error)})
            listener.failed(label, _in_words(error))
            continue
        outcome.scores[label], outcome.spreads[label] = scores, spreads
        units = _working(first)
        outcome.units |= {score: units_of(score.removeprefix("withheld_"), units) for score in scores}
        outcome.checks = expectations(card, outcome.scores)
        attrs = describe(card, name, first, outcome, str(place))
        if fresh:
            write_groups(path, _inputs(first), attrs)
        add_group(path, safe_name(label), analysis, {"scores": score_table(outcome, first, card)}, attrs)
        write_rows(folder / "scores.json", outcome.rows())
        fresh = False
        listener.finished(label, scores)
    if not fresh and outcome.failures:
        add_group(
            path, "scores", score_table(outcome, first, card), {}, describe(card, name, first, outcome, str(place))
        )
    return outcome


def check_scores(card: Card, problem: Problem) -> None:
    """Raise a CardError for a score that no method of this problem can have."""
    possible = Judge.possible(problem)
    for where, name in [("scores.names", n) for n in card.scores.names] + [
        ("expected", e.score) for e in card.expected
    ]:
        if name not in possible:
            raise CardError(f"{where}: there is no score '{name}'{suggestion(name, possible)}")


def make_folder(folder: Path) -> None:
    """Make the folder of the results, or say why it cannot be made."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with replacing(folder / "result.nc") as draft:
            draft.touch()
            draft.unlink()
    except OSError as error:
        raise UserError(f"'{folder}' cannot be written to: {error.strerror or error}") from error


def _all_draws(
    card: Card,
    entry: Method,
    label: str,
    method: Any,
    problems: dict[int, Problem],
    beside: Path | None,
    dtype: torch.dtype,
    place: torch.device,
    listener: Listener,
) -> tuple[xr.Dataset, dict[str, float], dict[str, float]]:
    """A method on every draw of the observations: the first analysis, mean scores, their spread."""
    found: list[dict[str, float]] = []
    kept: xr.Dataset | None = None
    for draw in range(card.draws):
        if draw not in problems:
            problems[draw] = prepare(card, draw=draw, folder=beside, dtype=dtype)
        problem = problems[draw]
        if draw > 0:
            method = method_of(problem, entry, label, folder=beside, dtype=dtype, device=place)
        judge = Judge(problem)
        analysis = one_run(problem, entry, label, method, draw, dtype, place, judge, listener)
        found.append(judge.scores() | judge.own(analysis))
        if kept is None:
            kept = judge.annotated(analysis).assign_attrs(label=label)
    assert kept is not None
    names = list(dict.fromkeys(n for f in found for n in f))
    values = {n: np.array([f[n] for f in found if n in f]) for n in names}
    means = {n: float(v.mean()) for n, v in values.items()}
    spreads = {n: float(v.std(ddof=1)) for n, v in values.items()} if card.draws > 1 else {}
    return kept, means, spreads


def one_run(
    problem: Problem,
    entry: Method,
    label: str,
    method: Any,
    draw: int,
    dtype: torch.dtype,
    place: torch.device,
    judge: Judge,
    listener: Listener,
) -> xr.Dataset:
    """One method on one problem."""
    card = problem.card
    # Every method of a card has the same seed: members of the same rank start from the same numbers.
    seed = child_seed(card.seed + draw, "methods")
    initial: Any
    initial, std = problem.initial()
    if initial is None:
        initial = initial_prior(problem, entry.members, seed, dtype)
    return run(
        method,
        problem.observations,
        likelihood=problem.likelihood if entry.observed else None,
        members=entry.members,
        seed=seed,
        initial=initial,
        initial_std=std,
        start=problem.start,
        time_unit=card.truth.time_unit,
        dtype=dtype,
        device=place,
        keep=entry.keep,
        each=judge,
        progress=lambda index: listener.advanced(label),
    )


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
    units = [units_of(n.removeprefix("withheld_"), _working(problem)) for n in names]
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
        "units": _working(problem),
        "dynamics": repr(problem.dynamics) if problem.dynamics is not None else "",
        "likelihood": f"{problem.likelihood.operator!r}, {problem.likelihood.noise!r}",
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


def facts(card: Card, problem: Problem) -> list[str]:
    """The experiment in a few short phrases."""
    space = problem.space
    grid = " × ".join(str(n) for n in space.grid_shape) + " cells" if space.grid else f"{space.size} variables"
    count = problem.observations.sizes["time"]
    said = [grid, f"{count} analyses"]
    if problem.experiments > 1:
        said.append(f"{problem.experiments} truths")
    seen, size = problem.likelihood.operator.obs_size, space.size
    share = f" ({100 * seen / size:.3g} %)" if problem.cells is not None else ""
    said.append(f"{seen} observed value{'s' if seen > 1 else ''} at a time{share}")
    said.append(f"noise {problem.likelihood.noise!r}".replace("GaussianNoise(std=", "std ").rstrip(")"))
    if problem.examiners is not None:
        said.append(f"{problem.examiners.likelihood.operator.obs_size} values withheld")
    if card.draws > 1:
        said.append(f"{card.draws} draws of the observations")
    return said


def scores_note(card: Card, problem: Problem) -> str:
    """What a reader of the table needs to know."""
    units = _working(problem)
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


def _inputs(problem: Problem) -> dict[str, xr.Dataset]:
    groups = {} if problem.truth is None else {"truth": problem.truth}
    return groups | {"observations": problem.observations}


def _working(problem: Problem) -> str:
    found = {working_units(f) for f in problem.space.fields}
    return found.pop() if len(found) == 1 else "mixed units"


def _in_words(error: Exception) -> str:
    text = " ".join(str(error).split()) or "no message"
    return text if isinstance(error, UserError) else f"{type(error).__name__}: {text}"
