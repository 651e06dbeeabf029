r"""`fit_forecast`: from a simulator or one's own data to a regression forecast.

    loss = E | network(x_{k-1}, past) - (x_k - x_{k-1} - mean) / std |^2

over windows of `frames + 1` consecutive states. In a share of the windows only the newest few states are known, so that
the forecast also runs from one state alone, as it must at the start of an assimilation. After training, the standard
deviation of the residual is measured on held-out windows.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path as FilePath
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from assimilate.learning.fit import Draw, FitSettings, fit, seeded
from assimilate.learning.forecast import MeanForecast, RegressionForecast, context_channels
from assimilate.learning.networks import sized_network
from assimilate.learning.objectives import Batch, MeanRegression
from assimilate.learning.samples import Simulation, Trajectories
from dynamics import Dynamics
from dynamics.random import uniform
from dynamics.settings import COUNT, FRACTION, check_settings, number, several

if TYPE_CHECKING:
    import xarray as xr

MEASURED_NUMBERS = 4_000_000
"""About so many numbers measure the residual at most: a standard deviation of independent ones is known to 0.04 %."""


@dataclass(frozen=True)
class ForecastFit:
    """Settings of `fit_forecast`.

    Args:
        simulation: how data are made, if a simulator is given.
        held_out: share of the data that training does not see.
        architecture: "fno" or "transolver" for fields on a two-dimensional grid, "unet", "mlp" for states without grid.
        network: settings of the network, less its sizes; None = the architecture's defaults.
        training: steps, batch and so on.
        frames: states that the forecast looks at, the newest included; FlowDAS's Navier-Stokes runs have 10.
        drop: share of the windows in which the past is cut after a random number of states.
        patch: size of random patches of the grid to train on; None = the whole grid.
        stored: states kept for the prior.

    Raises:
        ValueError: no frame, or a share outside [0, 1].
    """

    simulation: Simulation = Simulation()
    held_out: float = 0.1
    architecture: str = "fno"
    network: Mapping[str, Any] | None = None
    training: FitSettings = FitSettings(
        steps=8000, batch=16, learning_rate=2e-3, warmup=300, held_out_batch=64, ema=0.999
    )
    frames: int = 1
    drop: float = 0.1
    patch: tuple[int, ...] | None = None
    stored: int = 256

    def __post_init__(self) -> None:
        """Check the settings that no other class checks."""
        check_settings(self, frames=COUNT, drop=FRACTION, held_out=number(0, below=1), stored=COUNT)
        check_settings(self, patch=several(COUNT, none=True))


def fit_forecast(
    source: Dynamics | xr.Dataset | Trajectories,
    settings: ForecastFit | None = None,
    *,
    resume: str | os.PathLike[str] | None = None,
    progress: bool = False,
    device: torch.device | str = "cpu",
) -> RegressionForecast:
    """Learn E[x_k | x_{k-1}, past].

    Args:
        source: a simulator, a Dataset of states over time, or trajectories.
        settings: see `ForecastFit`.
        resume: folder for resume files; a killed run continues from there when it is called again.
        progress: show a progress bar.
        device: where to train.

    Returns:
        The forecast, with its training record.

    Raises:
        ValueError: an architecture for grids, and states that have none.
    """
    s = settings or ForecastFit()
    data = Trajectories.of(source, s.simulation)
    space, dims = data.space, len(data.space.event_shape)
    # An architecture of one's own knows for itself what it takes.
    if dims != {"mlp": 1, "fno": 3, "transolver": 3, "unet": 3}.get(s.architecture, dims):
        raise ValueError(
            f"architecture is {s.architecture!r}, and a state has shape {space.event_shape}: 'fno', 'transolver' and "
            "'unet' are for (channel, rows, columns), 'mlp' for (channel,)"
        )
    train, held_out = data.split(s.held_out)
    state, increment = train.standardisation(), train.increments()
    channels = len(space.channels)

    def build() -> MeanForecast:
        context = context_channels(s.frames, channels)
        network = sized_network(s.architecture, s.network, channels, channels, context=context)
        return MeanForecast(network, state, increment, dims, s.frames)

    forecast = seeded(s.training.seed, build)
    fitted = fit(
        _Regressed(forecast), MeanRegression(), _windows(train, forecast, s), s.training,
        held_out=_windows(held_out, forecast, s), progress=progress, name="forecast", device=device,
        resume=None if resume is None else FilePath(resume) / "forecast.safetensors",
    )
    forecast = fitted.model.forecast
    std = residual_std(forecast, held_out)
    stored, _ = train.windows(s.stored, 1, torch.Generator().manual_seed(s.training.seed))
    return RegressionForecast(
        space=space,
        dt=data.dt,
        forecast=forecast.cpu(),
        states=stored[:, 0].clone(),
        std=std,
        data=data.described(s.held_out),
        record={"settings": repr(s), "forecast": fitted.record, "increment_std": list(increment.std)},
    )


def residual_std(forecast: MeanForecast, data: Trajectories, *, seed: int = 0) -> tuple[float, ...]:
    """Standard deviation of `x_k - f(x_{k-1}, past)` about zero, one number a channel.

    Args:
        forecast: f, given its whole past.
        data: not seen in training.
        seed: of the windows that are drawn where not all are used.
    """
    device, event = next(forecast.parameters()).device, data.space.event_shape
    axes = (0, *range(2, 1 + len(event)))
    total = count = torch.zeros(event[0], dtype=torch.float64, device=device)
    for found, weight in _measured(data, forecast.frames + 1, seed):
        x, past, after = (part.to(device) for part in split_window(found))
        with torch.no_grad():
            error = (after - forecast(x, past)).double()
        kept = torch.ones_like(error) if weight is None else weight.to(error).expand_as(error)
        total = total + (kept * error.square()).sum(axes)
        count = count + kept.sum(axes)
    return tuple(torch.sqrt(total / count).tolist())


def _measured(data: Trajectories, length: int, seed: int) -> Iterator[tuple[Tensor, Tensor | None]]:
    """All windows of data in memory, or random ones where these are more than enough; with their weights."""
    size, starts = math.prod(data.space.event_shape), data.starts(length)
    # At least 64 windows, however large a state is, and as many at a time as memory likes.
    chunk = max(64, min(4096, 65536 // size))
    if isinstance(data, Trajectories) and len(data.states) * len(starts) * size <= MEASURED_NUMBERS:
        for some in starts.split(max(1, chunk // len(data.states))):
            yield data.states[:, some[:, None] + torch.arange(length)].flatten(0, 1), data.valid
        return
    rng = torch.Generator().manual_seed(seed)
    for _ in range(max(1, MEASURED_NUMBERS // (chunk * size))):
        yield data.windows(chunk, length, rng)


def split_window(found: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The newest known state, those before it (newest first) and the state to forecast of windows `(n, k, *event)`."""
    return found[:, -2], found[:, :-2].flip(1), found[:, -1]


