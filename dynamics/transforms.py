"""Pointwise transforms between the units of a Dataset and the units of a tensor.

A skewed, non-negative quantity such as rain is assimilated as u = log(1 + r / scale). A transform is a frozen
dataclass with `forward` (data to tensor) and `inverse` (tensor to data); both act on tensors of any shape.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor

from dynamics.settings import POSITIVE, check_settings


@runtime_checkable
class Transform(Protocol):
    """A pointwise, invertible, increasing map; also a frozen dataclass if it is to be saved with a checkpoint."""

    def forward(self, x: Tensor) -> Tensor:
        """Data units to tensor units."""
        ...

    def inverse(self, u: Tensor) -> Tensor:
        """Tensor units to data units."""
        ...


@dataclass(frozen=True)
class Identity:
    """u = x."""

    def forward(self, x: Tensor) -> Tensor:
        """Return `x`."""
        return x

    def inverse(self, u: Tensor) -> Tensor:
        """Return `u`."""
        return u


@dataclass(frozen=True)
class LogOnePlus:
    """u = log(1 + x / scale), for x > -scale.

    Args:
        scale: the amount at which the transform turns from linear to logarithmic, in the units of the data (> 0).
    """

    scale: float = 1.0

    def __post_init__(self) -> None:
        """Refuse a scale that is not positive."""
        check_settings(self, scale=POSITIVE)

    def forward(self, x: Tensor) -> Tensor:
        """log(1 + x / scale); a negative amount (a sampler's overshoot) stays defined down to -scale."""
        return torch.log1p(x / self.scale)

    def inverse(self, u: Tensor) -> Tensor:
        """The amount scale (exp(u) - 1)."""
        return self.scale * torch.expm1(u)


@dataclass(frozen=True)
class Log:
    """u = log(x), for x > 0: whatever u becomes, x stays positive.

    For parameters such as a viscosity. A value of 0 is minus infinity, which no method takes: use `LogOnePlus` for
    amounts that may vanish.
    """

    def forward(self, x: Tensor) -> Tensor:
        """The logarithm of a positive amount; 0 and negative amounts are not finite."""
        return torch.log(x)

    def inverse(self, u: Tensor) -> Tensor:
        """exp(u)."""
        return torch.exp(u)


BUILT_IN: dict[str, type] = {"Identity": Identity, "LogOnePlus": LogOnePlus, "Log": Log}


def transform_to_dict(transform: Transform) -> dict[str, Any]:
    """The JSON form of a transform: its class name and settings."""
    return {"name": type(transform).__name__, **asdict(transform)}  # type: ignore[call-overload]


def transform_from_dict(entry: dict[str, Any], known: dict[str, type] | None = None) -> Transform:
    """Rebuild a transform from its JSON form; only built-in and `known` classes are ever called."""
    classes = {**BUILT_IN, **(known or {})}
    settings = {key: value for key, value in entry.items() if key != "name"}
    if entry["name"] not in classes:
        raise ValueError(
            f"unknown transform {entry['name']!r}; known: {', '.join(sorted(classes))}. "
            "Pass your own class as transforms={name: class}"
        )
    return classes[entry["name"]](**settings)
