"""What the command prints: progress while it works, the table of scores, lists."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any

from rich import box
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.progress import Progress as Bars
from rich.table import Table

from assimilate.cards.card import Card
from assimilate.cards.records import Outcome
from assimilate.cards.tasks import columns_of
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

    def kept(self, label: str) -> None:
        """Say that it is not run again."""
        self.bars.console.print(f"[dim]kept[/] {label}", highlight=False)

    def failed(self, label: str, error: str) -> None:
        """Say so at once; the others go on."""
        self.bars.console.print(f"[red]{label} failed:[/] {error}", highlight=False)


@contextmanager
def counting(what: str, total: int) -> Iterator[Callable[[int], None]]:
    """A bar on stderr from the first call on; the function that it gives takes how many more are done."""
    bars = Progress().bars
    task = bars.add_task(what, total=total)

    def advance(count: int) -> None:
        bars.start()
        bars.advance(task, count)

    try:
        yield advance
    finally:
        if bars.live.is_started:
            bars.stop()


def print_outcome(card: Card, outcome: Outcome, page: Path | None) -> None:
    """The table of scores, expected scores, failures, and where the files are."""
    columns = [c for c in card.scores.names if any(c in s for s in outcome.scores.values())]
    table = _table(card.title)
    # On a narrow terminal a long label wraps; numbers never do.
    table.add_column("method", min_width=16)
    for c in columns:
        heading = score_title(c).replace(" / ", "/\n").replace("CSI ", "CSI\n")
        table.add_column(heading + _units(outcome.units.get(c, "1"), "\n"), justify="right", no_wrap=True)
    best = {c: best_of(c, [s.get(c, float("nan")) for s in outcome.scores.values()]) for c in columns}
    for label in outcome.labels:
        if label in outcome.scores:
            values = outcome.scores[label]
            cells = [_cell(values.get(c), outcome.spreads.get(label, {}).get(c), c, best[c]) for c in columns]
            table.add_row(label, *cells)
    if outcome.scores:
        console.print(table)
    _print_checks(outcome)
    if outcome.scores:
        _print_files(outcome.folder, page)


def print_tasks(card: Card, outcomes: Sequence[Outcome], folder: Path, page: Path | None) -> None:
    """One table of all tasks: for each score the methods (rows) in the tasks (columns)."""
    done = [o for o in outcomes if o.scores]
    table = _table(card.title)
    table.add_column("method", min_width=16)
    for o in done:
        table.add_column(str(o.task), justify="right", overflow="fold")
    labels = dict.fromkeys(label for o in done for label in o.labels if label in o.scores)
    for score in columns_of(card, done):
        units = next((o.units[score] for o in done if score in o.units), "1")
        table.add_row(f"[bold]{score_title(score)}[/]{_units(units, ' ')}")
        best = [best_of(score, [found.get(score, float("nan")) for found in o.scores.values()]) for o in done]
        for label in labels:
            cells = [
                _cell(o.scores.get(label, {}).get(score), o.spreads.get(label, {}).get(score), score, top)
                for o, top in zip(done, best, strict=True)
            ]
            table.add_row(f"  {label}", *cells)
        table.add_section()
    if done:
        console.print(table)
    for o in outcomes:
        _print_checks(o)
    if done:
        _print_files(folder, page)


def _table(title: str) -> Table:
    look = box.SIMPLE_HEAD
    return Table(title=title, title_justify="left", box=look, title_style="bold", pad_edge=False, padding=(0, 1, 0, 0))


def _units(units: str, before: str) -> str:
    return "" if units in ("1", "s", "members", "nat") else f"{before}[dim]{units}[/]"


def _print_checks(outcome: Outcome) -> None:
    """Expected scores, experiments that diverged, and failures."""
    task = "" if outcome.task is None else f"{outcome.task}: "
    for check in outcome.checks:
        mark = "[green]✓[/]" if check["passed"] else "[red]✗[/]"
        said = f"{mark} {task}{check['method']}: {check['text']}, found {number(check['found'])}"
        console.print(said, highlight=False)
    for label, values in outcome.scores.items():
        if values.get("diverged"):
            said = f"[yellow]diverged:[/] {task}{label}: {values['diverged']:g} experiments, which are in no score"
            errors.print(said, highlight=False, soft_wrap=True)
    for failure in outcome.failures:
        said = f"[red]failed:[/] {task}{failure['method']}: {failure['error']}"
        errors.print(said, highlight=False, soft_wrap=True)


def _print_files(folder: Path, page: Path | None) -> None:
    console.print(f"[dim]result[/]  {folder / 'result.nc'}", highlight=False, soft_wrap=True)
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
