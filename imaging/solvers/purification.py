r"""DCDP: rounds of gradient steps on the data, each followed by purification, noise to a level and denoising back.

    for k = 0..K-1:   v <- v + G gradient steps on log p(y | v)
                      v <- denoise(v + sigma_k z, sigma_k)

The levels fall with k: in the paper's thousand DDPM steps, from `start` in equal steps towards 0. Data steps and
network never meet in one formula ("decoupled"). The last thing done is purification, which is right for noisy y.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from assimilate.posterior.corrections.gradient_steps import GradientSteps
from assimilate.posterior.paths import VE
from assimilate.posterior.predictors import Context, OnPath
from assimilate.posterior.samplers import Ancestral
from assimilate.posterior.time_grids import ratio_times
from dynamics.errors import CapabilityError
from dynamics.random import Streams, normal
from imaging.solvers.base import Counted, Solution, Solver, Task
from imaging.solvers.ddpm_levels import ddpm_level
from observations.base import LinearOperator


@dataclass(frozen=True)
class DCDP(Solver):
    """Decoupled data consistency with diffusion purification.

    Args:
        rounds: K (10; 20 with `gradient_steps=50` in the paper's other setting).
        gradient_steps: G (100).
        rate: of the gradient steps, in units of the inverse stiffness; the published learning rates are 0.01 to 1. At 1
            a hundred steps with momentum fit the noise of a noisy blur: choose it on validation pictures there.
        momentum: of the gradient steps (0.9).
        first: first purification level, as a share of the thousand DDPM steps (0.4; 0.7 for inpainting).
        denoise: "ddim", the probability flow in `levels` steps; "tweedie", the clean mean at once; "consistency", one
            draw of a consistency model.
        levels: network evaluations of a DDIM purification (20).
    """

    name: ClassVar[str] = "DCDP"
    reference: ClassVar[str] = (
        "Li, Kwon, Liang, Alkhouri, Ravishankar, Qu (2024), Decoupled data consistency with diffusion purification for "
        "image restoration, https://arxiv.org/abs/2403.06054"
    )

    rounds: int = 10
    gradient_steps: int = 100
    rate: float = 1.0
    momentum: float = 0.9
    first: float = 0.4
    denoise: Literal["ddim", "tweedie", "consistency"] = "ddim"
    levels: int = 20

    def __post_init__(self) -> None:
        """Check the settings."""
        if self.denoise not in ("ddim", "tweedie", "consistency") or self.rounds < 1 or self.levels < 2:
            raise ValueError(f"{self!r}: expected denoise 'ddim', 'tweedie' or 'consistency', at least one round and "
                             "at least two levels")
        _ = self._data_steps

    @classmethod
    def tweedie(cls, **settings: Any) -> DCDP:
        """Purification by one clean mean.

        Args:
            settings: any other setting of the class.
        """
        return cls(**{"denoise": "tweedie", **settings})

    @classmethod
    def consistency(cls, **settings: Any) -> DCDP:
        """Purification by one draw of a consistency model.

        Args:
            settings: any other setting of the class.
        """
        return cls(**{"denoise": "consistency", **settings})

    @property
    def _data_steps(self) -> GradientSteps:
        return GradientSteps(self.gradient_steps, self.rate, self.momentum)

    def check(self, task: Task) -> None:
        """See `Solver.check`; each way of denoising has its kind of prior."""
        super().check(task)
        gives = getattr(task.prior, "gives", "mean")
        if self.denoise == "consistency" and gives != "draw":
            raise CapabilityError(f"{self.name} with denoise='consistency' needs a consistency model as its prior; use "
                                  "'tweedie' or 'ddim' with a denoiser")
        if self.denoise != "consistency" and gives != "mean":
            raise CapabilityError(f"{self.name} with denoise={self.denoise!r} needs the clean mean; this prior is a "
                                  "consistency model: use denoise='consistency'")

    def solve(self, task: Task, rng: Streams) -> Solution:
        """See `Solver.solve`."""
        path = VE(smallest=0.0, largest=task.prior.largest)
        counted = Counted(OnPath(task.prior, path, largest=task.prior.largest))
        shape, y = (*rng.rows, *task.event_shape), task.y.to(task.device, task.dtype)

        def noise() -> Tensor:
            return normal(rng, shape, dtype=task.dtype, device=task.device)

        # From zero the first gradient step of a linear problem is A* y; others need something to set out from.
        start = noise() * task.prior.spread
        v = torch.zeros_like(start) if isinstance(task.likelihood.operator, LinearOperator) else start
        for k in range(self.rounds):
            v = self._data_steps.ascend(v, task.likelihood, y)
            level = ddpm_level(self.first * (1 - k / self.rounds), task.prior.spread)
            level = min(level, task.prior.largest)
            x = v + level * noise()
            if self.denoise == "ddim" and level > task.prior.smallest:
                times = ratio_times(path, self.levels, largest=level, smallest=task.prior.smallest, start=False,
                                    dtype=task.dtype).to(task.device)
                v = Ancestral(eta=0.0)(counted, path, x, times=times, event_dims=task.event_dims, rng=rng).x
            else:
                time = torch.tensor(path.time(level), dtype=task.dtype, device=task.device)
                with torch.no_grad():
                    v = counted(x, time, Context()).mean
        return Solution(v, counted.calls[0])
