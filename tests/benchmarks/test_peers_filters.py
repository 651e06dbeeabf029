"""The comparison with public filters: its arithmetic here, the peers themselves where they are installed.

The peers are looked for in this interpreter, or in that of the environment variable `PEER_PYTHON`.
"""

import json
import os
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch

from assimilate.errors import UserError
from benchmarks import peers
from benchmarks.peer_filters import run_filterpy, run_particles
from benchmarks.peer_filters.ours import Estimates, assimilate
from benchmarks.peer_filters.problems import draw
from benchmarks.peer_filters.systems import problems

PYTHON = os.environ.get("PEER_PYTHON", sys.executable)
PROBLEMS = {problem.name: problem for problem in problems()}


def needs(peer):
    if not peers.present(peer, PYTHON):
        pytest.skip(f"{peer} is not installed: pip install 'assimilate-da[peers]'")


def short(name, cycles):
    return replace(PROBLEMS[name], cycles=cycles, burn_in=0)


def test_the_first_truths_and_observations_do_not_depend_on_how_many_there_are():
    problem = short("lorenz63-arctan", 5)
    few, many = draw(problem, 2, 3), draw(problem, 4, 3)
    assert many.states.shape == (4, 6, 3)
    assert many.values.shape == (4, 5, 1)
    assert np.array_equal(few.states, many.states[:2])
    assert np.array_equal(few.values, many.values[:2])
    assert not np.array_equal(many.states[0], many.states[1])


@pytest.mark.parametrize("name", PROBLEMS)
def test_the_noise_of_the_observations_is_what_the_peers_are_told(name):
    problem = short(name, 40)
    data = draw(problem, 4, 1)
    told = problem.arrays()
    seen = data.states[:, problem.every :: problem.every]
    if "scale" in told:
        seen = np.arctan(seen[..., :1] / told["scale"])
    elif "operator" in told:
        seen = seen @ told["operator"].T
    noise = (data.values - seen) / told["r"]
    # The mean square of n standard normal numbers is 1 with standard deviation sqrt(2 / n).
    assert np.square(noise).mean() == pytest.approx(1, abs=5 * np.sqrt(2 / noise.size))


def test_error_and_spread_of_a_mean_that_is_off_by_a_known_amount():
    problem = replace(short("lorenz63", 3), burn_in=1)
    data = draw(problem, 2, 0)
    off = np.array([[[9.0], [1.0], [3.0]], [[9.0], [2.0], [2.0]]])
    found = Estimates(data.states[:, 25::25] + off, np.array([[7.0, 1.0, 2.0], [7.0, 3.0, 4.0]]), 0.0)
    row = peers.scores(problem, data, found, 2)
    assert row["rmse_of_seeds"] == pytest.approx([2.0, 2.0], abs=1e-12)
    assert row["rmse_standard_error"] == pytest.approx(0.0, abs=1e-12)
    assert row["spread"] == pytest.approx(2.5)
    assert peers.scores(problem, data, found, 1)["rmse_standard_error"] is None


@pytest.mark.parametrize("script", [run_particles, run_filterpy], ids=lambda s: s.__name__.rpartition(".")[2])
def test_the_lorenz_step_of_the_peers_is_ours(script):
    system = PROBLEMS["lorenz63-noisy"].dynamics
    x = system.prior((7,), rng=torch.Generator().manual_seed(0), dtype=torch.float64)
    theirs = script.rk4(x.numpy(), system.dt) if script is run_particles else [script.rk4(r, 0.025) for r in x.numpy()]
    assert np.allclose(theirs, system.step(x, 0.0, rng=None).numpy(), rtol=1e-13, atol=1e-12)


def test_our_estimates_do_not_depend_on_the_batch():
    problem = short("ring", 4)
    values = draw(problem, 3, 2).values
    for comparison in problem.comparisons:
        together, alone = (assimilate(problem, comparison, v, seed=1) for v in (values, values[:1]))
        assert np.allclose(together.mean[:1], alone.mean, atol=1e-12)
        assert np.allclose(together.spread[:1], alone.spread, atol=1e-12)


def test_interpreters_of_all_and_of_one(tmp_path):
    other = tmp_path / "python"
    other.touch()
    found = peers.interpreters([sys.executable, f"particles={other}"])
    assert found == {"dapper": sys.executable, "particles": str(other), "filterpy": sys.executable}
    with pytest.raises(UserError, match="the peers are dapper"):
        peers.interpreters([f"dabber={other}"])
    with pytest.raises(UserError, match="there is no file"):
        peers.interpreters([str(tmp_path / "nowhere")])


def test_rows_that_were_not_measured_again_stay_in_the_file(tmp_path):
    out = tmp_path / "peers.json"

    def row(system, method, rmse):
        return {"system": system, "method": method, "peer": "dapper", "rmse": rmse}

    peers.write(out, [row("lorenz63", "EnKF", 1.0), row("lorenz96", "EnKF", 2.0)])
    peers.write(out, [row("lorenz96", "EnKF", 3.0), row("lorenz96", "ETKF", 4.0)])
    assert [r["rmse"] for r in json.loads(out.read_text())["rows"]] == [1.0, 3.0, 4.0]


def test_a_peer_that_is_not_there_is_named(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(peers, "present", lambda peer, python: False)
    with pytest.raises(SystemExit) as stopped:
        peers.main(["--peers", "dapper", "--out", str(tmp_path / "peers.json")])
    assert stopped.value.code == 1
    assert "dapper is left out" in capsys.readouterr().out
    assert not (tmp_path / "peers.json").exists()


def test_kalman_filters_of_filterpy_give_our_numbers(tmp_path):
    needs("filterpy")
    out = tmp_path / "peers.json"
    options = ["--peers", "filterpy", "--systems", "ring", "lorenz63-noisy", "--cycles", "20", "--seeds", "2"]
    peers.main([*options, "--peer-python", PYTHON, "--out", str(out)])
    content = json.loads(out.read_text())
    same = [row for row in content["rows"] if "largest_difference" in row]
    assert len(same) == 3
    assert len(content["rows"]) == 10
    for row in same:
        assert row["largest_difference"] < 1e-11


def test_dapper_gets_our_truth_and_refuses_one_that_is_not_its_model():
    needs("dapper")
    problem = short("lorenz96", 4)
    data = draw(problem, 2, 1)
    answer = peers.ask(problem, problem.comparisons[:1], data, PYTHON, 2)
    # All are close to the truth at first: the prior has a standard deviation of 0.03.
    assert np.abs(answer["mean_0"] - data.states[:, 1:]).max() < 0.2
    assert (answer["spread_0"] > 0).all()
    wrong = data._replace(states=data.states * (1 + 1e-6))
    with pytest.raises(UserError, match="differ from the truth"):
        peers.ask(problem, problem.comparisons[:1], wrong, PYTHON, 2)


def test_particles_has_our_posterior():
    needs("particles")
    problem = short("lorenz63-arctan", 10)
    data = draw(problem, 2, 1)
    answer = peers.ask(problem, problem.comparisons, data, PYTHON, 2)
    ours = assimilate(problem, problem.comparisons[0], data.values[:2], seed=1)
    # Monte-Carlo error of each: spread over the root of the effective size, at least N / 2 before a resampling.
    bound = 5 * np.sqrt(2) * ours.spread.max() / np.sqrt(10_000 / 4)
    assert np.abs(answer["mean_0"] - ours.mean).max() < bound
    assert answer["spread_0"] == pytest.approx(ours.spread, rel=0.1)
