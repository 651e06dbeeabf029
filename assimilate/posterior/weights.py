"""Importance weights: normalisation, effective sample size, resampling.

    log W_i = log w_i - logsumexp(log w)          normalised weights
    ESS     = 1 / sum_i W_i^2                     between 1 and N

Shapes: log weights `(experiment, member)`, members `(experiment, member, *event)`; every experiment by itself. The
resamplers count the points below each member's cumulative weight; a histogram of these counts, summed up, gives the
parents: 20 times cheaper than a search at a million members. Cumulative sums are float64, with which float32 weights
are good for a million members.

References:
    Kitagawa (1996), Monte Carlo filter and smoother for non-Gaussian nonlinear state space models,
    https://doi.org/10.1080/10618600.1996.10474692 (systematic, stratified)
    Liu, Chen (1998), Sequential Monte Carlo methods for dynamic systems,
    https://doi.org/10.1080/01621459.1998.10473765 (residual)
"""

from __future__ import annotations

import math
from typing import Literal, NamedTuple, get_args

import torch
from torch import Tensor

from dynamics.random import Rng, uniform
from dynamics.settings import check_number, number

Scheme = Literal["systematic", "stratified", "residual"]


class WeightCollapse(RuntimeError):
    """Every weight of an experiment is zero, or one is NaN or infinite: there is nothing to normalise."""


class Resampled(NamedTuple):
    """What `resample` returns.

    Attributes:
        members: `(E, N, *event)`.
        log_weights: `(E, N)`, normalised; uniform where the experiment was resampled.
        ancestors: `(E, N)` int64, the index of each member's parent; `0..N-1` where nothing was resampled.
        triggered: `(E,)` bool, the experiments that were resampled.
    """

    members: Tensor
    log_weights: Tensor
    ancestors: Tensor
    triggered: Tensor


def uniform_log_weights(members: Tensor) -> Tensor:
    """`-log N` for members `(E, N, *event)`: shape `(E, N)`, their dtype and device."""
    return members.new_full(members.shape[:2], -math.log(members.shape[1]))


def log_normalize(log_weights: Tensor) -> tuple[Tensor, Tensor]:
    """Normalise log weights over their last dim.

    Args:
        log_weights: `(E, N)`; `-inf` is a weight of zero.

    Returns:
        The normalised log weights `(E, N)` and `logsumexp(log_weights)` `(E,)`, the log evidence of a step whose
        weights were normalised before it.

    Raises:
        WeightCollapse: an experiment has no positive weight, or a weight is NaN or infinite.
    """
    total = torch.logsumexp(log_weights, -1)
    finite = torch.isfinite(total)
    if not bool(finite.all()):
        lost = (~finite).nonzero().flatten().tolist()
        raise WeightCollapse(
            f"the weights of experiment(s) {lost} sum to {total[~finite].tolist()} in log; expected finite sums. Every "
            "member is impossible under the observations, or one weight is NaN: more members, a larger observation "
            "noise, or a proposal that looks at the observation"
        )
    return log_weights - total.unsqueeze(-1), total


def effective_sample_size(log_weights: Tensor) -> Tensor:
    """`(sum w)^2 / sum w^2` over the last dim, shape `(E,)`; the weights need not be normalised."""
    return 1 / torch.softmax(log_weights, -1).square().sum(-1)


def weighted_mean(members: Tensor, log_weights: Tensor) -> Tensor:
    """Mean over members: `(E, N, *event)` and normalised `(E, N)` to `(E, *event)`."""
    return torch.einsum("en,en...->e...", log_weights.exp().to(members.dtype), members)


def weighted_variance(members: Tensor, log_weights: Tensor) -> Tensor:
    """Unbiased variance over members, `sum W (x - mean)^2 / (1 - sum W^2)`: `(E, *event)`.

    Where one member has all the weight there is no spread: 0, and an effective sample size of 1 says why.
    """
    # About the heaviest member, and with 1 - 1 / ESS in float64: in float32 little is left of either where one member
    # has nearly all the weight.
    heaviest = select(members, log_weights.argmax(-1, keepdim=True))
    away = members - heaviest
    centred = away - weighted_mean(away, log_weights).unsqueeze(1)
    left = (1.0 - 1.0 / effective_sample_size(log_weights.double())).reshape(-1, *[1] * (members.ndim - 2))
    variance = weighted_mean(centred.square(), log_weights)
    return torch.where(left > 0, variance / torch.where(left > 0, left, 1.0).to(variance.dtype), 0.0)


def resampling_counts(log_weights: Tensor, scheme: Scheme = "systematic", *, rng: Rng) -> Tensor:
    """How many children each member has: `(E, N)` int64, each row sums to N, with mean `N W`.

    Args:
        log_weights: `(E, N)`; need not be normalised.
        scheme: "systematic" (one uniform number an experiment; default), "stratified" (one a member) or "residual"
            (`floor(N W)` children for sure, the rest systematically).
        rng: `Streams` with rows `(E, N)`, or a generator.

    Differs from the paper: Liu and Chen draw the residual's rest independently; systematic draws vary less.
    """
    check_resampling(scheme)
    below = _points_below(log_weights, scheme, _numbers(log_weights, scheme, rng))
    return torch.diff(below, dim=-1, prepend=torch.zeros_like(below[..., :1]))


