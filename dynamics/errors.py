"""The errors of the library that speak: each says what was given, what was expected and what to do."""

from __future__ import annotations


class SpaceMismatch(ValueError):
    """A Dataset or tensor does not fit a Space; the message names the dimension, unit, coordinate or value."""


class DataError(ValueError):
    """A file cannot serve as data: missing, unreadable, without the variable, or with a disordered time axis."""


class CapabilityError(TypeError):
    """A method asks for something that this system has not, such as the density of a noise of zero."""


class ContractError(AssertionError):
    """An object breaks the contract of its kind; raised by `check_dynamics` and `check_operator`."""
