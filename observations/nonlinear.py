"""Non-linear operators: the saturating arctan of FlowDAS, and any function of the user's.

    y = arctan((x_c - center) / scale)

References:
    Chen et al. (2025), FlowDAS, https://arxiv.org/abs/2501.16642 (arctan of the normalised first Lorenz-63 component)
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from dynamics.settings import ANY, POSITIVE, check_settings, one_or_several
from observations.base import ObservationOperator, SpaceOrShape, space_name
from observations.sampling import Select, channel_indices


@dataclass(frozen=True, eq=False)
class Arctan(ObservationOperator):
    """The arctan of scaled channels, `(*b, channel, *grid)` -> `(*b, len(channels), *grid)`.

    Args:
        space: Space of the state, or its event shape.
        channels: index or name of the channel, or several (default: all).
        center: value that maps to 0, in the units of the state; a number or one for each chosen channel.
        scale: departure from `center` that maps to pi/4, in the units of the state; likewise.
    """

    space: SpaceOrShape
    channels: Any = None
    center: float | tuple[float, ...] = 0.0
    scale: float | tuple[float, ...] = 1.0

    def __post_init__(self) -> None:
        """Turn names into indices, numbers into one per channel."""
        check_settings(self, center=one_or_several(ANY), scale=one_or_several(POSITIVE))
        every = range(self.event_shape[0]) if self.channels is None else self.channels
        channels = channel_indices(self.space, every)
        object.__setattr__(self, "channels", channels)
        column = (len(channels),) + (1,) * (len(self.event_shape) - 1)
        for name in ("center", "scale"):
            given = getattr(self, name)
            values = (float(given),) if isinstance(given, int | float) else tuple(map(float, given))
            if len(values) not in (1, len(channels)):
                raise ValueError(
                    f"{name} has {len(values)} values; expected 1 or {len(channels)}, one for each channel"
                )
            full = torch.tensor(values, dtype=torch.float64).expand(len(channels)).reshape(column)
            object.__setattr__(self, f"{name}_column", full)

    def forward(self, x: Tensor) -> Tensor:
        """arctan((x - center) / scale)."""
        chosen = x
        if self.channels != tuple(range(self.event_shape[0])):
            chosen = self._select.forward(x)
        return torch.arctan((chosen - self.on("center_column", x)) / self.on("scale_column", x))

    def carry(self, positions: Tensor) -> Tensor:
        """Places of the chosen channels."""
        return self._select.carry(positions)

    @property
    def available(self) -> Tensor | None:
        """False at no-data cells."""
        return self._select.available

    @property
    def _select(self) -> Select:
        if "select" not in self.__dict__:
            object.__setattr__(self, "select", Select(self.space, self.channels))
        return self.__dict__["select"]

    def __repr__(self) -> str:
        return f"Arctan({space_name(self.space)}, {list(self.channels)}, center={self.center}, scale={self.scale})"


@dataclass(frozen=True, eq=False)
class Function(ObservationOperator):
    """Any differentiable function of the state, `(*b, *event)` -> `(*b, *obs)`.

    Args:
        space: Space of the state, or its event shape.
        function: a callable on tensors that treats every row alone, or its name "module:function".
        pointwise: each value of the result belongs to the same value of the state (so it has its place).
    """

    space: SpaceOrShape
    function: Callable[[Tensor], Tensor] | str
    pointwise: bool = False

    def __post_init__(self) -> None:
        """Import a function given by name."""
        call = load_object(self.function) if isinstance(self.function, str) else self.function
        object.__setattr__(self, "call", call)

    def forward(self, x: Tensor) -> Tensor:
        """function(x)."""
        return self.call(x)  # type: ignore[attr-defined]

    def carry(self, positions: Tensor) -> Tensor | None:
        """The same places for a pointwise function, else none."""
        return positions if self.pointwise else None

    def __repr__(self) -> str:
        name = self.function if isinstance(self.function, str) else getattr(self.function, "__name__", self.function)
        return f"Function({space_name(self.space)}, {name})"


def load_object(name: str) -> Any:
    """The object called "module:name".

    Raises:
        ValueError: the text has no colon, the module cannot be imported or has no such object.
    """
    module, separator, attribute = name.partition(":")
    if not separator:
        raise ValueError(f"{name!r}: expected 'module:function'")
    try:
        return getattr(importlib.import_module(module), attribute)
    except ImportError as error:
        raise ValueError(f"{name!r}: the module {module!r} cannot be imported ({error})") from error
    except AttributeError as error:
        raise ValueError(f"{name!r}: the module {module!r} has no {attribute!r}") from error
