"""Volumes: slices as samples, one instrument a slice, the ADMM iteration, and what it does along a path."""

from __future__ import annotations

import pytest
import torch

from assimilate.posterior.covariance import Isotropic
from assimilate.posterior.denoisers import GaussianDenoiser, StationaryDenoiser
from assimilate.posterior.predictors import Clean
from dynamics.errors import CapabilityError
from dynamics.random import Streams
from imaging.baselines import FISTA
from imaging.baselines.data_term import DataTerm
from imaging.solvers.base import Task
from imaging.solvers.guided import CleanCovariance
from imaging.volumes import AcrossSlices, DiffusionMBIR, PerSlice, SlicedPrior, across, across_adjoint
from observations.averaging import BlockMean
from observations.check import check_operator
from observations.likelihood import Likelihood
from observations.noise import GaussianNoise
from observations.sampling import Identity, Matrix

DOUBLE = torch.float64


def field_prior(size=16):
    down, along = torch.fft.fftfreq(size)[:, None] * size, torch.fft.rfftfreq(size)[None] * size
    spectrum = ((down**2 + along**2 + 4.0) ** -1.5).to(DOUBLE)
    return StationaryDenoiser((spectrum / spectrum.mean() * 0.05)[None], size, mean=0.5, smallest=0.01, largest=5.0)


def equal_slices(slices=5, size=16, std=0.05):
    """A stack of one slice, seen through block means."""
    prior = field_prior(size)
    truth = prior.draw((2,), rng=torch.Generator().manual_seed(1)).expand(2, slices, size, size)
    likelihood = Likelihood(PerSlice(BlockMean((1, size, size), 4), slices), GaussianNoise(std))
    y = likelihood.sample(truth[:, None], rng=Streams(2, 2, 1))
    return Task(prior, likelihood, y, DOUBLE), truth


def test_differences_across_slices_and_their_adjoint_agree():
    rng = torch.Generator().manual_seed(0)
    for dim in (-3, -2):
        x = torch.randn(2, 4, 5, 3, generator=rng, dtype=DOUBLE)
        d = torch.randn_like(across(x, dim))
        torch.testing.assert_close((across(x, dim) * d).sum(), (x * across_adjoint(d, dim)).sum())


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_a_sliced_prior_sees_each_slice_alone(axis):
    inner = field_prior(8)
    prior = SlicedPrior(inner, axis, slices=3)
    shape = prior.event_shape
    assert shape == ((8,) * axis + (3,) + (8,) * (2 - axis))
    noisy = torch.randn(2, 4, *shape, generator=torch.Generator().manual_seed(0), dtype=DOUBLE)
    clean = prior(noisy, torch.tensor(0.3))
    for k in range(3):
        one = inner(noisy.select(axis + 2, k).unsqueeze(2), torch.tensor(0.3))
        torch.testing.assert_close(clean.mean.select(axis + 2, k), one.mean.squeeze(2))
        product = one.covariance.apply(noisy.select(axis + 2, k).unsqueeze(2)).squeeze(2)
        torch.testing.assert_close(clean.covariance.apply(noisy).select(axis + 2, k), product)
    levels = torch.rand(2, 4, dtype=DOUBLE) + 0.1
    apart = prior(noisy, levels).mean
    torch.testing.assert_close(apart[1, 2], prior(noisy[1, 2], levels[1, 2]).mean)


def test_draws_of_a_sliced_covariance_have_its_variance():
    prior = SlicedPrior(field_prior(8), 0, slices=3)
    clean = prior(torch.zeros(1, 1, 3, 8, 8, dtype=DOUBLE), torch.tensor(0.3))
    draws = clean.covariance.draw(Streams(0, 1, 500), (1, 500, 3, 8, 8), dtype=DOUBLE, device="cpu")
    unit = torch.zeros(1, 1, 3, 8, 8, dtype=DOUBLE)
    unit[..., 0, 0, 0] = 1.0
    exact = float(clean.covariance.apply(unit)[..., 0, 0, 0])
    # 96,000 values, of which some hundred a draw-slice are independent: 5 standard errors of 1500 x 10 of them.
    assert float(draws.var()) == pytest.approx(exact, rel=5 * (2 / 15_000) ** 0.5)
    assert draws[:, :, 0].flatten().dot(draws[:, :, 1].flatten()).abs() / draws[:, :, 0].square().sum() < 0.05


