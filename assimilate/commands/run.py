"""`assimilate run`: all methods of a card on the same observations."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from assimilate.commands.options import (
    DeviceOption,
    DtypeOption,
    OutOption,
    ReportOption,
    SeedOption,
    SetOption,
    dtype_of,
)
from assimilate.commands.places import imaging_card, reach

if TYPE_CHECKING:
    from assimilate.cards.card import Card
    from assimilate.cards.records import Outcome


def run_command(
    card: Annotated[str, typer.Argument(help="Name of a card (`assimilate list cards`) or path of a TOML file.")],
    out: OutOption = None,
    seed: SeedOption = None,
    device: DeviceOption = "cpu",
    dtype: DtypeOption = "float32",
    changes: SetOption = None,
    task: Annotated[
        list[str] | None, typer.Option("--task", help="Run this task of the card; may be given several times.")
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Keep methods that the folder holds with the same settings.")
    ] = False,
    report: ReportOption = True,
    check: Annotated[bool, typer.Option("--check", help="Exit with 1 unless every expected score comes out.")] = False,
) -> None:
    """Run all methods of a card on the same observations and compare them.

    Writes DIR/result.nc (netCDF, one group per method), DIR/scores.json, DIR/report.html and DIR/figures, method by
    method, and prints the table. A card with tasks has these in DIR/TASK, and one table of all tasks in DIR.

    Examples:
    assimilate run florence

    assimilate run lorenz63 --seed 7 --out out/seed7

    assimilate run florence --set observations.fraction=0.03

    assimilate run florence --set method.FlowDAS.members=32

    assimilate run navier-stokes --task "5 %" --resume
    """
    from assimilate.cards.files import find, load
    from assimilate.errors import UserError

    wanted = [*(changes or []), *([f"seed={seed}"] if seed is not None else [])]
    pictures = imaging_card(card)
    if pictures is not None:
        if task or resume:
            raise UserError("--task and --resume are for cards of assimilation; this is an imaging card")
        return _compare(pictures, wanted, out, device, report=report, check=check)
    path = find(card)
    loaded = load(card, wanted)
    folder = out or Path("out") / path.stem
    reach(path)
    setting: dict[str, Any] = {
        "name": path.stem, "beside": path.parent, "device": device, "dtype": dtype_of(dtype), "resume": resume,
    }  # fmt: skip
    run = _run_tasks if loaded.task or task else _run_card
    checks, failed = run(loaded, folder, setting, tasks=task or [], report=report)
    if failed or (check and not all(c["passed"] for c in checks)):
        raise typer.Exit(1)


def _run_card(
    card: Card, folder: Path, setting: dict[str, Any], *, tasks: list[str], report: bool
) -> tuple[list[dict[str, Any]], bool]:
    """A card without tasks: its checks, and whether a method failed."""
    from assimilate.cards.execution import execute
    from assimilate.report import render
    from assimilate.terminal import Progress, console, print_outcome

    with Progress() as listener:
        outcome = execute(card, folder, listener=listener, **setting)
    page = None
    if outcome.scores and report:
        with console.status("drawing the report"):
            page = render(folder)
    print_outcome(card, outcome, page)
    return outcome.checks, bool(outcome.failures)


def _run_tasks(
    card: Card, folder: Path, setting: dict[str, Any], *, tasks: list[str], report: bool
) -> tuple[list[dict[str, Any]], bool]:
    """A card with tasks: their checks, and whether a method failed in one of them."""
    from assimilate.cards.tasks import execute_tasks
    from assimilate.report import render
    from assimilate.terminal import Progress, console, print_tasks

    def finished(outcome: Outcome) -> None:
        if report:
            render(outcome.folder)

    with Progress() as listener:
        outcomes = execute_tasks(card, folder, names=tasks, listener=listener, finished=finished, **setting)
    page = None
    if any(o.scores for o in outcomes) and report:
        with console.status("drawing the report"):
            page = render(folder)
    print_tasks(card, outcomes, folder, page)
    return [c for o in outcomes for c in o.checks], any(o.failures for o in outcomes)


def _compare(path: Path, changes: list[str], out: Path | None, device: str, *, report: bool, check: bool) -> None:
    """Run an imaging card."""
    from assimilate.devices import find_device
    from imaging.cards import load
    from imaging.comparison import compare
    from imaging.gallery import render
    from imaging.terminal import print_comparison, print_scores

    card = load(path, changes)
    folder = out or Path("out") / path.stem
    reach(path)
    outcome = compare(card, folder, name=path.stem, device=find_device(device), say=print_scores)
    page = render(folder / "result.nc") if report and outcome.scores else None
    print_comparison(card, outcome, folder, page)
    if outcome.failures or (check and not all(c["passed"] for c in outcome.checks)):
        raise typer.Exit(1)
