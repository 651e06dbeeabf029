r"""DAPS: at every level a draw of the clean image around a centre, given the measurement, then noised anew."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from assimilate.posterior.condition import Guidance
from assimilate.posterior.corrections.daps import DAPS as DAPSCorrection
from assimilate.posterior.corrections.draw_around import Inner
from assimilate.posterior.samplers import Renoise, Sampler
from imaging.solvers.base import Need, PathSolver, Task


@dataclass(frozen=True)
class DAPS(PathSolver):
    """Decoupled annealing posterior sampling, with the centre and the variance corrected.

    The Gaussian around which images are drawn is centred on the clean mean, with the variance of a clean image of
    independent values, `sigma^2 p^2 / (sigma^2 + p^2)`: on Gaussian problems the spread of the samples is then right to
    a few per cent. `DAPS.published` centres on the end of a five-step flow and takes the variance sigma^2: the scatter
    of the flow's end is counted twice, and samples have about 1.6 times the posterior variance. `DAPS.short` draws as
    the published code does, by a walk that ends before it has spread: pictures are better for it, since a draw of
    independent values is no picture, and the spread of the samples is what the length of the walk makes it.

    Args:
        steps: levels (200).
        centre: see the correction.
        variance: see the correction.
        flow_steps: Euler steps of the flow (5), with centre "flow".
        inner: "auto" draws exactly where the observation is linear with Gaussian noise, by Langevin steps otherwise.
        inner_steps: Langevin steps (100).
        inner_step: their length, dimensionless, below 2.
        rate: largest step of a short walk, for images of spread 1/2 (1e-4); it grows with the square of the spread.
    """

    name: ClassVar[str] = "DAPS"
    reference: ClassVar[str] = (
        "Zhang, Chu, Berner, Meng, Anandkumar, Song (2024), Improving diffusion inverse problem solving with decoupled "
        "noise annealing, https://arxiv.org/abs/2407.01521"
    )
    needs: ClassVar[tuple[Need, ...]] = ("mean",)

    steps: int = 200
    centre: Literal["mean", "flow"] = "mean"
    variance: Literal["matched", "noise"] = "matched"
    flow_steps: int = 5
    inner: Inner = "auto"
    inner_steps: int = 100
    inner_step: float = 0.1
    rate: float | None = None

    @classmethod
    def published(cls, **settings: Any) -> DAPS:
        """The paper's centre and variance.

        Args:
            settings: any other setting of the class.
        """
        return cls(**{"centre": "flow", "variance": "noise", **settings})

    @classmethod
    def short(cls, **settings: Any) -> DAPS:
        """The paper's centre and variance, and the short walk of its code.

        Args:
            settings: any other setting of the class.
        """
        return cls.published(**{"inner": "short", "rate": 1e-4, **settings})

    def guidance(self, task: Task) -> Guidance:
        """The draw around the centre."""
        return DAPSCorrection(
            centre=self.centre, variance=self.variance, prior_std=task.prior.spread, flow_steps=self.flow_steps,
            inner=self.inner, steps=self.inner_steps, step=self.inner_step,
            rate=None if self.rate is None else self.rate * (task.prior.spread / 0.5) ** 2,
        )

    def sampler(self, task: Task) -> Sampler:
        """All noise new."""
        return Renoise(clean="given")
