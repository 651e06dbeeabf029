"""Cards with tasks: what a task changes, what is refused, the folders, the combined table, going on after a stop."""

import json
import tomllib

import numpy as np
import pytest
import xarray as xr

from assimilate.cards.changes import merged
from assimilate.cards.files import cards_of_tasks, parse, set_value
from assimilate.cards.tasks import chosen_tasks
from assimilate.cli import run_app
from assimilate.errors import CardError, UserError
from assimilate.storage import write_groups

CARD = """
title = "two tasks"
seed = 1
[truth]
dynamics = { type = "Lorenz63", noise_std = 0.1 }
steps = 12
experiments = 2
spinup = 100
[observations]
noise = 1.0
[[method]]
type = "ETKF"
members = 10
inflation = 1.04
[[method]]
type = "EnKF"
members = 12
[scores]
names = ["rmse", "crps"]
[[task]]
name = "x only"
observations.operator = { type = "Select", channels = [0] }
method.ETKF.members = 14
[[task]]
name = "all, 0.5"
observations.noise = 0.5
scores.names = ["rmse", "spread_skill"]
[[expected]]
task = "all, 0.5"
method = "ETKF"
score = "rmse"
max = 2.0
source = "s"
[[expected]]
method = "EnKF"
score = "rmse"
max = 100.0
source = "s"
"""


EXPECTED = """
[[expected]]
method = "EnKF"
score = "rmse"
max = 0.9
relative_to = "ETKF"
source = "s"
"""


def small(*changes):
    table = tomllib.loads(CARD)
    for change in changes:
        set_value(table, change)
    return parse(table, "small.toml")


@pytest.fixture
def card(tmp_path):
    path = tmp_path / "two.toml"
    path.write_text(CARD)
    return str(path)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """The folder of a finished run."""
    folder = tmp_path_factory.mktemp("tasks")
    (folder / "two.toml").write_text(CARD)
    assert run_app(["run", str(folder / "two.toml"), "--out", str(folder / "out")]) == 0
    return folder / "out"


def rows(folder):
    return json.loads((folder / "scores.json").read_text())


def value(folder, score, **wanted):
    return next(r["value"] for r in rows(folder) if r["score"] == score and wanted.items() <= r.items())


def test_a_task_changes_what_it_names_and_nothing_else():
    cards = cards_of_tasks(small())
    assert list(cards) == ["x only", "all, 0.5"]
    first, second = cards.values()
    assert first.title == "two tasks: x only" and first.task == []
    assert first.observations.operator.spec() == {"type": "Select", "channels": [0]} and first.observations.noise == 1.0
    assert [m.members for m in first.method] == [14, 12] and first.method[0].settings() == {"inflation": 1.04}
    assert second.observations.operator is None and second.observations.noise == 0.5
    assert second.scores.names == ["rmse", "spread_skill"] and second.seed == 1
    assert [len(c.expected) for c in cards.values()] == [1, 2]


def test_a_table_with_a_type_replaces_another_class():
    table = {"a": {"type": "One", "size": 3}, "list": [{"label": "m", "n": 1}]}
    assert merged(table, {"a": {"size": 4}}, "t") == table | {"a": {"type": "One", "size": 4}}
    assert merged(table, {"a": {"type": "Two"}}, "t")["a"] == {"type": "Two"}
    assert merged(table, {"list": {"M": {"n": 2}}}, "t")["list"] == [{"label": "m", "n": 2}]
    assert merged(table, {"list": [{"label": "k"}]}, "t")["list"] == [{"label": "k"}]
    assert table == {"a": {"type": "One", "size": 3}, "list": [{"label": "m", "n": 1}]}


def test_set_reaches_the_card_and_its_tasks():
    both = cards_of_tasks(small("observations.noise=2.0"))
    assert [c.observations.noise for c in both.values()] == [2.0, 0.5]
    one = cards_of_tasks(small("task.x only.truth.steps=7", 'task."all, 0.5".method.EnKF.members=5'))
    assert [c.truth.steps for c in one.values()] == [7, 12]
    assert [c.method[1].members for c in one.values()] == [12, 5]
    assert cards_of_tasks(small("task.0.seed=9"))["x only"].seed == 9


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("task.0.observation.noise=1", "task[x only]: unknown key 'observation'; did you mean 'observations'?"),
        ("task.0.observations.nose=1", "task[x only]: unknown key 'observations.nose'; did you mean 'noise'?"),
        ("task.0.observations.fraction=0.5", "task[x only]: observations: give either 'operator' or 'fraction'"),
        ("task.0.method.ETFK.members=3", "task[x only]: no entry 'ETFK' in 'method'; did you mean 'ETKF'?"),
        ("task.0.method.ETKF=3", "task[x only]: method.ETKF is a table; 3 was given"),
        ("task.0.name=all, 0.5", "another task has the same name"),
        ("task.0.name=all__0.5", "or one that makes the same folder 'all_0.5'"),
        ("task.0.expected=[]", "'expected' belongs to the whole card"),
        ("task.y only.seed=1", "no entry 'y only' in 'task'; did you mean 'x only'?"),
        ("expected.0.task=x onyl", "expected.task: there is no task 'x onyl'; did you mean 'x only'?"),
        ("task.0.name=", "task[0].name: String should have at least 1 character"),
    ],
)
def test_mistakes_in_a_task_name_the_task_and_the_remedy(change, message):
    with pytest.raises(UserError) as caught:
        small(change)
    assert message in str(caught.value) and "\n" not in str(caught.value)


