"""What numbers a setting can be: asked when an object is made, not where a wrong one first does harm.

    check_settings(self, steps=COUNT, seed=whole(0), bandwidth=number(0, 1, none=True), factors=several(POSITIVE))

A number is finite, and neither a text nor a truth value; infinity and None are for the settings that say so. What a
program computes may also be a tensor (the parameters of a system, one for each row): its entries are compared.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from numbers import Integral, Real
from typing import Any

import numpy as np
import torch
from torch import Tensor


@dataclass(frozen=True)
class Numbers:
    """The numbers that a setting can be; made by `number`, `whole`, `several` and `one_or_several`.

    Args:
        least: the smallest; with `above` the limit that it has to exceed.
        most: the largest; with `below` the limit that it has to stay under.
        above: whether `least` itself is out.
        below: whether `most` itself is out.
        whole: whether only whole numbers will do.
        infinite: whether infinity (of either sign, within the limits) will.
        none: whether None will.
        sequence: "no" for one number, "only" for a sequence of them, nested or not, "too" for either.
        count: length of the sequence; None = any.
        words: what a message says was expected, if not the limits.
    """

    least: float = -math.inf
    most: float = math.inf
    above: bool = False
    below: bool = False
    whole: bool = False
    infinite: bool = False
    none: bool = False
    sequence: str = "no"
    count: int | None = None
    words: str = ""

    def hold(self, value: Any) -> bool:
        """Whether a setting can be `value`."""
        if value is None:
            return self.none
        if isinstance(value, tuple | list | range):
            right = self.sequence != "no" and self.count in (None, len(value))
            return right and all(replace(self, sequence="too", count=None, none=False).hold(entry) for entry in value)
        if isinstance(value, Tensor | np.ndarray):
            return self._hold_entries(value)
        right = isinstance(value, Integral if self.whole else Real) and not isinstance(value, bool | np.bool_)
        return self.sequence != "only" and right and bool(self._within(float(value), math.isfinite))

    def _hold_entries(self, value: Tensor | np.ndarray) -> bool:
        if isinstance(value, np.ndarray) and value.dtype.kind not in "iuf":
            return False
        given = torch.as_tensor(value).detach()
        if given.dtype == torch.bool or given.is_complex() or (self.whole and given.is_floating_point()):
            return False
        return bool(self._within(given, torch.isfinite).all())

    def _within(self, value: Any, finite: Callable[[Any], Any]) -> Any:
        low = value > self.least if self.above else value >= self.least
        high = value < self.most if self.below else value <= self.most
        # Comparisons with NaN are false, so NaN is never between the limits.
        return low & high & (self.infinite | finite(value))

    def __str__(self) -> str:
        """What a message says was expected."""
        if self.words:
            return self.words
        kind = "whole number" if self.whole else "number"
        many = f"{kind}s" if self.count is None else f"{self.count} {kind}s"
        kind = {"no": f"a {kind}", "too": f"a {kind}, or several, each", "only": many}[self.sequence]
        lower = f" above {self.least:g}" if self.above else f" of {self.least:g} or more"
        upper = f" below {self.most:g}" if self.below else f" of at most {self.most:g}"
        limits = (lower if self.least > -math.inf else "") + (upper if self.most < math.inf else "")
        if not self.above and not self.below and math.isfinite(self.least) and math.isfinite(self.most):
            limits = f" from {self.least:g} to {self.most:g}"
        others = (", or infinity" if self.infinite else "") + (", or None" if self.none else "")
        return kind + limits + others


def number(
    least: float = -math.inf,
    most: float = math.inf,
    *,
    above: float | None = None,
    below: float | None = None,
    infinite: bool = False,
    none: bool = False,
    words: str = "",
) -> Numbers:
    """A number from `least` to `most`, or above or below a limit that is itself out; see `Numbers`."""
    lower = least if above is None else above
    upper = most if below is None else below
    return Numbers(lower, upper, above is not None, below is not None, False, infinite, none, words=words)


def whole(least: float = -math.inf, most: float = math.inf, *, none: bool = False, words: str = "") -> Numbers:
    """A whole number from `least` to `most`; see `Numbers`."""
    return Numbers(least, most, whole=True, none=none, words=words)


def several(each: Numbers, count: int | None = None, *, none: bool = False) -> Numbers:
    """A sequence of such numbers, `count` of them; see `Numbers`."""
    return replace(each, sequence="only", count=count, none=none)


def one_or_several(each: Numbers) -> Numbers:
    """One such number, or a sequence of them; see `Numbers`."""
    return replace(each, sequence="too")


ANY = number()
COUNT = whole(1)
NOT_NEGATIVE = number(0)
POSITIVE = number(above=0)
FRACTION = number(0, 1)
SEED = whole(0)


def check_settings(settings: object, **expected: Numbers) -> None:
    """Raise a ValueError if a setting is none of the numbers that it can be.

    Args:
        settings: the object, with an attribute for each name.
        expected: what each setting can be.

    Raises:
        ValueError: the setting, what was given and what was expected.
    """
    for name, numbers in expected.items():
        check_number(name, getattr(settings, name), numbers)


def check_number(name: str, value: Any, expected: Numbers) -> None:
    """Raise a ValueError unless `value` is one of the numbers that the setting `name` can be."""
    if not expected.hold(value):
        raise ValueError(f"{name} is {value!r}; expected {expected}")
