"""Accuracy against cost, on a linear system whose posterior is known, and the figure of rows that are given."""

import pytest
import torch

from assimilate.cards.files import parse
from assimilate.posterior.transition import ExactTransition
from benchmarks import accuracy_cost
from benchmarks.accuracy_cost import RECOMMENDED, RULES, runs_of, scored, steps_of
from benchmarks.accuracy_cost_figure import figure_of
from dynamics.linear import LinearGaussian

SYSTEM = {"type": "LinearGaussian", "preset": "ring"}


def card(*methods):
    return parse(
        {
            "title": "linear",
            "truth": {"dynamics": SYSTEM, "steps": 8, "experiments": 1},
            "observations": {"noise": 0.5},
            "method": list(methods),
        }
    )


def test_scores_of_members_that_are_known():
    # Members -1 and 1 about a target of 2: mean 0, error 2, variance 2 times (N + 1) / N = 3 / 2.
    found = scored(torch.tensor([[[-1.0], [1.0]]]), torch.tensor([[2.0]]))
    # Fair CRPS: mean |x - y| = 2, less half the mean distance of two members, 2 / 2.
    assert found == {"rmse": 2.0, "crps": pytest.approx(1.0), "spread_skill": pytest.approx(3**0.5 / 2, abs=1e-4)}


def test_exact_guidance_reaches_the_reference_and_says_what_is_recommended(monkeypatch):
    monkeypatch.setattr(accuracy_cost, "MANY_LEVELS", 40)
    transition = ExactTransition(LinearGaussian.ring(), steps=12)
    rules = {name: RULES[name] for name in ("no observation", RECOMMENDED)}
    rows = list(
        steps_of(
            "ring", card({"type": "EnKF"}), transition, rules=rules, levels=(4,), draws=(64,), states=16, members=64
        )
    )
    assert [row["study"] for row in rows] == ["reference", *["levels"] * 4, *["draws"] * 2]
    known, _, free, _, guided, drawn, _ = rows
    assert guided == guided | {"rule": RECOMMENDED, "levels": 12, "recommended": True}
    assert sum("recommended" in row for row in rows) == 1
    # Both means are sampled: by 1 / sqrt(64) and 1 / sqrt(256) of a spread that is as large as the error.
    assert guided["rmse"] == pytest.approx(known["rmse"], rel=0.06) and guided["rmse"] < 0.9 * free["rmse"]
    assert guided["spread_skill"] == pytest.approx(known["spread_skill"], rel=0.06)
    assert drawn["draws"] == 64 and drawn["rmse"] == pytest.approx(known["rmse"], rel=0.1)
    assert all(row["passes"] > 0 and row["seconds"] > 0 for row in rows[1:])


def test_whole_runs_gain_by_members_as_the_sampling_error_of_a_mean_does():
    rows = list(runs_of("ring", card({"type": "EnKF", "members": 256}), transition=None, counts=(4, 32), experiments=8,
                        beside=None))  # fmt: skip
    assert [row["members"] for row in rows] == [4, 32, 256]
    assert [row.get("recommended", False) for row in rows] == [False, False, True]
    errors = [row["rmse"] for row in rows]
    assert errors[0] > 1.1 * errors[1] > 1.1 * errors[2]
    assert rows[2]["spread_skill"] == pytest.approx(1.0, abs=0.1)
    assert list(runs_of("ring", card({"type": "EnKF"}), transition=None, counts=(), experiments=8, beside=None)) == []


def row(study, rule, rmse, **more):
    return {"task": "4x", "study": study, "rule": rule, "rmse": rmse, "crps": 0.5, "spread_skill": 1.0, **more}


def test_the_figure_keeps_what_diverges_in_sight_and_names_the_recommended():
    rows = [row("reference", "simulator, 256 members", 0.3)]
    for rule, marked in (("no observation", {}), (RECOMMENDED, {"recommended": True}), ("PiGDM", {})):
        rows += [row("levels", rule, 0.7 if rule == RECOMMENDED else 1.4, levels=6, seconds=0.05, passes=0.7, **marked)]
    rows += [row("levels", "PiGDM", None, levels=12, seconds=0.1, passes=1.2)]
    rows += [row("draws", "Monte Carlo", value, levels=6, draws=j) for j, value in ((1, None), (4, 1e9), (16, 1e5))]
    rows += [row("members", "FlowDAS", 1.0, members=n, seconds=float(n)) for n in (4, 8)]
    figure = figure_of(rows)
    assert len(figure.axes) == 3
    levels, draws, members = figure.axes
    for axis in (levels, draws):
        low, high = axis.get_ylim()
        inside = [y for line in axis.get_lines() for y in line.get_ydata()]
        assert low <= min(inside) and max(inside) <= high == pytest.approx(4 * 1.4)
    words = [[text.get_text() for text in axis.get_legend().get_texts()] for axis in figure.axes]
    assert "recommended: 6 levels" in words[0] and "Monte Carlo, 6 levels: diverges" in words[1]
    assert words[2] == ["RMSE of the mean", "CRPS", "spread"]
    assert {text.get_text() for text in members.texts} == {"N = 4", "8"}
