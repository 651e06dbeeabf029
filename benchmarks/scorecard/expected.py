"""What the scorecard should show: exact methods exact, and known biases where they are known to be.

Each band belongs to 2000 samples, 400 levels and float64. "Design" bands are from the bench that the project was
designed with, on problems of the same kind with other random operators: they say of which kind a bias is. "Measured"
bands are the value found here give or take four standard errors, so that a change is an event, not an accident.
Small runs check with wider bands.

A bias inside its band is not a fault of the code: it is what the method does.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from benchmarks.scorecard.run import Row

DESIGN = "design bench, 8000 samples, 400 levels"
MEASURED = "measured here, 2000 samples, 400 levels"
CHANCE = "four standard errors of 2000 exact draws"
CLASS = "exact for this prior up to the grid"


class Band(NamedTuple):
    """Where a statistic should be.

    Attributes:
        solver: entry.
        problem: problem.
        statistic: key of a row.
        low: least value.
        high: largest value.
        source: where the band comes from.
    """

    solver: str
    problem: str
    statistic: str
    low: float
    high: float
    source: str


class Check(NamedTuple):
    """A band and what was found.

    Attributes:
        band: the band, widened if it was.
        found: the value; None = the entry failed or diverged.
        passed: whether it lies inside.
    """

    band: Band
    found: float | None
    passed: bool

    @property
    def text(self) -> str:
        """One line."""
        b = self.band
        found = "nothing" if self.found is None else f"{self.found:.3f}"
        return f"{b.solver} on {b.problem}: {b.statistic} in [{b.low:.3f}, {b.high:.3f}] ({b.source}), found {found}"


def _calibrated(solver: str, problems: Iterable[str], source: str, mean: float = 0.06) -> list[Band]:
    """Mean, variance and coverage of a method that should be right."""
    return [
        band
        for problem in problems
        for band in (
            Band(solver, problem, "mean", 0.0, mean, source),
            Band(solver, problem, "trace", 0.92, 1.08, source),
            Band(solver, problem, "coverage", 0.87, 0.925, source),
        )
    ]


GAUSSIAN = ("gaussian", "isotropic", "field")
EVERY = ("gaussian", "isotropic", "mixture", "low-rank", "field")

BANDS: tuple[Band, ...] = (
    *_calibrated("exact", EVERY, CHANCE, 0.07),
    *(Band("exact", problem, "ksd", 0.4, 2.0, CHANCE) for problem in EVERY),
    Band("exact", "mixture", "modes", 0.0, 0.045, CHANCE),
    *_calibrated("kalman", GAUSSIAN, CLASS, 0.07),
    *_calibrated("rts", GAUSSIAN, CLASS, 0.07),
    *_calibrated("clean-covariance", GAUSSIAN, CLASS, 0.07),
    *_calibrated("mmps", ("gaussian", "isotropic"), CLASS, 0.07),
    *_calibrated("mmps-ode", ("gaussian", "isotropic"), CLASS, 0.07),
    *_calibrated("mmps-interpolant", ("gaussian", "isotropic"), CLASS, 0.07),
    *_calibrated("pigdm", ("isotropic",), CLASS, 0.07),
    *_calibrated("tmpd", ("isotropic",), CLASS, 0.07),
    *_calibrated("guided-particle", ("gaussian", "isotropic", "field"), CLASS, 0.07),
)
"""All bands."""


def check(rows: Iterable[Row], *, widen: float = 1.0) -> list[Check]:
    """Compare rows with the bands.

    Args:
        rows: of a scorecard.
        widen: factor of the half-width of every band; small runs need more than 1.

    Returns:
        One check for every band whose solver and problem are among the rows.
    """
    found = {(row["solver"], row["problem"]): row for row in rows}
    checks = []
    for band in BANDS:
        row = found.get((band.solver, band.problem))
        if row is None:
            continue
        half, middle = widen * (band.high - band.low) / 2, (band.high + band.low) / 2
        wide = band._replace(low=middle - half, high=middle + half)
        value = row.get(band.statistic)
        checks.append(Check(wide, value, value is not None and wide.low <= value <= wide.high))
    return checks
