r"""Volumes from priors of slices: DiffusionMBIR, and the stack of slices that it is compared with.

The prior knows nothing between slices. Total variation across them does, taken in by one iteration of the alternating
direction method of multipliers (ADMM) after each step of the path, on the noisy volume itself:

    F(x) = 1/2 |R^-1/2 (y - A x)|^2 / L + lambda |D x|_1,      (D x)_k = x_{k+1} - x_k,   L >= ||A^T R^-1 A||
    d = soft(D x + u, lambda / rho)
    (A^T R^-1 A / L + rho D^T D) x_new = A^T R^-1 y / L + rho D^T (d - u)    from x, by few conjugate gradients
    u += D x_new - d

The multipliers u go on along the path (the paper's shared variables), so one iteration a level is enough. An iteration
begins with d: the step of the path has put other noise on x, and a d of the level before would pull that noise back
(with 100 levels the volume then keeps differences of the first ones). The first and the last slice are no neighbours.
F is divided by L, so that lambda is in the units of the image and rho has none, whatever the operator and the noise.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from assimilate.posterior.denoisers import Prior
from assimilate.posterior.paths import Path
from assimilate.posterior.samplers import Ancestral, PredictorCorrector, Projected, Sampler
from dynamics.errors import CapabilityError
from dynamics.random import Rng, Streams
from imaging.baselines.data_term import DataTerm
from imaging.slices import PerSlice, SlicedPrior
from imaging.solvers.base import Need, PathSolver, Solution, Task

__all__ = ["AcrossSlices", "DiffusionMBIR", "PerSlice", "SlicedPrior"]


def across(x: Tensor, dim: int) -> Tensor:
    """`D x`: the difference of each slice to the next along `dim`, one fewer than slices."""
    return x.diff(dim=dim)


def across_adjoint(d: Tensor, dim: int) -> Tensor:
    """`D^T d`."""
    edge = torch.zeros_like(d.narrow(dim, 0, 1))
    return -torch.cat([edge, d, edge], dim).diff(dim=dim)


class AcrossSlices:
    """One ADMM iteration behind each step of a path; a `Projection` of `assimilate.posterior.samplers.projected`.

    It holds u, so each run along a path has its own.

    Args:
        data: of the volumes.
        dim: of the slices, negative.
        strength: lambda, in the units of the image; 0 = the data alone, and no term between slices.
        penalty: rho, dimensionless.
        iterations: most conjugate-gradient iterations.
    """

    def __init__(self, data: DataTerm, dim: int, *, strength: float, penalty: float, iterations: int) -> None:
        self.data = data
        self.dim = dim
        self.strength = strength
        self.penalty = penalty if strength > 0 else 0.0
        self.iterations = iterations
        self.multipliers: Tensor | None = None

    def __call__(self, x: Tensor, s: Tensor, path: Path, rng: Rng) -> Tensor:
        """See `Projection`."""
        return self.iterate(x)

    def iterate(self, x: Tensor) -> Tensor:
        """The volume after one iteration from `x`, `(*b, *volume)`."""
        share = 1 / self.data.curvature
        if self.penalty == 0:
            return self.data.solve(torch.zeros_like, torch.zeros_like(x), x, iterations=self.iterations, share=share)
        slope = across(x, self.dim)
        multipliers = torch.zeros_like(slope) if self.multipliers is None else self.multipliers
        wanted = torch.nn.functional.softshrink(slope + multipliers, self.strength / self.penalty)

        def extra(v: Tensor) -> Tensor:
            return self.penalty * across_adjoint(across(v, self.dim), self.dim)

        right = self.penalty * across_adjoint(wanted - multipliers, self.dim)
        x = self.data.solve(extra, right, x, iterations=self.iterations, share=share)
        self.multipliers = multipliers + across(x, self.dim) - wanted
        return x


@dataclass(frozen=True)
class DiffusionMBIR(PathSolver):
    """A diffusion of slices with total variation across them; see the module.

    The prior is one of images `(1, rows, columns)` or a `SlicedPrior`; the operator sees volumes
    `(slices, rows, columns)`. Each step is DDPM's and a Langevin correction, slice by slice, then one ADMM iteration.

    Differs from the paper: an ADMM iteration begins with the differences, which do not join the last slice to the
    first; the step lengths of the correction are those of each slice; lambda and rho are in stated units. The paper has
    0.04 and 10 with 2000 levels for tomography, with an operator whose norm is not given; the defaults were measured on
    volumes of Gaussian random fields behind block means, where the rms error of a sample falls by a quarter.

    Args:
        strength: lambda in units of the prior's spread; 0 = slice by slice.
        penalty: rho, dimensionless.
        inner: conjugate-gradient iterations of each step (the paper: 1).
        corrections: Langevin corrections a step (the paper: 1).
        snr: their signal-to-noise ratio (the paper: 0.16).
    """

    name: ClassVar[str] = "DiffusionMBIR"
    reference: ClassVar[str] = (
        "Chung, Ryu, McCann, Klasky, Ye (2023), Solving 3D inverse problems using pre-trained 2D diffusion models, "
        "https://arxiv.org/abs/2211.10655"
    )
    needs: ClassVar[tuple[Need, ...]] = ("linear", "gaussian", "mean")

    strength: float = 0.04
    penalty: float = 0.1
    inner: int = 1
    corrections: int = 1
    snr: float = 0.16

    def __post_init__(self) -> None:
        """Check the settings."""
        if self.strength < 0 or not self.penalty > 0 or self.inner < 1:
            raise ValueError(f"{self!r}: expected strength >= 0, penalty > 0 and inner >= 1")

    def check(self, task: Task) -> None:
        """See `Solver.check`; the slices must be what the prior knows."""
        super().check(task)
        layout = self.layout(task.prior, task.event_shape)
        expected = layout.event_shape
        given = task.event_shape
        slices = given[layout.axis] if layout.axis < len(given) else 1
        if slices < 2 and self.strength > 0:
            raise CapabilityError(f"{self.name} smooths across slices and needs two or more; the operator sees {given}")
        if given != (*expected[: layout.axis], slices, *expected[layout.axis + 1 :]):
            raise CapabilityError(
                f"{self.name}: the operator sees volumes of shape {given}; slices of the prior, {expected} without dim "
                f"{layout.axis}, do not make them"
            )

    def layout(self, prior: Prior, volume: tuple[int, ...]) -> SlicedPrior:
        """The prior of volumes."""
        return prior if isinstance(prior, SlicedPrior) else SlicedPrior(prior, slices=volume[0])

    def sampler(self, task: Task) -> Sampler:
        """DDPM with Langevin corrections (`tau = 2 snr^2` gives Song et al.'s step length)."""
        if self.corrections == 0:
            return Ancestral()
        return PredictorCorrector(Ancestral(), corrections=self.corrections, tau=2 * self.snr**2)

    def solve(self, task: Task, rng: Streams) -> Solution:
        """See `Solver.solve`."""
        layout = self.layout(task.prior, task.event_shape)
        task = task._replace(prior=layout, y=task.y.to(device=task.device, dtype=task.dtype))
        path = self.path(task)
        times = self.times(task, path)
        counted = self.predictor(task, path)
        x = self.initial(task, path, times, rng)
        admm = AcrossSlices(
            DataTerm.of(task),
            layout.axis - task.event_dims,
            strength=self.strength * layout.spread,
            penalty=self.penalty,
            iterations=self.inner,
        )
        # Corrections take their step lengths from single slices where those come first.
        dims = task.event_dims - 1 if layout.axis == 0 else task.event_dims
        drawn = Projected(self.sampler(task), admm)(counted, path, x, times=times, event_dims=dims, rng=rng)
        return Solution(drawn.x, counted.calls[0])
