"""Distances to a reference: numbers worked out by hand, any order of the methods, and the exact filter on a card."""

import json

import numpy as np
import pytest
import xarray as xr

from assimilate.cards.card import Scores
from assimilate.cards.execution import execute
from assimilate.cards.files import parse
from assimilate.errors import CardError, UserError
from assimilate.verification.reference import Comparison, distances, rank_distance
from dynamics.space import Space

SPACE = Space.scalars("x", "y")


def analysis(mean, std=None, ranks=None):
    """Means and spreads (experiment, time) of x and y as `run` gives them."""
    found = {f"{n}_mean": (("experiment", "time"), np.asarray(m, float)) for n, m in zip("xy", mean, strict=True)}
    if std is not None:
        found |= {f"{n}_std": (("experiment", "time"), np.asarray(s, float)) for n, s in zip("xy", std, strict=True)}
    if ranks is not None:
        found["rank_frequency"] = ("rank", ranks)
    return xr.Dataset(found, {"time": np.arange(2.0)})


REFERENCE = analysis([[[0, 0]], [[0, 0]]], [[[1, 1]], [[7, 7]]])  # spread sqrt((1 + 49) / 2) = 5


def test_distances_worked_out_by_hand():
    other = analysis([[[3, 3]], [[4, 4]]], [[[1, 1]], [[1, 1]]])
    found = distances(other, REFERENCE, SPACE)
    assert found["mean_distance"] == pytest.approx(np.sqrt((9 + 16) / 2) / 5)
    assert found["spread_ratio"] == pytest.approx(1 / 5)
    assert distances(REFERENCE, REFERENCE, SPACE) == {"mean_distance": 0.0, "spread_ratio": 1.0}
    # The first time is left out: there the means differ by 0.
    late = analysis([[[0, 5]], [[0, 5]]])
    assert distances(late, REFERENCE, SPACE, drop=1) == {"mean_distance": pytest.approx(1.0)}
    assert rank_distance(analysis([[[0, 0]], [[0, 0]]], ranks=[0.5, 0.25, 0.25, 0.0])) == {"rank_distance": 0.25}
    assert rank_distance(REFERENCE) == {}


def test_methods_may_finish_before_or_after_the_reference():
    one, two = (analysis([[[v, v]], [[v, v]]], [[[v, v]], [[v, v]]], [1.0, 0.0]) for v in (1.0, 2.0))
    expected = {"one": distances(one, REFERENCE, SPACE), "two": distances(two, REFERENCE, SPACE)}
    for order in (["one", "two", "ref"], ["one", "ref", "two"], ["ref", "two", "one"]):
        compared = Comparison(Scores(reference="ref"), SPACE)
        scores: dict = {}
        for label in order:
            for other, found in compared.add(label, {"one": one, "two": two, "ref": REFERENCE}[label]).items():
                scores[other] = scores.get(other, {}) | found
        assert scores["ref"] == {}
        for label, wanted in expected.items():
            assert scores[label] == wanted | {"rank_distance": 0.5}
    assert Comparison(Scores(), SPACE).add("one", one) == {}


@pytest.mark.parametrize("std", [None, [[[0, 0]], [[0, 0]]]])
def test_a_reference_needs_a_spread(std):
    with pytest.raises(UserError, match="the reference has no spread"):
        Comparison(Scores(reference="ref"), SPACE).add("ref", analysis([[[0, 0]], [[0, 0]]], std))


def card(reference, *methods, **more):
    return parse(
        {
            "title": "linear",
            "seed": 3,
            "truth": {"dynamics": {"type": "LinearGaussian", "preset": "ring"}, "steps": 12, "experiments": 4},
            "observations": {"noise": 0.5},
            "method": [{"type": name, "members": members} for name, members in methods],
            "scores": {"names": ["mean_distance", "spread_ratio", "rank_distance"], **reference},
            **more,
        }
    )


def test_an_ensemble_is_as_far_from_the_exact_filter_as_its_size_says(tmp_path):
    methods = [("EnKF", 40), ("KalmanFilter", 4000), ("EnKF", 1000)]
    made = card({"reference": "Kalman filter"}, *methods)
    made = made.model_copy(update={"method": [
        e.model_copy(update={"label": label}) for e, label in zip(made.method, ("small", None, "large"), strict=True)
    ]})  # fmt: skip
    outcome = execute(made, tmp_path, name="linear")
    assert not outcome.failures
    small, large = outcome.scores["small"], outcome.scores["large"]
    # A mean of N independent members is sqrt(1 / N) standard deviations off; those of a filter also inherit a gain
    # that is estimated from N members, which costs up to as much again per correlated direction.
    assert 1 / np.sqrt(1000) < large["mean_distance"] < 4 / np.sqrt(1000)
    assert 1 / np.sqrt(40) < small["mean_distance"] < 6 / np.sqrt(40)
    assert large["spread_ratio"] == pytest.approx(1.0, abs=0.03)
    assert "mean_distance" not in outcome.scores["Kalman filter"]
    # 12 times, 4 experiments, all cells: about sqrt(R / count) of the histogram is chance.
    assert large["rank_distance"] < 0.1
    rows = json.loads((tmp_path / "scores.json").read_text())
    assert {"method": "small", "score": "mean_distance", "value": small["mean_distance"], "units": "1"} in rows


def test_a_reference_without_spread_is_recorded_and_the_others_stay(tmp_path):
    made = card({"reference": "linear interpolation"}, ("EnKF", 20), ("LinearInterpolation", 1), ("ETKF", 20))
    made = made.model_copy(update={"scores": made.scores.model_copy(update={"names": ["rmse"]})})
    outcome = execute(made, tmp_path, name="linear")
    assert [f["method"] for f in outcome.failures] == ["linear interpolation"]
    assert "has no spread" in outcome.failures[0]["error"]
    assert all("rmse" in outcome.scores[label] for label in outcome.labels)


@pytest.mark.parametrize(
    ("reference", "message"),
    [
        ({"reference": "Kalman fliter"}, "scores.reference: there is no method 'Kalman fliter'; did you mean 'Kalman"),
        ({}, "scores.names: 'mean_distance' needs a method to compare with"),
    ],
)
def test_mistakes_are_said_before_the_work(reference, message, tmp_path):
    with pytest.raises(CardError) as caught:
        execute(card(reference, ("KalmanFilter", 1)), tmp_path / "out", name="linear")
    assert message in str(caught.value) and not (tmp_path / "out").exists()
