"""What `assimilate run` prints of an imaging card."""

from __future__ import annotations

from pathlib import Path

from rich import box
from rich.table import Table

from assimilate.report.page import number
from assimilate.terminal import console, errors
from imaging.cards import ImagingCard
from imaging.comparison import Outcome

SHORT = {
    "psnr": "PSNR", "ssim": "SSIM", "psnr_sample": "sample", "spread_skill": "spread", "coverage": "90 %",
    "evaluations": "calls", "seconds": "seconds",
}  # fmt: skip
"""Scores that are printed, under names that fit; all are in the report."""


def print_scores(label: str, scores: dict[str, float]) -> None:
    """One line on stderr as a solver finishes."""
    errors.print(f"{label}: PSNR {scores['psnr']:.2f} dB, {scores['seconds']:.1f} s a picture", highlight=False)


def print_comparison(card: ImagingCard, outcome: Outcome, folder: Path, page: Path | None) -> None:
    """The table of scores, expected scores, failures, and where the files are."""
    columns = [c for c in card.scores if any(c in s for s in outcome.scores.values()) and c in SHORT]
    table = Table(
        title=card.title, title_justify="left", box=box.SIMPLE_HEAD, title_style="bold", pad_edge=False,
        padding=(0, 1, 0, 0),
    )  # fmt: skip
    table.add_column("solver", min_width=14)
    for c in columns:
        table.add_column(SHORT[c], justify="right", no_wrap=True)
    for label in outcome.labels:
        found = outcome.scores[label]
        table.add_row(label, *("–" if c not in found else
                               f"{found[c]:.0f}" if c == "evaluations" else number(found[c]) for c in columns))
    console.print(table)
    console.print(
        "[dim]PSNR (dB) and SSIM of the mean of the samples; PSNR of one sample; spread over error; share of the truth "
        "inside the central 90 %; network calls and seconds a picture[/]"
    )
    for failed in outcome.failures:
        console.print(f"[red]{failed['method']} failed:[/] {failed['error']}", highlight=False)
    for one in outcome.checks:
        mark = "[green]✓[/]" if one["passed"] else "[red]✗[/]"
        console.print(f"{mark} {one['method']}: {one['text']}, found {number(one['found'])}", highlight=False)
    console.print(f"[bold]wrote[/] {page or folder / 'result.nc'}")
