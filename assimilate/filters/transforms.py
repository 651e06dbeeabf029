r"""The algebra of ensemble Kalman filters, in whitened observation space.

With N members, anomalies A `(N, n)` of the state about its mean, `S = R^-1/2 (H x_n - mean)` `(N, m)` of the predicted
observations, `d = R^-1/2 (y - mean)` and `c = N - 1`:

    Kalman increment          K d       = d S^T (S S^T + c I_N)^-1 A  =  d (S^T S + c I_m)^-1 S^T A
    symmetric square root     A_a       = T A,    T = sqrt(c) (S S^T + c I_N)^-1/2
    log evidence              log p(y)  = log N(0; 0, R) - 1/2 log det(I + S S^T / c) - 1/2 d (I + S^T S / c)^-1 d^T
    one value after another   a <- a - gain s / (1 + (1 + v)^-1/2),  s = S_j,  v = s.s / c,  gain = a.s / (c (1 + v))

The smaller of the two Gram matrices is factored (`gram.py`), once where an analysis wants its evidence too. Unobserved
values are zeros in S and d and so contribute nothing. Leading dims are batches.

References:
    Bishop, Etherton, Majumdar (2001), Adaptive sampling with the ensemble transform Kalman filter,
    https://doi.org/10.1175/1520-0493(2001)129<0420:ASWTET>2.0.CO;2
    Hunt, Kostelich, Szunyogh (2007), Efficient data assimilation for spatiotemporal chaos: a local ensemble transform
    Kalman filter, https://doi.org/10.1016/j.physd.2006.11.008 (the symmetric root)
    Whitaker, Hamill (2002), Ensemble data assimilation without perturbed observations,
    https://doi.org/10.1175/1520-0493(2002)130<1913:EDAWPO>2.0.CO;2 (one value after another)
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from assimilate.filters.gram import Decomposed, Factored, shifted


def kalman_increments(anomalies: Tensor, spread: Tensor, departures: Tensor) -> Tensor:
    """Kalman increments of the state for any number of whitened departures.

    Args:
        anomalies: A, `(E, N, n)`.
        spread: S, `(E, N, m)`, dimensionless.
        departures: `(E, K, m)`, dimensionless, zero where not observed.

    Returns:
        `(E, K, n)`, in the units of the state.
    """
    return Factored.of(spread).increments(anomalies, departures)


def square_root_analysis(anomalies: Tensor, spread: Tensor, departure: Tensor) -> tuple[Tensor, Tensor]:
    """Increment of the mean and the new anomalies of the symmetric square root filter.

    Args:
        anomalies: A, `(E, N, n)`.
        spread: S, `(E, N, m)`.
        departure: d of the mean, `(E, m)`.

    Returns:
        The increment `(E, 1, n)` and the anomalies of the analysis `(E, N, n)`.
    """
    return Decomposed.of(spread).analysis(anomalies, departure)


def serial_analysis(
    anomalies: Tensor, spread: Tensor, departure: Tensor, reach: Sequence[tuple[Tensor, Tensor]] | None = None
) -> tuple[Tensor, Tensor]:
    """Increment of the mean and the new anomalies when the values are assimilated one after another.

    The predicted observations are updated as if they were part of the state, so the operator is not called again.
    With every value in reach of everything the mean and covariance are those of `square_root_analysis`, whatever the
    order of the values.

    Args:
        anomalies: A, `(E, N, n)`.
        spread: S, `(E, N, m)`, zero where not observed; errors of different values are independent.
        departure: d of the mean, `(E, m)`.
        reach: for each value, the indices `(k,)` of what it acts on, in the n state values followed by the m
            predicted observations, and factors `(k,)` of the gain; None: everything, with factor 1.

    Returns:
        The increment `(E, 1, n)` and the anomalies of the analysis `(E, N, n)`.
    """
    n, size = anomalies.shape[1], anomalies.shape[2]
    both = torch.cat([anomalies, spread], -1)
    # What is left to explain is the departure less the increments of the predicted observations.
    change = torch.zeros_like(both[:, 0])
    for j in range(spread.shape[-1]):
        s = both[..., size + j].clone()
        variance = s.square().sum(-1, keepdim=True) / (n - 1)
        left = departure[:, j : j + 1] - change[:, size + j : size + j + 1]
        shrink = 1 / (1 + torch.rsqrt(1 + variance))
        target = both if reach is None else both[..., reach[j][0]]
        gain = (s.unsqueeze(1) @ target).squeeze(1) / ((n - 1) * (1 + variance))
        if reach is None:
            change += gain * left
            both = torch.baddbmm(both, (s * -shrink).unsqueeze(-1), gain.unsqueeze(1))
        else:
            index, factor = reach[j]
            gain = gain * factor
            change[:, index] += gain * left
            both[..., index] = torch.baddbmm(target, (s * -shrink).unsqueeze(-1), gain.unsqueeze(1))
    return change[:, None, :size], both[..., :size]


def tapered_coefficients(spread: Tensor, departures: Tensor, taper: Tensor) -> Tensor:
    """`(taper o S^T S / (N - 1) + I)^-1` times whitened departures, for covariances with a Schur product.

    Args:
        spread: S, `(E, N, m)`.
        departures: `(E, K, m)`.
        taper: correlation `(m, m)` of the values' places.

    Returns:
        `(E, K, m)`, float64.

    Raises:
        ValueError: the matrix is not positive definite, because the taper is no correlation.
    """
    s = spread.double()
    covariance = taper.double() * (s.mT @ s) / (s.shape[1] - 1)
    root, failed = torch.linalg.cholesky_ex(shifted(covariance, 1.0))
    if bool(failed.any()):
        raise ValueError(
            "the tapered covariance of the observed values is not positive definite: on this domain the taper is no "
            "correlation function; use a smaller radius (on a ring, at most a quarter of its length)"
        )
    return torch.cholesky_solve(departures.double().mT, root).mT


def transform_weights(gram: Tensor, projection: Tensor) -> tuple[Tensor, Tensor]:
    """Weights of the mean and the symmetric root from `S S^T` and `S d`.

    Args:
        gram: `S S^T`, `(*b, N, N)`.
        projection: `S d`, `(*b, N)`.

    Returns:
        `(S S^T + c I)^-1 S d` `(*b, N)` and T `(*b, N, N)`, to be applied to the anomalies from the left.
    """
    c = gram.shape[-1] - 1
    values, vectors = torch.linalg.eigh(gram)
    values = values.clamp_min(0) + c
    weights = ((projection.unsqueeze(-2) @ vectors) / values.unsqueeze(-2)) @ vectors.mT
    root = (vectors * torch.sqrt(c / values).unsqueeze(-2)) @ vectors.mT
    return weights.squeeze(-2), root


def innovation_log_likelihood(spread: Tensor, departure: Tensor, log_normalizer: Tensor) -> Tensor:
    """Log density of the observations under the Gaussian `N(mean, S^T S / (N - 1) + I)` of the forecast.

    Args:
        spread: S, `(E, N, m)`.
        departure: d, `(E, m)`.
        log_normalizer: `(E,)`, log density of the noise at zero residual over the observed values.

    Returns:
        `(E,)`, float64; 0 where nothing is observed.
    """
    return log_likelihood(Factored.of(spread), departure, log_normalizer)


def log_likelihood(gram: Factored | Decomposed, departure: Tensor, log_normalizer: Tensor) -> Tensor:
    """The same from the spread that an analysis has already factored."""
    log_det, misfit = gram.statistics(departure)
    return log_normalizer.double() - 0.5 * (log_det + misfit)


def innovation_statistics(spread: Tensor, departure: Tensor) -> tuple[Tensor, Tensor]:
    """What the forecast says of the innovations: `log det(I + C)` and `d (I + C)^-1 d^T` with `C = S^T S / (N - 1)`.

    The second is the innovation chi-square: on average the number of observed values, if forecast and noise are right.

    Args:
        spread: S, `(E, N, m)`.
        departure: d, `(E, m)`.

    Returns:
        Both `(E,)`, float64; 0 where nothing is observed.
    """
    return Factored.of(spread).statistics(departure)
