"""The HTML page of a report: one file, its pictures inside it, no request to anywhere."""

from __future__ import annotations

import html
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from assimilate.report import curves
from assimilate.report.colours import Scale, method_colour
from assimilate.report.contents import Contents, time_text
from assimilate.report.maps import Atlas, Panel, atlas
from assimilate.report.style import CSS, SCRIPT
from assimilate.storage import write_text

ROWS = {"state": "mean", "member": "one member", "spread": "spread", "error": "error of the mean"}
TITLES = {
    "rmse": "RMSE", "mae": "MAE", "nrmse": "NRMSE", "crps": "CRPS", "crps_fair": "fair CRPS", "ess": "ESS",
    "spread_skill": "spread / skill", "log_evidence": "log evidence", "seconds": "seconds",
    "rmse_member": "RMSE, member", "nrmse_member": "NRMSE, member", "spectrum_error": "spectrum error",
    "mean_distance": "mean distance", "spread_ratio": "spread ratio", "rank_distance": "rank distance",
}  # fmt: skip


def write(contents: Contents, out: str | Path | None = None) -> Path:
    """Write `report.html` and `figures/` beside the result, or to `out`."""
    folder = Path(out) if out is not None else contents.path.parent
    figures = folder / "figures"
    drawn = (
        [a for a in (atlas(contents, name) for name in contents.fields[:3]) if a is not None]
        if contents.entries
        else []
    )
    if drawn:
        still(contents, drawn[0], figures)
    parts = [
        header(contents.attrs, contents.decoded("facts", [])),
        failures(contents.decoded("failures", [])),
        table(contents),
        *(maps(contents, one, index) for index, one in enumerate(drawn)),
        pictures(contents, figures, with_trajectories=not drawn),
        expected(contents.decoded("expected", [])),
        provenance(contents),
    ]
    write_text(folder / "report.html", document(str(contents.attrs.get("title", "Assimilation")), parts))
    return folder / "report.html"


def document(title: str, parts: Sequence[str]) -> str:
    """A whole page from its sections."""
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta name="viewport" content="width=device-width, initial-scale=1"><title>{html.escape(title)}</title>'
        f"<style>{CSS}</style></head>\n<body><main>\n" + "\n".join(p for p in parts if p)
        + f"\n</main><script>{SCRIPT}</script></body></html>\n"
    )  # fmt: skip


def header(attrs: Mapping[str, Any], said: Sequence[str]) -> str:
    """Title, what was done, and the facts in a line."""
    facts = [f"<li>{html.escape(fact)}</li>" for fact in said]
    lead = f'<p class="lead">{html.escape(str(attrs["description"]))}</p>' if attrs.get("description") else ""
    return (
        f'<header><p class="kicker">Assimilate</p><h1>{html.escape(str(attrs.get("title", "Assimilation")))}</h1>{lead}'
        f'<ul class="facts">{"".join(facts)}</ul></header>'
    )


def failures(failed: Sequence[Mapping[str, str]]) -> str:
    """Methods that did not finish, by name (and task)."""
    items = "".join(f"<li><b>{html.escape(who(f))}</b>: {html.escape(f['error'])}</li>" for f in failed)
    return f'<section class="failed"><h2>Did not finish</h2><ul>{items}</ul></section>' if failed else ""


def table(contents: Contents) -> str:
    """The score table, the best of each column in bold."""
    if contents.scores is None or not contents.entries:
        return ""
    scores = contents.scores["value"]
    columns = [c for c in contents.decoded("columns", [str(s) for s in scores["score"].values]) if c in scores["score"]]
    units = dict(zip(scores["score"].values.tolist(), contents.scores["units"].values.tolist(), strict=True))
    spread = contents.scores.get("spread_over_draws")
    heads = "".join(
        f'<th scope="col" title="{html.escape(meaning(c))}">{html.escape(score_title(c))}{unit_text(units[c])}</th>'
        for c in columns
    )
    best = {c: best_of(c, scores.sel(score=c).values) for c in columns}
    rows = []
    for k, entry in enumerate(contents.entries):
        cells = []
        for c in columns:
            value = float(scores.sel(label=entry.label, score=c)) if entry.label in scores["label"] else math.nan
            strong = value == best[c]
            text = number(value, c)
            if spread is not None and math.isfinite(value) and c != "seconds":
                text += f"<small> ± {number(float(spread.sel(label=entry.label, score=c)))}</small>"
            cells.append(f'<td class="{"best" if strong else ""}">{text}</td>')
        dot = f'<span class="dot" style="background:{method_colour(k)}"></span>'
        rows.append(f'<tr><th scope="row">{dot}{html.escape(entry.label)}</th>{"".join(cells)}</tr>')
    note = contents.attrs.get("scores_note", "")
    return (
        f'<section><h2>Scores</h2><div class="scroll"><table><thead><tr><th scope="col">Method</th>{heads}</tr></thead>'
        f'<tbody>{"".join(rows)}</tbody></table></div><p class="note">{html.escape(str(note))}</p></section>'
    )


