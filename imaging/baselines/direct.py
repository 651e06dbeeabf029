"""Direct inversion: filtered back-projection and least squares, without a prior."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from assimilate.posterior.corrections.least_squares import pseudo_inverse
from dynamics.errors import CapabilityError
from imaging.baselines.data_term import DataTerm
from imaging.baselines.point import PointSolver
from imaging.operators.tomography import FanBeam, ParallelBeam, filtered_back_projection
from imaging.operators.tomography.back_projection import Window
from imaging.solvers.base import Need, Task
from observations.likelihood import Likelihood
from observations.noise import GaussianNoise


@dataclass(frozen=True)
class FilteredBackProjection(PointSolver):
    """The classical inversion of a sinogram; see `imaging.operators.tomography.back_projection`.

    Args:
        window: "ramp", or "hann": smoother, with less noise.
    """

    name: ClassVar[str] = "FBP"
    reference: ClassVar[str] = (
        "Kak, Slaney (1988), Principles of computerized tomographic imaging, chapter 3, "
        "https://doi.org/10.1137/1.9780898719277"
    )
    needs: ClassVar[tuple[Need, ...]] = ("linear",)

    window: Window = "ramp"

    def check(self, task: Task) -> None:
        """See `Solver.check`; the operator must be a parallel or fan beam."""
        super().check(task)
        if not isinstance(task.likelihood.operator, ParallelBeam | FanBeam):
            raise CapabilityError(
                f"{self.name} needs a ParallelBeam or a FanBeam; {task.likelihood.operator!r} is neither: "
                "use 'pseudo-inverse' for other linear operators"
            )

    def answer(self, task: Task) -> tuple[Tensor, int]:
        """See `PointSolver.answer`."""
        operator = task.likelihood.operator
        assert isinstance(operator, ParallelBeam | FanBeam)
        return filtered_back_projection(operator, task.y, self.window), 0


@dataclass(frozen=True)
class PseudoInverse(PointSolver):
    """Least squares, by conjugate gradients from 0 that stop early, or exactly.

    After k iterations the image lies in the Krylov space of `A^T y`; what A hardly sees, where the noise is amplified
    most, enters last. The exact `A^+ y` of a blur is all noise.

    Args:
        iterations: most conjugate-gradient iterations; None = `A^+ y` by the SVD.
        tolerance: relative residual of the normal equations at which an image stands still.
    """

    name: ClassVar[str] = "pseudo-inverse"
    reference: ClassVar[str] = (
        "Hestenes, Stiefel (1952), Methods of conjugate gradients for solving linear systems, "
        "https://doi.org/10.6028/jres.049.044"
    )
    needs: ClassVar[tuple[Need, ...]] = ("linear",)

    iterations: int | None = 20
    tolerance: float = 1e-6

    def check(self, task: Task) -> None:
        """See `Solver.check`; the exact one needs an SVD and all values."""
        super().check(task)
        if self.iterations is None and (task.linear.svd() is None or bool(torch.isnan(task.y).any())):
            raise CapabilityError(
                f"{self.name} with iterations=None needs an SVD of the operator and no missing values; "
                f"{task.likelihood.operator!r}: give a number of iterations"
            )

    def answer(self, task: Task) -> tuple[Tensor, int]:
        """See `PointSolver.answer`."""
        if self.iterations is None:
            return pseudo_inverse(task.linear, task.y), 0
        data = DataTerm(Likelihood(task.linear, GaussianNoise(std=1.0)), task.y)
        zero = data.zero
        image = data.solve(torch.zeros_like, zero, zero, iterations=self.iterations, tolerance=self.tolerance)
        return image, 0
