"""Flags of observed values: what became of each, as recorded in feedback.

A value is used (0), or missing (1): NaN, nothing was observed. Otherwise it was rejected: by the flag it came with, or
for want of a usable error (2), as a gross error outside the limits that a value can have (3), or by the background
check, too far from the forecast (4). Outside (5) is what no analysis can have: off the grid, in no window, or of an
experiment that has diverged. Withheld (6) is kept from the method to be compared with what it makes.
"""

from __future__ import annotations

UNDECIDED = -1
"""Before the checks; never in a result."""
USED = 0
MISSING = 1
REJECTED = 2
GROSS = 3
BACKGROUND = 4
OUTSIDE = 5
WITHHELD = 6
NAMES = {
    USED: "used",
    MISSING: "missing",
    REJECTED: "rejected",
    GROSS: "gross error",
    BACKGROUND: "background check",
    OUTSIDE: "outside",
    WITHHELD: "withheld",
}
"""What the flags are called, for attributes of a Dataset and for tables."""
