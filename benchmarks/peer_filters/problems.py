r"""What a comparison of a public filter with ours consists of, and the data that both get.

Everything of a problem is one law: the truth starts from the prior, and so does every filter. Truth and observations
are ours, in float64; the random numbers of a filter are its own.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import torch
import xarray as xr

from assimilate.experiment import child_seed
from dynamics.base import Dynamics, simulate
from observations.likelihood import Likelihood
from observations.noise import GaussianNoise
from observations.synthetic import observe


class Comparison(NamedTuple):
    """One algorithm, ours and a peer's.

    Attributes:
        label: of the table.
        ours: our `Filter`.
        members: N.
        peer: "dapper", "particles" or "filterpy".
        theirs: the peer's name of the method under "method", and its settings.
        same_numbers: whether both compute the same function of the observations, without random numbers.
    """

    label: str
    ours: Any
    members: int
    peer: str
    theirs: Mapping[str, Any]
    same_numbers: bool = False


@dataclass(frozen=True)
class Problem:
    """A system, what is seen of it, and what is compared on it.

    Args:
        name: of the system in the results.
        title: what it is, in one line.
        dynamics: the system.
        likelihood: operator and Gaussian noise of one standard deviation.
        prior_mean: `(n,)`.
        prior_covariance: `(n, n)`.
        comparisons: the algorithms.
        cycles: analyses.
        burn_in: first analyses that are not scored.
        every: steps of the dynamics in a cycle.
        dtype: of our members; the peers compute in float64.
        known: what a peer has to know besides, numbers and arrays.
    """

    name: str
    title: str
    dynamics: Dynamics
    likelihood: Likelihood
    prior_mean: np.ndarray
    prior_covariance: np.ndarray
    comparisons: tuple[Comparison, ...]
    cycles: int
    burn_in: int
    every: int = 1
    dtype: torch.dtype = torch.float32
    known: Mapping[str, Any] = field(default_factory=dict)

    def arrays(self) -> dict[str, Any]:
        """What the peers' scripts read, besides truth and observations."""
        noise = self.likelihood.noise
        assert isinstance(noise, GaussianNoise)
        prior = {"prior_mean": self.prior_mean, "prior_covariance": self.prior_covariance}
        return {**prior, "system": self.name, "dt": self.dynamics.dt, "every": self.every, "r": noise.std, **self.known}


class Data(NamedTuple):
    """Truth and observations of several experiments, float64.

    Attributes:
        truth: at every step, (experiment, time, ...).
        observations: at every cycle, (experiment, time, ...).
        states: the truth as `(E, steps + 1, n)`.
        values: the observations as `(E, cycles, m)`.
    """

    truth: xr.Dataset
    observations: xr.Dataset
    states: np.ndarray
    values: np.ndarray


def draw(problem: Problem, experiments: int, seed: int) -> Data:
    """Truth and observations; the first experiments are the same however many there are.

    Args:
        problem: the system.
        experiments: number of truths.
        seed: of truth and observations.
    """
    dynamics, every = problem.dynamics, problem.every
    truth = simulate(
        dynamics,
        steps=problem.cycles * every,
        trajectories=experiments,
        seed=child_seed(seed, "truth"),
        dtype=torch.float64,
    )
    seen = truth.isel(time=slice(every, None, every))
    observations = observe(
        seen, dynamics.space, problem.likelihood, seed=child_seed(seed, "observations"), dtype=torch.float64
    )
    states = dynamics.space.to_tensor(truth, dtype=torch.float64).reshape(experiments, truth.sizes["time"], -1)
    (values,) = (array.values for array in observations.data_vars.values())
    return Data(truth, observations, states.numpy(), values.reshape(experiments, problem.cycles, -1))