def test_isotropic_variances_are_joined():
    class Flat:
        event_shape, spread, smallest, largest, bounds = (1, 4, 4), 1.0, 0.01, 10.0, None

        def __call__(self, noisy, ratio, condition=None):
            return Clean(noisy, covariance=Isotropic(noisy.square()))

    noisy = torch.randn(2, 4, 3, 4, dtype=DOUBLE)
    clean = SlicedPrior(Flat(), 1, slices=3)(noisy, torch.tensor(1.0))
    assert isinstance(clean.covariance, Isotropic)
    torch.testing.assert_close(clean.covariance.variance, noisy.square())


def test_an_instrument_a_slice():
    operator = PerSlice(BlockMean((1, 4, 6), 2), 3)
    check_operator(operator)
    svd = operator.svd()
    x = torch.randn(2, 3, 4, 6, dtype=DOUBLE)
    torch.testing.assert_close(svd.expand_observed(svd.singular.to(x) * svd.project(x)), operator(x))
    torch.testing.assert_close(svd.project(svd.expand(svd.project(x))), svd.project(x))
    torch.testing.assert_close(svd.expand(svd.project_observed(operator(x))), operator.adjoint(operator(x)) * 2)
    vectors = PerSlice(Matrix((4,), torch.randn(2, 4, dtype=DOUBLE)), 3)
    assert vectors.event_shape == (3, 4) and vectors.obs_shape == (3, 2)
    check_operator(vectors)
    with pytest.raises(ValueError, match="channels"):
        PerSlice(BlockMean((2, 4, 4), 2), 3)


def test_one_iteration_solves_its_quadratic():
    rng = torch.Generator().manual_seed(3)
    matrix = torch.randn(2, 3, generator=rng, dtype=DOUBLE)
    likelihood = Likelihood(PerSlice(Matrix((3,), matrix), 4), GaussianNoise(0.5))
    y, x = torch.randn(1, 1, 4, 2, generator=rng, dtype=DOUBLE), torch.randn(1, 1, 4, 3, generator=rng, dtype=DOUBLE)
    data = DataTerm(likelihood, y)
    admm = AcrossSlices(data, -2, strength=0.2, penalty=0.7, iterations=100)
    first = admm.iterate(x)
    second_multipliers = admm.multipliers.clone()
    # The same by dense matrices.
    d_matrix = torch.kron(torch.diff(torch.eye(4, dtype=DOUBLE), dim=0), torch.eye(3, dtype=DOUBLE))
    a_matrix = torch.kron(torch.eye(4, dtype=DOUBLE), matrix)
    curvature = float(data.curvature)
    slope = d_matrix @ x.flatten()
    wanted = slope.sign() * (slope.abs() - 0.2 / 0.7).clamp_min(0)
    left = a_matrix.mT @ a_matrix / 0.25 / curvature + 0.7 * d_matrix.mT @ d_matrix
    right = a_matrix.mT @ y.flatten() / 0.25 / curvature + 0.7 * d_matrix.mT @ wanted
    # Only what the data and the differences see is determined; the rest stays as it was.
    change = torch.linalg.pinv(left) @ (right - left @ x.flatten())
    torch.testing.assert_close(first.flatten(), x.flatten() + change, rtol=0, atol=1e-5)
    expected = (d_matrix @ first.flatten() - wanted).reshape(second_multipliers.shape)
    torch.testing.assert_close(second_multipliers, expected, rtol=0, atol=1e-12)
    assert curvature >= float(torch.linalg.matrix_norm(matrix, 2)) ** 2 / 0.25


def test_iterations_end_at_the_closed_form_of_two_slices():
    # |x - y|^2 / (2 c) + lambda |x_2 - x_1| keeps the mean and brings the slices 2 lambda c nearer.
    y = torch.tensor([[1.0, 0.2, 0.0], [0.0, 0.1, 2.0]], dtype=DOUBLE).reshape(1, 1, 2, 3)
    data = DataTerm(Likelihood(Identity((2, 3)), GaussianNoise(0.3)), y)
    admm = AcrossSlices(data, -2, strength=0.1, penalty=0.5, iterations=20)
    x = torch.zeros_like(y)
    for _ in range(200):
        x = admm.iterate(x)
    scale = float(data.curvature) * 0.3**2
    gap = y[..., 1, :] - y[..., 0, :]
    nearer = gap.sign() * (gap.abs() - 2 * 0.1 * scale).clamp_min(0)
    expected = torch.stack([y.mean(-2) - nearer / 2, y.mean(-2) + nearer / 2], -2)
    torch.testing.assert_close(x, expected, rtol=0, atol=1e-6)


