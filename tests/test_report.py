"""The report: self-contained, complete, right way up, and made of what the result file holds."""

import base64
import io
import json
import re
from html.parser import HTMLParser

import numpy as np
import pytest
import xarray as xr
from PIL import Image

from assimilate.report import render
from assimilate.report.colours import NO_DATA, RAIN_COLOURS, RAIN_LEVELS, Scale, is_rain, state_scale
from assimilate.report.contents import read
from assimilate.report.curves import overview
from assimilate.report.maps import atlas
from assimilate.report.page import best_of, number, score_title
from assimilate.storage import safe_name, write_groups

LATITUDES = np.array([30.0, 31.0, 32.0])  # grows with the row: the last row is the northern one
VOID = {"area", "base", "br", "col", "embed", "hr", "img", "input", "link", "meta", "source", "track", "wbr"}


def field(values, name="rain", **attrs):
    labels = {"units": "mm", "standard_name": "lwe_thickness_of_precipitation_amount", **attrs}
    dims = {3: ("time", "lat", "lon"), 4: ("member", "time", "lat", "lon")}[values.ndim]
    coords = {
        "time": np.datetime64("2018-09-13T19", "ns") + np.arange(values.shape[-3]) * np.timedelta64(1, "h"),
        "lat": ("lat", LATITUDES, {"units": "degrees_north"}),
        "lon": ("lon", [-80.0, -79.0], {"units": "degrees_east"}),
    }
    return xr.Dataset({name: (dims, values, labels)}, coords)


def result(path, *, truth=True, **attrs):
    """A small result file of two methods on a grid of 3 x 2 cells and 4 hours."""
    rng = np.random.default_rng(0)
    rain = rng.gamma(1.0, 6.0, (4, 3, 2))
    members = rain * rng.lognormal(0, 0.2, (5, 4, 3, 2))
    log = {"units": "log(1 + mm)"}
    ensemble = field(members).assign(
        rain_mean=(("time", "lat", "lon"), np.log1p(members).mean(0), log),
        rain_std=(("time", "lat", "lon"), np.log1p(members).std(0), log),
        score_rmse=("time", rng.random(4)),
        score_crps=("time", rng.random(4)),
        score_spread=("time", rng.random(4)),
        rank_frequency=("rank", np.full(6, 1 / 6)),
        rank_error=("rank", np.full(6, 0.01)),
        ess=("time", np.array([5.0, 3.0, 2.0, 4.0])),
    )
    ensemble.attrs = {"label": "FlowDAS & co", "method": "FlowDAS(<settings>)", "members": 5, "seed": 1, "seconds": 2.0}
    plain = (
        field(rain)
        .drop_vars("rain")
        .assign(
            rain_mean=(("time", "lat", "lon"), np.log1p(rain) + 0.1, log),
            score_rmse=("time", rng.random(4)),
            score_crps=("time", rng.random(4)),
        )
    )
    plain.attrs = {"label": "linear interpolation", "method": "LinearInterpolation()", "members": 1, "seconds": 0.1}
    seen = field(rain)
    observations = xr.Dataset(
        {"observation": (("time", "value"), np.log1p(rain).reshape(4, 6)[:, [0, 5]])}, {"time": seen["time"]}
    )
    scores = xr.Dataset(
        {
            "value": (("label", "score"), [[0.2, 0.1, 0.9], [0.3, 0.3, np.nan]]),
            "units": ("score", np.array(["log(1 + mm)", "log(1 + mm)", "1"], dtype=object)),
        },
        {
            "label": np.array(["FlowDAS & co", "linear interpolation"], dtype=object),
            "score": np.array(["rmse", "crps", "spread_skill"], dtype=object),
        },
    )
    groups = {"truth": seen} if truth else {}
    groups |= {"observations": observations, "linear": plain, "FlowDAS": ensemble, "scores": scores}
    about = {
        "title": "Rain <of a> storm",
        "description": "what was done",
        "units": "log(1 + mm)",
        "labels": json.dumps(["FlowDAS & co", "linear interpolation"]),
        "columns": json.dumps(["rmse", "crps", "spread_skill"]),
        "transforms": json.dumps({"rain": {"name": "LogOnePlus", "scale": 1.0}}),
        "observed_cells": json.dumps([0, 5]),
        "facts": json.dumps(["3 x 2 cells"]),
        "expected": json.dumps(
            [
                {
                    "method": "FlowDAS & co",
                    "score": "rmse",
                    "text": "rmse at most 0.1",
                    "found": 0.2,
                    "passed": False,
                    "source": "s",
                }
            ]
        ),
    }
    write_groups(path, groups, about | attrs)
    return rain


