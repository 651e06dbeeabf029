r"""Filters and smoothers as posterior samplers: one analysis, starting from the exact prior.

The state before the observation is distributed as the problem's prior, either as an ensemble of draws at rest, or as
the one transition `x_1 ~ p(x_1 | x_0) = p(x_1)` that methods which look ahead need. So each becomes a sampler of the
same posterior that the solvers are judged on, and its card can be read beside theirs.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from assimilate.filters.ensemble import ETKF, EnKF
from assimilate.filters.flowdas import FlowDAS
from assimilate.filters.kalman import KalmanFilter
from assimilate.filters.particle import BootstrapFilter, GuidedParticleFilter
from assimilate.posterior.guidance import MMPS, JacobianFree
from assimilate.posterior.paths import Interpolant, Path
from assimilate.posterior.predictors import Context, OnPath, Predictor
from assimilate.posterior.samplers import Ancestral, Sampler
from assimilate.posterior.time_grids import ratio_times
from assimilate.posterior.weights import effective_sample_size, resample
from assimilate.smoothers.rts import RTS
from benchmarks.scorecard.problems import Problem
from dynamics.errors import CapabilityError
from dynamics.fields import Coordinate, Field
from dynamics.linear import LinearGaussian
from dynamics.random import Rng, Streams
from dynamics.space import Space
from observations.likelihood import Observation


class Analysed(NamedTuple):
    """An ensemble after one analysis.

    Attributes:
        members: `(n, *event)`, of equal weights.
        settings: what ran.
        exactness: its class.
    """

    members: Tensor
    settings: str
    exactness: str


@dataclass(frozen=True)
class PriorTransition:
    """The law `p(x_1)` as a generative transition that forgets where it starts, from the exact denoiser.

    Args:
        problem: gives the prior.
        steps: predictor calls.
    """

    problem: Problem
    steps: int = 400
    dt: float = 1.0

    @property
    def space(self) -> Space:
        """A Space of the right shape."""
        return space_of(self.problem.event_shape)

    @property
    def path(self) -> Path:
        """From the origin, in steps of the prior's spread."""
        return Interpolant(scale=self.problem.prior.spread)

    @property
    def predictor(self) -> Predictor:
        """The exact clean mean."""
        return OnPath(self.problem.prior, self.path, largest=self.problem.prior.largest)

    @property
    def sampler(self) -> Sampler:
        """The Foellmer process."""
        return Ancestral()

    @property
    def times(self) -> Tensor:
        """From t = 0, through the noise levels of the prior."""
        prior = self.problem.prior
        return ratio_times(
            self.path, self.steps, largest=prior.largest, smallest=prior.smallest, dtype=torch.float64
        )

    def context(self, x: Tensor, time: float) -> Context:
        """The origin is the base, wherever x is."""
        return Context(base=torch.zeros_like(x))

    def prior(self, shape: tuple[int, ...], *, rng: Rng, **options: Any) -> Tensor:
        """Any states will do; the origin."""
        return torch.zeros(*shape, *self.problem.event_shape, dtype=torch.float64)

    def step(self, x: Tensor, time: float, *, rng: Rng | None) -> Tensor:
        """Not asked for: the only step is the observed one."""
        raise NotImplementedError


def space_of(shape: tuple[int, ...]) -> Space:
    """A Space with this event shape: scalars, or one field on a periodic grid."""
    if len(shape) == 1:
        return Space.scalars(*(f"x{i}" for i in range(shape[0])))
    axes = {name: Coordinate(np.arange(n, dtype=float), (name,)) for name, n in zip("yx", shape[1:], strict=True)}
    return Space((Field("x", "1", ("y", "x")),), axes, periodic=("y", "x"))


def linear_system(problem: Problem, *, moving: bool) -> LinearGaussian:
    """A Gaussian prior as the initial law of a system at rest, or as the noise of one step from the mean.

    Raises:
        CapabilityError: the prior is a mixture.
    """
    if len(problem.law.weights) > 1:
        raise CapabilityError("needs a Gaussian prior; this one is a mixture")
    covariance = problem.law.covariances[0]
    none = torch.zeros_like(covariance)
    known, noise = (none, covariance) if moving else (covariance, none)
    return LinearGaussian(
        torch.eye(len(covariance), dtype=torch.float64),
        noise,
        problem.law.means[0],
        known,
        space=space_of(problem.event_shape),
    )


