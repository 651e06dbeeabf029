"""Runs filters of filterpy on given observations, in an interpreter that has filterpy and NumPy.

    python run_filterpy.py task.npz answer.npz

One `predict` and `update` a cycle, as filterpy's documentation shows; the dynamics is a function of one state, which
filterpy calls for every member or sigma point. The CPU time is that of these two calls. Means and covariances are the
filter's own `x` and `P`.
"""

from __future__ import annotations

import importlib.metadata
import json
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np


def tendency(x: np.ndarray) -> np.ndarray:
    """Lorenz-63, `(3,)`."""
    a, b, c = x
    return np.array([10.0 * (b - a), a * (28.0 - c) - b, a * b - 8.0 / 3.0 * c])


def rk4(x: np.ndarray, dt: float) -> np.ndarray:
    """One step, `(3,)`."""
    first = tendency(x)
    second = tendency(x + dt / 2 * first)
    third = tendency(x + dt / 2 * second)
    fourth = tendency(x + dt * third)
    return x + dt / 6 * (first + 2 * second + 2 * third + fourth)


def step_of(task: dict[str, Any]) -> tuple[Callable[[np.ndarray, float], np.ndarray], np.ndarray]:
    """The step without noise, and the covariance of the noise."""
    if "matrix" in task:
        matrix = task["matrix"]
        return (lambda x, dt: matrix @ x), task["noise_covariance"]
    return rk4, float(task["noise_std"]) ** 2 * np.eye(3)


def filter_of(task: dict[str, Any], method: dict[str, Any]) -> Any:
    """A filter at the prior."""
    from filterpy import kalman

    step, noise = step_of(task)
    mean, covariance, operator = task["prior_mean"], task["prior_covariance"], task["operator"]
    observed, size = operator.shape
    dt = float(task["dt"])

    def look(x: np.ndarray) -> np.ndarray:
        return operator @ x

    found: Any
    if method["method"] == "KalmanFilter":
        found = kalman.KalmanFilter(dim_x=size, dim_z=observed)
        found.F, found.H = task["matrix"], operator
        found.x, found.P = mean.reshape(-1, 1).copy(), covariance.copy()
    elif method["method"] == "UnscentedKalmanFilter":
        points = getattr(kalman, method["points"])(size, kappa=method["kappa"])
        found = kalman.UnscentedKalmanFilter(size, observed, dt, look, step, points)
        found.x, found.P = mean.copy(), covariance.copy()
    else:
        found = kalman.EnsembleKalmanFilter(mean.copy(), covariance.copy(), observed, dt, method["N"], look, step)
    found.Q, found.R = noise, float(task["r"]) ** 2 * np.eye(observed)
    return found


def assimilate(
    task: dict[str, Any], method: dict[str, Any], values: np.ndarray, seed: int
) -> tuple[np.ndarray, np.ndarray, float]:
    """Means `(cycles, n)`, spreads `(cycles,)` and the CPU time of a cycle."""
    np.random.seed(seed)
    found = filter_of(task, method)
    means, spreads, seconds = [], [], 0.0
    for y in values:
        began = time.process_time()
        found.predict()
        found.update(y)
        seconds += time.process_time() - began
        means.append(np.ravel(found.x).copy())
        spreads.append(np.sqrt(np.diag(found.P).mean()))
    return np.array(means), np.array(spreads), seconds / len(values)


def main(source: str, target: str) -> None:
    """Read the task, run every method on every experiment, write the answer."""
    with np.load(source) as file:
        task = dict(file)
    answer: dict[str, Any] = {}
    for index, method in enumerate(json.loads(str(task["methods"]))):
        done = [assimilate(task, method, one, seed) for seed, one in enumerate(task["values"])]
        answer[f"mean_{index}"] = np.stack([mean for mean, _, _ in done])
        answer[f"spread_{index}"] = np.stack([spread for _, spread, _ in done])
        answer[f"seconds_{index}"] = min(seconds for _, _, seconds in done)
    versions = {name: importlib.metadata.version(name) for name in ("filterpy", "numpy")}
    np.savez(target, versions=json.dumps(versions), **answer)


if __name__ == "__main__":
    main(*sys.argv[1:])
