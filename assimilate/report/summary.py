"""The page of a card with tasks: one table of all of them, and links to the page of each."""

from __future__ import annotations

import html
import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

import xarray as xr

from assimilate.report.colours import method_colour
from assimilate.report.page import (
    best_of,
    document,
    expected,
    failures,
    header,
    listed,
    meaning,
    number,
    score_title,
    unit_text,
)
from assimilate.storage import write_text

KIND = "tasks"
"""Attribute `kind` of a result file that holds the scores of several tasks."""


@dataclass(frozen=True)
class Summary:
    """The scores of all tasks of a card.

    Args:
        path: the result file.
        attrs: title, description, source, card, folders of the tasks...
        scores: the table, dims (task, label, score).
    """

    path: Path
    attrs: dict[str, Any]
    scores: xr.Dataset

    def decoded(self, key: str, default: Any) -> Any:
        """An attribute that holds JSON."""
        return json.loads(self.attrs[key]) if key in self.attrs else default


def read(path: Path) -> Summary | None:
    """Read the result file of a card with tasks, or the `result.nc` of a folder; None if it is another file or none."""
    file = path / "result.nc" if path.is_dir() else path
    try:
        with xr.open_dataset(file) as root:
            attrs = {str(k): v for k, v in root.attrs.items()}
    except (OSError, ValueError):
        return None
    if attrs.get("kind") != KIND:
        return None
    return Summary(file, attrs, xr.load_dataset(file, group="scores"))


def write(summary: Summary, out: str | Path | None = None) -> Path:
    """Write `report.html` beside the result, or to `out`."""
    folder = Path(out) if out is not None else summary.path.parent
    attrs = summary.attrs
    about = {"Sources": "source", "Card": "card", "Seed": "seed", "Version": "version"}
    rows = [(title, str(attrs[key])) for title, key in about.items() if str(attrs.get(key, ""))]
    said = [f"{summary.scores.sizes['task']} tasks", f"{summary.scores.sizes['label']} methods"]
    parts = [
        header(attrs, said),
        failures(summary.decoded("failures", [])),
        table(summary, _links(summary, folder)),
        expected(summary.decoded("expected", [])),
        listed(rows, str(attrs.get("settings", ""))),
    ]
    write_text(folder / "report.html", document(str(attrs.get("title", "Assimilation")), parts))
    return folder / "report.html"


def table(summary: Summary, links: dict[str, str]) -> str:
    """For each score a group of rows, methods by tasks, the best of each column in bold."""
    scores = summary.scores["value"]
    units = dict(zip(scores["score"].values.tolist(), summary.scores["units"].values.tolist(), strict=True))
    tasks = scores["task"].values.tolist()
    heads = "".join(f'<th scope="col">{links.get(task, html.escape(task))}</th>' for task in tasks)
    groups = []
    for score in summary.decoded("columns", scores["score"].values.tolist()):
        shown = scores.sel(score=score)
        best = {task: best_of(score, shown.sel(task=task).values) for task in tasks}
        rows = []
        for k, label in enumerate(scores["label"].values.tolist()):
            cells = "".join(_cell(summary, task, label, score, best[task]) for task in tasks)
            dot = f'<span class="dot" style="background:{method_colour(k)}"></span>'
            rows.append(f'<tr><th scope="row">{dot}{html.escape(label)}</th>{cells}</tr>')
        title = f"{html.escape(score_title(score))} {unit_text(units[score])}"
        groups.append(
            f'<tbody><tr class="score"><th scope="rowgroup" colspan="{len(tasks) + 1}" '
            f'title="{html.escape(meaning(score))}">{title}</th></tr>{"".join(rows)}</tbody>'
        )
    return (
        '<section><h2>Scores</h2><div class="scroll"><table class="tasks"><thead><tr><th scope="col">Method</th>'
        f"{heads}</tr></thead>{''.join(groups)}</table></div></section>"
    )


def _cell(summary: Summary, task: str, label: str, score: str, best: float) -> str:
    at = {"task": task, "label": label, "score": score}
    value = float(summary.scores["value"].sel(at))
    text = number(value, score)
    if "spread_over_draws" in summary.scores and math.isfinite(value) and score != "seconds":
        text += f"<small> ± {number(float(summary.scores['spread_over_draws'].sel(at)))}</small>"
    return f'<td class="{"best" if value == best else ""}">{text}</td>'


def _links(summary: Summary, folder: Path) -> dict[str, str]:
    """The names of tasks as links to their pages, where these are beside the page."""
    found = {}
    for task, place in summary.decoded("folders", {}).items():
        if (folder / place / "report.html").is_file():
            found[task] = f'<a href="{quote(place)}/report.html">{html.escape(task)}</a>'
    return found
