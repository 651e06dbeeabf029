"""What `assimilate list` shows, with the solvers and the operators of imaging."""

from __future__ import annotations

import dataclasses
import inspect
import re
from collections.abc import Sequence
from typing import Any

from assimilate.cards.listing import LISTS
from assimilate.cards.listing import rows_of as rows_of_engine
from assimilate.errors import UnknownName, UserError
from imaging.operators import OPERATORS, operator_settings
from imaging.solvers import SOLVERS, solver_class
from observations.nonlinear import load_object

WIDE = 130
"""From this many columns on, the table of solvers also says what each one does."""


def rows_of(what: str) -> list[dict[str, Any]]:
    """One row per thing: at least its name and a line that says what it is.

    Raises:
        UnknownName: there is no such list.
    """
    if what == "solvers":
        return solver_rows()
    if what not in LISTS:
        raise UnknownName("list", what, (*LISTS, "solvers"))
    ours = {"operators": operator_rows, "cards": card_rows}
    return rows_of_engine(what) + (ours[what]() if what in ours else [])


def card_rows() -> list[dict[str, Any]]:
    """One row for each imaging card: name, summary, solvers, file."""
    from imaging.cards import load, shipped

    cards = {name: (load(path), path) for name, path in shipped().items()}
    return [
        {"name": name, "summary": card.title, "methods": [entry.title for entry in card.solver], "file": str(path)}
        for name, (card, path) in cards.items()
    ]


def solver_rows() -> list[dict[str, Any]]:
    """One row for each solver: name, summary, needs, backpropagates, exactness, reference, settings, class."""
    rows: list[dict[str, Any]] = []
    for name, target in SOLVERS.items():
        try:
            made = solver_class(name)
        except UserError as error:
            rows.append(_absent(name, target, error))
            continue
        owner: Any = made if inspect.isclass(made) else made.__self__
        summary = (inspect.getdoc(made) or inspect.getdoc(owner) or "").partition("\n")[0]
        rows.append(
            {
                "name": name,
                "summary": summary,
                "needs": list(owner.needs),
                "backpropagates": bool(owner.backpropagates),
                "exactness": str(owner.exactness),
                "reference": str(owner.reference),
                "settings": {f.name: repr(f.default) for f in dataclasses.fields(owner)},
                "class": target,
            }
        )
    return rows


def operator_rows() -> list[dict[str, Any]]:
    """One row for each image operator: name, summary, settings with their defaults, class."""
    rows: list[dict[str, Any]] = []
    for name, target in OPERATORS.items():
        try:
            accepted = operator_settings(name)
        except UserError as error:
            rows.append(_absent(name, target, error))
            continue
        summary = (inspect.getdoc(load_object(target)) or "").partition("\n")[0]
        settings = {n: "required" if p.default is p.empty else repr(p.default) for n, p in accepted.items()}
        rows.append({"name": name, "summary": summary, "settings": settings, "class": target})
    return rows


def print_rows(what: str, rows: Sequence[dict[str, Any]]) -> None:
    """A list as a table; of solvers, what each one needs and how exact it is."""
    from rich import box
    from rich.table import Table

    from assimilate.terminal import console
    from assimilate.terminal import print_rows as print_engine

    if what != "solvers":
        print_engine(what, rows)
        return
    wide = console.width >= WIDE
    table = Table(box=box.SIMPLE_HEAD, title=what, title_justify="left", title_style="bold", padding=(0, 1, 0, 0))
    table.add_column("name", no_wrap=True)
    for column in ("needs", "backpropagates", "exactness", "reference", *(("summary",) if wide else ())):
        table.add_column(column, overflow="fold", style="dim" if column == "reference" else "")
    for row in rows:
        back = {True: "yes", False: "no", None: ""}[row.get("backpropagates")]
        reference = str(row.get("reference", row["summary"]))
        cells = [row["name"], ", ".join(row.get("needs", [])), back, row.get("exactness", ""), short(reference)]
        table.add_row(*cells, *((row["summary"],) if wide else ()))
    console.print(table)


def short(reference: str) -> str:
    """`Chung et al. (2023)` of a full reference; texts of another form stay as they are."""
    found = re.match(r"([^(]*?)\s*\((\d{4})\)", reference)
    if found is None:
        return reference.partition(";")[0]
    first, *others = found.group(1).split(", ")
    return f"{first}{' et al.' if others and not first.endswith('et al.') else ''} ({found.group(2)})"


def _absent(name: str, target: str, error: Exception) -> dict[str, Any]:
    return {"name": name, "summary": f"cannot be imported: {error}", "settings": {}, "class": target}
