"""The pictures as PNG files: each one pixel for pixel (small ones enlarged), and all in one figure."""

from __future__ import annotations

import base64
import io
from pathlib import Path

import numpy as np

from assimilate.storage import replacing
from imaging.report.panels import Panel

SMALLEST = 256
"""Pictures below this many pixels a side are enlarged by a whole factor."""


def write_figures(rows: list[list[Panel]], folder: Path) -> list[Path]:
    """Write `overview.png` and one file for each picture, `NAME.png` or `NAME-K.png` for measurement K."""
    from PIL import Image

    written = []
    for k, panels in enumerate(rows):
        for panel in panels:
            rgb = panel.rgb
            factor = max(1, SMALLEST // max(rgb.shape[:2]))
            file = folder / (f"{panel.key}.png" if len(rows) == 1 else f"{panel.key}-{k}.png")
            with replacing(file) as draft:
                Image.fromarray(np.kron(rgb, np.ones((factor, factor, 1), np.uint8))).save(draft, "PNG")
            written.append(file)
    written.append(_overview(rows, folder / "overview.png"))
    return written


def data_uri(panel: Panel) -> str:
    """A picture as text for the page, one pixel for each of the data's."""
    from PIL import Image

    rgb = panel.rgb
    plain = bool((rgb[..., 0] == rgb[..., 1]).all() and (rgb[..., 1] == rgb[..., 2]).all())
    buffer = io.BytesIO()
    Image.fromarray(rgb[..., 0] if plain else rgb).save(buffer, "PNG", optimize=True)
    return f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode('ascii')}"


def _overview(rows: list[list[Panel]], file: Path) -> Path:
    """All panels with their scales, for papers and talks."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    columns = max(len(panels) for panels in rows)
    width, height = 2.35 * columns, 2.4 * len(rows)
    figure = Figure(figsize=(width, height), dpi=150)
    FigureCanvasAgg(figure)
    axes = figure.subplots(len(rows), columns, squeeze=False)
    # Room in inches for titles above, notes below and the scales on the right of each panel.
    figure.subplots_adjust(
        left=0.08 / width, right=1 - 0.62 / width, top=1 - 0.28 / height, bottom=0.28 / height, wspace=0.34, hspace=0.3
    )
    for line, panels in zip(axes, rows, strict=True):
        for place in line[len(panels) :]:
            place.set_axis_off()
        for place, panel in zip(line, panels, strict=False):
            cmap, norm = panel.scale.matplotlib()
            values = panel.rgb if panel.values.ndim == 3 else np.ma.masked_invalid(panel.values)
            shown = place.imshow(values, cmap=cmap, norm=norm, interpolation="nearest", aspect=_aspect(panel))
            place.set(xticks=[], yticks=[], facecolor="#e2e5e8")
            place.set_title(panel.title, fontsize=9, loc="left", fontweight="bold")
            if panel.note:
                place.set_xlabel(panel.note, fontsize=8, loc="left")
            for spine in place.spines.values():
                spine.set_color("#c9ced3")
            bar = figure.colorbar(shown, cax=place.inset_axes((1.03, 0.0, 0.045, 1.0)))
            bar.ax.tick_params(labelsize=7, length=2)
            bar.outline.set_visible(False)
            if panel.scale.units not in ("", "1"):
                bar.set_label(panel.scale.units, fontsize=7)
    with replacing(file) as draft:
        figure.savefig(draft, format="png")
    return file


def _aspect(panel: Panel) -> float | str:
    """Pictures keep square pixels; sinograms and strips fill their place."""
    height, width = panel.values.shape[:2]
    return "equal" if 0.5 <= height / width <= 2 else "auto"
