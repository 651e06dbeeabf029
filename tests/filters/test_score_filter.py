"""The ensemble score filter: its mixture, path and rule in closed form; posteriors that are known; the paper's bias."""

import math

import pytest
import torch

from assimilate.filters.check import check_filter
from assimilate.filters.member_mixture import MemberDenoiser, Rescaled, Units
from assimilate.filters.score_filter import DampedLikelihood, EnSF, LinearVariance
from assimilate.posterior.condition import condition
from assimilate.posterior.denoisers import MixtureDenoiser
from assimilate.posterior.predictors import Context, OnPath
from assimilate.posterior.samplers import EulerMaruyama
from assimilate.posterior.time_grids import uniform_times
from dynamics import LinearGaussian, Lorenz96, Streams
from observations import Arctan, GaussianNoise, Identity, Likelihood, Matrix, Observation, StudentT

MEAN = torch.tensor([1.0, -1.0], dtype=torch.float64)
COVARIANCE = torch.tensor([[1.0, 0.6], [0.6, 0.8]], dtype=torch.float64)
PLANE = LinearGaussian(torch.eye(2), 0.01 * torch.eye(2), MEAN, COVARIANCE)
ROW = torch.tensor([[1.0, 0.5]], dtype=torch.float64)
SEEN = Observation(Likelihood(Matrix(PLANE.space, ROW), GaussianNoise(std=0.5)), torch.tensor([1.5]))


