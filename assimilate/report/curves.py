"""Line pictures: scores over time, ranks of the truth, effective sample sizes, trajectories. Drawn with matplotlib."""

from __future__ import annotations

import base64
import io
import textwrap
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from assimilate.report.colours import TRUTH_COLOUR, method_colour
from assimilate.report.contents import Contents, Entry, first

PER_ROW = 4
"""Methods beside each other in a picture."""
MAX_STEPS = 120
"""Trajectories are drawn for at most this many analyses."""
_COLUMNS = 9
"""Fields beside each other in a still picture; more go into a second band."""
_TITLE = 22
"""Letters of a title that fit above such a field."""
STYLE: Any = {
    "font.family": ["DejaVu Sans"],
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "#9aa4ae",
    "axes.labelcolor": "#3c4854",
    "axes.titlesize": 10.5,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.titlecolor": "#16202a",
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#e8ecef",
    "grid.linewidth": 0.8,
    "xtick.color": "#5b6773",
    "ytick.color": "#5b6773",
    "legend.frameon": False,
    "lines.linewidth": 1.8,
    "lines.solid_capstyle": "round",
    "figure.facecolor": "white",
    "svg.hashsalt": "assimilate",
}


@contextmanager
def figure(columns: int, rows: int = 1, *, width: float = 10.0, height: float = 3.0, **more: Any) -> Iterator[Any]:
    """A figure and its axes in the style of the report, without touching the user's matplotlib settings."""
    import matplotlib as mpl
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    with mpl.rc_context(STYLE):
        made = Figure(figsize=(width, height), layout="constrained")
        FigureCanvasAgg(made)
        yield made, made.subplots(rows, columns, squeeze=False, **more)


