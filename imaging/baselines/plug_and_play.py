r"""Plug-and-play: a denoiser in the place of a prior's proximal step or gradient, at one noise level s.

A denoiser that knows the prior answers with the mean of the clean image; its residual is the score of the prior
smoothed by s (Tweedie), `D(x) - x = s^2 grad log p_s(x)`. So both methods look for a most probable image:

    PnP-ADMM   x = argmin 1/2 |R^-1/2 (y - A x)|^2 + |x - (v - u)|^2 / (2 s^2),   v = D(x + u),   u += x - v
    PnP-RED    (H + r / s^2) x_new = A^T R^-1 y + r / s^2 D(x),   r = 1: a stationary point of p(y | x) p_s(x)

For a Gaussian prior N(m, C) the first ends at the posterior mean for every s, and the second at the posterior mean of
N(m, C + s^2 I). For other priors a denoiser is no proximal step, and the answer depends on s; the levels are in units
of the prior's spread.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from imaging.baselines.data_term import DataTerm
from imaging.baselines.point import PointSolver
from imaging.solvers.base import Need, Task


@dataclass(frozen=True)
class PlugAndPlay(PointSolver):
    """What both share.

    Args:
        level: noise level s of the denoiser, in units of the prior's spread. The default is a place to start; choose it
            with `imaging.tuning`.
        iterations: of the method, one network evaluation each.
        inner: most conjugate-gradient iterations of each data step, from the last image.
        begin: conjugate-gradient iterations of the least-squares image that it starts from.
    """

    needs: ClassVar[tuple[Need, ...]] = ("linear", "gaussian", "mean")

    level: float = 0.1
    iterations: int = 50
    inner: int = 10
    begin: int = 10

    def __post_init__(self) -> None:
        """Check the level."""
        if not self.level > 0 or self.iterations < 1:
            raise ValueError(f"{self!r}: expected a positive level and at least one iteration")

    def noise(self, task: Task) -> float:
        """s, in the units of the image."""
        return self.level * task.prior.spread

    def denoise(self, task: Task, x: Tensor) -> Tensor:
        """`D(x)`."""
        ratio = torch.tensor(self.noise(task), dtype=x.dtype, device=x.device)
        with torch.no_grad():
            return task.prior(x, ratio).mean

    def first(self, data: DataTerm) -> Tensor:
        """The image to start from."""
        return data.solve(torch.zeros_like, data.zero, data.zero, iterations=self.begin)


@dataclass(frozen=True)
class PnPADMM(PlugAndPlay):
    """Plug-and-play ADMM: the denoiser is the proximal step of the prior. The answer is the last denoised image."""

    name: ClassVar[str] = "PnP-ADMM"
    reference: ClassVar[str] = (
        "Venkatakrishnan, Bouman, Wohlberg (2013), Plug-and-play priors for model based reconstruction, "
        "https://doi.org/10.1109/GlobalSIP.2013.6737048"
    )

    def answer(self, task: Task) -> tuple[Tensor, int]:
        """See `PointSolver.answer`."""
        data = DataTerm.of(task)
        precision = self.noise(task) ** -2
        x = v = self.first(data)
        u = torch.zeros_like(x)
        for _ in range(self.iterations):
            x = data.solve(lambda z: precision * z, precision * (v - u), x, iterations=self.inner)
            v = self.denoise(task, x + u)
            u = u + x - v
        return v, self.iterations


@dataclass(frozen=True)
class PnPRED(PlugAndPlay):
    """Regularisation by denoising, by its fixed-point iteration.

    Differs from the paper: the weight of the prior is written as `strength / s^2`, in which 1 is what Tweedie's formula
    gives; the paper's free weight is that number.

    Args:
        strength: weight r of the prior, 1 = as it is.
    """

    name: ClassVar[str] = "PnP-RED"
    reference: ClassVar[str] = (
        "Romano, Elad, Milanfar (2017), The little engine that could: regularization by denoising (RED), "
        "https://arxiv.org/abs/1611.02862"
    )

    strength: float = 1.0

    def answer(self, task: Task) -> tuple[Tensor, int]:
        """See `PointSolver.answer`."""
        data = DataTerm.of(task)
        weight = self.strength / self.noise(task) ** 2
        x = self.first(data)
        for _ in range(self.iterations):
            x = data.solve(lambda z: weight * z, weight * self.denoise(task, x), x, iterations=self.inner)
        return x, self.iterations