def draws(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def posterior():
    gain = COVARIANCE @ ROW.T / (ROW @ COVARIANCE @ ROW.T + 0.25)
    return MEAN + (gain * (1.5 - ROW @ MEAN)).squeeze(-1), COVARIANCE - gain @ ROW @ COVARIANCE


def analyse(method, n, seed=0):
    """Errors of mean and covariance of one analysis, in posterior standard deviations."""
    members = PLANE.prior((2, n), rng=Streams(seed, 2, n), dtype=torch.float64)
    state, _ = method.step(method.init(members), SEEN, 0.0, rng=Streams(seed + 1, 2, n))
    mean, covariance = posterior()
    std = covariance.diagonal().sqrt()
    found = torch.stack([torch.cov(x.T) for x in state.members]).mean(0)
    return (state.members.mean((0, 1)) - mean) / std, (found - covariance) / torch.outer(std, std)


@pytest.mark.parametrize("factory", [lambda d: EnSF(d, steps=8), lambda d: EnSF.published(d, steps=20)])
def test_contract(factory):
    check_filter(factory)


def test_clean_mean_is_that_of_the_mixture():
    members, noisy = draws(1, 7, 3), draws(1, 7, 3, seed=1)
    ratio = torch.tensor(0.6, dtype=torch.float64)
    for h in (0.0, 0.5):
        kernels = (h**2 * torch.eye(3, dtype=torch.float64)).expand(7, 3, 3)
        exact = MixtureDenoiser(torch.full((7,), 1 / 7, dtype=torch.float64), members[0], kernels)(noisy[0], ratio)
        ours = MemberDenoiser(members, h)(noisy, ratio)
        torch.testing.assert_close(ours.mean[0], exact.mean)
        traces = exact.covariance.matrix.diagonal(dim1=-2, dim2=-1).mean(-1)
        torch.testing.assert_close(ours.covariance.variance[0, :, 0], traces)
        own = MemberDenoiser(members, h, own=True)(noisy, ratio)
        gain = h**2 / (h**2 + 0.36)
        torch.testing.assert_close(own.mean, members + gain * (noisy - members))


def test_path_of_the_paper():
    path, x = LinearVariance(signal=0.5, noise=0.025), draws(4)
    t = torch.tensor(0.3, dtype=torch.float64)
    c = path.coefficients(t, x)
    assert float(c.beta) == pytest.approx(0.65) and float(c.noise) ** 2 == pytest.approx(1 - 0.975 * 0.3)
    eps = 1e-5
    after, before = (path.coefficients(t + e, x) for e in (eps, -eps))
    assert float(c.d_beta) == pytest.approx(float(after.beta - before.beta) / (2 * eps), rel=1e-6)
    assert float(c.d_noise) == pytest.approx(float(after.noise - before.noise) / (2 * eps), rel=1e-6)
    assert float(c.bend) == pytest.approx(2 * float(c.d_noise / c.noise) - float(c.d_beta / c.beta))
    assert float(c.foellmer) == pytest.approx(2 * float(c.noise**2 * (c.d_beta / c.beta - c.d_noise / c.noise)))
    assert path.ratio(0.3) == pytest.approx(float(c.noise / c.beta))
    assert path.time(path.ratio(0.3)) == pytest.approx(0.3)


def test_without_a_likelihood_the_members_are_drawn_again():
    """The reverse diffusion of points ends at the points, with the noise that the path leaves on them."""
    n = 600
    members = torch.tensor([-2.0, 0.5, 1.0], dtype=torch.float64).repeat(n)[None, :n, None]
    path = LinearVariance(signal=0.01, noise=1e-4)
    predictor = OnPath(MemberDenoiser(members), path)
    times = uniform_times(100, dtype=torch.float64)
    z = draws(1, n, 1)
    found = EulerMaruyama()(predictor, path, z, times=times, event_dims=1, rng=Streams(0, 1, n)).x.flatten()
    gap, nearest = (found[:, None] - torch.tensor([-2.0, 0.5, 1.0])).abs().min(-1)
    # The last Euler step of 1/100 leaves noise of variance 1/100 (g_F is 1 there).
    assert gap.max() < 0.6 and 0.09 < gap.square().mean().sqrt() < 0.12
    shares = torch.bincount(nearest, minlength=3) / n
    assert ((shares - 1 / 3).abs() < 5 * (2 / 9 / n) ** 0.5 + 0.03).all()


def test_rule_of_the_paper():
    """The shift of the clean mean is noise^2 / beta times t H^T R^-1 (y - H x)."""
    path, x = LinearVariance(), draws(1, 5, 2)
    predictor = OnPath(MemberDenoiser(draws(1, 5, 2, seed=1)), path)
    guided = condition(predictor, path, *SEEN, DampedLikelihood(), event_dims=1)
    t = torch.tensor(0.4, dtype=torch.float64)
    c = path.coefficients(t, x)
    slope = 0.4 * (1.5 - x @ ROW.T) / 0.25 * ROW
    expected = predictor(x, t, Context()).mean + c.noise**2 / c.beta * slope
    torch.testing.assert_close(guided(x, t, Context()).mean, expected)


def test_units_turn_back_and_whiten():
    members = draws(2, 30, 1, 4) @ draws(4, 4, seed=1)
    members[..., 3] = 2.0 * members[..., 0]
    for scaling in ("none", "spread", "covariance"):
        units = Units.of(members, scaling)
        u = units.into(members)
        torch.testing.assert_close(units.back(u), members)
        if scaling == "spread":
            torch.testing.assert_close(u.std(1), torch.ones_like(u[:, 0]))
    cov = torch.cov(u[0].flatten(1).T)
    # One direction has no spread: the covariance is a projection of rank 3.
    torch.testing.assert_close(cov @ cov, cov)
    assert torch.linalg.matrix_rank(cov) == 3
    operator = Rescaled(Identity((1, 4)), units)
    torch.testing.assert_close(operator(u), members)
    assert operator.obs_shape == (1, 4) and operator.event_shape == (1, 4)


def test_gaussian_posterior():
    n = 1000
    error, deviation = analyse(EnSF(PLANE), n)
    # Two samples of N follow one another; N draws twice. The kernels and the shape of V cost some per cent.
    assert error.abs().max() < 4 / n**0.5
    assert deviation.abs().max() < 0.12


def test_the_paper_is_biased():
    """Known: with the members' mixture the damped rule stops short, with own members it is elsewhere."""
    mixture = EnSF(
        PLANE,
        guidance=DampedLikelihood(),
        sampler=EulerMaruyama(),
        path=LinearVariance(),
        scaling="none",
        bandwidth=0.0,
        steps=100,
    )
    for method, (least, most) in ((mixture, (0.2, 0.6)), (EnSF.published(PLANE, steps=100), (0.6, 1.6))):
        error, _ = analyse(method, 400)
        assert least < error.abs().max() < most


def test_curved_observation_against_quadrature():
    system = LinearGaussian.scalar(1.0, 1e-6)
    model = Likelihood(Arctan(system.space, scale=0.7), GaussianNoise(std=0.3))
    y = torch.tensor([0.8], dtype=torch.float64)
    std = float(system.prior_covariance.reshape(())) ** 0.5
    x = torch.linspace(-8, 8, 20_001, dtype=torch.float64)[:, None]
    density = torch.exp(-0.5 * (x / std)[:, 0] ** 2 + model.log_prob(y, x))
    mean = float((x[:, 0] * density).sum() / density.sum())
    spread = float(((x[:, 0] - mean) ** 2 * density).sum() / density.sum()) ** 0.5
    n = 1000
    members = system.prior((1, n), rng=Streams(0, 1, n), dtype=torch.float64)
    method = EnSF(system)
    state, _ = method.step(method.init(members), Observation(model, y), 0.0, rng=Streams(1, 1, n))
    # The tangent of the arctan at the clean mean is a bias of a fraction of the spread, and narrows the tail.
    assert abs(float(state.members.mean()) - mean) < 0.25 * spread
    assert 0.7 < float(state.members.std()) / spread < 1.15


def test_the_case_of_the_paper():
    """Lorenz-96 through a narrow arctan, from members that know nothing: the published setting finds the truth."""
    system = Lorenz96(dt=0.05)
    model = Likelihood(Arctan(system.space), GaussianNoise(std=0.05))
    truth = system.prior((1, 1), rng=Streams(1, 1, 1))
    for _ in range(100):
        truth = system.step(truth, 0.0, rng=None)
    method = EnSF.published(system, steps=100)
    state = method.init(draws(1, 20, 1, 40).float())
    errors = []
    for k in range(1, 31):
        for _ in range(2):
            truth = system.step(truth, 0.0, rng=None)
        seen = Observation(model, model.sample(truth, rng=Streams(3, 1, 1, step=k)))
        state, _ = method.step(state, seen, k * 0.1, rng=Streams(2, 1, 20, step=k))
        errors.append(float((state.members.mean(1, keepdim=True) - truth).square().mean().sqrt()))
    # The climate's standard deviation is 3.6; two longer runs with 500 steps had 0.18 and 0.26 in the end.
    assert errors[0] > 2.0 and max(errors[-5:]) < 0.8


def test_settings():
    system = Lorenz96()
    for wrong in ({"score": "x"}, {"scaling": "x"}, {"bandwidth": 2.0}, {"steps": 0}, {"relaxation": 2.0}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            EnSF(system, **wrong)
    with pytest.raises(ValueError, match="scaling='spread'"):
        EnSF(Lorenz96(size=5000))
    assert EnSF(Lorenz96(size=5000), scaling="spread").scaling == "spread"
    heavy = Likelihood(Identity(system.space), StudentT(degrees=4.0, scale=1.0))
    method = EnSF.published(system, steps=30)
    state = method.init(system.prior((1, 8), rng=Streams(0, 1, 8)))
    after, info = method.step(state, Observation(heavy, torch.zeros(1, 40)), 0.05, rng=Streams(1, 1, 8))
    assert torch.isfinite(after.members).all() and math.isnan(float(info.log_evidence))
