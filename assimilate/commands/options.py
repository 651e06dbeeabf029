"""Options that several commands share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

SeedOption = Annotated[int | None, typer.Option(help="Seed of all random numbers; default: the card's.")]
DeviceOption = Annotated[str, typer.Option(help="Where to compute: cpu, cuda, cuda:1...")]
SetOption = Annotated[
    list[str] | None,
    typer.Option(
        "--set", metavar="PATH=VALUE", help="Change one value of the card, or of a task; may be given several times."
    ),
]
DtypeOption = Annotated[str, typer.Option(help="Precision: float32 or float64.")]
ReportOption = Annotated[bool, typer.Option("--report/--no-report", help="Whether to draw the page.")]
OutOption = Annotated[Path | None, typer.Option(help="Folder of the results; default: out/CARD.")]


def dtype_of(name: str) -> Any:
    """The precision with this name.

    Raises:
        UserError: there is no such precision.
    """
    import torch

    from assimilate.errors import UserError

    known = {"float32": torch.float32, "float64": torch.float64}
    if name not in known:
        raise UserError(f"--dtype '{name}'; expected float32 or float64")
    return known[name]
