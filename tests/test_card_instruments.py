"""Cards of users with tables: a CSV of stations at irregular times, several instruments, checks, withheld places."""

import json

import numpy as np
import pandas as pd
import pytest
import xarray as xr

from assimilate.cli import run_app
from dynamics.base import simulate
from dynamics.lorenz import Lorenz96

MODEL = Lorenz96(size=20)
HEAD = 'title = "mine"\nseed = 3\n[scores]\nnames = ["rmse"]\n'
TRUTH = '[truth]\ndata = "truth.nc"\nperiodic = ["site"]\n'
START = '[initial]\nlaw = "perturbed"\nstd = 1.0\n'
ENKF = '[[method]]\ntype = "ETKF"\nmembers = 20\ninflation = 1.05\ndynamics = { type = "Lorenz96", size = 20 }\n'
TABLE = '[observations]\nlayout = "table"\ndata = "stations.csv"\nvariable = "x"\n'


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A truth, and what was measured of it: stations at any time, a grid at every fourth one."""
    folder = tmp_path_factory.mktemp("mine")
    truth = simulate(MODEL, steps=40, trajectories=1, seed=1, spinup=100).isel(experiment=0, drop=True)
    truth.to_netcdf(folder / "truth.nc")
    rng = np.random.default_rng(0)
    times = np.sort(rng.uniform(0.03, 1.9, 300))
    stations = rng.uniform(1, 18, 40).round(2)
    which = rng.integers(0, 40, 300)
    states = truth["x"].interp(time=times).values
    values = np.array([np.interp(stations[w], np.arange(20), x) for w, x in zip(which, states, strict=True)])
    frame = pd.DataFrame({"time": times, "site": stations[which], "x": values + rng.normal(0, 0.5, 300)})
    frame.to_csv(folder / "stations.csv", index=False)
    wild = frame.assign(std=0.5, x=np.where(rng.random(300) < 0.02, 80.0, frame["x"]))
    wild.to_csv(folder / "wild.csv", index=False)
    dates = np.datetime64("2024-01-01", "ns") + (frame["time"].to_numpy() * 3600e9).astype("timedelta64[ns]")
    frame.assign(time=dates).to_csv(folder / "dated.csv", index=False)
    noisy = truth["x"].isel(time=slice(4, None, 4)) + rng.normal(0, 1.0, (10, 20))
    noisy.to_dataset(name="seen").to_netcdf(folder / "grid.nc")
    return folder


def ran(folder, text, name, *arguments):
    path = folder / f"{name}.toml"
    path.write_text(text)
    code = run_app(["run", str(path), "--out", str(folder / name), "--no-report", *arguments])
    return code, folder / name


def score(out, name, label="ETKF"):
    rows = json.loads((out / "scores.json").read_text())
    return next(r["value"] for r in rows if r["method"] == label and r["score"] == name)


def test_stations_at_any_time_just_work(folder):
    seen = (
        '[observations]\nlayout = "table"\ndata = "stations.csv"\nvariable = "x"\nnoise = 0.5\nschedule = "nearest"\n'
    )
    code, out = ran(folder, HEAD + TRUTH + seen + START + ENKF, "nearest")
    assert code == 0
    # 8 values of error 0.5 at a step, used half a step away at most: far below the start (1) and the climate (3.6).
    assert score(out, "rmse") < 0.6
    tree = xr.open_datatree(out / "result.nc")
    assert tree["observations"]["observations"].dims == ("time", "observations_slot")
    assert np.isfinite(tree["ETKF"]["x_mean"]).all()


def test_a_page_is_made_of_it(folder):
    seen = (
        '[observations]\nlayout = "table"\ndata = "stations.csv"\nvariable = "x"\nnoise = 0.5\nschedule = "nearest"\n'
    )
    path = folder / "page.toml"
    path.write_text(HEAD + TRUTH + seen + START + ENKF)
    assert run_app(["run", str(path), "--out", str(folder / "page"), "--set", 'truth.time=["0", "1.95"]']) == 0
    text = (folder / "page" / "report.html").read_text()
    assert "observed values at a time" in text


@pytest.mark.parametrize("schedule", ['schedule = "substep"', 'schedule = "window"\nwindow = { every = 0.1 }'])
def test_other_schedules_without_a_truth(folder, schedule):
    seen = TABLE + f"noise = 0.5\n{schedule}\n"
    withheld = "[verification]\nwithhold = 0.2\n"
    head = HEAD.replace('["rmse"]', '["withheld_rmse"]')
    code, out = ran(folder, head + seen + withheld + ENKF, "substep" if "substep" in schedule else "window")
    assert code == 0
    # Errors of the examiners are 0.5; the climate's are 3.6.
    assert score(out, "withheld_rmse") < 1.5
    count = xr.open_dataset(out / "result.nc", group="ETKF").sizes["time"]
    assert count == (300 if "substep" in schedule else 20)


def test_several_instruments_with_checks(folder):
    instruments = (
        '[[instrument]]\nname = "stations"\ndata = "wild.csv"\nvariable = "x"\n'
        "quality = { gross = [-30, 30], background = 5.0 }\n"
        '[[instrument]]\nname = "grid"\nlayout = "grid"\ndata = "grid.nc"\nnoise = 1.0\n'
    )
    head = HEAD.replace('["rmse"]', '["rmse", "rejected", "chi_square"]')
    text = head + TRUTH + '[observations]\nschedule = "nearest"\n' + instruments + START + ENKF
    code, out = ran(folder, text, "several")
    assert code == 0
    assert score(out, "rmse") < 0.6
    wild = pd.read_csv(folder / "wild.csv")["x"] == 80.0
    analysis = xr.open_dataset(out / "result.nc", group="ETKF")
    flags = analysis["feedback_flag"].where(analysis["feedback_instrument"] == "stations", drop=True)
    assert int((flags == 3).sum()) == wild.sum() and score(out, "rejected") >= wild.sum()
    assert (analysis["feedback_value"].values[analysis["feedback_flag"].values == 3] == 80.0).all()
    assert 0.5 < score(out, "chi_square") < 2.0
    assert int((analysis["feedback_instrument"] == "grid").sum()) == 200


def test_dates(folder):
    seen = TABLE.replace("stations", "dated") + 'noise = 0.5\nschedule = "nearest"\n'
    head = HEAD.replace('["rmse"]', '["ess"]')
    code, out = ran(folder, head + '[truth]\ntime_unit = "h"\n' + seen + ENKF, "dated")
    assert code == 0
    times = xr.open_dataset(out / "result.nc", group="ETKF")["time"].values
    assert times.dtype.kind == "M" and np.unique(np.diff(times)).tolist() == [180 * 10**9]


INSTRUMENT = '[[instrument]]\nname = "a"\ndata = "stations.csv"\n'


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (TABLE, "has no 'error', and no error"),
        (TABLE.replace('"x"', '"z"') + "noise = 1.0\n", "no column 'z'"),
        (TABLE + "noise = 1.0\n", 'observations.schedule = "nearest"'),
        (TABLE + 'noise = 1.0\nschedule = "window"\n', "'window' goes with schedule"),
        ('[observations]\nfraction = 0.5\nnoise = 1.0\nschedule = "nearest"\n', "is about tables"),
        (INSTRUMENT + "[observations]\nfraction = 0.5\nnoise = 1.0\n", "not both"),
        (INSTRUMENT + 'layout = "grid"\n', "a grid has no errors of its own"),
        (INSTRUMENT + "nose = 1.0\n", "did you mean 'noise'"),
        (INSTRUMENT.replace("stations.csv", "gone.csv") + "noise = 1.0\n", "no such file"),
        (INSTRUMENT + 'variable = "x"\nnoise = 1.0\n[quality]\ngross = [3, 1]\n', "lowest and the highest"),
    ],
)
def test_mistakes_are_one_line(folder, text, message, capsys):
    code, out = ran(folder, HEAD + TRUTH + START + ENKF + text, "wrong")
    captured = capsys.readouterr().err
    assert code == 2 and captured.count("\n") == 1 and message in captured, captured
    assert not out.exists()


def test_methods_without_a_model_use_the_times_of_the_truth_and_fits_ignore_gross_errors(folder):
    """A value of 80 among a state of size 4 would make the fitted variance one of errors."""
    seen = '[observations]\nlayout = "table"\ndata = "wild.csv"\nvariable = "x"\nschedule = "nearest"\nnoise = 0.5\n'
    fitted = '[[method]]\ntype = "OptimalInterpolation"\npreset = "fit"\n'
    code, out = ran(folder, HEAD + TRUTH + seen + "[quality]\ngross = [-30.0, 40.0]\n" + fitted, "gross")
    assert code == 0
    group = xr.open_dataset(out / "result.nc", group="optimal_interpolation")
    truth = xr.open_dataset(folder / "truth.nc")
    assert np.isin(group["time"].values, truth["time"].values).all()
    # Eight values on a ring of 20 sites leave most of the climate's 3.6 unknown, not more than all of it.
    assert score(out, "rmse", "optimal interpolation") < 3.6


def test_a_noise_with_settings(folder):
    seen = '[observations]\nfraction = 0.5\nnoise = { type = "StudentT", scale = 0.3, degrees = 4.0 }\n'
    particle = '[[method]]\ntype = "BootstrapFilter"\nmembers = 10\ndynamics = { type = "Lorenz96", size = 20 }\n'
    text = HEAD + TRUTH + 'time = ["0", "0.2"]\n' + seen + START + particle
    code, out = ran(folder, text, "noise")
    assert code == 0 and np.isfinite(score(out, "rmse", "bootstrap filter"))
