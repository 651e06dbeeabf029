"""Runs that are killed and go on: every number is that of the run that was never stopped, to the last bit.

Kills are real: this file, run as a script, forks processes that end themselves with SIGKILL at a chosen operation on
the disk or after a chosen analysis, goes on with what they left, and prints what differs.
"""

import json
import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

import dask
import numpy as np
import pytest
import torch
import xarray as xr

from assimilate import storage
from assimilate.engine import delivery, restart
from assimilate.engine.fingerprints import digest, mark
from assimilate.engine.restart import Journal
from assimilate.engine.states import flattened, rebuilt, rows_of, settled
from assimilate.errors import UserError
from assimilate.experiment import Experiment
from assimilate.filters.ensemble import EnKF
from assimilate.filters.iterative import IEnKF
from assimilate.filters.kalman import KalmanFilter
from assimilate.filters.particle import BootstrapFilter
from assimilate.runner import run, stream
from assimilate.smoothers.rts import RTS
from dynamics.linear import LinearGaussian
from dynamics.lorenz import Lorenz63
from observations.likelihood import Likelihood
from observations.noise import GaussianNoise
from observations.sampling import Identity, Select

MODEL = Lorenz63.flowdas()
LIKELIHOOD = Likelihood(Select(MODEL.space, [0]), GaussianNoise(1.0))
TRUTH, OBSERVATIONS = Experiment(MODEL, LIKELIHOOD, steps=12, experiments=3, seed=5).simulate()
# A missing time, a missing value.
OBSERVATIONS["observation"][:, 4] = np.nan
OBSERVATIONS["observation"][1, 7] = np.nan
COMMON = {"likelihood": LIKELIHOOD, "members": 8, "seed": 3}
# Later times are no whole number of the hours that the first ones are.
MINUTES = np.cumsum([0, 60, 60, 1, 2, 1, 5, 1, 1, 60, 60, 60]).astype("timedelta64[m]")
DATES = np.datetime64("2020-01-01T00", "ns") + MINUTES


def linear():
    matrix = torch.tensor([[0.9, 0.3], [-0.2, 0.8]], dtype=torch.float64)
    identity = torch.eye(2, dtype=torch.float64)
    return LinearGaussian(matrix, 0.2 * identity, torch.zeros(2, dtype=torch.float64), identity, dt=1.0)


LINE = linear()
SEEN = Likelihood(Identity(LINE.space), GaussianNoise(0.5))
DATED = Experiment(LINE, SEEN, steps=12, experiments=2, seed=2).simulate()[1].assign_coords(time=DATES)
DATED["observation"][:, 3] = np.nan
BY_MINUTE = {"likelihood": SEEN, "members": 8, "seed": 3, "time_unit": "min"}


def same(one, other):
    """Names of variables that are not the same bytes."""
    assert set(one.variables) == set(other.variables), (set(one.variables), set(other.variables))
    return [
        str(n)
        for n in one.variables
        if one[n].dtype != other[n].dtype
        or one[n].dims != other[n].dims
        or one[n].values.tobytes() != other[n].values.tobytes()
    ]


def loaded(result):
    with result:
        return result.load()


class Stop(Exception):
    """Ends a run from inside."""


def stop_after(count):
    """A `progress` that ends the run after so many analyses."""

    def progress(index):
        if index == count - 1:
            raise Stop

    return progress


def stopped(method, observations, out, after, **settings):
    with pytest.raises(Stop):
        run(method, observations, out=out, progress=stop_after(after), **settings)


# ------------------------------------------------------------------------------------------------ kills


def cases():
    """Name: (method, observations, settings, suffix)."""
    line = DATED.assign_coords(time=np.arange(12.0))
    wild = torch.randn(3, 8, 3, generator=torch.Generator().manual_seed(0))
    wild[1] *= 1e20
    return {
        "EnKF": (EnKF(MODEL), OBSERVATIONS, COMMON, ".nc"),
        "particles": (BootstrapFilter(MODEL, threshold=0.3), OBSERVATIONS, COMMON, ".nc"),
        "Kalman": (KalmanFilter(LINE), line, {"likelihood": SEEN, "members": 5, "dtype": torch.float64}, ".nc"),
        "IEnKF": (IEnKF(MODEL, lag=2), OBSERVATIONS, COMMON, ".nc"),
        "diverged": (EnKF(MODEL), OBSERVATIONS, {**COMMON, "initial": wild, "start": 0.0}, ".nc"),
        "dates": (EnKF(LINE), DATED, BY_MINUTE, ".nc"),
        "zarr": (EnKF(MODEL), OBSERVATIONS, COMMON, ".zarr"),
    }


