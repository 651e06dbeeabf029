"""The figure of `benchmarks.accuracy_cost`: a row of panels for each study, a column for each task.

A rule that diverges leaves the panel at the top: an open triangle on the upper edge stands for it. A ring marks the
recommended setting.
"""

from __future__ import annotations

from typing import Any

COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00", "#6a51a3")
SCORES = {"rmse": ("RMSE of the mean", "#0072b2"), "crps": ("CRPS", "#d55e00"), "spread": ("spread", "#009e73")}
STUDIES = {
    "levels": ("one guided step: rules and levels", "processor seconds a member"),
    "draws": ("one guided step: J draws of Monte Carlo", "draws J"),
    "members": ("whole runs: members of FlowDAS", "processor seconds a run"),
}
"""Study -> title and horizontal axis."""
LIMIT = 4.0
"""The top of the panels of a step, in units of the RMSE without observations: what is above has diverged."""


def figure_of(rows: list[dict]) -> Any:
    """A matplotlib Figure of all studies that have rows, each as `accuracy_cost` makes it."""
    import matplotlib
    from matplotlib.figure import Figure

    tasks = list(dict.fromkeys(row["task"] for row in rows))
    studies = [study for study in STUDIES if any(row["study"] == study for row in rows)]
    look: Any = {"font.size": 9, "axes.spines.top": False, "axes.spines.right": False, "axes.titlesize": 10}
    with matplotlib.rc_context(look):
        figure = Figure(figsize=(2.9 * len(tasks) + 2.4, 2.9 * len(studies)), dpi=130, layout="constrained")
        axes = figure.subplots(len(studies), len(tasks), squeeze=False)
        for i, study in enumerate(studies):
            title, across = STUDIES[study]
            for j, task in enumerate(tasks):
                axis = axes[i][j]
                mine = [row for row in rows if row["task"] == task]
                {"levels": _levels, "draws": _draws, "members": _members}[study](axis, mine)
                axis.set_xlabel(across)
                axis.grid(True, which="major", color="#e3e7eb", linewidth=0.8)
                axis.set_axisbelow(True)
                if i == 0:
                    axis.set_title(task, fontweight="bold")
                if j == 0:
                    axis.set_ylabel("RMSE of the mean" if study != "members" else "error and spread")
            if study == "levels":
                counts = sorted({row["levels"] for row in rows if row["study"] == study})
                title += f"\n(points of a line: {', '.join(map(str, counts))} levels)"
            # The last panel has what the first has: one legend a row, beside it.
            handles, labels = axes[i][-1].get_legend_handles_labels()
            legend = axes[i][-1].legend(
                handles, labels, title=title, loc="center left", bbox_to_anchor=(1.03, 0.5), frameon=False, fontsize=8
            )
            legend.get_title().set_fontweight("bold")
            legend.get_title().set_fontsize(8.5)
        return figure


def _levels(axis: Any, rows: list[dict]) -> None:
    """RMSE over seconds, a line a rule with a point for each number of levels."""
    top = _frame(axis, rows)
    mine = [row for row in rows if row["study"] == "levels"]
    seconds = [row["seconds"] for row in mine]
    rules = [rule for rule in dict.fromkeys(row["rule"] for row in mine) if rule != "no observation"]
    for rule, colour in zip(rules, COLOURS, strict=False):
        points = [row for row in mine if row["rule"] == rule]
        _line(axis, [p["seconds"] for p in points], points, top, colour=colour, label=rule)
        for point in points:
            if point.get("recommended"):
                _ring(axis, point["seconds"], point["rmse"], f"recommended: {point['levels']} levels")
                words = f"{point['passes']:.2g} passes\na level"
                axis.annotate(
                    words, (point["seconds"], point["rmse"]), (0, -12), textcoords="offset points", fontsize=7,
                    ha="center", va="top", color=colour,
                )  # fmt: skip
    _decades(axis, "x", min(seconds) * 0.8, max(seconds) * 1.25)


