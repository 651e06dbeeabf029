"""The command: what it writes, what it prints, and that every mistake is one line on stderr with exit code 2."""

import json
import os
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
import xarray as xr

from assimilate.cards.files import load
from assimilate.cards.problem import prepare
from assimilate.cli import run_app
from assimilate.filters.base import EnsembleFilter
from dynamics.lorenz import Lorenz96

QUICK = ["--set", "truth.steps=24", "--set", "truth.experiments=2", "--set", "method.BootstrapFilter.members=100"]
FAST = [*QUICK, "--no-report"]


@dataclass(frozen=True)
class Breaks(EnsembleFilter):
    """A filter that fails at its first analysis; cards name it `test_cli:Breaks`."""

    dynamics: object
    name: ClassVar[str] = "breaks"
    exactness: ClassVar[str] = "biased"

    def step(self, state, observation, time, *, rng):
        raise RuntimeError("a wheel came off")


class Stopped(Breaks):
    """Somebody presses Ctrl-C at its first analysis."""

    def step(self, state, observation, time, *, rng):
        raise KeyboardInterrupt


@pytest.fixture(autouse=True)
def _importable(monkeypatch):
    """`test_cli:Breaks` is this module, however the test runner imported it."""
    monkeypatch.setitem(sys.modules, "test_cli", sys.modules[__name__])


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """The folder of one small finished run."""
    folder = tmp_path_factory.mktemp("run") / "deep" / "out"
    assert run_app(["run", "quickstart", "--out", str(folder), *QUICK]) == 0
    return folder


def write_card(folder, **parts):
    """A card of one's own: Lorenz-96 grids in files; `parts` replace sections."""
    sections = {
        "head": 'title = "mine"\nseed = 3',
        "truth": '[truth]\ndata = "truth.nc"\nperiodic = ["site"]',
        "observations": "[observations]\nfraction = 0.5\nnoise = 0.5",
        "initial": '[initial]\nlaw = "perturbed"\nstd = 1.0',
        "method": '[[method]]\ntype = "EnKF"\nmembers = 20\ndynamics = { type = "Lorenz96" }',
        "scores": '[scores]\nnames = ["rmse", "crps"]',
    } | parts
    path = folder / "mine.toml"
    path.write_text("\n".join(sections.values()))
    return path


@pytest.fixture
def mine(tmp_path):
    """A folder with a gridded truth, gappy observations and a table of stations made from it."""
    from dynamics.base import simulate

    model = Lorenz96()
    truth = simulate(model, steps=12, trajectories=1, seed=1, spinup=100).isel(experiment=0, drop=True)
    truth.to_netcdf(tmp_path / "truth.nc")
    rng = np.random.default_rng(0)
    noisy = truth["x"] + rng.normal(0, 0.5, truth["x"].shape)
    gaps = noisy.where(xr.DataArray(rng.random(noisy.shape) < 0.5, dims=noisy.dims)).isel(time=slice(1, None))
    gaps.to_dataset(name="seen").to_netcdf(tmp_path / "gaps.nc")
    places = rng.uniform(2, 37, 25).round(2)
    rows = ["time,site,x"]
    for k in range(1, 13):
        values = np.interp(places, np.arange(40), truth["x"].values[k]) + rng.normal(0, 0.5, 25)
        rows += [f"{truth['time'].values[k]},{p},{v:.4f}" for p, v in zip(places, values, strict=True)]
    (tmp_path / "stations.csv").write_text("\n".join(rows))
    return tmp_path


def test_a_run_leaves_a_result_scores_and_a_page(finished):
    assert {p.name for p in finished.iterdir()} == {"result.nc", "scores.json", "report.html", "figures"}
    tree = xr.open_datatree(finished / "result.nc")
    assert set(tree.children) == {
        "truth", "observations", "scores", "bootstrap_filter", "ETKF", "EnKF", "EnKF_without_observations",
    }  # fmt: skip
    analysis = tree["ETKF"]
    assert analysis.sizes["time"] == 24 and analysis.sizes["member"] == 40 and analysis.sizes["experiment"] == 2
    assert analysis.attrs["method"].startswith("ETKF(") and analysis.attrs["seconds"] > 0
    assert tree.attrs["seed"] == 1 and "CPU" in tree.attrs["device"] and tree.attrs["version"]
    assert float(tree["scores"]["value"].sel(label="ETKF", score="rmse")) > 0