def test_without_strength_slices_are_alone():
    # A slice alone draws the numbers that the first slice of a stack draws; block means need one CG iteration.
    task, _ = equal_slices(slices=3)
    solver = DiffusionMBIR(steps=20, strength=0.0)
    stack = solver(task, rng=Streams(5, 2, 2)).samples
    one = Likelihood(PerSlice(BlockMean((1, 16, 16), 4), 1), GaussianNoise(0.05))
    alone = solver(task._replace(likelihood=one, y=task.y[:, :, :1]), rng=Streams(5, 2, 2)).samples
    torch.testing.assert_close(stack[:, :, :1], alone, rtol=0, atol=1e-9)
    coupled = DiffusionMBIR(steps=20, strength=0.04)(task, rng=Streams(5, 2, 2)).samples
    assert float((coupled[:, :, :1] - alone).abs().max()) > 1e-2


def test_equal_slices_come_out_alike_and_nearer_to_the_truth():
    task, truth = equal_slices()
    apart, together = (
        DiffusionMBIR(steps=60, strength=strength)(task, rng=Streams(0, 2, 4)).samples for strength in (0.0, 0.04)
    )

    def rough(x):
        return float(x.diff(dim=2).square().mean().sqrt())

    def error(x):
        return float((x - truth[:, None]).square().mean())

    # Unseen detail differs between independent slices; a common slice shares it.
    assert rough(together) < 0.6 * rough(apart)
    assert error(together) < 0.8 * error(apart)


def test_more_samples_do_not_change_the_first():
    task, _ = equal_slices(slices=3)
    solver = DiffusionMBIR(steps=10)
    torch.testing.assert_close(
        solver(task, rng=Streams(0, 2, 4)).samples[:, :1], solver(task, rng=Streams(0, 2, 1)).samples, rtol=0, atol=1e-9
    )
    solution = solver(task._replace(dtype=torch.float32), rng=Streams(0, 2, 1))
    assert solution.samples.dtype == torch.float32
    # DDPM's call and one for the correction, but for the last step, which leaves no noise to correct.
    assert solution.evaluations == 2 * 10 - 1


def test_any_solver_reconstructs_slice_by_slice():
    task, truth = equal_slices(slices=2, std=0.01)
    volumes = task._replace(prior=SlicedPrior(task.prior, slices=2))
    samples = CleanCovariance(steps=15)(volumes, rng=Streams(0, 2, 1)).samples
    assert samples.shape == (2, 1, 2, 16, 16)
    prior_error = float((truth - 0.5).square().mean())
    assert float((samples - truth[:, None]).square().mean()) < prior_error
    assert FISTA(iterations=5)(volumes, rng=Streams(0, 2, 1)).samples.shape == (2, 1, 2, 16, 16)


def test_volumes_of_vectors():
    prior = GaussianDenoiser(torch.zeros(3), torch.eye(3))
    likelihood = Likelihood(PerSlice(Identity((3,)), 4), GaussianNoise(0.1))
    task = Task(prior, likelihood, torch.ones(4, 3, dtype=DOUBLE), DOUBLE)
    assert DiffusionMBIR(steps=5)(task, rng=Streams(0)).samples.shape == (1, 1, 4, 3)


def test_what_does_not_fit_is_named():
    task, _ = equal_slices(slices=3)
    wrong = task._replace(likelihood=Likelihood(PerSlice(BlockMean((1, 8, 8), 4), 3), GaussianNoise(0.05)))
    with pytest.raises(CapabilityError, match="slices"):
        DiffusionMBIR()(wrong, rng=Streams(0, 2, 1))
    with pytest.raises(ValueError, match="penalty"):
        DiffusionMBIR(penalty=0.0)
    with pytest.raises(ValueError, match="axis"):
        SlicedPrior(task.prior, 3)
