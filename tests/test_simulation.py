"""Data generation: the states are those that a run or a training would simulate, however they are cut into parts."""

import tomllib

import numpy as np
import pytest
import torch
import xarray as xr

from assimilate.cards import simulation
from assimilate.cards.files import parse
from assimilate.cards.problem import prepare
from assimilate.cards.simulation import training_of, truth_of, write_simulation
from assimilate.cards.training import source_of
from assimilate.cli import run_app
from assimilate.errors import UserError
from assimilate.learning.samples import Trajectories

CARD = """
title = "flow"
seed = 4
[truth]
dynamics = { type = "NavierStokes", size = 16, noise = 1.0, noise_wavevectors = [[1, 0], [2, 1]], substeps = 4 }
steps = 3
every = 2
experiments = 5
spinup = 2
[observations]
noise = 0.1
[[method]]
type = "EnKF"
members = 4
[fit]
recipe = "transition"
simulation = { trajectories = 3, states = 4, spinup = 1, every = 2, seed = 8 }
"""


@pytest.fixture
def card():
    return parse(tomllib.loads(CARD))


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "flow.toml"
    path.write_text(CARD)
    return str(path)


@pytest.mark.parametrize("at_once", [None, 1, 2, 5])
def test_the_truth_is_that_of_the_run_however_it_is_cut(card, at_once, tmp_path):
    wanted = prepare(card).truth
    written = write_simulation(truth_of(card), tmp_path / "truth.nc", at_once=at_once)
    found = xr.load_dataset(written)
    assert found["vorticity"].dims == ("experiment", "time", "y", "x") and found["vorticity"].attrs["units"]
    np.testing.assert_array_equal(found["time"], wanted["time"])
    # The same numbers are drawn; transforms of other batches round differently.
    np.testing.assert_allclose(found["vorticity"], wanted["vorticity"], rtol=0, atol=1e-5)
    assert found.attrs["dynamics"].startswith("NavierStokes(") and found.attrs["seed"] == truth_of(card).seed
    assert [p.name for p in tmp_path.iterdir()] == ["truth.nc"]


def test_training_on_the_file_is_training_on_the_simulator(card, tmp_path):
    file = write_simulation(training_of(card), tmp_path / "states.nc", at_once=2)
    from_file = source_of(card, card.fit[0].model_copy(update={"data": str(file)}))
    s = training_of(card)
    simulated = Trajectories.simulated(
        s.dynamics, trajectories=s.trajectories, states=s.states, spinup=s.spinup, seed=s.seed, every=s.every
    )
    torch.testing.assert_close(from_file.states, simulated.states, rtol=0, atol=1e-5)
    assert from_file.states.shape == (3, 4, 1, 16, 16) and from_file.dt == pytest.approx(simulated.dt)
    assert set(from_file.space.periodic) == {"y", "x"} and from_file.space.coords["x"].units == (
        simulated.space.coords["x"].units
    )


def test_a_killed_simulation_goes_on(card, tmp_path, monkeypatch):
    whole = xr.load_dataset(write_simulation(truth_of(card), tmp_path / "whole.nc", at_once=2))
    made = []
    original = simulation.simulate

    def counted(*args, trajectories, **more):
        if len(made) == 2:
            raise KeyboardInterrupt
        made.append(trajectories)
        return original(*args, trajectories=trajectories, **more)

    monkeypatch.setattr(simulation, "simulate", counted)
    with pytest.raises(KeyboardInterrupt):
        write_simulation(truth_of(card), tmp_path / "truth.nc", at_once=2)
    assert not (tmp_path / "truth.nc").exists() and made == [2, 2]
    other = card.model_copy(update={"seed": 5})
    with pytest.raises(UserError, match=r"holds parts of another simulation \(seed is"):
        write_simulation(truth_of(other), tmp_path / "truth.nc")
    made[:] = [0]
    seen = []
    # Parts keep their size, whatever is asked for now.
    write_simulation(truth_of(card), tmp_path / "truth.nc", at_once=4, progress=seen.append)
    assert made == [0, 1] and seen == [0, 2, 2, 1]
    xr.testing.assert_identical(xr.load_dataset(tmp_path / "truth.nc"), whole)


def test_zarr_holds_the_same(card, tmp_path):
    pytest.importorskip("zarr")
    netcdf, zarr = (write_simulation(truth_of(card), tmp_path / f"truth.{k}", at_once=2) for k in ("nc", "zarr"))
    opened = xr.open_zarr(zarr)
    np.testing.assert_array_equal(opened["vorticity"], xr.load_dataset(netcdf)["vorticity"])
    assert {p.name for p in tmp_path.iterdir()} == {"truth.nc", "truth.zarr"}


def test_the_command_writes_what_a_run_can_read(file, tmp_path, capsys):
    out = tmp_path / "truth.nc"
    assert run_app(["simulate", file, "--out", str(out), "--at-once", "2"]) == 0
    assert capsys.readouterr().out.strip() == f"wrote {out}"
    assert run_app(["simulate", file, "--training", "--out", str(tmp_path / "t.nc"), "--dtype", "float64"]) == 0
    assert xr.load_dataset(tmp_path / "t.nc")["vorticity"].dtype == np.float64


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--out", "truth.csv"], "expected a name that ends in .nc (netCDF) or .zarr"),
        (["--out", "flow.toml/x.nc"], "cannot be written to"),
        (["--out", "there.nc"], "'there.nc' is already there"),
        (["--out", "a.nc", "--set", "truth.data=florence"], "either 'dynamics' (simulated) or 'data' (a file)"),
        (["--out", "a.nc", "--training", "--set", "fit.recipe=transitoin"], "did you mean 'transition'?"),
        (["--out", "a.nc", "--training", "--set", "fit.recipe=field", "--set", "fit.simulation=1"], "'simulation'"),
        (["--out", "a.nc", "--training", "--set", "fit.simulation.trajectoris=1"], "did you mean 'trajectories'?"),
        (["--out", "a.nc", "--at-once", "0"], "at-once"),
        (["--out", "a.nc", "--device", "gpu"], "device 'gpu' is not there"),
        ([], "Missing option '--out'"),
    ],
)
def test_mistakes_are_one_line(arguments, message, file, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "there.nc").write_text("")
    assert run_app(["simulate", "flow.toml", *arguments]) == 2
    captured = capsys.readouterr()
    assert message in captured.err and captured.err.count("\n") == 1
    assert {p.name for p in tmp_path.iterdir()} == {"flow.toml", "there.nc"}


def test_a_card_without_simulation_says_so(card):
    for truth in ("florence",):
        real = card.model_copy(update={"truth": card.truth.model_copy(update={"dynamics": None, "data": truth})})
        with pytest.raises(UserError, match="the truth of this card is not simulated"):
            truth_of(real)
    with pytest.raises(UserError, match=r"this card has no \[fit\] table"):
        training_of(card.model_copy(update={"fit": []}))
