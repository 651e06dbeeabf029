"""The continuous ranked probability score of weighted ensembles and of Gaussians; thinning of ensembles.

    crps(F, y) = E|X - y| - 1/2 E|X - X'|,    X, X' ~ F independent

The library `scores` computes it for members of equal weight; here are the two forms that it has not. Arrays have a
`member` dim; units are those of the members.

References:
    Gneiting, Raftery (2007), Strictly proper scoring rules, prediction, and estimation,
    https://doi.org/10.1198/016214506000001437
    Ferro (2014), Fair scores for ensemble forecasts, https://doi.org/10.1002/qj.2270
    Gneiting, Raftery, Westveld, Goldman (2005), Calibrated probabilistic forecasting using ensemble model output
    statistics, https://doi.org/10.1175/MWR2904.1 (equation 5, the Gaussian)
"""

from __future__ import annotations

import numpy as np
import xarray as xr


def ensemble_crps(
    members: xr.DataArray, target: xr.DataArray, log_weights: xr.DataArray | None = None, *, fair: bool = False
) -> xr.DataArray:
    """CRPS of an ensemble in each cell, units of the members; `scores` computes it where the weights are equal.

    Args:
        members: has a `member` dim.
        target: the same without it.
        log_weights: logarithms of the members' weights, any constant added.
        fair: divide the pair term by 1 - sum w^2, unbiased for the law the members were drawn from.

    Differs from the paper: Ferro's fair score for equal weights is extended to weighted ones by their sum of squares.
    """
    if log_weights is None:
        from scores.probability import crps_for_ensemble

        return crps_for_ensemble(members, target, "member", method="fair" if fair else "ecdf", preserve_dims="all")
    weights = normal_weights(members, log_weights)
    distance = weighted_mean(abs(members - target), weights)
    values, mass = xr.broadcast(members, weights)
    axis = values.get_axis_num("member")
    order = np.argsort(values.values, axis=axis)
    x, w = (np.take_along_axis(a.values, order, axis) for a in (values, mass))
    # sum_ij w_i w_j |x_i - x_j| / 2 for sorted x: each x_i is added for the mass below it, subtracted for that above.
    pair = (w * x * (2.0 * np.cumsum(w, axis) - w - 1.0)).sum(axis)
    spread = values.isel(member=0, drop=True).copy(data=pair)
    return distance - (spread / (1.0 - (weights**2).sum("member")) if fair else spread)


def gaussian_crps(mean: xr.DataArray, std: xr.DataArray, target: xr.DataArray) -> xr.DataArray:
    """CRPS of N(mean, std^2) in closed form; where std is 0 it is the absolute error.

    References: Gneiting, Raftery, Westveld, Goldman (2005), Calibrated probabilistic forecasting using ensemble model
    output statistics, equation 5, https://doi.org/10.1175/MWR2904.1
    """
    from scipy.stats import norm

    safe = std.where(std > 0.0, 1.0)
    z = ((target - mean) / safe).values
    score = safe * (z * (2.0 * norm.cdf(z) - 1.0) + 2.0 * norm.pdf(z) - 1.0 / np.sqrt(np.pi))
    return xr.where(std > 0.0, score, abs(target - mean))


def thin(members: xr.DataArray, log_weights: xr.DataArray | None, keep: int) -> xr.DataArray:
    """At most `keep` members of equal weight, taken at the midpoints of equal shares of the total weight.

    Deterministic systematic resampling: the same members for every cell, so that each is still a whole field. Without
    weights and with `keep` members or fewer nothing changes.
    """
    count = members.sizes["member"]
    if log_weights is None:
        if count <= keep:
            return members
        picks = ((np.arange(keep) + 0.5) * count / keep).astype(int)
        return members.isel(member=picks)
    keep = min(keep, count)
    weights = normal_weights(members, log_weights)
    cumulative = weights.transpose(..., "member").cumsum("member")
    levels = (np.arange(keep) + 0.5) / keep
    indices = (cumulative.values[..., None, :] < levels[:, None]).sum(-1).clip(max=count - 1)
    lead = [d for d in cumulative.dims if d != "member"]
    return members.isel(member=xr.DataArray(indices, dims=[*lead, "member"]))


def normal_weights(members: xr.DataArray, log_weights: xr.DataArray | None) -> xr.DataArray:
    """Weights that sum to 1 over `member`; equal ones where none are given."""
    if log_weights is None:
        return xr.DataArray(np.full(members.sizes["member"], 1.0 / members.sizes["member"]), dims="member")
    log_weights = log_weights.reset_coords(drop=True)
    weights: xr.DataArray = xr.apply_ufunc(np.exp, log_weights - log_weights.max("member"))
    return weights / weights.sum("member")


def weighted_mean(x: xr.DataArray, weights: xr.DataArray) -> xr.DataArray:
    """Sum of `weights * x` over `member`."""
    return xr.dot(x, weights, dim="member")
