"""`assimilate list`: what there is; `assimilate report`: the page of a result again."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def list_command(
    what: Annotated[str, typer.Argument(help="cards, dynamics, operators, methods, guidance, solvers...")] = "cards",
    json_output: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
) -> None:
    """List cards, classes that a card can name, or pretrained weights.

    Examples:
    assimilate list

    assimilate list methods

    assimilate list pretrained --json
    """
    import json

    from imaging.listing import print_rows, rows_of

    rows = rows_of(what)
    if json_output:
        typer.echo(json.dumps(rows, indent=2, ensure_ascii=False))
    else:
        print_rows(what, rows)


def report_command(
    result: Annotated[Path, typer.Argument(help="A result.nc, or the folder that holds it.")],
    out: Annotated[Path | None, typer.Option(help="Folder to write to; default: that of the result.")] = None,
) -> None:
    """Make the HTML page and the pictures of a result again.

    Example:
    assimilate report out/florence
    """
    from imaging.report import render_any

    typer.echo(str(render_any(result, out)))
