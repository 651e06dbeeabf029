"""What the baselines share: one answer for each measurement, which every sample repeats."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from dynamics.random import Streams
from dynamics.space import SpaceMismatch
from imaging.solvers.base import Exactness, Solution, Solver, Task


@dataclass(frozen=True)
class PointSolver(Solver):
    """A solver without randomness; `solve` repeats its answer, so that shapes agree with those of samplers.

    The repeated samples share their memory; their spread is 0 and says nothing of the uncertainty.
    """

    exactness: ClassVar[Exactness] = "point"

    @abstractmethod
    def answer(self, task: Task) -> tuple[Tensor, int]:
        """One image for each measurement, `(E, 1, *event)` (or `(1, 1, *event)`), and the network evaluations.

        Args:
            task: with `y` shaped `(E, 1, *obs)` or `(1, 1, *obs)`, on its device and in its dtype.
        """

    def solve(self, task: Task, rng: Streams) -> Solution:
        """See `Solver.solve`.

        Raises:
            SpaceMismatch: measurements of another shape than `(*obs)` or `(E, 1, *obs)`.
        """
        obs = task.likelihood.operator.obs_shape
        y = task.y.to(device=task.device, dtype=task.dtype)
        lead = tuple(y.shape[: y.ndim - len(obs)])
        if tuple(y.shape[y.ndim - len(obs) :]) != obs or lead not in ((), (1, 1), (rng.rows[0], 1)):
            raise SpaceMismatch(
                f"{self.name} was given y of shape {tuple(task.y.shape)}; expected {obs} or (E, 1, *{obs}) with E = "
                f"{rng.rows[0]} experiments"
            )
        image, evaluations = self.answer(task._replace(y=y.reshape(*(lead or (1, 1)), *obs)))
        return Solution(image.expand(*rng.rows, *task.event_shape), evaluations)
