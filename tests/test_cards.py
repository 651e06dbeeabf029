"""Cards: every shipped one is valid, every mistake is one line that names the place and what would be right."""

import tomllib

import pytest

from assimilate import registry
from assimilate.cards.files import available, find, load, parse, set_value
from assimilate.cards.judging import expectations
from assimilate.cards.methods import check_labels
from assimilate.errors import CardError, UnknownName, UserError, suggestion

SMALL = """
title = "small"
seed = 1
[truth]
dynamics = { type = "Lorenz63", preset = "flowdas" }
steps = 5
[observations]
operator = { type = "Select", channels = [0] }
noise = 1.0
[[method]]
type = "EnKF"
members = 10
inflation = 1.1
[[method]]
type = "EnKF"
label = "EnKF, plain"
"""


def small(*changes):
    table = tomllib.loads(SMALL)
    for change in changes:
        set_value(table, change)
    return parse(table, "small.toml")


@pytest.mark.parametrize("name", available())
def test_shipped_cards_are_valid_and_their_classes_know_the_settings(name):
    card = load(name)
    labels = check_labels(card)
    for entry, label in zip(card.method, labels, strict=True):
        registry.check("method", {"type": entry.type, **entry.settings()}, label)
    assert card.title and card.source
    assert all(expected.source for expected in card.expected)


def test_the_cards_that_the_project_promises_are_there():
    promised = {"florence", "lorenz63", "lorenz63-long", "lorenz63-cold", "double-well", "quickstart"}
    assert promised <= set(available())


LITERATURE = {"CorrectedForecast": ("FNO-DA", "Transolver-DA"), "RegularisedFilter": ("particle filter",)}
"""Names that papers give to a method with a certain network."""


def test_labels_start_with_the_usual_name():
    assert check_labels(small()) == ["EnKF", "EnKF, plain"]
    for name in available():
        card = load(name)
        for entry, label in zip(card.method, check_labels(card), strict=True):
            usual = registry.resolve("method", entry.type).name
            names = (usual, *LITERATURE.get(entry.type, ()))
            assert label.startswith(names) or "exact" in label, f"{name}: '{label}' is a {usual}"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("truth.stps=3", "small.toml: unknown key 'truth.stps'; did you mean 'steps'?"),
        ("observation.noise=3", "did you mean 'observations'?"),
        ("observations.nose=3", "unknown key 'observations.nose'; did you mean 'noise'?"),
        ("initial.low=3", "unknown key 'initial.low'; did you mean 'law'?"),
        ("scores.csi.threshold=[1]", "did you mean 'thresholds'?"),
        ('initial.law="exact"', "initial.law: Input should be 'prior', 'known' or 'perturbed' (got 'exact')"),
        ('initial.law="perturbed"', "'std' goes with law"),
        ("truth.steps=many", "truth.steps: Input should be a valid integer"),
        ("truth.steps=0", "truth.steps: Input should be greater than or equal to 1 (got 0)"),
        ("truth.data=florence", "either 'dynamics' (simulated) or 'data' (a file), not both"),
        ("observations.noise=0", "'noise' is needed"),
        ("observations.fraction=0.1", "either 'operator' or 'fraction'"),
        ("method.EnKF.members=0", "method[EnKF].members: Input should be greater than or equal to 1"),
        ("seed=-1", "seed: Input should be greater than or equal to 0"),
        ("title=3", "title: Input should be a valid string"),
    ],
)
def test_mistakes_are_one_line_with_place_and_remedy(change, message):
    with pytest.raises(UserError) as caught:
        small(change)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        (
            {"type": "EnKF", "inflatoin": 1.1},
            "method[0].inflatoin: EnKF has no such setting; did you mean 'inflation'?",
        ),
        ({"type": "EnKF", "inflation": "much"}, "method[0].inflation: got 'much', expected float"),
        ({"type": "EnKF", "rotate": 1}, "expected bool"),
        ({"type": "EnFK"}, "unknown method 'EnFK'; did you mean 'EnKF'?"),
        ({"type": "nowhere:Thing"}, "there is no module 'nowhere'"),
        ({"type": "assimilate.filters.ensemble:EnFK"}, "has no 'EnFK'; did you mean 'EnKF'?"),
        ({"type": "FlowDAS", "guidance": {"type": "MPMS"}}, "unknown guidance 'MPMS'; did you mean 'MMPS'?"),
        ({"type": "FlowDAS", "guidance": {"type": "MMPS", "iteration": 2}}, "did you mean 'iterations'?"),
        ({"type": "FlowDAS", "preset": "publised"}, "no preset 'publised'; did you mean 'published'?"),
    ],
)
def test_settings_are_checked_against_the_class(entry, message):
    with pytest.raises(UserError) as caught:
        registry.check("method", entry, "method[0]")
    assert message in str(caught.value)


