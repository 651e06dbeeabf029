"""`assimilate reconstruct`: from files to `result.nc`, `report.html` and PNGs.

The arguments of the command become those of `reconstruct`; nothing is decided here.
"""

from __future__ import annotations

import tomllib
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import xarray as xr

from assimilate.errors import DataError, UserError
from imaging.reading import open_image
from imaging.reconstruction import Progress, reconstruct
from imaging.report import render
from imaging.result import concerns, write_result

GROUPS = ("operator", "solver")


def execute(
    file: Path,
    *,
    operator: str,
    noise: float | None,
    out: Path,
    prior: str,
    solver: str,
    samples: int,
    seed: int,
    device: str,
    dtype: str,
    changes: Sequence[str] = (),
    truth: Path | None = None,
    shape: str | None = None,
    mask: Path | None = None,
    slice: str | None = None,
    variable: str | None = None,
    colour: bool = False,
    at_once: int | None = None,
    report: bool = True,
    progress: Progress | None = None,
) -> tuple[xr.Dataset, Path | None]:
    """Read, reconstruct, write.

    Returns:
        The result, and the path of the page if there is one.

    Raises:
        UserError: whatever a user can get wrong, divergence and a full memory included; nothing is written then.
    """
    if out.exists() and not out.is_dir():
        raise DataError(f"'{out}' is not a folder; give another --out")
    settings = parsed(changes)
    measurement = open_image(file, colour=colour, variable=variable, slice=slice)
    known = None if truth is None else open_image(truth, colour=colour, slice=slice)
    seen = None if mask is None else _seen(mask)
    try:
        with warnings.catch_warnings():
            # The same notes stand in the result and are printed with it.
            warnings.simplefilter("ignore", UserWarning)
            result = reconstruct(
                measurement, operator, prior, solver,
                noise=noise, samples=samples, seed=seed, device=device, dtype=dtype, at_once=at_once,
                shape=None if shape is None else _sides(shape), mask=seen,
                operator_settings=settings["operator"], solver_settings=settings["solver"],
                truth=known, progress=progress,
            )  # fmt: skip
    except FloatingPointError as error:
        raise UserError(str(error)) from error
    except torch.OutOfMemoryError as error:
        raise UserError("the memory is full; compute fewer samples together: --at-once 1") from error
    result = result.assign_attrs(source=file.name, title=f"{result.attrs['solver_name']} of {file.name}")
    try:
        write_result(result, out / "result.nc")
    except OSError as error:
        raise DataError(f"'{out}' cannot be written to: {error}") from error
    return result, render(result, out) if report else None


def parsed(changes: Sequence[str]) -> dict[str, dict[str, Any]]:
    """`operator.std=2` and `solver.steps=50` as settings; values are read as TOML, and as text if they are none.

    Raises:
        UserError: no `=`, or another beginning than `operator.` or `solver.`.
    """
    settings: dict[str, dict[str, Any]] = {group: {} for group in GROUPS}
    for change in changes:
        path, equals, text = change.partition("=")
        group, dot, key = path.strip().partition(".")
        if not equals or not dot or group not in GROUPS or not key.isidentifier():
            raise UserError(f"--set '{change}': expected operator.NAME=VALUE or solver.NAME=VALUE")
        try:
            value = tomllib.loads(f"value = {text}")["value"]
        except tomllib.TOMLDecodeError:
            value = text.strip()
        settings[group][key] = tuple(value) if isinstance(value, list) else value
    return settings


def print_result(result: xr.Dataset, out: Path, page: Path | None) -> None:
    """A small table, what to know of it, and where the files are."""
    from rich import box
    from rich.console import Console
    from rich.table import Table

    console = Console()
    table = Table(box=box.SIMPLE_HEAD, title=result.attrs["title"], title_justify="left", title_style="bold")
    names = {
        "residual_chi_square": "χ²", "rmse": "RMSE", "psnr": "PSNR dB", "coverage": "coverage",
        "evaluations": "evaluations", "seconds": "seconds",
    }  # fmt: skip
    shown = [(key, title) for key, title in names.items() if key in result]
    cells = [f"{int(result[k])}" if k == "evaluations" else f"{float(result[k].mean()):.4g}" for k, _ in shown]
    if "image_std" in result:
        shown.insert(0, ("image_std", "mean std"))
        cells.insert(0, f"{float(result['image_std'].mean()):.4g}")
    for _, title in shown:
        table.add_column(title, justify="right", no_wrap=True)
    table.add_row(*cells)
    console.print(table)
    for note in concerns(result):
        console.print(f"[yellow]note:[/] {note}", highlight=False, soft_wrap=True, markup=True)
    console.print(f"[dim]result[/]  {out / 'result.nc'}", highlight=False, soft_wrap=True)
    if page is not None:
        console.print(f"[dim]report[/]  {page}", highlight=False, soft_wrap=True)


def _seen(file: Path) -> np.ndarray:
    """A mask from a picture or an array: what is not 0 (black) is seen."""
    values = open_image(file).values
    if values.dtype.kind not in "biuf":
        raise DataError(f"mask '{file}' holds {values.dtype} values; expected a picture or an array of 0 and 1")
    low, high = float(values.min()), float(values.max())
    if not bool(np.isin(values, [low, high]).all()) or low != 0:
        raise DataError(f"mask '{file}' holds values from {low:g} to {high:g}; expected black (not seen) and white")
    return values > 0


def _sides(text: str) -> tuple[int, ...]:
    parts = text.replace("x", ",").split(",")
    if not all(part.strip().isdigit() for part in parts):
        raise UserError(f"--shape '{text}': expected rows,columns or channels,rows,columns, for example 64,64")
    return tuple(int(part) for part in parts)
