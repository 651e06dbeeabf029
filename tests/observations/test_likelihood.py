"""Noise and likelihood against closed forms; missing values; rows; draws."""

import itertools
import math

import pytest
import torch

from dynamics import Lorenz63, SpaceMismatch, Streams
from observations import Arctan, GaussianNoise, Identity, Likelihood, Mask, Matrix

GENERATOR = torch.Generator().manual_seed(0)
ROOT = torch.randn(4, 4, generator=GENERATOR, dtype=torch.float64)
FULL = ROOT @ ROOT.T + 0.5 * torch.eye(4, dtype=torch.float64)
STD = torch.tensor([0.3, 1.0, 2.5, 0.7], dtype=torch.float64)
NOISES = {
    "scalar": (GaussianNoise(0.8), 0.64 * torch.eye(4, dtype=torch.float64)),
    "per value": (GaussianNoise(STD), torch.diag(STD**2)),
    "full": (GaussianNoise(covariance=FULL), FULL),
}


@pytest.mark.parametrize("name", NOISES)
def test_missing_values_are_marginalised_exactly(name):
    noise, covariance = NOISES[name]
    likelihood = Likelihood(Identity((4,)), noise)
    x = torch.randn(5, 4, generator=GENERATOR, dtype=torch.float64)
    y = torch.randn(4, generator=GENERATOR, dtype=torch.float64)
    # Every pattern of missing values, against the density of the observed ones alone.
    for pattern in itertools.product([True, False], repeat=4):
        kept = torch.tensor(pattern)
        partial = torch.where(kept, y, torch.nan)
        result = likelihood.log_prob(partial, x)
        if not any(pattern):
            assert torch.equal(result, torch.zeros(5, dtype=torch.float64))
            continue
        block = covariance[kept][:, kept]
        expected = torch.distributions.MultivariateNormal(x[:, kept], block).log_prob(y[kept])
        assert torch.allclose(result, expected, rtol=1e-12, atol=1e-12)
        white = likelihood.residual(partial, x)
        assert bool((white[:, ~kept] == 0).all())
        # |white|^2 is the quadratic form of the observed block.
        difference = (y - x)[:, kept]
        quadratic = (difference * torch.linalg.solve(block, difference.T).T).sum(-1)
        assert torch.allclose((white**2).sum(-1), quadratic, rtol=1e-11)


@pytest.mark.parametrize("name", NOISES)
def test_rows_may_miss_different_values(name):
    likelihood = Likelihood(Identity((4,)), NOISES[name][0])
    x = torch.randn(3, 2, 4, generator=GENERATOR, dtype=torch.float64)
    y = torch.randn(3, 1, 4, generator=GENERATOR, dtype=torch.float64)
    y[0, 0, 1] = y[2, 0, :] = y[1, 0, 3] = torch.nan
    together = likelihood.log_prob(y, x)
    assert together.shape == (3, 2)
    for e, n in itertools.product(range(3), range(2)):
        assert float(together[e, n]) == pytest.approx(float(likelihood.log_prob(y[e, 0], x[e, n])), rel=1e-12)
    # A row is not changed by the others.
    assert torch.allclose(likelihood.log_prob(y[:1], x[:1]), together[:1], rtol=1e-14)


@pytest.mark.parametrize("name", NOISES)
def test_nan_has_no_gradient(name):
    likelihood = Likelihood(Matrix((4,), ROOT), NOISES[name][0])
    x = torch.randn(3, 4, generator=GENERATOR, dtype=torch.float64, requires_grad=True)
    y = torch.tensor([1.0, torch.nan, 0.5, torch.nan], dtype=torch.float64)
    (gradient,) = torch.autograd.grad(likelihood.log_prob(y, x).sum(), x)
    kept = [0, 2]
    block = NOISES[name][1][kept][:, kept]
    expected = (ROOT[kept].T @ torch.linalg.solve(block, (y[kept] - x.detach() @ ROOT[kept].T).T)).T
    assert torch.allclose(gradient, expected, rtol=1e-10)
    (nothing,) = torch.autograd.grad(likelihood.log_prob(torch.full_like(y, torch.nan), x).sum(), x)
    assert torch.equal(nothing, torch.zeros_like(x))


