r"""PnP-DM: a Gibbs sampler that splits the posterior into a data half and a prior half.

    z ~ p(y | z) N(z; x, rho^2 I)                 exact for linear observations with Gaussian noise, Langevin otherwise
    x ~ p(x) N(z; x, rho^2 I)                     the reverse diffusion from z, taken as a noisy image at level rho

At a fixed rho it samples `p(x) integral p(y | z) N(z; x, rho^2) dz`, which tends to the posterior as rho falls. rho
falls geometrically to a smallest value and stays there for the rest of the iterations; a smaller one is less biased and
mixes more slowly.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from assimilate.posterior.corrections.draw_around import DrawAround, Inner
from assimilate.posterior.paths import VE
from assimilate.posterior.predictors import OnPath
from assimilate.posterior.samplers import Ancestral
from assimilate.posterior.time_grids import ratio_times
from dynamics.random import Streams, normal
from imaging.solvers.base import Counted, Exactness, Need, Solution, Solver, Task


@dataclass(frozen=True)
class PnPDM(Solver):
    """Plug-and-play diffusion models: the split Gibbs sampler with an annealed coupling.

    Args:
        iterations: Gibbs iterations (100 to 200 in the paper); one sample is the last state of its own chain.
        first: first rho, in units of the prior's spread (10).
        decay: factor a iteration (0.9).
        last: smallest rho, in units of the prior's spread (0.1).
        levels: steps of the reverse diffusion (50; the paper: 100). Few of them lose variance with "lower".
        variance: of those steps, see `Ancestral`: "clean" is exact for a Gaussian in any number of levels, and needs a
            prior that knows the covariance of the clean image.
        inner: see `DrawAround`.
        inner_steps: Langevin steps (100).
        inner_step: their length, dimensionless, below 2.
    """

    name: ClassVar[str] = "PnP-DM"
    reference: ClassVar[str] = (
        "Wu, Sun, Chen, Zhang, Yue, Bouman (2024), Principled probabilistic imaging using diffusion models as "
        "plug-and-play priors, https://arxiv.org/abs/2405.18782"
    )
    needs: ClassVar[tuple[Need, ...]] = ("mean",)
    exactness: ClassVar[Exactness] = "consistent"

    iterations: int = 100
    first: float = 10.0
    decay: float = 0.9
    last: float = 0.1
    levels: int = 50
    variance: Literal["lower", "clean"] = "lower"
    inner: Inner = "auto"
    inner_steps: int = 100
    inner_step: float = 0.1

    def __post_init__(self) -> None:
        """Check the settings."""
        if self.iterations < 1 or self.levels < 2 or not 0 < self.decay <= 1 or not 0 < self.last <= self.first:
            raise ValueError(f"{self!r}: expected at least one iteration, two levels, a decay from 0 to 1, and "
                             "0 < last <= first")
        _ = self._draw

    @property
    def _draw(self) -> DrawAround:
        return DrawAround(self.inner, self.inner_steps, self.inner_step)

    def check(self, task: Task) -> None:
        """See `Solver.check`; the prior must know noise levels below the smallest rho."""
        super().check(task)
        if not self.last * task.prior.spread > task.prior.smallest:
            raise ValueError(f"last={self.last} is rho = {self.last * task.prior.spread:.3g}; it must be above the "
                             f"prior's smallest noise level, {task.prior.smallest:.3g}")

    def solve(self, task: Task, rng: Streams) -> Solution:
        """See `Solver.solve`."""
        prior, y = task.prior, task.y.to(task.device, task.dtype)
        path = VE(smallest=0.0, largest=prior.largest)
        counted = Counted(OnPath(prior, path, largest=prior.largest))
        shape = (*rng.rows, *task.event_shape)
        x = prior.spread * normal(rng, shape, dtype=task.dtype, device=task.device)
        reverse = Ancestral(variance=self.variance)
        for k in range(self.iterations):
            rho = min(max(self.first * self.decay**k, self.last) * prior.spread, prior.largest)
            z = self._draw(x, x.new_full((1,) * x.ndim, rho**2), task.likelihood, y, rng)
            times = ratio_times(
                path, self.levels, largest=rho, smallest=prior.smallest, start=False, dtype=task.dtype
            ).to(task.device)
            x = reverse(counted, path, z, times=times, event_dims=task.event_dims, rng=rng).x
        return Solution(x, counted.calls[0])
