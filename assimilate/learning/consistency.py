r"""Consistency models: one call from any noise level to a clean state, distilled from a denoiser.

    f(x, rho) = c_skip x + c_out F(c_in x, ln(rho) / 4),    c_skip = s^2 / (s^2 + (rho - e)^2),
                                                            c_out = s (rho - e) / sqrt(s^2 + rho^2)

so that `f(x, e) = x` at the smallest level e. Training asks neighbouring points of one trajectory of the teacher's
probability-flow ODE to have the same end:

    loss = E h( f(x_{n+1}, rho_{n+1}) - stop[ f(x_n, rho_n) ] ),    x_n = one Heun step of the teacher from x_{n+1},
    h(d) = sqrt(|d|^2 + c^2) - c

An ideal consistency model gives **draws** (ends of the ODE), not the clean mean; few calls draw an image, and guidances
that need the mean must not be given one.

References:
    Song, Dhariwal, Chen, Sutskever (2023), Consistency models, https://arxiv.org/abs/2303.01469
    Song, Dhariwal (2023), Improved techniques for training consistency models, https://arxiv.org/abs/2310.14189 (the
    loss h, and targets without a moving average)

Differs from the papers: the number of levels is constant.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path as FilePath
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from assimilate.learning.denoiser import EDMDenoiser, Preconditioning
from assimilate.learning.fit import FitSettings, fit
from assimilate.learning.networks.unet import UNet
from assimilate.learning.objectives import Batch
from dynamics.random import normal
from dynamics.settings import POSITIVE, check_settings, whole

if TYPE_CHECKING:
    from assimilate.learning.prior import LearnedPrior

_SMALLEST = 0.01
"""The level e, in units of the data's standard deviation."""


class ConsistencyDenoiser(EDMDenoiser):
    """A network with the preconditioning above; its `Clean.mean` is a draw."""

    def precondition(self, noisy: Tensor, ratio: Tensor) -> Preconditioning:
        """See `EDMDenoiser.precondition`."""
        scale = super().precondition(noisy, ratio)
        lead = noisy.shape[: noisy.ndim - self.event_dims]
        rho = ratio.to(noisy).expand(lead).reshape(*lead, *(1,) * self.event_dims)
        sigma = self.sigma_data
        over = (rho - _SMALLEST).clamp_min(0.0)
        return scale._replace(skip=sigma**2 / (sigma**2 + over**2), out=over * sigma * scale.inside)


@dataclass(frozen=True)
class ConsistencyFit:
    """Settings of `fit_consistency`.

    Args:
        levels: noise levels of the ODE.
        largest: the first, in units of the data's standard deviation.
        huber: c, in units of the data's standard deviation over all values of a state: `c = huber sqrt(d)`.
        turned: whether states may be turned by quarter turns and mirrored.
        training: steps, batch and so on.
    """

    levels: int = 24
    largest: float = 80.0
    huber: float = 0.03
    turned: bool = True
    training: FitSettings = FitSettings(
        steps=4000, batch=16, learning_rate=5e-4, warmup=200, ema=0.999, held_out_every=1000, held_out_batch=64,
        precision="bfloat16",
    )

    def __post_init__(self) -> None:
        """Check the settings."""
        check_settings(self, levels=whole(2), largest=POSITIVE, huber=POSITIVE)


@dataclass(frozen=True)
class Consistency:
    """The objective; `model` is a `ConsistencyDenoiser`.

    Args:
        teacher: a denoiser in the same coordinates.
        grid: levels, decreasing.
        huber: c.
    """

    teacher: EDMDenoiser
    grid: Tensor
    huber: float

    def __call__(self, model: nn.Module, batch: Batch, rng: torch.Generator) -> Tensor:
        """See `Objective`."""
        clean = batch.clean
        place = torch.randint(len(self.grid) - 1, (len(clean),), generator=rng)
        grid = self.grid.to(clean)
        first, second = grid[place], grid[place + 1]
        wide = first.reshape(-1, 1, 1, 1)
        noisy = clean + wide * normal(rng, tuple(clean.shape), device=clean.device)
        with torch.no_grad():
            nearer = self._ode(noisy, first, second)
            target = model(nearer, second).mean
        miss = (model(noisy, first).mean - target).float().flatten(1)
        c = self.huber * miss.shape[1] ** 0.5
        weight = 1.0 / (first - second)
        return (weight * ((miss.square().sum(1) + c * c).sqrt() - c)).mean() / miss.shape[1] ** 0.5

    def _ode(self, noisy: Tensor, first: Tensor, second: Tensor) -> Tensor:
        """One Heun step of the probability-flow ODE."""
        rho, to = first.reshape(-1, 1, 1, 1), second.reshape(-1, 1, 1, 1)
        slope = (noisy - self.teacher(noisy, first).mean) / rho
        ahead = noisy + (to - rho) * slope
        again = (ahead - self.teacher(ahead, second).mean) / to
        return noisy + (to - rho) * 0.5 * (slope + again)


def fit_consistency(
    teacher: LearnedPrior,
    states: Tensor,
    settings: ConsistencyFit | None = None,
    *,
    data: Mapping[str, Any] | None = None,
    resume: str | os.PathLike[str] | None = None,
    progress: bool = False,
    device: torch.device | str = "cpu",
) -> LearnedPrior:
    """Distil a prior into a consistency model; it starts from the teacher's weights.

    Args:
        teacher: a trained prior with a U-Net.
        states: states to noise, `(n, channel, rows, columns)`, units of the teacher's Space.
        settings: see `ConsistencyFit`.
        data: where the states come from, for the record.
        resume: folder for resume files.
        progress: show a progress bar.
        device: where to train.

    Raises:
        ValueError: the teacher's network is no U-Net.
    """
    from assimilate.learning.prior_fit import samples

    s = settings or ConsistencyFit()
    network = teacher.denoiser.network
    if not isinstance(network, UNet):
        raise ValueError(f"a consistency model is distilled from a U-Net; the teacher has a {type(network).__name__}")
    power = 7.0
    ends = torch.tensor([s.largest, _SMALLEST], dtype=torch.float64) ** (1 / power)
    grid = (torch.linspace(float(ends[0]), float(ends[1]), s.levels, dtype=torch.float64) ** power).float()
    kept = max(1, len(states) // 50)
    student = _student(network, teacher.denoiser.sigma_data)
    fitted = fit(
        student,
        Consistency(teacher.denoiser.to(device), grid, s.huber),
        samples(states[:-kept], teacher.offset, teacher.scale, s.turned),
        s.training,
        held_out=samples(states[-kept:], teacher.offset, teacher.scale, False),
        progress=progress,
        name="consistency",
        device=device,
        resume=None if resume is None else FilePath(resume) / "consistency.safetensors",
    )
    teacher.denoiser.cpu()
    record = {"settings": repr(s), "denoiser": fitted.record, "teacher": {"data": teacher.data}}
    return replace(
        teacher,
        denoiser=fitted.model.cpu(),
        smallest=_SMALLEST * teacher.scale,
        largest=s.largest * teacher.scale,
        data={**(data or {}), "states": len(states)},
        record=record,
    )


def _student(network: UNet, sigma: float) -> ConsistencyDenoiser:
    """The teacher's network without its second output."""
    outputs = network.settings.channels
    inner = UNet(replace(network.settings, outputs=outputs))
    weights = dict(network.state_dict())
    for name in ("leave.weight", "leave.bias"):
        weights[name] = weights[name][:outputs]
    inner.load_state_dict(weights)
    return ConsistencyDenoiser(inner, event_dims=3, sigma_data=sigma).requires_grad_(True)
