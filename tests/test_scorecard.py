"""The scorecard command: what it measures, writes and refuses; and that known biases are where they are known to be."""

import json
import sys
from dataclasses import dataclass
from typing import ClassVar

import pytest
import torch

from assimilate.cli import run_app
from assimilate.errors import UnknownName, UserError
from benchmarks import tables
from benchmarks.scorecard.expected import BANDS, Band, check
from benchmarks.scorecard.problems import PROBLEMS
from benchmarks.scorecard.recipes import TIED, names, solver_for
from benchmarks.scorecard.run import Settings, read, run, write
from imaging.solvers.base import Solution, Solver
from imaging.solvers.guided import MMPS

SMALL = Settings(samples=400, levels=100)


@dataclass(frozen=True)
class Mine(MMPS):
    """A solver of one's own."""


@dataclass(frozen=True)
class Breaks(Solver):
    """A solver that fails."""

    name: ClassVar[str] = "breaks"
    reference: ClassVar[str] = "none"

    def solve(self, task, rng):
        raise RuntimeError("a wheel came off")


@dataclass(frozen=True)
class PriorAlone(Solver):
    """A solver that does not look at the measurement."""

    name: ClassVar[str] = "prior"
    reference: ClassVar[str] = "none"

    def solve(self, task, rng):
        drawn = task.prior.draw(rng.rows, rng=torch.Generator().manual_seed(0))
        return Solution(drawn, 0)


class Nothing:
    """No solver at all."""


@pytest.fixture(autouse=True)
def _importable(monkeypatch):
    """`test_scorecard:Mine` is this module, however the test runner imported it."""
    monkeypatch.setitem(sys.modules, "test_scorecard", sys.modules[__name__])


def test_known_biases_and_exact_methods_are_in_their_bands():
    # T6 at a small size: bands twice as wide.
    rows = run(
        ["exact", "mmps-ode", "clean-covariance", "kalman", "rts", "guided-particle", "sda-1", "tmpd-ode"],
        ["gaussian"],
        settings=SMALL,
    )
    checks = check(rows, widen=SMALL.widening)
    assert SMALL.widening == pytest.approx(5**0.5)
    assert len(checks) >= 12
    assert not [c.text for c in checks if not c.passed]


def test_bands_catch_a_method_that_ignores_the_measurement(monkeypatch):
    band = Band("test_scorecard:PriorAlone", "gaussian", "trace", 0.9, 1.1, "a test")
    monkeypatch.setattr("benchmarks.scorecard.expected.BANDS", (band,))
    rows = run(["test_scorecard:PriorAlone"], ["gaussian"], settings=SMALL)
    (found,) = check(rows, widen=2.0)
    assert not found.passed
    # Prior over posterior variance of this problem.
    assert found.found == pytest.approx(1 / 0.284, rel=0.25)
    assert "found" in found.text


def test_bands_name_entries_that_exist():
    for band in BANDS:
        assert band.solver in names() and band.problem in PROBLEMS
        assert band.low < band.high and band.source


def test_filters_are_samplers_of_the_same_posterior():
    rows = run(["enkf", "etkf", "bootstrap", "flowdas-filter"], ["mixture"], settings=Settings(1000, 100))
    by = {row["solver"]: row for row in rows}
    assert all(row["status"] == "measured" for row in rows)
    # The particle methods know the weights of the modes, 2 standard errors of an effective size of 100; the EnKF puts
    # members between them.
    assert by["bootstrap"]["modes"] < 0.1 and by["flowdas-filter"]["modes"] < 0.1
    assert by["enkf"]["ksd"] > 3 * by["flowdas-filter"]["ksd"]


def test_what_a_problem_has_not_is_said():
    rows = run(["kalman", "fbp", "test_scorecard:Breaks"], ["mixture"], settings=Settings(10, 2))
    assert [row["status"] for row in rows] == ["skipped", "skipped", "failed"]
    assert "Gaussian prior" in rows[0]["reason"]
    assert rows[2]["reason"] == "RuntimeError: a wheel came off"


def test_published_step_numbers_stay_where_other_defaults_belong_to_them():
    assert solver_for("mmps", levels=7, samples=9).steps == 7
    assert solver_for("dps", levels=7, samples=9).steps == 1000
    assert solver_for("tds", levels=7, samples=9).particles == 9
    assert set(TIED) <= set(names())


