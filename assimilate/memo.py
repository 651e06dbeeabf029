"""A small memory for what depends only on where the observations are: distances, triangulations, Cholesky factors.

Gauges stay where they are from hour to hour, so what is computed from their places can be kept. The key is the content
of the places, never their identity, so a remembered result is the result that would be computed again.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from typing import Any, TypeVar

from torch import Tensor

Value = TypeVar("Value")


@dataclass(frozen=True)
class Memo:
    """The last few results of an expensive pure function.

    Args:
        capacity: how many are kept; the least recently used goes first.
    """

    capacity: int = 2
    _kept: OrderedDict[Hashable, Any] = field(default_factory=OrderedDict, init=False, repr=False, compare=False)

    def get(self, key: Hashable, compute: Callable[[], Value]) -> Value:
        """The value for `key`, computed if it is not remembered."""
        if key not in self._kept:
            self._kept[key] = compute()
            while len(self._kept) > self.capacity:
                self._kept.popitem(last=False)
        self._kept.move_to_end(key)
        value: Value = self._kept[key]
        return value

    def __deepcopy__(self, memo: dict[int, Any]) -> Memo:
        """A copy starts empty."""
        return Memo(self.capacity)

    def __reduce__(self) -> tuple[type, tuple[int]]:
        """What is remembered does not travel to other processes."""
        return type(self), (self.capacity,)


def content(tensor: Tensor) -> Hashable:
    """A key that is equal for tensors of equal values, shape, dtype and device."""
    values = tensor.detach().cpu().contiguous()
    return (tuple(values.shape), str(values.dtype), str(tensor.device), values.numpy().tobytes())
