"""`check_guidance`: does a guidance keep the contract, and what is it worth on a posterior known in closed form?

Checked on a Gaussian state of six values with three observed combinations, on a VP path and on an interpolant: the
shapes of what is returned, rows that do not look at each other, missing values that contribute nothing, finite results
for a tiny noise and for an operator that sees nothing. Measured: error of the posterior mean and trace ratio of the
covariance, to be put beside the method's name.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from assimilate.posterior.condition import Guidance, condition
from assimilate.posterior.paths import VP, Interpolant, Path
from assimilate.posterior.predictors import Context, GaussianPredictor
from assimilate.posterior.samplers import EulerMaruyama
from assimilate.posterior.time_grids import ratio_times
from dynamics.errors import ContractError
from dynamics.random import Streams, normal
from observations.likelihood import Likelihood
from observations.noise import GaussianNoise
from observations.sampling import Matrix

_SPECTRUM = (2.0, 1.0, 0.5, 0.25, 0.1, 0.05)
_STD = 0.2


class GuidanceReport(NamedTuple):
    """What `check_guidance` measured.

    Attributes:
        mean_error: error of the sample mean in posterior standard deviations, root mean square over the values.
        trace_ratio: trace of the sample covariance over that of the posterior.
        samples: number of samples; both have a sampling error of about `1 / sqrt(samples)`.
    """

    mean_error: float
    trace_ratio: float
    samples: int


def check_guidance(guidance: Guidance, *, samples: int = 1000, steps: int = 100) -> GuidanceReport:
    """Check the contract of a guidance and measure it.

    Args:
        guidance: a class of the user's, or one of ours.
        samples: for the measurement.
        steps: sampler steps of the measurement.

    Raises:
        ContractError: what was given, what was expected.
    """
    covariance, matrix, y = _problem()
    likelihood = Likelihood(Matrix((6,), matrix), GaussianNoise(_STD))
    for path in (VP(), Interpolant()):
        rows = normal(Streams(1, 1, 8), (1, 8, 6), dtype=torch.float64)
        whole = _ask(guidance, path, covariance, likelihood, y, rows, 8)
        if whole.shape != rows.shape:
            raise ContractError(
                f"{guidance!r} returned a mean of shape {tuple(whole.shape)}; expected that of the state, (1, 8, 6)"
            )
        part = _ask(guidance, path, covariance, likelihood, y, rows[:, :3], 3)
        if not torch.allclose(whole[:, :3], part, rtol=1e-6, atol=1e-8):
            raise ContractError(
                f"{guidance!r} gives other results for the same rows in a larger batch (difference "
                f"{float((whole[:, :3] - part).abs().max()):.2g}): take norms and products per sample"
            )
        gap = torch.where(torch.tensor([False, True, False]), torch.nan, y)
        fewer = Likelihood(Matrix((6,), matrix[[0, 2]]), GaussianNoise(_STD))
        missing = _ask(guidance, path, covariance, likelihood, gap, rows, 8)
        expected = _ask(guidance, path, covariance, fewer, y[[0, 2]], rows, 8)
        if not torch.allclose(missing, expected, rtol=1e-5, atol=1e-6):
            raise ContractError(
                f"{guidance!r} is moved by a missing value: NaN in y must contribute nothing (use observed_residual)"
            )
        blind = Likelihood(Matrix((6,), torch.zeros(3, 6)), GaussianNoise(_STD))
        for name, hard in (("an operator that sees nothing", blind), ("noise of 1e-3", _sharper(matrix))):
            if not bool(torch.isfinite(_ask(guidance, path, covariance, hard, y, rows, 8)).all()):
                raise ContractError(f"{guidance!r} returned values that are not finite for {name}")
    return _measure(guidance, covariance, likelihood, matrix, y, samples, steps)


def _problem() -> tuple[Tensor, Tensor, Tensor]:
    rng = torch.Generator().manual_seed(1)
    basis = torch.linalg.qr(torch.randn(6, 6, generator=rng, dtype=torch.float64))[0]
    covariance = basis @ torch.diag(torch.tensor(_SPECTRUM, dtype=torch.float64)) @ basis.T
    matrix = torch.randn(3, 6, generator=rng, dtype=torch.float64) / 6**0.5
    return covariance, matrix, torch.tensor([0.8, -0.5, 1.1], dtype=torch.float64)


def _sharper(matrix: Tensor) -> Likelihood:
    return Likelihood(Matrix((6,), matrix), GaussianNoise(1e-3))


def _predictor(path: Path, covariance: Tensor) -> GaussianPredictor:
    return GaussianPredictor(covariance, path, torch.zeros(6, dtype=torch.float64))


def _ask(
    guidance: Guidance, path: Path, covariance: Tensor, likelihood: Likelihood, y: Tensor, rows: Tensor, members: int
) -> Tensor:
    """The guided mean at `rows` (plus any kick), with the random numbers that belong to each row."""
    guided = condition(
        _predictor(path, covariance), path, likelihood, y, guidance, event_dims=1, rng=Streams(2, 1, members)
    )
    clean = guided(rows, torch.tensor(0.6, dtype=torch.float64), Context(base=torch.full_like(rows, 0.2)))
    return clean.mean if clean.kick is None else clean.mean + clean.kick


def _measure(
    guidance: Guidance, covariance: Tensor, likelihood: Likelihood, matrix: Tensor, y: Tensor, samples: int, steps: int
) -> GuidanceReport:
    path, rng = Interpolant(), torch.Generator().manual_seed(0)
    guided = condition(_predictor(path, covariance), path, likelihood, y, guidance, event_dims=1, rng=rng)
    start = torch.zeros(samples, 6, dtype=torch.float64)
    drawn = EulerMaruyama("foellmer")(
        guided,
        path,
        start,
        times=ratio_times(path, steps, largest=40.0, smallest=0.01, dtype=torch.float64),
        event_dims=1,
        rng=rng,
        context=Context(base=start),
    ).x
    seen = matrix @ covariance @ matrix.T + _STD**2 * torch.eye(3, dtype=torch.float64)
    gain = torch.linalg.solve(seen, matrix @ covariance).T
    mean, exact = gain @ y, covariance - gain @ matrix @ covariance
    error = ((drawn.mean(0) - mean) / exact.diagonal().sqrt()).square().mean().sqrt()
    return GuidanceReport(float(error), float(torch.cov(drawn.T).trace() / exact.trace()), samples)
