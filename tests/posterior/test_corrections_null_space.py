"""Pseudo-inverses with missing values, and the steps of DDNM+ and DDRM, against linear algebra."""

from __future__ import annotations

import math

import pytest
import torch

from assimilate.posterior.corrections.null_space import MeasuredPart, NullSpace, Seen
from assimilate.posterior.corrections.spectral import Restoration, Spectrum
from assimilate.posterior.paths import VE, VP
from assimilate.posterior.predictors import Clean, Context
from dynamics.errors import CapabilityError
from observations.base import LinearOperator
from observations.sampling import Mask, Matrix


class Plain(LinearOperator):
    """A matrix that does not tell its singular values; observed values of shape (2, 2)."""

    def __init__(self, array):
        self.space, self.array = (6,), array

    def forward(self, x):
        return (x @ self.array.mT.to(x)).unflatten(-1, (2, 2))


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def randn(*shape, seed=0):
    return torch.randn(*shape, dtype=torch.float64, generator=generator(seed))


def orthonormal(rows=3, columns=6, seed=0):
    return torch.linalg.qr(randn(columns, rows, seed=seed))[0].T.contiguous()


def step(sampler, x, mean, first, last, seed=0):
    """One step from noise level `first` to `last` on a VE path, and the same on VP in its own units."""
    path = VE(smallest=0.0, largest=40.0)
    t, s = (torch.tensor(path.time(level), dtype=torch.float64) for level in (first, last))
    return sampler.step(x, t, s, Clean(mean), None, path, Context(), generator(seed), False, 1)[0]


def test_inverse_with_missing_values_is_the_pseudo_inverse_of_the_other_rows():
    array = randn(4, 6, seed=1)
    y = randn(2, 1, 4, seed=2)
    y[0, 0, 1] = y[1, 0, 2] = y[1, 0, 3] = torch.nan
    values = randn(2, 5, 4, seed=3)
    kept = [[0, 2, 3], [0, 1]]
    expected = torch.stack([values[e][:, k] @ torch.linalg.pinv(array[k]).mT for e, k in enumerate(kept)])
    found = MeasuredPart(Matrix((6,), array), y, iterations=50).inverse(values)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)
    square = MeasuredPart(Plain(array), y.unflatten(-1, (2, 2)), iterations=50).inverse(values.unflatten(-1, (2, 2)))
    torch.testing.assert_close(square, expected, rtol=1e-5, atol=1e-6)
    complete = MeasuredPart(Matrix((6,), array), values).inverse(values)
    torch.testing.assert_close(complete, values @ torch.linalg.pinv(array).mT)


def test_seen_is_adjoint():
    seen = Seen(Plain(randn(4, 6)), torch.tensor([[True, False], [True, True]]))
    x, y = randn(3, 6, seed=1), randn(3, 2, 2, seed=2)
    torch.testing.assert_close((seen(x) * y).sum((-2, -1)), (x * seen.adjoint(y)).sum(-1))
    assert float(seen(x)[:, 0, 1].abs().max()) == 0.0


def test_cutoff_drops_small_singular_values():
    array = torch.diag(torch.tensor([2.0, 1.0, 0.1, 0.0], dtype=torch.float64))
    part = MeasuredPart(Matrix((4,), array), torch.ones(4, dtype=torch.float64), cutoff=0.1)
    torch.testing.assert_close(
        part.inverse(torch.ones(4, dtype=torch.float64)), torch.tensor([0.5, 1.0, 0.0, 0.0], dtype=torch.float64)
    )


