"""`assimilate scorecard`: solvers and filters on posteriors that are known exactly."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from assimilate.commands.places import reach


def scorecard_command(
    solvers: Annotated[
        list[str] | None, typer.Argument(help="Solvers, filters or 'module:Class' of your own; default: all.")
    ] = None,
    problem: Annotated[
        list[str] | None, typer.Option(help="Posterior to sample; may be given several times; default: all.")
    ] = None,
    samples: Annotated[int, typer.Option(help="Samples of each solver.")] = 2000,
    levels: Annotated[int, typer.Option(help="Noise levels of solvers that leave them open.")] = 400,
    seed: Annotated[int, typer.Option(help="Seed of all random numbers.")] = 0,
    out: Annotated[Path, typer.Option(help="File of the rows; new ones are put beside those in it.")] = Path(
        "out/scorecard.json"
    ),
    resume: Annotated[bool, typer.Option("--resume", help="Keep rows that the file has with these settings.")] = False,
    check: Annotated[bool, typer.Option("--check", help="Exit with 1 unless the expected values come out.")] = False,
    write: Annotated[
        bool, typer.Option("--write", help="Write to benchmarks/results, from which the README is made.")
    ] = False,
) -> None:
    """Measure solvers and filters on posteriors that are known exactly.

    Prints how wrong mean, variance, mode weights and intervals of their samples are, what they cost, and writes it row
    by row.

    Examples:
    assimilate scorecard

    assimilate scorecard mmps diffpir --problem mixture

    assimilate scorecard my_solver:MySolver --samples 500 --levels 100
    """
    from assimilate.terminal import errors
    from benchmarks.scorecard.expected import check as compare
    from benchmarks.scorecard.run import SHIPPED, Settings, run
    from benchmarks.scorecard.terminal import print_scorecard

    reach(Path.cwd() / "solver")
    settings = Settings(samples, levels, seed)
    with errors.status("starting") as status:
        rows = run(
            solvers or (),
            problem or (),
            settings=settings,
            out=SHIPPED if write else out,
            resume=resume,
            started=lambda solver, name: status.update(f"{solver} on {name}"),
        )
    print_scorecard(rows)
    typer.echo(f"rows  {SHIPPED if write else out}")
    missed = []
    if check:
        missed = [c for c in compare(rows, widen=settings.widening) if not c.passed]
        for c in missed:
            typer.echo(f"not as expected: {c.text}", err=True)
    if missed or any(r["status"] == "failed" for r in rows):
        raise typer.Exit(1)
