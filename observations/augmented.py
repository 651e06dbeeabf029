"""What is observed of an augmented state: an operator on the model's own state, taken to states with parameters.

    y = H(s),    x = (s, u)

`observing(operator, augmented)` has the values, places and no-data flags of the operator and looks at no parameter.
Operators on the larger Space, such as `Select(augmented.space, ["x"])`, need nothing of this.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from dynamics.augmented import Augmented
from dynamics.errors import SpaceMismatch
from observations.base import LinearOperator, ObservationOperator, SpaceOrShape


@dataclass(frozen=True, eq=False)
class OfState(ObservationOperator):
    """An operator on the model's part of an augmented state; make it with `observing`.

    Args:
        operator: H, on the model's state.
        augmented: the system with its parameters.

    Raises:
        SpaceMismatch: the operator is of other states.
    """

    operator: ObservationOperator
    augmented: Augmented

    def __post_init__(self) -> None:
        """Check that the operator sees the model's states."""
        expected = self.augmented.dynamics.space.event_shape
        if self.operator.event_shape != expected:
            raise SpaceMismatch(
                f"{self.operator!r} observes states {self.operator.event_shape}; those of the model are {expected}"
            )

    @property
    def space(self) -> SpaceOrShape:  # type: ignore[override]
        """The Space of state and parameters."""
        return self.augmented.space

    def forward(self, x: Tensor) -> Tensor:
        """H of the model's part."""
        return self.operator.forward(self.augmented.state(x))

    @property
    def positions(self) -> Tensor | None:
        """Those of the operator: the grid is the same."""
        return self.operator.positions

    @property
    def available(self) -> Tensor | None:
        """That of the operator."""
        return self.operator.available

    def __repr__(self) -> str:
        return f"observing({self.operator!r}, parameters {[one.name for one in self.augmented.parameters]})"


class LinearOfState(OfState, LinearOperator):
    """A linear operator on the model's part."""

    def adjoint(self, y: Tensor) -> Tensor:
        """H* y, and 0 for the parameters."""
        assert isinstance(self.operator, LinearOperator)
        state = self.operator.adjoint(y)
        axis = state.ndim - len(self.operator.event_shape)
        like = state.narrow(axis, 0, 1)
        return torch.cat([state, *[torch.zeros_like(like)] * len(self.augmented.parameters)], axis)


def observing(operator: ObservationOperator, augmented: Augmented) -> ObservationOperator:
    """An operator on the model's states as one on states with parameters; one of the latter is returned as it is.

    Args:
        operator: on the model's Space (or on that of the augmented system).
        augmented: the system with its parameters.

    Returns:
        A `LinearOperator` if `operator` is one.

    Raises:
        SpaceMismatch: the operator is of other states.
    """
    if operator.event_shape == augmented.space.event_shape:
        return operator
    kind = LinearOfState if isinstance(operator, LinearOperator) else OfState
    return kind(operator, augmented)