class _Regressed(nn.Module):
    """A forecast seen as the regression of its unit increment on one tensor: the state, then its context."""

    def __init__(self, forecast: MeanForecast) -> None:
        super().__init__()
        self.forecast = forecast

    def forward(self, entered: Tensor) -> Tensor:
        """The unit increment after what `_windows` gives."""
        channels = len(self.forecast.increments.std)
        context = entered[:, channels:] if self.forecast.frames > 1 else None
        return self.forecast.increment_of(entered[:, :channels], context)


def _windows(data: Trajectories, forecast: MeanForecast, s: ForecastFit) -> Draw:
    """What the network sees of random windows, and the unit increments that follow."""

    def draw(count: int, rng: torch.Generator) -> Batch:
        found, weight = data.windows(count, s.frames + 1, rng, patch=s.patch)
        x, past, after = split_window(found)
        state, context = forecast.encoded(x, past, known_past(count, s.frames, s.drop, rng))
        told = state if context is None else torch.cat([state, context], 1)
        return Batch(forecast.increments.encode(after - x), condition=told, weight=weight)

    return draw


def known_past(count: int, frames: int, drop: float, rng: torch.Generator) -> Tensor:
    """Which of the `frames - 1` past states are known, `(count, frames - 1)`: all, or in a share `drop` any number.

    The unknown ones are the oldest, as at the start of an assimilation.
    """
    if frames == 1:
        return torch.ones(count, 0, dtype=torch.bool)
    cut = torch.randint(frames, (count,), generator=rng)
    cut = torch.where(uniform(rng, (count,)) < drop, cut, frames - 1)
    return torch.arange(frames - 1) < cut[:, None]
