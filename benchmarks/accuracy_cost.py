"""Accuracy against cost: which rule of guidance, how many levels, draws and members.

    python -m benchmarks.accuracy_cost navier-stokes-small [--states 12] [--members 16] [--write]

Three studies for each task of a card, on trajectories that neither the training nor the card has:

    levels    one guided step from an exactly known state: every rule at several numbers of levels
    draws     the same for the Monte Carlo rule with J draws, with the usual number of levels and with 400
    members   whole runs of the card's first method (FlowDAS, the recommended rule) with N members

Scores are the RMSE of the mean, the CRPS (fair for a step) and spread over error. A step is scored against the x_k that
was observed, a run against the truth at all its times. The reference of a step is the simulator itself: an ensemble
Kalman update of 256 of its own draws, which is exact for a Gaussian transition. Cost is processor seconds: of a
member's step, or of a whole run for one experiment. `passes` is the cost of a step in units of one forward plus one
backward pass of the network at every level: 1 is the least that a rule which differentiates can cost.

The Monte Carlo rule follows the gradient of a sharp likelihood explicitly: where the clean state is uncertain by V and
the observation by s^2, a level that reduces the noise by a factor q is stable for about (1 - q^2) V / s^2 < 2 only. For
these flows that is several hundred levels, which is why it is also measured with 400, on fewer states.
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
from assimilate.cards.execution import Silent, one_run
from assimilate.cards.files import cards_of_tasks, load
from assimilate.cards.judging import Judge
from assimilate.cards.methods import method_of
from assimilate.cards.problem import prepare
from assimilate.filters.ensemble import EnKF
from assimilate.learning.pretrained import load_pretrained
from assimilate.posterior.guidance import MMPS, JacobianFree, MonteCarlo, PiGDM
from assimilate.posterior.samplers import Renoise
from assimilate.posterior.transition import draw
from benchmarks.accuracy_cost_figure import figure_of
from benchmarks.transition_quality import fair_crps, members_of, states_of
from dynamics.random import Streams
from observations.likelihood import Likelihood, Observation

RESULTS = Path(__file__).parent / "results"
RECOMMENDED = "Jacobian-free"
"""The rule of the cards' FlowDAS."""
RULES: dict[str, tuple[Any, Any]] = {
    "no observation": (None, None),
    RECOMMENDED: (JacobianFree(covariance="clean", iterations=20), Renoise()),
    "PiGDM": (PiGDM(), None),
    "MMPS, 1 iteration": (MMPS(iterations=1), None),
    "MMPS, 3 iterations": (MMPS(iterations=3), None),
}
"""Name -> guidance and sampler (None: the transition's own)."""
MONTE_CARLO = "Monte Carlo"
MANY_LEVELS, FEW_STATES, FEW_MEMBERS = 400, 2, 4
"""Levels at which the Monte Carlo rule does not diverge, and on what it is then measured: it is slow."""
LEVELS, DRAWS, MEMBERS = (3, 6, 12), (1, 4, 16, 64), (4, 8, 16, 32, 64)
SEED = 2**21
"""Of the states and observations of the steps; the whole runs have it too. No card and no training has it."""


def steps_of(
    name: str,
    card: Card,
    transition: Any,
    *,
    rules: dict[str, Any],
    levels: tuple[int, ...],
    draws: tuple[int, ...],
    states: int,
    members: int,
) -> Iterator[dict]:
    """Rows of the studies of a step, the reference first."""
    problem = prepare(card)
    likelihood, true = problem.likelihood, problem.dynamics
    assert true is not None and isinstance(likelihood, Likelihood)
    x = states_of(true, states, spinup=card.truth.spinup, seed=SEED)
    target = members_of(true, x, 1, SEED + 1)
    y = likelihood.sample(target, rng=Streams(SEED + 2, states, 1).at(0))
    yield {"task": name, "study": "reference", "rule": "simulator, 256 members"} | reference(
        true, x, target, likelihood, y
    )
    least = forward_and_backward(transition, x, members)
    own = transition.steps
    entries: list[tuple[dict[str, Any], Any, Any]] = [
        ({"study": "levels", "rule": rule, "levels": count}, guidance, sampler)
        for rule, (guidance, sampler) in rules.items()
        for count in dict.fromkeys(sorted((*levels, own)))
    ]
    entries += [
        ({"study": "draws", "rule": MONTE_CARLO, "levels": count, "draws": many}, MonteCarlo(draws=many), None)
        for count in (own, MANY_LEVELS)
        for many in draws
    ]

    def guided(rows: int, each: int, levels: int, guidance: Any, sampler: Any) -> Tensor:
        start = x[:rows].unsqueeze(1).expand(-1, each, *x.shape[1:]).contiguous()
        return draw(
            transition, start, 0.0, event_dims=x.ndim - 1, rng=Streams(7, rows, each).at(0), likelihood=likelihood,
            y=y[:rows], guidance=guidance, sampler=sampler, times=replace(transition, steps=levels).times,
        ).x.detach()  # fmt: skip

    for entry, guidance, sampler in entries:
        levels_now, long = entry["levels"], entry["levels"] >= MANY_LEVELS
        rows, each = (min(states, FEW_STATES), min(members, FEW_MEMBERS)) if long else (states, members)
        # What an observation operator prepares once and keeps is no cost of a step.
        guided(1, 1, 2, guidance, sampler)
        clock = time.process_time()
        sample = guided(rows, each, levels_now, guidance, sampler)
        seconds = (time.process_time() - clock) / (rows * each)
        marked = {"recommended": True} if entry["rule"] == RECOMMENDED and levels_now == own else {}
        found = scored(sample, target[:rows, 0])
        passes = round(seconds / levels_now / least, 2)
        yield {
            "task": name,
            **entry,
            **marked,
            "members": each,
            **found,
            "seconds": round(seconds, 5),
            "passes": passes,
        }


