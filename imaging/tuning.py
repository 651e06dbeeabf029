"""Choosing a solver's settings on validation images, never on the image to be reconstructed.

The setting with the least mean square error over the validation tasks is taken; the whole table is returned, so that a
reader sees how flat the choice is and whether it stands at an edge of the grid.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
import xarray as xr
from torch import Tensor

from dynamics.random import Streams
from imaging.solvers.base import Solver, Task


class Tuned(NamedTuple):
    """What `tune` found.

    Attributes:
        solver: with the best settings.
        table: `mean_squared_error` (units of the image squared) over a dim for each setting; infinite where the solver
            diverged. The attribute `at_edge` names settings whose best value is the first or last of its grid.
    """

    solver: Solver
    table: xr.Dataset


def tune(
    solver_class: Callable[..., Solver],
    grid: Mapping[str, Sequence[Any]],
    tasks: Sequence[Task],
    truths: Sequence[Tensor],
    *,
    seed: int = 0,
    samples: int = 1,
) -> Tuned:
    """Try every combination of settings.

    Args:
        solver_class: class or preset, called with the settings.
        grid: values to try of each setting.
        tasks: validation tasks, one instrument each.
        truths: their images, `(E, *event)` for E measurements, in the order of the tasks.
        seed: of the random streams, the same for all settings.
        samples: samples a measurement, whose mean is compared with the truth.

    Raises:
        ValueError: no settings, no tasks, or not one truth for each task.
        FloatingPointError: every setting diverged.
    """
    if not grid or not all(len(values) for values in grid.values()):
        raise ValueError("tune() needs at least one setting with values to try")
    if not tasks or len(tasks) != len(truths):
        raise ValueError(f"tune() was given {len(tasks)} tasks and {len(truths)} truths; expected one truth a task")
    errors = np.full([len(values) for values in grid.values()], np.inf)
    for place in itertools.product(*(range(len(values)) for values in grid.values())):
        settings = {name: values[i] for (name, values), i in zip(grid.items(), place, strict=True)}
        try:
            errors[place] = _error(solver_class(**settings), tasks, truths, seed, samples)
        except FloatingPointError:
            continue
    if not np.isfinite(errors).any():
        raise FloatingPointError(f"every setting of {dict(grid)} diverged; try smaller steps or stronger priors")
    best = [int(i) for i in np.unravel_index(int(np.argmin(errors)), errors.shape)]
    chosen = {name: values[i] for (name, values), i in zip(grid.items(), best, strict=True)}
    edges = [
        name
        for (name, values), i in zip(grid.items(), best, strict=True)
        if len(values) > 1 and i in (0, len(values) - 1) and not isinstance(values[0], bool | str)
    ]
    table = xr.Dataset(
        {"mean_squared_error": (tuple(grid), errors, {"long_name": "mean square error over the validation images"})},
        coords={name: list(values) for name, values in grid.items()},
        attrs={"chosen": repr(chosen), "at_edge": ", ".join(edges)},
    )
    return Tuned(solver_class(**chosen), table)


def _error(solver: Solver, tasks: Sequence[Task], truths: Sequence[Tensor], seed: int, samples: int) -> float:
    """Mean over all measurements."""
    errors = []
    for index, (task, truth) in enumerate(zip(tasks, truths, strict=True)):
        rng = Streams(seed, experiments=len(truth), members=samples, step=index)
        mean = solver(task, rng=rng).samples.mean(1)
        errors.append((mean - truth.to(mean)).square().flatten(1).mean(1))
    return float(torch.cat(errors).double().mean())
