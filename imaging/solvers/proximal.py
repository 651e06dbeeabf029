r"""DiffPIR: the proximal point of the data term at every level, noised again.

At noise level sigma, with the clean mean D and the next level sigma':

    h = argmin -2 log p(y | x) + lam / sigma^2 |x - D|^2
    x <- h + sigma' ( sqrt(1 - zeta) (x - h) / sigma + sqrt(zeta) z )
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from assimilate.posterior.condition import Guidance
from assimilate.posterior.corrections.proximal import Proximal
from assimilate.posterior.samplers import Renoise, Sampler
from imaging.solvers.base import Need, PathSolver, Task


@dataclass(frozen=True)
class DiffPIR(PathSolver):
    """DiffPIR: linear operators in closed form or by conjugate gradients, others by Gauss-Newton steps.

    The default is the published setting, which is good in the mean and has about 60 % of the posterior variance on
    Gaussian problems; `DiffPIR.calibrated` has about 90 %.

    Args:
        steps: 20 to 100 in the paper.
        strength: lam, dimensionless (7); 1 is the clean variance sigma^2.
        zeta: share of new noise (1); 0.3 in the paper's noisier tasks.
        iterations: most conjugate-gradient iterations where the operator has no closed form.
        newton: Gauss-Newton steps for nonlinear operators.
    """

    name: ClassVar[str] = "DiffPIR"
    reference: ClassVar[str] = (
        "Zhu, Zhang, Liang, Cao, Wen, Timofte, Van Gool (2023), Denoising diffusion models for plug-and-play image "
        "restoration, https://arxiv.org/abs/2305.08995"
    )
    needs: ClassVar[tuple[Need, ...]] = ("gaussian", "mean")

    strength: float = 7.0
    zeta: float = 1.0
    iterations: int = 100
    newton: int = 5

    @classmethod
    def calibrated(cls, **settings: Any) -> DiffPIR:
        """The setting with the best spread on Gaussian problems: lam = 1, zeta = 0.3.

        Args:
            settings: any other setting of the class.
        """
        return cls(**{"strength": 1.0, "zeta": 0.3, **settings})

    def guidance(self, task: Task) -> Guidance:
        """The proximal point."""
        return Proximal(self.strength, self.iterations, self.newton)

    def sampler(self, task: Task) -> Sampler:
        """Noise on it, a share of it new."""
        return Renoise(clean="given", fresh=self.zeta)
