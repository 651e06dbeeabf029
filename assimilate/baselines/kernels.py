r"""Correlation functions of distance, and their fit to point values.

A field with constant mean mu, variance s2 and correlation rho(d / length), observed at m places with errors of variance
R, gives values of law N(mu 1, C) with `C_ij = s2 rho(d_ij / length) + R_i delta_ij`. Two ways to find (mu, s2, length)
from values at several times, taken as independent:

    likelihood     maximise sum_t log N(y_t; mu 1, C); mu in closed form, (s2, length) by L-BFGS
    variogram      least squares on the mean of (y_i - y_j)^2 / 2 in bins of distance, which is
                   R + s2 (1 - rho(d / length)), weighted as by Cressie: pairs over the squared model

**Length convention**: the argument of `rho` is `d / length`, so "exponential" is `exp(-d / length)`.

References:
    Cressie (1985), Fitting variogram models by weighted least squares, https://doi.org/10.1007/BF01032109
    Rasmussen, Williams (2006), Gaussian processes for machine learning, http://gaussianprocess.org/gpml/ (Matern forms)
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal, NamedTuple, get_args

import numpy as np
import torch
from torch import Tensor

Kernel = Literal["exponential", "matern32", "matern52", "gaussian"]
FitMethod = Literal["likelihood", "variogram"]
BINS = 24
"""Number of distance bins of a variogram."""


class PointValues(NamedTuple):
    """Values at the same places at several times.

    Attributes:
        distance: `(m, m)` float64, between the places.
        values: `(t, m)` float64, all finite.
        variance: `(m,)` float64, error variances.
    """

    distance: Tensor
    values: Tensor
    variance: Tensor


class KernelFit(NamedTuple):
    """Mean, variance and length of a field: numbers in Space units, its square, and the unit of distances."""

    mean: float
    variance: float
    length: float


def correlation(distance: Tensor, length: Tensor | float, kernel: Kernel) -> Tensor:
    """`rho(distance / length)`, 1 at distance 0; shape and dtype of `distance`."""
    z = distance / length
    if kernel == "exponential":
        return torch.exp(-z)
    if kernel == "matern32":
        return (1 + math.sqrt(3) * z) * torch.exp(-math.sqrt(3) * z)
    if kernel == "matern52":
        return (1 + math.sqrt(5) * z + 5 / 3 * z.square()) * torch.exp(-math.sqrt(5) * z)
    return torch.exp(-0.5 * z.square())


def check_kernel(kernel: Kernel, method: FitMethod = "likelihood") -> None:
    """Raise a ValueError unless the names are known."""
    if kernel not in get_args(Kernel):
        raise ValueError(f"kernel is {kernel!r}; expected one of {', '.join(get_args(Kernel))}")
    if method not in get_args(FitMethod):
        raise ValueError(f"method is {method!r}; expected one of {', '.join(get_args(FitMethod))}")


def fit_kernel(groups: Sequence[PointValues], kernel: Kernel, method: FitMethod = "likelihood") -> KernelFit:
    """Fit (mean, variance, length) to point values.

    Raises:
        ValueError: fewer than three places, or values that do not vary.
    """
    check_kernel(kernel, method)
    groups = [group for group in groups if group.values.shape[1] >= 3]
    if not groups:
        raise ValueError("a covariance needs values at 3 or more places to be fitted to")
    pooled = torch.cat([group.values.flatten() for group in groups])
    if not float(pooled.var()) > 0:
        raise ValueError("a covariance cannot be fitted: all values are equal")
    fit = _maximum_likelihood if method == "likelihood" else _variogram
    return fit(groups, kernel)


def _maximum_likelihood(groups: Sequence[PointValues], kernel: Kernel) -> KernelFit:
    from scipy.optimize import minimize

    count = sum(group.values.numel() for group in groups)

    def loss(parameters: np.ndarray) -> tuple[float, np.ndarray]:
        theta = torch.tensor(parameters, dtype=torch.float64, requires_grad=True)
        value = _profile(groups, theta, kernel)[0] / count
        value.backward()
        assert theta.grad is not None
        return float(value.detach()), theta.grad.numpy()

    # From the variogram's answer: far from the optimum the likelihood of a smooth kernel has a second, white-noise one.
    first = _variogram(groups, kernel)
    start = np.log([first.variance, first.length])
    found = minimize(loss, start, jac=True, method="L-BFGS-B", bounds=_start(groups)[1], options={"ftol": 1e-8})
    nearest = min(float(group.distance[group.distance > 0].min()) for group in groups)
    if np.exp(found.x[1]) < nearest / 2:
        rougher = "look for wrong values" if kernel == "exponential" else "use 'exponential'"
        raise ValueError(
            f"with the kernel {kernel!r} the likelihood prefers a field without correlation between the nearest places "
            f"({nearest:.3g} apart): the field is rougher than the kernel, {rougher}, or take method='variogram'"
        )
    with torch.no_grad():
        mean = _profile(groups, torch.from_numpy(found.x), kernel)[1]
    return KernelFit(float(mean), float(np.exp(found.x[0])), float(np.exp(found.x[1])))


def _profile(groups: Sequence[PointValues], theta: Tensor, kernel: Kernel) -> tuple[Tensor, Tensor]:
    """Minus the log likelihood (less constants) at the best mean, and that mean; theta = log (variance, length)."""
    variance, length = torch.exp(theta[0]), torch.exp(theta[1])
    precision, weighted, squares, log_det = (torch.zeros((), dtype=torch.float64) for _ in range(4))
    for group in groups:
        times, m = group.values.shape
        matrix = variance * correlation(group.distance, length, kernel) + torch.diag(group.variance)
        # Noiseless values at near places need a little more on the diagonal than round-off takes away.
        root = torch.linalg.cholesky(matrix + 1e-9 * variance.detach() * torch.eye(m, dtype=torch.float64))
        white = torch.linalg.solve_triangular(root, group.values.T, upper=False)
        ones = torch.linalg.solve_triangular(root, torch.ones(m, 1, dtype=torch.float64), upper=False)
        precision = precision + times * ones.square().sum()
        weighted = weighted + (ones * white).sum()
        squares = squares + white.square().sum()
        log_det = log_det + 2 * times * torch.log(torch.diagonal(root)).sum()
    return 0.5 * (log_det + squares - weighted.square() / precision), weighted / precision


def _variogram(groups: Sequence[PointValues], kernel: Kernel) -> KernelFit:
    from scipy.optimize import least_squares

    distance, half, noise = _pairs(groups)
    # Beyond half the extent few pairs are left, all of them from the edges.
    edges = np.linspace(0, distance.max() / 2, BINS + 1)
    index = np.digitize(distance, edges) - 1
    inside = index < BINS
    pairs = np.bincount(index[inside], minlength=BINS)
    kept = pairs > 0

    def bins(x: np.ndarray) -> np.ndarray:
        return np.bincount(index[inside], weights=x[inside], minlength=BINS)[kept] / pairs[kept]

    place, gamma, error = torch.from_numpy(bins(distance)), bins(half), bins(noise)

    def model(theta: np.ndarray) -> np.ndarray:
        return error + np.exp(theta[0]) * (1 - correlation(place, float(np.exp(theta[1])), kernel).numpy())

    def misfit(theta: np.ndarray) -> np.ndarray:
        return np.sqrt(pairs[kept]) * (gamma / np.maximum(model(theta), 1e-12) - 1)

    start, bounds = _start(groups)
    found = least_squares(misfit, start, bounds=tuple(zip(*bounds, strict=True)))
    pooled = torch.cat([group.values.flatten() for group in groups])
    return KernelFit(float(pooled.mean()), float(np.exp(found.x[0])), float(np.exp(found.x[1])))


def _pairs(groups: Sequence[PointValues]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Distance, half the squared difference (mean over times) and mean error variance of all pairs."""
    distances, halves, noises = [], [], []
    for group in groups:
        i, j = torch.triu_indices(group.distance.shape[0], group.distance.shape[0], 1)
        covariance = group.values.T @ group.values / group.values.shape[0]
        square = torch.diagonal(covariance)
        distances.append(group.distance[i, j])
        halves.append(0.5 * (square[i] + square[j]) - covariance[i, j])
        noises.append(0.5 * (group.variance[i] + group.variance[j]))
    return tuple(torch.cat(parts).numpy() for parts in (distances, halves, noises))  # type: ignore[return-value]


def _start(groups: Sequence[PointValues]) -> tuple[np.ndarray, list[tuple[float, float]]]:
    """First guess of log (variance, length), and bounds: lengths from a tenth of the nearest distance to 20 extents."""
    pooled = torch.cat([group.values.flatten() for group in groups])
    spread = math.log(float(pooled.var()))
    extent = max(float(group.distance.max()) for group in groups)
    nearest = min(float(group.distance[group.distance > 0].min()) for group in groups)
    return np.array([spread, math.log(extent / 5)]), [
        (spread - 7.0, spread + 5.0),
        (math.log(nearest / 10), math.log(20 * extent)),
    ]
