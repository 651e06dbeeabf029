"""Direct inversion: filtered back-projection where it applies, least squares against the dense answer."""

from __future__ import annotations

import pytest
import torch

from assimilate.posterior.denoisers import GaussianDenoiser
from dynamics.errors import CapabilityError, SpaceMismatch
from dynamics.random import Streams
from imaging.baselines import FilteredBackProjection, PseudoInverse
from imaging.operators.tomography import ParallelBeam, filtered_back_projection
from imaging.solvers import find_solver
from imaging.solvers.base import Task
from observations.averaging import BlockMean
from observations.likelihood import Likelihood
from observations.noise import GaussianNoise
from observations.sampling import Matrix

DOUBLE = torch.float64
PRIOR = GaussianDenoiser(torch.zeros(4), torch.eye(4))


def task_of(operator, y):
    return Task(PRIOR, Likelihood(operator, GaussianNoise(0.1)), y, DOUBLE)


def test_filtered_back_projection_needs_a_scan():
    scan = ParallelBeam((1, 16, 16), views=12)
    y = scan(torch.rand(2, 1, 1, 16, 16, generator=torch.Generator().manual_seed(0), dtype=DOUBLE))
    solution = FilteredBackProjection(window="hann")(task_of(scan, y), rng=Streams(0, 2, 3))
    expected = filtered_back_projection(scan, y, "hann").expand(2, 3, 1, 16, 16)
    assert torch.equal(solution.samples, expected) and solution.evaluations == 0
    with pytest.raises(CapabilityError, match="BlockMean"):
        FilteredBackProjection()(task_of(BlockMean((1, 16, 16), 2), torch.zeros(1, 8, 8)), rng=Streams(0))


@pytest.mark.parametrize(("rows", "columns"), [(3, 6), (9, 6)])
def test_least_squares_of_least_norm(rows, columns):
    rng = torch.Generator().manual_seed(1)
    matrix = torch.randn(rows, columns, generator=rng, dtype=DOUBLE)
    y = torch.randn(2, 1, rows, generator=rng, dtype=DOUBLE)
    y[1, 0, 0] = torch.nan
    answer = PseudoInverse(iterations=50, tolerance=1e-12)(task_of(Matrix((columns,), matrix), y), rng=Streams(0, 2, 1))
    full = torch.linalg.pinv(matrix) @ y[0, 0]
    partial = torch.linalg.pinv(matrix[1:]) @ y[1, 0, 1:]
    torch.testing.assert_close(answer.samples[:, 0], torch.stack([full, partial]), rtol=0, atol=1e-9)


def test_the_exact_one_uses_the_singular_values():
    operator = BlockMean((1, 4, 4), 2)
    y = torch.arange(4.0, dtype=DOUBLE).reshape(1, 2, 2)
    exact = PseudoInverse(iterations=None)
    answer = exact(task_of(operator, y), rng=Streams(0)).samples
    torch.testing.assert_close(answer[0, 0], y.repeat_interleave(2, -1).repeat_interleave(2, -2))
    with pytest.raises(CapabilityError, match="SVD"):
        exact(task_of(ParallelBeam((1, 8, 8), views=4), torch.zeros(1)), rng=Streams(0))


def test_shapes_of_measurements_are_checked():
    with pytest.raises(SpaceMismatch, match="expected"):
        PseudoInverse()(task_of(BlockMean((1, 4, 4), 2), torch.zeros(3, 1, 1, 2, 2)), rng=Streams(0, 2, 1))


@pytest.mark.parametrize(
    "name", ["fbp", "pseudo-inverse", "fista-tv", "admm-tv", "pnp-admm", "pnp-red", "wavelet", "diffusion-mbir"]
)
def test_the_registry_finds_them(name):
    solver = find_solver(name)
    assert solver.reference and solver.name
    assert solver.exactness == ("biased" if name == "diffusion-mbir" else "point")
