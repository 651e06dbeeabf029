"""The report of an imaging card: truth, reconstructions, error bars and errors side by side, and the table of scores.

It reads nothing but `result.nc`, and writes `report.html` and `figures/*.png` beside it.
"""

from __future__ import annotations

import base64
import html
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr

from assimilate.report.page import expected, number
from assimilate.report.style import CSS
from assimilate.storage import write_text

TITLES = {
    "psnr": "PSNR, dB", "ssim": "SSIM", "nrmse": "NRMSE", "psnr_sample": "PSNR of a sample", "crps": "CRPS",
    "ssim_sample": "SSIM of a sample", "spread_skill": "spread / skill", "coverage": "coverage of 90 %",
    "chi_square": "chi-square", "evaluations": "network calls", "seconds": "seconds a picture",
}  # fmt: skip
BEST = {"psnr": 1, "ssim": 1, "psnr_sample": 1, "ssim_sample": 1, "nrmse": -1}
"""Scores of which the largest (1) or smallest (-1) is printed in bold."""
SHOWN = 3
"""Pictures in the figure."""


def render(file: Path, out: Path | None = None) -> Path:
    """Write the page of a result file beside it (or to the folder `out`) and return its path."""
    folder = out or file.parent
    with xr.open_datatree(file) as tree:
        groups = {name: node.to_dataset().load() for name, node in tree.children.items()}
        attrs = {str(k): v for k, v in tree.attrs.items()}
    labels = json.loads(attrs["labels"])
    entries = {d.attrs["label"]: d for d in groups.values() if "label" in d.attrs}
    truth = groups["truth"]["image"].values
    figures = folder / "figures"
    figures.mkdir(parents=True, exist_ok=True)
    overview = _overview(truth, {label: entries[label] for label in labels}, figures / "reconstructions.png")
    page = (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta name="viewport" content="width=device-width, initial-scale=1"><title>{html.escape(attrs["title"])}'
        f"</title><style>{CSS}</style></head>\n<body><main>\n"
        f'<header><p class="kicker">Assimilate</p><h1>{html.escape(attrs["title"])}</h1>'
        f'<p class="lead">{html.escape(str(attrs.get("description", "")))}</p></header>'
        + _table(groups["scores"], json.loads(attrs["columns"]), labels)
        + '<section><h2>Reconstructions</h2><div class="scroll"><img class="plot" alt="reconstructions" src="'
        + overview + '"></div><p class="note">Rows: pictures; below each its error on a common scale, and the spread '
        "of the samples for solvers that have one. Columns: the truth, then the mean of each solver.</p></section>"
        + expected(json.loads(attrs.get("expected", "[]"))) + _failures(json.loads(attrs.get("failures", "[]")))
        + _provenance(attrs, [entries[label] for label in labels])
        + "</main></body></html>\n"
    )  # fmt: skip
    write_text(folder / "report.html", page)
    return folder / "report.html"


def _overview(truth: np.ndarray, entries: dict[str, xr.Dataset], file: Path) -> str:
    """The figure as a data URL; saved to `file` too."""
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    channel = truth.shape[1] // 2
    pictures = min(SHOWN, len(truth))
    spread = any("image_std" in d for d in entries.values())
    kinds = ["mean", "error", *(["spread"] if spread else [])]
    errors = [np.abs(d["image_mean"].values - truth) for d in entries.values()]
    high = float(np.quantile(np.stack(errors), 0.99)) if errors else 1.0
    rows, columns = pictures * len(kinds), 1 + len(entries)
    figure, axes = plt.subplots(rows, columns, figsize=(1.5 * columns + 0.3, 1.5 * rows + 0.4), squeeze=False)
    for axis in axes.flat:
        axis.axis("off")
    for k in range(pictures):
        top = k * len(kinds)
        axes[top, 0].imshow(truth[k, channel], cmap="gray", vmin=0, vmax=1)
        if k == 0:
            axes[0, 0].set_title("truth", fontsize=8)
        for j, (label, data) in enumerate(entries.items(), 1):
            mean = data["image_mean"].values[k, channel]
            axes[top, j].imshow(mean, cmap="gray", vmin=0, vmax=1)
            axes[top + 1, j].imshow(np.abs(mean - truth[k, channel]), cmap="magma", vmin=0, vmax=high)
            if "image_std" in data:
                axes[top + 2, j].imshow(data["image_std"].values[k, channel], cmap="magma", vmin=0, vmax=high)
            if k == 0:
                axes[0, j].set_title(label, fontsize=8, wrap=True)
        for row, kind in enumerate(kinds[1:], 1):
            axes[top + row, 0].text(0.95, 0.5, f"{kind}\n0 to {high:.2f}", fontsize=7, ha="right", va="center")
    figure.subplots_adjust(0.01, 0.01, 0.99, 0.96, 0.04, 0.04)
    figure.savefig(file, dpi=110, facecolor="white")
    plt.close(figure)
    return "data:image/png;base64," + base64.b64encode(file.read_bytes()).decode()


def _table(scores: xr.Dataset, columns: list[str], labels: list[str]) -> str:
    values = scores["value"]
    columns = [c for c in columns if c in values["score"]]
    best = {}
    for c in columns:
        finite = [v for v in values.sel(score=c).values.tolist() if math.isfinite(v)]
        best[c] = (max(finite) if BEST[c] > 0 else min(finite)) if c in BEST and len(finite) > 1 else math.nan
    heads = "".join(f'<th scope="col">{TITLES.get(c, c)}</th>' for c in columns)
    rows = ""
    for label in labels:
        cells = ""
        for c in columns:
            value = float(values.sel(label=label, score=c))
            text = f"{value:.0f}" if c == "evaluations" else number(value)
            cells += f'<td class="{"best" if value == best[c] else ""}">{text}</td>'
        rows += f'<tr><th scope="row">{html.escape(label)}</th>{cells}</tr>'
    return (
        f'<section><h2>Scores</h2><div class="scroll"><table><thead><tr><th scope="col">Solver</th>{heads}</tr></thead>'
        f'<tbody>{rows}</tbody></table></div><p class="note">Means over the pictures. PSNR and SSIM of the mean of the '
        "samples, and of one sample; chi-square: squared whitened residual of the samples per measured value (1 if the "
        "samples fit as well as the truth does); spread over the error of the mean (1 is calibrated); share of the "
        "truth inside the central 90 % of the samples, to half a grey level of 255. A solver of one answer has no "
        "spread.</p></section>"
    )


def _failures(failed: list[dict[str, str]]) -> str:
    items = "".join(f"<li><b>{html.escape(f['method'])}</b>: {html.escape(f['error'])}</li>" for f in failed)
    return f'<section class="failed"><h2>Did not finish</h2><ul>{items}</ul></section>' if failed else ""


def _provenance(attrs: dict[str, Any], entries: list[xr.Dataset]) -> str:
    names = {"source": "Sources", "card": "Card", "seed": "Seed", "version": "Version", "device": "Device",
             "likelihood": "Measured", "prior": "Prior"}  # fmt: skip
    rows = [(title, str(attrs.get(key, ""))) for key, title in names.items() if str(attrs.get(key, ""))]
    rows += [(d.attrs["label"], f"{d.attrs['solver']} · {d.attrs['reference']}") for d in entries]
    listed = "".join(f"<dt>{html.escape(k)}</dt><dd>{html.escape(v)}</dd>" for k, v in rows)
    card = html.escape(str(attrs.get("settings", "")))
    return (
        f'<section class="provenance"><h2>Provenance</h2><dl>{listed}</dl><details><summary>The card as it was run'
        f"</summary><pre>{card}</pre></details></section>"
    )
