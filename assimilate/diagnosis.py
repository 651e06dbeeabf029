r"""What innovations say: are background and observation errors what they are taken to be?

    d_b = y - <H(x_b)>,    d_a = y - <H(x_a)>                    departures of the values that were used

    expected of them, where B and R are right      <d_b^2> = HBH^T + R           <d_a d_b> = R
    (Desroziers et al. 2005)                       <(d_b - d_a) d_b> = HBH^T     <(d_b - d_a) d_a> = HAH^T

`innovation_statistics` compares spread and departures, `desroziers` estimates the errors. Both read a feedback table
(`assimilate.feedback`), so they work on stored ones as well. Units are those of the observed values, squared for
variances. Estimates of R from an analysis made with a wrong R lie between the wrong and the right one: assimilate
again with the estimate and it converges, if the background errors are right and differ from those of the
observations in scale; if the two are alike, only their sum can be known.

References:
    Desroziers, Berre, Chapnik, Poli (2005), Diagnosis of observation, background and analysis-error statistics in
    observation space, https://doi.org/10.1256/qj.05.108
    Differs: variances only, no cross-covariances.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import product

import numpy as np
import xarray as xr

from assimilate.engine.flags import BACKGROUND, GROSS, NAMES, REJECTED, USED
from assimilate.errors import UserError

GROUPS = ("instrument", "variable", "analysis_time")


def innovation_statistics(table: xr.Dataset, by: Sequence[str] = ("instrument",)) -> xr.Dataset:
    """Counts, departures and consistency of the values of a feedback table, pooled over rows.

    Args:
        table: of `Feedback.table()`.
        by: coords of the table that keep rows apart: "instrument" (default), "variable", "analysis_time", or any other.

    Returns:
        Dataset with a dim for each of `by` (and `experiment`) and the variables `count` (values used), `rejected`
        (by a flag or check), `departure_mean` and `departure_std` (of d_b), `analysis_departure_mean` and `_std`,
        `chi_square` (mean of d_b^2 / (HBH^T + R) value by value: 1 is expected, as of the full form, but correlated
        background errors make it scatter more; `Feedback.innovations` has the full one), and `consistency`, the ratio
        sqrt(<d_b^2> / <HBH^T + R>) of what the departures are and what they should be. NaN where nothing was used.

    Raises:
        UserError: the table has no feedback, or no such coord.
    """
    used = _checked(table, by)
    value, flag = table["value"], table["flag"]
    before = (value - table["background_mean"]).where(used)
    after = (value - table["analysis_mean"]).where(used)
    expected = (table["background_std"] ** 2 + table["error"] ** 2).where(used & before.notnull())
    turned_down = (flag == REJECTED) | (flag == GROSS) | (flag == BACKGROUND)

    def statistics(rows: np.ndarray) -> xr.Dataset:
        b, a, e = (x.isel(location=rows) for x in (before, after, expected))
        dims = "location"
        return xr.Dataset(
            {
                "count": used.isel(location=rows).sum(dims),
                "rejected": turned_down.isel(location=rows).sum(dims),
                "departure_mean": b.mean(dims),
                "departure_std": b.std(dims),
                "analysis_departure_mean": a.mean(dims),
                "analysis_departure_std": a.std(dims),
                "chi_square": (b**2 / e).mean(dims),
                "consistency": np.sqrt((b**2).mean(dims) / e.mean(dims)),
            }
        )

    found = _grouped(table, by, statistics)
    found["rejected"].attrs["long_name"] = f"values with the flags {REJECTED}, {GROSS}, {BACKGROUND}: {NAMES}"
    return found


def desroziers(table: xr.Dataset, by: Sequence[str] = ("instrument",)) -> xr.Dataset:
    """Variances of the observation, background and analysis errors, as the departures have them.

    Args:
        table: of `Feedback.table()`.
        by: see `innovation_statistics`.

    Returns:
        Dataset with a dim for each of `by` (and `experiment`) and the variables `observation_variance` <d_a d_b>,
        `background_variance` <(d_b - d_a) d_b>, `analysis_variance` <(d_b - d_a) d_a>, what was assumed of the first
        two (`assumed_observation_variance`, `assumed_background_variance`), and `observation_ratio`, the factor by
        which R would have to change. An estimate may be negative where few values are pooled: it is not clipped.

    Raises:
        UserError: the table has no feedback, or no such coord.
    """
    used = _checked(table, by)
    before = (table["value"] - table["background_mean"]).where(used)
    after = (table["value"] - table["analysis_mean"]).where(used)
    assumed = (table["error"] ** 2).where(used & before.notnull())
    spread = (table["background_std"] ** 2).where(used)

    def estimates(rows: np.ndarray) -> xr.Dataset:
        b, a = before.isel(location=rows), after.isel(location=rows)
        observation = (a * b).mean("location")
        given = assumed.isel(location=rows).mean("location")
        return xr.Dataset(
            {
                "observation_variance": observation,
                "background_variance": ((b - a) * b).mean("location"),
                "analysis_variance": ((b - a) * a).mean("location"),
                "assumed_observation_variance": given,
                "assumed_background_variance": spread.isel(location=rows).mean("location"),
                "observation_ratio": observation / given,
            }
        )

    return _grouped(table, by, estimates)


def innovation_scores(analysis: xr.Dataset) -> dict[str, float]:
    """Mean chi-square of the innovations and number of rejected values (mean over experiments), where present."""
    out = {}
    if "chi_square" in analysis:
        out["chi_square"] = float(analysis["chi_square"].mean())
    if "rejected" in analysis:
        out["rejected"] = float(analysis["rejected"].sum("time").mean())
    return {name: value for name, value in out.items() if np.isfinite(value)}


def _checked(table: xr.Dataset, by: Sequence[str]) -> xr.DataArray:
    """Which values were used; the table is one of feedback."""
    lacking = [n for n in ("value", "error", "flag", "background_mean", "analysis_mean") if n not in table]
    if lacking:
        raise UserError(f"the table has no {', '.join(lacking)}; give the table of a Feedback that a run has filled")
    for name in by:
        if name not in table.coords or table[name].dims != ("location",):
            have = [str(n) for n, c in table.coords.items() if c.dims == ("location",)]
            raise UserError(f"the table has no '{name}' for each row; it has {', '.join(have)}")
    return table["flag"] == USED


def _grouped(table: xr.Dataset, by: Sequence[str], of: object) -> xr.Dataset:
    """The statistics of each group of rows, along new dims."""
    assert callable(of)
    levels = {name: _levels(table[name].values) for name in by}
    parts = []
    for choice in product(*levels.values()):
        rows = np.ones(table.sizes["location"], dtype=bool)
        for name, level in zip(by, choice, strict=True):
            rows &= table[name].values == level
        part: xr.Dataset = of(np.flatnonzero(rows))
        parts.append(part.drop_vars([n for n in part.coords if n != "experiment"]))
    sizes = [len(level) for level in levels.values()]
    return _stacked(iter(parts), list(levels.items()), sizes)


def _stacked(parts: Iterator[xr.Dataset], levels: list[tuple[str, np.ndarray]], sizes: list[int]) -> xr.Dataset:
    if not levels:
        return next(parts)
    (name, values), rest = levels[0], levels[1:]
    return xr.concat([_stacked(parts, rest, sizes[1:]) for _ in values], name).assign_coords({name: values})


def _levels(values: np.ndarray) -> np.ndarray:
    """Different values, without missing ones."""
    found = np.unique(values)
    return found[~np.isnat(found)] if found.dtype.kind == "M" else found[found == found]