class Page(HTMLParser):
    """Checks that tags close and collects what the page refers to."""

    def __init__(self, text):
        super().__init__()
        self.stack, self.references, self.text = [], [], []
        self.feed(text)
        assert self.stack == []

    def handle_starttag(self, tag, attrs):
        if tag not in VOID:
            self.stack.append(tag)
        self.references += [value for key, value in attrs if key in ("src", "href")]

    def handle_endtag(self, tag):
        assert self.stack.pop() == tag

    def handle_data(self, data):
        self.text.append(data)


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    folder = tmp_path_factory.mktemp("page")
    result(folder / "result.nc")
    return render(folder)


def test_the_page_is_self_contained_and_well_formed(page):
    text = page.read_text()
    parsed = Page(text)
    assert parsed.references and all(ref.startswith("data:image/") for ref in parsed.references)
    assert not re.search(r"@import|url\(|fetch\(|XMLHttpRequest", text)
    assert "<of a>" not in text and "Rain &lt;of a&gt; storm" in text
    assert 'name="viewport"' in text


def test_the_page_says_what_was_done_and_what_came_out(page):
    words = " ".join(Page(page.read_text()).text)
    for said in ("FlowDAS & co", "linear interpolation", "0.200", "log(1 + mm)", "2018-09-13 21:00 UTC",
                 "rmse at most 0.1", "FlowDAS(<settings>)", "Rank histograms", "Effective sample size"):  # fmt: skip
        assert said in words, said


def test_pictures_are_saved_too(page):
    names = {p.name for p in (page.parent / "figures").iterdir()}
    assert names == {"overview.png", "scores.png", "ranks.png", "ess.png"}
    assert all(Image.open(page.parent / "figures" / n).size[0] > 300 for n in names)


def decoded(uri):
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(uri.partition(",")[2]))).convert("RGB"))


def test_every_panel_has_every_hour_and_north_is_up(tmp_path):
    rain = result(tmp_path / "result.nc")
    drawn = atlas(read(tmp_path), "rain")
    kinds = {(p.row, p.column) for p in drawn.panels}
    assert kinds == {
        ("state", 0), ("member", 0),
        ("state", 1), ("member", 1), ("spread", 1), ("error", 1),
        ("state", 2), ("error", 2),
    }  # fmt: skip
    assert all(len(p.frames) == 4 for p in drawn.panels)
    truth = next(p for p in drawn.panels if p.title == "Truth")
    picture = decoded(truth.frames[2])
    assert picture.shape[:2] == (3, 2)
    expected = Scale("rain", 0.1, 80.0, "mm").rgba(rain[2][::-1])[..., :3]
    np.testing.assert_allclose(picture.astype(int), expected.astype(int), atol=2)


def test_means_are_shown_in_units_of_the_data(tmp_path):
    rain = result(tmp_path / "result.nc")
    drawn = atlas(read(tmp_path), "rain")
    means = dict(drawn.states)["linear interpolation"]
    np.testing.assert_allclose(means[0], np.expm1(np.log1p(rain[0]) + 0.1)[::-1], rtol=1e-5)


def test_observed_cells_are_laid_on_the_grid(tmp_path):
    rain = result(tmp_path / "result.nc")
    drawn = atlas(read(tmp_path), "rain")
    seen = dict(drawn.states)["Observations"]
    assert np.isfinite(seen[0]).sum() == 2
    assert seen[0][2, 0] == pytest.approx(rain[0, 0, 0], rel=1e-5)  # cell 0: southern row, drawn at the bottom
    assert seen[0][0, 1] == pytest.approx(rain[0, 2, 1], rel=1e-5)


def test_a_result_without_a_truth_has_a_page(tmp_path):
    result(tmp_path / "result.nc", truth=False)
    words = " ".join(Page(render(tmp_path).read_text()).text)
    assert "FlowDAS & co" in words and "Truth" not in words


