r"""Twisted diffusion sampling: guided particles, weighted for what the guidance got wrong.

A guided step from t to s draws `x_s ~ q`, where the prior would have drawn from p; with a guess `psi_t(x)` of
`p(y | x_t)`, the weight of a particle grows by

    psi_s(x_s) / psi_t(x_t) * p(x_s | x_t) / q(x_s | x_t),         and psi at the clean image is p(y | x_1) itself,

so that the weighted particles tend to the posterior of the stepped prior however poor psi is; a good psi keeps the
weights even. The guidance is the gradient of log psi. Factors of psi that are the same for all particles cancel.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from assimilate.posterior.condition import Guidance, Problem, condition
from assimilate.posterior.covariance import Isotropic
from assimilate.posterior.guidance import DPS, PiGDM
from assimilate.posterior.guidance.base import isotropic_variance, observed_residual
from assimilate.posterior.linearize import observe_flat
from assimilate.posterior.predictors import Clean, Context
from assimilate.posterior.samplers import Ancestral
from assimilate.posterior.weights import check_resampling, log_normalize, resample, select, uniform_log_weights
from dynamics.errors import CapabilityError
from dynamics.random import Streams
from imaging.solvers.base import Exactness, Need, Solution, Task
from imaging.solvers.particles import ParticleSolver, draw_members
from observations.noise import GaussianNoise


@dataclass(frozen=True)
class TDS(ParticleSolver):
    """Twisted diffusion sampler.

    Args:
        steps: levels; the prior's own steps (DDPM) are what it is exact for.
        particles: of the ensemble (paper: 8 to 64).
        twist: psi: "pigdm", `N(y; A m, R + r^2 A A^T)` with the clean mean m and `r^2 = rho^2 p^2 / (rho^2 + p^2)` for
            the prior's spread p; or "dps", the likelihood of m (the paper's, for any noise and operator).
        threshold: share of the particles below which the effective sample size brings on resampling (paper: 1/2).
        iterations: most conjugate-gradient iterations for pigdm's inverse.

    Raises:
        WeightCollapse: no particle has a positive weight.

    Exactness: consistent: exact for the prior's steps as particles grow, mode weights included. In many dimensions the
    number needed is out of reach, and one particle's descendants are all that is left.

    Differs from the paper: pigdm's twist is the default, because the likelihood of m is over-confident while m is poor.
    """

    name: ClassVar[str] = "TDS"
    reference: ClassVar[str] = (
        "Wu, Trippe, Naesseth, Blei, Cunningham (2023), Practical and asymptotically exact conditional sampling in "
        "diffusion models, https://arxiv.org/abs/2306.17775"
    )
    needs: ClassVar[tuple[Need, ...]] = ("mean",)
    couples: ClassVar[bool] = True
    backpropagates: ClassVar[bool] = True
    exactness: ClassVar[Exactness] = "consistent"

    twist: Literal["pigdm", "dps"] = "pigdm"
    threshold: float = 0.5
    iterations: int = 50

    def __post_init__(self) -> None:
        """Check the settings."""
        super().__post_init__()
        check_resampling("systematic", self.threshold)
        if self.twist not in ("pigdm", "dps"):
            raise ValueError(f"twist is {self.twist!r}; expected 'pigdm' or 'dps'")

    def check(self, task: Task) -> None:
        """See `Solver.check`; pigdm's twist needs Gaussian noise."""
        super().check(task)
        if self.twist == "pigdm" and not isinstance(task.likelihood.noise, GaussianNoise):
            raise CapabilityError(
                f"{self.name}: twist='pigdm' needs Gaussian noise; {task.likelihood.noise!r} is not: use twist='dps'"
            )

    def guidance(self, task: Task) -> Guidance:
        """The gradient of log psi."""
        if self.twist == "dps":
            return DPS()
        return PiGDM(prior_std=task.prior.spread, iterations=self.iterations)

    def solve(self, task: Task, rng: Streams) -> Solution:
        """See `Solver.solve`."""
        own = self.streams(rng)
        path, sampler = self.path(task), Ancestral(variance="clean")
        times, counted = self.times(task, path), self.predictor(task, path)
        x = self.initial(task, path, times, own)
        y, context, dims = task.y.to(x), Context(), task.event_dims
        guided = condition(counted, path, task.likelihood, y, self.guidance(task), event_dims=dims, rng=own)

        def ask(state: Tensor, time: Tensor) -> Clean:
            return guided(state, time, context)

        log_weights = uniform_log_weights(x)
        evidence = log_weights.new_zeros(len(x))
        before = torch.zeros_like(log_weights)
        for t, s in zip(times[:-1], times[1:], strict=True):
            clean = ask(x, t)
            assert clean.unguided is not None
            guess = self._log_psi(clean.unguided.mean, x, t, guided.guidance, guided.problem)
            log_weights, total = log_normalize(log_weights + guess - before)
            evidence = evidence + total
            drawn = resample(x, log_weights, threshold=self.threshold, rng=own)
            x, log_weights = drawn.members, drawn.log_weights
            # The steps of a Gaussian prior of this spread are exact; without its variance a coarse grid loses spread.
            unknown = Isotropic(isotropic_variance(path, t, x, task.prior.spread))
            unguided = Clean(select(clean.unguided.mean, drawn.ancestors), covariance=unknown)
            chosen = Clean(select(clean.mean, drawn.ancestors), unguided=unguided)
            before = guess.gather(-1, drawn.ancestors)
            x, ratio = sampler.step(x, t, s, chosen, ask, path, context, own, True, dims)
            if ratio is not None:
                log_weights = log_weights + ratio
        log_weights, total = log_normalize(log_weights + task.likelihood.log_prob(y, x) - before)
        return Solution(draw_members(x, log_weights, rng), counted.calls[0], evidence + total)

    def _log_psi(self, mean: Tensor, x: Tensor, t: Tensor, guidance: Guidance, problem: Problem) -> Tensor:
        """Log psi up to a number for each level, `(E, particles)`."""
        if not isinstance(guidance, PiGDM):
            return problem.likelihood.log_prob(problem.y, mean)
        # The determinant of its covariance is the same for all particles.
        residual = observed_residual(observe_flat(problem.likelihood.operator, mean), problem)
        weights = guidance.weights(residual, Clean(mean), x, t, problem)
        return -0.5 * (residual * weights).sum(-1)
