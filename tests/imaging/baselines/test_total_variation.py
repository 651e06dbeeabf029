"""Total variation: adjoints, the proximal step against scikit-image, two algorithms with one minimiser."""

from __future__ import annotations

import math
from dataclasses import dataclass

import pytest
import torch

from dynamics.errors import CapabilityError
from dynamics.random import Streams
from imaging.baselines import ADMM, FISTA
from imaging.baselines.differences import Variation, differences, differences_adjoint
from imaging.solvers.base import Task
from observations.averaging import BlockMean
from observations.likelihood import Likelihood
from observations.noise import GaussianNoise
from observations.sampling import Matrix

DOUBLE = torch.float64


@dataclass(frozen=True)
class Bounded:
    """What total variation asks of a prior."""

    event_shape: tuple[int, ...] = (1, 12, 12)
    spread: float = 0.5
    smallest: float = 0.01
    largest: float = 10.0
    bounds: tuple[float, float] | None = (0.0, 1.0)


def picture():
    x = torch.zeros(1, 12, 12, dtype=DOUBLE)
    x[:, 2:7, 3:9] = 0.8
    x[:, 8:, 6:] = 0.4
    return x


def block_task(*, bounds=(0.0, 1.0), experiments=1, std=0.05, factor=2):
    likelihood = Likelihood(BlockMean((1, 12, 12), factor), GaussianNoise(std))
    truth = picture().expand(experiments, 1, 1, 12, 12)
    y = likelihood.sample(truth, rng=Streams(3, experiments, 1))
    return Task(Bounded(bounds=bounds), likelihood, y, DOUBLE)


def test_differences_and_their_adjoint_agree():
    rng = torch.Generator().manual_seed(0)
    x = torch.randn(3, 2, 5, 7, generator=rng, dtype=DOUBLE)
    p = torch.randn(3, 2, 2, 5, 7, generator=rng, dtype=DOUBLE)
    left, right = (differences(x) * p).sum((1, 2, 3, 4)), (x * differences_adjoint(p)).sum((1, 2, 3))
    torch.testing.assert_close(left, right, rtol=1e-12, atol=1e-12)


def test_total_variation_of_a_square_is_its_perimeter():
    x = torch.zeros(1, 8, 8, dtype=DOUBLE)
    x[:, 2:5, 2:6] = 1.0
    assert float(Variation(isotropic=False)(x)) == 14.0
    # Isotropic: the one pixel at the inner corner has both differences and counts sqrt(2) instead of 2.
    assert float(Variation()(x)) == pytest.approx(12 + math.sqrt(2), rel=1e-12)


@pytest.mark.parametrize("isotropic", [True, False])
def test_the_proximal_step_of_a_large_weight_is_the_mean(isotropic):
    v = picture()[None]
    x, _ = Variation(isotropic).proximal(v, 100.0, iterations=1000)
    torch.testing.assert_close(x, torch.full_like(x, float(v.mean())), rtol=0, atol=1e-4)


def test_the_proximal_step_agrees_with_scikit_image():
    restoration = pytest.importorskip("skimage.restoration")
    rng = torch.Generator().manual_seed(1)
    v = picture()[None] + 0.1 * torch.randn(1, 1, 12, 12, generator=rng, dtype=DOUBLE)
    theirs = restoration.denoise_tv_chambolle(v[0, 0].numpy(), weight=0.1, eps=1e-14, max_num_iter=4000)
    ours, _ = Variation().proximal(v, 0.1, iterations=1500)

    def objective(x):
        return 0.5 * (x - v).square().sum((-3, -2, -1)) + 0.1 * Variation()(x)

    reference = torch.from_numpy(theirs)[None, None]
    # Strong convexity: |x - x*|^2 / 2 is at most the excess of the objective, which both have below 1e-7.
    assert float(objective(ours)) <= float(objective(reference)) + 1e-7
    torch.testing.assert_close(ours, reference, rtol=0, atol=1e-3)


def test_bounds_hold_within_the_proximal_step():
    # Clipping after the step is another problem; here the bounded optimum must be at least as good as the clipped one.
    v = 3 * (picture()[None] - 0.3)
    inside, _ = Variation().proximal(v, 0.3, iterations=1000, bounds=(0.0, 1.0))
    after = Variation().proximal(v, 0.3, iterations=1000)[0].clamp(0, 1)

    def objective(x):
        return float(0.5 * (x - v).square().sum() + 0.3 * Variation()(x))

    assert float(inside.min()) >= 0 and float(inside.max()) <= 1
    assert objective(inside) <= objective(after) + 1e-9


def unique_task(bounds):
    """All pixels are seen, mixed: a strictly convex problem, with one minimiser."""
    rng = torch.Generator().manual_seed(5)
    matrix = torch.eye(36, dtype=DOUBLE) + 0.05 * torch.randn(36, 36, generator=rng, dtype=DOUBLE)
    likelihood = Likelihood(Matrix((1, 6, 6), matrix), GaussianNoise(0.1))
    y = likelihood.sample(picture()[None, None, :, ::2, ::2], rng=Streams(4))
    return Task(Bounded((1, 6, 6), bounds=bounds), likelihood, y, DOUBLE)


