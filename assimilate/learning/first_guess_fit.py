r"""`fit_first_guess`: train the network of a first guess on simulated fields.

    loss = E |x - K - N(K, told)|^2 / (|x - K|^2 + 0.005)      block means x, kriging K; one factor a sample

so that smooth and rough fields count alike. The network is to see what it will see in use: K is kriging under the law
that is found from the gauges of the hours so far. Finding laws costs more than a step of training does, so a pool of
samples is made first. Samples that share their gauges, a random share of the cells, most of them sparse, come from
different storms, since laws of many fields cost hardly more than that of one; each has its own law.

For some the gauges of an hour before are among them, as if a storm had carried them: the same pattern, moved and
turned. What such a gauge saw differs from the field at its new place by as much as the field differs over its depth, so
it is given the value at about that distance in a random direction.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path as FilePath
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from assimilate.baselines.motion import carried
from assimilate.learning.first_guess import EDGE, FirstGuess, Gauges, cells, turned, turned_law
from assimilate.learning.fit import Draw, FitSettings, fit, seeded
from assimilate.learning.networks import sized_network
from assimilate.learning.objectives import Batch, MeanRegression
from dynamics.random import normal, uniform


@dataclass(frozen=True)
class FirstGuessFit:
    """Settings of `fit_first_guess`.

    Args:
        samples: in the pool.
        alike: so many of them share their gauges.
        storms: that are simulated for it, where they are (`field_fit`).
        hours: of each; laws use as many of them as there are before the hour of a sample.
        sparse: share of the cells that are gauges (log-uniform), for half of the samples.
        middle: for most of the others.
        dense: for the rest, one sample in fourteen.
        old: share of the samples, less the dense ones, that have gauges of the hour before.
        depth: how far away these are, cells (log-uniform).
        least: depth that kriging is told at least.
        wind: largest shift of these, cells.
        spin: largest turn of these about a centre, radians.
        network: settings of the U-Net, less its channels.
        training: steps, batch and so on.
        noise: standard deviation of the observations, units of the state.
    """

    samples: int = 32_768
    alike: int = 48
    storms: int = 1536
    hours: int = 6
    sparse: tuple[float, float] = (0.007, 0.015)
    middle: tuple[float, float] = (0.02, 0.045)
    dense: tuple[float, float] = (0.06, 0.11)
    old: float = 0.4
    depth: tuple[float, float] = (3.0, 10.0)
    least: float = 6.0
    wind: float = 14.0
    spin: float = 0.8
    network: Mapping[str, Any] | None = None
    training: FitSettings = FitSettings(
        steps=20_000, batch=32, learning_rate=1e-3, weight_decay=1e-3, warmup=200, ema=0.998, held_out_batch=512,
        precision="bfloat16",
    )  # fmt: skip
    noise: float = 0.05


class Correction(nn.Module):
    """The network as a function of all that it is told, `(n, 9, rows, columns)`."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, told: Tensor) -> Tensor:
        """What kriging lacks on blocks, `(n, 1, rows, columns)`."""
        return self.network(told[:, :1], told.new_zeros(len(told)), told[:, 1:])