def test_tasks_are_chosen_by_name():
    assert list(chosen_tasks(small(), ["all, 0.5"])) == ["all, 0.5"]
    with pytest.raises(UserError, match="unknown task 'x onyl'; did you mean 'x only'"):
        chosen_tasks(small(), ["x onyl"])
    with pytest.raises(UserError, match=r"this card has no \[\[task\]\]"):
        chosen_tasks(parse({k: v for k, v in tomllib.loads(CARD).items() if k not in ("task", "expected")}), ["x"])
    with pytest.raises(CardError, match="this card has tasks"):
        from assimilate.cards.execution import plan

        plan(small())


def test_every_task_has_its_folder_and_all_have_one_table(finished):
    for task in ("x_only", "all_0.5"):
        assert {p.name for p in (finished / task).iterdir()} == {"result.nc", "scores.json", "report.html", "figures"}
    assert {p.name for p in finished.iterdir()} == {"result.nc", "scores.json", "report.html", "x_only", "all_0.5"}
    assert {(r["task"], r["method"]) for r in rows(finished)} == {
        (t, m) for t in ("x only", "all, 0.5") for m in ("ETKF", "EnKF")
    }
    table = xr.load_dataset(finished / "result.nc", group="scores")
    assert table["value"].dims == ("task", "label", "score")
    # The task's own table says the same.
    alone = value(finished / "x_only", "rmse", method="ETKF")
    assert alone == value(finished, "rmse", task="x only", method="ETKF")
    assert alone == float(table["value"].sel(task="x only", label="ETKF", score="rmse"))
    # Seeing all variables with half the noise is better than seeing one.
    assert value(finished, "rmse", task="all, 0.5", method="ETKF") < alone


def test_the_tasks_are_those_of_single_cards(finished, tmp_path):
    single = tmp_path / "single.toml"
    whole = CARD[: CARD.index("[[task]]")]
    single.write_text(whole.replace("members = 10", "members = 14").replace(
        "noise = 1.0", 'noise = 1.0\noperator = { type = "Select", channels = [0] }'))  # fmt: skip
    assert run_app(["run", str(single), "--out", str(tmp_path / "out"), "--no-report"]) == 0
    for label in ("ETKF", "EnKF"):
        assert value(tmp_path / "out", "rmse", method=label) == value(finished / "x_only", "rmse", method=label)


def test_the_page_has_the_table_and_leads_to_the_tasks(finished, tmp_path, capsys):
    page = (finished / "report.html").read_text()
    assert 'href="x_only/report.html"' in page and 'href="all_0.5/report.html"' in page and "spread / skill" in page
    assert f"{value(finished, 'rmse', task='x only', method='ETKF'):.3f}" in page
    assert "all, 0.5: ETKF" in page  # its expected score
    assert run_app(["report", str(finished)]) == 0
    assert (finished / "report.html").read_text() == page
    assert run_app(["report", str(finished), "--out", str(tmp_path)]) == 0
    assert "href" not in (tmp_path / "report.html").read_text()  # there are no pages of tasks beside this one


def test_one_table_is_printed(card, tmp_path, capsys):
    folder = tmp_path / "out"
    assert run_app(["run", card, "--out", str(folder), "--no-report", "--set", "truth.steps=4"]) == 0
    printed = capsys.readouterr().out
    assert printed.count("RMSE") == 1 and printed.index("RMSE") < printed.index("CRPS") < printed.index("seconds")
    for task in ("x only", "all, 0.5"):
        assert f"{value(folder, 'rmse', task=task, method='EnKF'):.3f}" in printed and task in printed
    assert "✓ all, 0.5: ETKF" in printed


