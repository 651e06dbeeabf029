"""DPS for operators that can only be evaluated."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from assimilate.posterior.condition import Guidance
from assimilate.posterior.guidance import ZeroOrder as ZeroOrderGuidance
from imaging.solvers.base import PathSolver, Task


@dataclass(frozen=True)
class ZeroOrder(PathSolver):
    """DPS by the score, with the operator's derivative from differences along random directions.

    The operator may be a program without derivatives; the network is differentiated once a level.

    Args:
        draws: random directions a level, two evaluations of the operator each (published: 1024). The error of the
            gradient is `sqrt((d + 1) / draws)` for images of d values, and adds to that of DPS.
        radius: length of a direction's step, in units of the prior's spread (published: 0.01 for images of spread
            near 1/2).
    """

    name: ClassVar[str] = "zero-order DPS"
    reference: ClassVar[str] = (
        "Zheng, Chu, Wang, Kovachki, Baptista, Yue (2024), Ensemble Kalman diffusion guidance: a derivative-free "
        "method for inverse problems, https://arxiv.org/abs/2409.20175 (a baseline there); Nesterov, Spokoiny (2017), "
        "Random gradient-free minimization of convex functions, https://doi.org/10.1007/s10208-015-9296-2"
    )
    backpropagates: ClassVar[bool] = True

    draws: int = 256
    radius: float = 0.02

    def guidance(self, task: Task) -> Guidance:
        """The score form, exact gain."""
        return ZeroOrderGuidance(draws=self.draws, radius=self.radius * task.prior.spread)
