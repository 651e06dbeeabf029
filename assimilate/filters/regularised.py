r"""The regularised particle filter: members are drawn from a kernel estimate of the density instead of copied.

Resampling gives a good member many children. Without model noise they would stay equal for ever, so each is moved by
a draw of a Gaussian kernel,

    x' = x_a + h L e,      e ~ N(0, I),    L L^T = P,    h = bandwidth N^(-1/(d+4)),

with P the weighted sample covariance before resampling, d the number of values of the state and Scott's rule for h.
The kernels add `h^2 P` to the covariance: a bias that vanishes with N, slowly where d is large. With shrinkage the
members are drawn towards their mean first, so that mean and covariance stay as they are:

    x' = mean + sqrt(1 - h^2) (x_a - mean) + h L e

References:
    Musso, Oudjane, Le Gland (2001), Improving regularised particle filters,
    https://doi.org/10.1007/978-1-4757-3437-9_12
    West (1993), Approximating posterior distributions by mixtures,
    https://doi.org/10.1111/j.2517-6161.1993.tb01911.x (shrinkage)
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, Literal, get_args

import torch
from torch import Tensor

from assimilate.filters.base import Exactness, FilterState
from assimilate.filters.particle import BootstrapFilter
from assimilate.posterior.weights import Resampled, resample
from dynamics.random import Rng, normal
from dynamics.settings import check_settings, number

Moved = Literal["copies", "all"]


@dataclass(frozen=True)
class RegularisedFilter(BootstrapFilter):
    """The bootstrap filter with jitter after resampling.

    Args:
        dynamics: the system; only `step` is used.
        resampling: "systematic", "stratified" or "residual".
        threshold: resample when the effective sample size is at most this fraction of N; 0 never, 1 always.
        bandwidth: factor of Scott's bandwidth `N^(-1/(d+4))`, dimensionless (1; 0: no jitter).
        moved: which members are moved: "copies" (default), the children of a parent that has several, or "all", which
            is the sample of the kernel estimate.
        shrinkage: whether members are drawn to their mean so that the jitter adds no variance. Needs `moved = "all"`.

    Raises:
        ValueError: a negative bandwidth, or shrinkage without `moved = "all"`.

    Where one member has all the weight, P is that of the members with equal weights: its own would be 0, and all
    members one for ever.

    Differs from the paper: Scott's bandwidth rather than the optimal one for an Epanechnikov kernel (they differ by a
    factor near 1); "copies" is what DAPPER does.
    """

    bandwidth: float = 1.0
    moved: Moved = "copies"
    shrinkage: bool = False
    name: ClassVar[str] = "regularised particle filter"
    exactness: ClassVar[Exactness] = "consistent"

    def __post_init__(self) -> None:
        """Check the settings."""
        super().__post_init__()
        check_settings(self, bandwidth=number(0, words="a factor of Scott's bandwidth, 0 or more"))
        if self.moved not in get_args(Moved):
            raise ValueError(f"moved is {self.moved!r}; expected one of {', '.join(get_args(Moved))}")
        if self.shrinkage and self.moved != "all":
            raise ValueError("shrinkage draws all members to their mean: it needs moved='all'")

    def _start(self, state: FilterState, *, rng: Rng) -> Resampled:
        start = resample(state.members, state.log_weights, self.resampling, self.threshold, rng=rng)
        if self.bandwidth == 0:
            return start
        members = state.members
        n, size = members.shape[1], math.prod(members.shape[2:])
        # The same numbers are drawn whether or not anything was resampled, so experiments stay independent.
        shape = (*members.shape[:2], min(n, size))
        numbers = normal(rng, shape, dtype=members.dtype, device=members.device)
        if not bool(start.triggered.any()):
            return start
        width = self.bandwidth * n ** (-1 / (size + 4))
        moves = start.triggered.unsqueeze(-1)
        if self.moved == "copies":
            moves = moves & has_siblings(start.ancestors)
        kept = start.members
        if self.shrinkage:
            mean = kept.mean(1, keepdim=True)
            kept = mean + math.sqrt(max(1 - width**2, 0.0)) * (kept - mean)
        jittered = kept + width * coloured(numbers, members, state.log_weights)
        moves = moves.reshape(*moves.shape, *[1] * (members.ndim - 2))
        return start._replace(members=torch.where(moves, jittered, start.members))


def has_siblings(ancestors: Tensor) -> Tensor:
    """Whether another member has the same parent, bool `(E, N)`."""
    children = torch.zeros_like(ancestors).scatter_add_(-1, ancestors, torch.ones_like(ancestors))
    return children.gather(-1, ancestors) > 1


def coloured(numbers: Tensor, members: Tensor, log_weights: Tensor) -> Tensor:
    """Draws of N(0, P), P the weighted sample covariance, divisor `1 - sum W^2`.

    Through the root of P where a state has fewer values than there are members, else as combinations of the anomalies:
    no matrix is larger than N x N or d x d, whichever is smaller.

    Args:
        numbers: standard normal, `(E, M, min(N, d))`.
        members: `(E, N, *event)` with d values an event.
        log_weights: `(E, N)`, normalised.

    Returns:
        `(E, M, *event)`.
    """
    flat = members.flatten(2)
    n, size = flat.shape[1:]
    weights = torch.softmax(log_weights.double(), -1)
    spare = 1 - weights.square().sum(-1, keepdim=True)
    alone = spare < 4 * torch.finfo(members.dtype).eps
    weights = torch.where(alone, 1 / n, weights)
    spare = torch.where(alone, max(1 - 1 / n, 1 / n), spare)
    mean = torch.einsum("en,end->ed", weights.to(flat.dtype), flat).unsqueeze(1)
    anomalies = (weights / spare).sqrt().to(flat.dtype).unsqueeze(-1) * (flat - mean)
    if size > n:
        return (numbers @ anomalies).reshape(*numbers.shape[:2], *members.shape[2:])
    values, vectors = torch.linalg.eigh((anomalies.mT @ anomalies).double())
    # The symmetric root is continuous in P: rounding cannot turn the draws.
    root = (vectors * values.clamp_min(0).sqrt().unsqueeze(-2)) @ vectors.mT
    return (numbers @ root.to(flat.dtype)).reshape(*numbers.shape[:2], *members.shape[2:])
