"""What the command prints: progress while it works, the table of scores, lists."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from rich import box
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.progress import Progress as Bars
from rich.table import Table

from assimilate.cards import Card
from assimilate.execution import Outcome
from assimilate.report.page import best_of, number, score_title

console = Console()
errors = Console(stderr=True)


class Progress:
    """A bar per method, on stderr so that the table alone goes to stdout; a listener of `execute`."""

    def __init__(self) -> None:
        self.bars = Bars(
            TextColumn("[bold]{task.description}"),
            BarColumn(bar_width=28),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("[dim]left"),
            TimeRemainingColumn(),
            console=errors,
        )
        self.tasks: dict[str, Any] = {}

    def __enter__(self) -> Progress:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.tasks:
            self.bars.stop()

    def started(self, label: str, analyses: int) -> None:
        """A bar for the method; the first one starts the display, so that an early error stands alone."""
        self.bars.start()
        self.tasks[label] = self.bars.add_task(label, total=analyses)

    def advanced(self, label: str) -> None:
        """One analysis further."""
        self.bars.advance(self.tasks[label])

    def finished(self, label: str, scores: dict[str, float]) -> None:
        """A full bar, also for smoothers, which have no steps."""
        task = self.tasks[label]
        self.bars.update(task, completed=self.bars.tasks[task].total)

    def failed(self, label: str, error: str) -> None:
        """Say so at once; the others go on."""
        self.bars.console.print(f"[red]{label} failed:[/] {error}", highlight=False)


def print_outcome(card: Card, outcome: Outcome, page: Path | None) -> None:
    """The table of scores, expected scores, failures, and where the files are."""
    columns = [c for c in card.scores.names if any(c in s for s in outcome.scores.values())]
    table = Table(
        title=card.title,
        title_justify="left",
        box=box.SIMPLE_HEAD,
        title_style="bold",
        pad_edge=False,
        padding=(0, 1, 0, 0),
    )
    # On a narrow terminal a long label wraps; numbers never do.
    table.add_column("method", min_width=16)
    for c in columns:
        unit = outcome.units.get(c, "1")
        table.add_column(
            score_title(c).replace(" / ", "/\n").replace("CSI ", "CSI\n")
            + ("" if unit in ("1", "s", "members", "nat") else f"\n[dim]{unit}"),
            justify="right",
            no_wrap=True,
        )
    best = {c: best_of(c, [s.get(c, float("nan")) for s in outcome.scores.values()]) for c in columns}
    for label in outcome.labels:
        if label in outcome.scores:
            values = outcome.scores[label]
            cells = [_cell(values.get(c), outcome.spreads.get(label, {}).get(c), c, best[c]) for c in columns]
            table.add_row(label, *cells)
    if outcome.scores:
        console.print(table)
    for check in outcome.checks:
        mark = "[green]✓[/]" if check["passed"] else "[red]✗[/]"
        console.print(f"{mark} {check['method']}: {check['text']}, found {number(check['found'])}", highlight=False)
    for failure in outcome.failures:
        errors.print(f"[red]failed:[/] {failure['method']}: {failure['error']}", highlight=False, soft_wrap=True)
    if outcome.scores:
        console.print(f"[dim]result[/]  {outcome.folder / 'result.nc'}", highlight=False, soft_wrap=True)
    if page is not None:
        console.print(f"[dim]report[/]  {page}", highlight=False, soft_wrap=True)


def _cell(value: float | None, spread: float | None, score: str, best: float) -> str:
    text = number(value, score)
    if spread is not None and score != "seconds":
        # Below the value: a row of values with their scatter beside them is wider than a terminal.
        text += f"\n[dim]± {number(spread, score)}[/]"
    return f"[bold]{text}[/]" if value is not None and value == best else text


def print_rows(what: str, rows: Sequence[Mapping[str, Any]]) -> None:
    """A list as a table: names and one line each."""
    table = Table(box=box.SIMPLE_HEAD, title=what, title_justify="left", title_style="bold")
    shown = [k for k in (rows[0] if rows else {}) if k in ("name", "summary", "settings")]
    for k in shown:
        table.add_column(k, overflow="fold", no_wrap=k == "name", style="dim" if k == "settings" else "")
    for row in rows:
        # Names of settings only; their defaults are in the JSON form and in the class's documentation.
        table.add_row(*(", ".join(row[k]) if isinstance(row[k], dict) else str(row[k]) for k in shown))
    console.print(table)