class Killer:
    """Ends the process at its n-th operation on the disk: a file made, flushed, moved, or appended to."""

    def __init__(self, at):
        self.left = at

    def __call__(self, original, *, after=False):
        def operation(*arguments, **more):
            self.left -= 1
            if self.left == 0:
                if after:
                    original(*arguments, **more)
                os.kill(os.getpid(), signal.SIGKILL)
            return original(*arguments, **more)

        return operation

    def install(self, suffix):
        if suffix == ".zarr":
            # Zarr itself moves files; what is ours is the step that shows the whole store.
            restart.put_in_place = self(self(restart.put_in_place, after=True))
            return
        os.fsync = self(os.fsync)
        os.replace = self(self(os.replace, after=True))
        tempfile.mkstemp = self(tempfile.mkstemp, after=True)
        storage._append = self(storage._append)


def in_child(work):
    """Whether the work was killed in a process of its own."""
    child = os.fork()
    if child == 0:
        try:
            work()
        except BaseException as error:
            print(f"unexpected: {error!r}", file=sys.stderr)
            os._exit(1)
        os._exit(0)
    status = os.waitpid(child, 0)[1]
    assert os.WIFSIGNALED(status) or os.WEXITSTATUS(status) == 0, "the child failed"
    return os.WIFSIGNALED(status)


def kill_and_resume(folder):
    """Every case, killed at several moments; prints a JSON object {case: [kills, what differs]}."""
    # Forks and threads do not go together.
    torch.set_num_threads(1)
    dask.config.set(scheduler="synchronous")
    delivery.BLOCK_BYTES = 700  # a few analyses in a part
    found = {}
    available = cases()
    try:
        import zarr  # noqa: F401
    except ImportError:
        available.pop("zarr")
    for name, (method, observations, settings, suffix) in available.items():
        shown = {True: [], False: []}

        def go(out, first=False, each=True, now=(method, observations, settings, shown), **more):
            called = [] if each else None
            result = run(
                now[0], now[1], **now[2], out=out, resume=True, checkpoint_every=2, **more,
                each=None if called is None else lambda part: called.append(part.load()),
            )  # fmt: skip
            now[3][first] = called or []
            return loaded(result)

        expected = go(Path(folder) / f"{name}{suffix}", first=True)
        differ, kills = [], 0
        if name in ("EnKF", "zarr"):
            # Every child goes on from what the killed ones before it left, and comes a little further.
            out = Path(folder) / f"{name}-swept{suffix}"
            for at in range(1, 200):

                def killed(at=at, out=out, go=go, suffix=suffix):
                    Killer(at).install(suffix)
                    go(out)

                if not in_child(killed):
                    break
                kills += 1
                # A result that is there is whole.
                differ += same(loaded(Journal(out).opened()), expected) if out.exists() else []
            differ += same(go(out), expected)
        for after in (1, 5, 8) if name == "particles" else (7,) if name != "zarr" else ():
            out = Path(folder) / f"{name}-{after}{suffix}"

            def stops(after=after, out=out, go=go):
                def end(index):
                    if index == after - 1:
                        os.kill(os.getpid(), signal.SIGKILL)

                go(out, progress=end)

            kills += in_child(stops)
            differ += same(go(out), expected)
            if len(shown[True]) != len(shown[False]):
                differ.append("number of parts")
            differ += ["each" for one, other in zip(shown[True], shown[False], strict=False) if same(one, other)]
            differ += [str(p) for p in Path(folder).iterdir() if p.name.startswith(out.name + ".")]
        found[name] = [kills, differ]
    print(json.dumps(found))


@pytest.fixture(scope="module")
def after_kills(tmp_path_factory):
    folder = tmp_path_factory.mktemp("killed")
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}
    done = subprocess.run(
        [sys.executable, "-P", __file__, str(folder)], capture_output=True, text=True, env=environment, timeout=900
    )
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
    assert mark(object()) == mark(object())


if __name__ == "__main__":
    kill_and_resume(sys.argv[1])
