"""What a dynamical system is, and how to run one.

    x_k ~ p(x_k | x_{k-1}),    x_0 ~ prior,    one step lasts dt

Everything accepts any leading dims `(*b, *event)`, event = `(channel, *grid)`, in the units of the system's Space.
A system whose transition density is known in closed form also is a `TransitionDensity`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol, runtime_checkable

import numpy as np
import torch
from torch import Tensor

from dynamics.covariance import Covariance
from dynamics.random import Rng, Streams
from dynamics.space import Space

if TYPE_CHECKING:
    import xarray as xr


@runtime_checkable
class Dynamics(Protocol):
    """A stochastic system with a step of fixed length; `check_dynamics` tells whether an object is one.

    Attributes:
        space: what a state is.
        dt: length of a step, in the units of the time axis.
    """

    @property
    def space(self) -> Space:
        """What a state is."""
        ...

    @property
    def dt(self) -> float:
        """Length of a step, in the units of the time axis."""
        ...

    def prior(
        self,
        shape: tuple[int, ...],
        *,
        rng: Rng,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ) -> Tensor:
        """States drawn before anything is known.

        Args:
            shape: leading dims, `(n,)` or `(experiment, member)`.
            rng: source of random numbers.
            dtype: float32 or float64.
            device: where the states live.

        Returns:
            Tensor `(*shape, *event)`.
        """
        ...

    def step(self, x: Tensor, time: float, *, rng: Rng | None) -> Tensor:
        """One step from `time` to `time + dt`, noise drawn inside.

        Args:
            x: states `(*b, *event)`.
            time: time of `x`.
            rng: source of random numbers; None for the deterministic part alone.

        Returns:
            States `(*b, *event)`.
        """
        ...


@runtime_checkable
class TransitionDensity(Protocol):
    """A declared capability: the density of one step is known."""

    def moments(self, x: Tensor, time: float) -> tuple[Tensor, Covariance]:
        """Mean `(*b, *event)` and covariance of the next state given `x`."""
        ...

    def log_prob(self, x_next: Tensor, x: Tensor, time: float) -> Tensor:
        """Log density of `x_next` given `x`, `(*b,)`.

        Raises:
            CapabilityError: the noise is 0 in some component.
        """
        ...


def steps_between(dynamics: Dynamics, start: float, end: float) -> int:
    """The number of steps from `start` to `end`.

    Raises:
        ValueError: `end` is before `start`, or not a whole number of steps away.
    """
    count = (end - start) / dynamics.dt
    whole = round(count)
    if whole < 0 or abs(count - whole) > 1e-4 * max(1.0, abs(count) * 1e-3):
        raise ValueError(
            f"from time {start} to {end} are {count:.6g} steps of dt = {dynamics.dt}; expected a whole number >= 0: "
            "observe at multiples of dt, or build the dynamics with a dt that divides the interval"
        )
    return whole


def advance(dynamics: Dynamics, x: Tensor, start: float, end: float, *, rng: Rng | None) -> Tensor:
    """States at time `end` from states `x` at time `start`.

    Args:
        dynamics: the system.
        x: states `(*b, *event)`.
        start: time of `x`.
        end: time of the result, a whole number of steps later (equal times return `x`).
        rng: source of random numbers; None for the deterministic part.
    """
    for k in range(steps_between(dynamics, start, end)):
        x = dynamics.step(x, start + k * dynamics.dt, rng=rng)
    return x


def simulate(
    dynamics: Dynamics,
    *,
    steps: int,
    trajectories: int,
    seed: int,
    every: int = 1,
    spinup: int = 0,
    initial: Tensor | None = None,
    start: float = 0.0,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
) -> xr.Dataset:
    """Trajectories of a system as a Dataset.

    Args:
        dynamics: the system.
        steps: number of steps after the spin-up; a multiple of `every`.
        trajectories: number of independent trajectories; each has its own random stream, so the first ones are the
            same whatever their number.
        seed: seed of the streams.
        every: states to keep: one in `every`, the first included.
        spinup: steps made and dropped beforehand.
        initial: states `(trajectories, *event)` to start from (default: drawn from the prior).
        start: time of the first state kept.
        dtype: float32 or float64.
        device: where to compute.

    Returns:
        Dataset with dims `(experiment, time, *grid)`, `steps // every + 1` times.

    Raises:
        ValueError: `steps` is not a multiple of `every`, or `initial` has another shape.
        FloatingPointError: a state is no longer finite; the message names the step.
    """
    if steps < 0 or every < 1 or steps % every:
        raise ValueError(f"steps={steps} is not a multiple of every={every}")
    space = dynamics.space
    streams = Streams(seed, experiments=trajectories, members=1)
    if initial is None:
        x = dynamics.prior((trajectories, 1), rng=streams.at(0), dtype=dtype, device=device)
    else:
        if tuple(initial.shape) != (trajectories, *space.event_shape):
            raise ValueError(f"initial has shape {tuple(initial.shape)}; expected {(trajectories, *space.event_shape)}")
        x = initial.to(dtype=dtype, device=device).unsqueeze(1)
    states = []
    with torch.no_grad():
        for k in range(-spinup, steps + 1):
            if k > -spinup:
                x = dynamics.step(x, start + (k - 1) * dynamics.dt, rng=streams.at(spinup + k))
            if k >= 0 and k % every == 0:
                if not bool(torch.isfinite(x).all()):
                    raise FloatingPointError(f"{dynamics!r} is not finite after {spinup + k} steps; take a smaller dt")
                states.append(x[:, 0].cpu())
    times = start + np.arange(0, steps + 1, every) * dynamics.dt
    attrs = {"dynamics": repr(dynamics), "seed": seed, "spinup_steps": spinup, "dt": dynamics.dt}
    return space.to_dataset(torch.stack(states, 1), dims=("experiment", "time"), coords={"time": times}, attrs=attrs)
