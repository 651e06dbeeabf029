r"""A regression forecast as a `Dynamics`: the mean of the next state, given the newest states.

    x_k = x_{k-1} + mean + std network((x_{k-1} - m) / s, past)

It has no noise: a step always gives the mean. That is what a neural operator is as a forecaster, and what FNO-DA and
Transolver-DA correct by observations (`assimilate.baselines.corrected_forecast`).

The past are `frames - 1` states before x_{k-1}, newest first. They enter the network as its context, each with a
channel that says whether it is known (1) or not (0, and zeros in its place), so that a forecast can start from one
state alone.

Shapes: states `(*b, *event)`, event `(channel, *grid)`; the past `(*b, h, *event)`.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass, field, replace
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn
from torch.nn import functional

from assimilate.baselines.base import without_no_data
from assimilate.learning.checkpoint import Checkpoint
from assimilate.learning.samples import Standardisation, redrawn
from dynamics import Rng, Space


@runtime_checkable
class PastForecast(Protocol):
    """A capability of dynamics that forecast from several past states."""

    @property
    def frames(self) -> int:
        """How many, the newest included."""
        ...

    def next_state(self, x: Tensor, time: float, past: Tensor) -> Tensor:
        """The forecast from states `x` `(*b, *event)` at `time` and those before, `(*b, h, *event)`, newest first."""
        ...


class MeanForecast(nn.Module):
    """The regressed mean of the next state from one or several states.

    Args:
        network: called as `network(x, level, context)`; see `context_channels` for the size of its context.
        standardisation: of the states.
        increments: of the difference of consecutive states; the network's outputs are of order one.
        event_dims: dims of one event.
        frames: states that it looks at, the newest included.
    """

    def __init__(
        self,
        network: nn.Module,
        standardisation: Standardisation,
        increments: Standardisation,
        event_dims: int,
        frames: int = 1,
    ) -> None:
        super().__init__()
        self.network = network
        self.standardisation = standardisation
        self.increments = increments
        self.event_dims = event_dims
        self.frames = frames
        self.leveled = bool(getattr(network.settings, "noise_features", 0))

    def encoded(
        self, x: Tensor, past: Tensor | None = None, known: Tensor | None = None
    ) -> tuple[Tensor, Tensor | None]:
        """What the network sees.

        Args:
            x: newest states, `(*b, *event)`.
            past: states before them, newest first, `(*b, h, *event)`; those beyond `frames - 1` are not looked at.
                h = 0 or None where nothing is known.
            known: `(*b, h)`, which of the past are known; None: all that are given.

        Returns:
            The standardised state and, for `frames > 1`, the context `(*b, (frames - 1) (channel + 1), *grid)`: each
            past state, standardised, and its flag.
        """
        state, axis = self.standardisation.encode(x), -self.event_dims
        if self.frames == 1:
            return state, None
        if past is None:
            past = x.unsqueeze(axis - 1).narrow(axis - 1, 0, 0)
        past = past.narrow(axis - 1, 0, min(self.frames - 1, past.shape[axis - 1]))
        standard = self.standardisation.encode(past)
        flagged = torch.cat([standard, torch.ones_like(standard.narrow(axis, 0, 1))], axis)
        if known is not None:
            known = known[..., : past.shape[axis - 1]]
            flagged = flagged * known.reshape(*known.shape, *(1,) * self.event_dims).to(flagged)
        missing = self.frames - 1 - past.shape[axis - 1]
        filled = functional.pad(flagged, (*(0, 0) * self.event_dims, 0, missing))
        return state, filled.flatten(axis - 1, axis)

    def increment_of(self, state: Tensor, context: Tensor | None) -> Tensor:
        """The unit increment from what `encoded` gives, `(B, *event)`."""
        # A U-Net always takes a noise level; a forecast has none to give.
        level = state.new_zeros(len(state)) if self.leveled else None
        return self.network(state, level, context)

    def forward(self, x: Tensor, past: Tensor | None = None, known: Tensor | None = None) -> Tensor:
        """The mean of the next state, Space units.

        Args:
            x: `(*b, *event)`.
            past: `(*b, h, *event)`, newest first; see `encoded`.
            known: `(*b, h)`; see `encoded`.
        """
        event = x.shape[x.ndim - self.event_dims :]
        state, context = self.encoded(x, past, known)
        # The network computes in its own precision, whatever that of the states.
        kind = next(self.network.parameters()).dtype
        flat = state.reshape(-1, *event).to(kind)
        seen = None if context is None else context.reshape(len(flat), -1, *event[1:]).to(kind)
        increment = self.increment_of(flat, seen).to(x.dtype).reshape(x.shape)
        return x + self.increments.decode(increment)


def context_channels(frames: int, channels: int) -> int:
    """Channels of the context of a forecast from so many states of so many channels."""
    return (frames - 1) * (channels + 1)


@dataclass(frozen=True, eq=False)
class RegressionForecast:
    """A regression forecast as a `Dynamics` without noise; see the module docstring.

    Args:
        space: what a state is.
        dt: time between states, in the units of the time axis.
        forecast: the regressed mean.
        states: stored states `(n, *event)` from which `prior` draws.
        std: standard deviation of `x_k - f(x_{k-1}, past)` about zero, one number a channel, Space units, measured on
            held-out steps from true states: how good the forecast is at its best.
        data: what it was trained on.
        record: how it was trained.
    """

    space: Space
    dt: float
    forecast: MeanForecast = field(repr=False)
    states: Tensor = field(repr=False)
    std: tuple[float, ...]
    data: dict[str, Any] = field(default_factory=dict, repr=False)
    record: dict[str, Any] = field(default_factory=dict, repr=False)

    @property
    def frames(self) -> int:
        """States that the forecast looks at, the newest included."""
        return self.forecast.frames

    def prior(
        self,
        shape: tuple[int, ...],
        *,
        rng: Rng,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ) -> Tensor:
        """Stored states drawn with replacement, `(*shape, *event)`."""
        return redrawn(self.states, shape, rng=rng, dtype=dtype, device=device)

    def step(self, x: Tensor, time: float, *, rng: Rng | None) -> Tensor:
        """The forecast from one state whose past is unknown; nothing is drawn, with or without `rng`."""
        return self.next_state(x, time)

    def next_state(self, x: Tensor, time: float, past: Tensor | None = None) -> Tensor:
        """The forecast from `x` `(*b, *event)` and the states before it, `(*b, h, *event)`, newest first."""
        with torch.no_grad():
            return without_no_data(self.forecast(x, past), self.space)

    def to(self, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> RegressionForecast:
        """A copy on another device or in another precision."""
        return replace(
            self,
            forecast=copy.deepcopy(self.forecast).to(device=device, dtype=dtype),
            states=self.states.to(device=device, dtype=dtype),
        )

    def to_checkpoint(self) -> Checkpoint:
        """What a file holds of it."""
        constants = {
            "dt": self.dt,
            "frames": self.frames,
            "std": list(self.std),
            "state": _numbers(self.forecast.standardisation),
            "increment": _numbers(self.forecast.increments),
        }
        return Checkpoint(
            kind="forecast",
            networks={"forecast": self.forecast.network},
            tensors={"states": self.states},
            space=self.space,
            constants=constants,
            data=self.data,
            record=self.record,
        )

    @classmethod
    def from_checkpoint(cls, checkpoint: Checkpoint) -> RegressionForecast:
        """The forecast that a file holds."""
        c, space = checkpoint.constants, checkpoint.space
        assert space is not None
        dims = len(space.event_shape)
        state, increment = (Standardisation(**c[name], grid_dims=dims - 1) for name in ("state", "increment"))
        forecast = MeanForecast(checkpoint.networks["forecast"], state, increment, dims, c["frames"])
        return cls(
            space=space,
            dt=c["dt"],
            forecast=forecast.eval(),
            states=checkpoint.tensors["states"],
            std=tuple(c["std"]),
            data=checkpoint.data,
            record=checkpoint.record,
        )


def regression_forecast(checkpoint: Checkpoint) -> RegressionForecast:
    """The forecast that a file holds."""
    return RegressionForecast.from_checkpoint(checkpoint)


def _numbers(standardisation: Standardisation) -> dict[str, list[float]]:
    return {"mean": list(standardisation.mean), "std": list(standardisation.std)}