def test_methods_that_failed_are_named(tmp_path):
    result(tmp_path / "result.nc", failures=json.dumps([{"method": "EnKF", "error": "Diverged: at 3"}]))
    assert "Diverged: at 3" in render(tmp_path).read_text()


def test_states_without_a_grid_have_trajectories_and_a_ring_has_a_time_picture(tmp_path):
    times = {"time": np.arange(30.0)}
    rng = np.random.default_rng(1)

    def one(name, values, dims):
        truth = xr.Dataset({name: (("time", *dims), values)}, times)
        analysis = xr.Dataset(
            {f"{name}_mean": (("time", *dims), values), f"{name}_std": (("time", *dims), values * 0 + 1)}, times
        )
        analysis.attrs["label"] = "EnKF"
        observations = xr.Dataset({"observation": (("time", "value"), np.zeros((30, 1)))}, times)
        write_groups(
            tmp_path / name / "result.nc",
            {"truth": truth, "observations": observations, "EnKF": analysis},
            {"title": name},
        )
        return render(tmp_path / name).read_text()

    assert "Trajectories" in one("z", rng.normal(size=30), ())
    ring = one("x", rng.normal(size=(30, 8)), ("site",))
    assert "Trajectories" not in ring and 'class="grid"' in ring
    drawn = atlas(read(tmp_path / "x"), "x")
    # Time runs down the picture, the ring across it.
    assert drawn.shape == (30, 8) and decoded(drawn.panels[0].frames[0]).shape[:2] == (30, 8)


@pytest.mark.parametrize(("count", "bands"), [(5, 1), (9, 1), (14, 2)])
def test_many_methods_make_two_bands(tmp_path, count, bands):
    """A still picture keeps at most nine fields beside each other, each about as wide as the others."""
    panels = [(f"a method with a long name, number {k}", [np.zeros((8, 8))] * 2) for k in range(count)]
    overview(panels, ["t = 1", "t = 2"], Scale("signed", -1.0, 1.0, ""), tmp_path, (8, 8))
    width, height = Image.open(tmp_path / "overview.png").size
    columns = -(-count // bands)
    assert width == pytest.approx(160 * (1.75 * columns + 0.85), abs=1)
    assert 160 * 1.75 * 2 * bands < height < 1.35 * 160 * 1.75 * 2 * bands


def test_rain_classes_are_those_of_the_legend():
    scale = Scale("rain", 0.1, 80.0, "mm")
    values = np.array([0.0, 0.09, *RAIN_LEVELS, 500.0, np.nan])
    rgba = scale.rgba(values)
    colours = ["#" + "".join(f"{c:02x}" for c in row[:3]) for row in rgba]
    assert colours[:-1] == [RAIN_COLOURS[0], RAIN_COLOURS[0], *RAIN_COLOURS[1:], RAIN_COLOURS[-1]]
    assert tuple(rgba[-1]) == NO_DATA
    assert [text for _, text in scale.legend()][1:] == [f"{level:g}" for level in RAIN_LEVELS]


def test_scales_follow_the_field():
    wet = field(np.ones((1, 3, 2)))["rain"]
    assert is_rain(wet) and state_scale(wet).kind == "rain"
    signed = xr.DataArray(np.linspace(-3, 2, 50), name="vorticity")
    assert state_scale(signed).kind == "signed" and state_scale(signed).low == -state_scale(signed).high
    assert state_scale(xr.DataArray(np.linspace(270, 300, 50), name="t")).kind == "sequential"


def test_the_best_of_a_column():
    assert best_of("rmse", [0.3, 0.2, np.nan]) == 0.2
    assert best_of("csi_1mm", [0.3, 0.2]) == 0.3
    assert best_of("spread_skill", [0.5, 1.25, 0.9]) == 0.9
    assert np.isnan(best_of("seconds", [1.0, 2.0]))


def test_numbers_and_names_for_people():
    assert number(0.23456) == "0.235" and number(float("nan")) == "–" and number(64.0, "ess") == "64"
    assert score_title("csi_10mm") == "CSI 10 mm" and score_title("withheld_rmse") == "RMSE, withheld"
    assert safe_name("FlowDAS, 64 members (a/b)") == "FlowDAS_64_members_a_b"
