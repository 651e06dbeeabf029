"""The scorecard itself: every entry on every problem, one row each, written as they come.

A row is a plain dict: solver, problem, status ("measured", "skipped" with the reason, "failed" with the error), its
settings, what was run (samples, levels, seed), network evaluations a sample, CPU seconds per 1000 samples, and the
statistics. One entry that fails does not stop the others.
"""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

from benchmarks.scorecard.problems import PROBLEMS
from benchmarks.scorecard.recipes import check_names, draw, names
from benchmarks.scorecard.statistics import Reference, reference, scores
from dynamics.errors import CapabilityError

SHIPPED = Path(__file__).parents[1] / "results" / "scorecard.json"
"""The scorecard that the README shows."""
Row = dict[str, Any]
Status = Literal["measured", "skipped", "failed"]


class Settings(NamedTuple):
    """What a scorecard is made with.

    Attributes:
        samples: of each entry on each problem.
        levels: noise levels of solvers that leave them open.
        seed: of every entry.
    """

    samples: int = 2000
    levels: int = 400
    seed: int = 0

    @property
    def widening(self) -> float:
        """Factor of `expected.BANDS`: chance falls like the root of the samples, the grid's error with its levels."""
        return max(1.0, math.sqrt(2000 / self.samples), math.sqrt(400 / self.levels))


def run(
    solvers: Sequence[str] = (),
    problems: Sequence[str] = (),
    *,
    settings: Settings | None = None,
    out: Path | None = None,
    resume: bool = False,
    started: Callable[[str, str], None] | None = None,
    finished: Callable[[Row], None] | None = None,
) -> list[Row]:
    """Measure entries on problems.

    Args:
        solvers: names of `recipes.names()`, or "module:Class"; all by default.
        problems: names of `PROBLEMS`; all by default.
        settings: see `Settings`.
        out: file to which rows are added one by one; those of the same solver and problem are replaced.
        resume: keep rows that `out` holds already, if they were measured with the same settings.
        started: called with solver and problem before each run.
        finished: called with each new row.

    Returns:
        The rows that were asked for, kept ones included.

    Raises:
        UnknownName: no such solver or problem.
        UserError: settings that make no sense, or `out` is not a scorecard.
    """
    from assimilate.errors import UnknownName, UserError

    settings = settings or Settings()
    if settings.samples < 10 or settings.levels < 2:
        raise UserError(f"{settings.samples} samples and {settings.levels} levels; expected at least 10 and 2")
    check_names(solvers)
    for name in problems:
        if name not in PROBLEMS:
            raise UnknownName("problem", name, PROBLEMS)
    known = read(out) if out is not None and out.exists() else []
    rows: list[Row] = []
    for name in problems or PROBLEMS:
        judge = reference(PROBLEMS[name]())
        for solver in solvers or names():
            row = next((r for r in known if resume and _same(r, solver, name, settings)), None)
            if row is None:
                if started is not None:
                    started(solver, name)
                row = measure(solver, name, judge, settings)
                known = [r for r in known if (r["solver"], r["problem"]) != (solver, name)] + [row]
                if out is not None:
                    write(out, known)
                if finished is not None:
                    finished(row)
            rows.append(row)
    return rows


def measure(solver: str, problem: str, judge: Reference, settings: Settings) -> Row:
    """One row."""
    head: Row = {"solver": solver, "problem": problem, **settings._asdict()}
    begun = time.process_time()
    try:
        drawn = draw(solver, judge.problem, samples=settings.samples, levels=settings.levels, seed=settings.seed)
        seconds = (time.process_time() - begun) * 1000 / len(drawn.samples)
        found = scores(judge, drawn.samples, spread=drawn.exactness != "point")
    except CapabilityError as error:
        return {**head, "status": "skipped", "reason": _line(error)}
    # Any solver, a user's own included, may fail in any way; its row says how and the table goes on.
    except Exception as error:
        return {**head, "status": "failed", "reason": f"{type(error).__name__}: {_line(error)}"}
    return {
        **head,
        "status": "measured",
        "exactness": drawn.exactness,
        "settings": drawn.settings,
        "evaluations": drawn.evaluations,
        "seconds": seconds,
        # JSON knows no infinity, which is what a statistic of a diverged solver may be.
        **{key: value if math.isfinite(value) else None for key, value in found.items()},
    }


def read(path: Path) -> list[Row]:
    """The rows of a file.

    Raises:
        UserError: the file is not a scorecard.
    """
    from assimilate.errors import UserError

    try:
        rows = json.loads(path.read_text())["rows"]
        if not all({"solver", "problem", "status"} <= set(row) for row in rows):
            raise KeyError("a row without solver, problem or status")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path} is not a scorecard: {error}; give --out another file") from error
    return list(rows)


def write(path: Path, rows: Iterable[Row]) -> None:
    """Write rows in the order of the table, whole or not at all."""
    import torch

    from assimilate import __version__

    places = {name: i for i, name in enumerate([*PROBLEMS, *names()])}
    ordered = sorted(rows, key=lambda r: tuple(places.get(r[k], len(places)) for k in ("problem", "solver")))
    content = {"version": __version__, "device": f"cpu, {torch.get_num_threads()} threads", "rows": ordered}
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(path.name + ".part")
    part.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n")
    os.replace(part, path)


def _same(row: Row, solver: str, problem: str, settings: Settings) -> bool:
    return row["status"] != "failed" and all(
        row.get(key) == value for key, value in {"solver": solver, "problem": problem, **settings._asdict()}.items()
    )


def _line(error: Exception) -> str:
    return " ".join(str(error).split())
