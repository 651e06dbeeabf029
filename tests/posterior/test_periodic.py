"""Covariances of periodic grids: the matrix that they stand for, their draws, and what they do for a sampler."""

import math
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from assimilate.posterior.covariance import Covariance, Isotropic
from assimilate.posterior.paths import Interpolant
from assimilate.posterior.periodic import Periodic, correlation_power
from assimilate.posterior.predictors import Clean, Context
from assimilate.posterior.samplers import Ancestral
from assimilate.posterior.time_grids import ratio_times
from dynamics.random import Streams

SIZE = 8


def power_of(size: int = SIZE, wave: float = 3.0) -> Tensor:
    """A ring of waves, scaled to unit variance."""
    rows = torch.fft.fftfreq(size, 1 / size, dtype=torch.float64)[:, None]
    columns = torch.arange(size // 2 + 1, dtype=torch.float64)[None]
    power = torch.exp(-2 * ((rows**2 + columns**2).sqrt() - wave).square()) + 1e-4
    return (power / torch.fft.irfft2(power, s=(size, size))[0, 0])[None]


def covariance(seed: int = 0) -> Periodic:
    std = 0.5 + torch.rand(2, 1, SIZE, SIZE, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return Periodic(std, power_of())


def dense(v: Periodic) -> Tensor:
    """Column by column, `(2, 64, 64)`."""
    eye = torch.eye(SIZE**2, dtype=torch.float64).reshape(-1, 1, 1, SIZE, SIZE).expand(-1, 2, 1, SIZE, SIZE)
    return torch.stack([v.apply(column) for column in eye], -1).flatten(1, 3)


def test_it_is_a_symmetric_matrix_with_the_spread_on_its_diagonal() -> None:
    v = covariance()
    matrix = dense(v)
    assert torch.allclose(matrix, matrix.mT, atol=1e-12)
    assert float(torch.linalg.eigvalsh(matrix).min()) > 0
    assert torch.allclose(matrix.diagonal(dim1=-2, dim2=-1), v.std.flatten(1).square(), atol=1e-12)


def test_its_block_is_that_of_the_matrix() -> None:
    v = covariance()
    index = torch.tensor([0, 7, 9, 38, 63])
    block = v.block(index)
    assert block is not None
    found = block.scale[..., :, None] * block.matrix * block.scale[..., None, :]
    assert torch.allclose(found, dense(v)[:, index][:, :, index], atol=1e-12)


def test_draws_have_the_covariance() -> None:
    v, count = covariance(), 20_000
    one = Periodic(v.std[:1], v.power)
    drawn = one.draw(torch.Generator().manual_seed(1), (count, 1, SIZE, SIZE), dtype=torch.float64, device="cpu")
    flat = drawn.flatten(1)
    error = (flat.mT @ flat / count - dense(v)[0]).abs()
    # Standard errors of a covariance of Gaussians; 4096 of them, so 5.
    variance = one.std.flatten().square()
    assert bool((error < 5 * torch.sqrt(2 * variance[:, None] * variance[None] / count)).all())


def test_power_of_fields_is_measured_wave_by_wave() -> None:
    drawn = Periodic(torch.full((1, SIZE, SIZE), 3.0, dtype=torch.float64), power_of()).draw(
        torch.Generator().manual_seed(2), (4000, 1, SIZE, SIZE), dtype=torch.float64, device="cpu"
    )
    found = correlation_power(drawn)
    # A wave's power is an exponential of its mean: 1 / sqrt(n) of it, five times.
    assert float((found / power_of() - 1).abs().max()) < 5 * math.sqrt(2 / 4000)


@dataclass(frozen=True)
class Stationary:
    """The exact predictor of a residual with power P, and of what it leaves open."""

    path: Interpolant
    power: Tensor
    together: bool

    def __call__(self, x: Tensor, t: Tensor, context: Context) -> Clean:
        c = self.path.coefficients(t, x)
        size = x.shape[-1]
        # In units of the noise per wave: the mean of (x - 0) / beta given rho.
        known = c.beta**2 * self.power / (c.beta**2 * self.power + c.noise**2).clamp_min(1e-30)
        ratio = torch.where(c.beta > 0, 1 / c.beta.clamp_min(1e-12), 0.0)
        mean = torch.fft.irfft2(torch.fft.rfft2(x) * known * ratio, s=(size, size))
        left = torch.where(c.beta > 0, self.power * (1 - known), self.power)
        variance = torch.fft.irfft2(left, s=(size, size))[..., :1, :1]
        left, variance = (part.reshape(1, *part.shape[-2:]) for part in (left, variance))
        std = variance.sqrt().expand(x.shape[-3:])
        belief: Covariance = Periodic(std, left / variance) if self.together else Isotropic(std**2)
        return Clean(mean, covariance=belief)


@pytest.mark.parametrize(("together", "low", "high"), [(True, 0.95, 1.05), (False, 0.1, 0.75)])
def test_a_field_is_drawn_in_four_levels_only_with_the_correlation(together: bool, low: float, high: float) -> None:
    path, size, count = Interpolant(scale=1.0), 16, 200
    power = power_of(size, 2.0)
    predictor = Stationary(path, power, together)
    times = ratio_times(path, 4, largest=100.0, smallest=0.02, dtype=torch.float64)
    start = torch.zeros(1, count, 1, size, size, dtype=torch.float64)
    drawn = Ancestral(variance="clean")(
        predictor, path, start, times=times, event_dims=3, rng=Streams(3, 1, count).at(0),
        context=Context(base=torch.zeros_like(start)),
    ).x  # fmt: skip
    # 200 draws of some 40 waves each: the variance is known to 2 %.
    assert low < float(drawn.var(1).mean()) < high