@pytest.mark.parametrize("bounds", [None, (0.1, 0.5)])
@pytest.mark.parametrize("isotropic", [True, False])
def test_both_algorithms_find_the_same_minimiser(bounds, isotropic):
    task, rng = unique_task(bounds), Streams(0)
    settings = {"strength": 4.0, "isotropic": isotropic}
    fista = FISTA(iterations=40, inner=40, **settings)
    a, b = (solver(task, rng=rng).samples for solver in (fista, ADMM(iterations=200, inner=15, **settings)))
    torch.testing.assert_close(a, b, rtol=0, atol=1e-4)
    assert float((fista.objective(task, a) - fista.objective(task, b)).abs()) < 1e-3
    # It is a minimum: steps of any direction that stay within the bounds lead up.
    directions = torch.randn(50, 1, 1, 6, 6, generator=torch.Generator().manual_seed(6), dtype=DOUBLE)
    assert (fista.objective(task, b + 0.01 * directions) > fista.objective(task, b)).all()
    if bounds is not None:
        free, _ = FISTA(iterations=40, inner=40, bounded=False, **settings).answer(task)
        assert float(free.min()) < bounds[0] <= float(a.min()), "the bounds must matter for this test to mean something"


def test_the_objective_falls_to_that_of_a_long_run():
    task, rng = block_task(), Streams(0)
    runs = [FISTA(strength=5.0, iterations=k) for k in (10, 30, 90, 200)]
    values = [float(run.objective(task, run(task, rng=rng).samples)) for run in runs]
    excess = [value - values[-1] for value in values[:-1]]
    assert excess[0] > excess[1] > excess[2] > -1e-9
    assert excess[2] < 1e-3 * values[-1]


@pytest.mark.parametrize("solver", [FISTA(iterations=30), ADMM(iterations=20)])
def test_a_measurement_does_not_see_the_others(solver):
    task = block_task(experiments=3)
    hidden = task.y.clone()
    hidden[1, 0, 0, :3] = torch.nan
    task = task._replace(y=hidden)
    together = solver(task, rng=Streams(0, 3, 2)).samples
    alone = solver(task._replace(y=hidden[1:2]), rng=Streams(0, 1, 1)).samples
    assert together.shape == (3, 2, 1, 12, 12)
    torch.testing.assert_close(together[1:2, :1], alone, rtol=0, atol=1e-10)
    assert torch.equal(together[:, 0], together[:, 1])


@pytest.mark.parametrize("solver", [FISTA(iterations=150), ADMM(iterations=100)])
def test_full_covariances_and_missing_values(solver):
    # A diagonal covariance written as a matrix, and a value left out in two ways.
    rng = torch.Generator().manual_seed(2)
    matrix = torch.randn(20, 144, generator=rng, dtype=DOUBLE) / 12
    operator = Matrix((1, 12, 12), matrix)
    y = matrix @ picture().flatten()
    std = 0.02 + 0.02 * torch.rand(20, generator=rng, dtype=DOUBLE)
    hidden = torch.where(torch.arange(20) == 4, torch.nan, y)
    keep = torch.arange(20) != 4
    cases = [
        (operator, GaussianNoise(std), hidden),
        (operator, GaussianNoise(covariance=torch.diag(std**2)), hidden),
        (Matrix((1, 12, 12), matrix[keep]), GaussianNoise(std[keep]), y[keep]),
    ]
    images = [solver(Task(Bounded(), Likelihood(o, n), v, DOUBLE), rng=Streams(0)).samples for o, n, v in cases]
    torch.testing.assert_close(images[1], images[0], rtol=0, atol=1e-8)
    objective = [solver.objective(Task(Bounded(), Likelihood(o, n), v, DOUBLE), images[0]) for o, n, v in cases]
    torch.testing.assert_close(objective[1], objective[0])
    torch.testing.assert_close(objective[2], objective[0])
    # Another step length (the norm differs by one row), the same minimiser: compared by what is minimised.
    other = solver.objective(Task(Bounded(), Likelihood(cases[2][0], cases[2][1]), y[keep], DOUBLE), images[2])
    torch.testing.assert_close(other, objective[0], rtol=1e-3, atol=0)


def test_coupled_channels_do_not_care_for_the_phase():
    # One complex image, turned by a common phase: the coupled variation turns its answer along, to rounding.
    rng = torch.Generator().manual_seed(3)
    v = torch.randn(1, 2, 12, 12, generator=rng, dtype=DOUBLE)
    turn = torch.tensor([[math.cos(0.7), -math.sin(0.7)], [math.sin(0.7), math.cos(0.7)]], dtype=DOUBLE)

    def turned(x):
        return torch.einsum("ij,bjrc->birc", turn, x)

    coupled = Variation(coupled=True)
    first, _ = coupled.proximal(turned(v), 0.3, iterations=50)
    second = turned(coupled.proximal(v, 0.3, iterations=50)[0])
    torch.testing.assert_close(first, second, rtol=0, atol=1e-12)
    alone, _ = Variation().proximal(turned(v), 0.3, iterations=50)
    assert float((alone - turned(Variation().proximal(v, 0.3, iterations=50)[0])).abs().max()) > 1e-2


def test_an_operator_that_sees_nothing_gives_finite_images():
    task = Task(Bounded(), Likelihood(Matrix((1, 12, 12), torch.zeros(3, 144)), GaussianNoise(1.0)), torch.ones(3))
    for solver in (FISTA(iterations=5), ADMM(iterations=5)):
        assert torch.isfinite(solver(task, rng=Streams(0)).samples).all()


def test_vectors_have_no_total_variation():
    task = Task(Bounded(), Likelihood(Matrix((4,), torch.eye(4)), GaussianNoise(1.0)), torch.ones(4))
    with pytest.raises(CapabilityError, match="images"):
        FISTA()(task, rng=Streams(0))
    with pytest.raises(ValueError, match="strength"):
        ADMM(strength=0.0)
