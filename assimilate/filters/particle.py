r"""Particle filters: members with importance weights, exact as their number grows, for any dynamics and any noise.

    bootstrap    x_k ~ p(x_k | x_{k-1}),              w = W p(y | x_k)
    guided       x_k ~ q(x_k | x_{k-1}, y),           w = W p(x_k | x_{k-1}) p(y | x_k) / q(x_k)

`W` are the normalised weights before the step; `log p(y_k | y_1..k-1) = logsumexp(log w)`, whose exponential is
unbiased. Resampling comes at the start of the next step, so that a state keeps its weights and estimates made from it
have less variance.

The guided proposal is the posterior of the transition N(f, Q) with the operator linearised at f. With the whitened
residual `r(x) ~ r(f) - J (x - f)` and `S = J Q J^T + I`,

    x_k = f + h + Q J^T S^-1 (r(f) - J h - e),      h ~ N(0, Q), e ~ N(0, I)
    p(x_k | x_{k-1}) / q(x_k) = N(r(f); 0, S) / N(r(f) - J (x_k - f); 0, I)

which needs no inverse of Q: it may be singular. For a linear operator and Gaussian noise q is the optimal proposal and
w does not depend on x_k.

References:
    Gordon, Salmond, Smith (1993), Novel approach to nonlinear/non-Gaussian Bayesian state estimation,
    https://doi.org/10.1049/ip-f-2.1993.0015 (bootstrap)
    Doucet, Godsill, Andrieu (2000), On sequential Monte Carlo sampling methods for Bayesian filtering,
    https://doi.org/10.1023/A:1008935410038 (optimal and linearised proposals)
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor

from assimilate.filters.base import Diverged, EnsembleFilter, Exactness, FilterState, Info, check_finite, forecast
from assimilate.filters.departures import observed_values
from assimilate.posterior.weights import (
    Resampled,
    Scheme,
    WeightCollapse,
    check_resampling,
    effective_sample_size,
    log_normalize,
    resample,
    select,
)
from dynamics.base import Dynamics, TransitionDensity, steps_between
from dynamics.covariance import Covariance, ScaledIdentity
from dynamics.errors import CapabilityError
from dynamics.random import Rng, Streams, normal
from observations.likelihood import Likelihood, Observation

CHUNK_NUMBERS = 98_304
"""Values that are moved at a time where there are very many members: 0.4 MB in float32, a part of a core's cache."""


@dataclass(frozen=True)
class BootstrapFilter(EnsembleFilter):
    """The bootstrap particle filter.

    Args:
        dynamics: the system; only `step` is used.
        resampling: "systematic", "stratified" or "residual".
        threshold: resample when the effective sample size is at most this fraction of N; 0 never, 1 always.
    """

    dynamics: Dynamics
    resampling: Scheme = "systematic"
    threshold: float = 0.5
    name: ClassVar[str] = "bootstrap filter"
    exactness: ClassVar[Exactness] = "consistent"

    def __post_init__(self) -> None:
        """Check the settings."""
        check_resampling(self.resampling, self.threshold)

    def step(
        self, state: FilterState, observation: Observation | None, time: float, *, rng: Rng
    ) -> tuple[FilterState, Info]:
        """Resample, forecast to `time`, then weigh; see `Filter.step`."""
        start = self._start(state, rng=rng)
        members = move(self.dynamics, start.members, state.time, time, rng=rng, method=self.name)
        increments = None
        if observation is not None:
            observed_values(observation, members)
            increments = observation.likelihood.log_prob(observation.y, members)
        return weigh(self.name, state.time, time, start, members, members, increments)

    def _start(self, state: FilterState, *, rng: Rng) -> Resampled:
        """What the forecast starts from; a filter that does more than resample overrides it."""
        return resample(state.members, state.log_weights, self.resampling, self.threshold, rng=rng)


