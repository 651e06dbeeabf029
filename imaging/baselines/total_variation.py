r"""Total-variation reconstruction: the classical prior of piecewise constant images.

    x = argmin_x  1/2 |R^-1/2 (y - A x)|^2 + lambda TV(x)   within bounds

With white noise the first term is `|y - A x|^2 / (2 s^2)`, so that x is the most probable image under
`p(x) ~ exp(-lambda TV(x))`, and lambda belongs to the images and not to the noise or the operator. The problem is
convex: `FISTA` and `ADMM` differ only in how they come to the one minimiser.

`lambda = strength / spread`, with the prior's standard deviation of an image as the unit. On random-ellipse phantoms
(half of them textured) the best strengths of `imaging.tuning` were 1 to 2 for tomography with 8 and 20 views,
deblurring and super-resolution, each within 0.3 dB of the default; tune it on images like yours, never on the one to
be reconstructed.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from dynamics.errors import CapabilityError
from imaging.baselines.data_term import DataTerm
from imaging.baselines.differences import Bounds, Variation, differences, differences_adjoint
from imaging.baselines.point import PointSolver
from imaging.baselines.proximal_gradient import proximal_gradient
from imaging.solvers.base import Need, Task


@dataclass(frozen=True)
class TotalVariation(PointSolver):
    """What both solvers share.

    Args:
        strength: lambda in units of one over the prior's spread (see the module).
        isotropic: Euclidean length of the gradient; else the sum of its two parts.
        coupled: channels share their edges (colours, real and imaginary parts).
        bounded: keep the values within the prior's bounds, where it has some.
    """

    needs: ClassVar[tuple[Need, ...]] = ("linear", "gaussian")

    strength: float = 1.5
    isotropic: bool = True
    coupled: bool = False
    bounded: bool = True

    def __post_init__(self) -> None:
        """Check the strength."""
        if not self.strength > 0:
            raise ValueError(f"strength={self.strength}; expected a positive number (without it: 'pseudo-inverse')")

    def check(self, task: Task) -> None:
        """See `Solver.check`; differences need an image."""
        super().check(task)
        if task.event_dims != 3:
            raise CapabilityError(
                f"{self.name} needs images (channel, rows, columns); {task.likelihood.operator!r} sees events of shape "
                f"{task.event_shape}"
            )

    @property
    def variation(self) -> Variation:
        """Which total variation."""
        return Variation(self.isotropic, self.coupled)

    def weight(self, task: Task) -> float:
        """lambda, in nats for one unit of the image."""
        return self.strength / task.prior.spread

    def bounds(self, task: Task) -> Bounds:
        """Range of the values."""
        return task.prior.bounds if self.bounded else None

    def objective(self, task: Task, x: Tensor) -> Tensor:
        """What is minimised, in nats, `(*b, *event) -> (*b,)`; infinite outside the bounds."""
        low, high = self.bounds(task) or (-math.inf, math.inf)
        outside = ((x < low) | (x > high)).flatten(-3).any(-1)
        value = DataTerm.of(task).value(x) + self.weight(task) * self.variation(x)
        return torch.where(outside, math.inf, value)


@dataclass(frozen=True)
class FISTA(TotalVariation):
    """By accelerated gradient steps of the data term and proximal steps of the total variation.

    Args:
        iterations: gradient steps, one product with A and one with its adjoint each.
        inner: steps of each proximal problem, which goes on where the last one stopped.
    """

    name: ClassVar[str] = "FISTA-TV"
    reference: ClassVar[str] = (
        "Beck, Teboulle (2009), Fast gradient-based algorithms for constrained total variation image denoising and "
        "deblurring problems, https://doi.org/10.1109/TIP.2009.2028250"
    )

    iterations: int = 200
    inner: int = 10

    def answer(self, task: Task) -> tuple[Tensor, int]:
        """See `PointSolver.answer`."""
        data, weight, bounds = DataTerm.of(task), self.weight(task), self.bounds(task)

        def proximal(v: Tensor, step: Tensor, memory: Tensor | None) -> tuple[Tensor, Tensor | None]:
            return self.variation.proximal(v, step * weight, iterations=self.inner, bounds=bounds, dual=memory)

        return proximal_gradient(data, proximal, data.zero, iterations=self.iterations), 0


@dataclass(frozen=True)
class ADMM(TotalVariation):
    r"""By the alternating direction method of multipliers, with conjugate gradients for the data.

    The differences `d = D x` and the bounded copy `b = x` are split off, with scaled multipliers u and v:

        (H + rho D^T D + rho I) x = A^T R^-1 y + rho D^T (d - u) + rho (b - v)
        d = shrink(D x + u, lambda / rho),   b = clip(x + v),   u += D x - d,   v += x - b

    Args:
        iterations: of the method.
        inner: most conjugate-gradient iterations of each, from the last image.
        jump: `lambda / rho` in units of the prior's spread: the size of a step in the image below which the first
            iterations flatten it. It changes the way and not the minimiser.
    """

    name: ClassVar[str] = "ADMM-TV"
    reference: ClassVar[str] = (
        "Boyd, Parikh, Chu, Peleato, Eckstein (2011), Distributed optimization and statistical learning via the "
        "alternating direction method of multipliers, https://doi.org/10.1561/2200000016"
    )

    iterations: int = 100
    inner: int = 10
    jump: float = 0.3

    def answer(self, task: Task) -> tuple[Tensor, int]:
        """See `PointSolver.answer`."""
        data, bounds, variation = DataTerm.of(task), self.bounds(task), self.variation
        threshold = self.jump * task.prior.spread
        rho = self.weight(task) / threshold
        x = data.zero
        d = u = torch.zeros_like(differences(x))
        b = v = torch.zeros_like(x)

        def extra(z: Tensor) -> Tensor:
            smooth = rho * differences_adjoint(differences(z))
            return smooth if bounds is None else smooth + rho * z

        for _ in range(self.iterations):
            right = rho * differences_adjoint(d - u)
            if bounds is not None:
                right = right + rho * (b - v)
            x = data.solve(extra, right, x, iterations=self.inner)
            slope = differences(x)
            d = variation.shrink(slope + u, threshold)
            u = u + slope - d
            if bounds is not None:
                b = (x + v).clamp(*bounds)
                v = v + x - b
        return (x if bounds is None else b), 0
