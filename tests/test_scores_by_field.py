"""Scores of single fields: closed forms, levels, and cards that name them."""

import numpy as np
import pytest
import xarray as xr

from assimilate.cards.execution import execute, plan
from assimilate.cards.files import parse
from assimilate.errors import CardError
from assimilate.verification.by_field import names_by_field, scores_by_field
from assimilate.verification.statistics import Scoring, statistics
from dynamics import Coordinate, Field, Lorenz96, Space

AXES = {"y": Coordinate(np.arange(3.0), ("y",), "m"), "z": Coordinate(np.array([10.0, 500.0]), ("z",), "m")}
SPACE = Space((Field("t", "K", ("y",)), Field("u", "m/s", ("z", "y"))), AXES)


def states(t, u, members=None):
    lead = ("time",) if members is None else ("time", "member")
    size = (4,) if members is None else (4, members)
    values = {"t": (*lead, "y"), "u": (*lead, "z", "y")}
    shapes = {"t": (*size, 3), "u": (*size, 2, 3)}
    given = {"t": t, "u": u}
    made = {n: (dims, np.broadcast_to(given[n], shapes[n]).copy()) for n, dims in values.items()}
    return xr.Dataset(made, {"time": np.arange(4.0)})


def pooled(analysis, truth, scoring=None):
    return statistics(analysis, truth, space=SPACE, scoring=scoring)


def test_errors_of_each_field_in_closed_form():
    truth = states(280.0, 0.0)
    # Two members on both sides of an error of 2 K; the two levels of u are off by 3 and 4 m/s.
    members = states(np.array([281.0, 283.0])[:, None], np.array([3.0, 4.0])[:, None], members=2)
    found = scores_by_field(pooled(members, truth), SPACE)
    assert found["rmse_t"] == pytest.approx(2.0) and found["mae_t"] == pytest.approx(2.0)
    assert found["rmse_u"] == pytest.approx(np.sqrt(12.5)) and found["mae_u"] == pytest.approx(3.5)
    # CRPS of two members: mean error 2 less a quarter of their distance 2. The spread: variance 2, times (N + 1) / N.
    assert found["crps_t"] == pytest.approx(1.5) and found["crps_u"] == pytest.approx(3.5)
    assert found["spread_skill_t"] == pytest.approx(np.sqrt(3.0) / 2.0) and found["spread_skill_u"] == 0.0
    assert set(found) == set(names_by_field(SPACE))


def test_times_at_the_beginning_are_dropped_and_a_field_alone_has_nothing_of_its_own():
    truth = states(280.0, 0.0)
    early = truth.copy(deep=True)
    early["t"][:2] += 5.0
    scoring = Scoring(drop=2)
    assert scores_by_field(pooled(early, truth, scoring), SPACE, scoring)["rmse_t"] == 0.0
    assert names_by_field(Lorenz96().space) == [] and scores_by_field(pooled(early, truth), Lorenz96().space) == {}


def test_a_card_asks_for_them_by_name(tmp_path):
    table = {
        "title": "fields",
        "truth": {"dynamics": {"type": "Lorenz63"}, "steps": 6, "experiments": 1},
        "observations": {"operator": {"type": "Select", "channels": ["x"]}, "noise": 1.0},
        "method": [{"type": "ETKF", "members": 6}],
        "scores": {"names": ["rmse", "rmse_x", "rmse_y", "rmse_z"]},
    }
    outcome = execute(parse(table, "fields.toml"), tmp_path, name="fields")
    found = outcome.scores["ETKF"]
    assert sum(found[f"rmse_{name}"] ** 2 for name in "xyz") == pytest.approx(3 * found["rmse"] ** 2)
    assert "crps_x" not in found
    assert outcome.units["rmse_x"] == "1"
    with pytest.raises(CardError, match="no score 'rmse_w'"):
        plan(parse({**table, "scores": {"names": ["rmse_w"]}}, "fields.toml"))
