"""Laplace, Student and Poisson noise against closed forms; missing values; rows; draws; the likelihood around them."""

import itertools
import math

import numpy as np
import pytest
import scipy.stats
import torch

from assimilate.posterior.linearize import gaussian_noise
from dynamics import Streams
from dynamics.errors import CapabilityError
from observations import (
    BlockMean,
    Function,
    GaussianNoise,
    Identity,
    Laplace,
    Likelihood,
    Mask,
    Matrix,
    Noise,
    Poisson,
    SignalNoise,
    StudentT,
)
from observations.poisson import poisson_quantile

GENERATOR = torch.Generator().manual_seed(0)
SCALE = torch.tensor([0.3, 1.0, 2.5, 0.7], dtype=torch.float64)
DRAWS = 40_000
LAWS = {
    "laplace": (Laplace(0.8), scipy.stats.laplace(scale=0.8 * np.ones(4))),
    "laplace per value": (Laplace(SCALE), scipy.stats.laplace(scale=SCALE.numpy())),
    "student": (StudentT(5.0, 0.8), scipy.stats.t(5.0, scale=0.8 * np.ones(4))),
    "student per value": (StudentT(7, SCALE), scipy.stats.t(7, scale=SCALE.numpy())),
}
GAIN = torch.tensor([1.0, 20.0, 300.0, 5.0], dtype=torch.float64)


@pytest.mark.parametrize("name", LAWS)
def test_density_variance_and_missing_values(name):
    noise, reference = LAWS[name]
    assert isinstance(noise, Noise) and not isinstance(noise, SignalNoise)
    likelihood = Likelihood(Identity((4,)), noise)
    x = torch.randn(5, 4, generator=GENERATOR, dtype=torch.float64)
    y = 3 * torch.randn(4, generator=GENERATOR, dtype=torch.float64)
    each = torch.from_numpy(reference.logpdf((y - x).numpy()))
    std = torch.from_numpy(reference.std())
    for pattern in itertools.product([True, False], repeat=4):
        kept = torch.tensor(pattern)
        partial = torch.where(kept, y, torch.nan)
        assert torch.allclose(likelihood.log_prob(partial, x), (each * kept).sum(-1), rtol=1e-12, atol=1e-12)
        assert torch.allclose(likelihood.residual(partial, x), (y - x) * kept / std, rtol=1e-12)
    assert torch.allclose(noise.variance(4, dtype=torch.float64), std**2, rtol=1e-12)
    single = likelihood.log_prob(y.float(), x.float())
    assert single.dtype == torch.float32 and torch.allclose(single.double(), each.sum(-1), rtol=1e-5)


@pytest.mark.parametrize("name", LAWS)
def test_draws_follow_the_law(name):
    noise, reference = LAWS[name]
    z = noise.sample((1, DRAWS, 4), rng=Streams(3, 1, DRAWS), dtype=torch.float64)[0]
    for value in range(4):
        one = reference.cdf(np.repeat(z[:, value : value + 1].numpy(), 4, 1))[:, value]
        # Kolmogorov: the largest gap exceeds 1.95 / sqrt(n) with probability 1e-3.
        assert scipy.stats.kstest(one, "uniform").statistic < 1.95 / math.sqrt(DRAWS)
    correlation = torch.corrcoef(z.clamp(-9, 9).T) - torch.eye(4)
    assert float(correlation.abs().max()) < 4.5 / math.sqrt(DRAWS)
    plain = noise.sample((DRAWS, 2, 2), rng=torch.Generator().manual_seed(0))
    assert plain.dtype == torch.float32 and plain.shape == (DRAWS, 2, 2)
    assert torch.allclose(plain.double().abs().mean(0).flatten(), z.abs().mean(0), rtol=6 * 1.3 / math.sqrt(DRAWS))


