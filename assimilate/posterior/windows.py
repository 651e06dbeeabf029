"""Trajectories from a prior over short windows: the composition of score-based data assimilation.

A Markov trajectory `x_1..K` is judged window by window. A predictor of windows of `2k + 1` states gives the clean mean
of every state from the window that has it in the centre; the first and last k states take theirs from the first and
the last window. The composed score is that of a chain in which a noisy state depends on no noisy state further than k
steps away, so its error falls as k grows.

Shapes: windows `(*b, 2k + 1, *event)`, trajectories `(*b, K, *event)`, both with the window's time as first event dim.

References:
    Rozet, Louppe (2023), Score-based data assimilation, https://arxiv.org/abs/2306.10574
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from assimilate.posterior.paths import Path
from assimilate.posterior.predictors import Clean, Context, Predictor
from dynamics.space import Space


@dataclass(frozen=True)
class ComposedPredictor:
    """A predictor of trajectories of any length K >= 2k + 1 from a predictor of windows.

    Args:
        window: predictor of windows, `(*b, 2k + 1, *event)`.
        order: k.
        event_dims: trailing dims of one state.
        bound: clean means are cut at this absolute value, model coordinates; None = never. Far from its data a network
            extrapolates, and a sample that is once there does not come back; images are cut at their range likewise.
    """

    window: Predictor
    order: int
    event_dims: int
    bound: float | None = None

    def __call__(self, x: Tensor, t: Tensor, context: Context) -> Clean:
        """See `Predictor`; `t` is zero-dimensional."""
        axis = x.ndim - self.event_dims - 1
        length, size = x.shape[axis], 2 * self.order + 1
        if length < size:
            raise ValueError(f"the trajectory has {length} states; a prior of order {self.order} needs at least {size}")
        windows = x.unfold(axis, size, 1).movedim(-1, axis + 1)
        means = self.window(windows, t, context).mean
        first, last = means.select(axis, 0), means.select(axis, length - size)
        parts = [
            first.narrow(axis, 0, self.order),
            means.select(axis + 1, self.order),
            last.narrow(axis, self.order + 1, self.order),
        ]
        mean = torch.cat(parts, axis)
        return Clean(mean if self.bound is None else mean.clamp(-self.bound, self.bound))


@dataclass(frozen=True, eq=False)
class WindowPrior:
    """A prior over windows of consecutive states, trained or exact.

    Args:
        space: what a state is.
        dt: time between the states of a window.
        order: k; a window has `2k + 1` states.
        path: the Gaussian path of `predictor`.
        predictor: of windows, in model coordinates.
        mean: model coordinates are `(x - mean) / std`; broadcastable against an event.
        std: see `mean`.
        record: how it was trained and what was measured.
        bound: see `ComposedPredictor`.
    """

    space: Space
    dt: float
    order: int
    path: Path
    predictor: Predictor = field(repr=False)
    mean: Tensor = field(repr=False)
    std: Tensor = field(repr=False)
    record: dict | None = field(default=None, repr=False)
    bound: float | None = None

    @property
    def event_dims(self) -> int:
        """Trailing dims of one state."""
        return len(self.space.event_shape)

    def encode(self, x: Tensor) -> Tensor:
        """Space units to model coordinates."""
        return (x - self.mean.to(x)) / self.std.to(x)

    def decode(self, u: Tensor) -> Tensor:
        """Model coordinates to Space units."""
        return u * self.std.to(u) + self.mean.to(u)

    def trajectories(self) -> ComposedPredictor:
        """The predictor of whole trajectories."""
        return ComposedPredictor(self.predictor, self.order, self.event_dims, self.bound)
