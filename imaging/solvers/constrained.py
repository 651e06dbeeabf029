"""Solvers that enforce the measurement on the noisy image itself, after every step of the path.

None of them knows how large the noise of the measurement is: they were made for measurements without, and reproduce
the noise of others. Singular values below `cutoff` are left to the prior, because the pseudo-inverse enlarges the noise
by their inverse.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar, Literal

from assimilate.posterior.corrections.null_space import MeasuredPart
from assimilate.posterior.corrections.projection import AdjointStep, Replacement
from assimilate.posterior.samplers import Ancestral, PredictorCorrector, Projected, Sampler
from dynamics.random import Streams
from imaging.operators.norm import operator_norm
from imaging.solvers.base import Need, PathSolver, Solution, Solver, Task
from imaging.solvers.guided import DPS
from imaging.solvers.null_space import DDNM


def measured_part(task: Task, cutoff: float = 0.0, iterations: int = 20) -> MeasuredPart:
    """Operator and measurement of a task."""
    return MeasuredPart(task.linear, task.y.to(task.device, task.dtype), cutoff, iterations)


def task_norm(task: Task) -> float:
    """The largest singular value of the task's operator."""
    return operator_norm(task.linear, dtype=task.dtype, device=task.device)


@dataclass(frozen=True)
class MCG(DPS):
    """Manifold constrained gradient: DPS, and then the seen part of the image replaced by the noised measurement.

    Args:
        steps: 1000 in the paper.
        zeta: step along the gradient, see `DPS` (published: 1). It is one length for all numbers of values, which is
            far too long in a handful of dimensions.
        cutoff: singular values below this share of the largest are left to the prior.
        iterations: of the pseudo-inverse, for operators without an SVD.

    Differs from the paper: the replacement goes through the pseudo-inverse, for operators that are no projections.
    """

    name: ClassVar[str] = "MCG"
    reference: ClassVar[str] = (
        "Chung, Sim, Ryu, Ye (2022), Improving diffusion models for inverse problems using manifold constraints, "
        "https://arxiv.org/abs/2206.00941"
    )
    needs: ClassVar[tuple[Need, ...]] = ("linear",)

    zeta: float = 1.0
    cutoff: float = 0.1
    iterations: int = 20

    def sampler(self, task: Task) -> Sampler:
        """DDPM, projected."""
        return Projected(Ancestral(), Replacement(measured_part(task, self.cutoff, self.iterations)))


@dataclass(frozen=True)
class ILVR(PathSolver):
    """Iterative latent variable refinement: unguided steps, the seen part replaced by the noised measurement.

    Args:
        steps: at least 100 (paper: 100 to 1000).
        cutoff: singular values below this share of the largest are left to the prior.
        iterations: of the pseudo-inverse, for operators without an SVD.

    Differs from the paper: `A^+ A` stands for its low-pass filter, so that any linear operator will do; it starts
    from the levels in image units and not from VP's, which is the same up to the spacing.
    """

    name: ClassVar[str] = "ILVR"
    reference: ClassVar[str] = (
        "Choi, Kim, Jeong, Gwon, Yoon (2021), ILVR: conditioning method for denoising diffusion probabilistic models, "
        "https://arxiv.org/abs/2108.02938"
    )
    needs: ClassVar[tuple[Need, ...]] = ("linear",)

    cutoff: float = 0.1
    iterations: int = 20

    def sampler(self, task: Task) -> Sampler:
        """DDPM, projected."""
        return Projected(Ancestral(), Replacement(measured_part(task, self.cutoff, self.iterations)))


@dataclass(frozen=True)
class ScoreMRI(PathSolver):
    """Score-MRI, or POCS: a predictor and a corrector, each followed by a gradient step on the misfit.

    Two network evaluations a level and correction. The gradient step takes the measurement as it is, not noised.

    Args:
        steps: 2000 in the paper.
        corrections: Langevin corrections a level (paper: 1).
        signal_to_noise: r of the correction, whose step is `2 r^2 / mean(score^2)` (paper: 0.16).
        strength: lambda, in units of `1 / |A|^2` (paper: 1 for an operator of norm 1); below 2.

    Differs from the paper: the correction's step comes from each sample's own score, so it is noisy in few dimensions
    (and widens the spread there); real and imaginary parts are channels.
    """

    name: ClassVar[str] = "Score-MRI"
    reference: ClassVar[str] = (
        "Chung, Ye (2022), Score-based diffusion models for accelerated MRI, https://arxiv.org/abs/2110.05243"
    )
    needs: ClassVar[tuple[Need, ...]] = ("linear",)

    steps: int = 500
    corrections: int = 1
    signal_to_noise: float = 0.16
    strength: float = 1.0

    def sampler(self, task: Task) -> Sampler:
        """A projection behind the predictor and behind each corrector."""
        projection = AdjointStep(measured_part(task), task_norm(task), self.strength)
        sampler: Sampler = Projected(Ancestral(), projection)
        tau = 2 * self.signal_to_noise**2
        for _ in range(self.corrections):
            # No correction follows the last step, so that nothing would be projected that has not been already.
            sampler = Projected(PredictorCorrector(sampler, corrections=1, tau=tau), projection, last=False)
        return sampler


@dataclass(frozen=True)
class CCDF(Solver):
    """Come closer, diffuse faster: another solver, from the pseudo-inverse with little noise instead of pure noise.

    Args:
        solver: "ddnm" or "score-mri".
        start: noise level to start from, units of the image; default: 1.4 times the prior's spread, which is the
            paper's time 0.2 (for images in [-1, 1] on its VP path). The better the first image, the lower.
        steps: levels from there on; the paper keeps the spacing of 1000 and so takes 200.

    Differs from the paper: the first image is `A^+ y` and not a trained network's.
    """

    name: ClassVar[str] = "CCDF"
    reference: ClassVar[str] = (
        "Chung, Sim, Ye (2022), Come-closer-diffuse-faster: accelerating conditional diffusion models for inverse "
        "problems through stochastic contraction, https://arxiv.org/abs/2112.05146"
    )
    needs: ClassVar[tuple[Need, ...]] = ("linear",)

    solver: Literal["ddnm", "score-mri"] = "ddnm"
    start: float | None = None
    steps: int = 50

    def __post_init__(self) -> None:
        """Check the settings."""
        if self.solver not in ("ddnm", "score-mri"):
            raise ValueError(f"solver is {self.solver!r}; expected 'ddnm' or 'score-mri'")

    def inner(self, task: Task) -> PathSolver:
        """The solver with its start."""
        inner: PathSolver = DDNM() if self.solver == "ddnm" else ScoreMRI()
        return replace(inner, steps=self.steps, start=self.start or 1.4 * task.prior.spread)

    def check(self, task: Task) -> None:
        """See `Solver.check`; what the other solver needs is needed."""
        super().check(task)
        self.inner(task).check(task)

    def solve(self, task: Task, rng: Streams) -> Solution:
        """See `Solver.solve`."""
        return self.inner(task).solve(task, rng)
