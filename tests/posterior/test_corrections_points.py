"""The data term of clean-state corrections and those that give a point: slopes, proximal points, Krylov steps."""

from __future__ import annotations

import pytest
import torch

from assimilate.posterior.corrections.data_term import slope, stiffness
from assimilate.posterior.corrections.gradient_steps import GradientSteps
from assimilate.posterior.corrections.krylov import Krylov
from assimilate.posterior.corrections.proximal import Proximal, proximal_point
from observations.heavy_tails import Laplace, StudentT
from observations.likelihood import Likelihood
from observations.noise import GaussianNoise
from observations.nonlinear import Arctan
from observations.poisson import Poisson
from observations.sampling import Identity, Matrix
from tests.posterior.splitting_cases import LINEAR, A, NoSVD, Square, Y, correct, direct, draw

# --- the data term


@pytest.mark.parametrize("operator", [Matrix((6,), A), NoSVD(Matrix((6,), A)), Square()], ids=["svd", "cg", "square"])
@pytest.mark.parametrize(
    "noise",
    [GaussianNoise(0.2), GaussianNoise([0.1, 0.2, 0.4]), GaussianNoise(covariance=0.1 * torch.eye(3) + 0.05),
     Laplace(0.3), StudentT(3.0, 0.3)],
    ids=repr,
)
def test_slope_is_the_gradient_of_the_likelihood_and_gaps_are_none(operator, noise):
    x = draw(4, 6)
    y = torch.tensor([0.5, torch.nan, -1.0], dtype=torch.float64)
    likelihood = Likelihood(operator, noise)
    leaf = x.clone().requires_grad_()
    expected = torch.autograd.grad(likelihood.log_prob(y, leaf).sum(), leaf)[0]
    torch.testing.assert_close(slope(likelihood, y, x), expected)
    nothing = torch.full((3,), torch.nan, dtype=torch.float64)
    assert float(slope(likelihood, nothing, x).abs().max()) == 0


def test_stiffness_is_the_largest_eigenvalue():
    # Power iteration stays below, by 1 / (2 iterations) or so.
    scale = torch.tensor([1.0, 2.0, 0.5, 1.0, 3.0, 0.1], dtype=torch.float64)
    for noise in (GaussianNoise(0.2), GaussianNoise([0.1, 0.2, 0.4])):
        precision = torch.diag(1 / noise.variance(3, dtype=torch.float64))
        likelihood = Likelihood(Matrix((6,), A), noise)
        for factor in (torch.ones(6).double(), scale):
            exact = float(torch.linalg.eigvalsh(factor[:, None] * (A.T @ precision @ A) * factor).max())
            found = stiffness(likelihood, Y, draw(5, 6), factor)
            assert found.shape[-1] == 1 and float(found.max()) <= exact * (1 + 1e-9)
            assert float(found.min()) > 0.95 * exact
    # Row by row with gaps, and where the tangent differs.
    gap = torch.stack([Y, torch.tensor([Y[0], torch.nan, torch.nan])])
    found = stiffness(LINEAR, gap, draw(2, 6), iterations=100)
    assert float(found[1, 0]) == pytest.approx(float(A[0] @ A[0]) / 0.04, rel=1e-6)
    x = draw(2, 6)
    found = stiffness(Likelihood(Square(), GaussianNoise(0.2)), Y, x, iterations=200)
    for row in range(2):
        tangent = torch.cat([torch.diag(2 * x[row, :3]), 0.5 * torch.eye(3).double()], 1)
        assert float(found[row, 0]) == pytest.approx(float(torch.linalg.matrix_norm(tangent, 2) ** 2) / 0.04, rel=1e-3)
    blind = Likelihood(Matrix((6,), torch.zeros(3, 6)), GaussianNoise(0.2))
    assert float(stiffness(blind, Y, x).abs().max()) == 0


@pytest.mark.parametrize("noise", [StudentT(3.0, 0.1), Poisson(50.0), GaussianNoise(0.05)], ids=repr)
def test_a_step_of_the_inverse_stiffness_climbs_for_any_noise(noise):
    likelihood = Likelihood(Identity((6,)), noise)
    y = torch.tensor([1.0, 2.0, 0.5, 1.5, 1.0, 0.3], dtype=torch.float64)
    steps = GradientSteps(steps=1, rate=1.0, momentum=0.0)
    x = y + 0.3 * draw(20, 6)
    before = likelihood.log_prob(y, x)
    for _ in range(30):
        x = steps.ascend(x, likelihood, y)
        after = likelihood.log_prob(y, x)
        assert bool((after >= before - 1e-9).all())
        before = after


