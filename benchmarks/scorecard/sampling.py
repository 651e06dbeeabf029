"""One guidance with any sampler, path and grid on a problem, without the recipe of a solver around it."""

from __future__ import annotations

import torch
from torch import Tensor

from assimilate.posterior.condition import Guidance, condition
from assimilate.posterior.paths import Interpolant, Path
from assimilate.posterior.predictors import Context
from assimilate.posterior.samplers import Sampler
from benchmarks.scorecard.problems import Problem


def sample(
    problem: Problem,
    guidance: Guidance | None,
    sampler: Sampler,
    path: Path,
    times: Tensor,
    samples: int,
    seed: int,
) -> Tensor:
    """Samples of the guided sampler, `(samples, d)`, float64; an interpolant starts from the origin.

    Args:
        problem: a problem of vectors.
        guidance: how the measurement enters; None draws from the prior.
        sampler: how the path is stepped.
        path: the path.
        times: its grid.
        samples: how many.
        seed: of all random numbers.
    """
    rng = torch.Generator().manual_seed(seed)
    (d,) = problem.event_shape
    base = torch.zeros(samples, d, dtype=torch.float64) if isinstance(path, Interpolant) else None
    z = torch.randn(samples, d, generator=rng, dtype=torch.float64)
    c = path.coefficients(times[0], z)
    predictor = problem.predictor(path)
    if guidance is not None:
        predictor = condition(predictor, path, problem.likelihood, problem.y, guidance, event_dims=1, rng=rng)
    return sampler(predictor, path, c.noise * z, times=times, event_dims=1, rng=rng, context=Context(base=base)).x