def runs_of(
    name: str, card: Card, *, transition: str | None, counts: tuple[int, ...], experiments: int, beside: Path | None
) -> Iterator[dict]:
    """Rows of whole runs of the card's first method with other numbers of members."""
    truth = card.truth.model_copy(update={"experiments": experiments})
    problem = prepare(card.model_copy(update={"truth": truth, "seed": SEED}), folder=beside)
    usual = card.method[0]
    for count in sorted({*counts, usual.members} if counts else ()):
        update = {"members": count, "keep": 1} | ({"transition": transition} if transition else {})
        entry = usual.model_copy(update=update)
        method, judge = method_of(problem, entry, name, folder=beside), Judge(problem)
        clock = time.process_time()
        one_run(problem, entry, name, method, 0, torch.float32, torch.device("cpu"), judge, Silent())
        seconds = (time.process_time() - clock) / experiments
        scores = judge.scores()
        found = {key: round(scores[key], 4) for key in ("rmse", "crps", "spread_skill")}
        marked = {"recommended": True} if count == usual.members else {}
        yield {"task": name, "study": "members", "rule": usual.label or usual.type, "members": count, **marked, **found,
               "seconds": round(seconds, 2)}  # fmt: skip


def reference(true: Any, x: Tensor, target: Tensor, likelihood: Likelihood, y: Tensor, members: int = 256) -> dict:
    """The simulator's own draws after an ensemble Kalman update."""
    ahead = members_of(true, x, members, SEED + 3)
    filtered = EnKF(true)
    rng = Streams(SEED + 4, len(x), members).at(1)
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
    for _ in range(3):
        clock = time.process_time()
        leaf = many.detach().requires_grad_()
        transition.predictor(leaf, t, context).mean.sum().backward()
        best = min(best, time.process_time() - clock)
    return best / (len(x) * members)


def main() -> None:
    """Print the rows, and write them with their figure if asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("card")
    parser.add_argument("--transition", help="pretrained name or checkpoint; default: the card's name")
    parser.add_argument("--states", type=int, default=12, help="known states of the studies of a step")
    parser.add_argument("--members", type=int, default=16, help="members drawn from each")
    parser.add_argument("--experiments", type=int, default=2, help="trajectories of the whole runs")
    parser.add_argument("--task", action="append", help="only these tasks")
    parser.add_argument("--rule", action="append", help="only these rules")
    parser.add_argument("--levels", type=int, action="append", help="only these numbers of levels, and the usual one")
    parser.add_argument("--draws", type=int, action="append", help="only these numbers of draws; 0: none")
    parser.add_argument("--runs", type=int, action="append", help="only these members, and the usual number; 0: none")
    parser.add_argument("--write", action="store_true", help="write benchmarks/results/CARD-cost.json and .png")
    options = parser.parse_args()
    card, stem = load(options.card), Path(options.card).stem
    beside = Path(options.card).parent if Path(options.card).is_file() else None
    transition = load_pretrained(options.transition or stem)
    cards = {k: c for k, c in (cards_of_tasks(card) or {"all": card}).items() if k in (options.task or [k])}
    rules = {k: v for k, v in RULES.items() if k in (options.rule or [k])}
    draws, counts = options.draws or DRAWS, options.runs or MEMBERS
    rows: list[dict] = []
    for name, one in cards.items():
        steps = steps_of(
            name, one, transition, rules=rules, levels=tuple(options.levels or LEVELS),
            draws=() if draws == [0] else tuple(draws), states=options.states, members=options.members,
        )  # fmt: skip
        runs = runs_of(
            name, one, transition=options.transition, counts=() if counts == [0] else tuple(counts),
            experiments=options.experiments, beside=beside,
        )  # fmt: skip
        for found in (steps, runs):
            for row in found:
                # JSON has no word for a number that is none: null, where a rule diverged.
                row = {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in row.items()}
                print(json.dumps(row), flush=True)
                rows.append(row)
    if options.write:
        (RESULTS / f"{stem}-cost.json").write_text(json.dumps(rows, indent=1) + "\n")
        figure_of(rows).savefig(RESULTS / f"{stem}-cost.png")


if __name__ == "__main__":
    main()
