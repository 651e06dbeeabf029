"""Clean-state corrections that draw, those through the network, and what holds for all."""

from __future__ import annotations

import math

import pytest
import torch

from assimilate.posterior.condition import condition
from assimilate.posterior.corrections.daps import DAPS
from assimilate.posterior.corrections.draw_around import DrawAround
from assimilate.posterior.corrections.gradient_steps import GradientSteps
from assimilate.posterior.corrections.isotropic import isotropic_update
from assimilate.posterior.corrections.krylov import Krylov
from assimilate.posterior.corrections.langevin import langevin
from assimilate.posterior.corrections.proximal import Proximal
from assimilate.posterior.corrections.sitcom import SITCOM
from assimilate.posterior.paths import Interpolant
from assimilate.posterior.predictors import Clean, Context, OnPath
from assimilate.posterior.samplers import Renoise
from assimilate.posterior.time_grids import uniform_times
from dynamics.errors import CapabilityError
from dynamics.random import Streams, normal
from observations.heavy_tails import Laplace, StudentT
from observations.likelihood import Likelihood
from observations.noise import GaussianNoise
from observations.nonlinear import Arctan
from observations.sampling import Identity, Matrix
from tests.posterior.splitting_cases import LINEAR, PATH, PRIOR, A, NoSVD, Square, Y, correct, direct, draw, time_of

# --- draws


@pytest.mark.parametrize("operator", [Matrix((6,), A), NoSVD(Matrix((6,), A))], ids=["svd", "cg"])
def test_isotropic_update_is_the_gaussian_posterior(operator):
    v, mean = 0.7, draw(2, 6)
    shift, covariance = isotropic_update(mean, torch.full((1, 1), v).double(), Likelihood(operator, LINEAR.noise), Y)
    exact = torch.linalg.inv(torch.eye(6) / v + A.T @ A / 0.04)
    torch.testing.assert_close(mean + shift, (mean / v + Y @ A / 0.04) @ exact, rtol=1e-5, atol=1e-5)
    basis = torch.eye(6, dtype=torch.float64)[:, None].expand(6, 2, 6)
    torch.testing.assert_close(covariance.apply(basis)[:, 0], exact, rtol=1e-5, atol=1e-5)
    n = 20_000
    _, covariance = isotropic_update(mean[:1], torch.full((1, 1), v).double(), Likelihood(operator, LINEAR.noise), Y)
    if isinstance(operator, NoSVD):
        _, covariance = isotropic_update(
            mean[:1].expand(n, 6), torch.full((1, 1), v).double(), Likelihood(operator, LINEAR.noise), Y
        )
    z = covariance.draw(torch.Generator().manual_seed(0), (n, 6), dtype=torch.float64, device="cpu")
    scale = exact.diagonal().sqrt()
    assert float(((torch.cov(z.T) - exact) / (scale[:, None] * scale)).abs().max()) < 5 * math.sqrt(2 / n)


def test_langevin_draws_a_gaussian_posterior_up_to_its_step():
    n, v = 8000, torch.full((1, 1), 0.25, dtype=torch.float64)
    x = langevin(
        torch.zeros(n, 6).double(), v, LINEAR, Y, steps=150, step=0.1, rng=torch.Generator().manual_seed(0)
    )
    exact = torch.linalg.inv(torch.eye(6) / 0.25 + A.T @ A / 0.04)
    scale = exact.diagonal().sqrt()
    # Variances at most 1 / (1 - step / 2) = 5 % too large, plus 5 standard errors.
    assert float(((x.mean(0) - Y @ A @ exact / 0.04) / scale).abs().max()) < 5 / math.sqrt(n)
    error = (torch.cov(x.T) - exact) / (scale[:, None] * scale)
    assert float(error.abs().max()) < 0.055 + 5 * math.sqrt(2 / n)


def test_langevin_draws_with_a_curved_operator_and_heavy_tails():
    # One dimension, against quadrature; Student's t with a shifted observation.
    n, centre, v = 4000, 0.5, 1.0
    operator = Arctan((1,), channels=[0], scale=1.0)
    likelihood = Likelihood(operator, StudentT(4.0, 0.5))
    y = torch.tensor([1.0], dtype=torch.float64)
    x = langevin(
        torch.full((n, 1), centre).double(), torch.full((1, 1), v).double(), likelihood, y, steps=300, step=0.1,
        rng=torch.Generator().manual_seed(0),
    )
    grid = torch.linspace(-8, 12, 20_001, dtype=torch.float64)[:, None]
    density = torch.softmax(likelihood.log_prob(y, grid) - 0.5 * (grid[:, 0] - centre) ** 2 / v, 0)
    mean = float((density * grid[:, 0]).sum())
    std = math.sqrt(float((density * (grid[:, 0] - mean) ** 2).sum()))
    # The step's bias of the variance is 5 % at most.
    assert abs(float(x.mean()) - mean) < (0.03 + 5 / math.sqrt(n)) * std
    assert float(x.std()) / std == pytest.approx(1, abs=0.025 + 5 / math.sqrt(2 * n))