def fit_first_guess(
    train: Tensor,
    held_out: Tensor,
    settings: FirstGuessFit | None = None,
    *,
    guess: FirstGuess | None = None,
    resume: str | os.PathLike[str] | None = None,
    progress: bool = False,
    device: torch.device | str = "cpu",
) -> tuple[FirstGuess, dict[str, Any]]:
    """Train a first guess.

    Args:
        train: storms, `(n, hours, 1, rows, columns)`; the hours may be one, which then is all that laws know.
        held_out: storms that training does not see.
        settings: see `FirstGuessFit`.
        guess: its numbers; the defaults' where none is given.
        resume: folder for resume files.
        progress: show a progress bar.
        device: where to train.

    Returns:
        The first guess with its network, and the record of the training.
    """
    s, guess = settings or FirstGuessFit(), guess or FirstGuess()
    options = {"widths": (32, 64, 96, 128), **(s.network or {})}
    model = seeded(s.training.seed, lambda: Correction(sized_network("unet", options, 1, 1, context=8, noise=True)))
    rng = torch.Generator().manual_seed(s.training.seed + 2)
    pool, other = guess_pool(train, s.samples, s, guess, rng), guess_pool(held_out, s.samples // 32, s, guess, rng)
    fitted = fit(
        model, MeanRegression(), _samples(pool), s.training, held_out=_samples(other),
        progress=progress, name="first guess", device=device,
        resume=None if resume is None else FilePath(resume) / "guess.safetensors",
    )  # fmt: skip
    return replace(guess, network=fitted.model.cpu().network), fitted.record


class GuessPool(NamedTuple):
    """Samples for the network of a first guess, in half precision.

    Attributes:
        told: what the network sees on blocks, less the law, `(n, 5, rows, columns)`.
        law: its last four channels, `(n, 4)`.
        rest: what kriging lacks, `(n, 1, rows, columns)`.
    """

    told: Tensor
    law: Tensor
    rest: Tensor


def guess_pool(storms: Tensor, count: int, s: FirstGuessFit, guess: FirstGuess, rng: torch.Generator) -> GuessPool:
    """At least `count` samples from storms `(n, hours, 1, rows, columns)`."""
    made: list[GuessPool] = []
    while len(made) * s.alike < count:
        made.append(_alike(storms, s, guess, rng))
    return GuessPool(*(torch.cat(parts) for parts in zip(*made, strict=True)))


def _alike(storms: Tensor, s: FirstGuessFit, guess: FirstGuess, rng: torch.Generator) -> GuessPool:
    """Samples that share their gauges."""
    grid = (storms.shape[-2], storms.shape[-1])
    hours, kept = storms.shape[1], 1 if guess.law is None else guess.law.hours
    gauges, sources = random_gauges(grid, s, rng)
    row = torch.randint(len(storms), (s.alike,), generator=rng)
    # The first hour, of which little is known, is rare in use.
    last = torch.randint(min(1, hours - 1), hours, (s.alike,), generator=rng)
    y = _seen(storms[row, last], sources) + s.noise * normal(rng, (s.alike, len(sources)))
    seen = [y[:, : gauges.now]]
    for ago in range(1, kept):
        before = _seen(storms[row, (last - ago).clamp_min(0)], sources[: gauges.now])
        before = before + s.noise * normal(rng, tuple(before.shape))
        seen.append(torch.where((last >= ago)[:, None], before, torch.nan))
    laws = None if guess.law is None else guess.law.of_many(gauges.places[: gauges.now], torch.stack(seen, 1))
    wanted = cells(grid, gauges.places).reshape(*grid, 2).movedim(-1, 0)[guess.centres(grid)]
    shape, wanted = (1, 1, *wanted.shape[1:]), wanted.flatten(1).mT
    told = []
    for k in range(s.alike):
        known = laws is not None and not bool(torch.isnan(laws[k]).any())
        own = gauges._replace(law=laws[k] if known and laws is not None else None)
        kriging = guess.kriging_at(own, wanted)
        blocks = (y[k] @ kriging.weights).reshape(shape)
        told.append(
            torch.cat(
                [blocks, guess.told(own, y[k : k + 1], blocks, kriging.std.reshape(shape[2:]), kriging.left_out)], 1
            )
        )
    all_told = torch.cat(told)
    rest = functional.avg_pool2d(storms[row, last], guess.block) - all_told[:, :1]
    return GuessPool(all_told[:, :5].half(), all_told[:, 5:, 0, 0].half(), rest.half())


def _samples(pool: GuessPool) -> Draw:
    """Random samples of a pool; all of a batch are turned together in one of eight ways."""

    def draw(count: int, rng: torch.Generator) -> Batch:
        rows = torch.randint(len(pool.rest), (count,), generator=rng)
        turns = int(torch.randint(8, (1,), generator=rng))
        told, rest = (turned(part[rows].float(), turns) for part in (pool.told, pool.rest))
        law = turned_law(pool.law[rows].float(), turns)[..., None, None].expand(-1, -1, *told.shape[-2:])
        weight = 1.0 / (rest.square().mean((1, 2, 3), keepdim=True) + 0.005)
        return Batch(rest.contiguous(), condition=torch.cat([told, law], 1), weight=weight)

    return draw


def random_gauges(grid: tuple[int, int], s: FirstGuessFit, rng: torch.Generator) -> tuple[Gauges, Tensor]:
    """Gauges, and where each of them takes its value, `(m, 2)`."""
    rows, columns = grid
    kind, old = (float(u) for u in uniform(rng, (2,)))
    low, high = s.sparse if kind < 0.5 else s.middle if kind < 13 / 14 else s.dense
    share = low * (high / low) ** float(uniform(rng, (1,)))
    count = max(3, round(share * rows * columns))
    index = torch.randperm(rows * columns, generator=rng)[:count].sort().values
    places = torch.stack([index // columns, index % columns], 1).float()
    none = torch.zeros(count)
    if kind >= 13 / 14 or old >= s.old:
        return Gauges(places, none, count), places
    speed, direction, turn, y, x, deep = (float(u) for u in uniform(rng, (6,)))
    speed, direction = s.wind * speed, 2 * math.pi * direction
    centre = [(1.4 * y - 0.2) * rows, (1.4 * x - 0.2) * columns]
    wind = [speed * math.sin(direction), speed * math.cos(direction)]
    now = [centre[0] + wind[0], centre[1] + wind[1]]
    motion = torch.tensor([*wind, *now, s.spin * (2 * turn - 1), math.log(30.0), 0.0])
    came = carried(motion[None], places)[0]
    came = came[((came > -EDGE) & (came < came.new_tensor(grid) + EDGE)).all(1)]
    depth = s.depth[0] * (s.depth[1] / s.depth[0]) ** deep
    angle = 2 * math.pi * uniform(rng, (len(came),))
    sources = came + depth * torch.stack([torch.sin(angle), torch.cos(angle)], 1)
    farther = torch.full((len(came),), max(depth, s.least))
    gauges = Gauges(torch.cat([places, came]), torch.cat([none, farther]), count)
    return gauges, torch.cat([places, sources])


def _seen(x: Tensor, places: Tensor) -> Tensor:
    """Values of fields `(n, 1, rows, columns)` at places `(m, 2)`, the edge continued: `(n, m)`."""
    points = (2.0 * places / (places.new_tensor(x.shape[-2:]) - 1) - 1.0).flip(-1)[None, None]
    points = points.expand(len(x), -1, -1, -1)
    return functional.grid_sample(x, points, padding_mode="border", align_corners=True)[:, 0, 0]
