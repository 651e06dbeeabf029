"""The README's table of results, from the score files in `benchmarks/results` and from nothing else.

    python -m benchmarks.tables             print the table
    python -m benchmarks.tables --write     put it into README.md between its markers

A score file is the `scores.json` of one run: a list of rows with method, score, value and units.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

RESULTS = Path(__file__).parent / "results"
MARKERS = ("<!-- results -->", "<!-- end of results -->")
SHOWN: dict[str, tuple[str, tuple[str, ...]]] = {
    "florence-10": ("`florence-draws`, 10 % of the cells", ("rmse", "crps", "spread_skill")),
    "florence-3": ("the same, 3 %", ("rmse", "crps", "spread_skill")),
    "florence-1": ("the same, 1 %", ("rmse", "crps", "spread_skill")),
    "lorenz63": ("`lorenz63`, 15 steps", ("nrmse", "nrmse_member")),
    "lorenz63-long": ("`lorenz63-long`, 60 steps", ("nrmse", "ess")),
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


def _number(value: float) -> str:
    return f"{value:.3f}" if abs(value) < 10 else f"{value:.0f}"


def written(readme: str) -> str:
    """The README with the table between its markers."""
    before, rest = readme.split(MARKERS[0])
    _, after = rest.split(MARKERS[1])
    return f"{before}{MARKERS[0]}\n{table()}\n{MARKERS[1]}{after}"


def main() -> None:
    """Print or write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true")
    if parser.parse_args().write:
        readme = Path(__file__).parent.parent / "README.md"
        readme.write_text(written(readme.read_text()))
    else:
        print(table())


if __name__ == "__main__":
    main()