def test_daps_centres():
    # The flow of a Gaussian prior ends at mu + sqrt(C / (C + rho^2)) (x - mu); Euler's error falls with the steps.
    level, x = 2.0, draw(4, 6)
    blind = Likelihood(LINEAR.operator, GaussianNoise(1e6))
    values = PRIOR.covariance.diagonal()
    exact = PRIOR.mean + (values / (values + level**2)).sqrt() * (x - PRIOR.mean)
    errors = []
    for steps in (20, 40):
        guidance = DAPS(centre="flow", flow_steps=steps)
        predictor = condition(OnPath(PRIOR, PATH), PATH, blind, Y, guidance, event_dims=1, rng=torch.Generator())
        clean = OnPath(PRIOR, PATH)(x, time_of(level), Context())
        end = guidance._flow_end(clean, x, time_of(level), Context(), predictor.problem, torch.Generator())
        errors.append(float((end - exact).norm() / x.norm()))
    assert errors[1] < 0.6 * errors[0] and errors[1] < 0.05
    # With an unseeing likelihood, draws scatter around the centre as the variance says.
    n = 20_000
    for variance, expected in (("matched", 4 * 0.49 / 4.49), ("noise", 4.0)):
        guidance = DAPS(variance=variance, prior_std=0.7)
        found = correct(guidance, blind, Y, x[:1].expand(n, 6), level).mean - direct(x[:1], level)
        assert float(found.var()) == pytest.approx(expected, rel=5 * math.sqrt(2 / (6 * n)))


# --- through the network


def test_sitcom_takes_adam_steps_and_stops():
    level, x = 1.0, draw(3, 6)
    # The first Adam step is the sign of the gradient, whatever its length.
    leaf = x.clone().requires_grad_()
    loss = -LINEAR.log_prob(Y, direct(leaf, level)).sum()
    sign = torch.autograd.grad(loss, leaf)[0].sign()
    scale = math.sqrt(level**2 + (2 * 0.8) ** 2)
    one = correct(SITCOM(iterations=1, prior_std=0.8), LINEAR, Y, x, level).mean
    torch.testing.assert_close(one, direct(x - 0.01 * scale * sign, level), rtol=1e-6, atol=1e-6)

    def chi(mean):
        return LINEAR.residual(Y, mean).square().mean(-1)

    before = chi(direct(x, level))
    after = chi(correct(SITCOM(iterations=200, penalty=0.0, prior_std=0.8), LINEAR, Y, x, level).mean)
    assert bool((after < 0.5 * before).all())
    # A sample that fits already stands still.
    still = correct(SITCOM(iterations=5, stop=1e9), LINEAR, Y, x, level).mean
    torch.testing.assert_close(still, direct(x, level))


# --- what holds for all

CORRECTIONS = [
    Proximal(), Krylov(), Krylov(gamma=None), GradientSteps(), SITCOM(), DAPS(), DAPS(inner="langevin"),
    DAPS(centre="flow", variance="noise"),
]


