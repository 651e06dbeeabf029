"""CPU time of one step of the bootstrap filter: stochastic Lorenz-63, arctan of x observed at every step.

    python -m benchmarks.speed_particles                      10^6 particles, one thread
    python -m benchmarks.speed_particles --members 100000 --threads 2

Process CPU time, the least of several repeats, so that other work on the machine disturbs little. "always" resamples
at every step, "half" when the effective sample size is at most N/2, "never" shows what remains. Random numbers come
from a generator, or from `Streams`, whose numbers belong to the row (what `assimilate.run` uses). With a generator at
most 70 ms ("always") and 50 ms ("half") are asked for; the library `particles` takes 332.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from typing import NamedTuple

import torch

from assimilate.filters.particle import BootstrapFilter, move
from assimilate.posterior.weights import effective_sample_size, log_normalize, resample
from dynamics.lorenz import FLOWDAS_SCALE, Lorenz63
from dynamics.random import Rng, Streams, normal
from observations.likelihood import Likelihood, Observation
from observations.noise import GaussianNoise
from observations.nonlinear import Arctan

STEPS = 6
"""Steps of one repeat; the first is warm-up."""


class Cost(NamedTuple):
    """What was timed, and the least CPU time of a step in ms."""

    what: str
    milliseconds: float


def step_cost(members: int, threshold: float, kind: str, repeats: int) -> float:
    """Least CPU time of one filter step, in ms.

    Args:
        members: N.
        threshold: of the resampling, a fraction of N.
        kind: "generator" or "streams".
        repeats: how many times the steps are run.
    """
    system = Lorenz63.flowdas()
    method = BootstrapFilter(system, threshold=threshold)
    likelihood = Likelihood(Arctan(system.space, channels=0, scale=FLOWDAS_SCALE[0]), GaussianNoise(std=0.25))
    best = float("inf")
    for repeat in range(repeats):
        rng: Rng = Streams(repeat, 1, members) if kind == "streams" else torch.Generator().manual_seed(repeat)
        truth = system.prior((1, 1), rng=torch.Generator().manual_seed(repeat))
        state = method.init(truth + system.prior((1, members), rng=rng) / 8)
        for k in range(1, STEPS + 1):
            truth = system.step(truth, 0.0, rng=None)
            y = likelihood.sample(truth, rng=torch.Generator().manual_seed(k))[0, 0]
            numbers = rng.at(k) if isinstance(rng, Streams) else rng
            before = time.process_time()
            state, _ = method.step(state, Observation(likelihood, y), k * system.dt, rng=numbers)
            if k > 1:
                best = min(best, time.process_time() - before)
    return 1e3 * best


def piece_costs(members: int, repeats: int) -> list[Cost]:
    """CPU times of the pieces of a step."""
    system = Lorenz63.flowdas()
    rng = torch.Generator().manual_seed(0)
    x = system.prior((1, members), rng=rng)
    log_weights, _ = log_normalize(torch.randn(1, members, generator=rng))
    likelihood = Likelihood(Arctan(system.space, channels=0, scale=FLOWDAS_SCALE[0]), GaussianNoise(std=0.25))
    y = torch.zeros(1)
    pieces: dict[str, Callable[[], object]] = {
        "RK4 in chunks": lambda: move(system, x, 0.0, system.dt, rng=None, method="timing"),
        "RK4 at once": lambda: system.step(x, 0.0, rng=None),
        "resampling": lambda: resample(x, log_weights, threshold=1.0, rng=rng),
        "normal numbers of a generator": lambda: normal(rng, (1, members, 3)),
        "normal numbers of Streams": lambda: normal(Streams(0, 1, members), (1, members, 3)),
        "likelihood": lambda: likelihood.log_prob(y, x),
        "weights": lambda: effective_sample_size(log_normalize(log_weights)[0]),
    }
    return [Cost(what, _least(piece, repeats)) for what, piece in pieces.items()]


def _least(piece: Callable[[], object], repeats: int) -> float:
    piece()
    times = []
    for _ in range(repeats):
        before = time.process_time()
        piece()
        times.append(time.process_time() - before)
    return 1e3 * min(times)


def main() -> None:
    """Time the steps and their pieces and print both."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else None)
    parser.add_argument("--members", type=int, default=1_000_000)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    print(f"{options.members} particles, {options.threads} thread(s), CPU ms a step")
    for kind in ("generator", "streams"):
        for name, threshold in (("always", 1.0), ("half", 0.5), ("never", 0.0)):
            cost = step_cost(options.members, threshold, kind, options.repeats)
            print(f"{kind:12s} resampling {name:8s} {cost:8.1f}")
    for what, cost in piece_costs(options.members, options.repeats):
        print(f"{what:32s} {cost:8.1f}")


if __name__ == "__main__":
    main()
