"""Runs that are stopped or killed, and what differs when they go on.

Run as a script, this file forks processes that end themselves with SIGKILL at a chosen operation on the disk or after a
chosen analysis, goes on with what they left, and prints what differs.
"""

import json
import os
import signal
import sys
import tempfile
from pathlib import Path

import dask
import numpy as np
import pytest
import torch

from assimilate import storage
from assimilate.engine import delivery, restart
from assimilate.engine.restart import Journal
from assimilate.experiment import Experiment
from assimilate.filters.ensemble import EnKF
from assimilate.filters.iterative import IEnKF
from assimilate.filters.kalman import KalmanFilter
from assimilate.filters.particle import BootstrapFilter
from assimilate.runner import run
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


if __name__ == "__main__":
    kill_and_resume(sys.argv[1])
