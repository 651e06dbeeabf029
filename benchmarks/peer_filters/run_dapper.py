"""Runs filters of DAPPER on given truth and observations, in an interpreter that has DAPPER and NumPy.

    python run_dapper.py task.npz answer.npz

The systems are DAPPER's own models; a truth that they do not reproduce is an error. Each method runs as a user runs it,
`xp.assimilate(HMM, truth, observations)`: its statistics of every forecast and analysis are in that time. A second run
of the first experiment with `rc.comps["error_only"]`, where only mean and error are left of them, gives the time of
the filter. Without live plots and progress bars.
"""

from __future__ import annotations

import importlib.metadata
import json
import pathlib
import sys
import time
from typing import Any

import numpy as np

MODELS = {"lorenz63": "dapper.mods.Lorenz63", "lorenz96": "dapper.mods.Lorenz96"}
"""Our name of a system -> DAPPER's module, whose `step` it is."""


def system(task: dict[str, Any], cycles: int) -> Any:
    """The HiddenMarkovModel of a task: noise-free dynamics, everything observed."""
    import dapper.mods as modelling
    from dapper.tools.localization import nd_Id_localization
    from dapper.tools.matrices import CovMat

    name, size = str(task["system"]), len(task["prior_mean"])
    step = importlib.import_module(MODELS[name]).step
    observed = modelling.partial_Id_Obs(size, np.arange(size))
    observed["noise"] = float(task["r"]) ** 2
    if name == "lorenz96":
        # As in `dapper.mods.Lorenz96.sakov2008`: one local analysis for two neighbouring variables.
        observed["localizer"] = nd_Id_localization((size,), (2,))
    return modelling.HiddenMarkovModel(
        {"M": size, "model": step, "noise": 0},
        observed,
        modelling.Chronology(float(task["dt"]), dko=int(task["every"]), Ko=cycles - 1),
        modelling.GaussRV(mu=task["prior_mean"], C=CovMat(task["prior_covariance"])),
    )


def check_model(model: Any, truth: np.ndarray) -> None:
    """Raise a ValueError unless DAPPER's step makes each state of the truth `(steps + 1, n)` from the one before."""
    dt = model.tseq.dt
    found = model.Dyn(truth[:-1], 0.0, dt)
    gap = float(np.abs(found - truth[1:]).max())
    if gap > 1e-9 * float(np.abs(truth).max()):
        raise ValueError(f"DAPPER's model makes steps that differ from the truth's by {gap:.2g}; expected rounding")


def assimilate(model: Any, method: dict[str, Any], truth: np.ndarray, values: np.ndarray, seed: int) -> Any:
    """DAPPER's experiment after its run, and the CPU time of a cycle."""
    import dapper.da_methods as methods
    from dapper.tools.seeding import set_seed

    settings = {key: value for key, value in method.items() if key != "method"}
    xp = getattr(methods, method["method"])(**settings)
    set_seed(1 + seed)  # DAPPER refuses 0.
    began = time.process_time()
    xp.assimilate(model, truth, values, liveplots=False)
    return xp, (time.process_time() - began) / len(values)


def main(source: str, target: str) -> None:
    """Read the task, run every method on every experiment, write the answer."""
    # Read from the working folder: without it DAPPER makes a data folder in the home and looks for a screen.
    pathlib.Path("dpr_config.yaml").write_text("data_root: $cwd\nliveplotting: no\n")
    from dapper.dpr_config import rc
    from dapper.tools import progressbar

    progressbar.disable_progbar = True
    with np.load(source) as file:
        task = dict(file)
    truth, values = task["truth"], task["values"]
    model = system(task, values.shape[1])
    check_model(model, truth[0])
    answer: dict[str, Any] = {}
    for index, method in enumerate(json.loads(str(task["methods"]))):
        rc.comps["error_only"] = True
        _, bare = assimilate(model, method, truth[0], values[0], 0)
        rc.comps["error_only"] = False
        done = [assimilate(model, method, *pair, seed) for seed, pair in enumerate(zip(truth, values, strict=True))]
        answer[f"mean_{index}"] = np.stack([xp.stats.mu.a for xp, _ in done])
        variance = np.stack([np.square(xp.stats.spread.a) for xp, _ in done])
        answer[f"spread_{index}"] = np.sqrt(variance.mean(-1))
        answer[f"seconds_{index}"] = bare
        answer[f"statistics_{index}"] = min(seconds for _, seconds in done)
    versions = {name: importlib.metadata.version(name) for name in ("dapper", "numpy")}
    np.savez(target, versions=json.dumps(versions), **answer)


if __name__ == "__main__":
    main(*sys.argv[1:])
