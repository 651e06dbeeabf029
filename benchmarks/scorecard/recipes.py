"""What the scorecard runs: each solver with its settings, and how samples are drawn from it.

Every solver runs with its published defaults, except that

* solvers whose only use of `steps` is the resolution of the path get the scorecard's levels. The published number
  stays where another default belongs to it (`TIED`);
* ensembles are as large as the number of samples, so that their members are the samples;
* `VARIANTS` are other samplers and paths under the same guidance, and other settings.

One row is not a solver: "exact" draws from the posterior itself and shows what chance alone gives.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, NamedTuple

import torch
from torch import Tensor

from assimilate.posterior.condition import Guidance
from assimilate.posterior.paths import Interpolant, Path
from assimilate.posterior.samplers import EulerMaruyama, Heun, Sampler
from assimilate.posterior.time_grids import ratio_times
from benchmarks.scorecard.assimilation import FILTERS, draw_filter
from benchmarks.scorecard.problems import Problem
from dynamics.random import Streams
from imaging.solvers import SOLVERS, find_solver
from imaging.solvers.base import PathSolver, Solver, Task
from imaging.solvers.guided import MMPS, SDA, TMPD, CleanCovariance, PiGDM, ScoreDPS

TIED = {
    "dps": "zeta belongs to 1000 steps",
    "mcg": "zeta belongs to 1000 steps",
    "zero-order": "zeta belongs to 1000 steps",
    "score-mri": "each step projects and corrects; 2000 steps of the paper would say the same",
    "smld": "the number of steps at each level belongs to the levels",
    "diffusion-mbir": "the penalty belongs to the number of steps",
    "red-diff": "the rate of Adam belongs to the number of steps",
    "sitcom": "20 levels with an optimisation at each",
    "dcdp": "rounds of purification",
    "dcdp-tweedie": "rounds of purification",
    "dcdp-consistency": "rounds of purification",
}
"""Solver -> why its number of steps is not the scorecard's."""
ENSEMBLE_FIELDS = ("particles",)
"""Settings that say how large a solver's ensemble is."""


@dataclass(frozen=True)
class Variant(PathSolver):
    """A guided solver on another sampler or path.

    Args:
        of: gives the guidance.
        kind: "ode", Heun's steps on the probability-flow ODE; "interpolant", FlowDAS's path from the origin with its
            Foellmer diffusion.
    """

    name: ClassVar[str] = "variant"
    reference: ClassVar[str] = "Assimilate"

    of: PathSolver = MMPS()
    kind: Literal["ode", "interpolant"] = "ode"

    def check(self, task: Task) -> None:
        """The needs of the solver that it varies."""
        self.of.check(task)

    def guidance(self, task: Task) -> Guidance | None:
        """The same."""
        return self.of.guidance(task)

    def sampler(self, task: Task) -> Sampler:
        """See `kind`."""
        return Heun() if self.kind == "ode" else EulerMaruyama("foellmer")

    def path(self, task: Task) -> Path:
        """See `kind`."""
        return super().path(task) if self.kind == "ode" else Interpolant()

    def times(self, task: Task, path: Path) -> Tensor:
        """An interpolant starts at t = 0, from a point."""
        if self.kind == "ode":
            return super().times(task, path)
        first, last = task.prior.largest, task.prior.smallest
        return ratio_times(path, self.steps, largest=first, smallest=last, dtype=task.dtype).to(task.device)


VARIANTS: dict[str, Solver] = {
    "mmps-ode": Variant(of=MMPS()),
    "mmps-interpolant": Variant(of=MMPS(), kind="interpolant"),
    "pigdm-ode": Variant(of=PiGDM()),
    "tmpd-ode": Variant(of=TMPD()),
    "dps-score-ode": Variant(of=ScoreDPS()),
    "sda-0.1": SDA(gamma=0.1),
    "sda-1": SDA(gamma=1.0),
    "clean-interpolant": Variant(of=CleanCovariance(), kind="interpolant"),
}
"""Name -> solver that is not in `imaging.solvers.SOLVERS`."""


class Drawn(NamedTuple):
    """What one run of one entry gives.

    Attributes:
        samples: `(n, *event)`.
        evaluations: network evaluations a sample; None where there is no network.
        settings: repr of what ran.
        exactness: its class.
    """

    samples: Tensor
    evaluations: int | None
    settings: str
    exactness: str


def names() -> list[str]:
    """Every entry, in the order of the table."""
    return ["exact", *SOLVERS, *VARIANTS, *FILTERS]


def solver_for(name: str, *, levels: int, samples: int) -> Solver:
    """The solver of a name, or `module:Class`, with the settings of the scorecard.

    Args:
        name: key of `SOLVERS` or `VARIANTS`, or "module:Class".
        levels: noise levels.
        samples: number of samples, for ensembles.

    Raises:
        UnknownName: no such solver.
        UserError: it cannot be imported or made, or is no solver.
    """
    from assimilate.errors import UserError

    solver: Any = VARIANTS[name] if name in VARIANTS else find_solver(name)
    if not isinstance(solver, Solver):
        raise UserError(f"'{name}' is a {type(solver).__name__}; expected a subclass of imaging.solvers.base.Solver")
    fields = {f.name for f in dataclasses.fields(solver)}
    changes: dict[str, Any] = {key: samples for key in ENSEMBLE_FIELDS if key in fields}
    if "steps" in fields and name not in TIED:
        changes["steps"] = levels
    return dataclasses.replace(solver, **changes)


def draw(name: str, problem: Problem, *, samples: int, levels: int, seed: int) -> Drawn:
    """Samples of one entry on one problem, float64.

    Raises:
        CapabilityError: it needs something that the problem has not.
    """
    if name == "exact":
        rng = torch.Generator().manual_seed(seed)
        return Drawn(problem.posterior().draw(samples, rng=rng), None, "independent draws", "exact")
    if name in FILTERS:
        found = draw_filter(name, problem, samples=samples, levels=levels, seed=seed)
        return Drawn(found.members, None, found.settings, found.exactness)
    solver = solver_for(name, levels=levels, samples=samples)
    n = samples if solver.exactness != "point" else min(samples, 16)
    task = Task(problem.prior, problem.likelihood, problem.y, dtype=torch.float64)
    solution = solver(task, rng=Streams(seed, 1, n))
    exactness = solver.of.exactness if isinstance(solver, Variant) else solver.exactness
    return Drawn(solution.samples[0], solution.evaluations, repr(solver), exactness)


def check_names(chosen: Iterable[str]) -> None:
    """Raise an `UnknownName` for the first name that is no entry; "module:Class" is looked up later."""
    from assimilate.errors import UnknownName

    for name in chosen:
        if name not in names() and ":" not in name:
            raise UnknownName("solver", name, names())


Progress = Callable[[str, str], None]
"""Called with `(solver, problem)` before each run."""
