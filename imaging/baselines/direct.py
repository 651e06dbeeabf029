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
                f"{self.name} inverts sinograms of a ParallelBeam or a FanBeam; {task.likelihood.operator!r} is neither: "
                "use 'pseudo-inverse' for other linear operators"
            )

    def answer(self, task: Task) -> tuple[Tensor, int]:
        """See `PointSolver.answer`."""
        operator = task.likelihood.operator
        assert isinstance(operator, ParallelBeam | FanBeam)
        return filtered_back_projection(operator, task.y, self.window), 0


@dataclass(frozen=True)
class PseudoInverse(PointSolver):
    """The least-squares image of least norm, `A^+ y`, by the SVD or by conjugate gradients from 0.

    Args:
        iterations: most conjugate-gradient iterations (where there is no SVD, or where values are missing). Few of them
            regularise: noise enters late.
        tolerance: relative residual of the normal equations at which an image stands still.
    """

    name: ClassVar[str] = "pseudo-inverse"
    reference: ClassVar[str] = (
        "Penrose (1956), On best approximate solutions of linear matrix equations, "
        "https://doi.org/10.1017/S0305004100030929"
    )
    needs: ClassVar[tuple[Need, ...]] = ("linear",)

    iterations: int = 100
    tolerance: float = 1e-6

    def answer(self, task: Task) -> tuple[Tensor, int]:
        """See `PointSolver.answer`."""
        settings = {"iterations": self.iterations, "tolerance": self.tolerance}
        if not bool(torch.isnan(task.y).any()):
            return pseudo_inverse(task.linear, task.y, **settings), 0
        # Missing values leave rows of A out, so the SVD of the whole does not serve.
        data = DataTerm(task.linear, GaussianNoise(std=1.0), task.y)
        return data.solve(torch.zeros_like, data.start, data.start, **settings), 0
