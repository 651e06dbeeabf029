r"""`fit_first_guess`: train the network of a first guess on simulated fields.

    loss = E |x - K - N(K, told)|^2 / (|x - K|^2 + 0.005)      block means x, kriging K; one factor a sample

so that smooth and rough fields count alike. Every sample has its own field; a batch shares its gauges: a random share
of the cells, most of them sparse. For some batches the gauges of an hour before are among them, as if a storm had
carried them: the same pattern, moved and turned. What such a gauge saw differs from the field at its new place by as
much as the field differs over its depth, so it is given the value at that distance in a random direction.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path as FilePath
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from assimilate.baselines.motion import carried
from assimilate.learning.first_guess import EDGE, FirstGuess, Gauges
from assimilate.learning.fit import Draw, FitSettings, fit, seeded
from assimilate.learning.networks import sized_network
from assimilate.learning.objectives import Batch, MeanRegression
from dynamics.random import normal, uniform


@dataclass(frozen=True)
class FirstGuessFit:
    """Settings of `fit_first_guess`.

    Args:
        sparse: share of the cells that are gauges (log-uniform), for half of the batches.
        middle: for most of the others.
        dense: for the rest, one batch in seven.
        old: share of the batches, less the dense ones, that have gauges of the hour before.
        depth: how far away these are, cells (log-uniform).
        wind: largest shift of these, cells.
        spin: largest turn of these about a centre, radians.
        network: settings of the U-Net, less its channels.
        training: steps, batch and so on.
        noise: standard deviation of the observations, units of the state.
    """

    sparse: tuple[float, float] = (0.007, 0.015)
    middle: tuple[float, float] = (0.02, 0.045)
    dense: tuple[float, float] = (0.06, 0.12)
    old: float = 0.4
    depth: tuple[float, float] = (1.5, 8.0)
    wind: float = 14.0
    spin: float = 0.8
    network: Mapping[str, Any] | None = None
    training: FitSettings = FitSettings(
        steps=20_000, batch=32, learning_rate=1e-3, weight_decay=1e-3, warmup=200, ema=0.998, held_out_batch=32,
        precision="bfloat16",
    )  # fmt: skip
    noise: float = 0.05


class Correction(nn.Module):
    """The network as a function of all that it is told, `(n, 4, rows, columns)`."""

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
        train: fields, `(n, 1, rows, columns)`.
        held_out: fields that training does not see.
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
    model = seeded(s.training.seed, lambda: Correction(sized_network("unet", options, 1, 1, context=3, noise=True)))
    fitted = fit(
        model, MeanRegression(), _samples(train, s, guess), s.training, held_out=_samples(held_out, s, guess),
        progress=progress, name="first guess", device=device,
        resume=None if resume is None else FilePath(resume) / "guess.safetensors",
    )  # fmt: skip
    network = fitted.model.cpu().network
    return FirstGuess(network, **guess.settings), fitted.record


def _samples(fields: Tensor, s: FirstGuessFit, guess: FirstGuess) -> Draw:
    """Random fields, in one of eight orientations, seen by gauges that are drawn anew for every batch."""

    # Weights of kriging are not for half precision, whatever the network is trained in.
    @torch.autocast(fields.device.type, enabled=False)
    def draw(count: int, rng: torch.Generator) -> Batch:
        x = fields[torch.randint(len(fields), (count,), generator=rng)]
        grid = (x.shape[-2], x.shape[-1])
        gauges, sources = random_gauges(grid, s, rng)
        y = _seen(x, sources) + s.noise * normal(rng, (count, len(sources)))
        weights, std = guess.kriging(gauges, grid)
        kriged, told = guess.told(gauges, y, (y @ weights).reshape(x.shape), std)
        size = guess.block
        rest = functional.avg_pool2d(x, size) - kriged
        # All are turned together, after the gauges have seen them.
        turns = int(torch.randint(8, (1,), generator=rng))
        condition, rest = (_turned(t, turns) for t in (torch.cat([kriged, told], 1), rest))
        weight = 1.0 / (rest.square().mean((1, 2, 3), keepdim=True) + 0.005)
        return Batch(rest.contiguous(), condition=condition.contiguous(), weight=weight)

    return draw


def random_gauges(grid: tuple[int, int], s: FirstGuessFit, rng: torch.Generator) -> tuple[Gauges, Tensor]:
    """Gauges of a batch, and where each of them takes its value, `(m, 2)`."""
    rows, columns = grid
    kind, old = (float(u) for u in uniform(rng, (2,)))
    low, high = s.sparse if kind < 0.5 else s.middle if kind < 6 / 7 else s.dense
    share = low * (high / low) ** float(uniform(rng, (1,)))
    count = max(3, round(share * rows * columns))
    index = torch.randperm(rows * columns, generator=rng)[:count].sort().values
    places = torch.stack([index // columns, index % columns], 1).float()
    none = torch.zeros(count)
    if kind >= 6 / 7 or old >= s.old:
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
    gauges = Gauges(torch.cat([places, came]), torch.cat([none, torch.full((len(came),), depth)]), count)
    return gauges, torch.cat([places, sources])


def _seen(x: Tensor, places: Tensor) -> Tensor:
    """Values of fields `(n, 1, rows, columns)` at places `(m, 2)`, the edge continued: `(n, m)`."""
    points = (2.0 * places / (places.new_tensor(x.shape[-2:]) - 1) - 1.0).flip(-1)[None, None]
    points = points.expand(len(x), -1, -1, -1)
    return functional.grid_sample(x, points, padding_mode="border", align_corners=True)[:, 0, 0]


def _turned(x: Tensor, turns: int) -> Tensor:
    x = torch.rot90(x, turns % 4, (-2, -1))
    return x.flip(-1) if turns >= 4 else x
