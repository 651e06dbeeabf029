"""Running a card: every method on the same problem, scored in the same way, written as each one finishes.

Nothing is computed or written before the whole card, its files and its methods have been checked. A method that fails
is recorded by name; the others go on, and what is written stays.

    DIR/result.nc     groups truth, observations, one per method (first draw), scores
    DIR/scores.json   rows {method, score, value, units}
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
import xarray as xr

from assimilate import registry
from assimilate.cards.card import Card, Method
from assimilate.cards.judging import Judge, expectations
from assimilate.cards.methods import check_labels, initial_prior, method_of
from assimilate.cards.problem import Problem, prepare
from assimilate.cards.records import Outcome, describe, inputs_of, score_table, units_of_scores
from assimilate.cards.resuming import fingerprint, finished_methods
from assimilate.devices import find_device
from assimilate.errors import CardError, UserError, suggestion
from assimilate.experiment import child_seed
from assimilate.feedback import Feedback
from assimilate.filters.base import DivergenceWarning, Filter
from assimilate.runner import run
from assimilate.storage import add_group, replacing, safe_name, write_groups, write_rows
from assimilate.verification.by_field import names_by_field
from assimilate.verification.reference import DISTANCES, Comparison


class Listener(Protocol):
    """Someone who wants to know how far a run is."""

    def started(self, label: str, analyses: int) -> None:
        """A method begins."""

    def advanced(self, label: str) -> None:
        """One analysis is done."""

    def kept(self, label: str) -> None:
        """A method is not run again: an earlier run has finished it."""

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

    def kept(self, label: str) -> None:
        """Nothing."""

    def finished(self, label: str, scores: dict[str, float]) -> None:
        """Nothing."""

    def failed(self, label: str, error: str) -> None:
        """Nothing."""


@dataclass(frozen=True)
class Plan:
    """A card that has been checked as a whole: its problem is prepared and its methods are made.

    Args:
        card: without tasks, or that of one task.
        name: of the card, for the record.
        labels: of the methods, in the order of the card.
        problem: of the first draw.
        methods: ready to run, for the first draw.
        beside: folder of the card's file, for relative paths.
        dtype: float32 or float64.
        device: where to compute.
    """

    card: Card
    name: str
    labels: list[str]
    problem: Problem
    methods: list[Any]
    beside: Path | None
    dtype: torch.dtype
    device: torch.device

    @property
    def analyses(self) -> int:
        """Analyses of each method."""
        return self.problem.observations.sizes["time"] * self.card.draws


def plan(
    card: Card,
    *,
    name: str = "card",
    beside: Path | None = None,
    device: str = "cpu",
    dtype: torch.dtype = torch.float32,
) -> Plan:
    """Check a card, its files and its methods, and prepare what they need; nothing is assimilated or written.

    Args:
        card: a checked card.
        name: of the card, for the record.
        beside: folder of the card's file, for relative paths.
        device: "cpu", "cuda"...
        dtype: float32 or float64.

    Raises:
        UserError: whatever is wrong with the card, its files or the device.
    """
    if card.task:
        raise CardError("this card has tasks: run `assimilate.cards.tasks.execute_tasks`, or one of `cards_of_tasks`")
    place = find_device(device)
    labels = check_labels(card)
    for index, entry in enumerate(card.method):
        registry.check("method", {"type": entry.type, **entry.settings()}, f"method[{labels[index]}]")
    problem = prepare(card, folder=beside, dtype=dtype)
    setting: dict[str, Any] = {"folder": beside, "dtype": dtype, "device": place}
    methods = [
        method_of(problem, entry, f"method[{label}]", **setting)
        for entry, label in zip(card.method, labels, strict=True)
    ]
    check_scores(card, problem, labels)
    return Plan(card, name, labels, problem, methods, beside, dtype, place)


def execute(
    card: Card,
    folder: Path,
    *,
    name: str = "card",
    beside: Path | None = None,
    device: str = "cpu",
    dtype: torch.dtype = torch.float32,
    listener: Listener | None = None,
    resume: bool = False,
) -> Outcome:
    """Run all methods of a card: `plan`, then `carry_out`; see there for the arguments.

    Raises:
        UserError: whatever is wrong with the card, its files or the device; nothing has been written then.
    """
    made = plan(card, name=name, beside=beside, device=device, dtype=dtype)
    make_folder(folder)
    return carry_out(made, folder, listener=listener, resume=resume)


def carry_out(made: Plan, folder: Path, *, listener: Listener | None = None, resume: bool = False) -> Outcome:
    """Run the methods of a plan, one after another, and write each as it finishes.

    Args:
        made: what `plan` returned.
        folder: where results go (`make_folder` has made it).
        listener: is told of the progress.
        resume: keep the methods that the folder's result already holds with the same settings, seed and data.

    Returns:
        Scores, failures and expected scores.

    Raises:
        UserError: `resume`, and the result that is there cannot be read.
    """
    listener = listener or Silent()
    record = _Record(made, folder / "result.nc")
    if resume:
        for label in record.take_over():
            listener.kept(label)
    problems = {0: made.problem}
    for entry, label, method in zip(made.card.method, made.labels, made.methods, strict=True):
        if label in record.outcome.scores:
            continue
        listener.started(label, made.analyses)
        try:
            analysis, scores, spreads = _all_draws(made, entry, label, method, problems, listener)
        except KeyboardInterrupt:
            raise
        except Exception as error:  # one failing method must not take the others' results with it
            record.outcome.failures.append({"method": label, "error": _in_words(error)})
            listener.failed(label, _in_words(error))
            continue
        mark = fingerprint(made.card, entry, label, beside=made.beside, dtype=made.dtype)
        record.add(label, analysis.assign_attrs(fingerprint=mark), scores, spreads)
        listener.finished(label, scores)
    record.close()
    return record.outcome


class _Record:
    """The result file of a plan and what is in it so far."""

    def __init__(self, made: Plan, path: Path) -> None:
        self.made, self.path = made, path
        self.outcome = Outcome(made.labels, folder=path.parent)
        self.compared = Comparison(made.card.scores, made.problem.space)
        self.fresh = True

    def take_over(self) -> list[str]:
        """Keep what an earlier run of the same settings has finished; the labels of those methods."""
        made = self.made
        kept = finished_methods(made.card, made.labels, self.path, beside=made.beside, dtype=made.dtype)
        for label, found in kept.items():
            self._note(label, found.analysis, found.scores, found.spreads)
        if kept:
            groups = {safe_name(label): found.analysis for label, found in kept.items()}
            self._start(groups | {"scores": self._table()})
        return list(kept)

    def add(self, label: str, analysis: xr.Dataset, scores: dict[str, float], spreads: dict[str, float]) -> None:
        """A method that has finished."""
        self._note(label, analysis, scores, spreads)
        if self.fresh:
            self._start({})
        add_group(self.path, safe_name(label), analysis, {"scores": self._table()}, self._attrs())
        write_rows(self.path.parent / "scores.json", self.outcome.rows())

    def close(self) -> None:
        """Methods that failed after the last one that finished."""
        if not self.fresh and self.outcome.failures:
            add_group(self.path, "scores", self._table(), {}, self._attrs())

    def _note(self, label: str, analysis: xr.Dataset, scores: dict[str, float], spreads: dict[str, float]) -> None:
        outcome = self.outcome
        outcome.scores[label], outcome.spreads[label] = scores, spreads
        try:
            found = self.compared.add(label, analysis)
        except UserError as error:
            outcome.failures.append({"method": label, "error": _in_words(error)})
            found = {}
        for other, distances in found.items():
            outcome.scores[other] |= distances
        outcome.units |= units_of_scores({s for of in outcome.scores.values() for s in of}, self.made.problem)
        outcome.checks = expectations(self.made.card, outcome.scores)

    def _start(self, more: dict[str, xr.Dataset]) -> None:
        write_groups(self.path, inputs_of(self.made.problem) | more, self._attrs())
        write_rows(self.path.parent / "scores.json", self.outcome.rows())
        self.fresh = False

    def _table(self) -> xr.Dataset:
        return score_table(self.outcome, self.made.problem, self.made.card)

    def _attrs(self) -> dict[str, Any]:
        made = self.made
        return describe(made.card, made.name, made.problem, self.outcome, str(made.device))


def check_scores(card: Card, problem: Problem, labels: list[str]) -> None:
    """Raise a CardError for a score that no method of this problem can have, or a reference that is no method."""
    reference = card.scores.reference
    if reference is not None and reference not in labels:
        raise CardError(f"scores.reference: there is no method '{reference}'{suggestion(reference, labels)}")
    possible = Judge.possible(problem) + (names_by_field(problem.space) if problem.truth is not None else [])
    for where, name in [("scores.names", n) for n in card.scores.names] + [
        ("expected", e.score) for e in card.expected
    ]:
        if name in possible:
            continue
        if name in DISTANCES:
            raise CardError(f"{where}: '{name}' needs a method to compare with: [scores] reference = 'LABEL'")
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
    made: Plan, entry: Method, label: str, method: Any, problems: dict[int, Problem], listener: Listener
) -> tuple[xr.Dataset, dict[str, float], dict[str, float]]:
    """A method on every draw of the observations: the first analysis, mean scores, their spread."""
    card = made.card
    setting: dict[str, Any] = {"folder": made.beside, "dtype": made.dtype}
    found: list[dict[str, float]] = []
    kept: xr.Dataset | None = None
    for draw in range(card.draws):
        if draw not in problems:
            problems[draw] = prepare(card, draw=draw, **setting)
        problem = problems[draw]
        if draw > 0:
            method = method_of(problem, entry, label, **setting, device=made.device)
        judge = Judge(problem)
        analysis = one_run(problem, entry, label, method, draw, made.dtype, made.device, judge, listener)
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
    quality = problem.quality(method) if entry.observed else None
    feedback = Feedback() if quality is not None and isinstance(method, Filter) else None
    with warnings.catch_warnings():
        # The result says which experiments diverged, and so does the table.
        warnings.simplefilter("ignore", DivergenceWarning)
        analysis = run(
            method,
            problem.observations,
            likelihood=problem.likelihood if entry.observed else None,
            schedule="substep" if problem.divides_steps else "exact",
            quality=quality,
            feedback=feedback,
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
    return analysis if feedback is None else feedback.beside(analysis)


def _in_words(error: Exception) -> str:
    text = " ".join(str(error).split()) or "no message"
    return text if isinstance(error, UserError) else f"{type(error).__name__}: {text}"
