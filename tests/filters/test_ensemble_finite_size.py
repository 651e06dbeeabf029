"""The EnKF-N: the dual minimum, the primal problem it stands for, and how the inflation behaves."""

import math

import pytest
import torch

from assimilate.filters.ensemble import ETKF
from assimilate.filters.finite_size import EnKFN, eigenvalues, prior_factor, size_law
from assimilate.filters.gram import Decomposed
from dynamics import LinearGaussian, Streams
from observations import GaussianNoise, Identity, Likelihood, Observation

N = 8
RING = LinearGaussian.ring(5)


def problem(seed, reach=1.0, m=6):
    g = torch.Generator().manual_seed(seed)
    spread = torch.randn(1, N, m, generator=g, dtype=torch.float64)
    spread = spread - spread.mean(1, keepdim=True)
    departure = reach * torch.randn(1, m, generator=g, dtype=torch.float64)
    return spread, departure, *eigenvalues(Decomposed.of(spread), departure)


def cost(spread, departure, e, k, u):
    """The dual function from the dense covariance of the departures."""
    m = spread.shape[-1]
    total = torch.eye(m, dtype=torch.float64) + math.exp(u) * spread[0].T @ spread[0] / (N - 1)
    misfit = departure[0] @ torch.linalg.solve(total, departure[0])
    return float(misfit / (N - 1) + e * math.exp(-u) + k * u)


@pytest.mark.parametrize("reach", [0.1, 1.0, 3.0, 30.0])
@pytest.mark.parametrize("seed", range(4))
def test_the_factor_is_the_lowest_point_of_the_dual_function(seed, reach):
    spread, departure, values, squares = problem(seed, reach)
    e, k = size_law(values)
    found = 2 * math.log(float(prior_factor(values, squares, e, k)))
    line = torch.linspace(-3, 15, 3001, dtype=torch.float64)
    costs = [cost(spread, departure, float(e), float(k), float(u)) for u in line]
    lowest = float(line[min(range(len(costs)), key=costs.__getitem__)])
    assert abs(found - lowest) < 0.006  # the step of the line
    h = 1e-4
    here = [cost(spread, departure, float(e), float(k), found + d) for d in (-h, 0, h)]
    slope, curvature = (here[2] - here[0]) / (2 * h), (here[0] - 2 * here[1] + here[2]) / h**2
    assert curvature > 0 and abs(slope) < 1e-6 * max(1, curvature)


@pytest.mark.parametrize("seed", range(4))
def test_dual_and_primal_have_one_minimum(seed):
    """J(w) = |d - S^T w|^2 / 2 + N / 2 log(e + |w|^2): the mean weights of the ETKF with the factor minimise it."""
    spread, departure, values, squares = problem(seed, 3.0)
    e, k = (N + 1) / N, N / (N - 1)
    factor = float(prior_factor(values, squares, torch.tensor([e]).double(), torch.tensor([k]).double()))
    s, d = spread[0], departure[0]
    w = torch.linalg.solve(s @ s.T + (N - 1) / factor**2 * torch.eye(N, dtype=torch.float64), s @ d)
    w.requires_grad_()
    objective = 0.5 * (d - w @ s).square().sum() + N / 2 * torch.log(e + w.square().sum())
    (slope,) = torch.autograd.grad(objective, w)
    assert slope.abs().max() < 1e-6 * (s @ d).abs().max()


@pytest.mark.parametrize("m", [1, 3, 7, 8, 20])
def test_both_gram_matrices_give_the_same_directions(m):
    """sum q g(lambda) is d^T S^T g(S S^T) S d, whichever matrix was decomposed."""
    spread, departure, values, squares = problem(1, 2.0, m)
    s, d = spread[0], departure[0]
    gram = s @ s.T
    assert values.shape == squares.shape == (1, N)
    torch.testing.assert_close(values.sum(), gram.trace())
    inverse = torch.linalg.inv(gram + 0.7 * torch.eye(N, dtype=torch.float64))
    torch.testing.assert_close((squares / (values + 0.7)).sum(), d @ s.T @ inverse @ s @ d)


def test_no_information_no_inflation():
    values = torch.tensor([[0.0] * N, [1e-9] * N, [1e9] * N], dtype=torch.float64)
    e, k = size_law(values)
    factor = prior_factor(values, torch.zeros_like(values), e, k)
    # Where everything is seen exactly the law is that of the members alone: l^2 = e / k.
    expected = torch.tensor([1.0, 1.0, math.sqrt((N + 1) * (N - 1)) / N], dtype=torch.float64)
    torch.testing.assert_close(factor, expected, atol=1e-7, rtol=0)


def test_far_observations_widen_and_certainty_narrows():
    _, _, values, squares = problem(0, 1.0)
    factors = [float(prior_factor(values, r**2 * squares, *size_law(values))) for r in (0.1, 1, 3, 1e3, 1e4)]
    assert all(a < b for a, b in zip(factors, factors[1:], strict=False))
    # Far away the misfit of a rank-(N - 1) ensemble asks for l in proportion to the distance.
    assert factors[4] / factors[3] == pytest.approx(10, rel=1e-3)
    certain = [float(prior_factor(values, 9 * squares, *size_law(values, c))) for c in (1.0, 2.0, 10.0, 1e6)]
    assert all(a > b for a, b in zip(certain, certain[1:], strict=False))
    assert certain[-1] == pytest.approx(float(prior_factor(values, 0 * squares, *size_law(values))), rel=1e-3)


def test_the_analysis_is_an_etkf_of_wider_members():
    x = RING.prior((3, N), rng=Streams(0, 3, N), dtype=torch.float64)
    seen = Observation(Likelihood(Identity(RING.space), GaussianNoise(std=0.3)), 4 * torch.ones(1, 5).double())
    after, info = EnKFN(RING).step(EnKFN(RING).init(x), seen, 0.0, rng=Streams(0, 3, N))
    found = ((seen.y - x) / 0.3).flatten(2)
    departure, spread = found.mean(1), found.mean(1, keepdim=True) - found
    values, squares = eigenvalues(Decomposed.of(spread), departure)
    factor = prior_factor(values, squares, *size_law(values))
    assert (factor > 1.05).all()
    for e in range(3):
        # An experiment of its own, with prior inflation set by hand.
        one = ETKF(RING, prior_inflation=float(factor[e]))
        expected, other = one.step(one.init(x[e : e + 1]), seen, 0.0, rng=Streams(0, 1, N))
        torch.testing.assert_close(after.members[e], expected.members[0])
        torch.testing.assert_close(info.log_evidence[e], other.log_evidence[0])


def test_a_wrong_certainty_is_named():
    with pytest.raises(ValueError, match=r"certainty is 0.0; expected a positive factor"):
        EnKFN(RING, certainty=0.0)