def draw_filter(name: str, problem: Problem, *, samples: int, levels: int, seed: int) -> Analysed:
    """The members of one filter or smoother after the observation.

    Args:
        name: key of `FILTERS`.
        problem: the problem.
        samples: members.
        levels: noise levels of the generative ones.
        seed: of the members and of the method.

    Raises:
        CapabilityError: it needs another prior.
    """
    return FILTERS[name](problem, samples, levels, seed)


def _analysis(method: Any, problem: Problem, members: Tensor, time: float, rng: Streams, note: str = "") -> Analysed:
    """One step of a filter to `time`, its members resampled to equal weights."""
    observation = Observation(problem.likelihood, problem.y)
    state, _ = method.step(method.init(members), observation, time, rng=rng.at(1))
    found, log_weights = method.ensemble(state)
    ess = float(effective_sample_size(log_weights)[0])
    # Weights that are equal but for rounding have nothing to resample.
    if ess < 0.999 * log_weights.shape[1]:
        found = resample(found, log_weights, "systematic", 1.0, rng=rng.at(2)).members
        note += f", effective sample size {ess:.0f}"
    return Analysed(found[0], f"{method.name}, {members.shape[1]} members{note}", method.exactness)


def _at_rest(method: Callable[[Any], Any]) -> Callable[[Problem, int, int, int], Analysed]:
    """A filter whose members are draws of the prior."""

    def run(problem: Problem, samples: int, levels: int, seed: int) -> Analysed:
        rng = Streams(seed, 1, samples)
        flat = problem.law.draw(samples, rng=torch.Generator().manual_seed(seed))
        members = flat.reshape(1, samples, *problem.event_shape)
        return _analysis(method(PriorTransition(problem)), problem, members, 0.0, rng)

    return run


def _kalman(problem: Problem, samples: int, levels: int, seed: int) -> Analysed:
    """The exact update."""
    system, rng = linear_system(problem, moving=False), Streams(seed, 1, samples)
    members = system.prior(rng.rows, rng=rng, dtype=torch.float64)
    return _analysis(KalmanFilter(system), problem, members, 0.0, rng)


def _smoother(problem: Problem, samples: int, levels: int, seed: int) -> Analysed:
    """The exact smoother on a window of one time."""
    smoother, rng = RTS(linear_system(problem, moving=False)), Streams(seed, 1, samples)
    observation = Observation(problem.likelihood, problem.y)
    drawn, _ = smoother.solve([observation], [0.0], samples, rng=rng, dtype=torch.float64)
    return Analysed(drawn[0, :, 0], f"{smoother.name}, {samples} draws", smoother.exactness)


def _guided_particles(problem: Problem, samples: int, levels: int, seed: int) -> Analysed:
    """The optimal proposal of one step."""
    system, rng = linear_system(problem, moving=True), Streams(seed, 1, samples)
    members = system.prior(rng.rows, rng=rng, dtype=torch.float64)
    return _analysis(GuidedParticleFilter(system), problem, members, 1.0, rng)


def _flowdas(guidance: Any) -> Callable[[Problem, int, int, int], Analysed]:
    """FlowDAS on the prior as a transition."""

    def run(problem: Problem, samples: int, levels: int, seed: int) -> Analysed:
        rng, transition = Streams(seed, 1, samples), PriorTransition(problem, levels)
        method = FlowDAS(transition, guidance=guidance)
        note = f", {type(guidance).__name__}, {levels} levels"
        if problem.y.numel() > method.weight_limit:
            note += ", no weights"
        return _analysis(method, problem, transition.prior(rng.rows, rng=rng), 1.0, rng, note)

    return run


FILTERS: dict[str, Callable[[Problem, int, int, int], Analysed]] = {
    "kalman": _kalman,
    "rts": _smoother,
    "enkf": _at_rest(EnKF),
    "etkf": _at_rest(ETKF),
    "bootstrap": _at_rest(BootstrapFilter),
    "guided-particle": _guided_particles,
    "flowdas-filter": _flowdas(JacobianFree(covariance="clean")),
    "flowdas-filter-mmps": _flowdas(MMPS()),
}
"""Name -> (problem, samples, levels, seed) -> members."""
