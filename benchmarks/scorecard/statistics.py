r"""How far samples are from a posterior that is known.

    mean       error of the sample mean in posterior standard deviations, root mean square over the values;
               1 / sqrt(n) for exact draws
    trace      trace of the sample covariance over that of the posterior; below 1 the method is too sure of itself
    modes      total variation distance between the samples' shares of the modes and the posterior's
    mode, mode_exact    share of the first mode, and the posterior's
    sliced     sliced Wasserstein-2 distance, in posterior standard deviations
    coverage   share of posterior draws inside the samples' central 90 % interval, mean over the values; 0.9 if right
    residual   mean chi-square of the residual over that of posterior draws; below 1 the noise is fitted too
    ksd        kernel Stein discrepancy over that of exact draws, see `stein.py`

A mode is the component of the prior in which a state is most likely. The sliced distance sorts projections on random
directions, in which the optimal transport is known; no library is needed.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from benchmarks.scorecard.laws import Mixture
from benchmarks.scorecard.problems import Problem
from benchmarks.scorecard.stein import stein_ratio

COVERED = 0.9
"""Share that the central interval should hold."""
DIRECTIONS = 64
LARGEST_STEIN = 2000
"""Samples beyond which the kernel's table of pairs is not made; the first ones are used."""


class Reference(NamedTuple):
    """A problem's posterior and draws of it, kept between solvers.

    Attributes:
        problem: the problem.
        posterior: its posterior.
        draws: exact draws, `(m, d)`.
    """

    problem: Problem
    posterior: Mixture
    draws: Tensor


def reference(problem: Problem, *, draws: int = 20_000, seed: int = 1) -> Reference:
    """The posterior of a problem with `draws` exact draws."""
    posterior = problem.posterior()
    return Reference(problem, posterior, posterior.draw(draws, rng=torch.Generator().manual_seed(seed)))


def scores(problem: Problem | Reference, x: Tensor, *, spread: bool = True) -> dict[str, float]:
    """The statistics of samples.

    Args:
        problem: what they should be the posterior of.
        x: `(n, *event)` or `(n, d)`, n > 1.
        spread: False for methods that give one answer: `mean` and `residual` alone.

    Returns:
        See the module; `modes`, `mode`, `mode_exact` for mixtures only; `trace_error` is the standard error of `trace`.
    """
    known = reference(problem) if isinstance(problem, Problem) else problem
    posterior, x = known.posterior, x.reshape(len(x), -1).double()
    mean, std = posterior.mean, posterior.covariance.diagonal().sqrt()
    result = {
        "mean": float(((x.mean(0) - mean) / std).square().mean().sqrt()),
        "residual": float(_chi_square(known.problem, x) / _chi_square(known.problem, known.draws)),
    }
    if not spread:
        return result
    total = posterior.covariance.trace()
    sizes = (x - x.mean(0)).square().sum(-1)
    result["trace"] = float(sizes.sum() / (len(x) - 1) / total)
    result["trace_error"] = float(sizes.std() / total) / math.sqrt(len(x))
    result["sliced"] = sliced_wasserstein((x - mean) / std, (known.draws - mean) / std)
    result["coverage"] = coverage(x, known.draws)
    some = x[:LARGEST_STEIN]
    result["ksd"] = stein_ratio(some, posterior, reference=known.draws)
    if len(posterior.weights) > 1:
        found, exact = (mode_shares(known.problem, states) for states in (x, known.draws))
        result["modes"] = float(0.5 * (found - exact).abs().sum())
        result["mode"], result["mode_exact"] = float(found[0]), float(exact[0])
    return result


def mode_shares(problem: Problem, x: Tensor) -> Tensor:
    """Share of the states in each mode, `(k,)`."""
    return torch.bincount(problem.law.nearest(x), minlength=len(problem.law.weights)) / len(x)


def sliced_wasserstein(x: Tensor, draws: Tensor, *, seed: int = 0) -> float:
    """Root mean square over random directions of the Wasserstein-2 distance of the projections.

    Args:
        x: `(n, d)`.
        draws: `(m, d)`; its quantiles at the ranks of x are what x is compared with.
        seed: of the directions.
    """
    rng = torch.Generator().manual_seed(seed)
    directions = torch.randn(x.shape[1], DIRECTIONS, generator=rng, dtype=x.dtype)
    directions = directions / directions.norm(dim=0)
    ranks = (torch.arange(len(x)) + 0.5) / len(x) * len(draws)
    expected = (draws @ directions).sort(0).values[ranks.long()]
    return float(((x @ directions).sort(0).values - expected).square().mean().sqrt())


def coverage(x: Tensor, draws: Tensor) -> float:
    """Share of `draws` `(m, d)` inside the central 90 % interval of each value of `x` `(n, d)`."""
    tails = torch.tensor([(1 - COVERED) / 2, (1 + COVERED) / 2], dtype=x.dtype)
    lower, upper = torch.quantile(x, tails, dim=0)
    return float(((draws >= lower) & (draws <= upper)).double().mean())


def _chi_square(problem: Problem, x: Tensor) -> Tensor:
    """Mean over states and measured values of the squared whitened residual."""
    residual = problem.likelihood.residual(problem.y, x.reshape(len(x), *problem.event_shape))
    return residual.square().mean()