@pytest.mark.parametrize("noise", [*(law for law, _ in LAWS.values()), Poisson(GAIN)], ids=repr)
def test_rows_are_alone(noise):
    likelihood = Likelihood(Function((4,), torch.exp, pointwise=True), noise)
    x = torch.randn(3, 5, 4, generator=GENERATOR)
    y = likelihood.sample(x, rng=Streams(0, 3, 5))
    assert torch.equal(likelihood.sample(x[:2, :3], rng=Streams(0, 2, 3)), y[:2, :3])
    together = likelihood.log_prob(y, x)
    assert torch.allclose(likelihood.log_prob(y[:1, 1:2], x[:1, 1:2]), together[:1, 1:2], rtol=1e-6)
    one = torch.where(torch.tensor([True, False, True, True]), y[0, 0], torch.nan)
    x = x.requires_grad_()
    (gradient,) = torch.autograd.grad(likelihood.log_prob(one, x).sum(), x)
    assert bool((gradient[..., 1] == 0).all()) and bool(torch.isfinite(gradient).all())
    assert torch.equal(likelihood.log_prob(torch.full((4,), torch.nan), x), torch.zeros(3, 5))


def test_student_nears_the_normal_and_has_outliers():
    r = torch.linspace(-3, 3, 7, dtype=torch.float64)[:, None]
    # log t = log N + (r^4 - 2 r^2 - 1) / (4 n) - (r^6 / 6 + ...) / n^2.
    n = 1e4
    gap = StudentT(n).log_prob(r) - GaussianNoise(1.0).log_prob(r)
    assert torch.allclose(gap, ((r**4 - 2 * r**2 - 1) / (4 * n))[:, 0], atol=200 / n**2)
    r = r.requires_grad_()
    force = [torch.autograd.grad(law.log_prob(r).sum(), r)[0] for law in (Laplace(0.5), StudentT(3.0))]
    assert torch.allclose(force[0], -2 * r.sign())
    assert torch.allclose(force[1], -4 * r / (3 + r * r))


@pytest.mark.parametrize("mean", [0.1, 3.0, 50.0])
def test_poisson_draws_follow_the_law(mean):
    gain, count = 4.0, 200_000
    likelihood = Likelihood(Identity((1,)), Poisson(gain))
    x = torch.full((1, count, 1), mean / gain, dtype=torch.float64)
    counts = gain * likelihood.sample(x, rng=Streams(1, 1, count))
    whole = counts.round()
    assert float((counts - whole).abs().max()) < 1e-12 * (1 + mean)
    # The variance of a Poisson sample variance is (mean + 2 mean^2) / n.
    assert float(counts.mean()) == pytest.approx(mean, abs=4 * math.sqrt(mean / count))
    assert float(counts.var()) == pytest.approx(mean, abs=4 * math.sqrt((mean + 2 * mean**2) / count))
    seen = torch.bincount(whole.flatten().long()).double() / count
    law = torch.from_numpy(scipy.stats.poisson.pmf(np.arange(len(seen)), mean))
    assert bool(((seen - law).abs() < 4.5 * (law * (1 - law) / count).sqrt() + 2 / count).all())


