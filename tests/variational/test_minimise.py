"""Minimisers: quadratic and curved problems with known minima, rows by themselves, and the tangent."""

import math

import pytest
import torch

from assimilate.variational.laplace import half_log_determinant, posterior_draws
from assimilate.variational.minimise import LBFGS, Cost, GaussNewton, Minimiser, tangent
from dynamics import CapabilityError

ROWS, N, M = 6, 5, 4
G = torch.randn(ROWS, M, N, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
# Rows of very different condition.
G = G * torch.logspace(-1, 2, ROWS, dtype=torch.float64).reshape(-1, 1, 1)
Y = torch.randn(ROWS, M, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
CENTRE = torch.randn(ROWS, N, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
ZERO = torch.zeros(ROWS, N, dtype=torch.float64)
BOTH = pytest.mark.parametrize("minimiser", [GaussNewton(200, tolerance=1e-7), LBFGS(200, tolerance=1e-7)])


def linear(v):
    return (G[: v.shape[0]] @ v.unsqueeze(-1)).squeeze(-1) - Y[: v.shape[0]]


def curved(v):
    """A valley: the residual bends with the control."""
    return torch.stack([v[..., 1] - v[..., 0] ** 2 - 1, v[..., 0] - 1.0, torch.sin(v[..., 2])], -1)


@BOTH
def test_quadratic_minimum(minimiser):
    assert isinstance(minimiser, Minimiser)
    exact = torch.linalg.solve(torch.eye(N, dtype=torch.float64) + G.mT @ G, CENTRE + (G.mT @ Y.unsqueeze(-1))[..., 0])
    found = minimiser(Cost(linear, CENTRE), ZERO)
    # A cost known to 10 eps J says no more of a gradient than sqrt(20 eps J |Hessian|).
    largest = torch.linalg.matrix_norm(G, 2) ** 2 + 1
    assert (found.gradient_norm <= (20 * 2.2e-16 * found.cost * largest).sqrt().clamp_min(1e-7)).all()
    # The Hessian is at least the identity: the gradient bounds the distance.
    assert ((found.control - exact).norm(dim=-1) <= found.gradient_norm + 1e-12).all()
    torch.testing.assert_close(found.cost, Cost(linear, CENTRE)(exact))


@BOTH
def test_curved_minimum_and_rows_by_themselves(minimiser):
    start = 3 * torch.randn(20, N, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    cost = Cost(curved, start.new_zeros(1))
    found = minimiser(cost, start)
    assert (found.gradient_norm < 1e-6).all() and (found.cost <= cost(start)).all()
    for k in (0, 7):
        alone = minimiser(cost, start[k : k + 1])
        torch.testing.assert_close(alone.control[0], found.control[k], atol=1e-9, rtol=0)


def test_both_minimisers_agree():
    start = torch.full((1, N), 0.5, dtype=torch.float64)
    cost = Cost(curved, start.new_zeros(1))
    one, other = GaussNewton(200, tolerance=1e-8)(cost, start), LBFGS(tolerance=1e-8)(cost, start)
    torch.testing.assert_close(one.control, other.control, atol=1e-7, rtol=0)


def test_gradient_against_finite_differences():
    v = torch.randn(3, N, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
    cost = Cost(curved, CENTRE[:3])
    _, gradient = cost.slope(v)
    h = 1e-6
    for j in range(N):
        move = torch.zeros(N, dtype=torch.float64)
        move[j] = h
        # Central differences: error h^2 times the third derivative, and eps / h.
        torch.testing.assert_close((cost(v + move) - cost(v - move)) / (2 * h), gradient[:, j], atol=1e-6, rtol=1e-6)


def test_tangent_products():
    v, u = torch.randn(2, 3, N, generator=torch.Generator().manual_seed(5), dtype=torch.float64).unbind(0)
    near = tangent(curved, v)
    torch.testing.assert_close(near.value, curved(v))
    h = 1e-6
    torch.testing.assert_close(near.forward(u), (curved(v + h * u) - curved(v - h * u)) / (2 * h), atol=1e-6, rtol=1e-6)
    w = torch.randn(3, 3, generator=torch.Generator().manual_seed(6), dtype=torch.float64)
    torch.testing.assert_close((near.forward(u) * w).sum(-1), (u * near.adjoint(w)).sum(-1))
    # Nothing observed.
    empty = tangent(lambda c: c.new_zeros(*c.shape[:-1], 0), v)
    torch.testing.assert_close(empty.normal(u), u)


def test_posterior_draws_and_determinant():
    n = 20_000
    near = tangent(lambda v: (G[3] @ v.unsqueeze(-1)).squeeze(-1), torch.zeros(n, N, dtype=torch.float64))
    g = torch.Generator().manual_seed(7)
    prior, noise = (torch.randn(n, k, generator=g, dtype=torch.float64) for k in (N, M))
    drawn = posterior_draws(near, prior, noise)
    exact = torch.linalg.inv(torch.eye(N, dtype=torch.float64) + G[3].mT @ G[3])
    scale = exact.diagonal().sqrt()
    error = (torch.cov(drawn.mT) - exact).abs() / torch.outer(scale, scale)
    assert (error < 5 * (2 / n) ** 0.5).all()
    half = 0.5 * torch.linalg.slogdet(torch.eye(N, dtype=torch.float64) + G.mT @ G)[1]
    torch.testing.assert_close(half_log_determinant(tangent(linear, ZERO), N), half)
    wide = tangent(lambda v: (G.mT @ v.unsqueeze(-1)).squeeze(-1), ZERO[:, :M])
    torch.testing.assert_close(half_log_determinant(wide, M), half)


def test_what_they_refuse():
    cost = Cost(curved, ZERO[:1], misfit=lambda v: curved(v).abs().sum(-1))
    with pytest.raises(CapabilityError, match="LBFGS"):
        GaussNewton()(cost, ZERO[:1])
    with pytest.raises(FloatingPointError, match="first guess"):
        LBFGS()(Cost(curved, ZERO[:1]), torch.full((1, N), math.nan))
    with pytest.raises(CapabilityError, match="no gradient"):
        tangent(lambda v: v.detach(), ZERO)
    with pytest.raises(ValueError, match="iterations is 0"):
        LBFGS(iterations=0)
    with pytest.raises(ValueError, match="accuracy"):
        GaussNewton(accuracy=2.0)