def counts_to_ancestors(counts: Tensor) -> Tensor:
    """Indices of the parents, in order: counts `(E, N)`, each row summing to N, to `(E, N)` int64."""
    return _ancestors(counts.cumsum(-1))


def select(members: Tensor, ancestors: Tensor) -> Tensor:
    """Members `(E, N, *event)` at `ancestors` `(E, K)`: `(E, K, *event)`."""
    experiments = ancestors.shape[0]
    offsets = members.shape[1] * torch.arange(experiments, device=ancestors.device).unsqueeze(-1)
    chosen = members.flatten(0, 1).index_select(0, (ancestors + offsets).flatten())
    return chosen.reshape(*ancestors.shape, *members.shape[2:])


def resample(
    members: Tensor,
    log_weights: Tensor,
    scheme: Scheme = "systematic",
    threshold: float = 0.5,
    *,
    rng: Rng,
) -> Resampled:
    """Resample the experiments whose effective sample size is at most `threshold * N`; the others stay as they are.

    Args:
        members: `(E, N, *event)`.
        log_weights: `(E, N)`, normalised.
        scheme: "systematic", "stratified" or "residual"; see `resampling_counts`.
        threshold: fraction of N in [0, 1]; 0 never resamples, 1 always. 0.5 is the customary value.
        rng: the same numbers are drawn whether or not anything is resampled, so experiments stay independent.
    """
    check_resampling(scheme, threshold)
    n = members.shape[1]
    numbers = _numbers(log_weights, scheme, rng)
    # Equal weights have an ESS of N but for rounding, and "always" must mean always.
    triggered = torch.ones_like(log_weights[:, 0], dtype=torch.bool) * (threshold == 1)
    if 0 < threshold < 1:
        triggered = effective_sample_size(log_weights) <= threshold * n
    count = int(triggered.sum())
    stay = torch.arange(n, device=members.device).expand(log_weights.shape)
    if count == 0:
        return Resampled(members, log_weights, stay, triggered)
    ancestors = _ancestors(_points_below(log_weights, scheme, numbers))
    equal = torch.full_like(log_weights, -math.log(n))
    if count < len(triggered):
        pick = triggered.unsqueeze(-1)
        ancestors, equal = torch.where(pick, ancestors, stay), torch.where(pick, equal, log_weights)
    return Resampled(select(members, ancestors), equal, ancestors, triggered)


def check_resampling(scheme: Scheme, threshold: float = 0.5) -> None:
    """Raise a ValueError unless `scheme` is one of the three and `threshold` a fraction."""
    if scheme not in get_args(Scheme):
        raise ValueError(f"resampling scheme is {scheme!r}; expected one of {', '.join(get_args(Scheme))}")
    check_number("threshold", threshold, number(0, 1, words="a fraction of the members between 0 and 1"))


def _numbers(log_weights: Tensor, scheme: Scheme, rng: Rng) -> Tensor:
    """The uniform numbers of a resampling: `(E, N)` for the stratified one, else `(E, 1)`; float64."""
    shape = tuple(log_weights.shape) if scheme == "stratified" else (log_weights.shape[0],)
    drawn = uniform(rng, shape, dtype=torch.float64, device=log_weights.device)
    return drawn.reshape(shape[0], -1)


def _points_below(log_weights: Tensor, scheme: Scheme, numbers: Tensor) -> Tensor:
    """How many children the members up to each one have together, `(E, N)` int64; `numbers` from `_numbers`."""
    n = log_weights.shape[1]
    weights = torch.softmax(log_weights.detach().double(), -1)
    if scheme == "residual":
        expected = n * weights
        sure = torch.floor(expected)
        rest = (n - sure.sum(-1, keepdim=True)).clamp_min(0)
        return (sure.cumsum(-1) + torch.ceil(_cumulative(expected - sure) * rest - numbers)).long()
    # In place: with a million members new memory costs more than the arithmetic.
    points = _cumulative(weights).mul_(n)
    if scheme == "systematic":
        return points.sub_(numbers).ceil_().long()
    # Stratum j holds one point, at j + u_j: below `points` lie all of the full strata and perhaps that of the last one.
    full = torch.floor(points)
    inside = numbers.gather(-1, full.long().clamp_max(n - 1)) < points - full
    return (full + inside).long()


def _ancestors(points_below: Tensor) -> Tensor:
    """The parent of child j: the first member with more than j points below, so one counts those with at most j."""
    experiments, n = points_below.shape
    ends = points_below.new_zeros(experiments, n + 1)
    ends.scatter_add_(-1, points_below, points_below.new_ones(1).expand_as(points_below))
    return ends[:, :n].cumsum(-1)


def _cumulative(weights: Tensor) -> Tensor:
    """Cumulative sums that end at exactly 1, so that no rounding is left over for a last member of weight zero."""
    total = weights.cumsum(-1)
    last = total[..., -1:].clamp_min(torch.finfo(total.dtype).tiny)
    return total.div_(last)