@dataclass(frozen=True)
class GuidedParticleFilter(EnsembleFilter):
    """The particle filter with the one-shot Gaussian optimal proposal in the step that ends at the observation.

    Args:
        dynamics: a `TransitionDensity`; steps before the last one to an observation are not guided.
        resampling: "systematic", "stratified" or "residual".
        threshold: resample when the effective sample size is at most this fraction of N; 0 never, 1 always.

    Raises:
        CapabilityError: the transition density of the dynamics is not known.

    Any operator and noise will do: what the linearisation gets wrong is in the weights. An operator that bends much
    within the spread of one transition (arctan in its saturation) makes them worse than those of the bootstrap filter:
    compare the effective sample sizes. Memory is `E * N * m * d` numbers for a nonlinear operator, `E * m * d` for a
    linear one.
    """

    dynamics: Dynamics
    resampling: Scheme = "systematic"
    threshold: float = 0.5
    name: ClassVar[str] = "guided particle filter"
    exactness: ClassVar[Exactness] = "consistent"

    def __post_init__(self) -> None:
        """Check the settings."""
        check_resampling(self.resampling, self.threshold)
        if not isinstance(self.dynamics, TransitionDensity):
            raise CapabilityError(
                f"{self.name} needs dynamics with moments() and log_prob(); {type(self.dynamics).__name__} has none: "
                "use BootstrapFilter"
            )

    def step(
        self, state: FilterState, observation: Observation | None, time: float, *, rng: Rng
    ) -> tuple[FilterState, Info]:
        """Resample, forecast to one step before `time`, then propose and weigh; see `Filter.step`."""
        start = resample(state.members, state.log_weights, self.resampling, self.threshold, rng=rng)
        steps = steps_between(self.dynamics, state.time, time)
        if observation is None or steps == 0:
            members = forecast(self.dynamics, start.members, state.time, time, rng=rng, method=self.name)
            increments = None if observation is None else observation.likelihood.log_prob(observation.y, members)
            return weigh(self.name, state.time, time, start, members, members, increments)
        before = state.time + (steps - 1) * self.dynamics.dt
        previous = forecast(self.dynamics, start.members, state.time, before, rng=rng, method=self.name)
        assert isinstance(self.dynamics, TransitionDensity)
        mean, covariance = self.dynamics.moments(previous, before)
        found = propose(mean, covariance, observation, rng=rng)
        return weigh(self.name, state.time, time, start, found.background, found.members, found.log_weights)


class Proposed(NamedTuple):
    """A guided move.

    Attributes:
        members: `(E, N, *event)`.
        background: `(E, N, *event)`, draws of the transition made with the same normal numbers.
        log_weights: `(E, N)`, log of p(x_k | x_{k-1}) p(y | x_k) / q(x_k).
    """

    members: Tensor
    background: Tensor
    log_weights: Tensor


def move(dynamics: Dynamics, members: Tensor, start: float, end: float, *, rng: Rng | None, method: str) -> Tensor:
    """As `forecast`; very many members go in chunks that stay in the cache, which is several times faster on a CPU.

    A chunk is stored value by value, so that what a system does with one component runs over neighbours in memory.
    Numbers of `Streams` are the same with and without chunks.
    """
    chunk = CHUNK_NUMBERS // max(members[:, 0].numel(), 1)
    few = members.ndim != 3 or members.shape[1] < 2 * chunk
    if few or members.device.type != "cpu" or (isinstance(rng, Streams) and rng.antithetic):
        return forecast(dynamics, members, start, end, rng=rng, method=method)
    moved = torch.empty_like(members)
    numbers = rng
    for k in range(0, members.shape[1], chunk):
        part = members[:, k : k + chunk].movedim(-1, 0).contiguous().movedim(0, -1)
        if isinstance(rng, Streams):
            numbers = rng.part(k, k + chunk)
        moved[:, k : k + chunk] = forecast(dynamics, part, start, end, rng=numbers, method=method)
    if isinstance(rng, Streams) and isinstance(numbers, Streams):
        rng.follow(numbers)
    return moved


class Linearised(NamedTuple):
    """The whitened observation, linear around the means of the transitions; float64.

    Attributes:
        residual: r(f), `(E, N, m)`.
        slope: J, `(E, K, m, d)`, K = N, or 1 where it is the same for all members.
        gain: J Q, `(E, K, m, d)`.
        root: lower Cholesky factor of `S = J Q J^T + I`, `(E, K, m, m)`.
    """

    residual: Tensor
    slope: Tensor
    gain: Tensor
    root: Tensor

    def log_evidence(self) -> Tensor:
        """Log N(r(f); 0, S) up to a constant, `(E, N)`."""
        score = torch.linalg.solve_triangular(self.root, self.residual.unsqueeze(-1), upper=False)
        log_det = torch.log(torch.diagonal(self.root, dim1=-2, dim2=-1)).sum(-1)
        return -0.5 * score.square().sum((-2, -1)) - log_det

    def at(self, ancestors: Tensor) -> Linearised:
        """The same for the members `ancestors`, `(E, N)`."""
        each = (select(part, ancestors) if part.shape[1] > 1 else part for part in self)
        return Linearised(*each)


