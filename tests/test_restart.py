"""Runs that are killed and go on: every number is that of the run that was never stopped, to the last bit."""

import json
import os
import subprocess
import sys
from typing import NamedTuple

import pytest
import torch
import xarray as xr

from assimilate.engine import delivery
from assimilate.engine.fingerprints import digest, mark
from assimilate.engine.states import flattened, rebuilt, rows_of, settled
from assimilate.errors import UserError
from assimilate.experiment import Experiment
from assimilate.filters.ensemble import EnKF
from assimilate.filters.particle import BootstrapFilter
from assimilate.runner import run, stream
from assimilate.smoothers.rts import RTS
from observations.likelihood import Likelihood
from observations.noise import GaussianNoise
from observations.sampling import Select
from tests import killed_runs
from tests.killed_runs import (
    BY_MINUTE,
    COMMON,
    DATED,
    LINE,
    MODEL,
    OBSERVATIONS,
    SEEN,
    TRUTH,
    cases,
    loaded,
    same,
    stop_after,
    stopped,
)


@pytest.fixture(scope="module")
def after_kills(tmp_path_factory):
    folder = tmp_path_factory.mktemp("killed")
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}
    command = [sys.executable, "-P", killed_runs.__file__, str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=900)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.parametrize("name", sorted(cases()))
def test_a_killed_run_goes_on_to_the_same_bits(after_kills, name):
    if name not in after_kills:
        pytest.skip("zarr is not installed")
    kills, differ = after_kills[name]
    assert kills >= 1
    assert differ == []


def test_kills_met_the_disk(after_kills):
    # Six checkpoints and parts, each made, flushed and moved, then the joining: a run of some fifty operations.
    assert after_kills["EnKF"][0] >= 8


# ------------------------------------------------------------------------------------------------ in one process


@pytest.mark.parametrize("keep", [None, 3])
def test_a_file_is_the_result_in_memory(tmp_path, keep, monkeypatch):
    monkeypatch.setattr(delivery, "BLOCK_BYTES", 700)
    held = run(BootstrapFilter(MODEL, threshold=0.3), OBSERVATIONS, **COMMON, keep=keep)
    stored = run(BootstrapFilter(MODEL, threshold=0.3), OBSERVATIONS, **COMMON, keep=keep, out=tmp_path / "a.nc")
    assert same(held, loaded(stored)) == []
    assert {n: held[n].attrs for n in held} == {n: stored[n].attrs for n in held}
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.nc"]


def test_zarr_is_the_result_in_memory(tmp_path, monkeypatch):
    pytest.importorskip("zarr")
    monkeypatch.setattr(delivery, "BLOCK_BYTES", 700)
    method = EnKF(LINE)
    held = run(method, DATED, **BY_MINUTE)
    stored = run(method, DATED, **BY_MINUTE, out=tmp_path / "a.zarr")
    assert same(held, loaded(stored)) == []
    assert set(stored.attrs) == {*held.attrs, "fingerprint"}


def test_without_zarr_nothing_is_computed(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "zarr", None)
    with pytest.raises(UserError, match="needs zarr: pip install"):
        run(EnKF(MODEL), OBSERVATIONS, **COMMON, out=tmp_path / "a.zarr", progress=stop_after(1))
    with pytest.raises(UserError, match=r"ends in \.nc or \.zarr"):
        run(EnKF(MODEL), OBSERVATIONS, **COMMON, out=tmp_path / "a.grib", progress=stop_after(1))


def test_what_is_there_is_not_overwritten_by_accident(tmp_path):
    out = tmp_path / "a.nc"
    stopped(EnKF(MODEL), OBSERVATIONS, out, 4, **COMMON)
    with pytest.raises(UserError, match=r"a\.nc\.unfinished' is there already: resume=True goes on.*overwrite=True"):
        run(EnKF(MODEL), OBSERVATIONS, **COMMON, out=out)
    run(EnKF(MODEL), OBSERVATIONS, **COMMON, out=out, overwrite=True).close()
    with pytest.raises(UserError, match="is there already"):
        run(EnKF(MODEL), OBSERVATIONS, **COMMON, out=out)
    with pytest.raises(UserError, match="give one of them"):
        run(EnKF(MODEL), OBSERVATIONS, **COMMON, out=out, resume=True, overwrite=True)
    with pytest.raises(UserError, match="give out="):
        run(EnKF(MODEL), OBSERVATIONS, **COMMON, resume=True)
    TRUTH.to_netcdf(tmp_path / "other.nc")
    with pytest.raises(UserError, match="no result of a run"):
        run(EnKF(MODEL), OBSERVATIONS, **COMMON, out=tmp_path / "other.nc", resume=True)