# --- points


@pytest.mark.parametrize("operator", [Matrix((6,), A), NoSVD(Matrix((6,), A))], ids=["svd", "cg"])
@pytest.mark.parametrize("noise", [GaussianNoise(0.2), GaussianNoise([0.1, 0.2, 0.4])], ids=["white", "per value"])
def test_proximal_point_is_the_closed_form(operator, noise):
    level, lam, x = 1.3, 7.0, draw(4, 6)
    found = correct(Proximal(lam), Likelihood(operator, noise), Y, x, level).mean
    mean, precision = direct(x, level), torch.diag(1 / noise.variance(3, dtype=torch.float64))
    matrix = A.T @ precision @ A + lam / level**2 * torch.eye(6)
    right = A.T @ precision @ Y + lam / level**2 * mean
    torch.testing.assert_close(found, torch.linalg.solve(matrix, right[..., None]).squeeze(-1), rtol=1e-5, atol=1e-5)


def test_proximal_point_of_a_nonlinear_operator_is_a_minimum():
    likelihood = Likelihood(Arctan((6,), channels=[0, 1, 2]), GaussianNoise(0.3))
    mean, variance = draw(5, 6), torch.full((1, 1), 0.5, dtype=torch.float64)
    y = torch.tensor([0.2, -0.4, 0.5], dtype=torch.float64)
    found = proximal_point(mean, variance, likelihood, y, newton=30)
    balance = slope(likelihood, y, found) - (found - mean) / variance
    assert float(balance.abs().max()) < 1e-4
    # Where the tangent lies badly the steps are shortened: a row's objective never rises.
    hard = Likelihood(Square(), GaussianNoise(0.05))
    far = 2 * draw(50, 6, seed=5)
    point = proximal_point(far, variance, hard, Y, newton=5)
    cost = [-2 * hard.log_prob(Y, z) + ((z - far).square() / variance).sum(-1) for z in (far, point)]
    assert bool((cost[1] <= cost[0]).all()) and float((cost[1] / cost[0]).median()) < 0.1


def test_krylov_steps_tend_to_the_solution_and_the_first_is_steepest_descent():
    level, x = 1.3, draw(4, 6)
    mean = direct(x, level)
    norm = torch.linalg.matrix_norm(A, 2) ** 2
    matrix = torch.eye(6).double() + 5.0 * A.T @ A / norm
    right = mean + 5.0 * (Y @ A) / norm
    # Power iteration knows the norm to a per cent or so.
    found = correct(Krylov(iterations=50), LINEAR, Y, x, level).mean
    exact = torch.linalg.solve(matrix, right[..., None]).squeeze(-1)
    assert float((found - exact).norm() / (mean - exact).norm()) < 0.02
    residual = right - mean @ matrix
    step = (residual**2).sum(-1, keepdim=True) / (residual * (residual @ matrix)).sum(-1, keepdim=True)
    one = correct(Krylov(iterations=1), LINEAR, Y, x, level).mean
    assert float((one - mean - step * residual).norm() / residual.norm()) < 0.02
    # Without the identity: the data are met, and what they do not see stays as the network has it.
    free = correct(Krylov(iterations=50, gamma=None), LINEAR, Y, x, level).mean
    torch.testing.assert_close(free @ A.T, Y.expand(4, 3), rtol=1e-5, atol=1e-5)
    hidden = torch.eye(6).double() - torch.linalg.pinv(A) @ A
    torch.testing.assert_close(free @ hidden, mean @ hidden)


def test_gradient_steps_do_not_know_units():
    x, steps = draw(3, 6), GradientSteps(steps=20)
    plain = steps.ascend(x, LINEAR, Y)
    scaled = Likelihood(Matrix((6,), 100 * A), GaussianNoise(0.2 * 3))
    torch.testing.assert_close(steps.ascend(x, scaled, 100 * Y), plain)
    torch.testing.assert_close(GradientSteps(steps=5000).ascend(x, LINEAR, Y) @ A.T, Y.expand(3, 3))
