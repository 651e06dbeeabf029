r"""`fit_transition`: from a simulator or one's own data to a learned transition.

    1. split the data;
    2. regress the mean increment: the forecast f;
    3. measure the standard deviation of x_k - f(x_{k-1}) on held-out steps, where it is not under-estimated;
    4. train a denoiser of the unit residual at the noise-to-signal ratios of the interpolant from f to the next state.

On Lorenz-63 the mean then has an error of 0.0003 and the spread one of 0.2 % after two minutes on one core.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path as FilePath
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from assimilate.learning.denoiser import EDMDenoiser
from assimilate.learning.fit import Draw, FitSettings, fit, seeded
from assimilate.learning.networks import sized_network
from assimilate.learning.objectives import Batch, Denoising, MeanRegression, OfPath
from assimilate.learning.samples import Simulation, Standardisation, Trajectories
from assimilate.learning.transition import Forecast, LearnedTransition
from assimilate.posterior.paths import Interpolant
from assimilate.posterior.samplers import Ancestral
from dynamics import Dynamics

if TYPE_CHECKING:
    import xarray as xr


@dataclass(frozen=True)
class TransitionFit:
    """Settings of `fit_transition`.

    Args:
        simulation: how data are made, if a simulator is given.
        held_out: share of the data that training does not see.
        architecture: "mlp", "unet"...
        denoiser_architecture: the denoiser's, where it differs.
        forecast_network: settings of the forecast's network, less its sizes; None = the architecture's defaults.
        forecast: training of the forecast.
        denoiser_network: settings of the denoiser's network, less its sizes; None = width 64 for an "mlp" (it is called
            at every sampler step, and has little to learn), else the architecture's defaults.
        denoiser: training of the denoiser.
        variance: whether the denoiser also learns the residual's variance.
        informed: whether the denoiser is told the forecast besides the previous state; see `LearnedTransition`.
        patch: size of random patches of the grid to train on; None = the whole grid.
        steps: predictor calls of one step of the transition.
        stored: states kept for the prior.
    """

    simulation: Simulation = Simulation()
    held_out: float = 0.1
    architecture: str = "mlp"
    denoiser_architecture: str | None = None
    forecast_network: Mapping[str, Any] | None = None
    forecast: FitSettings = FitSettings(steps=6000, batch=2048, learning_rate=3e-3)
    denoiser_network: Mapping[str, Any] | None = None
    denoiser: FitSettings = FitSettings(steps=3000, batch=2048, learning_rate=2e-3, seed=1)
    variance: bool = True
    informed: bool = False
    patch: tuple[int, ...] | None = None
    steps: int = 8
    stored: int = 1024


def fit_transition(
    source: Dynamics | xr.Dataset | Trajectories,
    settings: TransitionFit | None = None,
    *,
    resume: str | os.PathLike[str] | None = None,
    progress: bool = False,
    device: torch.device | str = "cpu",
) -> LearnedTransition:
    """Learn p(x_k | x_{k-1}).

    Args:
        source: a simulator, a Dataset of states over time, or trajectories.
        settings: see `TransitionFit`.
        resume: folder for resume files; a killed run continues from there when it is called again.
        progress: show progress bars.
        device: where to train.

    Returns:
        The transition, with its training record.
    """
    s = settings or TransitionFit()
    data = Trajectories.of(source, s.simulation)
    train, held_out = data.split(s.held_out)
    space, dims = data.space, len(data.space.event_shape)
    state, increment = train.standardisation(), train.increments()
    channels = len(space.channels)

    folder = None if resume is None else FilePath(resume)
    forecast = seeded(
        s.forecast.seed,
        lambda: Forecast(
            sized_network(s.architecture, s.forecast_network, channels, channels), state, increment, dims
        ),
    )
    first = fit(
        _UnitIncrement(forecast), MeanRegression(), _increments(train, increment, s.patch), s.forecast,
        held_out=_increments(held_out, increment, s.patch), progress=progress, name="forecast", device=device,
        resume=None if folder is None else folder / "forecast.safetensors",
    )
    forecast = first.model.forecast
    scale = residual_std(forecast, held_out, device=device)
    path = Interpolant(power=1, scale=scale, grid_dims=dims - 1)
    outputs = channels * (2 if s.variance else 1)
    architecture = s.denoiser_architecture or s.architecture
    small = {"width": 64} if architecture == "mlp" else None
    denoiser = seeded(
        s.denoiser.seed,
        lambda: EDMDenoiser(
            sized_network(
                architecture,
                s.denoiser_network or small,
                channels,
                outputs,
                context=channels * (2 if s.informed else 1),
                noise=True,
            ),
            event_dims=dims,
            variance=s.variance,
        ),
    )
    second = fit(
        denoiser, Denoising(OfPath(replace(path, scale=1.0))), _residuals(train, forecast, path, s), s.denoiser,
        held_out=_residuals(held_out, forecast, path, s), progress=progress, name="denoiser", device=device,
        resume=None if folder is None else folder / "denoiser.safetensors",
    )
    rng = torch.Generator().manual_seed(s.denoiser.seed)
    stored, _ = train.windows(s.stored, 1, rng)
    return LearnedTransition(
        space=space,
        dt=data.dt,
        forecast=forecast.cpu(),
        denoiser=second.model.cpu(),
        path=path,
        states=stored[:, 0].clone(),
        sampler=Ancestral(variance="clean" if s.variance else "upper"),
        steps=s.steps,
        informed=s.informed,
        data=data.described(s.held_out),
        record={"settings": repr(s), "forecast": first.record, "denoiser": second.record},
    )


def residual_std(forecast: Forecast, data: Trajectories, *, device: torch.device | str = "cpu") -> tuple[float, ...]:
    """Standard deviation of `x_k - f(x_{k-1})` about zero, one number a channel, over all steps of the data."""
    total = count = torch.zeros(len(data.space.channels), dtype=torch.float64, device=device)
    axes = (0, *range(2, 1 + len(data.space.event_shape)))
    starts = data.starts(2)
    valid = data.valid
    for k in range(0, len(starts), 64):
        before = data.states[:, starts[k : k + 64]].flatten(0, 1).to(device)
        after = data.states[:, starts[k : k + 64] + 1].flatten(0, 1).to(device)
        with torch.no_grad():
            error = (after - forecast(before)).double()
        weight = torch.ones_like(error) if valid is None else valid.to(error).expand_as(error)
        total = total + (weight * error.square()).sum(axes)
        count = count + weight.sum(axes)
    return tuple(torch.sqrt(total / count).tolist())


class _UnitIncrement(nn.Module):
    """A forecast seen as the regression of its unit increment on the previous state."""

    def __init__(self, forecast: Forecast) -> None:
        super().__init__()
        self.forecast = forecast

    def forward(self, x: Tensor) -> Tensor:
        """The unit increment after state `x`."""
        return self.forecast.unit_increment(x)


def _increments(data: Trajectories, increment: Standardisation, patch: tuple[int, ...] | None) -> Draw:
    """Previous states and the unit increments that follow them."""

    def draw(count: int, rng: torch.Generator) -> Batch:
        pair, weight = data.windows(count, 2, rng, patch=patch)
        return Batch(increment.encode(pair[:, 1] - pair[:, 0]), condition=pair[:, 0], weight=weight)

    return draw


def _residuals(data: Trajectories, forecast: Forecast, path: Interpolant, s: TransitionFit) -> Draw:
    """What the denoiser is told, and the unit residuals of the forecasts."""

    def draw(count: int, rng: torch.Generator) -> Batch:
        pair, weight = data.windows(count, 2, rng, patch=s.patch)
        device = next(forecast.parameters()).device
        before, after = pair[:, 0].to(device), pair[:, 1].to(device)
        with torch.no_grad():
            ahead = forecast(before)
            residual = (after - ahead) / path.spread(after)
        if weight is not None:
            residual = residual * weight.to(device)
        known = forecast.standardisation.encode(before)
        if s.informed:
            known = torch.cat([known, forecast.standardisation.encode(ahead)], 1)
        return Batch(residual, condition=known, weight=weight)

    return draw