@pytest.mark.parametrize("finished", [False, True])
@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"seed": 4}, r"seed \(3 then, 4 now\)"),
        ({"members": 9}, r"members \(8 then, 9 now\)"),
        ({"dtype": torch.float64}, "dtype"),
        ({"method": EnKF(MODEL, inflation=1.1)}, "method"),
        ({"likelihood": Likelihood(Select(MODEL.space, [0]), GaussianNoise(1.5))}, "likelihood"),
        ({"initial": TRUTH.isel(time=0)}, "initial"),
        ({"keep": 2}, r"keep \(None then, 2 now\)"),
        ({"first": 1}, r"first \(0 then, 1 now\)"),
    ],
)
def test_other_settings_are_refused_by_name(tmp_path, finished, change, named):
    out = tmp_path / "a.nc"
    if finished:
        run(EnKF(MODEL), OBSERVATIONS, **COMMON, start=0.0, out=out).close()
    else:
        stopped(EnKF(MODEL), OBSERVATIONS, out, 4, **COMMON, start=0.0)
    now = {"method": EnKF(MODEL), "start": 0.0, **COMMON, **change}
    with pytest.raises(UserError, match=f"begun with other settings: .*{named}.*; give the same"):
        run(now.pop("method"), OBSERVATIONS, **now, out=out, resume=True)


def test_other_observations_are_refused_and_later_ones_are_welcome(tmp_path):
    out = tmp_path / "a.nc"
    early = OBSERVATIONS.isel(time=slice(0, 7))
    stopped(EnKF(MODEL), early, out, 6, **COMMON, checkpoint_every=2)
    changed = OBSERVATIONS.copy(deep=True)
    changed["observation"][0, 2] += 1e-6
    with pytest.raises(UserError, match="the first 4 observations are not those"):
        run(EnKF(MODEL), changed, **COMMON, out=out, resume=True)
    with pytest.raises(UserError, match="has analyses of 4 times, the observations have 3"):
        run(EnKF(MODEL), OBSERVATIONS.isel(time=slice(0, 3)), **COMMON, out=out, resume=True)
    # What comes later may change; and how times are cut into chunks is no matter.
    whole = run(EnKF(MODEL), OBSERVATIONS.chunk(time=5), **COMMON, out=out, resume=True)
    assert same(loaded(whole), run(EnKF(MODEL), OBSERVATIONS, **COMMON)) == []
    with pytest.raises(UserError, match="observations"):
        run(EnKF(MODEL), changed, **COMMON, out=out, resume=True)


def test_a_damaged_checkpoint_falls_back_to_the_one_before(tmp_path):
    out, folder = tmp_path / "a.nc", tmp_path / "a.nc.unfinished"
    stopped(BootstrapFilter(MODEL), OBSERVATIONS, out, 9, **COMMON, checkpoint_every=3)
    newest = folder / "checkpoint.safetensors"
    newest.write_bytes(newest.read_bytes()[:-5])
    again = []
    whole = run(BootstrapFilter(MODEL), OBSERVATIONS, **COMMON, out=out, resume=True, progress=again.append)
    assert again == list(range(3, 12))
    assert same(loaded(whole), run(BootstrapFilter(MODEL), OBSERVATIONS, **COMMON)) == []
    out.unlink()
    stopped(BootstrapFilter(MODEL), OBSERVATIONS, out, 9, **COMMON, checkpoint_every=3)
    for name in ("checkpoint", "earlier"):
        (folder / f"{name}.safetensors").write_bytes(b"nothing")
    with pytest.raises(UserError, match=r"no checkpoint in .* can be read.*overwrite=True"):
        run(BootstrapFilter(MODEL), OBSERVATIONS, **COMMON, out=out, resume=True)


