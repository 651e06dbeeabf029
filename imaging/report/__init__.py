"""The report of a reconstruction: one self-contained HTML page, and its pictures as PNG files.

    panels.py    what is shown of a result, and its colours
    figures.py   the PNG files
    page.py      the HTML

The page is made of the Dataset alone, so it can be made again from the file at any time; it asks for nothing from the
network. The look is that of `assimilate.report`.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import xarray as xr


def render(result: Any, out: str | os.PathLike[str] | None = None) -> Path:
    """Write `report.html` and `figures/*.png`.

    Args:
        result: what `reconstruct` gave, a file of `write_result`, or the folder that holds `result.nc`.
        out: folder to write to; default: that of the file.

    Returns:
        The path of the page.

    Raises:
        UserError: no readable reconstruction, or a Dataset without `out`.
    """
    from assimilate.errors import UserError
    from imaging.report.figures import write_figures
    from imaging.report.page import write_page
    from imaging.report.panels import panels_of
    from imaging.result import read_result

    if isinstance(result, xr.Dataset):
        if out is None:
            raise UserError("a Dataset has no folder; give out=")
        held, folder = result, Path(out)
    else:
        held, file = read_result(result), Path(result)
        folder = Path(out) if out is not None else (file if file.is_dir() else file.parent)
    rows = panels_of(held)
    write_figures(rows, folder / "figures")
    return write_page(held, rows, folder)


def render_any(result: str | os.PathLike[str], out: str | os.PathLike[str] | None = None) -> Path:
    """The page of a reconstruction, of a comparison of solvers or of an assimilation, whichever the file holds."""
    from assimilate.report import render as render_assimilation
    from imaging.gallery import render as render_comparison

    file = Path(result) / "result.nc" if Path(result).is_dir() else Path(result)
    try:
        with xr.open_dataset(file) as opened:
            kind = opened.attrs.get("kind")
    except (OSError, ValueError):
        # What is wrong with the file is said by the report of assimilations.
        kind = None
    if kind == "reconstruction":
        return render(result, out)
    if kind == "comparison":
        return render_comparison(file, None if out is None else Path(out))
    return render_assimilation(Path(result), None if out is None else Path(out))


__all__ = ["render", "render_any"]
