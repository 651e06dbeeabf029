"""Symmetric roots by iteration: accuracy against float64 eigendecompositions, independence of rows, fall-back."""

import pytest
import torch

from assimilate.filters import symmetric_root
from assimilate.filters.symmetric_root import CONDITION_LIMIT, TOLERANCE, inverse_root, plan, transforms
from assimilate.filters.transforms import transform_weights


def problem(n, spread, count=48, seed=0):
    """Gram matrices of tapered departures with their projections, float64; and their condition numbers."""
    g = torch.Generator().manual_seed(seed)
    s = spread * torch.randn(count, n, 80, generator=g, dtype=torch.float64)
    s = (s - s.mean(1, keepdim=True)) * torch.rand(count, 1, 80, generator=g, dtype=torch.float64).sqrt()
    gram = s @ s.mT
    departure = (1 + spread) * torch.randn(count, 80, 1, generator=g, dtype=torch.float64)
    condition = 1 + torch.linalg.eigvalsh(gram)[:, -1] / (n - 1)
    return gram, (s @ departure).squeeze(-1), condition


def relative(found, expected, dims):
    return ((found.double() - expected).norm(dim=dims) / expected.norm(dim=dims)).max()


@pytest.mark.parametrize("n", [8, 32, 64])
@pytest.mark.parametrize(("spread", "limit"), [(0.01, 3e-6), (0.3, 3e-6), (1.0, 3e-6), (2.0, 3e-6), (4.0, 2e-5)])
def test_float32_against_eigendecomposition(n, spread, limit):
    gram, projection, condition = problem(n, spread)
    weights, root = transforms(gram.float(), projection.float())
    expected_weights, expected_root = transform_weights(gram, projection)
    assert root.dtype == weights.dtype == torch.float32
    assert condition.max() < (1000 if spread > 2 else 200)
    assert relative(root, expected_root, (-2, -1)) < limit
    assert relative(weights, expected_weights, -1) < 2.5 * limit


def test_the_iteration_itself_converges_to_its_tolerance():
    gram, _, condition = problem(16, 2.0)
    root, converged = inverse_root(gram / 15)
    assert converged.all() and condition.max() > 20
    _, expected = transform_weights(gram, gram[..., 0])
    # Eigenvalues of the root are within TOLERANCE of their values, and all come out too small.
    assert relative(root, expected, (-2, -1)) < TOLERANCE
    # Quadratic convergence: a step squares the error at least; what is done is left alone.
    lower = torch.tensor([0.1, 0.5, 0.9], dtype=torch.float64)
    for step, following in zip(plan(lower), plan(lower)[1:], strict=False):
        live = 1 - step.lower > TOLERANCE
        assert (1 - following.lower <= (1 - step.lower).square() + 1e-15)[live].all()
        assert torch.equal(following.lower[~live], step.lower[~live])


def test_bounds_of_the_plan_hold():
    """The polynomials map [l, 1] into the next interval, and the interval's ends are attained."""
    lower = torch.tensor([0.03, 0.2, 0.8], dtype=torch.float64)
    steps = plan(lower)
    for k, step in enumerate(steps[:-1]):
        x = step.lower + (1 - step.lower) * torch.linspace(0, 1, 1001, dtype=torch.float64)[:, None]
        y = x * (step.p + step.q * x.square())
        torch.testing.assert_close(y.min(0).values, steps[k + 1].lower)
        assert (y.max(0).values <= 1 + 1e-12).all()


def test_rows_do_not_depend_on_others():
    easy, b_easy, _ = problem(12, 0.3, count=5)
    hard, b_hard, _ = problem(12, 5.0, count=7, seed=1)
    alone = transforms(easy.float(), b_easy.float())
    together = transforms(torch.cat([easy, hard]).float(), torch.cat([b_easy, b_hard]).float())
    # Rows that are done are multiplied by I while the others go on.
    for one, both in zip(alone, together, strict=True):
        torch.testing.assert_close(both[:5], one, atol=1e-7, rtol=0)


def test_pieces_do_not_matter(monkeypatch):
    gram, projection, _ = problem(8, 1.0, count=12)
    shaped, vectors = gram.float().reshape(3, 4, 8, 8), projection.float().reshape(3, 4, 8)
    whole = transforms(shaped, vectors)
    monkeypatch.setattr(symmetric_root, "PIECE_NUMBERS", 3 * 64)
    for one, other in zip(whole, transforms(shaped, vectors), strict=True):
        torch.testing.assert_close(one, other, atol=1e-6, rtol=0)


def test_ill_conditioned_and_broken_matrices_are_decomposed(monkeypatch):
    gram, projection, condition = problem(16, 40.0)
    assert condition.min() > CONDITION_LIMIT
    mixed = torch.cat([gram, problem(16, 0.5)[0]]).float()
    _, converged = inverse_root(mixed / 15)
    assert not converged[:48].any() and converged[48:].all()
    weights, root = transforms(gram.float(), projection.float())
    expected = transform_weights(gram.float().double(), projection.float().double())
    torch.testing.assert_close(root, expected[1].float(), rtol=0, atol=0)
    torch.testing.assert_close(weights, expected[0].float(), rtol=0, atol=0)
    # A plan that promises too much is noticed: indefinite matrices have eigenvalues outside of it.
    _, converged = inverse_root(mixed[48:] / 15 - 2 * torch.eye(16))
    assert not converged.any()
    nan = mixed[48:] / 15
    nan[3] = torch.nan
    _, converged = inverse_root(nan)
    assert not converged[3] and converged[:3].all() and converged[4:].all()


def test_float64_is_the_eigendecomposition():
    gram, projection, _ = problem(10, 1.0)
    for one, other in zip(transforms(gram, projection), transform_weights(gram, projection), strict=True):
        assert torch.equal(one, other)


def test_nothing_observed_is_the_identity():
    weights, root = transforms(torch.zeros(3, 6, 6), torch.zeros(3, 6))
    assert torch.equal(root, torch.eye(6).expand(3, 6, 6)) and not weights.any()