def test_rows_are_written_one_by_one_and_resumed(tmp_path):
    out, done = tmp_path / "deep" / "card.json", []

    def stop(row):
        done.append(row)
        if len(done) == 2:
            raise KeyboardInterrupt

    settings = Settings(20, 3)
    with pytest.raises(KeyboardInterrupt):
        run(["exact", "kalman", "rts"], ["gaussian"], settings=settings, out=out, finished=stop)
    assert {row["solver"] for row in read(out)} == {"exact", "kalman"}
    fresh = []
    rows = run(
        ["exact", "kalman", "rts"], ["gaussian"], settings=settings, out=out, resume=True,
        finished=lambda row: fresh.append(row["solver"]),
    )
    assert fresh == ["rts"]
    assert [row["solver"] for row in rows] == ["exact", "kalman", "rts"]
    # Other settings are another measurement; what is measured again replaces what was there.
    again = []
    run(["rts"], ["gaussian"], settings=Settings(20, 3, 1), out=out, resume=True, finished=again.append)
    assert len(again) == 1 and len(read(out)) == 3
    assert not list(out.parent.glob("*.part"))


def test_the_same_seed_gives_the_same_row():
    first, second = (run(["mmps"], ["mixture"], settings=Settings(50, 10, 4))[0] for _ in range(2))
    for row in (first, second):
        row.pop("seconds")
    assert first == second


def test_command_measures_a_solver_of_ones_own(tmp_path, capsys):
    out = tmp_path / "card.json"
    code = run_app(
        ["scorecard", "test_scorecard:Mine", "mmps", "fbp", "--problem", "gaussian", "--samples", "40", "--levels", "5",
         "--out", str(out)]
    )
    printed = capsys.readouterr().out
    assert code == 0
    assert "test_scorecard:Mine" in printed and "skipped" in printed and str(out) in printed.replace("\n", "")
    mine, same, _ = (next(r for r in read(out) if r["solver"] == s) for s in ("test_scorecard:Mine", "mmps", "fbp"))
    assert {k: mine[k] for k in ("mean", "trace", "ksd")} == {k: same[k] for k in ("mean", "trace", "ksd")}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["mmsp"], "did you mean 'mmps'?"),
        (["mmps", "--problem", "mixtur"], "did you mean 'mixture'?"),
        (["mmps", "--samples", "1"], "at least 10"),
    ],
)
def test_mistakes_are_one_line(arguments, message, capsys, tmp_path):
    assert run_app(["scorecard", *arguments, "--out", str(tmp_path / "c.json")]) == 2
    error = capsys.readouterr().err.strip()
    assert message in error.splitlines()[-1]
    assert not (tmp_path / "c.json").exists()


def test_failures_and_missed_bands_have_an_exit_code(tmp_path, capsys, monkeypatch):
    small = ["--problem", "gaussian", "--samples", "20", "--levels", "4", "--out", str(tmp_path / "c.json")]
    assert run_app(["scorecard", "test_scorecard:Breaks", "kalman", *small]) == 1
    assert "a wheel came off" in capsys.readouterr().err.replace("\n", "")
    assert run_app(["scorecard", "test_scorecard:Nothing", *small]) == 1
    assert "expected a subclass" in capsys.readouterr().err.replace("\n", " ")
    impossible = Band("kalman", "gaussian", "trace", 50.0, 51.0, "a test")
    monkeypatch.setattr("benchmarks.scorecard.expected.BANDS", (impossible,))
    assert run_app(["scorecard", "kalman", *small]) == 0
    assert run_app(["scorecard", "kalman", "--check", *small]) == 1
    assert "kalman on gaussian: trace" in capsys.readouterr().err


def test_a_file_that_is_no_scorecard_is_not_overwritten(tmp_path):
    out = tmp_path / "notes.json"
    out.write_text('{"mine": 1}')
    with pytest.raises(UserError, match="is not a scorecard"):
        run(["exact"], ["gaussian"], settings=Settings(20, 3), out=out)
    assert json.loads(out.read_text()) == {"mine": 1}
    with pytest.raises(UnknownName):
        run(["exact"], ["nothing"], settings=Settings(20, 3))


def test_readme_table_is_made_from_the_rows(tmp_path, monkeypatch):
    base = {"samples": 10, "levels": 3, "seed": 0, "status": "measured", "exactness": "exact", "evaluations": 5}
    numbers = {"mean": 0.123, "trace": 0.987, "seconds": 2.0}
    write(
        tmp_path / "scorecard.json",
        [
            {"solver": "mmps", "problem": "gaussian", **base, **numbers},
            {"solver": "mmps", "problem": "mixture", **base, **numbers, "modes": 0.045},
            {"solver": "mmps", "problem": "field", **base, **numbers, "trace": None},
            {"solver": "fbp", "problem": "gaussian", "status": "skipped", "reason": "no rays"},
        ],
    )
    monkeypatch.setattr(tables, "RESULTS", tmp_path)
    lines = tables.scorecard().splitlines()
    assert len(lines) == 3
    assert lines[2] == "| `mmps` | exact | 0.12 / 0.99 | - | 0.12 / 0.99 / 0.04 | - | diverges | 5 | 2 |"
    readme = "a\n<!-- scorecard -->\nold\n<!-- end of scorecard -->\nb"
    assert tables.written(readme) == "a\n<!-- scorecard -->\n" + "\n".join(lines) + "\n<!-- end of scorecard -->\nb"
