r"""What a solver is: a recipe that draws images from `p(x | y)` with a prior, a likelihood and random numbers.

    solver(task, rng=Streams(seed, experiments, samples)) -> Solution

Almost every solver is one choice of guidance (or correction), sampler, path and levels; `PathSolver` runs those
through the posterior core of `assimilate`. States are `(experiment, sample, *event)`: experiments are different
measurements of one instrument, and each sample has its own random stream, so that the first sample is the same whatever
their number.

A solver says what it needs (checked before it runs), whether it backpropagates through the network, and how exact it
is:

    exact         draws from the posterior, up to the time grid, for the priors named in its docstring
    consistent    tends to the posterior with more particles or iterations
    biased        does not; its scorecard says by how much
    point         one answer without a spread
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from typing import ClassVar, Literal, NamedTuple

import torch
from torch import Tensor

from assimilate.posterior.condition import Guidance, condition
from assimilate.posterior.corrections.least_squares import pseudo_inverse
from assimilate.posterior.denoisers import Prior
from assimilate.posterior.paths import VE, Path
from assimilate.posterior.predictors import Clean, Context, OnPath, Predictor
from assimilate.posterior.samplers import Ancestral, Sampler
from assimilate.posterior.time_grids import ratio_times
from dynamics.errors import CapabilityError
from dynamics.random import Streams, normal
from observations.base import LinearOperator
from observations.likelihood import Likelihood
from observations.noise import GaussianNoise

Exactness = Literal["exact", "consistent", "biased", "point"]
Need = Literal["linear", "svd", "gaussian", "white", "mean"]


class Task(NamedTuple):
    """What is to be reconstructed.

    Attributes:
        prior: a denoiser in the units of the image.
        likelihood: operator and noise, in the units of the measurement as given.
        y: measured values, `(*obs)` for all experiments or `(E, 1, *obs)`; NaN = not measured.
        dtype: of the images.
        device: where they live.
    """

    prior: Prior
    likelihood: Likelihood
    y: Tensor
    dtype: torch.dtype = torch.float32
    device: torch.device | str = "cpu"

    @property
    def event_shape(self) -> tuple[int, ...]:
        """Shape of one image, `(channel, rows, columns)`."""
        return self.likelihood.operator.event_shape

    @property
    def event_dims(self) -> int:
        """Number of dims of one image."""
        return len(self.event_shape)

    @property
    def linear(self) -> LinearOperator:
        """The operator, known to be linear."""
        operator = self.likelihood.operator
        assert isinstance(operator, LinearOperator)
        return operator

    @property
    def noise_std(self) -> float:
        """The one standard deviation of white Gaussian noise."""
        noise = self.likelihood.noise
        assert isinstance(noise, GaussianNoise)
        return float(noise.std)


class Solution(NamedTuple):
    """What a solver returns.

    Attributes:
        samples: `(E, N, *event)`.
        evaluations: network evaluations that one sample cost (forward passes; backward ones come on top for solvers
            that backpropagate).
        log_evidence: `log p(y)` for solvers that estimate it, `(E,)`.
    """

    samples: Tensor
    evaluations: int
    log_evidence: Tensor | None = None


@dataclass(frozen=True)
class Counted:
    """A predictor that counts how often it is asked, rows not counted."""

    predictor: Predictor
    calls: list[int] = field(default_factory=lambda: [0])

    def __call__(self, x: Tensor, t: Tensor, context: Context) -> Clean:
        """See `Predictor`."""
        self.calls[0] += 1
        return self.predictor(x, t, context)


@dataclass(frozen=True)
class Within:
    """A predictor whose clean means are cut at the range of the images.

    The mean of images that lie in a range lies in it, so cutting can only bring it nearer to the truth. Without it a
    guidance that differentiates through a learned network can throw a sample far out of the data, from where it does
    not come back.

    Args:
        predictor: conditioned or not.
        bounds: least and largest value, units of the image.
    """

    predictor: Predictor
    bounds: tuple[float, float]

    def __call__(self, x: Tensor, t: Tensor, context: Context) -> Clean:
        """See `Predictor`."""
        clean = self.predictor(x, t, context)
        return clean._replace(mean=clean.mean.clamp(*self.bounds))


@dataclass(frozen=True)
class Solver(ABC):
    """A recipe; subclasses are frozen dataclasses whose fields are its settings, with the published defaults.

    Attributes:
        name: as it is called in text.
        reference: authors, year, title, link.
        needs: "linear" operator; "svd" of it; "gaussian" noise; "white" Gaussian noise of one standard deviation;
            "mean": a prior that gives the clean mean (a consistency model gives a draw).
        backpropagates: whether it differentiates through the network.
        exactness: see the module docstring.
        couples: whether samples come from one ensemble, which is best run once and not in parts.
    """

    name: ClassVar[str]
    reference: ClassVar[str]
    needs: ClassVar[tuple[Need, ...]] = ()
    backpropagates: ClassVar[bool] = False
    exactness: ClassVar[Exactness] = "biased"
    couples: ClassVar[bool] = False

    def __call__(self, task: Task, *, rng: Streams) -> Solution:
        """Check the needs, draw samples and check that they are finite.

        Args:
            task: what is to be reconstructed.
            rng: one stream for each experiment and sample; its rows say how many there are.

        Raises:
            CapabilityError: the operator, the noise or the prior lacks what the solver needs.
            FloatingPointError: a sample is not finite.
        """
        self.check(task)
        solution = self.solve(task, rng)
        finite = torch.isfinite(solution.samples).flatten(2).all(-1)
        if not bool(finite.all()):
            rows = (~finite).nonzero()[0].tolist()
            raise FloatingPointError(
                f"{self.name} diverged: sample {rows[1]} of measurement {rows[0]} is not finite ({self!r}); take "
                "smaller steps or more levels, or check the noise level and the units of the measurement"
            )
        return solution

    @abstractmethod
    def solve(self, task: Task, rng: Streams) -> Solution:
        """Draw `rng.rows` samples."""

    def check(self, task: Task) -> None:
        """Raise a `CapabilityError` that names what is missing."""
        operator, noise = task.likelihood.operator, task.likelihood.noise
        linear = isinstance(operator, LinearOperator)
        missing = None
        if ("linear" in self.needs or "svd" in self.needs) and not linear:
            missing = f"needs a linear operator; {operator!r} is not one"
        elif "svd" in self.needs and task.linear.svd() is None:
            missing = f"needs an SVD of the operator; {operator!r} has none"
        elif ("gaussian" in self.needs or "white" in self.needs) and not isinstance(noise, GaussianNoise):
            missing = f"needs Gaussian noise; {noise!r} is not (a Poisson noise gives one by .gaussian(y))"
        elif "white" in self.needs and not isinstance(noise.std, float | int):  # type: ignore[attr-defined]
            missing = f"needs one standard deviation for all values; {noise!r} has several"
        elif "mean" in self.needs and getattr(task.prior, "gives", "mean") != "mean":
            missing = "needs the clean mean; this prior is a consistency model and gives draws"
        if missing is not None:
            raise CapabilityError(f"{self.name} {missing}; `assimilate list solvers` says what each solver needs")


@dataclass(frozen=True)
class PathSolver(Solver):
    """A solver that follows a path from noise to an image.

    Args:
        steps: noise levels, one network evaluation each unless the solver says otherwise.
        largest: first noise level, units of the image; default: the prior's.
        smallest: last noise level before the clean image; default: the prior's.
        exponent: spacing of the levels (Karras et al.'s rho, 7).
        start: noise level to start from, on the pseudo-inverse of the measurement instead of pure noise ("come closer,
            diffuse faster"), for linear operators; singular values below a tenth of the largest are left out. None =
            from noise.

    References:
        Chung, Sim, Ye (2022), Come-closer-diffuse-faster: accelerating conditional diffusion models for inverse
        problems through stochastic contraction, https://arxiv.org/abs/2112.05146 (`start`)
    """

    steps: int = 100
    largest: float | None = None
    smallest: float | None = None
    exponent: float = 7.0
    start: float | None = None

    def guidance(self, task: Task) -> Guidance | None:
        """How the observation enters the clean mean; None = it does not."""
        return None

    def sampler(self, task: Task) -> Sampler:
        """How the path steps; DDPM by default."""
        return Ancestral()

    def path(self, task: Task) -> Path:
        """The path; noise levels from `largest` to exactly 0 by default."""
        return VE(smallest=0.0, largest=self.largest or task.prior.largest)

    def times(self, task: Task, path: Path) -> Tensor:
        """Times of the levels, then 1."""
        first = self.start or self.largest or task.prior.largest
        last = self.smallest or task.prior.smallest
        return ratio_times(
            path, self.steps, largest=first, smallest=last, start=False, exponent=self.exponent, dtype=task.dtype
        ).to(task.device)

    def predictor(self, task: Task, path: Path) -> Counted:
        """The prior on the path, counted."""
        return Counted(OnPath(task.prior, path, largest=task.prior.largest))

    def initial(self, task: Task, path: Path, times: Tensor, rng: Streams) -> Tensor:
        """States at the first time."""
        z = normal(rng, (*rng.rows, *task.event_shape), dtype=task.dtype, device=task.device)
        c = path.coefficients(times[0], z)
        if self.start is None:
            return c.noise * z
        return c.beta * pseudo_inverse(task.linear, task.y.to(z), iterations=20, cutoff=0.1) + c.noise * z

    def check(self, task: Task) -> None:
        """See `Solver.check`; a start needs a linear operator."""
        super().check(task)
        if self.start is not None and not isinstance(task.likelihood.operator, LinearOperator):
            raise CapabilityError(f"{self.name}: start={self.start} needs a linear operator; use start=None")

    def solve(self, task: Task, rng: Streams) -> Solution:
        """See `Solver.solve`."""
        path = self.path(task)
        times = self.times(task, path)
        counted = self.predictor(task, path)
        guidance = self.guidance(task)
        x = self.initial(task, path, times, rng)
        predictor: Predictor = counted
        if guidance is not None:
            predictor = condition(
                counted, path, task.likelihood, task.y.to(x), guidance, event_dims=task.event_dims, rng=rng
            )
        if task.prior.bounds is not None:
            predictor = Within(predictor, task.prior.bounds)
        drawn = self.sampler(task)(predictor, path, x, times=times, event_dims=task.event_dims, rng=rng)
        return Solution(drawn.x, counted.calls[0])
