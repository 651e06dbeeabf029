"""Running a card with tasks: the same methods in several settings, one folder each, one table.

    DIR/TASK/         what a card without tasks leaves in DIR
    DIR/result.nc     the scores of all tasks (task, label, score)
    DIR/scores.json   rows {task, method, score, value, units}

All tasks are checked and prepared before the first is computed. The files of DIR are renewed when a task has finished.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import xarray as xr

from assimilate.cards.card import Card
from assimilate.cards.execution import Listener, Plan, Silent, carry_out, make_folder, plan
from assimilate.cards.files import cards_of_tasks, folder_of
from assimilate.cards.judging import expectations
from assimilate.cards.methods import check_labels
from assimilate.cards.records import Outcome
from assimilate.cards.resuming import finished_methods
from assimilate.errors import UnknownName, UserError
from assimilate.report.summary import KIND
from assimilate.storage import write_groups, write_rows


def chosen_tasks(card: Card, names: Sequence[str] = (), file: str = "card") -> dict[str, Card]:
    """The cards of the tasks with these names, in the order of the card; all of them without names.

    Raises:
        UserError: there is no such task, or the card has none.
    """
    cards = cards_of_tasks(card, file)
    for name in names:
        if not cards:
            raise UserError(f"--task '{name}': this card has no [[task]]")
        if name not in cards:
            raise UnknownName("task", name, cards)
    return {name: one for name, one in cards.items() if name in names or not names}


def execute_tasks(
    card: Card,
    folder: Path,
    *,
    names: Sequence[str] = (),
    name: str = "card",
    beside: Path | None = None,
    device: str = "cpu",
    dtype: torch.dtype = torch.float32,
    listener: Listener | None = None,
    resume: bool = False,
    finished: Callable[[Outcome], None] | None = None,
) -> list[Outcome]:
    """Run tasks of a card, one after another.

    Args:
        card: a checked card with tasks.
        folder: where results go.
        names: of the tasks to run; default: all.
        name: of the card, for the record.
        beside: folder of the card's file, for relative paths.
        device: "cpu", "cuda"...
        dtype: float32 or float64.
        listener: is told of the progress; labels are "TASK: METHOD".
        resume: keep what the folder already holds with the same settings, also of tasks that are not run now.
        finished: called with the outcome of each task when its files are written.

    Returns:
        The outcome of each task, in the order of the card: those run now, and with `resume` those that were there.

    Raises:
        UserError: whatever is wrong with any of the tasks; nothing has been written then.
    """
    wanted = chosen_tasks(card, names)
    setting: dict[str, Any] = {"beside": beside, "dtype": dtype}
    plans: dict[str, Plan] = {}
    for task, one in wanted.items():
        try:
            plans[task] = plan(one, name=f"{name}, {task}", device=device, **setting)
        except UserError as error:
            raise UserError(f"task[{task}]: {error}") from error
    for place in (folder, *(folder / folder_of(task) for task in wanted)):
        make_folder(place)
    outcomes: list[Outcome] = []
    for task, one in cards_of_tasks(card).items():
        place = folder / folder_of(task)
        if task in wanted:
            outcome = carry_out(plans[task], place, listener=_Named(listener or Silent(), task), resume=resume)
        elif resume:
            outcome = found_in(one, place, **setting)
        else:
            continue
        outcomes.append(replace(outcome, task=task))
        if any(o.scores for o in outcomes):
            write_summary(card, outcomes, folder, name)
        if outcome.scores and task in wanted and finished is not None:
            finished(outcomes[-1])
    return [o for o in outcomes if o.task in wanted or o.scores]


def write_summary(card: Card, outcomes: Sequence[Outcome], folder: Path, name: str) -> None:
    """Write the scores of all tasks so far: result.nc and scores.json."""
    from assimilate import __version__

    done = [o for o in outcomes if o.scores]
    attrs: dict[str, Any] = {
        "kind": KIND,
        "title": card.title,
        "description": card.description,
        "source": card.source,
        "card": name,
        "seed": card.seed,
        "version": f"assimilate-da {__version__}, torch {torch.__version__}",
        "settings": card.model_dump_json(indent=2, exclude_defaults=True),
        "folders": json.dumps({o.task: o.folder.name for o in done}, ensure_ascii=False),
        "columns": json.dumps(columns_of(card, done)),
        "failures": json.dumps([{"task": o.task} | f for o in outcomes for f in o.failures], ensure_ascii=False),
        "expected": json.dumps([{"task": o.task} | c for o in done for c in o.checks], ensure_ascii=False),
    }
    write_groups(folder / "result.nc", {"scores": task_table(done)}, attrs)
    write_rows(folder / "scores.json", [row for o in done for row in o.rows()])


def task_table(outcomes: Sequence[Outcome]) -> xr.Dataset:
    """All scores as a Dataset (task, label, score); NaN for what a method has not."""
    labels = list(dict.fromkeys(label for o in outcomes for label in o.labels if label in o.scores))
    scores = list(dict.fromkeys(s for o in outcomes for found in o.scores.values() for s in found))
    nothing: dict[str, float] = {}

    def table(which: Callable[[Outcome], Mapping[str, Mapping[str, float]]]) -> np.ndarray:
        return np.array([[[which(o).get(k, nothing).get(s, np.nan) for s in scores] for k in labels] for o in outcomes])

    units = {k: v for o in outcomes for k, v in o.units.items()}
    dims = ("task", "label", "score")
    content: dict[str, Any] = {"value": (dims, table(lambda o: o.scores))}
    content["units"] = ("score", np.array([units.get(s, "1") for s in scores], dtype=object))
    if any(found for o in outcomes for found in o.spreads.values()):
        content["spread_over_draws"] = (dims, table(lambda o: o.spreads))
    names = {"task": [o.task for o in outcomes], "label": labels, "score": scores}
    return xr.Dataset(content, {k: np.array(v, dtype=object) for k, v in names.items()})


def columns_of(card: Card, outcomes: Sequence[Outcome]) -> list[str]:
    """Scores of the printed table: those that the card (or a task) names and some method has, and the seconds."""
    named = [*card.scores.names, *(n for one in cards_of_tasks(card).values() for n in one.scores.names), "seconds"]
    return [n for n in dict.fromkeys(named) if any(n in found for o in outcomes for found in o.scores.values())]


def found_in(card: Card, folder: Path, *, beside: Path | None, dtype: torch.dtype) -> Outcome:
    """What a folder holds of a task, nothing being run."""
    labels = check_labels(card)
    kept = finished_methods(card, labels, folder / "result.nc", beside=beside, dtype=dtype)
    scores = {label: found.scores for label, found in kept.items()}
    units = {score: unit for found in kept.values() for score, unit in found.units.items()}
    spreads = {label: found.spreads for label, found in kept.items()}
    return Outcome(labels, scores, spreads, units, checks=expectations(card, scores), folder=folder)


class _Named:
    """A listener of one task: labels carry its name."""

    def __init__(self, listener: Listener, task: str) -> None:
        self.listener, self.task = listener, task

    def started(self, label: str, analyses: int) -> None:
        self.listener.started(f"{self.task}: {label}", analyses)

    def advanced(self, label: str) -> None:
        self.listener.advanced(f"{self.task}: {label}")

    def kept(self, label: str) -> None:
        self.listener.kept(f"{self.task}: {label}")

    def finished(self, label: str, scores: dict[str, float]) -> None:
        self.listener.finished(f"{self.task}: {label}", scores)

    def failed(self, label: str, error: str) -> None:
        self.listener.failed(f"{self.task}: {label}", error)
