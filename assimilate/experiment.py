"""Twin experiments: a simulated truth, its observations, and methods that try to find it again.

twin = Experiment(Lorenz63.flowdas(), likelihood, steps=60, experiments=64, seed=1)
truth, observations = twin.simulate()
analysis = twin.run(EnKF(twin.dynamics), truth, observations, members=100)
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from typing import Any

import torch
import xarray as xr

from assimilate.engine.cycle import Method
from assimilate.errors import UserError
from assimilate.runner import run
from dynamics.base import Dynamics, simulate
from dynamics.settings import COUNT, SEED, check_settings, whole
from observations.likelihood import Likelihood


def child_seed(seed: int, purpose: str) -> int:
    """A seed for one purpose, so that truth, observations and members never share their random numbers."""
    return int.from_bytes(hashlib.blake2b(f"{seed} {purpose}".encode(), digest_size=4).digest(), "little")


@dataclass(frozen=True)
class Experiment:
    """A twin experiment: a simulated truth, its observations, and methods that try to find it again.

    Args:
        dynamics: the true system.
        likelihood: what is measured and how well.
        steps: number of assimilation cycles.
        every: model steps in a cycle.
        experiments: independent truths, assimilated as one batch.
        spinup: model steps before the first state.
        seed: of the truth and the observations.
        initial: where ensembles start: "prior", "known" (the true first state) or "perturbed".
        initial_std: with "perturbed": standard deviation in Space units, one number or one per channel.
        dtype: float32 or float64.
    """

    dynamics: Dynamics
    likelihood: Likelihood
    steps: int
    every: int = 1
    experiments: int = 1
    spinup: int = 0
    seed: int = 0
    initial: str = "prior"
    initial_std: float | tuple[float, ...] | None = None
    dtype: torch.dtype = torch.float32

    def __post_init__(self) -> None:
        """Check the numbers, and the law of the initial ensemble."""
        check_settings(self, steps=COUNT, every=COUNT, experiments=COUNT, spinup=whole(0), seed=SEED)
        if self.initial not in ("prior", "known", "perturbed"):
            raise UserError(f'initial is "{self.initial}"; expected "prior", "known" or "perturbed"')
        if (self.initial == "perturbed") != (self.initial_std is not None):
            raise UserError('initial_std goes with initial="perturbed", and only with it')

    def simulate(self) -> tuple[xr.Dataset, xr.Dataset]:
        """The truth at times 0..steps and its observations at times 1..steps, dims (experiment, time, ...)."""
        from observations.synthetic import observe

        truth = simulate(
            self.dynamics,
            steps=self.steps * self.every,
            trajectories=self.experiments,
            seed=child_seed(self.seed, "truth"),
            every=self.every,
            spinup=self.spinup,
            dtype=self.dtype,
        )
        later = truth.isel(time=slice(1, None))
        seed = child_seed(self.seed, "observations")
        return truth, observe(later, self.dynamics.space, self.likelihood, seed=seed)

    def run(
        self,
        method: Method,
        truth: xr.Dataset,
        observations: xr.Dataset,
        *,
        members: int = 64,
        seed: int | None = None,
        **more: Any,
    ) -> xr.Dataset:
        """Run a method on this experiment's observations from its initial law; `more` goes to `run`."""
        first = truth.isel(time=0)
        return run(
            method,
            observations,
            likelihood=self.likelihood,
            members=members,
            seed=child_seed(self.seed, "method") if seed is None else seed,
            initial=None if self.initial == "prior" else first,
            initial_std=self.initial_std,
            start=first["time"],
            dtype=self.dtype,
            **more,
        )

    def with_seed(self, seed: int) -> Experiment:
        """The same experiment with other random numbers."""
        return replace(self, seed=seed)
