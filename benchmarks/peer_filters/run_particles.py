"""Runs the bootstrap filter of `particles` on given observations, in an interpreter that has it and NumPy.

    python run_particles.py task.npz answer.npz

Stochastic Lorenz-63 is written here with NumPy, one RK4 step for all particles. The CPU time is that of `SMC.run` with
weighted means and variances collected at every step; what numba compiles is compiled before.
"""

from __future__ import annotations

import importlib.metadata
import json
import sys
import time
from typing import Any

import numpy as np


def tendency(x: np.ndarray) -> np.ndarray:
    """Lorenz-63, `(N, 3)`."""
    a, b, c = x.T
    return np.stack([10.0 * (b - a), a * (28.0 - c) - b, a * b - 8.0 / 3.0 * c], 1)


def rk4(x: np.ndarray, dt: float) -> np.ndarray:
    """One step, `(N, 3)`."""
    first = tendency(x)
    second = tendency(x + dt / 2 * first)
    third = tendency(x + dt / 2 * second)
    fourth = tendency(x + dt * third)
    return x + dt / 6 * (first + 2 * second + 2 * third + fourth)


def model_of(task: dict[str, Any]) -> Any:
    """The state-space model; its first state is that of the first observation, one step after the prior."""
    from particles import distributions, state_space_models

    dt, std, r, scale = (float(task[name]) for name in ("dt", "noise_std", "r", "scale"))
    root = np.linalg.cholesky(task["prior_covariance"])

    class FirstForecast(distributions.ProbDist):
        dim = 3
        dtype = float

        def rvs(self, size: int = 1) -> np.ndarray:
            start = task["prior_mean"] + np.random.standard_normal((size, 3)) @ root.T
            return rk4(start, dt) + std * np.random.standard_normal((size, 3))

    class Model(state_space_models.StateSpaceModel):
        def PX0(self) -> Any:
            return FirstForecast()

        def PX(self, t: int, xp: np.ndarray) -> Any:
            mean = rk4(xp, dt)
            return distributions.IndepProd(*(distributions.Normal(loc=mean[:, i], scale=std) for i in range(3)))

        def PY(self, t: int, xp: np.ndarray, x: np.ndarray) -> Any:
            return distributions.Normal(loc=np.arctan(x[:, 0] / scale), scale=r)

    return Model()


def assimilate(model: Any, method: dict[str, Any], values: np.ndarray, seed: int) -> tuple[Any, float]:
    """Moments after each observation, and the CPU time of a cycle."""
    import particles
    from particles import collectors, state_space_models

    np.random.seed(seed)
    settings = {key: value for key, value in method.items() if key != "method"}
    law = getattr(state_space_models, method["method"])(ssm=model, data=list(values[:, 0]))
    filter_ = particles.SMC(fk=law, collect=[collectors.Moments()], **settings)
    began = time.process_time()
    filter_.run()
    return filter_.summaries.moments, (time.process_time() - began) / len(values)


def main(source: str, target: str) -> None:
    """Read the task, run every method on every experiment, write the answer."""
    with np.load(source) as file:
        task = dict(file)
    values = task["values"]
    model = model_of(task)
    answer: dict[str, Any] = {}
    for index, method in enumerate(json.loads(str(task["methods"]))):
        # An ESSrmin above 1 resamples at every step: all that numba compiles runs once.
        assimilate(model, {**method, "N": 100, "ESSrmin": 2.0}, values[0, :3], 0)
        done = [assimilate(model, method, one, seed) for seed, one in enumerate(values)]
        answer[f"mean_{index}"] = np.array([[m["mean"] for m in moments] for moments, _ in done])
        variance = np.array([[m["var"] for m in moments] for moments, _ in done])
        answer[f"spread_{index}"] = np.sqrt(variance.mean(-1))
        answer[f"seconds_{index}"] = min(seconds for _, seconds in done)
    versions = {name: importlib.metadata.version(name) for name in ("particles", "numba", "numpy")}
    np.savez(target, versions=json.dumps(versions), **answer)


if __name__ == "__main__":
    main(*sys.argv[1:])
