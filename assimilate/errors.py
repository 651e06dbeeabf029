"""Errors that a user can act on: one line that says what was given, what was expected and what to do.

Everything that a person can get wrong on the command line or in a card raises a `UserError`. The command prints its
message on one line of stderr and leaves with exit code 2; in Python it is an ordinary `ValueError`.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class UserError(ValueError):
    """Something given by the user is wrong; the message is one line and says what to do."""

    exit_code = 2

    def __init__(self, message: str) -> None:
        super().__init__(" ".join(str(message).split()))


class CardError(UserError):
    """A card (TOML experiment) does not say what a card must say."""


class DataError(UserError):
    """A data file is missing, or what is in it cannot be used as the card asks."""


class UnknownName(UserError):
    """A name that is not in a registry or a schema; the message holds the nearest valid one."""

    def __init__(self, kind: str, name: str, valid: Iterable[str], hint: str = "") -> None:
        super().__init__(f"unknown {kind} '{name}'{suggestion(name, valid)}{hint}")


def suggestion(name: str, valid: Iterable[str], *, shown: int = 12) -> str:
    """`; did you mean 'x'?` when a valid name is near, else the list of valid names.

    Args:
        name: what was given.
        valid: what would have been right.
        shown: longest list of valid names that is printed.
    """
    names = sorted(valid)
    folded = {candidate.casefold(): candidate for candidate in names}
    near = difflib.get_close_matches(name.casefold(), folded, n=3, cutoff=0.5)
    if near:
        # Letters in another order are the likeliest slip.
        swapped = [one for one in near if sorted(one) == sorted(name.casefold())]
        return f"; did you mean '{folded[(swapped or near)[0]]}'?"
    if not names:
        return "; there is none of that kind"
    listed = ", ".join(names[:shown]) + (", ..." if len(names) > shown else "")
    return f"; valid: {listed}"
