"""Still pictures of maps, saved as PNG files for papers and README pages."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from assimilate.report import curves
from assimilate.report.contents import Contents, time_text
from assimilate.report.maps import Atlas


def overview_of(contents: Contents, drawn: Atlas, folder: Path) -> None:
    """`overview.png`: up to three times (rows) of truth, observations and the means of the methods (columns)."""
    shown = drawn.states
    if not shown:
        return
    frames = len(shown[0][1])
    rows = (
        sorted({int(k) for k in np.linspace(0, frames - 1, 5).round()[[1, 2, 3]]})
        if frames >= 5
        else list(range(frames))[:3]
    )
    panels = [(title, [array[k] for k in rows]) for title, array in shown]
    times = [time_text(contents.times[drawn.times[k]]).removesuffix(" UTC") if frames > 1 else "" for k in rows]
    scale = next(p.scale for p in drawn.panels if p.row == "state")
    curves.overview(panels, times, scale, folder, drawn.shape)
