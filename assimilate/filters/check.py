"""Is this a filter? Run `check_filter` on your own class before anything else.

It makes the filter for a small linear Gaussian system, a field on a ring of which every other cell is seen with noise,
and holds it against what a filter promises; where the filter calls itself "exact" or "consistent", also against the
Kalman filter.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, get_args

import torch
from torch import Tensor

from assimilate.filters.base import Exactness, Filter, Info
from assimilate.filters.kalman import KalmanFilter
from assimilate.posterior.weights import weighted_mean, weighted_variance
from dynamics.base import Dynamics
from dynamics.check import require
from dynamics.linear import LinearGaussian
from dynamics.random import Streams
from observations.likelihood import Likelihood, Observation
from observations.noise import GaussianNoise
from observations.sampling import Mask

CELLS = 6
NOISE_STD = 0.5
STEPS = 5
FEW = 20
"""Members of the checks of the contract."""


class Run(NamedTuple):
    """A short assimilation: the last ensemble, the sum of the log evidence and the last record."""

    members: Tensor
    log_weights: Tensor
    log_evidence: Tensor
    info: Info


def check_filter(
    factory: Callable[[Dynamics], Any], *, members: int = 1000, seed: int = 0, tolerance: float | None = None
) -> None:
    """Check that `factory(dynamics)` keeps the contract of `Filter`.

    Checked: the attributes; shapes, dtypes and normalised weights of `init`, `step` and `ensemble`; that NaN
    observations are none and that without observations the ensemble is the forecast; that one seed gives one result;
    that experiments do not depend on each other; and, unless the filter calls itself "biased", that mean, spread and
    evidence after five steps are those of the Kalman filter.

    Args:
        factory: makes the filter for given dynamics, such as `EnKF` or `lambda d: MyFilter(d, inflation=1.1)`.
        members: number of members of the comparison with the Kalman filter.
        seed: of the experiment.
        tolerance: largest error of the mean in posterior standard deviations, and relative error of the spread
            (default `8 / sqrt(members)`: an effective sample size of a quarter of the members, four standard errors);
            four times that for the log evidence.

    Raises:
        ContractError: the first broken promise.
    """
    dynamics = LinearGaussian.ring(CELLS)
    method = factory(dynamics)
    _check_attributes(method)
    both = _observations(dynamics, 2, seed)
    result = _run(method, dynamics, both, Streams(seed, 2, FEW))
    _check_shapes(result, dynamics)
    again = _run(factory(dynamics), dynamics, both, Streams(seed, 2, FEW))
    require(_equal(result, again), "two runs with one seed differ: draw every number from the `rng` of the step")
    other = _run(method, dynamics, both, Streams(seed + 1, 2, FEW))
    require(not _equal(result, other), "two seeds give the same members: is `rng` passed on to the dynamics?")
    for index in range(2):
        part = [Observation(o.likelihood, o.y[index : index + 1]) for o in both]
        alone = _run(method, dynamics, part, Streams(seed, (index,), FEW))
        _close(alone.members[0], result.members[index], f"members of experiment {index} change when another is added")
    _check_missing(method, dynamics, both, seed)
    if method.exactness != "biased":
        limit = 8 / members**0.5 if tolerance is None else tolerance
        _check_posterior(method, dynamics, members, seed, limit)


def _check_attributes(method: Any) -> None:
    require(isinstance(method, Filter), f"{method!r} lacks one of: name, exactness, dynamics, init, step, ensemble")
    require(isinstance(method.name, str) and bool(method.name), f"name is {method.name!r}; expected a text")
    known = get_args(Exactness)
    require(method.exactness in known, f"exactness is {method.exactness!r}; expected one of {', '.join(known)}")


def _check_shapes(result: Run, dynamics: LinearGaussian) -> None:
    expected = (2, FEW, *dynamics.space.event_shape)
    for value, what, shape in (
        (result.members, "ensemble(state)[0]", expected),
        (result.log_weights, "ensemble(state)[1]", (2, FEW)),
        (result.members if result.info.background is None else result.info.background, "info.background", expected),
        (result.info.log_evidence, "info.log_evidence", (2,)),
        (result.info.ess, "info.ess", (2,)),
    ):
        require(tuple(value.shape) == shape, f"{what} has shape {tuple(value.shape)}; expected {shape}")
        require(value.dtype == torch.float32, f"{what} has dtype {value.dtype}; expected that of the members, float32")
    require(bool(torch.isfinite(result.members).all()), "members are not finite after five steps")
    total = torch.logsumexp(result.log_weights, -1)
    require(bool((total.abs() < 1e-4).all()), f"weights sum to exp({total.tolist()}); expected normalised log weights")
    ess = result.info.ess
    require(bool(((ess > 0.999) & (ess < FEW * 1.001)).all()), f"ess is {ess.tolist()}; expected 1 to {FEW}")


def _check_missing(method: Any, dynamics: LinearGaussian, both: list[Observation], seed: int) -> None:
    """NaN is None, and neither changes the forecast."""
    rng = Streams(seed, 2, FEW)
    state = method.init(dynamics.prior((2, FEW), rng=rng.at(0)), 0.0)
    nothing = Observation(both[0].likelihood, torch.full_like(both[0].y, torch.nan))
    states = [method.step(state, observation, dynamics.dt, rng=rng.at(1)) for observation in (None, nothing)]
    (free, info), (blind, blind_info) = ((method.ensemble(after)[0], info) for after, info in states)
    _close(blind, free, "an observation of NaN alone changes the members")
    if info.background is not None:
        _close(free, info.background, "without observations the members are not the background")
    for record, what in ((info, "None"), (blind_info, "NaN")):
        require(
            bool((record.log_evidence.abs() < 1e-4).all()),
            f"log evidence of an observation of {what} is {record.log_evidence.tolist()}; expected 0",
        )


def _check_posterior(method: Any, dynamics: LinearGaussian, members: int, seed: int, tolerance: float) -> None:
    experiments = 4
    observations = _observations(dynamics, experiments, seed)
    streams = Streams(seed, experiments, members)
    exact = KalmanFilter(dynamics)
    state = exact.init(dynamics.prior((experiments, 2), rng=Streams(seed, experiments, 2).at(0)), 0.0)
    evidence = torch.zeros(experiments)
    for k, observation in enumerate(observations):
        state, info = exact.step(state, observation, (k + 1) * dynamics.dt, rng=Streams(seed, experiments, 2).at(k + 1))
        evidence = evidence + info.log_evidence
    std = torch.diagonal(state.covariance, dim1=-2, dim2=-1).sqrt()
    found = _run(method, dynamics, observations, streams)
    mean = weighted_mean(found.members, found.log_weights).flatten(1)
    spread = weighted_variance(found.members, found.log_weights).flatten(1).sqrt()
    error = float(((mean - state.mean) / std).square().mean().sqrt())
    require(error < tolerance, f"the mean is {error:.3f} posterior standard deviations off; expected < {tolerance:.3f}")
    ratio = float((spread / std).mean())
    require(abs(ratio - 1) < tolerance, f"the spread is {ratio:.3f} times the exact one; expected 1 +- {tolerance:.3f}")
    known = torch.isfinite(found.log_evidence)
    gap = (found.log_evidence - evidence)[known].abs()
    require(
        bool((gap < 4 * tolerance).all()),
        f"log evidence is off by {gap.tolist()}; expected < {4 * tolerance:.3f} (NaN says that a method has none)",
    )


def _observations(dynamics: LinearGaussian, experiments: int, seed: int) -> list[Observation]:
    """Every other cell at five times, one value missing."""
    rng = Streams(seed + 17, experiments, 1)
    likelihood = Likelihood(Mask(dynamics.space, torch.arange(0, CELLS, 2)), GaussianNoise(std=NOISE_STD))
    truth, found = dynamics.prior((experiments, 1), rng=rng.at(0)), []
    for k in range(STEPS):
        truth = dynamics.step(truth, k * dynamics.dt, rng=rng.at(2 * k + 1))
        found.append(Observation(likelihood, likelihood.sample(truth, rng=rng.at(2 * k + 2))))
    found[2].y[0, 0, 1] = torch.nan
    return found


def _run(method: Any, dynamics: LinearGaussian, observations: list[Observation], rng: Streams) -> Run:
    state = method.init(dynamics.prior(rng.rows, rng=rng.at(0)), 0.0)
    evidence = torch.zeros(rng.rows[0])
    for k, observation in enumerate(observations):
        state, info = method.step(state, observation, (k + 1) * dynamics.dt, rng=rng.at(k + 1))
        evidence = evidence + info.log_evidence
    members, log_weights = method.ensemble(state)
    return Run(members, log_weights, evidence, info)


def _equal(a: Run, b: Run) -> bool:
    return torch.equal(a.members, b.members) and torch.equal(a.log_weights, b.log_weights)


def _close(a: Tensor, b: Tensor, what: str) -> None:
    gap = float((a - b).abs().max())
    require(gap < 1e-4 * (1 + float(b.abs().max())), f"{what} (by {gap:.3g})")
