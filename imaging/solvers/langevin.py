r"""Solvers of the score itself: annealed Langevin dynamics, and sampling between noised measurements.

Langevin dynamics repeats, at each level sigma of a few and with `a = size sigma^2`,

    x <- x + (a / 2) [ score(x, sigma) + grad_x log N(y; A x, R + sigma^2 A A^T) ] + sqrt(a) z
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from assimilate.posterior.condition import Guidance
from assimilate.posterior.corrections.projection import NoisyState, Replacement
from assimilate.posterior.paths import Path
from assimilate.posterior.predictors import Clean, Context
from assimilate.posterior.samplers import Ancestral, PredictorCorrector, Projected, Sampler
from dynamics.random import Rng, normal
from imaging.solvers.base import Exactness, Need, PathSolver, Task
from imaging.solvers.constrained import measured_part


@dataclass(frozen=True)
class AnnealedLangevin(Sampler):
    """Langevin steps at each level of a grid; from the last one, the clean mean.

    Args:
        inner: steps at each level.
        size: their length a, in units of the level's variance (below 4 for stability).
    """

    inner: int = 20
    size: float = 0.2

    def step(
        self, x: Tensor, t: Tensor, s: Tensor, clean: Clean, again: Callable[[Tensor, Tensor], Clean], path: Path,
        context: Context, rng: Rng, weighted: bool, event_dims: int,
    ) -> tuple[Tensor, Tensor | None]:
        """See `Sampler.step`: all at level t, and then the same unit-space state at level s."""
        if weighted:
            raise ValueError("Langevin steps have no importance weight; ask for no weights")
        now, then = path.coefficients(t, x), path.coefficients(s, x)
        for count in range(self.inner):
            belief = clean if count == 0 else again(x, t)
            z = normal(rng, tuple(x.shape), dtype=x.dtype, device=x.device)
            # noise^2 score = beta m - x on paths without a start.
            x = x + 0.5 * self.size * (now.beta * belief.mean - x) + self.size**0.5 * now.noise * z
        if bool((then.noise == 0).all()):
            return then.beta * again(x, t).mean, None
        return then.beta / now.beta * x, None


@dataclass(frozen=True)
class SMLD(PathSolver):
    """Annealed Langevin dynamics with the likelihood of the noisy image.

    The likelihood at level sigma is `N(y; A x, R + sigma^2 A A^T)`: that of x itself, seen through the noise of the
    level. It needs no derivative of the network, is stable for any R, and is right in the limit of small levels; at
    larger ones it takes the prior for flat, which costs nothing but time if the chains mix.

    `steps * inner` network evaluations.

    Args:
        steps: levels (paper: 10 from 1 to 0.01; here from the prior's largest to its smallest).
        inner: Langevin steps at each (paper: 100).
        size: their length in units of `sigma^2` (paper: 2e-5 at sigma = 0.01, which is 0.2).

    Exactness: consistent: exact as `inner` grows, `size` and the smallest level fall; modes are mixed at large levels
    only.

    Differs from the paper: it has no measurement; the variance of the likelihood is ours (Jalal et al. 2021,
    https://arxiv.org/abs/2108.01368, add a number chosen for each level); the clean mean is returned at the end.
    """

    name: ClassVar[str] = "SMLD"
    reference: ClassVar[str] = (
        "Song, Ermon (2019), Generative modeling by estimating gradients of the data distribution, "
        "https://arxiv.org/abs/1907.05600"
    )
    needs: ClassVar[tuple[Need, ...]] = ("gaussian", "mean")
    exactness: ClassVar[Exactness] = "consistent"

    steps: int = 40
    inner: int = 25
    size: float = 0.2

    def __post_init__(self) -> None:
        """Check the settings."""
        if self.inner < 1 or not 0 < self.size < 4:
            raise ValueError(f"inner={self.inner}, size={self.size}; expected at least 1 step and 0 < size < 4")

    def guidance(self, task: Task) -> Guidance:
        """The likelihood of the noisy image."""
        return NoisyState()

    def sampler(self, task: Task) -> Sampler:
        """See `AnnealedLangevin`."""
        return AnnealedLangevin(self.inner, self.size)


@dataclass(frozen=True)
class NoisedMeasurements(PathSolver):
    """Unguided sampling in which the seen part of every noisy image is mixed with the measurement, noised alike.

    Args:
        steps: 1000 in the paper.
        strength: lambda, the weight of the measurement: 1 for one without noise, less for others (paper: tuned).
        corrections: Langevin corrections a level, one more network evaluation each (paper: 1).
        signal_to_noise: r of the correction, see `ScoreMRI`.
        cutoff: singular values below this share of the largest are left to the prior.
        iterations: of the pseudo-inverse, for operators without an SVD.

    Differs from the paper: its operators are a transform and a choice of coefficients; any linear one is allowed here,
    by its pseudo-inverse. Nothing is mixed into the state of pure noise at the start.
    """

    name: ClassVar[str] = "noised measurements"
    reference: ClassVar[str] = (
        "Song, Shen, Xing, Ermon (2022), Solving inverse problems in medical imaging with score-based generative "
        "models, https://arxiv.org/abs/2111.08005"
    )
    needs: ClassVar[tuple[Need, ...]] = ("linear",)

    steps: int = 500
    strength: float = 1.0
    corrections: int = 1
    signal_to_noise: float = 0.16
    cutoff: float = 0.1
    iterations: int = 20

    def sampler(self, task: Task) -> Sampler:
        """Each step begins, but for the first, with the projection that ends the one before."""
        inner: Sampler = Ancestral()
        if self.corrections:
            inner = PredictorCorrector(inner, corrections=self.corrections, tau=2 * self.signal_to_noise**2)
        part = measured_part(task, self.cutoff, self.iterations)
        return Projected(inner, Replacement(part, self.strength), last=False)
