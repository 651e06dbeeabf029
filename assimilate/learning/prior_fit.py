r"""`fit_prior`: train the prior of single states, a denoising U-Net with EDM's preconditioning.

    loss = E |x_1 - D(x_1 + rho z, rho)|^2 / c_out^2 + share of the variance's log likelihood

The second output of the network is the logarithm of the variance of each value; samplers and guidances that know it
need fewer steps. Pictures may be turned and mirrored as they are drawn.

References:
    Karras, Aittala, Aila, Laine (2022), Elucidating the design space of diffusion-based generative models,
    https://arxiv.org/abs/2206.00364
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path as FilePath
from typing import Any

import torch
from torch import Tensor

from assimilate.learning.denoiser import EDMDenoiser
from assimilate.learning.fit import Draw, FitSettings, fit, seeded
from assimilate.learning.networks import sized_network
from assimilate.learning.objectives import Batch, Denoising, LogUniform
from assimilate.learning.prior import LearnedPrior
from dynamics.random import normal
from dynamics.settings import ANY, FRACTION, POSITIVE, check_settings, number, several
from dynamics.space import Space

MEASURED = (0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0)
"""Noise levels, in units of the data's standard deviation, at which a trained prior is measured."""


@dataclass(frozen=True)
class PriorFit:
    """Settings of `fit_prior`.

    Args:
        network: settings of the U-Net, less its channels.
        training: steps, batch and so on.
        smallest: smallest noise level, in units of the data's standard deviation.
        largest: largest.
        emphasis: narrower range that gets a larger share.
        share: that share.
        turned: whether states may be turned by quarter turns and mirrored (square grids).
        held_out: share of the states that training does not see.
        bounds: least and largest value of a state, or None.
    """

    network: Mapping[str, Any] | None = None
    training: FitSettings = FitSettings(
        steps=12_000, batch=16, learning_rate=2e-3, warmup=300, ema=0.9995, held_out_every=1000, held_out_batch=128,
        precision="bfloat16",
    )
    smallest: float = 0.01
    largest: float = 160.0
    emphasis: tuple[float, float] = (0.08, 4.0)
    share: float = 0.6
    turned: bool = True
    held_out: float = 0.02
    bounds: tuple[float, float] | None = None

    def __post_init__(self) -> None:
        """Check the settings."""
        check_settings(self, smallest=POSITIVE, largest=POSITIVE, emphasis=several(POSITIVE, 2), share=FRACTION)
        check_settings(self, held_out=number(0, below=1), bounds=several(ANY, 2, none=True))


def fit_prior(
    states: Tensor,
    space: Space,
    settings: PriorFit | None = None,
    *,
    start: LearnedPrior | None = None,
    data: Mapping[str, Any] | None = None,
    resume: str | os.PathLike[str] | None = None,
    progress: bool = False,
    device: torch.device | str = "cpu",
) -> LearnedPrior:
    """Learn the prior of states.

    Args:
        states: `(n, channel, rows, columns)`, units of the Space; the last `held_out` share is only measured on.
        space: what a state is.
        settings: see `PriorFit`.
        start: go on from these weights (another size, other pictures) instead of new ones.
        data: where the states come from, for the record.
        resume: folder for resume files; a killed run continues from there.
        progress: show a progress bar.
        device: where to train.

    Raises:
        ValueError: the states do not fit the Space, or are too few to hold some out.
    """
    s = settings or PriorFit()
    if states.ndim != 4 or tuple(states.shape[1:]) != space.event_shape:
        raise ValueError(f"states have shape {tuple(states.shape)}; expected (n, *{space.event_shape})")
    kept = max(1, round(s.held_out * len(states)))
    if len(states) < 2 * kept:
        raise ValueError(f"{len(states)} states are too few to train on and to hold {kept} out")
    train, held_out = states[:-kept], states[-kept:]
    if start is None:
        offset = float(train.float().mean())
        sigma = float(train.float().std())
        channels = space.event_shape[0]
        denoiser = seeded(
            s.training.seed,
            lambda: EDMDenoiser(
                sized_network("unet", {"widths": (32, 48, 64, 96), "blocks": 2, **(s.network or {})}, channels,
                              2 * channels, noise=True),
                event_dims=3, sigma_data=1.0, variance=True,
            ),
        )
    else:
        offset, sigma, denoiser = start.offset, start.scale, start.denoiser.requires_grad_(True)
    fitted = fit(
        denoiser,
        Denoising(LogUniform(s.smallest, s.largest, s.emphasis, s.share)),
        samples(train, offset, sigma, s.turned),
        s.training,
        held_out=samples(held_out, offset, sigma, False),
        progress=progress,
        name="prior",
        device=device,
        resume=None if resume is None else FilePath(resume) / "prior.safetensors",
    )
    prior = LearnedPrior(
        space=space,
        denoiser=fitted.model.cpu(),
        offset=offset,
        scale=sigma,
        smallest=s.smallest * sigma,
        largest=s.largest * sigma,
        bounds=s.bounds,
        data={**(data or {}), "states": len(states), "held_out": kept},
    )
    record = {"settings": repr(s), "denoiser": fitted.record, "measured": denoising_errors(prior, held_out[:64])}
    if start is not None:
        record["start"] = {"data": start.data, "record": start.record}
    return LearnedPrior(**{**vars(prior), "record": record})


@torch.no_grad()
def denoising_errors(prior: LearnedPrior, states: Tensor, seed: int = 7) -> dict[str, Any]:
    """Root mean square error (units of the Space) and its standardised variance (1: calibrated) at noise levels."""
    rng = torch.Generator().manual_seed(seed)
    states = states.float()
    rows = []
    for level in MEASURED:
        rho = level * prior.scale
        noisy = states + rho * normal(rng, tuple(states.shape))
        clean = prior(noisy, torch.tensor(rho))
        error = states - clean.mean
        known = clean.covariance
        ratio = None if known is None else float((error.square() / known.variance).mean())  # type: ignore[attr-defined]
        rows.append([round(rho, 5), round(float(error.square().mean().sqrt()), 5), ratio and round(ratio, 3)])
    return {"columns": ["noise", "rms error", "standardised variance"], "rows": rows, "states": len(states)}


def samples(states: Tensor, offset: float, scale: float, turned: bool) -> Draw:
    """Random states in a random orientation, in network coordinates."""

    def draw(count: int, rng: torch.Generator) -> Batch:
        rows = torch.randint(len(states), (count,), generator=rng)
        chosen = (states[rows].float() - offset) / scale
        if turned:
            turns = int(torch.randint(8, (1,), generator=rng))
            chosen = torch.rot90(chosen, turns % 4, (-2, -1))
            chosen = chosen.flip(-1) if turns >= 4 else chosen
        return Batch(chosen.contiguous())

    return draw
