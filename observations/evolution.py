r"""What is seen later: a model runs from the state, then an instrument looks.

    y = H( M(... M(x)) ) + noise,     `steps` deterministic steps M of a `Dynamics`, then the operator H

The unknown is the state at the start: finding an initial vorticity from a later snapshot is this operator's inverse
problem, and strong-constraint 4D-Var is a stack of them. Derivatives go through the model.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from dynamics.base import Dynamics
from dynamics.errors import SpaceMismatch
from dynamics.settings import ANY, check_settings, whole
from dynamics.space import Space
from observations.base import ObservationOperator
from observations.sampling import Identity


@dataclass(frozen=True, eq=False)
class Evolved(ObservationOperator):
    """An operator on the state `steps` model steps later, `(*b, *event)` -> `(*b, *obs)` of `inner`.

    Args:
        dynamics: the model; its `step` must take `rng=None` (the deterministic part) and be differentiable.
        steps: number of steps of `dynamics.dt`, at least 0.
        inner: operator on the evolved state (None: the state itself).
        start: time of the initial state, in the model's unit; only a model that depends on time looks at it.
        recompute: keep the states between steps only, and run each step again for its derivative. A gradient then
            needs the memory of one step instead of all, for one more run of the model.

    Raises:
        ValueError: a negative number of steps.
        SpaceMismatch: `inner` looks at events of another shape.
    """

    dynamics: Dynamics
    steps: int
    inner: ObservationOperator = None  # type: ignore[assignment]
    start: float = 0.0
    recompute: bool = False

    def __post_init__(self) -> None:
        """Put the identity for a missing inner operator and check that it fits."""
        check_settings(self, steps=whole(0), start=ANY)
        if self.inner is None:
            object.__setattr__(self, "inner", Identity(self.dynamics.space))
        event = self.dynamics.space.event_shape
        if self.inner.event_shape != event:
            raise SpaceMismatch(f"{self.inner!r} looks at events {self.inner.event_shape}; the model has {event}")

    @property
    def space(self) -> Space:  # type: ignore[override]
        """The Space of the model."""
        return self.dynamics.space

    def evolve(self, x: Tensor) -> Tensor:
        """The state after `steps` steps, `(*b, *event)`."""
        for k in range(self.steps):
            time = self.start + k * self.dynamics.dt

            def step(state: Tensor, time: float = time) -> Tensor:
                return self.dynamics.step(state, time, rng=None)

            x = _Recomputed.apply(x, step) if self.recompute else step(x)
        return x

    def forward(self, x: Tensor) -> Tensor:
        """inner(evolved state)."""
        return self.inner.forward(self.evolve(x))

    def carry(self, positions: Tensor) -> Tensor | None:
        """Places of what `inner` sees: those at the later time, not where the flow took them from."""
        return self.inner.carry(positions)

    @property
    def positions(self) -> Tensor | None:
        """The places of the values of `inner`."""
        return self.inner.positions

    @property
    def available(self) -> Tensor | None:
        """What `inner` says."""
        return self.inner.available

    def __repr__(self) -> str:
        inner = "" if isinstance(self.inner, Identity) else f", {self.inner!r}"
        return f"Evolved({self.dynamics!r}, {self.steps}{inner})"


class _Recomputed(torch.autograd.Function):
    """A step that remembers its input only; works in reverse mode, in forward mode, and under `torch.func`."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, step: Callable[[Tensor], Tensor]) -> Tensor:
        """The step, without a graph."""
        return step(x)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Callable[[Tensor], Tensor]], output: Tensor) -> None:
        """Keep the input."""
        x, ctx.step = inputs
        ctx.save_for_backward(x)
        ctx.save_for_forward(x)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:  # type: ignore[override]
        """Transposed Jacobian times `gradient`, by another run of the step."""
        (x,) = ctx.saved_tensors
        return torch.func.vjp(ctx.step, x)[1](gradient)[0], None

    @staticmethod
    def jvp(ctx: Any, tangent: Tensor, _: None) -> Tensor:  # type: ignore[override]
        """Jacobian times `tangent`."""
        (x,) = ctx.saved_tensors
        return torch.func.jvp(ctx.step, (x,), (tangent,))[1]