def _draws(axis: Any, rows: list[dict]) -> None:
    """RMSE over J."""
    top = _frame(axis, rows)
    mine = [row for row in rows if row["study"] == "draws"]
    counts = sorted({row["draws"] for row in mine})
    for levels, colour in zip(dict.fromkeys(row["levels"] for row in mine), ("#6a51a3", "#e69f00"), strict=False):
        points = [row for row in mine if row["levels"] == levels]
        _line(axis, [p["draws"] for p in points], points, top, colour=colour, label=f"Monte Carlo, {levels} levels")
    axis.set_xscale("log")
    axis.set_xticks(counts, [str(count) for count in counts])
    axis.minorticks_off()
    axis.set_xlim(min(counts) * 0.7, max(counts) * 1.4)


def _members(axis: Any, rows: list[dict]) -> None:
    """Scores over seconds of a run."""
    mine = [row for row in rows if row["study"] == "members"]
    seconds = [row["seconds"] for row in mine]
    for name, (label, colour) in SCORES.items():
        values = [row["rmse"] * row["spread_skill"] if name == "spread" else row[name] for row in mine]
        axis.plot(seconds, values, "o-", markersize=4, color=colour, label=label)
        for row, value in zip(mine, values, strict=True):
            if name == "rmse" and row.get("recommended"):
                _ring(axis, row["seconds"], value, f"recommended: {row['members']} members")
    for row in mine:
        axis.annotate(
            f"N = {row['members']}" if row is mine[0] else str(row["members"]), (row["seconds"], row["crps"]), (0, -6),
            textcoords="offset points", fontsize=7, ha="center", va="top", color="#33404c",
        )  # fmt: skip
    axis.set_ylim(0, 1.15 * max(axis.dataLim.y1, 1e-9))
    _decades(axis, "x", min(seconds) * 0.8, max(seconds) * 1.25)


def _frame(axis: Any, rows: list[dict]) -> float:
    """The lines that a step is compared with, and the top of the panel."""
    known = {row["study"]: row for row in rows if row["rule"] == "simulator, 256 members"}
    free = [row["rmse"] for row in rows if row["rule"] == "no observation" and row["rmse"] is not None]
    if free:
        axis.axhline(min(free), color="#8a95a0", linewidth=1.2, linestyle=":", label="no observation")
    bottom = min(row["rmse"] for row in rows if row["study"] != "members" and row["rmse"] is not None)
    if "reference" in known:
        value = known["reference"]["rmse"]
        axis.axhline(value, color="#16202a", linewidth=1.2, linestyle="--", label="simulator, EnKF, 256 members")
    top = LIMIT * (min(free) if free else 1.0)
    _decades(axis, "y", bottom / 1.5, top)
    return top


def _line(axis: Any, across: list[float], points: list[dict], top: float, *, colour: str, label: str) -> None:
    """A rule; what diverged stands as an open triangle on the upper edge."""
    values = [top if p["rmse"] is None else min(p["rmse"], top) for p in points]
    axis.plot(across, values, "-", color=colour, linewidth=1.4, zorder=2)
    gone = [value >= top for value in values]
    for lost, marker in ((False, "o"), (True, "^")):
        chosen = [(x, y) for x, y, out in zip(across, values, gone, strict=True) if out == lost]
        shown = label if not lost or all(gone) else None
        if chosen:
            axis.plot(
                *zip(*chosen, strict=True), marker, color=colour, markersize=6 if lost else 4.5, clip_on=False,
                markerfacecolor="white" if lost else colour, zorder=3,
                label=shown if not lost else (f"{shown}: diverges" if shown else None),
            )  # fmt: skip


def _ring(axis: Any, x: float, y: float, label: str) -> None:
    axis.plot([x], [y], "o", markersize=11, markerfacecolor="none", color="#16202a", label=label, zorder=4)


def _decades(axis: Any, which: str, low: float, high: float) -> None:
    """A logarithmic axis from `low` to `high` with ticks that a person can read: 1, 2 and 5 of each decade."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    getattr(axis, f"set_{which}scale")("log")
    getattr(axis, f"set_{which}lim")(low, high)
    line = getattr(axis, f"{which}axis")
    line.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    line.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    line.set_minor_formatter(NullFormatter())
