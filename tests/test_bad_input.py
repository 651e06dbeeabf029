"""Bad input costs one clear line: never a wrong number in silence, an unrelated error, or something already written.

What is drawn at random is small: Lorenz-63 and a ring of six cells, four times, a few members.
"""

from __future__ import annotations

import copy
import dataclasses
import hashlib
import math
from pathlib import Path

import numpy as np
import pytest
import torch
import xarray as xr
from hypothesis import given, settings
from hypothesis import strategies as st

from assimilate import registry, run
from assimilate.cards.execution import plan
from assimilate.cards.files import find, parse, read_table
from assimilate.engine.restart import Journal
from assimilate.errors import CardError, UserError
from assimilate.filters.ensemble import ETKF, EnKF
from assimilate.filters.particle import BootstrapFilter
from assimilate.learning.pretrained import load_pretrained
from assimilate.posterior.paths import VE, Interpolant
from assimilate.posterior.predictors import GaussianPredictor
from assimilate.posterior.transition import ExactTransition
from assimilate.posterior.windows import WindowPrior
from assimilate.variational.background import DenseBackground
from dynamics import CapabilityError, Coordinate, Field, LinearGaussian, Lorenz63, Space, florence_space
from observations import GaussianNoise, Identity, Instrument, Likelihood, Mask, Select, Stations

MODEL = Lorenz63(noise_std=0.1)
LIKELIHOOD = Likelihood(Identity(MODEL.space), GaussianNoise(1.0))
TIMES = MODEL.dt * np.arange(4)
VALUES = np.random.default_rng(0).normal(0.0, 5.0, (4, 3))
PLANE = {d: Coordinate(np.arange(4.0), (d,), "m") for d in "yx"}
WIND = Space((Field("u", "m/s", ("y", "x")), Field("v", "m/s", ("y", "x"))), PLANE)
few = settings(max_examples=12)


def observed(values=VALUES, times=TIMES, dims=("time", "value")):
    return xr.Dataset({"y": (dims, values)}, {"time": times})


def analysed(method=None, observations=None, **more):
    given = {"likelihood": LIKELIHOOD, "members": 4, "seed": 1} | more
    return run(method or ETKF(MODEL), observed() if observations is None else observations, **given)


def speaks(error):
    """Whether an error is one of those that tell a user what to do, in one line."""
    text = str(error)
    return isinstance(error, ValueError | CapabilityError) and len(text) > 15 and "\n" not in text


def finite(result):
    return bool(np.isfinite(result[next(iter(result.data_vars))].values).all())


# ---------------------------------------------------------------------------------------------------- observed values


@pytest.mark.parametrize("method", [ETKF(MODEL, inflation=1.1), BootstrapFilter(MODEL)], ids=["ETKF", "particles"])
@given(seen=st.lists(st.lists(st.booleans(), min_size=3, max_size=3), min_size=4, max_size=4))
@few
def test_whatever_is_missing_there_is_an_analysis_and_it_is_the_forecast_where_nothing_is_seen(method, seen):
    seen = np.array(seen)
    result = analysed(method, observed(np.where(seen, VALUES, np.nan)))
    assert result.sizes["time"] == 4 and finite(result)
    for k in np.flatnonzero(~seen.any(1)):
        now = result.isel(time=k)
        for name in "xyz":
            np.testing.assert_array_equal(now[f"{name}_mean"], now[f"{name}_background_mean"])
        assert float(now["log_evidence"]) == 0.0


@given(place=st.tuples(st.integers(0, 3), st.integers(0, 2)), sign=st.sampled_from([1, -1]), lazy=st.booleans())
@few
def test_an_infinite_value_is_an_error_wherever_it_stands(place, sign, lazy):
    values = VALUES.copy()
    values[place] = sign * np.inf
    observations = observed(values)
    with pytest.raises(UserError, match="infinite value"):
        analysed(observations=observations.chunk(time=1) if lazy else observations)