def test_set_changes_one_value_with_its_type():
    assert small("method.EnKF.members=32").method[0].members == 32
    assert small("method.1.members=7").method[1].members == 7
    assert small("method.EnKF, plain.inflation=1.02").method[1].settings() == {"inflation": 1.02}
    assert small("truth.dynamics.preset=other").truth.dynamics.preset == "other"
    assert small("scores.names=['rmse']").scores.names == ["rmse"]
    assert small("verification.withhold=0.5").verification.withhold == 0.5
    assert small("fit.recipe=transition", "fit.forecast.steps=20").fit[0].settings() == {"forecast": {"steps": 20}}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("truth.steps", "expected path=value"),
        ("=3", "expected path=value"),
        ("method.ETKF.members=3", "no entry 'ETKF' in 'method'; did you mean 'EnKF'?"),
        ("title.x=3", "'title' is not a table"),
        ("trth.steps=3", "there is no 'trth'; did you mean 'truth'?"),
    ],
)
def test_a_bad_set_says_what_it_wants(change, message):
    with pytest.raises(UserError) as caught:
        small(change)
    assert message in str(caught.value)


def test_two_methods_need_two_names():
    with pytest.raises(CardError, match="two methods are called 'EnKF'"):
        check_labels(small("method.1.label=EnKF"))


def test_a_missing_card_and_a_broken_one(tmp_path):
    with pytest.raises(UnknownName, match="did you mean 'lorenz63'"):
        find("lorenz-63x")
    with pytest.raises(CardError, match="no card file"):
        find(str(tmp_path / "none.toml"))
    broken = tmp_path / "broken.toml"
    broken.write_text("title = ")
    with pytest.raises(CardError, match=r"broken\.toml: not readable as TOML"):
        load(str(broken))


def test_presets_and_nested_tables_are_built():
    model = registry.build("dynamics", {"type": "Lorenz63", "preset": "flowdas"}, "truth.dynamics")
    assert model.noise_std == pytest.approx(0.025**0.5)
    spec = {"type": "FlowDAS", "guidance": {"type": "MMPS", "iterations": 2}}
    factory, settings = registry.check("method", spec, "method[0]")
    assert factory.__name__ == "FlowDAS" and settings["guidance"]["iterations"] == 2


@pytest.mark.parametrize("kind", registry.KINDS)
def test_every_listed_class_can_be_imported_and_described(kind):
    rows = registry.describe(kind)
    assert [row["name"] for row in rows] == list(registry.KINDS[kind])
    assert all(row["summary"].endswith((".", ":")) or row["summary"] for row in rows)


def test_expected_scores_may_be_bounds_values_or_ratios():
    card = parse(
        tomllib.loads(SMALL)
        | {
            "expected": [
                {"method": "EnKF", "score": "rmse", "max": 1.0, "source": "s"},
                {"method": "EnKF", "score": "rmse", "value": 0.5, "tolerance": 0.1, "source": "s"},
                {"method": "EnKF", "score": "rmse", "max": 1.05, "relative_to": "EnKF, plain", "source": "s"},
                {"method": "EnKF", "score": "crps", "min": 0.1, "source": "s"},
            ]
        }
    )
    checks = expectations(card, {"EnKF": {"rmse": 0.9}, "EnKF, plain": {"rmse": 0.6}})
    assert [c["passed"] for c in checks] == [True, False, False]
    assert checks[2]["found"] == pytest.approx(1.5) and "times that of EnKF, plain" in checks[2]["text"]


def test_the_nearest_name_is_found_whatever_its_case():
    assert suggestion("letkf", ["LETKF", "EnKF"]) == "; did you mean 'LETKF'?"
    assert suggestion("qqqq", ["a", "b"]) == "; valid: a, b"