def save(made: Any, path: Path) -> str:
    """Save a figure as PNG and return it as a data URI (SVG, which stays sharp at any size)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    made.savefig(path, dpi=160)
    buffer = io.BytesIO()
    made.savefig(buffer, format="svg", metadata={"Date": None})
    return f"data:image/svg+xml;base64,{base64.b64encode(buffer.getvalue()).decode('ascii')}"


def score_curves(contents: Contents, folder: Path) -> str | None:
    """RMSE, CRPS and spread over time, one line per method."""
    wanted = {"rmse": "RMSE of the mean", "crps": "CRPS", "spread": "spread (dashed: RMSE)"}
    kept = {k: v for k, v in wanted.items() if any(f"score_{k}" in e.analysis for e in contents.entries)}
    if not kept or len(contents.times) < 2:
        return None
    units = str(contents.attrs.get("units", ""))
    with figure(len(kept), width=4.2 * len(kept), height=3.1) as (made, axes):
        for axis, (key, title) in zip(axes[0], kept.items(), strict=True):
            for k, entry in enumerate(contents.entries):
                if f"score_{key}" not in entry.analysis:
                    continue
                x, y = entry.analysis["time"].values, entry.analysis[f"score_{key}"].values
                axis.plot(x, y, color=method_colour(k), label=entry.label)
                if key == "spread":
                    axis.plot(x, entry.analysis["score_rmse"].values, color=method_colour(k), lw=1, ls=(0, (3, 2)))
            axis.set_title(title)
            axis.set_ylabel(units if key == "rmse" and units != "1" else "")
            _heights(axis)
            _time_ticks(axis, contents.times)
        _legend(made, axes[0][0])
        return save(made, folder / "scores.png")


def rank_histograms(contents: Contents, folder: Path) -> str | None:
    """Where the truth falls among the members, with the band in which a calibrated ensemble lies."""
    ranked = [(k, e) for k, e in enumerate(contents.entries) if "rank_frequency" in e.analysis]
    if not ranked:
        return None
    columns = min(4, len(ranked))
    rows = -(-len(ranked) // columns)
    with figure(columns, rows, width=3.1 * columns, height=2.5 * rows) as (made, axes):
        for axis in axes.ravel()[len(ranked) :]:
            axis.set_visible(False)
        for axis, (k, entry) in zip(axes.ravel(), ranked, strict=False):
            frequency = entry.analysis["rank_frequency"].values
            count = frequency.size
            axis.bar(np.arange(1, count + 1), frequency * count, width=0.9, color=method_colour(k), alpha=0.85)
            axis.axhline(1.0, color="#16202a", lw=1)
            margin = 2.0 * count * float(np.sqrt((entry.analysis["rank_error"] ** 2).mean()))
            if np.isfinite(margin):
                axis.axhspan(1 - margin, 1 + margin, color="#16202a", alpha=0.10, lw=0)
            axis.set_title(folded(entry.label))
            axis.set_xlabel("rank of the truth")
            axis.set_ylim(0, max(2.0, float(frequency.max() * count) * 1.05))
            axis.grid(axis="x", visible=False)
        axes[0][0].set_ylabel("frequency / uniform")
        return save(made, folder / "ranks.png")


def spectra(contents: Contents, folder: Path) -> str | None:
    """Kinetic-energy spectra of the truth, the members and (dashed) the means, for flows on a periodic square."""
    held = [(k, e) for k, e in enumerate(contents.entries) if "spectrum_of_truth" in e.analysis]
    if not held:
        return None
    with figure(1, width=7.5, height=3.6) as (made, axes):
        axis = axes[0][0]
        true = held[0][1].analysis["spectrum_of_truth"]
        shells, lowest = true["shell"].values, float(true.where(true > 0).min())
        axis.loglog(shells, true.values, color=TRUTH_COLOUR, lw=2.6, label="truth")
        for k, entry in held:
            members = entry.analysis.get("spectrum_of_members")
            if members is not None:
                axis.loglog(shells, members.values, color=method_colour(k), lw=1.5, label=entry.label)
            label = entry.label if members is None else None
            mean = entry.analysis["spectrum_of_mean"].values
            axis.loglog(shells, mean, color=method_colour(k), lw=1.1, ls=(0, (3, 2)), label=label)
        # A smooth mean has next to nothing in small eddies: it must not take the room of the others.
        axis.set_ylim(bottom=1e-2 * lowest)
        marks = [k for k in (1, 2, 5, 10, 20, 50, 100, 200) if k <= shells[-1]]
        axis.set_xticks(marks, [str(k) for k in marks])
        axis.set_xticks([], minor=True)
        axis.set_xlabel("waves around the square")
        axis.set_ylabel("kinetic energy in a shell")
        axis.legend(fontsize=8.5, loc="lower left", bbox_to_anchor=(1.0, 0.0))
        return save(made, folder / "spectra.png")


def sample_sizes(contents: Contents, folder: Path) -> str | None:
    """Effective sample size over time, as a share of the members, for methods with weights."""
    curves = []
    for k, entry in enumerate(contents.entries):
        if "ess" not in entry.analysis:
            continue
        size = float(entry.analysis.attrs.get("members", 1))
        share = entry.analysis["ess"] / size
        share = share.mean("experiment") if "experiment" in share.dims else share
        if size > 1 and float(share.min()) < 0.999:
            curves.append((k, entry, share))
    if not curves or len(contents.times) < 2:
        return None
    with figure(1, width=7.5, height=2.8) as (made, axes):
        axis = axes[0][0]
        for k, entry, share in curves:
            axis.plot(share["time"].values, share.values, color=method_colour(k), label=entry.label)
        axis.set_ylim(0, 1.02)
        axis.set_ylabel("ESS / members")
        _time_ticks(axis, contents.times)
        axis.legend(fontsize=8.5, loc="lower left", bbox_to_anchor=(1.0, 0.0))
        return save(made, folder / "ess.png")


def trajectories(contents: Contents, folder: Path) -> list[str]:
    """For states without a grid: truth, mean and 90 % band of each method, first experiment and analyses.

    One picture for every `PER_ROW` methods.
    """
    if not contents.fields or len(contents.times) < 2:
        return []
    count = len(contents.entries)
    starts = range(0, count, PER_ROW)
    return [_trajectories_of(contents, range(k, min(k + PER_ROW, count)), folder, k // PER_ROW) for k in starts]


def _trajectories_of(contents: Contents, chosen: range, folder: Path, number: int) -> str:
    names = contents.fields[:4]
    entries = contents.entries[chosen.start : chosen.stop]
    width, height = 0.4 + 2.9 * len(entries), 1.6 * len(names) + 0.5
    with figure(len(entries), len(names), width=width, height=height, sharex=True, sharey="row") as (made, axes):
        for row, name in enumerate(names):
            for column, entry in enumerate(entries):
                axis = axes[row][column]
                _one_trajectory(axis, contents, name, chosen[column])
                if row == 0:
                    axis.set_title(folded(entry.label))
                if column == 0:
                    axis.set_ylabel(_axis_label(contents, name))
        for axis in axes[-1]:
            _time_ticks(axis, contents.times)
        return save(made, folder / f"trajectories{number or ''}.png")


def _one_trajectory(axis: Any, contents: Contents, name: str, index: int) -> None:
    entry = contents.entries[index]
    colour = method_colour(index)
    entry = Entry(entry.label, entry.analysis.isel(time=slice(0, MAX_STEPS)))
    x = entry.analysis["time"].values
    mean, std = entry.field(name, "mean"), entry.field(name, "std")
    if name in entry.analysis and "member" in entry.analysis[name].dims:
        members = first(entry.analysis[name])
        low, high = members.quantile([0.05, 0.95], "member").values
        axis.fill_between(x, low, high, color=colour, alpha=0.22, lw=0)
    elif std is not None and mean is not None:
        centre, half = first(mean).values, 1.645 * first(std).values
        axis.fill_between(x, centre - half, centre + half, color=colour, alpha=0.22, lw=0)
    if contents.truth is not None:
        truth = first(contents.truth[name])
        truth = truth.isel(time=truth["time"] <= x[-1])
        axis.plot(truth["time"].values, truth.values, color=TRUTH_COLOUR, lw=1.1)
    if mean is not None:
        axis.plot(x, first(mean).values, color=colour, lw=1.6)


def _axis_label(contents: Contents, name: str) -> str:
    units = contents.truth[name].attrs.get("units", "") if contents.truth is not None else ""
    return f"{name} [{units}]" if units not in ("", "1") else name


def _heights(axis: Any) -> None:
    """From 0, or logarithmic where one method is an order of magnitude above another."""
    levels = [float(np.nanmedian(line.get_ydata())) for line in axis.get_lines()]
    positive = [v for v in levels if v > 0]
    if positive and max(positive) > 6 * min(positive):
        axis.set_yscale("log")
        axis.set_ylim(bottom=0.5 * min(positive))
    else:
        axis.set_ylim(bottom=0)


def _time_ticks(axis: Any, times: np.ndarray) -> None:
    if np.issubdtype(times.dtype, np.datetime64):
        from matplotlib.dates import AutoDateLocator, ConciseDateFormatter

        locator = AutoDateLocator(minticks=2, maxticks=6)
        axis.xaxis.set_major_locator(locator)
        axis.xaxis.set_major_formatter(ConciseDateFormatter(locator))
    else:
        from matplotlib.ticker import MaxNLocator

        axis.xaxis.set_major_locator(MaxNLocator(5))
        axis.set_xlabel("time")


def _legend(made: Any, axis: Any) -> None:
    """A legend below all axes, in as many columns as there is room for."""
    handles, labels = axis.get_legend_handles_labels()
    room = made.get_figwidth() / (0.5 + 0.075 * max(map(len, labels), default=1))
    made.legend(handles, labels, loc="outside lower center", ncols=max(1, min(len(labels), int(room))), fontsize=9)


def folded(label: str, letters: int = 30) -> str:
    """A label broken into lines of so many letters, which fit above a small picture."""
    return "\n".join(textwrap.wrap(label, letters))


def overview(
    panels: list[tuple[str, list[np.ndarray]]], times: list[str], scale: Any, folder: Path, cells: tuple[int, int]
) -> None:
    """A still picture for a README: rows are times, columns truth, observations and means; many make two bands."""
    bands = -(-len(panels) // _COLUMNS)
    rows, columns = len(times), -(-len(panels) // bands)
    titles = [folded(title, _TITLE) for title, _ in panels]
    side, lines = 1.75, max(title.count("\n") + 1 for title in titles)
    height = bands * (side * rows * cells[0] / cells[1] + 0.2 + 0.15 * lines)
    with figure(columns, bands * rows, width=side * columns + 0.85, height=height) as (made, axes):
        made.get_layout_engine().set(w_pad=0.03, h_pad=0.03, wspace=0.0, hspace=0.0)
        cmap, norm = scale.matplotlib()
        for axis in np.ravel(axes):
            axis.set(xticks=[], yticks=[])
            axis.set_facecolor("none")
            axis.grid(visible=False)
            axis.spines[:].set_visible(False)
        for k, (_, frames) in enumerate(panels):
            band, column = divmod(k, columns)
            for row, frame in enumerate(frames):
                axis = axes[band * rows + row][column]
                axis.set_facecolor("#e2e5e8")
                shown = axis.imshow(frame, cmap=cmap, norm=norm, interpolation="nearest", aspect="auto")
                if row == 0:
                    axis.set_title(titles[k], fontsize=8.5)
                if column == 0:
                    axis.set_ylabel(times[row], fontsize=8)
        ends = "both" if scale.kind == "rain" else "neither"
        bar = made.colorbar(shown, ax=axes, shrink=0.6, extend=ends, pad=0.015, fraction=0.03, aspect=30)
        if scale.kind == "rain":
            bar.ax.set_yticks(norm.boundaries, [f"{level:g}" for level in norm.boundaries])
        bar.ax.tick_params(labelsize=7.5, length=0)
        bar.set_label(scale.units, fontsize=8)
        bar.outline.set_visible(False)
        folder.mkdir(parents=True, exist_ok=True)
        made.savefig(folder / "overview.png", dpi=160)


__all__ = ["figure", "overview", "rank_histograms", "sample_sizes", "save", "score_curves", "spectra", "trajectories"]