def test_poisson_quantiles_are_exact():
    u = torch.rand(20_000, generator=GENERATOR, dtype=torch.float64).clamp(1e-12, 1 - 1e-12)
    for mean in (1e-9, 0.02, 0.9, 7.3, 240.0, 1.1e6):
        found = poisson_quantile(u, torch.full_like(u, mean)).numpy()
        # A quantile may differ only where round-off decides.
        expected = scipy.stats.poisson.ppf(u.numpy(), mean)
        assert (found != expected).mean() < 1e-3 and np.abs(found - expected).max() <= 1
    assert poisson_quantile(torch.tensor([2.0**-54, 0.5, 1 - 2.0**-53], dtype=torch.float64), torch.zeros(3).double())[
        1
    ] == pytest.approx(0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_poisson_density_is_that_of_the_counts(dtype):
    noise = Poisson(GAIN)
    assert isinstance(noise, Noise) and isinstance(noise, SignalNoise)
    likelihood = Likelihood(Identity((4,)), noise)
    x = 0.1 + torch.rand(6, 4, generator=GENERATOR, dtype=torch.float64)
    counts = torch.from_numpy(scipy.stats.poisson.rvs((GAIN * x[0]).numpy(), random_state=1)).double()
    counts[3] = 0.0
    y = counts / GAIN
    each = torch.from_numpy(scipy.stats.poisson.logpmf(counts.numpy(), (GAIN * x).numpy()))
    tolerance = 1e-12 if dtype is torch.float64 else 1e-5
    assert torch.allclose(likelihood.log_prob(y.to(dtype), x.to(dtype)).double(), each.sum(-1), rtol=10 * tolerance)
    partial = y.clone()
    partial[2] = torch.nan
    expected = each.sum(-1) - each[:, 2]
    assert torch.allclose(likelihood.log_prob(partial.to(dtype), x.to(dtype)).double(), expected, rtol=10 * tolerance)
    # d/dx = c / x - gain, also where x is small and nothing was counted.
    x = x.to(dtype).requires_grad_()
    (gradient,) = torch.autograd.grad(likelihood.log_prob(y.to(dtype), x).sum(), x)
    exact = counts / x.detach().double() - GAIN
    assert torch.allclose(gradient.double(), exact, rtol=100 * tolerance, atol=1e3 * tolerance)


def test_poisson_of_many_counts_keeps_its_digits_in_float32():
    likelihood = Likelihood(Identity((64,)), Poisson(1.1e6))
    x = 0.2 + torch.rand(1, 1, 64, generator=GENERATOR)
    y = likelihood.sample(x, rng=Streams(0))
    single, double = likelihood.log_prob(y, x), likelihood.log_prob(y.double(), x.double())
    # float32 y is off by 0.03 counts of 1e3 standard deviations: the sum of 64 log densities by far less than 0.01.
    assert float((single - double).abs()) < 0.01
    normal = torch.distributions.Normal(1.1e6 * x.double(), (1.1e6 * x.double()).sqrt()).log_prob(1.1e6 * y.double())
    assert float(double) == pytest.approx(float(normal.sum()), abs=64 * 2e-3)


def test_poisson_below_the_floor():
    floor = 0.05
    likelihood = Likelihood(Identity((1,)), Poisson(2.0, floor=floor))
    meeting = floor / 2
    x = torch.tensor([-1e6, -3.0, 0.0, meeting * (1 - 1e-9), meeting, meeting * (1 + 1e-9)], dtype=torch.float64)[
        :, None
    ]
    for counts in (0.0, 1.0, 4.0):
        x = x.detach().requires_grad_()
        y = torch.tensor([counts / 2], dtype=torch.float64)
        value = likelihood.log_prob(y, x)
        (gradient,) = torch.autograd.grad(value.sum(), x)
        assert bool(torch.isfinite(value).all()) and bool(torch.isfinite(gradient).all())
        # Value and slope meet at the floor; the slope is 2 (c / floor - 1) there.
        assert torch.allclose(value[3:], value[4], atol=1e-8)
        assert torch.allclose(
            gradient[3:], torch.full((3, 1), 2 * (counts / floor - 1), dtype=torch.float64), rtol=1e-6
        )
        # Concave: the slope falls as x grows; a count pulls upwards, no count pulls nowhere but down, and gently.
        assert bool((gradient[1:] <= gradient[:-1] + 1e-6 * gradient.abs().max()).all())
        assert float(gradient[0]) == pytest.approx(2 * counts / floor)
    grid = torch.linspace(-0.2, 0.2, 401, dtype=torch.float64)[:, None]
    value = likelihood.log_prob(torch.tensor([0.5], dtype=torch.float64), grid)
    assert bool((value.diff().diff() < 1e-12).all())
    # The law stays one: probabilities of all counts have the sum 1 below the floor too.
    law = Poisson(2.0, floor=floor).at(torch.tensor([-0.01], dtype=torch.float64))
    counts = torch.arange(20, dtype=torch.float64)[:, None]
    assert float(law.log_prob(counts / 2 + 0.01).exp().sum()) == pytest.approx(1.0, abs=1e-12)


def test_poisson_whitens_by_the_signal_and_has_a_gaussian_approximation():
    noise = Poisson(GAIN)
    operator = BlockMean((1, 4, 4), 2)
    likelihood = Likelihood(operator, noise)
    x = 20 + 10 * torch.rand(1, 1, 1, 4, 4, generator=GENERATOR, dtype=torch.float64)
    rows = x.expand(1, 20_000, 1, 4, 4)
    y = likelihood.sample(rows, rng=Streams(5, 1, 20_000))
    white = likelihood.residual(y, rows)[0].flatten(1)
    # The kurtosis of a Poisson law is 3 + 1 / mean.
    assert bool((white.mean(0).abs() < 4.5 / math.sqrt(20_000)).all())
    assert bool(((white**2).mean(0) - 1).abs().max() < 4.5 * math.sqrt(2.05 / 20_000))
    one = y[0, 0]
    approximation = noise.gaussian(one)
    assert torch.allclose(approximation.variance(4, dtype=torch.float64), one.flatten() / GAIN)
    exact = noise.at(operator(x).reshape(1, 4)).variance(4, dtype=torch.float64)[0]
    # Relative error of a variance estimated from c counts: 1 / sqrt(c).
    assert bool(((approximation.variance(4, dtype=torch.float64) / exact - 1).abs() < 5 / (GAIN * 20).sqrt()).all())
    dark = noise.gaussian(torch.tensor([0.0, torch.nan, 0.0, 0.0]))
    assert torch.allclose(dark.std, 1 / GAIN)
    with pytest.raises(CapabilityError, match=r"gaussian\(y\)"):
        gaussian_noise(likelihood)
    assert gaussian_noise(Likelihood(operator, approximation)) is approximation


def test_least_misfit_of_outliers():
    # A constant seen 41 times, once very wrongly: the estimate of most likelihood is dragged along by Gauss only.
    y = torch.cat([torch.linspace(-1, 1, 40, dtype=torch.float64), torch.tensor([100.0], dtype=torch.float64)])
    operator = Matrix((1,), torch.ones(41, 1))
    grid = torch.linspace(-1, 4, 1001, dtype=torch.float64)[:, None]
    best = {
        type(noise).__name__: float(grid[Likelihood(operator, noise).log_prob(y, grid).argmax()])
        for noise in (GaussianNoise(0.5), Laplace(0.5), StudentT(4, 0.5))
    }
    assert best["GaussianNoise"] == pytest.approx(100 / 41, abs=0.005)
    assert abs(best["Laplace"]) < 0.06 and abs(best["StudentT"]) < 0.03


def test_errors_speak():
    with pytest.raises(ValueError, match=r"Laplace\(scale\) is 0"):
        Laplace(0.0)
    with pytest.raises(ValueError, match="degrees is -1"):
        StudentT(-1.0)
    with pytest.raises(CapabilityError, match="has no variance"):
        StudentT(2.0).variance(3)
    with pytest.raises(ValueError, match="the noise has 4 values; 3 were observed"):
        Laplace(SCALE).log_prob(torch.zeros(3))
    with pytest.raises(ValueError, match=r"Poisson\(gain\) is nan"):
        Poisson(float("nan"))
    with pytest.raises(ValueError, match="the noise has gains for 4 values; 3 were observed"):
        Poisson(GAIN).at(torch.ones(3))
    with pytest.raises(ValueError, match=r"the observation -0\.5; counts are not negative"):
        Likelihood(Identity((2,)), Poisson(10.0)).log_prob(torch.tensor([1.0, -0.5]), torch.ones(2))
    with pytest.raises(ValueError, match="not finite"):
        Likelihood(Identity((2,)), Poisson(10.0)).log_prob(torch.ones(2), torch.tensor([1.0, torch.nan]))
    with pytest.raises(CapabilityError, match="only at a signal"):
        Poisson(1.0).variance(3)
    # An unobserved value may have any signal.
    y = torch.tensor([1.0, torch.nan])
    likelihood = Likelihood(Mask((3,), [0, 1]), Poisson(10.0))
    assert bool(torch.isfinite(likelihood.log_prob(y, torch.tensor([1.0, -2.0, 0.0]))))