def maps(contents: Contents, drawn: Atlas, index: int) -> str:
    """All pictures of a field, with a slider over the times."""
    times = [time_text(t) for t in contents.times[list(drawn.times)]]
    start = len(times) // 2
    columns = 1 + max((p.column for p in drawn.panels), default=0)
    cells = [place(p, drawn, start, contents) for p in drawn.panels]
    for row, key in enumerate(("spread", "error")):
        scale = next((p.scale for p in drawn.panels if p.row == key), None)
        if scale is not None:
            label = ROWS[key]
            cells.append(
                f'<figure class="key" style="grid-row:{row + 3};grid-column:1">'
                f"<figcaption><b>{label[0].upper()}{label[1:]}</b></figcaption>{legend(scale, upright=True)}</figure>"
            )
    state = next(p.scale for p in drawn.panels if p.row == "state")
    assert state is not None
    control = (
        f'<div class="control"><button type="button" aria-label="play">▶</button><input type="range" min="0" '
        f'max="{len(times) - 1}" value="{start}" aria-label="time"><output>{html.escape(times[start])}</output></div>'
        if len(times) > 1
        else ""
    )
    frames = {f"{p.row}-{p.column}": [*p.frames] for p in drawn.panels if len(p.frames) > 1}
    notes = {f"{p.row}-{p.column}": [*p.note] for p in drawn.panels if p.note}
    data = json.dumps({"times": times, "frames": frames, "notes": notes})
    return (
        f'<section class="maps" id="maps{index}"><h2>{html.escape(drawn.label[0].upper() + drawn.label[1:])}</h2>'
        f'<div class="bar">{control}{legend(state)}</div><div class="scroll"><div class="grid" '
        f'style="--columns:{columns}">{"".join(cells)}</div></div>'
        f'<script type="application/json" class="frames">{data}</script></section>'
    )


def place(panel: Panel, drawn: Atlas, start: int, contents: Contents) -> str:
    """One picture with its caption, in its cell of the grid."""
    row = 1 + list(ROWS).index(panel.row)
    show = min(start, len(panel.frames) - 1)
    caption = panel.title if panel.row == "state" or panel.column == 0 else ROWS[panel.row]
    head = f"<b>{html.escape(caption)}</b>" if panel.row == "state" or panel.column == 0 else html.escape(caption)
    dot = (
        f'<span class="dot" style="background:{method_colour(panel.column - 1)}"></span>'
        if panel.column and row == 1
        else ""
    )
    note = f"<small>{html.escape(panel.note[show])}</small>" if panel.note else ""
    height, width = drawn.shape
    who = f", {contents.entries[panel.column - 1].label}" if panel.column else ""
    return (
        f'<figure style="grid-row:{row};grid-column:{panel.column + 1}" data-panel="{panel.row}-{panel.column}">'
        f"<figcaption>{dot}{head}{note}</figcaption>"
        f'<img src="{panel.frames[show]}" alt="{html.escape(caption + who)}" '
        f'style="aspect-ratio:{width}/{height}"></figure>'
    )


def legend(scale: Scale, *, upright: bool = False) -> str:
    """The colours of a scale and what they mean."""
    steps = scale.legend()
    swatches = "".join(f'<i style="background:{colour}"><span>{text}</span></i>' for colour, text in steps)
    units = f"<em>{html.escape(scale.units)}</em>" if scale.units not in ("", "1") else ""
    return f'<div class="legend{" upright" if upright else ""}">{swatches}{units}</div>'


def pictures(contents: Contents, figures: Path, *, with_trajectories: bool) -> str:
    """Trajectories (for states without a grid), score curves, ranks and effective sample sizes."""
    if not contents.entries:
        return ""
    sections: list[tuple[str, list[str | None], str]] = []
    if with_trajectories:
        band = "Black: truth. Line: mean. Shade: 5 to 95 % of the ensemble. First experiment."
        sections.append(("Trajectories", [*curves.trajectories(contents, figures)], band))
    sections += [
        ("Over time", [curves.score_curves(contents, figures)], ""),
        (
            "Rank histograms",
            [curves.rank_histograms(contents, figures)],
            "How often the truth has each rank among the members; flat is calibrated, a U has too little spread. Band: "
            "two standard errors, from the scatter over times and experiments.",
        ),
        (
            "Kinetic-energy spectra",
            [curves.spectra(contents, figures)],
            "Means over times and experiments. Full: members; dashed: the mean, which is smoother than any state.",
        ),
        ("Effective sample size", [curves.sample_sizes(contents, figures)], ""),
    ]
    return "".join(section(title, [s for s in sources if s], note) for title, sources, note in sections)


def section(title: str, sources: list[str], note: str) -> str:
    """Plots under a heading; nothing without plots."""
    shown = "".join(f'<img class="plot" src="{source}" alt="{title}">' for source in sources)
    whole = f'<section><h2>{title}</h2><div class="scroll">{shown}</div><p class="note">{note}</p></section>'
    return whole if sources else ""


