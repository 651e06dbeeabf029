"""Scores of an analysis against the truth: statistics that add up over time, and the scores made from them.

A score such as an RMSE is not the mean of the RMSEs of parts. So each part of a result (a block of times) is first
turned into *statistics*, means over its cells that can be pooled, and a score is a function of the pooled ones:

    rmse         sqrt(<(m - x)^2>)                       m ensemble mean, x truth, <> over times, channels and cells
    rmse_time    mean over times of the RMSE of each time, as published for filters (DAPPER's rmse.a)
    diverged     number of experiments that are missing from some time on (in no score, see `verification.missing`),
                 or whose own rmse_time is above a limit; rmse_time is the mean over the others
    mae          <|m - x|>
    nrmse        sqrt(<(m - x)^2>) / sqrt(<x^2>)         in normalised units (x - offset) / scale
    crps         <sum_i w_i |x_i - x| - 1/2 sum_ij w_i w_j |x_i - x_j|>     the ensemble's own distribution ("ecdf")
    crps_fair    the same with the second term divided by 1 - sum w^2       unbiased for the law the members come from
    spread_skill sqrt(<v> (N + 1) / N) / rmse            v = sum w (x_i - m)^2 / (1 - sum w^2); 1 when calibrated
    csi          hits / (hits + misses + false alarms)   of m above a threshold, counted over everything
    spectrum_error  of the kinetic energy, for flows on a periodic square (see `verification.spectra`)

Everything is in Space units: of rain, say, m is the mean of log(1 + r). Statistics are pooled over times, channels
and cells (weighted by their areas, or equal) in each experiment; scores are averaged over experiments.
`*_member` is the score of one member, as published for single trajectories: the mean of the scores of at most 64.
Weighted members are not resampled for these: their weights enter the sums above, and N is 1 / sum w^2; only `*_member`
and the rank histogram take a systematic sample of equally likely ones. The CRPS of an estimate that is a Gaussian is in
closed form, that of one without a spread is its absolute error.

References:
    Fortin, Abaza, Anctil, Turcotte (2014), Why should ensemble spread match the RMSE of the ensemble mean?,
    https://doi.org/10.1175/JHM-D-14-0008.1
    Hamill (2001), Interpretation of rank histograms for verifying ensemble forecasts, https://doi.org/dkkvh3
    Ferro (2014), Fair scores for ensemble forecasts, https://doi.org/10.1002/qj.2270
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
import xarray as xr

from assimilate.engine.clock import at_times_of
from assimilate.engine.results import moment_space
from assimilate.verification.crps import ensemble_crps, gaussian_crps, normal_weights, thin, weighted_mean
from assimilate.verification.events import events, success_index
from assimilate.verification.missing import blanked, filled, gone_of, missing_experiments, present, whole
from assimilate.verification.spectra import pooled_spectra, spectra, spectrum_error
from dynamics.space import Space

LEADING = ("experiment", "member", "time", "channel")
MEMBER_SCORES = 64
"""Members whose own scores are averaged for `*_member`."""
RANK_MEMBERS = 20
"""Members of the rank histogram: 21 ranks."""
SCORES = {
    "rmse": "root-mean-square error of the mean",
    "rmse_time": "root-mean-square error of the mean at each time, averaged over times",
    "diverged": "experiments that diverged: missing from some time on, or above the limit and not in rmse_time",
    "rmse_member": "root-mean-square error of one member",
    "nrmse": "error of the mean over the size of the truth, normalised units",
    "nrmse_member": "error of one member over the size of the truth, normalised units",
    "mae": "mean absolute error of the mean",
    "crps": "continuous ranked probability score",
    "crps_fair": "continuous ranked probability score, unbiased for a finite ensemble",
    "spread_skill": "spread over error of the mean, 1 when calibrated",
    "ess": "effective sample size, mean over times",
    "log_evidence": "log probability of all observations, mean over experiments",
    "spectrum_error": "relative error of the members' kinetic-energy spectrum, mean over its shells",
    "mean_distance": "distance of the mean from that of the reference, in its standard deviations",
    "spread_ratio": "spread over that of the reference",
    "rank_distance": "distance of the rank histogram from a flat one, 0 to 1",
    "seconds": "wall time of the method",
}
"""What each score is; csi_* are critical success indices, withheld_* are scores at withheld observations."""


@dataclass(frozen=True)
class Scoring:
    """How results are scored.

    Args:
        offset: of the normalised units of `nrmse`, one number per channel or one for all.
        scale: of the normalised units. Lorenz-63 of the FlowDAS and SDA papers: (0, 0, 25) and (8, 9, 8.6).
        thresholds: events "at least this much" in units of the data, for the critical success index.
        threshold_unit: short unit in its name: csi_1mm.
        drop: times at the beginning that are not scored.
        weights: "area" (cells count by their areas) or "equal".
        diverged: `rmse_time` of an experiment, in Space units, above which it has diverged; None: no such limit. Where
            all are above it the method is that bad, and none has diverged.
    """

    offset: tuple[float, ...] = (0.0,)
    scale: tuple[float, ...] = (1.0,)
    thresholds: tuple[float, ...] = ()
    threshold_unit: str = ""
    drop: int = 0
    weights: str = "area"
    diverged: float | None = None


def statistics(
    analysis: xr.Dataset, truth: xr.Dataset, *, space: Space | None = None, scoring: Scoring | None = None
) -> xr.Dataset:
    """Means over the cells, for each experiment, time and channel, from which every score is made.

    Args:
        analysis: what `run` returns: fields with a `member` dim (and `log_weights` where members are weighted), or
            `<field>_mean` with or without `<field>_std`, in Space units.
        truth: the fields without a `member` dim; it may have more times than the analysis.
        space: the state's Space; default: that of the truth, without transforms.
        scoring: thresholds, normalisation and weights; `drop` is for `scores`.

    Returns:
        A Dataset with dims (experiment, time, channel), some with `member` or `rank`; NaN where an experiment is
        missing since it diverged.

    Raises:
        ValueError: the analysis is not finite somewhere else, or holds neither the fields nor their means.
    """
    scoring, space = scoring or Scoring(), space or Space.from_dataset(truth)
    gone = gone_of(analysis)
    if gone is not None:
        analysis = filled(analysis, space, gone)
    if "time" in analysis.coords and "time" in truth.coords:
        truth = at_times_of(analysis["time"], truth)
    names = [f.name for f in space.fields]
    members = _array(analysis, space) if all(n in analysis for n in names) else None
    mean, std = (_moment(analysis, space, which) for which in ("mean", "std"))
    if members is not None and "member" not in members.dims:
        members, mean = None, members
    if mean is None and members is None:
        raise ValueError(f"the analysis has {sorted(map(str, analysis.data_vars))}; expected {names} or their _mean")
    target = _array(truth, space)
    if space.mask is not None:
        target = target.where(xr.DataArray(~space.mask, dims=["channel", *space.grid]))
    areas = np.ones(space.grid_shape)
    if scoring.weights == "area":
        areas = space.cell_weights().numpy().reshape(space.grid_shape)
    log_weights = analysis.get("log_weights")
    estimate = Estimated(members, mean, std, None if log_weights is None else log_weights.reset_coords(drop=True))
    pooled = compare(estimate, target, xr.DataArray(areas, dims=space.grid), scoring)
    average = _CellMean(target, xr.DataArray(areas, dims=space.grid))
    mean = estimate.centre
    for threshold in scoring.thresholds:
        pooled = pooled.assign(events(mean, target, threshold, space, average))
    weights = None if members is None or estimate.log_weights is None else normal_weights(members, estimate.log_weights)
    return blanked(pooled.assign(spectra(space, target, members, mean, weights)), gone)


class Estimated(NamedTuple):
    """An estimate as arrays with dims (experiment, member, time, channel, *cells), absent ones left out.

    Attributes:
        members: with the `member` dim; None for a Gaussian or a single field.
        mean: without it; None where it is to be made from the members.
        std: its spread; None for a single field.
        log_weights: (experiment, member, time); None for equal weights.
    """

    members: xr.DataArray | None
    mean: xr.DataArray | None
    std: xr.DataArray | None
    log_weights: xr.DataArray | None = None

    @property
    def centre(self) -> xr.DataArray:
        """The mean, made from the members where it is not given."""
        if self.mean is not None:
            return self.mean
        assert self.members is not None
        return weighted_mean(self.members, normal_weights(self.members, self.log_weights))


def compare(estimate: Estimated, target: xr.DataArray, areas: xr.DataArray | float, scoring: Scoring) -> xr.Dataset:
    """The statistics of an estimate and its target; cells where the target is NaN count nothing."""
    mean = estimate.centre
    average = _CellMean(target, areas)
    offset, scale = (_per_channel(v, target.sizes["channel"]) for v in (scoring.offset, scoring.scale))
    out = {
        "weight": average.total,
        "squared_error": average((mean - target) ** 2),
        "absolute_error": average(abs(mean - target)),
        "normalised_squared_error": average(((mean - target) / scale) ** 2),
        "normalised_square": average(((target - offset) / scale) ** 2),
    }
    members = estimate.members
    if members is not None and members.sizes["member"] > 1:
        out |= _of_ensemble(members, target, estimate.log_weights, average, scale, estimate.std)
    else:
        out["crps"] = average(abs(mean - target) if estimate.std is None else gaussian_crps(mean, estimate.std, target))
        out["crps_fair"] = out["crps"]
        if estimate.std is not None:
            out["variance"] = average(estimate.std**2)
        if members is not None:
            # A single trajectory is its own member.
            out["member_squared_error"] = out["squared_error"]
            out["member_normalised_squared_error"] = out["normalised_squared_error"]
    if not bool(np.isfinite(out["squared_error"].where(average.total > 0, 0.0)).all()):
        raise ValueError("the analysis is not finite at every cell and time where the truth is known")
    return xr.Dataset(out)


def scores(pooled: xr.Dataset, scoring: Scoring | None = None) -> dict[str, float]:
    """Scores from statistics of the whole time axis.

    Args:
        pooled: what `statistics` returned, concatenated along time.
        scoring: the same as there.

    Returns:
        `{name: value}`; a score that does not exist for a method (the spread of a single field) is left out, and all
        but `diverged` where every experiment is missing.
    """
    scoring = scoring or Scoring()
    (rest, _), missing = present(pooled), len(missing_experiments(pooled))
    if rest is None:
        return {"diverged": float(missing)}
    pooled = rest
    some = pooled.isel(time=slice(scoring.drop, None)) if "time" in pooled.dims else pooled
    mean = _pool(some, [d for d in ("time", "channel") if d in some.dims])

    def average(x: Any) -> float:
        return float(x.mean())

    square = np.sqrt(mean["normalised_square"])
    lost = diverged(pooled, scoring)
    out = {
        "rmse": average(np.sqrt(mean["squared_error"])),
        "rmse_time": average(error_of_experiments(pooled, scoring).drop_sel(experiment=lost)),
        "mae": average(mean["absolute_error"]),
        "nrmse": average(np.sqrt(mean["normalised_squared_error"]) / square),
        "crps": average(mean["crps"]),
        "crps_fair": average(mean["crps_fair"]),
    }
    if scoring.diverged is not None or missing:
        out["diverged"] = float(missing + len(lost))
    if "member_squared_error" in mean:
        out["rmse_member"] = average(np.sqrt(mean["member_squared_error"]))
        out["nrmse_member"] = average(np.sqrt(mean["member_normalised_squared_error"]) / square)
    if "variance" in mean:
        error = float(mean["squared_error"].mean())
        out["spread_skill"] = float(np.sqrt(mean["variance"].mean() / error)) if error else float("nan")
    for threshold in scoring.thresholds:
        out[f"csi_{threshold:g}{scoring.threshold_unit}"] = success_index(mean, threshold)
    wrong = spectrum_error(pooled_spectra(pooled, scoring.drop))
    return out if wrong is None else out | {"spectrum_error": wrong}


def error_of_experiments(pooled: xr.Dataset, scoring: Scoring) -> xr.DataArray:
    """`rmse_time` of each experiment, (experiment), numbered from 0; one experiment where there is no such dim."""
    some = pooled.drop_dims(["rank", "member"], errors="ignore")
    if "time" in some.dims:
        some = some.isel(time=slice(scoring.drop, None))
    error = _pool(some, [d for d in ("channel",) if d in some.dims])["squared_error"] ** 0.5
    error = error.mean("time") if "time" in error.dims else error
    error = error if "experiment" in error.dims else error.expand_dims("experiment")
    return error.assign_coords(experiment=np.arange(error.sizes["experiment"]))


def diverged(pooled: xr.Dataset, scoring: Scoring | None = None) -> list[int]:
    """Numbers of the experiments that have diverged: those that are missing, and see `Scoring.diverged`."""
    scoring = scoring or Scoring()
    (rest, kept), missing = present(pooled), missing_experiments(pooled)
    if scoring.diverged is None or rest is None:
        return missing
    above = (error_of_experiments(rest, scoring) > scoring.diverged).values
    return missing if above.all() else sorted([*missing, *(kept[int(k)] for k in np.flatnonzero(above))])


def series(pooled: xr.Dataset) -> xr.Dataset:
    """RMSE, CRPS and spread at each time, pooled over channels and averaged over experiments that are not missing."""
    rest, _ = present(pooled)
    pooled = pooled if rest is None else rest
    mean = _pool(pooled.drop_dims("rank", errors="ignore"), ["channel"])
    found: dict[str, Any] = {"rmse": np.sqrt(mean["squared_error"]), "crps": mean["crps"]}
    if "variance" in mean:
        found["spread"] = np.sqrt(mean["variance"])
    return xr.Dataset({k: v.mean("experiment") if "experiment" in v.dims else v for k, v in found.items()})


def rank_histogram(pooled: xr.Dataset, scoring: Scoring | None = None) -> xr.Dataset | None:
    """How often the truth has each rank among the members, flat when calibrated; None without members.

    Returns:
        `rank_frequency` (rank), which sums to 1, and `rank_error`, its standard error from the scatter over times,
        channels and experiments.
    """
    rest, _ = present(pooled)
    if "rank_frequency" not in pooled or rest is None:
        return None
    pooled = rest
    some = pooled["rank_frequency"].isel(time=slice((scoring or Scoring()).drop, None))
    cases = [d for d in some.dims if d != "rank"]
    count = int(np.prod([some.sizes[d] for d in cases]))
    return xr.Dataset({"rank_frequency": some.mean(cases), "rank_error": some.std(cases, ddof=1) / np.sqrt(count)})


def evaluate(
    analysis: xr.Dataset, truth: xr.Dataset, *, space: Space | None = None, scoring: Scoring | None = None
) -> dict[str, float]:
    """All scores of an analysis: `scores(statistics(...))`, and those that the analysis itself holds.

    Args:
        analysis: what `run` returns.
        truth: what it should have found.
        space: the state's Space, for its transforms and no-data cells.
        scoring: normalisation, thresholds, dropped times.
    """
    out = scores(statistics(analysis, truth, space=space, scoring=scoring), scoring)
    return out | own_scores(analysis)


def own_scores(analysis: xr.Dataset) -> dict[str, float]:
    """Mean effective sample size, log evidence (sum over times, mean over experiments) and seconds, where present."""
    out: dict[str, float] = {}
    analysis = whole(analysis)
    if "ess" in analysis:
        out["ess"] = float(analysis["ess"].mean())
    if "log_evidence" in analysis:
        out["log_evidence"] = float(analysis["log_evidence"].sum("time", skipna=False).mean())
    if "seconds" in analysis.attrs:
        out["seconds"] = float(analysis.attrs["seconds"])
    return {k: v for k, v in out.items() if np.isfinite(v)}


def units_of(score: str, working: str) -> str:
    """Units of a score, given those of the state in tensors."""
    if score in ("rmse", "rmse_time", "mae", "crps", "crps_fair", "rmse_member"):
        return working
    return {"seconds": "s", "ess": "members", "log_evidence": "nat"}.get(score, "1")


class _CellMean:
    """Weighted mean over the cells where the target is known; 0 where it is known nowhere."""

    def __init__(self, target: xr.DataArray, areas: xr.DataArray | float) -> None:
        self.dims = [d for d in target.dims if d not in LEADING]
        self.known = target.notnull()
        self.weights = self.known * areas
        self.total = self.weights.sum(self.dims)

    def __call__(self, x: xr.DataArray) -> xr.DataArray:
        total = (x.where(self.known, 0.0) * self.weights).sum(self.dims, skipna=False)
        return total / self.total.where(self.total > 0, 1.0)


def _pool(some: xr.Dataset, dims: Sequence[str]) -> xr.Dataset:
    """Means over times and channels, each counting by the cells behind it; spectra are pooled elsewhere."""
    some = some.drop_dims("shell", errors="ignore")
    weight = some["weight"]
    return (some.drop_vars("weight") * weight).sum(dims, skipna=False) / weight.sum(dims)


def _array(dataset: xr.Dataset, space: Space) -> xr.DataArray:
    """The fields as one array (experiment, member, time, channel, *grid) in Space units, 0 at no-data cells."""
    present = [d for d in LEADING[:-1] if any(d in dataset[f.name].dims for f in space.fields)]
    values = space.to_tensor(dataset, dtype=torch.float64).numpy()
    return xr.DataArray(values, dims=[*present, "channel", *space.grid])


def _moment(analysis: xr.Dataset, space: Space, which: str) -> xr.DataArray | None:
    moments = moment_space(space, which)
    return _array(analysis, moments) if all(f.name in analysis for f in moments.fields) else None


def _per_channel(values: tuple[float, ...], channels: int) -> xr.DataArray:
    if len(values) not in (1, channels):
        raise ValueError(f"normalisation has {len(values)} numbers, the state has {channels} channels")
    return xr.DataArray(np.broadcast_to(np.asarray(values, float), (channels,)), dims="channel")


def _of_ensemble(
    members: xr.DataArray,
    target: xr.DataArray,
    log_weights: xr.DataArray | None,
    average: _CellMean,
    scale: xr.DataArray,
    std: xr.DataArray | None,
) -> dict[str, xr.DataArray]:
    """Statistics of an ensemble; `std` is that of the whole one, of which `members` may be a part."""
    from scores.probability import rank_histogram as ranks_of

    weights = normal_weights(members, log_weights)
    share = (weights**2).sum("member")
    if std is None:
        centred = members - weighted_mean(members, weights)
        variance = weighted_mean(centred**2, weights) / (1.0 - share)
    else:
        variance = std**2
    some = thin(members, log_weights, MEMBER_SCORES)
    ranked = thin(members, log_weights, RANK_MEMBERS)
    ranks = ranks_of(ranked, target, "member", preserve_dims=[d for d in LEADING if d in target.dims])
    return {
        "crps": average(ensemble_crps(members, target, log_weights)),
        "crps_fair": average(ensemble_crps(members, target, log_weights, fair=True)),
        "variance": average(variance * (1.0 + share)),
        "member_squared_error": average((some - target) ** 2),
        "member_normalised_squared_error": average(((some - target) / scale) ** 2),
        "rank_frequency": ranks,
    }
