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

BIASES = (
    ("dps", 0.476, 0.745),
    ("dps-score", 0.422, 0.827),
    ("pigdm", 0.210, 1.067),
    ("pigdm-ode", 0.325, 1.086),
    ("tmpd", 0.351, 0.999),
    ("tmpd-ode", 0.860, 0.894),
    ("sda", 0.367, 0.835),
    ("sda-0.1", 0.225, 0.898),
    ("sda-1", 0.289, 1.339),
    ("lgd", 0.245, 0.926),
    ("flowdas", 0.213, 0.934),
    ("flowchef", 0.417, 1.262),
)
"""Guidance -> mean error and variance ratio on the anisotropic Gaussian."""

BANDS: tuple[Band, ...] = (
    *_calibrated("exact", EVERY, CHANCE, 0.07),
    *(Band("exact", problem, "ksd", 0.3, 2.7, "one in a hundred, exact draws") for problem in EVERY),
    Band("exact", "mixture", "modes", 0.0, 0.045, CHANCE),
    *_calibrated("kalman", GAUSSIAN, CLASS, 0.07),
    *_calibrated("rts", GAUSSIAN, CLASS, 0.07),
    *_calibrated("clean-covariance", GAUSSIAN, CLASS, 0.07),
    *_calibrated("mmps", ("gaussian", "isotropic"), CLASS, 0.07),
    *_calibrated("mmps-ode", ("gaussian", "isotropic"), CLASS, 0.07),
    *_calibrated("mmps-interpolant", ("gaussian", "isotropic"), CLASS, 0.07),
    *_calibrated("pigdm", ("isotropic",), CLASS, 0.07),
    *_calibrated("tmpd", ("isotropic",), CLASS, 0.07),
    *_calibrated("guided-particle", GAUSSIAN, CLASS, 0.07),
    *_calibrated("daps", ("gaussian", "isotropic"), DESIGN, 0.09),
    Band("daps-published", "gaussian", "trace", 1.4, 1.75, DESIGN),
    Band("daps-published", "isotropic", "trace", 1.4, 1.75, DESIGN),
    Band("ddrm", "gaussian", "trace", 0.55, 0.8, DESIGN),
    Band("ddrm", "isotropic", "trace", 0.6, 0.8, DESIGN),
    Band("ddnm", "gaussian", "trace", 0.2, 0.8, DESIGN),
    Band("diffpir", "isotropic", "trace", 0.5, 0.7, DESIGN),
    Band("pnp-dm", "gaussian", "trace", 0.8, 1.1, DESIGN),
    *(
        Band(solver, "gaussian", statistic, value - width, value + width, MEASURED)
        for solver, mean, trace in BIASES
        for statistic, value, width in (("mean", mean, 0.07), ("trace", trace, 0.09))
    ),
    *(
        Band(solver, "mixture", "modes", 0.0, 0.06, "four standard errors of a share of 2000")
        for solver in ("mmps-ode", "clean-covariance", "tds", "pnp-dm")
    ),
    Band("bootstrap", "mixture", "modes", 0.0, 0.15, "four standard errors of an effective size of 200"),
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