def test_an_error_in_any_task_stops_all_before_the_work(card, tmp_path, capsys):
    for change, message in (
        ("task.1.observations.operator.type=Selec", "task[all, 0.5]: unknown operator 'Selec'; did you mean 'Select'?"),
        ("task.1.scores.names=['rsme']", "task[all, 0.5]: scores.names: there is no score 'rsme'"),
    ):
        assert run_app(["run", card, "--out", str(tmp_path / "out"), "--set", change]) == 2
        assert message in capsys.readouterr().err
    assert run_app(["run", card, "--out", str(tmp_path / "out"), "--task", "z"]) == 2
    assert "unknown task 'z'" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def stamps(folder):
    """When each method of each task was computed: its seconds, which no two runs share."""
    found = {}
    for task in ("x_only", "all_0.5"):
        if (folder / task / "result.nc").exists():
            tree = xr.open_datatree(folder / task / "result.nc")
            found |= {(task, k): n.attrs["seconds"] for k, n in tree.children.items() if "seconds" in n.attrs}
    return found


def test_a_killed_run_goes_on_and_keeps_what_is_the_same(card, tmp_path, capsys):
    folder = tmp_path / "out"
    base = ["run", card, "--out", str(folder), "--no-report"]
    assert run_app([*base, "--task", "x only"]) == 0
    first, kept = rows(folder), stamps(folder)
    assert {r["task"] for r in first} == {"x only"}
    # The other task is new, this one stays as it is, to the last digit and second.
    assert run_app([*base, "--resume"]) == 0
    again = [r for r in rows(folder) if r["task"] == "x only"]
    assert sorted(map(str, again)) == sorted(map(str, first))
    assert stamps(folder).items() >= kept.items() and len(stamps(folder)) == 4
    # One method changes: it alone is computed again. Printing other scores changes none.
    assert run_app([*base, "--resume", "--set", "task.0.method.ETKF.members=15", "--set", "scores.names=['mae']"]) == 0
    tree = xr.open_datatree(folder / "x_only" / "result.nc")
    assert tree["ETKF"].attrs["members"] == 15 and tree["EnKF"].attrs["seconds"] == kept["x_only", "EnKF"]
    assert value(folder / "x_only", "rmse", method="EnKF") == next(
        r["value"] for r in first if r["method"] == "EnKF" and r["score"] == "rmse"
    )
    # A change of the problem leaves nothing to keep; a task that is not asked for is shown if it is still the same.
    assert run_app([*base, "--resume", "--task", "all, 0.5", "--set", "task.1.truth.steps=8"]) == 0
    # "x only" has 14 members again, which is not what is there.
    assert {(r["task"], r["method"]) for r in rows(folder)} == {
        ("x only", "EnKF"), ("all, 0.5", "ETKF"), ("all, 0.5", "EnKF"),
    }  # fmt: skip
    assert xr.open_datatree(folder / "all_0.5" / "result.nc")["EnKF"].sizes["time"] == 8


def test_a_resumed_card_equals_one_that_was_never_stopped(tmp_path):
    own = tmp_path / "own.toml"
    own.write_text(CARD[: CARD.index("[[task]]")].replace("seed = 1", "seed = 1\ndraws = 2") + EXPECTED)
    assert run_app(["run", str(own), "--out", str(tmp_path / "a"), "--no-report"]) == 0
    # As after a kill: only the first method is there.
    tree = xr.open_datatree(tmp_path / "a" / "result.nc")
    groups = {k: n.to_dataset().load() for k, n in tree.children.items() if k != "EnKF"}
    write_groups(tmp_path / "b" / "result.nc", groups, tree.attrs)
    tree.close()
    assert run_app(["run", str(own), "--out", str(tmp_path / "b"), "--no-report", "--resume"]) == 0
    a, b = (xr.open_datatree(tmp_path / k / "result.nc") for k in "ab")
    assert set(a.children) == set(b.children)
    same = [s for s in a["scores"]["score"].values if s != "seconds"]
    for name in ("value", "spread_over_draws"):
        np.testing.assert_array_equal(a["scores"][name].sel(score=same), b["scores"][name].sel(score=same))
    assert a["ETKF"].attrs["seconds"] == b["ETKF"].attrs["seconds"]
    assert json.loads(a.attrs["expected"]) == json.loads(b.attrs["expected"])


def test_a_result_that_cannot_be_read_is_not_thrown_away(card, tmp_path, capsys):
    (tmp_path / "out" / "x_only").mkdir(parents=True)
    broken = tmp_path / "out" / "x_only" / "result.nc"
    broken.write_text("no netCDF")
    assert run_app(["run", card, "--out", str(tmp_path / "out"), "--no-report", "--resume"]) == 2
    assert "cannot be read as a result" in capsys.readouterr().err and broken.read_text() == "no netCDF"
