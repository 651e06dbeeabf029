"""Accuracy against cost of a guided step: which rule, how many levels, how many draws.

    python -m benchmarks.accuracy_cost navier-stokes-small [--states 12] [--members 16] [--write]

From exactly known states x_{k-1} of new trajectories every rule draws members of p(x_k | x_{k-1}, y_k), for each task
of the card. Scored against the x_k that was observed: RMSE of the mean, fair CRPS, spread/skill. The reference is the
simulator itself: an ensemble Kalman update of many of its own draws, which is exact for a Gaussian transition. Cost is
processor seconds of a member's step, and, as `passes`, that in units of one forward plus one backward pass of the
network at every level (1 = the least that a rule which differentiates can cost).
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from assimilate.cards.card import Card
from assimilate.cards.files import cards_of_tasks, load
from assimilate.cards.problem import prepare
from assimilate.filters.ensemble import EnKF
from assimilate.learning.pretrained import load_pretrained
from assimilate.posterior.guidance import MMPS, JacobianFree, MonteCarlo, PiGDM
from assimilate.posterior.samplers import Renoise
from assimilate.posterior.transition import draw
from benchmarks.transition_quality import fair_crps, members_of, states_of
from dynamics.random import Streams
from observations.likelihood import Likelihood, Observation

RESULTS = Path(__file__).parent / "results"
RULES: dict[str, tuple[Any, Any]] = {
    "no observation": (None, None),
    "Jacobian-free": (JacobianFree(covariance="clean", iterations=20), Renoise()),
    "PiGDM": (PiGDM(), None),
    "MMPS, 1 iteration": (MMPS(iterations=1), None),
    "MMPS, 3 iterations": (MMPS(iterations=3), None),
    "Monte Carlo, 4 draws": (MonteCarlo(draws=4), None),
    "Monte Carlo, 16 draws": (MonteCarlo(draws=16), None),
}
"""Name -> guidance and sampler (None: the transition's own)."""
LEVELS = (3, 6, 12)


def rows_of(
    name: str, card: Card, transition: Any, levels: tuple[int, ...], rules: dict[str, Any], *, states: int, members: int
) -> Iterator[dict]:
    """One row for each rule and number of levels, the reference first."""
    problem = prepare(card)
    likelihood, true = problem.likelihood, problem.dynamics
    assert true is not None and isinstance(likelihood, Likelihood)
    x = states_of(true, states, spinup=card.truth.spinup, seed=2**21)
    target = members_of(true, x, 1, 2**21 + 1)
    y = likelihood.sample(target, rng=Streams(2**21 + 2, states, 1).at(0))
    yield {"task": name, "rule": "simulator, 256 members", "levels": 0} | reference(true, x, target, likelihood, y)
    least = forward_and_backward(transition, x, members)
    for rule, (guidance, sampler) in rules.items():
        for count in levels:
            began, clock = time.perf_counter(), time.process_time()
            sample = draw(
                transition, x.unsqueeze(1).expand(-1, members, *x.shape[1:]).contiguous(), 0.0,
                event_dims=x.ndim - 1, rng=Streams(7, states, members).at(0), likelihood=likelihood, y=y,
                guidance=guidance, sampler=sampler, times=replace(transition, steps=count).times,
            )  # fmt: skip
            seconds = (time.process_time() - clock) / (states * members)
            found = scored(sample.x.detach(), target[:, 0])
            yield {"task": name, "rule": rule, "levels": count, **found, "seconds": round(seconds, 5),
                   "wall": round(time.perf_counter() - began, 2), "passes": round(seconds / count / least, 2)}


def reference(true: Any, x: Tensor, target: Tensor, likelihood: Likelihood, y: Tensor, members: int = 256) -> dict:
    """The simulator's own draws after an ensemble Kalman update."""
    ahead = members_of(true, x, members, 2**21 + 3)
    filtered = EnKF(true)
    rng = Streams(2**21 + 4, len(x), members).at(1)
    state, _ = filtered.step(filtered.init(ahead), Observation(likelihood, y), 0.0, rng=rng)
    return scored(state.members, target[:, 0])


def scored(members: Tensor, target: Tensor) -> dict[str, float]:
    """RMSE, fair CRPS and spread over error."""
    n = members.shape[1]
    error = float((members.mean(1) - target).square().mean().sqrt())
    spread = float((members.var(1).mean() * (n + 1) / n).sqrt())
    found = {"rmse": error, "crps": fair_crps(members, target), "spread_skill": spread / error}
    return {name: round(value, 4) for name, value in found.items()}


def forward_and_backward(transition: Any, x: Tensor, members: int) -> float:
    """Processor seconds of one forward and one backward pass of the denoiser for one member."""
    many = x.unsqueeze(1).expand(-1, members, *x.shape[1:]).contiguous()
    context, t = transition.context(many, 0.0), torch.tensor(0.5)
    best = float("inf")
    for _ in range(2):
        clock = time.process_time()
        leaf = many.detach().requires_grad_()
        transition.predictor(leaf, t, context).mean.sum().backward()
        best = min(best, time.process_time() - clock)
    return best / (len(x) * members)


def draw_figure(rows: list[dict], file: Path) -> None:
    """RMSE against seconds, one panel a task."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    tasks = list(dict.fromkeys(row["task"] for row in rows))
    figure, axes = pyplot.subplots(1, len(tasks), figsize=(4 * len(tasks), 3.6), squeeze=False)
    for axis, task in zip(axes[0], tasks, strict=True):
        mine = [row for row in rows if row["task"] == task]
        for rule in dict.fromkeys(row["rule"] for row in mine):
            points = [row for row in mine if row["rule"] == rule]
            if "seconds" not in points[0]:
                axis.axhline(points[0]["rmse"], color="black", linewidth=1, label=rule)
            elif rule != "no observation":
                axis.plot([p["seconds"] for p in points], [p["rmse"] for p in points], "o-", markersize=3, label=rule)
        axis.set(xscale="log", yscale="log", title=task, xlabel="processor seconds a member", ylabel="RMSE of the mean")
    axes[0][-1].legend(fontsize=6)
    figure.tight_layout()
    figure.savefig(file, dpi=120)
    pyplot.close(figure)


def main() -> None:
    """Print the rows, and write them with their figure if asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("card")
    parser.add_argument("--transition", help="pretrained name or checkpoint; default: the card's name")
    parser.add_argument("--states", type=int, default=12)
    parser.add_argument("--members", type=int, default=16)
    parser.add_argument("--task", action="append", help="only these tasks")
    parser.add_argument("--rule", action="append", help="only these rules")
    parser.add_argument("--levels", type=int, action="append", help="only these numbers of levels")
    parser.add_argument("--write", action="store_true", help="write benchmarks/results/CARD-cost.json and .png")
    options = parser.parse_args()
    card, stem = load(options.card), Path(options.card).stem
    transition = load_pretrained(options.transition or stem)
    cards = {k: c for k, c in (cards_of_tasks(card) or {"all": card}).items() if k in (options.task or [k])}
    rules = {k: v for k, v in RULES.items() if k in (options.rule or [k])}
    rows: list[dict] = []
    for name, one in cards.items():
        levels = tuple(options.levels or LEVELS)
        found = rows_of(name, one, transition, levels, rules, states=options.states, members=options.members)
        for row in found:
            print(json.dumps(row), flush=True)
            rows.append(row)
    if options.write:
        # JSON has no word for a number that is none: null, where a rule diverged.
        kept = [{k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in r.items()} for r in rows]
        (RESULTS / f"{stem}-cost.json").write_text(json.dumps(kept, indent=1) + "\n")
        draw_figure(rows, RESULTS / f"{stem}-cost.png")


if __name__ == "__main__":
    main()
