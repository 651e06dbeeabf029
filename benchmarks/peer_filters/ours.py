"""Our side of a comparison: estimates, spreads and CPU time of a filter on given observations.

Two times are taken, as a peer may do more in a cycle than its filter:

    filter       `Filter.step` and the mean and spread of its result, on tensors
    statistics   `assimilate.run` on Datasets with the scores of every analysis (error, spread, CRPS, ranks)

All is eager PyTorch. CPU time is that of the process, so that other work on the machine disturbs little.
"""

from __future__ import annotations

import time
from typing import NamedTuple

import numpy as np
import torch
import xarray as xr
from torch import Tensor

from assimilate.engine.cycle import INITIAL_STEP
from assimilate.engine.results import moments
from assimilate.runner import run
from assimilate.verification.statistics import statistics
from benchmarks.peer_filters.problems import Comparison, Data, Problem
from dynamics.random import Streams
from observations.likelihood import Observation


class Estimates(NamedTuple):
    """What a filter made of the observations.

    Attributes:
        mean: after each analysis, `(E, cycles, n)`.
        spread: root of the mean variance, `(E, cycles)`.
        seconds: CPU time of a cycle of all experiments together.
    """

    mean: np.ndarray
    spread: np.ndarray
    seconds: float


def assimilate(problem: Problem, comparison: Comparison, values: np.ndarray, *, seed: int) -> Estimates:
    """Run a filter on tensors.

    Args:
        problem: the system.
        comparison: gives the filter and its members.
        values: observations `(E, cycles, m)`.
        seed: of the members.
    """
    experiments, cycles, _ = values.shape
    method, likelihood = comparison.ours, problem.likelihood
    streams = Streams(seed, experiments, comparison.members)
    rows = (experiments, comparison.members)
    state = method.init(problem.dynamics.prior(rows, rng=streams.at(INITIAL_STEP), dtype=problem.dtype))
    observed = torch.from_numpy(values).to(problem.dtype)
    observed = observed.reshape(experiments, cycles, 1, *likelihood.operator.obs_shape)
    means, spreads, seconds = [], [], 0.0
    with torch.no_grad():
        for k in range(cycles):
            when = (k + 1) * problem.every * problem.dynamics.dt
            began = time.process_time()
            state, _ = method.step(state, Observation(likelihood, observed[:, k]), when, rng=streams.at(k))
            mean, variance = _law(*method.ensemble(state)) if not hasattr(state, "covariance") else _gaussian(state)
            seconds += time.process_time() - began
            means.append(mean.double())
            spreads.append(variance.double().mean(-1).sqrt())
    return Estimates(torch.stack(means, 1).numpy(), torch.stack(spreads, 1).numpy(), seconds / cycles)


def seconds_with_statistics(problem: Problem, comparison: Comparison, data: Data, *, seed: int) -> float:
    """CPU time of a cycle of `assimilate.run` with all scores, of all experiments together."""
    dynamics, truth = problem.dynamics, data.truth

    def score(part: xr.Dataset) -> None:
        statistics(part, truth, space=dynamics.space)

    began = time.process_time()
    run(
        comparison.ours,
        data.observations,
        likelihood=problem.likelihood,
        members=comparison.members,
        seed=seed,
        start=truth["time"][0],
        dtype=problem.dtype,
        keep=1,
        each=score,
    )
    return (time.process_time() - began) / data.observations.sizes["time"]


def _law(members: Tensor, log_weights: Tensor) -> tuple[Tensor, Tensor]:
    mean, std = moments(members, log_weights)
    return mean.flatten(1), mean.new_zeros(mean.flatten(1).shape) if std is None else std.flatten(1).square()


def _gaussian(state: object) -> tuple[Tensor, Tensor]:
    """Mean and variances `(E, n)` of a filter that carries a Gaussian law; its members are but draws from it."""
    mean, covariance = state.mean, state.covariance  # type: ignore[attr-defined]
    return mean, torch.diagonal(covariance, dim1=-2, dim2=-1)