@pytest.mark.parametrize("name", NOISES)
def test_draws_have_the_covariance(name):
    noise, covariance = NOISES[name]
    n = 100_000
    z = noise.sample((n, 4), rng=torch.Generator().manual_seed(1), dtype=torch.float64)
    error = torch.sqrt((covariance**2 + torch.outer(covariance.diagonal(), covariance.diagonal())) / n)
    assert bool(((torch.cov(z.T) - covariance).abs() < 5 * error).all())
    assert bool((z.mean(0).abs() < 5 * (covariance.diagonal() / n).sqrt()).all())
    assert torch.allclose(noise.covariance_matrix(4, dtype=torch.float64), covariance)
    assert torch.allclose(noise.variance(4, dtype=torch.float64), covariance.diagonal())
    # Whitened draws have unit covariance.
    assert bool(((torch.cov(noise.whiten(z).T) - torch.eye(4)).abs() < 5 * math.sqrt(2 / n)).all())


def test_values_of_several_dims():
    std = torch.rand(2, 3, generator=GENERATOR) + 0.5
    likelihood = Likelihood(Identity((2, 3)), GaussianNoise(std))
    x = torch.randn(4, 2, 3, generator=GENERATOR)
    y = torch.randn(2, 3, generator=GENERATOR)
    expected = torch.distributions.Normal(x, std).log_prob(y).sum((1, 2))
    assert torch.allclose(likelihood.log_prob(y, x), expected, rtol=1e-5)
    assert likelihood.residual(y, x).shape == (4, 2, 3)
    draw = likelihood.sample(torch.zeros(1, 20_000, 2, 3), rng=Streams(0, 1, 20_000))
    assert bool(((draw.std(1)[0] / std - 1).abs() < 5 / math.sqrt(2 * 20_000)).all())


def test_log_likelihood_of_the_truth():
    # E log N(e; 0, 0.25^2) = -1/2 (1 + log(2 pi 0.25^2)) = -0.033, the reference value of SDA and FlowDAS.
    system = Lorenz63.flowdas()
    likelihood = Likelihood(Arctan(system.space, "x", scale=8.0), GaussianNoise(0.25))
    rows = (4, 5000)
    x = system.prior(rows, rng=Streams(0, *rows))
    y = likelihood.sample(x, rng=Streams(1, *rows))
    expected = -0.5 * (1 + math.log(2 * math.pi * 0.25**2))
    assert expected == pytest.approx(-0.033, abs=1e-3)
    assert float(likelihood.log_prob(y, x).mean()) == pytest.approx(expected, abs=5 * math.sqrt(0.5 / 20_000))


def test_samples_do_not_depend_on_other_rows():
    likelihood = Likelihood(Mask((6,), [1, 2]), GaussianNoise(0.1))
    x = torch.randn(3, 5, 6, generator=GENERATOR)
    whole = likelihood.sample(x, rng=Streams(0, 3, 5))
    assert torch.allclose(likelihood.sample(x[:2, :3], rng=Streams(0, 2, 3)), whole[:2, :3])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", NOISES)
def test_dtype_follows_the_state(name, dtype):
    likelihood = Likelihood(Identity((4,)), NOISES[name][0])
    x = torch.zeros(2, 3, 4, dtype=dtype)
    y = torch.tensor([0.0, torch.nan, 1.0, 2.0])
    assert likelihood.log_prob(y, x).dtype == dtype and likelihood.residual(y, x).dtype == dtype
    assert likelihood.sample(x, rng=Streams(0, 2, 3)).dtype == dtype


def test_errors_speak():
    with pytest.raises(ValueError, match=r"either std=\.\.\. or covariance="):
        GaussianNoise()
    with pytest.raises(ValueError, match="expected positive numbers"):
        GaussianNoise(0.0)
    with pytest.raises(ValueError, match="expected positive numbers"):
        GaussianNoise(torch.tensor([1.0, -1.0]))
    with pytest.raises(ValueError, match="symmetric and positive definite"):
        GaussianNoise(covariance=torch.ones(2, 2))
    with pytest.raises(ValueError, match="the noise has 4 values; 3 were observed"):
        Likelihood(Identity((3,)), NOISES["full"][0]).log_prob(torch.zeros(3), torch.zeros(2, 3))
    with pytest.raises(SpaceMismatch, match=r"y has shape \(4,\); Identity\(\(3,\)\) observes \(\*b, \*\(3,\)\)"):
        Likelihood(Identity((3,)), GaussianNoise(1.0)).log_prob(torch.zeros(4), torch.zeros(2, 3))