def linearise(mean: Tensor, covariance: Covariance, observation: Observation) -> Linearised:
    """The observation around the means `(E, N, *event)` of transitions of covariance Q."""
    likelihood, y = observation
    observed_values(observation, mean)
    # The slope of a linear operator is the same for all members.
    slope = _slope(likelihood, y, mean[:, :1] if likelihood.linear else mean)
    gain = _times_covariance(slope, covariance)
    identity = torch.eye(slope.shape[-2], dtype=slope.dtype, device=slope.device)
    root = torch.linalg.cholesky(gain @ slope.mT + identity)
    return Linearised(likelihood.residual(y, mean).flatten(2).double(), slope, gain, root)


def propose(
    mean: Tensor,
    covariance: Covariance,
    observation: Observation,
    linear: Linearised | None = None,
    *,
    rng: Rng,
) -> Proposed:
    """Draws from the Gaussian posterior of the transition N(mean, covariance), and their weights.

    Args:
        mean: f, `(E, N, *event)`.
        covariance: Q.
        observation: any likelihood with a differentiable operator.
        linear: `linearise(mean, covariance, observation)`, where it is at hand.
        rng: draws `(E, N, *event)` and `(E, N, m)` numbers.
    """
    linear = linearise(mean, covariance, observation) if linear is None else linear
    wander = covariance.colour(normal(rng, tuple(mean.shape), dtype=mean.dtype, device=mean.device))
    errors = normal(rng, tuple(linear.residual.shape), dtype=mean.dtype, device=mean.device)
    shift = linear.residual - _times(linear.slope, wander.flatten(2).double()) - errors.double()
    pull = torch.cholesky_solve(shift.unsqueeze(-1), linear.root)
    move = wander + (linear.gain.mT @ pull).squeeze(-1).reshape(mean.shape).to(mean.dtype)
    members = mean + move
    left = linear.residual - _times(linear.slope, move.flatten(2).double())
    ratio = 0.5 * left.square().sum(-1) + linear.log_evidence()
    log_prob = observation.likelihood.log_prob(observation.y, members)
    return Proposed(members, mean + wander, log_prob + ratio.to(mean.dtype))


def weigh(
    method: str,
    last: float,
    time: float,
    start: Resampled,
    background: Tensor,
    members: Tensor,
    increments: Tensor | None,
) -> tuple[FilterState, Info]:
    """The weighted state and its record, from log weight increments `(E, N)` (None: no observation)."""
    check_finite(members, method, time, last, "members after the proposal")
    log_weights, evidence = start.log_weights, members.new_zeros(members.shape[0])
    if increments is not None:
        try:
            log_weights, evidence = log_normalize(start.log_weights + increments)
        except WeightCollapse as error:
            raise Diverged(method, time, last, str(error)) from error
    info = Info(background, evidence, effective_sample_size(log_weights), start.log_weights, start.ancestors)
    return FilterState(members, log_weights, float(time)), info


def _slope(likelihood: Likelihood, y: Tensor, x: Tensor) -> Tensor:
    """J = -dr/dx, `(E, K, m, d)` float64, at states `(E, K, *event)`; one backward pass for each observed value."""
    with torch.enable_grad():
        x = x.detach().requires_grad_()
        residual = likelihood.residual(y, x).flatten(2)
        rows = []
        for j in range(residual.shape[-1]):
            # Rows do not look at each other, so the gradient of their sum is the gradient of each.
            (row,) = torch.autograd.grad(residual[..., j].sum(), x, retain_graph=True)
            rows.append(-row.flatten(2))
    return torch.stack(rows, -2).double()


def _times_covariance(slope: Tensor, covariance: Covariance) -> Tensor:
    """`J Q`, without a d x d matrix where Q is a multiple of the identity."""
    if isinstance(covariance, ScaledIdentity):
        return slope * covariance.variance.double()
    return slope @ covariance.dense().to(slope)


def _times(slope: Tensor, x: Tensor) -> Tensor:
    """`J x` for `(E, K, m, d)` and `(E, N, d)`, K = 1 or N."""
    return (slope @ x.unsqueeze(-1)).squeeze(-1)
