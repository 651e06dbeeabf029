"""The README's tables of results, from the files in `benchmarks/results` and from nothing else.

    python -m benchmarks.tables             print the tables
    python -m benchmarks.tables --write     put them into README.md between their markers

A score file is the `scores.json` of one run: a list of rows with method, score, value and units. `scorecard.json` is
what `assimilate scorecard` writes. A table whose markers the README does not have is left out.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"
DIVERGED = 100.0
"""A statistic of the scorecard beyond which a solver diverged."""
SHOWN: dict[str, tuple[str, tuple[str, ...]]] = {
    "florence-10": ("`florence-draws`, 10 % of the cells", ("rmse", "crps", "spread_skill")),
    "florence-3": ("the same, 3 %", ("rmse", "crps", "spread_skill")),
    "florence-1": ("the same, 1 %", ("rmse", "crps", "spread_skill")),
    "lorenz63": ("`lorenz63`, 15 steps", ("nrmse", "nrmse_member")),
    "lorenz63-long": ("`lorenz63-long`, 60 steps", ("nrmse", "ess")),
    "lorenz63-variants": ("`lorenz63-variants`, the same steps", ("nrmse",)),
    "lorenz63-cold": ("`lorenz63-cold`, 400 steps", ("rmse", "crps")),
    "double-well": ("`double-well`, 60 steps", ("crps_fair", "log_evidence")),
}
"""Score file -> title and scores."""
NAMES = {
    "rmse": "RMSE",
    "crps": "CRPS",
    "crps_fair": "fair CRPS",
    "spread_skill": "spread/skill",
    "nrmse": "NRMSE",
    "nrmse_member": "NRMSE of a member",
    "ess": "ESS",
    "log_evidence": "log evidence",
}


def table() -> str:
    """The Markdown table."""
    lines = ["| Experiment | Score | Result of each method |", "|---|---|---|"]
    for name, (title, scores) in SHOWN.items():
        rows = json.loads((RESULTS / f"{name}.json").read_text())
        for position, score in enumerate(scores):
            values = [(r["method"], r["value"]) for r in rows if r["score"] == score and r["value"] is not None]
            text = "; ".join(f"{method} **{_number(value)}**" for method, value in values)
            lines.append(f"| {title if position == 0 else ''} | {NAMES[score]} | {text} |")
    return "\n".join(lines)


IMAGING: dict[str, str] = {
    "ct-20": "CT, 20 views",
    "ct-8": "CT, 8 views",
    "inpainting": "inpainting",
    "deblur-gaussian": "Gaussian blur",
    "deblur-motion": "motion blur",
    "super-resolution": "super-resolution",
    "mri-4x": "MRI, 4x",
}
"""Score file of an imaging card -> title."""


def imaging() -> str:
    """Reconstructions as Markdown: a row for each solver, a column for each card: PSNR in dB and spread over error."""
    found: dict[str, dict[str, dict[str, float]]] = {}
    for card in IMAGING:
        file = RESULTS / f"{card}.json"
        for row in json.loads(file.read_text()) if file.is_file() else []:
            found.setdefault(row["method"], {}).setdefault(card, {})[row["score"]] = row["value"]
    lines = [f"| Solver | {' | '.join(IMAGING.values())} | seconds |", "|---|" + "---:|" * (len(IMAGING) + 1)]
    for solver, cards in found.items():
        cells = []
        for card in IMAGING:
            scores = cards.get(card)
            spread = "" if scores is None or "spread_skill" not in scores else f" ({scores['spread_skill']:.2f})"
            cells.append("" if scores is None else f"{scores['psnr']:.1f}{spread}")
        cost = next(iter(cards.values()))["seconds"]
        lines.append(f"| {solver} | {' | '.join(cells)} | {cost:.1f} |")
    return "\n".join(lines)


def fields() -> str:
    """The Navier-Stokes card as Markdown: a row for each method, a column for each task.

    A cell holds the error relative to the size of the truth and, in brackets, spread over error. The other columns are
    means over the tasks; those of the reference compare with the reference's mean, spread and ranks of the truth.
    """
    file = RESULTS / "navier-stokes-small.json"
    rows = json.loads(file.read_text()) if file.is_file() else []
    found: dict[str, dict[str, dict[str, float]]] = {}
    for row in rows:
        found.setdefault(row["method"], {}).setdefault(row["task"], {})[row["score"]] = row["value"]
    tasks = list(dict.fromkeys(row["task"] for row in rows))
    others = {"spectrum": "spectrum_error", "mean": "mean_distance", "spread": "spread_ratio", "ranks": "rank_distance"}
    columns = [*tasks, *others, "seconds"]
    lines = [f"| Method | {' | '.join(columns)} |", "|---|" + "---:|" * len(columns)]
    for method, scores in found.items():
        cells = [_relative(scores.get(task, {})) for task in tasks]
        cells += [_mean(scores, name, ".2f") for name in others.values()]
        lines.append(f"| {method} | {' | '.join(cells)} | {_mean(scores, 'seconds', '.0f')} |")
    return "\n".join(lines)


def sevir() -> str:
    """The radar card as Markdown, with the scores that its source publishes first."""
    file = RESULTS / "sevir.json"
    rows = json.loads(file.read_text()) if file.is_file() else []
    names = {"RMSE": "rmse", "CSI, 0.3": "csi_0.3", "CSI, 0.5": "csi_0.5", "CRPS": "crps"}
    names["spread/skill"] = "spread_skill"
    found: dict[str, dict[str, float]] = {}
    for row in rows:
        found.setdefault(row["method"], {})[row["score"]] = row["value"]
    lines = [f"| Method | {' | '.join(names)} |", "|---|" + "---:|" * len(names)]
    for method, scores in found.items():
        cells = [f"{scores[name]:.3f}" if name in scores else "" for name in names.values()]
        lines.append(f"| {method} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _mean(scores: dict[str, dict[str, float]], name: str, digits: str) -> str:
    """The mean of a score over the tasks; nothing where a method has none."""
    values = [of_task[name] for of_task in scores.values() if name in of_task]
    return f"{sum(values) / len(values):{digits}}" if values else ""


def _relative(scores: dict[str, float]) -> str:
    spread = f" ({scores['spread_skill']:.2f})" if "spread_skill" in scores else ""
    return f"{scores['nrmse']:.3f}{spread}" if "nrmse" in scores else ""


def _number(value: float) -> str:
    return f"{value:.3f}" if abs(value) < 10 else f"{value:.0f}"


def scorecard() -> str:
    """The scorecard as Markdown: a row for each solver, a column for each problem.

    A cell holds the mean error, the variance ratio and, where the posterior has modes, the distance of their weights;
    for methods that give one answer the mean error alone. "-" = needs something that the problem has not.
    """
    from benchmarks.scorecard.problems import PROBLEMS
    from benchmarks.scorecard.recipes import names
    from benchmarks.scorecard.run import read

    rows = {(r["solver"], r["problem"]): r for r in read(RESULTS / "scorecard.json")}
    shown = [*names(), *dict.fromkeys(s for s, _ in rows if s not in names())]
    lines = [
        f"| Solver | Class | {' | '.join(PROBLEMS)} | Calls | CPU s |",
        "|---|---|" + "---|" * len(PROBLEMS) + "---:|---:|",
    ]
    for name in shown:
        own = [rows[name, p] for p in PROBLEMS if (name, p) in rows]
        measured = [r for r in own if r["status"] == "measured"]
        if not measured:
            continue
        calls = max((r["evaluations"] for r in measured if r["evaluations"] is not None), default=None)
        # The last problem is the largest: its time is what a user will see.
        seconds = f"{measured[-1]['seconds']:.2g}" if measured[-1]["seconds"] < 10 else f"{measured[-1]['seconds']:.0f}"
        cells = " | ".join(_card(rows.get((name, p))) for p in PROBLEMS)
        count = "" if calls is None else str(calls)
        lines.append(f"| `{name}` | {measured[0]['exactness']} | {cells} | {count} | {seconds} |")
    return "\n".join(lines)


def _card(row: dict[str, Any] | None) -> str:
    """One cell of the scorecard."""
    if row is None or row["status"] == "skipped":
        return "-"
    if row["status"] == "failed":
        return "failed"
    values = [row[key] for key in ("mean", "trace", "modes") if key in row]
    if any(v is None or v > DIVERGED for v in values):
        return "diverges"
    return " / ".join(f"{v:.2f}" for v in values)


PUBLISHED = {"published-lorenz63": "Lorenz-63", "published-lorenz96": "Lorenz-96"}
"""Card with documented figures -> its system."""


def published() -> str:
    """Documented and measured errors of classical methods, from the cards and their score files."""
    from assimilate.cards.files import load

    lines = ["| System | Method | Documented | Measured | Diverged |", "|---|---|---:|---:|---:|"]
    for name, system in PUBLISHED.items():
        rows = json.loads((RESULTS / f"{name}.json").read_text())
        found = {(r["method"], r["score"]): r["value"] for r in rows}
        for wanted in load(name).expected:
            if wanted.score != "rmse_time" or wanted.value is None or (wanted.method, "rmse_time") not in found:
                continue
            lost, measured = (found.get((wanted.method, score), 0.0) for score in ("diverged", "rmse_time"))
            count = f"{lost:.0f} of 8" if lost else ""
            lines.append(f"| {system} | {wanted.method} | {wanted.value:g} | {measured:.3f} | {count} |")
    return "\n".join(lines)


def peers() -> str:
    """Ours and other packages on the same truths and observations: errors, and CPU time of a cycle."""
    found = json.loads((RESULTS / "peers.json").read_text())
    lines = [
        "| System | Method | RMSE | the other's | ms | ms in a batch of 16 | the other's | Other |",
        "|---|---|---:|---:|---:|---:|---:|---|",
    ]
    ours = {(r["system"], r["method"]): r for r in found["rows"] if r["who"] == "assimilate"}
    for row in found["rows"]:
        if row["who"] == "assimilate":
            continue
        own = ours[row["system"], row["method"]]
        spent = own["cpu_ms"]
        lines.append(
            f"| {row['system']} | {row['method']} | {_with_error(own)} | {_with_error(row)} | {spent['filter']:.2f} | "
            f"{spent['filter_in_batch']:.2f} | {row['cpu_ms']['filter']:.2f} | {row['who']} {row['version']} |"
        )
    return "\n".join(lines)


def _with_error(row: dict[str, Any]) -> str:
    return f"{row['rmse']:.3f} ± {row['rmse_standard_error']:.3f}"


TABLES: dict[str, Callable[[], str]] = {
    "results": table,
    "published": published,
    "peers": peers,
    "scorecard": scorecard,
    "imaging": imaging,
    "fields": fields,
    "sevir": sevir,
}
"""Name of the markers `<!-- NAME -->` and `<!-- end of NAME -->` -> what stands between them."""


def written(readme: str) -> str:
    """The README with each table between its markers."""
    for name, make in TABLES.items():
        first, last = f"<!-- {name} -->", f"<!-- end of {name} -->"
        if first in readme:
            before, rest = readme.split(first)
            _, after = rest.split(last)
            readme = f"{before}{first}\n{make()}\n{last}{after}"
    return readme


def main() -> None:
    """Print or write the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true")
    if parser.parse_args().write:
        readme = Path(__file__).parent.parent / "README.md"
        readme.write_text(written(readme.read_text()))
    else:
        print("\n\n".join(make() for make in TABLES.values()))


if __name__ == "__main__":
    main()
