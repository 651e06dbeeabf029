r"""DDS: a few conjugate-gradient steps from the clean mean at every level, then a DDIM step.

The step carries along the network's own estimate of the noise, not one recomputed from the corrected state.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from assimilate.posterior.condition import Guidance
from assimilate.posterior.corrections.krylov import Krylov
from assimilate.posterior.samplers import Renoise, Sampler
from imaging.solvers.base import Need, PathSolver, Task


@dataclass(frozen=True)
class DDS(PathSolver):
    """Decomposed diffusion sampling.

    Args:
        steps: 50 to 100 in the paper.
        iterations: conjugate-gradient steps a level (5).
        gamma: weight of the data in units of 1 / ||A||^2 (5); it does not know the noise level. None = the paper's
            noiseless form, early-stopped conjugate gradients on the data alone.
        eta: DDIM's (0.85), a factor on the standard deviation of the new noise.
    """

    name: ClassVar[str] = "DDS"
    reference: ClassVar[str] = (
        "Chung, Lee, Ye (2024), Decomposed diffusion sampler for accelerating large-scale inverse problems, "
        "https://arxiv.org/abs/2303.05754"
    )
    needs: ClassVar[tuple[Need, ...]] = ("linear", "gaussian", "mean")

    steps: int = 50
    iterations: int = 5
    gamma: float | None = 5.0
    eta: float = 0.85

    def guidance(self, task: Task) -> Guidance:
        """The conjugate-gradient steps."""
        return Krylov(self.iterations, self.gamma)

    def sampler(self, task: Task) -> Sampler:
        """DDIM from the corrected state, along the network's own noise."""
        return Renoise(clean="given", fresh=self.eta**2, per="step", direction="unguided")
