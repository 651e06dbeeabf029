"""SITCOM: at every level the noisy state is moved until it denoises to the measurement, then noised anew."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from assimilate.posterior.condition import Guidance
from assimilate.posterior.corrections.sitcom import SITCOM as SITCOMCorrection
from assimilate.posterior.samplers import Renoise, Sampler
from imaging.solvers.base import Need, PathSolver, Task


@dataclass(frozen=True)
class SITCOM(PathSolver):
    """Step-wise triple-consistent sampling.

    The published script keeps the iterate that is nearest to the truth; here the last one is what counts.

    Args:
        steps: N (20).
        iterations: K, Adam steps a level (20; 20 to 40 in the paper).
        rate: Adam's learning rate (0.01), in the paper's coordinates.
        penalty: weight of the displacement (1).
        stop: mean squared whitened residual at which a sample stands still (1.04).
    """

    name: ClassVar[str] = "SITCOM"
    reference: ClassVar[str] = (
        "Alkhouri, Liang, Huang, Dai, Qu, Ravishankar, Wang (2024), SITCOM: step-wise triple-consistent diffusion "
        "sampling for inverse problems, https://arxiv.org/abs/2410.04479"
    )
    needs: ClassVar[tuple[Need, ...]] = ("gaussian", "mean")
    backpropagates: ClassVar[bool] = True

    steps: int = 20
    iterations: int = 20
    rate: float = 0.01
    penalty: float = 1.0
    stop: float = 1.04

    def guidance(self, task: Task) -> Guidance:
        """The Adam steps."""
        return SITCOMCorrection(self.iterations, self.rate, self.penalty, self.stop, prior_std=task.prior.spread)

    def sampler(self, task: Task) -> Sampler:
        """All noise new."""
        return Renoise(clean="given")