@pytest.mark.parametrize("guidance", CORRECTIONS, ids=repr)
@pytest.mark.parametrize("operator", [Matrix((6,), A), NoSVD(Matrix((6,), A))], ids=["svd", "adjoint"])
def test_a_row_does_not_depend_on_others(guidance, operator):
    likelihood = Likelihood(operator, GaussianNoise([0.1, 0.2, 0.4]))
    many = normal(Streams(0, 2, 7), (2, 7, 6), dtype=torch.float64)
    y = torch.stack([Y, torch.tensor([0.3, torch.nan, 1.0]).double()])[:, None]

    def ask(x, y, experiments, members):
        predictor = condition(
            OnPath(PRIOR, PATH), PATH, likelihood, y, guidance, event_dims=1, rng=Streams(5, experiments, members)
        )
        return predictor(x, time_of(1.5), Context()).mean

    every = ask(many, y, 2, 7)
    # Rounding differs with the shape of a batch.
    torch.testing.assert_close(ask(many[:1, :1], y[:1], 1, 1), every[:1, :1], rtol=1e-8, atol=1e-10)
    torch.testing.assert_close(ask(many[1:, 2:3], y[1:], (1,), (2,)), every[1:, 2:3], rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("guidance", CORRECTIONS, ids=repr)
def test_missing_values_contribute_nothing(guidance):
    x = draw(5, 6)
    gap = torch.tensor([Y[0], torch.nan, Y[2]], dtype=torch.float64)
    fewer = Likelihood(NoSVD(Matrix((6,), A[[0, 2]])), GaussianNoise(0.2))
    if isinstance(guidance, DAPS) and guidance.inner == "auto":
        # An exact draw takes noise for every value, so only the centre of many can be compared.
        x = x[:1].expand(4000, 6)
        means = [correct(guidance, likelihood, y, x, 1.5).mean.mean(0)
                 for likelihood, y in ((LINEAR, gap), (fewer, Y[[0, 2]]))]
        torch.testing.assert_close(means[0], means[1], atol=7 * 1.5 * math.sqrt(2 / 4000), rtol=0)
    else:
        torch.testing.assert_close(
            correct(guidance, LINEAR, gap, x, 1.5).mean, correct(guidance, fewer, Y[[0, 2]], x, 1.5).mean,
            # The stiffness of three values with a gap and that of two are power iterations of the same matrix.
            rtol=1e-6, atol=1e-6,
        )


@pytest.mark.parametrize("guidance", CORRECTIONS, ids=repr)
def test_tiny_noise_and_a_blind_operator_stay_finite(guidance):
    # T11; a blind operator leaves a point where it was.
    x = draw(20, 6)
    for level in (1e-3, 1.0, 40.0):
        tiny = correct(guidance, Likelihood(LINEAR.operator, GaussianNoise(1e-3)), Y, x, level).mean
        assert bool(torch.isfinite(tiny).all())
        blind = correct(guidance, Likelihood(NoSVD(Matrix((6,), 0 * A)), GaussianNoise(0.2)), Y, x, level).mean
        assert bool(torch.isfinite(blind).all())
        if not isinstance(guidance, DAPS | SITCOM):
            torch.testing.assert_close(blind, direct(x, level))


@pytest.mark.parametrize("guidance", [GradientSteps(), DAPS(), Proximal(), SITCOM(), Krylov()], ids=repr)
def test_nonlinear_operators_bring_the_data_nearer(guidance):
    likelihood = Likelihood(Square(), GaussianNoise(0.3))
    x, y = 0.5 + 0.2 * draw(50, 6), torch.tensor([1.0, 0.5, 0.2], dtype=torch.float64)
    before = likelihood.residual(y, direct(x, 1.0)).square().sum(-1)
    after = likelihood.residual(y, correct(guidance, likelihood, y, x, 1.0).mean).square().sum(-1)
    assert float(after.median()) < 0.9 * float(before.median())


def test_a_correction_runs_on_an_interpolant_with_channels():
    # Channels with their own spread: draws come out with it, from the very start of the path.
    path = Interpolant(scale=(2.0, 0.1), grid_dims=0)
    n = 20_000
    x = torch.zeros(1, n, 2, dtype=torch.float64)

    def predictor(x, t, context):
        return Clean(torch.zeros_like(x))

    blind = Likelihood(Identity((2,)), GaussianNoise(1e6))
    times = uniform_times(3, dtype=torch.float64)
    guided = condition(predictor, path, blind, torch.zeros(2).double(), DAPS(), event_dims=1, rng=Streams(0, 1, n))
    first = guided(x, times[0], Context(base=x)).mean
    torch.testing.assert_close(
        first.std((0, 1)), torch.tensor([2.0, 0.1], dtype=torch.float64), rtol=5 / math.sqrt(2 * n), atol=0
    )
    sample = Renoise(clean="given")(
        guided, path, x, times=times, event_dims=1, rng=Streams(1, 1, n), context=Context(base=x)
    )
    assert bool(torch.isfinite(sample.x).all())
    with pytest.raises(ValueError, match="begins after the start"):
        condition(
            predictor, path, blind, torch.zeros(2).double(), DAPS(variance="noise"), event_dims=1, rng=Streams(0, 1, n)
        )(x, times[0], Context(base=x))
    with pytest.raises(ValueError, match="begins after the start"):
        condition(predictor, path, blind, torch.zeros(2).double(), Proximal(), event_dims=1)(
            x, times[0], Context(base=x)
        )


def test_bad_requests_speak():
    for bad in (
        lambda: Proximal(strength=0.0), lambda: Krylov(iterations=0), lambda: GradientSteps(rate=4.0),
        lambda: SITCOM(rate=0.0), lambda: DAPS(centre="ode"), lambda: DAPS(inner="hmc"), lambda: DrawAround(step=3.0),
    ):
        with pytest.raises(ValueError, match="expected"):
            bad()
    with pytest.raises(ValueError, match="pass rng"):
        condition(OnPath(PRIOR, PATH), PATH, LINEAR, Y, DAPS(), event_dims=1)
    square = Likelihood(Square(), GaussianNoise(0.3))
    with pytest.raises(CapabilityError, match="inner='langevin'"):
        correct(DAPS(inner="exact"), square, Y, draw(2, 6), 1.0)
    for guidance in (Proximal(), Krylov(), SITCOM()):
        with pytest.raises(CapabilityError, match="Gaussian noise"):
            correct(guidance, Likelihood(LINEAR.operator, Laplace(0.3)), Y, draw(2, 6), 1.0)