def test_a_damaged_part_is_an_error(tmp_path, monkeypatch):
    monkeypatch.setattr(delivery, "BLOCK_BYTES", 700)
    out = tmp_path / "a.nc"
    stopped(EnKF(MODEL), OBSERVATIONS, out, 9, **COMMON)
    part = tmp_path / "a.nc.unfinished" / "part-000001.safetensors"
    content = bytearray(part.read_bytes())
    content[-3] ^= 1
    part.write_bytes(content)
    with pytest.raises(UserError, match=r"part-000001.safetensors' cannot be read.*overwrite=True"):
        run(EnKF(MODEL), OBSERVATIONS, **COMMON, out=out, resume=True)
    assert not out.exists()


def test_a_finished_run_is_opened_and_not_made_again(tmp_path):
    out = tmp_path / "a.nc"
    expected = loaded(run(EnKF(MODEL), OBSERVATIONS, **COMMON, out=out, resume=True))
    shown = []
    again = run(EnKF(MODEL), OBSERVATIONS, **COMMON, out=out, resume=True, progress=stop_after(1), each=shown.append)
    xr.testing.assert_identical(loaded(again), expected)
    assert same(xr.concat(shown, "time", data_vars="minimal"), expected) == []


def test_smoothers_are_written_whole(tmp_path):
    observations = Experiment(LINE, SEEN, steps=5, experiments=2, seed=2).simulate()[1]
    settings = {"likelihood": SEEN, "members": 4, "seed": 1}
    held = run(RTS(LINE), observations, **settings)
    stored = loaded(run(RTS(LINE), observations, **settings, out=tmp_path / "a.nc"))
    assert same(held, stored) == []
    again = loaded(run(RTS(LINE), observations, **settings, out=tmp_path / "a.nc", resume=True))
    assert again.attrs == stored.attrs
    with pytest.raises(UserError, match="seed"):
        run(RTS(LINE), observations, **{**settings, "seed": 2}, out=tmp_path / "a.nc", resume=True)


def test_stream_is_run_with_dates_and_missing_observations():
    method = EnKF(LINE)
    whole = run(method, DATED, **BY_MINUTE)
    live = stream(method, **BY_MINUTE)
    parts = [live.send(DATED.isel(time=slice(a, b))) for a, b in ((0, 1), (1, 5), (5, 12))]
    joined = xr.concat(parts, "time", data_vars="minimal")
    assert same(joined[list(whole.variables)], whole) == []


# ------------------------------------------------------------------------------------------------ states and marks


class Inner(NamedTuple):
    gain: torch.Tensor
    counts: tuple[int, ...]


class Outer(NamedTuple):
    inner: Inner | None
    named: dict[str, torch.Tensor]
    time: float
    flag: bool


def test_states_of_any_shape_survive():
    wide = torch.randn(4, 6).mT  # not contiguous
    state = Outer(Inner(wide, (1, 2)), {"a": torch.zeros(2, 0), "b": torch.tensor(True)}, 0.1 + 0.2, False)
    structure, tensors = flattened(state)
    back = rebuilt(json.loads(json.dumps(structure)), tensors, torch.device("cpu"))
    assert isinstance(back, Outer) and isinstance(back.inner, Inner)
    assert back.time == state.time and back.inner.counts == (1, 2) and back.flag is False
    assert torch.equal(back.inner.gain, wide) and back.named["a"].shape == (2, 0) and bool(back.named["b"])
    # A kernel must not tell the states apart: the order in memory is kept, gaps are not.
    assert back.inner.gain.stride() == wide.stride()
    assert settled(wide) is wide
    gaps = torch.randn(6, 8)[:, ::2]
    assert settled(gaps).stride() == (4, 1) and torch.equal(settled(gaps), gaps)
    some = rows_of(state, [3, 5], 6)
    assert torch.equal(some.inner.gain, wide[[3, 5]]) and some.named["b"].ndim == 0
    with pytest.raises(UserError, match="a state with a Generator cannot be written"):
        flattened((torch.Generator(),))

    class Local(NamedTuple):
        x: int

    with pytest.raises(UserError, match=r"Local cannot be found again.*top level"):
        flattened(Local(1))


def test_marks_see_the_numbers_of_large_tensors():
    large = torch.zeros(5000)
    small = large.clone()
    small[2500] = 1.0
    assert repr(large) == repr(small)
    assert digest(large) != digest(small) and digest(large) == digest(large.clone())
    one, other = (Likelihood(Select(MODEL.space, [k]), GaussianNoise(1.0)) for k in (0, 1))
    assert mark(one) != mark(other)
    # An address in memory is no setting.