def expected(checks: Sequence[Mapping[str, Any]]) -> str:
    """What the card expects, and whether it came out."""
    if not checks:
        return ""
    rows = "".join(
        f'<tr class="{"pass" if c["passed"] else "fail"}"><td>{"✓" if c["passed"] else "✗"}</td><th scope="row">'
        f"{html.escape(who(c))}</th><td>{html.escape(c['text'])}</td><td>{number(c['found'])}</td>"
        f'<td class="source">{html.escape(c["source"])}</td></tr>'
        for c in checks
    )
    return (
        '<section><h2>Expected scores</h2><div class="scroll"><table class="expected"><thead><tr><th></th>'
        '<th scope="col">Method</th><th scope="col">Expected</th><th scope="col">Found</th><th scope="col">Source</th>'
        "</tr>"
        f"</thead><tbody>{rows}</tbody></table></div></section>"
    )


def who(entry: Mapping[str, Any]) -> str:
    """The method of a check or failure, after its task where there are several."""
    return f"{entry['task']}: {entry['method']}" if entry.get("task") else str(entry["method"])


def provenance(contents: Contents) -> str:
    """Where every number comes from: versions, seeds, settings, machine in words, sources."""
    attrs = contents.attrs
    general = {
        "Sources": attrs.get("source", ""), "Card": attrs.get("card", ""), "Seed": attrs.get("seed", ""),
        "Version": attrs.get("version", ""), "Device": attrs.get("device", ""), "Dynamics": attrs.get("dynamics", ""),
        "Observed": attrs.get("likelihood", ""), "Start": attrs.get("initial", ""),
    }  # fmt: skip
    rows = [(k, str(v)) for k, v in general.items() if str(v)]
    rows += [(e.label, f"{e.analysis.attrs.get('method', '')} · seed {e.analysis.attrs.get('seed', '')}, "
              f"{e.analysis.attrs.get('members', '')} members, {e.analysis.attrs.get('seconds', '')} s")
             for e in contents.entries]  # fmt: skip
    return listed(rows, str(attrs.get("settings", "")))


def listed(rows: Sequence[tuple[str, str]], card: str) -> str:
    """The section of provenance, with the card as it was run."""
    items = "".join(f"<dt>{html.escape(k)}</dt><dd>{html.escape(v)}</dd>" for k, v in rows)
    whole = (
        f"<details><summary>The card as it was run</summary><pre>{html.escape(card)}</pre></details>" if card else ""
    )
    return f'<section class="provenance"><h2>Provenance</h2><dl>{items}</dl>{whole}</section>'


def still(contents: Contents, drawn: Atlas, figures: Path) -> None:
    """`figures/overview.png`: three times of truth, observations and means."""
    from assimilate.report.stills import overview_of

    overview_of(contents, drawn, figures)


def score_title(name: str) -> str:
    """A score's name for people: `csi_1mm` is "CSI 1 mm"."""
    if name.startswith("csi_"):
        event = name.removeprefix("csi_")
        digits = "".join(c for c in event if c.isdigit() or c in ".-")
        return f"CSI {digits} {event[len(digits) :]}".strip()
    if name.startswith("withheld_"):
        return f"{score_title(name.removeprefix('withheld_'))}, withheld"
    return TITLES.get(name, name)


def meaning(score: str) -> str:
    """What a score is, for those who rest the pointer on its name."""
    from assimilate.verification.statistics import SCORES

    if score.startswith("csi_"):
        return "critical success index: hits / (hits + misses + false alarms)"
    plain = SCORES.get(score.removeprefix("withheld_"), score)
    return f"{plain}, at withheld observations" if score.startswith("withheld_") else plain


def unit_text(units: str) -> str:
    """Units in small type."""
    return "" if units in ("", "1", "s") else f"<small>{html.escape(units)}</small>"


def best_of(score: str, values: Any) -> float:
    """The value that is printed in bold; NaN for scores of which none is best."""
    finite = [float(v) for v in np.asarray(values) if math.isfinite(v)]
    if not finite or score in ("ess", "seconds", "log_evidence") or len(finite) < 2:
        return math.nan
    if score in ("spread_skill", "spread_ratio"):
        return min(finite, key=lambda v: abs(math.log(v)) if v > 0 else math.inf)
    return max(finite) if score.startswith("csi") else min(finite)


def number(value: float | None, score: str = "") -> str:
    """A score for people: three digits after the point where they matter; an en dash for nothing."""
    if value is None or not math.isfinite(value):
        return "–"
    if score == "ess":
        return f"{value:.0f}" if value >= 10 else f"{value:.1f}"
    if score == "seconds":
        return f"{value:.1f}" if value < 100 else f"{value:.0f}"
    if value == 0 or abs(value) >= 1000:
        return f"{value:.0f}"
    return f"{value:.1f}" if abs(value) >= 100 else f"{value:.2f}" if abs(value) >= 10 else f"{value:.3f}"
