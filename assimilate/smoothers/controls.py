r"""A trajectory as a function of what it is made from: its initial state and the noise of every model step.

    x_0,    x_{j+1} = f(x_j) + q_j        control = (x_0, q_0, q_1, ...)

Ensemble smoothers that run the model again move these controls, all with the same weights over members: so a model
that is not perfect is smoothed as well as a perfect one, and a linear Gaussian system exactly. The noise of a draw is
the difference of a noisy step and one without noise, so any `Dynamics` with additive noise will do; for noise that
depends on the state the replay is an approximation. A deterministic model has no noise to keep.

Shapes: x_0 `(E, N, *event)`, noise `(E, N, J, *event)` for J model steps, paths `(E, N, K, *event)` at K times.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from assimilate.filters.base import check_finite
from assimilate.filters.departures import Departures, gaussian_departures
from assimilate.smoothers.base import check_window, count_experiments
from dynamics.base import Dynamics, steps_between
from dynamics.random import Rng
from observations.likelihood import Observation


class Controls(NamedTuple):
    """What a path is made from.

    Attributes:
        start: x_0, `(E, N, *event)`.
        noise: `(E, N, J, *event)`; None where the model has none.
    """

    start: Tensor
    noise: Tensor | None

    def flat(self) -> Tensor:
        """All numbers of a member in one row, `(E, N, n)`."""
        start = self.start.flatten(2)
        return start if self.noise is None else torch.cat([start, self.noise.flatten(2)], -1)

    def rebuilt(self, flat: Tensor) -> Controls:
        """Controls of the same events from rows `(E, M, n)` of any number of members."""
        size, lead = self.start[0, 0].numel(), flat.shape[:2]
        noise = None if self.noise is None else flat[..., size:].reshape(*lead, *self.noise.shape[2:])
        return Controls(flat[..., :size].reshape(*lead, *self.start.shape[2:]), noise)


def draw_start(
    dynamics: Dynamics,
    observations: Sequence[Observation | None],
    times: Sequence[float],
    members: int,
    *,
    rng: Rng,
    initial: Tensor | None,
    method: str,
) -> Tensor:
    """Members `(E, N, *event)` at `times[0]`: the known state, or draws of the dynamics' prior.

    They are in the dtype and on the device of the first observation, else of `initial`, else float32 on the CPU.

    Raises:
        ValueError: the window is not one, there are fewer than two members, or `initial` is no state.
    """
    check_window(observations, times)
    if members < 2:
        raise ValueError(f"the {method} needs at least 2 members; {members} was given")
    like = next((o.y for o in observations if o is not None), initial)
    place = torch.zeros(()) if like is None else like
    experiments = count_experiments(observations, rng, initial)
    event = dynamics.space.event_shape
    if initial is None:
        return dynamics.prior((experiments, members), rng=rng, dtype=place.dtype, device=place.device)
    if tuple(initial.shape[1:]) != event:
        raise ValueError(f"initial has shape {tuple(initial.shape)}; expected (E, *{event})")
    return initial.to(place).unsqueeze(1).expand(-1, members, *event).clone()


def draw_path(
    dynamics: Dynamics, start: Tensor, times: Sequence[float], *, rng: Rng, method: str
) -> tuple[Tensor, Tensor | None]:
    """A path with new model noise.

    Args:
        dynamics: the system.
        start: `(E, N, *event)` at `times[0]`.
        times: K increasing times.
        rng: draws the noise of each step.
        method: name for the error.

    Returns:
        The path `(E, N, K, *event)` and its noise `(E, N, J, *event)`, None if it is 0 throughout.
    """
    states, noises, x = [start], [], start
    noisy = False
    for before, after in zip(times[:-1], times[1:], strict=True):
        for j in range(steps_between(dynamics, before, after)):
            time = before + j * dynamics.dt
            drawn = dynamics.step(x, time, rng=rng)
            noises.append(drawn - dynamics.step(x, time, rng=None))
            noisy = noisy or bool((noises[-1] != 0).any())
            x = drawn
        states.append(check_finite(x, method, after, before, "members after the forecast"))
    return torch.stack(states, 2), torch.stack(noises, 2) if noisy else None


def replay(dynamics: Dynamics, controls: Controls, times: Sequence[float], *, method: str | None) -> Tensor:
    """The path `(E, N, K, *event)` of controls at `times`; see `draw_path`.

    `method` is the name for the error if members do not stay finite; None lets them pass, for trials.
    """
    x, noise = controls
    states, step = [x], 0
    for before, after in zip(times[:-1], times[1:], strict=True):
        for j in range(steps_between(dynamics, before, after)):
            x = dynamics.step(x, before + j * dynamics.dt, rng=None)
            if noise is not None:
                x = x + noise[:, :, step]
            step += 1
        if method is not None:
            check_finite(x, method, after, before, "members after the forecast")
        states.append(x)
    return torch.stack(states, 2)


def join_noise(like: Tensor, first: Tensor | None, steps: int, second: Tensor | None, more: int) -> Tensor | None:
    """The noise of two stretches of `steps` and `more` model steps as one; None stands for no noise at all.

    Args:
        like: a path `(E, N, K, *event)`, for shape, dtype and device.
        first: `(E, N, steps, *event)`, or None.
        steps: model steps of the first stretch.
        second: `(E, N, more, *event)`, or None.
        more: model steps of the second stretch.
    """
    if first is None and second is None:
        return None
    parts = [
        like.new_zeros(*like.shape[:2], count, *like.shape[3:]) if part is None else part
        for part, count in ((first, steps), (second, more))
    ]
    return torch.cat(parts, 2)


def joint_departures(observations: Sequence[Observation | None], path: Tensor, *, method: str) -> Departures | None:
    """The departures of all observations of a window as those of one; None where there is none.

    Args:
        observations: one for each time of the path.
        path: `(E, N, K, *event)`.
        method: name for the error.
    """
    parts = [
        gaussian_departures(observation, path[:, :, k], method=method)
        for k, observation in enumerate(observations)
        if observation is not None
    ]
    if not parts:
        return None
    return Departures(
        torch.cat([p.departure for p in parts], -1),
        torch.cat([p.spread for p in parts], -1),
        torch.cat([p.observed for p in parts], -1),
        torch.stack([p.log_normalizer for p in parts]).sum(0),
    )
