"""The scorecard on a terminal: one table a problem."""

from __future__ import annotations

from collections.abc import Sequence

from benchmarks.scorecard.problems import PROBLEMS
from benchmarks.scorecard.run import Row

COLUMNS = {
    "mean": "mean",
    "trace": "var",
    "modes": "modes",
    "mode": "mode 1",
    "sliced": "W2",
    "coverage": "90 %",
    "residual": "chi2",
    "ksd": "KSD",
    "evaluations": "calls",
    "seconds": "CPU s",
}
"""Statistic -> column; see `statistics.py` for what they are."""
LEGEND = (
    "mean: error in posterior standard deviations; var: variance over the posterior's; modes: distance of their "
    "weights; W2: sliced Wasserstein; 90 %: coverage of the interval; chi2 and KSD: over those of exact draws; "
    "calls: network evaluations a sample; CPU s: for 1000 samples. 'exact' shows what chance gives."
)
LARGEST = 100.0
"""Beyond this the digits of a statistic say nothing."""


def print_scorecard(rows: Sequence[Row]) -> None:
    """Print the measured rows as tables, then what was skipped and what failed, with the reasons."""
    from rich import box
    from rich.console import Console
    from rich.table import Table

    console, errors = Console(), Console(stderr=True)
    for problem in [*PROBLEMS, *dict.fromkeys(r["problem"] for r in rows if r["problem"] not in PROBLEMS)]:
        measured = [r for r in rows if r["problem"] == problem and r["status"] == "measured"]
        if not measured:
            continue
        shown = [c for c in COLUMNS if any(c in r for r in measured)]
        exact = next((r["mode_exact"] for r in measured if "mode_exact" in r), None)
        note = "" if exact is None else f", first mode exactly {exact:.3f}"
        table = Table(
            title=f"{problem}: {measured[0]['samples']} samples{note}",
            title_justify="left", title_style="bold", box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0),
        )
        table.add_column("solver", overflow="fold")
        for c in shown:
            table.add_column(COLUMNS[c], justify="right", no_wrap=True)
        for r in measured:
            table.add_row(r["solver"], *(cell(r, c) for c in shown))
        console.print(table)
    if any(r["status"] == "measured" for r in rows):
        console.print(LEGEND, style="dim", highlight=False)
    for status, style in (("skipped", "dim"), ("failed", "red")):
        for r in rows:
            if r["status"] == status:
                where = console if status == "skipped" else errors
                text = f"[{style}]{status}:[/] {r['solver']} on {r['problem']}: "
                where.print(text, end="", highlight=False)
                where.print(r["reason"], style="dim", highlight=False, markup=False, soft_wrap=True)


def cell(row: Row, statistic: str) -> str:
    """A number as the tables show it."""
    if statistic not in row:
        return ""
    value = row[statistic]
    if statistic == "evaluations":
        return "" if value is None else str(value)
    if statistic == "seconds":
        return f"{value:.2g}" if value < 10 else f"{value:.0f}"
    if value is None or value > LARGEST:
        return f">{LARGEST:.0f}"
    return f"{value:.2f}" if statistic in ("trace", "residual") or value >= 10 else f"{value:.3f}"
