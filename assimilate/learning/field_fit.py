r"""`fit_field`: train the transition of fields, one denoiser for a state with and without its past.

    loss = E |x_1 - D(x_1 + rho z, rho, c)|^2 / c_out^2 + share of the variance's log likelihood

`c` is the previous field as an assimilation would know it: dropped for a share of the samples (the network is then the
prior of a single field), else smoothed and with correlated errors where it is not dry, since a network that has only
seen perfect fields trusts an analysis too much. After training, the correlation of the residual `x_1 - D` is measured
on new fields at some noise levels and tabulated by distance.

References:
    Karras, Aittala, Aila, Laine (2022), Elucidating the design space of diffusion-based generative models,
    https://arxiv.org/abs/2206.00364
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path as FilePath
from typing import Any

import torch
from torch import Tensor

from assimilate.learning.denoiser import EDMDenoiser
from assimilate.learning.field import CorrelatedDenoiser, FieldTransition
from assimilate.learning.first_guess import FirstGuess
from assimilate.learning.first_guess_fit import FirstGuessFit, fit_first_guess
from assimilate.learning.fit import Draw, FitSettings, fit, seeded
from assimilate.learning.networks import sized_network
from assimilate.learning.objectives import Batch, Denoising, LogUniform
from assimilate.learning.samples import Simulation, Trajectories
from dynamics import Dynamics
from dynamics.radar import RainStorms
from dynamics.random import normal, uniform
from dynamics.storms import StormRanges

RATIOS = (0.03, 0.05, 0.08, 0.13, 0.2, 0.32, 0.5, 0.8, 1.3, 2.0, 3.0, 5.0)
"""Noise levels of the table of residual correlations."""
LAGS = 64
"""Its length in cells."""


@dataclass(frozen=True)
class FieldFit:
    """Settings of `fit_field`.

    The shipped `rain-hourly` was trained with these data, network, losses and noise levels for 18,923 steps of 16
    fields (65 minutes on one core), with storms renewed as training went on; here a pool of storms is made first. Its
    first guess took 21,290 steps of 32 samples (38 minutes) of kriging under one law for all fields, and from there
    2,800 steps (6 minutes, learning rate 6e-4) on a pool of 11,040 samples under fitted laws (5 minutes), as it is made
    here. It saw storms of 118 x 87 cells, hurricanes with 16 positions of the flow an hour.

    Args:
        storms: sequences of `frames` fields in the pool.
        patch: size of a random patch, cells; no larger than the grid of the source.
        held_out: share of the pool that training does not see.
        network: settings of the U-Net, less its channels.
        training: steps, batch and so on.
        smallest: smallest noise level, units of the state.
        largest: largest.
        emphasis: narrower range that gets a larger share.
        share: that share.
        drop: share of the samples whose past is dropped.
        error: largest amplitude of the past's errors, units of the state.
        floor: least value of a state, or None.
        guessed: whether the network of a first guess is trained too, after the denoiser. Where the source is
            `RainStorms`, it is trained on storms of its own, else on the sequences of the pool.
        guess: how.
        hurricanes: ranges of half of these storms. Hurricanes are rare among the source's, rain turns faster in them
            than anywhere (33 m/s and more, 30 cells an hour), and their bands wind up for many hours.
        seed: of the pool.
    """

    storms: int = 4096
    patch: int = 64
    held_out: float = 0.05
    network: Mapping[str, Any] | None = None
    training: FitSettings = FitSettings(
        steps=19_000, batch=16, learning_rate=2e-3, warmup=300, ema=0.9995, held_out_batch=64
    )
    smallest: float = 0.02
    largest: float = 5.0
    emphasis: tuple[float, float] = (0.12, 1.0)
    share: float = 0.6
    drop: float = 0.4
    error: float = 0.5
    floor: float | None = 0.0
    guessed: bool = False
    guess: FirstGuessFit = FirstGuessFit()
    hurricanes: StormRanges = StormRanges(
        vortex=0.85, speed=(6.0, 40.0), wet=(0.25, 1.1), peak=(1.6, 4.6), period=(2.0, 24.0), lifetime=(1.0, 20.0)
    )
    seed: int = 1


def fit_field(
    source: Dynamics | Any,
    settings: FieldFit | None = None,
    *,
    resume: str | os.PathLike[str] | None = None,
    progress: bool = False,
    device: torch.device | str = "cpu",
) -> FieldTransition:
    """Learn the transition of a field.

    Args:
        source: `RainStorms` (whole storms are drawn), another simulator, a Dataset of states over time or trajectories.
        settings: see `FieldFit`.
        resume: folder for resume files; a killed run continues from there.
        progress: show a progress bar.
        device: where to train.

    Raises:
        ValueError: the states are not one field on a two-dimensional grid.
    """
    s = settings or FieldFit()
    if isinstance(source, RainStorms):
        rng = torch.Generator().manual_seed(s.seed)
        chunks = [source.storms((min(32, s.storms - n),), 2, rng=rng) for n in range(0, s.storms, 32)]
        states, space, dt, data = torch.cat(chunks), source.space, source.dt, {"source": repr(source)}
    else:
        found = Trajectories.of(source, Simulation(trajectories=s.storms, states=2))
        states, space, dt, data = found.states, found.space, found.dt, found.described(s.held_out)
    if len(space.event_shape) != 3 or space.event_shape[0] != 1:
        raise ValueError(f"a field transition learns one field on a two-dimensional grid; given {space!r}")
    kept = max(1, round(s.held_out * len(states)))
    pairs = torch.stack([states[:, :-1], states[:, 1:]], 2).flatten(0, 1)
    train, held_out = pairs[: -kept * (states.shape[1] - 1)], pairs[-kept * (states.shape[1] - 1) :]
    sigma = float(train[:, 1].std())
    options = {"widths": (16, 40, 56, 64), **(s.network or {})}
    denoiser = seeded(
        s.training.seed,
        lambda: EDMDenoiser(
            sized_network("unet", options, 1, 2, context=2, noise=True), event_dims=3, sigma_data=sigma, variance=True
        ),
    )
    fitted = fit(
        denoiser,
        Denoising(LogUniform(s.smallest, s.largest, s.emphasis, s.share)),
        _samples(train, s),
        s.training,
        held_out=_samples(held_out, s),
        progress=progress,
        name="field",
        device=device,
        resume=None if resume is None else FilePath(resume) / "field.safetensors",
    )
    model = fitted.model.cpu()
    guess, guess_record = _first_guess(source, states, s, resume, progress, device) if s.guessed else (None, {})
    return FieldTransition(
        space=space,
        dt=dt,
        denoiser=CorrelatedDenoiser(model, torch.tensor(RATIOS), residual_correlation(model, held_out[:64, 1])),
        floor=s.floor,
        guess=guess,
        data={**data, "storms": s.storms},
        record={"settings": repr(s), "denoiser": fitted.record, **guess_record},
    )


def _first_guess(
    source: Any,
    states: Tensor,
    s: FieldFit,
    resume: str | os.PathLike[str] | None,
    progress: bool,
    device: torch.device | str,
) -> tuple[FirstGuess, dict[str, Any]]:
    """The trained first guess and its record; `states` are sequences, `(n, hours, 1, rows, columns)`."""
    if isinstance(source, RainStorms):
        rng, count = torch.Generator().manual_seed(s.seed + 1), s.guess.storms
        kinds = source, replace(source, ranges=s.hurricanes)
        chunks = [kinds[n // 32 % 2].storms((min(32, count - n),), s.guess.hours, rng=rng) for n in range(0, count, 32)]
        states = torch.cat(chunks)
    kept = max(1, round(s.held_out * len(states)))
    guess, record = fit_first_guess(
        states[:-kept], states[-kept:], s.guess, resume=resume, progress=progress, device=device
    )
    return guess, {"first guess": record}


def _samples(pairs: Tensor, s: FieldFit) -> Draw:
    """Random patches in a random orientation, with the past as an assimilation would know it."""

    def draw(count: int, rng: torch.Generator) -> Batch:
        rows = torch.randint(len(pairs), (count,), generator=rng)
        height, width = (min(s.patch, n) for n in pairs.shape[-2:])
        top, left = (
            int(torch.randint(n - size + 1, (1,), generator=rng))
            for n, size in zip(pairs.shape[-2:], (height, width), strict=True)
        )
        both = pairs[rows, :, :, top : top + height, left : left + width]
        turns = int(torch.randint(8, (1,), generator=rng))
        both = torch.rot90(both, turns % 4, (-2, -1))
        both = both.flip(-1) if turns >= 4 else both
        past, known = as_analysed(both[:, 0], s, rng), uniform(rng, (count, 1, 1, 1)) >= s.drop
        condition = torch.cat([past * known, known.expand(past.shape).to(past.dtype)], 1)
        return Batch(both[:, 1].contiguous(), condition=condition.contiguous())

    return draw


def as_analysed(past: Tensor, s: FieldFit, rng: torch.Generator) -> Tensor:
    """A field `(n, 1, rows, columns)` with errors like those of an analysis: blurred, then correlated errors."""
    count = len(past)

    def between(low: float, high: float) -> Tensor:
        return (low + (high - low) * uniform(rng, (count,))).reshape(-1, 1, 1, 1)

    width = torch.where(between(0, 1) < 0.4, between(0.5, 2.5), 1e-3)
    blurred = _blur(past, width)
    noise = _blur(normal(rng, tuple(past.shape)), between(1.0, 6.0))
    noise = noise / noise.std((-2, -1), keepdim=True)
    wet = (blurred / 0.3).clamp(0.0, 1.0)
    wrong = blurred + between(0.0, s.error) * wet * noise
    return wrong if s.floor is None else wrong.clamp_min(s.floor)


def _blur(x: Tensor, width: Tensor) -> Tensor:
    """Periodic Gaussian smoothing, `width` in cells, one a sample."""
    rows, columns = x.shape[-2:]
    squared = torch.fft.fftfreq(rows)[:, None] ** 2 + torch.fft.rfftfreq(columns)[None] ** 2
    response = torch.exp(-2 * torch.pi**2 * squared * width**2)
    return torch.fft.irfft2(torch.fft.rfft2(x) * response, s=(rows, columns))


@torch.no_grad()
def residual_correlation(denoiser: EDMDenoiser, fields: Tensor, seed: int = 5) -> Tensor:
    """Correlation of `(x_1 - D) / s` by distance in cells, `(len(RATIOS), LAGS)`.

    Args:
        denoiser: with a variance output.
        fields: `(n, 1, rows, columns)`, not seen in training.
        seed: of the noise.
    """
    rng = torch.Generator().manual_seed(seed)
    rows, columns = fields.shape[-2:]
    torus = (2 * rows, 2 * columns)
    gaps = [torch.minimum(torch.arange(n), n - torch.arange(n)) for n in torus]
    distance = torch.sqrt((gaps[0][:, None] ** 2 + gaps[1][None] ** 2).float()).round().long().clamp_max(LAGS).flatten()
    none = torch.zeros(len(fields), 2, rows, columns)
    table = []
    for ratio in RATIOS:
        noisy = fields + ratio * normal(rng, tuple(fields.shape))
        clean = denoiser(noisy, torch.tensor(ratio), none)
        sums = []
        for x in (fields - clean.mean, clean.covariance.variance.sqrt()):
            power = torch.fft.irfft2(torch.fft.rfft2(x, s=torus).abs() ** 2, s=torus).sum((0, 1)).flatten()
            sums.append(torch.zeros(LAGS + 1).index_add(0, distance, power)[:LAGS])
        # Small grids have no pairs at the largest distances.
        correlation = torch.where(sums[1] > 0, sums[0] / sums[1].clamp_min(1e-12), 0.0)
        table.append(correlation / correlation[0])
    return torch.stack(table)
