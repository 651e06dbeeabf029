"""CPU time of a cycle of the EnKF and the ETKF with its diagnostics: Lorenz-96, all 40 values observed.

    python -m benchmarks.speed_ensemble                     eager, one thread
    python -m benchmarks.speed_ensemble --compile           torch.compile as well: a minute or two for each row
    python -m benchmarks.speed_ensemble --threads 2

A cycle is the forecast, the analysis and its diagnostics: RMSE, spread, CRPS, rank counts and innovation chi-square.
Process CPU time per cycle and per run, the least of many cycles, so that other work on the machine disturbs little; a
batch of 16 seeds is one computation. Random numbers come from a generator, or from `Streams`, whose numbers belong to
the row (what `assimilate.run` uses). The rows "run" are `assimilate.run` on Datasets, without scores: the mean over a
window.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from assimilate.filters.base import FilterState
from assimilate.filters.departures import gaussian_departures
from assimilate.filters.ensemble import ETKF, EnKF, EnsembleKalmanFilter
from assimilate.filters.transforms import innovation_statistics
from assimilate.runner import run
from dynamics.base import simulate
from dynamics.lorenz import Lorenz96
from dynamics.random import Rng, Streams
from observations.likelihood import Likelihood, Observation
from observations.noise import GaussianNoise
from observations.sampling import Identity
from observations.synthetic import observe

SYSTEM = Lorenz96()
LIKELIHOOD = Likelihood(Identity(SYSTEM.space), GaussianNoise(std=1.0))
METHODS = ((EnKF(SYSTEM, inflation=1.06), 40), (ETKF(SYSTEM, inflation=1.02, rotate=True), 24))
"""The methods and their members: table B of DAPPER, system S1."""
TARGETS = {(16, "eager"): 0.25, (16, "compiled"): 0.15, (1, "eager"): 1.0, (1, "compiled"): 1.0}
"""Milliseconds per cycle and run that are asked for, by seeds; DAPPER takes 3.4 (EnKF) and 2.8 (ETKF)."""


class Scores(NamedTuple):
    """The diagnostics of a cycle, one row an experiment.

    Attributes:
        rmse: of the mean of the analysis, `(E,)`.
        spread: root of the mean variance of the members, `(E,)`.
        crps: mean over the values, `(E,)`.
        ranks: how many values of the truth have each rank among the members, `(E, N + 1)`.
        chi_square: of the innovations, per observed value, `(E,)`.
    """

    rmse: Tensor
    spread: Tensor
    crps: Tensor
    ranks: Tensor
    chi_square: Tensor


def diagnose(members: Tensor, background: Tensor, truth: Tensor, observation: Observation) -> Scores:
    """The diagnostics of an analysis.

    Args:
        members: `(E, N, *event)`.
        background: the same before the analysis.
        truth: `(E, 1, *event)`.
        observation: of this time.
    """
    x, target = members.flatten(2), truth.flatten(2)
    n = x.shape[1]
    mean = x.mean(1)
    # Pairs cost less than a sort at these sizes, in place: new memory costs more than the arithmetic.
    pairs = (x.unsqueeze(1) - x.unsqueeze(2)).abs_().sum((1, 2)) / (2 * n * n)
    ranks = (x < target).sum(1)
    counts = torch.zeros(x.shape[0], n + 1, dtype=torch.int64).scatter_add_(1, ranks, torch.ones_like(ranks))
    found = gaussian_departures(observation, background, method="diagnosis")
    return Scores(
        (mean - target[:, 0]).square().mean(-1).sqrt(),
        ((x - mean.unsqueeze(1)).square_().sum(1) / (n - 1)).mean(-1).sqrt(),
        ((x - target).abs().mean(1) - pairs).mean(-1),
        counts,
        innovation_statistics(found.spread, found.departure)[1] / found.departure.shape[-1],
    )


Cycle = Callable[[FilterState, Tensor, Tensor, float, Rng], tuple[FilterState, Scores]]


def cycle_of(method: EnsembleKalmanFilter) -> Cycle:
    """Forecast, analysis and diagnostics as one function of state, observed values, truth, time and random numbers."""

    def cycle(state: FilterState, y: Tensor, truth: Tensor, now: float, rng: Rng) -> tuple[FilterState, Scores]:
        observation = Observation(LIKELIHOOD, y)
        state, info = method.step(state, observation, now, rng=rng)
        assert info.background is not None
        return state, diagnose(state.members, info.background, truth, observation)

    return cycle


class Cost(NamedTuple):
    """Least CPU time of a cycle for one run in ms, and the mean RMSE of the analyses: a check that it worked."""

    milliseconds: float
    rmse: float


def cycle_cost(cycle: Cycle, members: int, seeds: int, kind: str, cycles: int) -> Cost:
    """The cost of a cycle on tensors.

    Args:
        cycle: from `cycle_of`, compiled or not.
        members: N.
        seeds: E, experiments in one batch.
        kind: "generator" or "streams".
        cycles: how many; the first third is warm-up.
    """
    generator = torch.Generator().manual_seed(1)
    truth = SYSTEM.prior((seeds, 1), rng=generator)
    for _ in range(200):
        truth = SYSTEM.step(truth, 0.0, rng=None)
    noise = torch.randn((seeds, members, *SYSTEM.space.event_shape), generator=generator)
    state = METHODS[0][0].init(truth + noise)
    streams = Streams(2, seeds, members)
    best, errors = float("inf"), []
    for k in range(1, cycles + 1):
        truth = SYSTEM.step(truth, 0.0, rng=None)
        y = LIKELIHOOD.sample(truth, rng=generator)
        rng: Rng = streams.at(k) if kind == "streams" else generator
        before = time.process_time()
        state, scores = cycle(state, y, truth, k * SYSTEM.dt, rng)
        spent = time.process_time() - before
        if k > cycles // 3:
            best = min(best, spent)
            errors.append(float(scores.rmse.mean()))
    return Cost(1e3 * best / seeds, sum(errors) / len(errors))


def run_cost(method: Any, members: int, seeds: int, cycles: int) -> Cost:
    """The cost of a cycle of `assimilate.run`, Datasets in and out, members kept."""
    truth = simulate(SYSTEM, steps=cycles, trajectories=seeds, seed=3, spinup=200)
    observations = observe(truth.isel(time=slice(1, None)), SYSTEM.space, LIKELIHOOD, seed=4)
    settings: dict[str, Any] = {"likelihood": LIKELIHOOD, "members": members, "seed": 5}
    settings |= {"initial": truth.isel(time=0), "initial_std": 1.0}
    before = time.process_time()
    found = run(method, observations, **settings)
    spent = time.process_time() - before
    error = found["x_mean"] - truth["x"].isel(time=slice(1, None))
    return Cost(1e3 * spent / cycles / seeds, float((error.isel(time=slice(cycles // 3, None)) ** 2).mean() ** 0.5))


def main() -> None:
    """Time the cycles and print them beside what is asked for."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else None)
    parser.add_argument("--cycles", type=int, default=150)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seeds", type=int, nargs="+", default=[16, 1])
    parser.add_argument("--compile", action="store_true", help="time torch.compile too")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    print(f"Lorenz-96, {options.threads} thread(s), CPU ms per cycle and run, with diagnostics")
    print(f"{'method':6s} {'seeds':>5s}  {'numbers':10s} {'how':9s} {'ms':>7s} {'asked':>6s}  RMSE")
    for method, members in METHODS:
        for seeds in options.seeds:
            ways: list[tuple[str, Any]] = [("eager", cycle_of(method))]
            if options.compile:
                ways.append(("compiled", torch.compile(cycle_of(method))))
            for way, cycle in ways:
                for kind in ("generator", "streams"):
                    with torch.no_grad():
                        cost = cycle_cost(cycle, members, seeds, kind, options.cycles)
                    _show(method.name, seeds, kind, way, cost, TARGETS.get((seeds, way)))
            _show(method.name, seeds, "streams", "run", run_cost(method, members, seeds, options.cycles), None)


def _show(name: str, seeds: int, kind: str, way: str, cost: Cost, target: float | None) -> None:
    asked = "" if target is None else f"{target:.2f}"
    print(
        f"{name:6s} {seeds:5d}  {kind:10s} {way:9s} {cost.milliseconds:7.3f} {asked:>6s}  {cost.rmse:.3f}", flush=True
    )


if __name__ == "__main__":
    main()