def test_scores_json_is_a_list_of_rows(finished):
    rows = json.loads((finished / "scores.json").read_text())
    assert all(set(row) == {"method", "score", "value", "units"} for row in rows)
    assert all(isinstance(row["value"], float) and np.isfinite(row["value"]) for row in rows)
    labels = list(dict.fromkeys(row["method"] for row in rows))
    assert labels == ["bootstrap filter", "ETKF", "EnKF", "EnKF without observations"]
    assert {"rmse", "crps", "spread_skill", "ess", "seconds"} <= {r["score"] for r in rows if r["method"] == "ETKF"}
    assert next(r for r in rows if r["score"] == "seconds")["units"] == "s"


def test_the_table_is_printed(tmp_path, capsys):
    assert run_app(["run", "quickstart", "--out", str(tmp_path), *FAST, "--set", "method.EnKF.members=10"]) == 0
    printed = capsys.readouterr().out
    assert "bootstrap filter" in printed and "RMSE" in printed and "result.nc" in printed
    rows = json.loads((tmp_path / "scores.json").read_text())
    value = next(r["value"] for r in rows if r["method"] == "ETKF" and r["score"] == "rmse")
    assert f"{value:.3f}" in printed


def test_the_seed_decides_the_scores(tmp_path):
    def rmse(folder, seed):
        assert run_app(["run", "quickstart", "--out", str(folder), "--seed", str(seed), *FAST]) == 0
        rows = json.loads((folder / "scores.json").read_text())
        return [r["value"] for r in rows if r["score"] == "rmse"]

    first = rmse(tmp_path / "a", 5)
    assert rmse(tmp_path / "b", 5) == first
    assert rmse(tmp_path / "c", 6) != first


def test_one_failing_method_does_not_take_the_others(tmp_path, capsys):
    changes = ["--set", "method.2.type=test_cli:Breaks", "--set", "method.2.inflation=1"]
    assert run_app(["run", "quickstart", "--out", str(tmp_path), *FAST, *changes]) == 2  # no such setting: said at once
    assert not list(tmp_path.iterdir())
    card = (Path(__file__).parent.parent / "benchmarks" / "cards" / "quickstart.toml").read_text()
    own = tmp_path / "own.toml"
    own.write_text(card.replace('type = "EnKF"\nmembers = 40\ninflation = 1.04', 'type = "test_cli:Breaks"'))
    capsys.readouterr()
    assert run_app(["run", str(own), "--out", str(tmp_path / "out"), *QUICK]) == 1
    captured = capsys.readouterr()
    assert "breaks" in captured.err and "a wheel came off" in captured.err
    tree = xr.open_datatree(tmp_path / "out" / "result.nc")
    assert "ETKF" in tree.children and "EnKF_without_observations" in tree.children and "breaks" not in tree.children
    assert json.loads(tree.attrs["failures"]) == [{"method": "breaks", "error": "RuntimeError: a wheel came off"}]
    assert "a wheel came off" in (tmp_path / "out" / "report.html").read_text()


def test_stopping_keeps_what_is_finished(tmp_path, capsys):
    card = (Path(__file__).parent.parent / "benchmarks" / "cards" / "quickstart.toml").read_text()
    own = tmp_path / "own.toml"
    own.write_text(card.replace('type = "EnKF"\nmembers = 40\ninflation = 1.04', 'type = "test_cli:Stopped"'))
    assert run_app(["run", str(own), "--out", str(tmp_path / "out"), *FAST]) == 130
    assert "stopped" in capsys.readouterr().err
    assert score(tmp_path / "out", "ETKF", "rmse") > 0
    assert {p.name for p in (tmp_path / "out").iterdir()} == {"result.nc", "scores.json"}
    assert run_app(["report", str(tmp_path / "out")]) == 0


