"""The report of a result: one self-contained HTML page, and its pictures as PNG files.

`render(path)` reads nothing but the result file (groups `truth`, `observations`, one per method, `scores`), so a page
can be made again at any time, on any machine. The page asks for nothing from the network: pictures are inside it.

    contents.py   the result file as Python values       colours.py   colour maps, scales and legends
    maps.py       fields as pictures                     curves.py    scores over time, ranks, trajectories
    page.py       the HTML                               summary.py   that of a card with several tasks
"""

from __future__ import annotations

from pathlib import Path


def render(result: str | Path, out: str | Path | None = None) -> Path:
    """Write `report.html` and `figures/*.png` for a result.

    Args:
        result: a result file, or the folder that holds `result.nc`.
        out: folder to write to; default: that of the result.

    Returns:
        The path of the page.

    Raises:
        UserError: there is no such result.
    """
    from assimilate.report import summary
    from assimilate.report.contents import read
    from assimilate.report.page import write

    tasks = summary.read(Path(result))
    return write(read(Path(result)), out) if tasks is None else summary.write(tasks, out)


__all__ = ["render"]