def test_without_noise_the_last_step_joins_range_and_null_space():
    array, mean, y = randn(3, 6), randn(4, 6, seed=1), randn(3, seed=2)
    operator = Matrix((6,), array)
    for spectrum in (None, Spectrum.of_measurement(operator, y)):
        sampler = NullSpace(operator, y, noise_std=0.0, iterations=50, spectrum=spectrum)
        x = step(sampler, mean + randn(4, 6, seed=3), mean, 0.3, 0.0)
        torch.testing.assert_close(x @ array.T, y.expand(4, 3), rtol=1e-5, atol=1e-6)
        null = torch.eye(6, dtype=torch.float64) - torch.linalg.pinv(array) @ array
        torch.testing.assert_close(x @ null.T, mean @ null.T, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("scale", [1.0, 3.0])
@pytest.mark.parametrize("level", [0.5, 0.02])
def test_equal_singular_values_need_no_svd(scale, level):
    array, mean, y = scale * orthonormal(), randn(4, 6, seed=1), randn(3, seed=2)
    operator = Matrix((6,), array)
    x = mean + 0.6 * randn(4, 6, seed=3)
    known = NullSpace(operator, y, 0.2, spectrum=Spectrum.of_measurement(operator, y))
    unknown = NullSpace(operator, y, 0.2, norm=scale)
    missing = NullSpace(operator, torch.cat([y[:2], y[2:] * torch.nan]), 0.2, norm=scale)
    fewer = Matrix((6,), array[:2])
    torch.testing.assert_close(step(unknown, x, mean, 0.6, level), step(known, x, mean, 0.6, level))
    torch.testing.assert_close(
        step(missing, x, mean, 0.6, level),
        step(NullSpace(fewer, y[:2], 0.2, spectrum=Spectrum.of_measurement(fewer, y[:2])), x, mean, 0.6, level),
    )


@pytest.mark.parametrize(("level", "eta"), [(0.5, 1.0), (0.05, 0.0)])
def test_ddrm_and_ddnm_meet(level, eta):
    # T5. Above the noise of a direction DDRM's noise is new: eta = 1 in DDNM+. Below it DDNM+ has no noise to give:
    # eta = 0 in DDRM. Elsewhere they differ, by their rules. Unseen directions step alike for any eta.
    array, mean, y = orthonormal(), randn(4, 6, seed=1), randn(3, seed=2)
    spectrum = Spectrum.of_measurement(Matrix((6,), array), y)
    x = mean + 0.8 * randn(4, 6, seed=3)
    for other in (eta, 0.85):
        first = step(NullSpace(Matrix((6,), array), y, 0.2, eta=other, spectrum=spectrum), x, mean, 0.8, level)
        second = step(Restoration(spectrum, 0.2, eta=other), x, mean, 0.8, level)
        null = torch.eye(6, dtype=torch.float64) - array.T @ array
        torch.testing.assert_close(first @ null, second @ null)
        seen = (first - second) @ array.T
        assert (float(seen.abs().max()) < 1e-12) == (other == eta)


@pytest.mark.parametrize("kind", ["ddnm", "ddrm"])
def test_noise_of_the_measurement_takes_the_place_of_the_level_s(kind):
    # With a clean mean that is right, a state at level sigma has variance sigma^2 in every direction: the measurement's
    # noise counts. Singular values on both sides: n = 0.1, 0.2, 0.8 against sigma = 0.5. DDRM makes up eta^2 of it with
    # new noise where n is the larger.
    n = 20_000
    array = torch.diag(torch.tensor([2.0, 1.0, 0.25], dtype=torch.float64)) @ orthonormal()
    truth = randn(6, seed=1)
    operator = Matrix((6,), array)
    y = array @ truth + 0.2 * randn(n, 3, seed=2)
    spectrum = Spectrum.of_measurement(operator, y)
    sampler = NullSpace(operator, y, 0.2, eta=1.0, spectrum=spectrum)
    if kind == "ddrm":
        sampler = Restoration(spectrum, 0.2, eta=0.6)
    x = step(sampler, truth + 0.9 * randn(n, 6, seed=3), truth.expand(n, 6), 0.9, 0.5)
    covariance = torch.cov((x - truth).T) / 0.25
    # Standard error of a variance is sqrt(2 / n) = 0.01; five of them.
    assert float((covariance - torch.eye(6)).abs().max()) < 0.05


def test_steps_agree_on_paths_in_other_units():
    array, mean, y = randn(3, 6), randn(4, 6, seed=1), randn(3, seed=2)
    operator = Matrix((6,), array)
    spectrum, noisy = Spectrum.of_measurement(operator, y), mean + 0.9 * randn(4, 6, seed=3)
    for sampler in (NullSpace(operator, y, 0.2, spectrum=spectrum), Restoration(spectrum, 0.2)):
        moved = []
        for path in (VE(), VP()):
            t, s = (torch.tensor(path.time(level), dtype=torch.float64) for level in (0.9, 0.4))
            now, then = path.coefficients(t, mean), path.coefficients(s, mean)
            x, _ = sampler.step(now.beta * noisy, t, s, Clean(mean), None, path, Context(), generator(), False, 1)
            moved.append(x / then.beta)
        torch.testing.assert_close(moved[0], moved[1], rtol=1e-6, atol=1e-6)


def test_missing_values_in_the_spectral_basis():
    # A mask's singular vectors pick values, so a missing one is a direction not seen; a matrix mixes them.
    mean, x = randn(4, 6, seed=1), randn(4, 6, seed=3)
    y = torch.tensor([0.3, torch.nan, -1.0], dtype=torch.float64)
    gap = Restoration(Spectrum.of_measurement(Mask((6,), [0, 2, 5]), y), 0.2)
    fewer = Restoration(Spectrum.of_measurement(Mask((6,), [0, 5]), y[[0, 2]]), 0.2)
    torch.testing.assert_close(step(gap, x, mean, 0.8, 0.3), step(fewer, x, mean, 0.8, 0.3))
    with pytest.raises(CapabilityError, match="missing"):
        Spectrum.of_measurement(Matrix((6,), randn(3, 6)), y)
    with pytest.raises(CapabilityError, match="has none"):
        Spectrum.of_measurement(Plain(randn(4, 6)), randn(2, 2))


def test_settings_are_checked():
    operator, y = Matrix((6,), randn(3, 6)), randn(3)
    with pytest.raises(ValueError, match="eta"):
        NullSpace(operator, y, 0.2, eta=1.5)
    with pytest.raises(ValueError, match="noise"):
        Restoration(Spectrum.of_measurement(operator, y), -math.pi)
    with pytest.raises(ValueError, match="importance weight"):
        NullSpace(operator, y, 0.2).step(y, y, y, Clean(y), None, VE(), Context(), generator(), True, 1)


def test_a_cutoff_leaves_small_singular_values_out_of_the_pseudo_inverse():
    from assimilate.posterior.corrections.least_squares import pseudo_inverse
    from observations.sampling import Matrix

    operator = Matrix((3,), torch.diag(torch.tensor([2.0, 1.0, 1e-9])))
    y = torch.tensor([2.0, 3.0, 1.0], dtype=torch.float64)
    assert torch.allclose(pseudo_inverse(operator, y, cutoff=0.1), torch.tensor([1.0, 3.0, 0.0]).double())
    assert float(pseudo_inverse(operator, y)[2]) > 1e8
    nothing = Matrix((2,), torch.zeros(2, 2))
    assert torch.equal(pseudo_inverse(nothing, y[:2], cutoff=0.1), torch.zeros(2).double())