def test_check_turns_a_missed_expectation_into_an_exit_code(tmp_path):
    own = tmp_path / "own.toml"
    card = (Path(__file__).parent.parent / "benchmarks" / "cards" / "quickstart.toml").read_text()
    own.write_text(card.replace("max = 1.2", "max = 0.01"))
    assert run_app(["run", str(own), "--out", str(tmp_path / "a"), *FAST]) == 0
    assert run_app(["run", str(own), "--out", str(tmp_path / "a"), "--check", *FAST]) == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["run", "quickstrat"], "unknown card 'quickstrat'; did you mean 'quickstart'?"),
        (["run", "none.toml"], "there is no card file 'none.toml'"),
        (["run", "quickstart", "--set", "truth.stps=3"], "unknown key 'truth.stps'; did you mean 'steps'?"),
        (["run", "quickstart", "--set", "method.ETKF.inflaton=1"], "did you mean 'inflation'?"),
        (["run", "quickstart", "--set", "truth.dynamics.type=Lorenz36"], "unknown dynamics 'Lorenz36'"),
        (["run", "quickstart", "--set", "scores.names=['rsme']"], "there is no score 'rsme'; did you mean 'rmse'?"),
        (["run", "quickstart", "--set", "observations.operator.channels=9"], "Select refuses its settings: channel 9"),
        (["run", "quickstart", "--set", "method.ETKF.transition=nothing"], "unknown pretrained weights 'nothing'"),
        (["run", "quickstart", "--set", "truth.steps"], "expected path=value"),
        (["run", "quickstart", "--device", "cuda:99"], "device 'cuda:99' is not there"),
        (["run", "quickstart", "--device", "gpu"], "device 'gpu' is not there"),
        (["run", "quickstart", "--dtype", "half"], "expected float32 or float64"),
        (["run", "quickstart", "--sed", "3"], "No such option: --sed"),
        (["run"], "Missing argument 'card'"),
        (["runn"], "No such command"),
        (["list", "method"], "unknown list 'method'; did you mean 'methods'?"),
        (["report", "nowhere"], "there is no result at 'nowhere'"),
        (["fit", "quickstart"], "this card has no [fit] table"),
    ],
)
def test_mistakes_are_one_line_and_nothing_is_written(arguments, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert run_app(arguments) == 2
    captured = capsys.readouterr()
    assert message in captured.err
    assert captured.err.count("\n") == 1 and captured.err.startswith("error: ")
    assert captured.out == "" and not list(tmp_path.iterdir())


BAD_DATA = [
    ({"truth": '[truth]\ndata = "nowhere.nc"'}, "nowhere.nc: no such file"),
    ({"truth": '[truth]\ndata = "mine.toml"'}, "not a readable netCDF file"),
    ({"truth": '[truth]\ndata = "truth.nc"\nvariables = ["y"]'}, "no variable 'y'"),
    ({"truth": '[truth]\ndata = "truth.nc"\nunits = ["K"]'}, "'x' is in '1', the card says 'K'"),
    ({"truth": '[truth]\ndata = "truth.nc"\ntransform = "log1p"'}, "not finite after the transform"),
    ({"truth": '[truth]\ndata = "truth.nc"\ntime = ["7", "8"]'}, "no time between 7 and 8"),
    ({"truth": '[truth]\ndata = "truth.nc"\nperiodic = ["sit"]'}, "no dimension 'sit'; did you mean 'site'?"),
    ({"truth": '[truth]\ndata = "truth.nc"\nregion = { y = [0, 3] }'}, "'y' = [0, 3]"),
    ({"truth": '[truth]\ndata = "holes.nc"'}, "variable 'x' is nan at time=3, cell (5,)"),
    ({"truth": '[truth]\ndata = "backwards.nc"'}, "time does not increase"),
    (
        {"observations": '[observations]\ndata = "small.nc"\nnoise = 1.0'},
        "dimension 'site' has 30 cells, the state has 40",
    ),
    ({"observations": '[observations]\ndata = "shifted.nc"\nnoise = 1.0'}, "coordinate 'site' differs"),
    ({"observations": '[observations]\ndata = "infinite.nc"\nnoise = 1.0'}, "infinite value"),
    ({"observations": '[observations]\ndata = "gaps.nc"\nvariable = "sen"\nnoise = 1.0'}, "did you mean 'seen'?"),
    (
        {
            "truth": '[truth]\ndata = "truth.nc"',
            "observations": '[observations]\ndata = "far.csv"\nlayout = "stations"\nnoise = 1.0',
        },
        "'far.csv': station 0",
    ),
    (
        {"observations": '[observations]\ndata = "nowhere_to.csv"\nlayout = "stations"\nnoise = 1.0'},
        "no columns that say where",
    ),
    ({"method": '[[method]]\ntype = "EnKF"'}, "EnKF needs 'transition' or 'dynamics'"),
    ({"method": '[[method]]\ntype = "EnKF"\ndynamics = { type = "Lorenz63" }'}, "the dynamics are of Space("),
    (
        {"method": '[[method]]\ntype = "EnKF"\ndynamics = { type = "Lorenz96", size = 30 }'},
        "a grid of (30,) cells, the state one of (40,)",
    ),
    ({"verification": "[verification]\nwithhold = 0.99"}, "leaves none to assimilate"),
]


@pytest.mark.parametrize(("parts", "message"), BAD_DATA)
def test_bad_data_is_one_line_before_anything_is_computed(parts, message, mine, capsys):
    truth = xr.open_dataset(mine / "truth.nc").load()
    truth.where((truth["time"] != truth["time"][3]) | (truth["site"] != 5)).to_netcdf(mine / "holes.nc")
    truth.isel(time=[0, 2, 1]).to_netcdf(mine / "backwards.nc")
    gaps = xr.open_dataset(mine / "gaps.nc").load()
    gaps.isel(site=slice(0, 30)).to_netcdf(mine / "small.nc")
    gaps.assign_coords(site=gaps["site"] + 0.5).to_netcdf(mine / "shifted.nc")
    gaps.fillna(np.inf).to_netcdf(mine / "infinite.nc")
    (mine / "far.csv").write_text("time,site,x\n0.05,700,1.0\n0.1,700,2.0")
    (mine / "nowhere_to.csv").write_text("time,x\n0.05,1.0")
    card = write_card(mine, **parts)
    assert run_app(["run", str(card), "--out", str(mine / "out")]) == 2
    captured = capsys.readouterr()
    assert message in captured.err, captured.err
    assert captured.err.count("\n") == 1 and not (mine / "out").exists()


def score(folder, label, name):
    rows = json.loads((folder / "scores.json").read_text())
    return next(r["value"] for r in rows if r["method"] == label and r["score"] == name)


def test_the_users_own_file_with_cells_hidden_from_it(mine):
    card = write_card(mine)
    assert run_app(["run", str(card), "--out", str(mine / "out"), "--no-report"]) == 0
    # Half of the cells are seen with noise 0.5; the start is off by 1: an analysis must be better than its start.
    assert score(mine / "out", "EnKF", "rmse") < 0.9
    tree = xr.open_datatree(mine / "out" / "result.nc")
    assert tree["observations"].sizes["observation_value"] == 20
    assert tree["EnKF"]["x"].attrs["units"] == "1"


@pytest.mark.parametrize(
    "observations",
    [
        '[observations]\ndata = "gaps.nc"\nnoise = 0.5',
        '[observations]\ndata = "stations.csv"\nlayout = "stations"\nnoise = 0.5',
    ],
)
def test_separate_observation_files_and_withheld_values(observations, mine):
    card = write_card(
        mine,
        observations=observations,
        verification="[verification]\nwithhold = 0.2",
        scores='[scores]\nnames = ["rmse", "withheld_rmse", "withheld_crps", "withheld_spread_skill"]',
    )
    assert run_app(["run", str(card), "--out", str(mine / "out"), "--no-report"]) == 0
    rmse, withheld = (score(mine / "out", "EnKF", n) for n in ("rmse", "withheld_rmse"))
    assert rmse < 0.9
    # The examiners have an error of 0.5 of their own: withheld^2 is about rmse^2 + 0.25 (60 values: 20 % either way).
    assert withheld == pytest.approx(np.hypot(rmse, 0.5), rel=0.35)


def test_no_truth_at_all_stations_only(mine):
    card = write_card(
        mine,
        truth="",
        initial='[initial]\nlaw = "prior"',
        observations='[observations]\ndata = "stations.csv"\nlayout = "stations"\nnoise = 0.5',
        verification="[verification]\nwithhold = 0.2",
        scores='[scores]\nnames = ["withheld_rmse", "ess"]',
    )
    assert run_app(["run", str(card), "--out", str(mine / "out"), "--no-report"]) == 0
    assert "truth" not in xr.open_datatree(mine / "out" / "result.nc").children
    assert np.isfinite(score(mine / "out", "EnKF", "withheld_rmse"))


def test_draws_are_averaged(mine):
    card = write_card(mine, head='title = "mine"\nseed = 3\ndraws = 3')
    assert run_app(["run", str(card), "--out", str(mine / "all"), "--no-report"]) == 0
    networks = {tuple(prepare(load(str(card)), draw=draw, folder=mine).cells) for draw in range(3)}
    assert len(networks) == 3 and {len(cells) for cells in networks} == {20}
    table = xr.open_datatree(mine / "all" / "result.nc")["scores"]
    assert float(table["spread_over_draws"].sel(label="EnKF", score="rmse")) > 0


def test_results_of_an_earlier_run_stay_when_a_later_one_is_refused(finished):
    before = {p.name: p.read_bytes() for p in finished.iterdir() if p.is_file()}
    assert run_app(["run", "quickstart", "--out", str(finished), "--set", "truth.stps=3"]) == 2
    assert {p.name: p.read_bytes() for p in finished.iterdir() if p.is_file()} == before


def test_a_folder_that_cannot_be_written_is_said_before_the_work(tmp_path, capsys):
    (tmp_path / "file").write_text("")
    assert run_app(["run", "quickstart", "--out", str(tmp_path / "file" / "out"), *FAST]) == 2
    assert "cannot be written to" in capsys.readouterr().err


@pytest.mark.parametrize("what", ["cards", "dynamics", "operators", "methods", "guidance"])
def test_lists_are_tables_or_json(what, capsys):
    assert run_app(["list", what, "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert rows and all(row["name"] and row["summary"] for row in rows)
    assert run_app(["list", what]) == 0
    printed = capsys.readouterr().out
    assert all(row["name"] in printed for row in rows)


def test_the_report_can_be_made_again(finished, tmp_path, capsys):
    assert run_app(["report", str(finished / "result.nc"), "--out", str(tmp_path)]) == 0
    assert capsys.readouterr().out.strip() == str(tmp_path / "report.html")
    assert (tmp_path / "report.html").read_text() == (finished / "report.html").read_text()


@pytest.mark.parametrize(
    "arguments", [["--help"], ["run", "--help"], ["list", "-h"], ["fit", "--help"], ["report", "-h"]]
)
def test_help_has_examples(arguments, capsys):
    assert run_app(arguments) == 0
    assert re.search(r"Examples?:", capsys.readouterr().out)


def test_the_installed_command_has_no_traceback():
    command = Path(sys.executable).with_name("assimilate")
    done = subprocess.run(
        [command, "run", "nothing"], capture_output=True, text=True, env={**os.environ, "COLUMNS": "80"}
    )
    assert done.returncode == 2 and "Traceback" not in done.stderr
    assert done.stderr.splitlines() == [done.stderr.strip()]
    version = subprocess.run([command, "--version"], capture_output=True, text=True)
    assert version.returncode == 0 and re.fullmatch(r"assimilate-da \d+\.\d+\.\d+\s*", version.stdout)