@given(order=st.permutations(range(3)))
@few
def test_the_order_of_the_values_is_no_matter_if_the_operator_has_the_same(order):
    def of(order):
        noise = GaussianNoise(torch.tensor([0.5, 1.0, 2.0], dtype=torch.float64)[list(order)])
        likelihood = Likelihood(Mask(MODEL.space, np.array(order)), noise)
        return analysed(observations=observed(VALUES[:, order]), likelihood=likelihood, dtype=torch.float64)

    # Four analyses of a model that grows errors by less than 2 in a step: rounding of 1e-16 stays far below 1e-9.
    for name in ("x", "y", "z", "log_evidence"):
        np.testing.assert_allclose(of(order)[name], of(range(3))[name], rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("kind", ["int64", "int8", "uint8", "bool", "float32", "float64"])
def test_numbers_of_any_type_are_the_same_numbers(kind):
    values = np.array([[3, 0, 1], [1, 1, 0], [0, 0, 1], [2, 1, 1]]).astype(kind)
    plain = analysed(observations=observed(values.astype("float64")))
    xr.testing.assert_equal(analysed(observations=observed(values)).drop_attrs(), plain.drop_attrs())


@pytest.mark.parametrize("kind", ["U4", "object", "complex128", "datetime64[ns]", "timedelta64[ns]"])
def test_what_is_no_number_is_refused(kind):
    with pytest.raises(UserError, match=r"'y' are of type .*expected numbers"):
        analysed(observations=observed(np.ones((4, 3)).astype(kind)))


@given(count=st.integers(1, 7).filter(lambda n: n != 3), lead=st.sampled_from([(), (1,), (3,)]))
@few
def test_the_number_of_values_is_that_of_the_operator(count, lead):
    dims = ("experiment", "time", "value")[1 - len(lead) :]
    with pytest.raises(UserError, match=f"has {count} values, .* has 3"):
        analysed(observations=observed(np.zeros((*lead, 4, count)), dims=dims))


@given(seen=st.integers(1, 4), known=st.integers(1, 4))
@few
def test_numbers_of_experiments_agree_or_it_is_said(seen, known):
    observations = observed(np.zeros((seen, 4, 3)), dims=("experiment", "time", "value"))
    initial = torch.randn(known, 4, 3, generator=torch.Generator().manual_seed(0))
    if seen == known or 1 in (seen, known):
        assert analysed(observations=observations, initial=initial).sizes["experiment"] == max(seen, known)
        return
    with pytest.raises(UserError, match=rf"{seen}\b.*\b{known}\b|{known}\b.*\b{seen}\b"):
        analysed(observations=observations, initial=initial)


@pytest.mark.parametrize("instrument", [False, True])
def test_values_on_the_grid_have_its_dims_in_its_order(instrument):
    likelihood = Likelihood(Identity(WIND), GaussianNoise(1.0))
    method = registry.resolve("method", "LinearInterpolation")(WIND)
    values = np.arange(64.0).reshape(2, 2, 4, 4)
    right = xr.Dataset({"wind": (("time", "component", "y", "x"), values)}, {"time": [0.0, 1.0]})

    def analysed(observations):
        if instrument:
            return run(method, Instrument("wind", observations, likelihood))
        return run(method, observations, likelihood=likelihood)

    np.testing.assert_array_equal(analysed(right)["u_mean"], values[:, 0])
    with pytest.raises(UserError, match=r"has the dims \['x', 'y'\], the grid \['y', 'x'\]; transpose"):
        analysed(right.transpose("time", "component", "x", "y"))


# -------------------------------------------------------------------------------------------------------------- times


MOMENTS = st.sampled_from([-1.0, 0.0, 1.0, 2.0, 3.0, 5.0, 2.4, math.nan, math.inf, -math.inf])


@given(steps=st.lists(MOMENTS, min_size=1, max_size=4))
@settings(max_examples=30)
def test_times_increase_in_whole_steps_or_it_is_said(steps):
    times = np.array(steps)
    observations = observed(VALUES[: len(times)], MODEL.dt * times)
    right = bool(np.isfinite(times).all() and (np.diff(times) > 0).all() and (times[0] >= 0))
    if right and all(t == round(t) for t in steps):
        assert analysed(observations=observations, start=0.0).sizes["time"] == len(times)
        return
    with pytest.raises(ValueError, match="time") as caught:
        analysed(observations=observations, start=0.0)
    assert speaks(caught.value)


DATES = np.arange("2024-01-01", "2024-01-05", dtype="datetime64[D]").astype("datetime64[ns]")


@pytest.mark.parametrize(
    ("times", "message"),
    [
        (np.array(list("abcd")), "time holds <U1; expected numbers or dates"),
        (np.array([0, 0.1, None, 0.2], object), "time holds object"),
        (np.arange(4).astype("timedelta64[s]").astype("timedelta64[ns]"), "time holds timedelta64"),
        (1j * TIMES, "time holds complex128"),
        (np.where(np.arange(4) == 2, np.datetime64("NaT"), DATES), "time holds NaT"),
        (DATES[::-1].copy(), "not increasing, 2024-01-03.* comes after 2024-01-04"),
    ],
)
def test_what_is_no_time_axis_is_refused(times, message):
    with pytest.raises(UserError, match=message):
        analysed(observations=observed(times=times), time_unit="D")


@pytest.mark.parametrize(
    ("times", "start"),
    [(TIMES, DATES[0]), (DATES, 0.0), (TIMES, math.nan), (TIMES, -math.inf), (TIMES, "a"), (TIMES, np.zeros(2))],
)
def test_a_start_that_is_none_is_refused(times, start):
    with pytest.raises(ValueError, match="time") as caught:
        analysed(observations=observed(times=times), start=start)
    assert speaks(caught.value)


def test_no_time_at_all_and_two_time_dims():
    with pytest.raises(UserError, match="no 'time' coordinate"):
        analysed(observations=observed().drop_vars("time"))
    with pytest.raises(UserError, match=r"shape \(0,\)"):
        analysed(observations=observed().isel(time=slice(0, 0)))
    plane = observed().drop_vars("time").assign_coords(time=(("time", "other"), np.zeros((4, 2))))
    with pytest.raises(UserError, match="along one dim"):
        analysed(observations=plane)


# ---------------------------------------------------------------------------------------------------------- arguments


@pytest.mark.parametrize(
    "change",
    [
        *({"members": v} for v in (0, -1, 2.5, math.nan, "4", None)),
        *({"seed": v} for v in (-1, 2.5, 2**40)),
        *({"keep": v} for v in (0, -1, 2.5, "4")),
        *({"dtype": v} for v in (torch.int32, torch.float16, "float32", np.float32)),
        *({"device": v} for v in ("gpu", "cuda:99")),
        *({"likelihood": v} for v in (GaussianNoise(1.0), Select(MODEL.space, [0]), Likelihood, 3, "x")),
        {"likelihood": lambda now: None},
        {"likelihood": Likelihood(Identity(MODEL.space), GaussianNoise([1.0, 1.0]))},
        {"likelihood": Likelihood(Identity((5,)), GaussianNoise(1.0))},
        *({"initial": torch.zeros(s)} for s in ((3,), (4, 3), (1, 4, 2), (1, 3, 3), (2, 2, 4, 3))),
        {"initial": torch.full((1, 4, 3), math.nan)},
        {"initial": np.zeros((1, 4, 3))},
        {"initial": xr.Dataset({"q": ((), 1.0)})},
        *({"initial": torch.zeros(1, 1, 3), "initial_std": v} for v in (-1.0, math.nan, math.inf, (1.0, 1.0), "a")),
        {"initial_std": 1.0},
        *({"time_unit": v} for v in ("day", "")),
        *({"schedule": v} for v in ("sometimes", "")),
        {"on_divergence": "ignore"},
        *({"observations": v} for v in (None, 3, [1, 2], [], [observed()])),
        {"observations": observed()["y"]},
        *({"method": v} for v in (3, EnKF)),
    ],
    ids=lambda c: ", ".join(f"{k}={v if isinstance(v, int | float | str) else type(v).__name__}" for k, v in c.items()),
)
def test_arguments_that_cannot_be_are_refused_in_one_line(change):
    given = {"method": ETKF(MODEL), "observations": observed(), "likelihood": LIKELIHOOD, "members": 4, "seed": 1}
    given |= change
    with pytest.raises((ValueError, CapabilityError)) as caught:
        run(given.pop("method"), given.pop("observations"), **given)
    assert speaks(caught.value), caught.value


# -------------------------------------------------------------------------------------------------------------- tables

RING = LinearGaussian.ring(6)
ROWS = {"time": [1.0, 1.0, 2.0], "site": [0.2, 1.0, 2.0], "value": [1.0, 2.0, 3.0], "error": [1.0, 0.5, 1.0]}


def table(**more):
    columns = {name: column for name, column in (ROWS | more).items() if column is not None}
    return xr.Dataset({name: ("location", np.asarray(column)) for name, column in columns.items()})


def of_table(*tables, **more):
    given = [Instrument(chr(ord("a") + k), one) for k, one in enumerate(tables)]
    return run(ETKF(RING), given, **{"members": 5, "seed": 1, "start": 0.0, "dtype": torch.float64} | more)


@given(order=st.permutations(range(3)))
@few
def test_rows_of_a_table_come_in_any_order(order):
    # One analysis after the other adds the rows in another order: rounding only.
    np.testing.assert_allclose(of_table(table().isel(location=order))["x"], of_table(table())["x"], atol=1e-12)


@given(
    places=st.lists(st.sampled_from([0.0, 1.3, 5.4, math.nan, math.inf, -math.inf]), min_size=3, max_size=3),
    flags=st.lists(st.sampled_from([0, 1, -1, 2.5, math.nan]), min_size=3, max_size=3),
    errors=st.lists(st.sampled_from([0.5, 1.0, math.nan]), min_size=3, max_size=3),
    values=st.lists(st.sampled_from([-1.0, 2.0, math.nan]), min_size=3, max_size=3),
)
@few
def test_rows_that_cannot_be_used_are_as_if_they_were_not_there(places, flags, errors, values):
    rows = {"site": places, "flag": flags, "error": errors, "value": values, "time": [1.0, 1.0, 1.0]}
    inside = np.isfinite(places)
    usable = inside & (np.array(flags) == 0) & np.isfinite(errors) & np.isfinite(values)
    if not inside.any():
        with pytest.raises(UserError, match="has no finite position"):
            of_table(table(**rows))
        return
    result = of_table(table(**rows))
    assert finite(result)
    if not usable.any():
        np.testing.assert_array_equal(result["x_mean"], result["x_background_mean"])
        return
    kept = of_table(table(**rows).isel(location=np.flatnonzero(usable)))
    np.testing.assert_allclose(result["x_mean"], kept["x_mean"], atol=1e-12)


NUMBERS = st.sampled_from([0.5, -1.0, 0.0, math.nan, math.inf, -math.inf])
WRONG = st.one_of(
    st.lists(NUMBERS, min_size=3, max_size=3),
    st.lists(st.sampled_from(["1", "good", "", "2024-01-01"]), min_size=3, max_size=3),
    st.lists(st.sampled_from([1.0, None, "a"]), min_size=3, max_size=3).map(lambda v: np.array(v, dtype=object)),
    st.just([1j, 1j, 1j]),
    st.just(np.arange(3).astype("datetime64[s]").astype("datetime64[ns]")),
    st.just(np.arange(3).astype("timedelta64[s]").astype("timedelta64[ns]")),
    st.just(None),
)


@given(column=st.sampled_from([*ROWS, "flag", "withheld", "variable", "station", "instrument"]), content=WRONG)
@settings(max_examples=80)
def test_a_column_of_anything_is_used_or_refused_in_one_line(column, content):
    try:
        result = of_table(table(**{column: content}))
    except ValueError as error:
        assert speaks(error), error
        return
    assert finite(result)
    # Only numbers can have been used: texts, dates, objects and complex numbers are names, or errors.
    if column not in ("variable", "station", "instrument") and content is not None:
        assert np.asarray(content).dtype.kind in "fiub"


@given(counts=st.lists(st.integers(0, 3), min_size=1, max_size=3))
@few
def test_empty_tables_among_others_are_no_matter(counts):
    tables = [table().isel(location=slice(0, n)) for n in counts]
    if not any(counts):
        with pytest.raises(UserError, match="no observations to assimilate"):
            of_table(*tables)
        return
    full = of_table(*[one for one in tables if one.sizes["location"]])
    np.testing.assert_array_equal(of_table(*tables)["x"], full["x"])


@given(copies=st.integers(2, 4))
@settings(max_examples=3)
def test_a_row_that_is_there_n_times_has_an_nth_of_its_variance(copies):
    # Repeated rows are independent observations: n of error s weigh like one of error s / sqrt(n).
    once = table(error=np.array(ROWS["error"]) / math.sqrt(copies))
    often = xr.concat([table()] * copies, "location")
    np.testing.assert_allclose(of_table(often)["x_mean"], of_table(once)["x_mean"], atol=1e-10)


@given(name=st.sampled_from(["time", "experiment", "member", "location", "a_slot", "a_row", "a", "", "b", "a.2", "y"]))
@few
def test_names_of_instruments_are_their_own(name):
    try:
        result = run(ETKF(RING), [Instrument("a", table()), Instrument(name, table())], members=4, start=0.0)
    except ValueError as error:
        assert speaks(error) and ("name" in str(error) or "call" in str(error))
        assert name not in ("b", "a.2", "y")
        return
    assert name in ("b", "a.2", "y") and finite(result)


@pytest.mark.parametrize(
    ("made", "message"),
    [
        (lambda: of_table(table(site=None)), "no 'site'"),
        (lambda: of_table(table(variable=["x", "q", "x"])), "no variable 'q' in the state"),
        (lambda: of_table(table(), table(time=DATES[:3])), "mix dates and plain numbers"),
        (lambda: of_table(table(time=[-1.0, 1.0, 2.0])), "before the start"),
        (lambda: of_table(table(time=[1.0, 1.5, 2.0])), "0.5 steps"),
        (lambda: Instrument("a", table(), error=math.inf), "expected a standard deviation"),
        (lambda: Instrument("a", 3), "was given a int, no Dataset"),
        (lambda: Instrument("a", observed(), GaussianNoise(1.0)), "is a GaussianNoise; expected Likelihood"),
        (lambda: Instrument("a", xr.Dataset({"y": ("z", [1.0])}), LIKELIHOOD), "expected 'time'"),
    ],
)
def test_what_does_not_go_together_is_said(made, message):
    with pytest.raises(ValueError, match=message) as caught:
        made()
    assert speaks(caught.value)


def test_a_latitude_beyond_a_pole_is_outside_of_a_grid_on_the_sphere():
    # Its unit vector is that of a place on the other side of the pole: here one in the middle of the grid.
    space = florence_space()
    lat, lon = (float(space.coords[name].numbers[60, 40]) for name in space.spherical)
    Stations(space, [[lat, lon]])
    with pytest.raises(ValueError, match="outside the grid"):
        Stations(space, [[180.0 - lat, lon + 180.0]])


# ------------------------------------------------------------------------------------------------- settings of methods

CHAIN = LinearGaussian.scalar(0.8, 0.6)
ON_RING = Likelihood(Mask(RING.space, [0, 2, 3]), GaussianNoise(0.5))
ON_CHAIN = Likelihood(Identity(CHAIN.space), GaussianNoise(0.5))
NEEDED = {
    **{local: {"radius": 2.0} for local in ("LocalParticleFilter", "LETKF", "LocalEnKF", "LocalEAKF")},
    "CorrectedForecast": {"weight": 1.0},
    "OptimalInterpolation": {"mean": 0.0, "variance": 1.0, "length": 1.0},
    "DivergenceFreeInterpolation": {"mean": (0.0, 0.0), "variance": 1.0, "length": 1.0},
}


def method_of(name):
    """A method with settings that are right, observations (None: a run needs more than a ring) and arguments of run."""
    kind = registry.resolve("method", name)
    observations, more = observed(VALUES, np.arange(1.0, 5.0)), {"likelihood": ON_RING}
    if name == "GaugeFlowDAS":
        return kind(load_pretrained("rain-hourly")), None, {}
    if name == "DivergenceFreeInterpolation":
        return kind(WIND, **NEEDED[name]), None, {}
    if name == "SDA":
        lag = (torch.arange(3)[:, None] - torch.arange(3)[None]).abs().double()
        predictor = GaussianPredictor(0.8**lag, VE(), torch.zeros(3, 1, dtype=torch.float64))
        prior = WindowPrior(CHAIN.space, 1.0, 1, VE(), predictor, torch.zeros(1), torch.ones(1))
        known = torch.zeros(1, 1, 1)
        return (
            kind(prior, steps=4),
            observed(VALUES[:, :1], np.arange(5.0)[1:]),
            {"likelihood": ON_CHAIN, "initial": known},
        )
    if name == "FlowDAS":
        return kind(ExactTransition(RING, path=Interpolant(), steps=2)), observations.isel(time=[0]), more
    first = RING.space if dataclasses.fields(kind)[0].name == "space" else RING
    own = {"background": DenseBackground.prior(RING)} if name == "ThreeDVar" else NEEDED.get(name, {})
    return kind(first, **own), observations, more


def refused(change, observations, more):
    """Whether a setting is refused in one line; otherwise the analysis must be finite."""
    try:
        method = change()
        if observations is None:
            return False
        result = run(method, observations, **more, members=5, dtype=torch.float64, on_divergence="raise")
    except ValueError as error:
        assert speaks(error), error
        return True
    assert finite(result)
    return False


@pytest.mark.parametrize("name", registry.METHODS)
def test_settings_that_are_no_numbers_are_refused_and_negative_ones_too_or_they_mean_something(name):
    method, observations, more = method_of(name)
    # No number of values is below such a limit: there are no importance weights; of a deviation only the square counts.
    meant = {"mean", "weight_limit", "known_std"}
    for field in dataclasses.fields(method):
        words = str(field.type).split(" | ")
        if not field.init or not {"float", "int"} & set(words):
            continue

        def changed(value, field=field):
            return dataclasses.replace(method, **{field.name: value})

        if "float" in words:
            assert refused(lambda: changed(math.nan), observations, more), f"{name}.{field.name} = nan"
        negative = refused(lambda: changed(-3), observations, more)
        assert negative or field.name in meant, f"{name}.{field.name} = -3"


@pytest.mark.parametrize("name", registry.METHODS)
def test_every_method_refuses_an_ensemble_of_nobody(name):
    method, observations, more = method_of(name)
    if observations is None:
        observations, more = observed(times=np.arange(1.0, 5.0)), {"likelihood": None}
    with pytest.raises(UserError, match="members is 0"):
        run(method, observations, **more, members=0)


def test_an_experiment_whose_minimisation_fails_does_not_stop_the_others():
    # 1e25 squared is no float32: the misfit of experiment 0 is infinite.
    method, _, more = method_of("ThreeDVar")
    both = observed(np.stack([1e25 * VALUES, VALUES]), np.arange(1.0, 5.0), ("experiment", "time", "value"))
    with pytest.warns(UserWarning, match="experiment 0 diverged.*misfit"):
        result = run(method, both, **more, members=5, seed=1)
    assert np.isfinite(result["x"].isel(experiment=1)).all() and np.isnan(result["x"].isel(experiment=0)).all()


# --------------------------------------------------------------------------------------------------------------- cards


def small_card():
    card = read_table(find("quickstart"))
    card["truth"].update(steps=4, experiments=2, spinup=2)
    card["scores"]["drop"] = 0
    card["quality"] = {"gross": [-100.0, 100.0], "background": 5.0}
    card["initial"] = {"law": "perturbed", "std": 1.0}
    for entry in card["method"]:
        entry["members"] = 4
    return card


def places(table, lead=()):
    for key, value in table.items() if isinstance(table, dict) else enumerate(table):
        yield (*lead, key)
        if isinstance(value, dict | list):
            yield from places(value, (*lead, key))


def put(table, place, value):
    table = copy.deepcopy(table)
    here = table
    for key in place[:-1]:
        here = here[key]
    if value is None:
        del here[place[-1]]
    else:
        here[place[-1]] = value
    return table


CARD = small_card()
OTHERS = [None, "text", "", -1, 0, 2, 3.7, True, [], {}, [1, "a"], [[1.0]], "none", {"type": "x"}, {"a": 1}]


@given(place=st.sampled_from(list(places(CARD))), value=st.sampled_from(OTHERS))
@settings(max_examples=150)
def test_a_card_with_another_value_anywhere_is_a_plan_or_one_line(place, value):
    changed = put(CARD, place, value)
    try:
        made = plan(parse(changed, "small.toml"))
    except UserError as error:
        assert speaks(error)
        named = [str(key) for key in place if isinstance(key, str)]
        # A card error names the file; every message names a part of the path, or what is left without it.
        assert "small.toml" in str(error) or not isinstance(error, CardError) or any(n in str(error) for n in named)
        return
    assert made.methods


@given(place=st.sampled_from([p for p in places(CARD) if isinstance(p[-1], str)]), letter=st.sampled_from("xq_ä"))
@few
def test_a_key_with_a_slip_is_named(place, letter):
    value = CARD
    for key in place:
        value = value[key]
    changed = put(put(CARD, place, None), (*place[:-1], place[-1] + letter), value)
    with pytest.raises(UserError) as caught:
        plan(parse(changed, "small.toml"))
    assert speaks(caught.value) and place[-1] in str(caught.value)


# ----------------------------------------------------------------------------------------------------------------- out


def files(folder):
    """All files below a folder, with what is in them."""
    found = sorted(p for p in folder.rglob("*"))
    return {str(p): hashlib.sha256(p.read_bytes()).hexdigest() if p.is_file() else "folder" for p in found}


@pytest.mark.parametrize(
    "name",
    ["a.grib", "a", "a.NC", ".nc", "file/a.nc", "folder.nc", "finished.nc", "text.nc", "text.zarr", "a" * 300 + ".nc"],
)
@pytest.mark.parametrize("change", [{}, {"resume": True}, {"overwrite": True}], ids=["new", "resume", "overwrite"])
def test_a_result_that_cannot_be_written_is_refused_and_changes_nothing(tmp_path, name, change):
    (tmp_path / "file").write_text("precious")
    (tmp_path / "text.nc").write_text("precious")
    (tmp_path / "text.zarr").write_text("precious")
    (tmp_path / "folder.nc").mkdir()
    (tmp_path / "folder.nc" / "notes").write_text("precious")
    analysed(out=tmp_path / "finished.nc").close()
    if name in ("finished.nc", "text.nc") and change == {"overwrite": True}:
        return
    before = files(tmp_path)
    with pytest.raises(UserError) as caught:
        analysed(out=tmp_path / name, **({"seed": 2} | change))
    assert speaks(caught.value) and files(tmp_path) == before


@given(
    change=st.sampled_from(
        [
            {"members": 0},
            {"keep": -1},
            {"dtype": torch.int32},
            {"initial": torch.zeros(1, 4, 2)},
            {"likelihood": GaussianNoise(1.0)},
            {"start": 1.0},
            {"checkpoint_every": 0},
            {"observations": observed(np.zeros((4, 2)))},
            {"observations": observed(np.full((4, 3), np.inf))},
            {"observations": observed(np.full((4, 3), "a"))},
            {"observations": observed(times=TIMES[::-1].copy())},
        ]
    ),
    overwrite=st.booleans(),
)
@few
def test_a_run_that_cannot_be_made_writes_nothing_and_keeps_what_is_there(tmp_path_factory, change, overwrite):
    folder = tmp_path_factory.mktemp("out")
    if overwrite:
        analysed(out=folder / "a.nc").close()
    before = files(folder)
    with pytest.raises(UserError):
        analysed(**change, out=folder / "a.nc", overwrite=overwrite)
    assert files(folder) == before


def test_what_is_overwritten_stays_until_the_new_result_is_whole(tmp_path):
    class Stop(Exception):
        pass

    def stop(index):
        if index == 2:
            raise Stop

    out = tmp_path / "a.nc"
    analysed(out=out).close()
    before = out.read_bytes()
    with pytest.raises(Stop):
        analysed(out=out, overwrite=True, seed=2, checkpoint_every=1, progress=stop)
    assert out.read_bytes() == before and Journal(out).folder.is_dir()
    resumed, done = [], []
    with analysed(out=out, resume=True, seed=2, progress=resumed.append) as result:
        done = result["x"].values
    assert resumed == [2, 3] and Path(Journal(out).folder).exists() is False
    np.testing.assert_array_equal(done, analysed(seed=2)["x"].values)
