"""Wavelet compressed sensing: an orthonormal basis, and the closed form of its denoising problem."""

from __future__ import annotations

import builtins

import pytest
import torch

from assimilate.errors import UserError
from assimilate.posterior.denoisers import StationaryDenoiser
from dynamics.errors import CapabilityError
from dynamics.random import Streams
from imaging.baselines import WaveletCS
from imaging.baselines.wavelets import WaveletBasis
from imaging.solvers.base import Task
from observations.averaging import BlockMean
from observations.likelihood import Likelihood
from observations.noise import GaussianNoise
from observations.sampling import Identity

DOUBLE = torch.float64
PRIOR = StationaryDenoiser(torch.ones(1, 16, 9, dtype=DOUBLE), 16)


def test_without_pywavelets_the_message_names_the_extra(monkeypatch):
    real = builtins.__import__

    def without(name, *args, **kwargs):
        if name == "pywt":
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(UserError, match=r"assimilate-da\[imaging\]"):
        WaveletBasis()


class TestWithPyWavelets:
    @pytest.fixture(autouse=True)
    def _installed(self):
        pytest.importorskip("pywt")

    @pytest.mark.parametrize("wavelet", ["haar", "db4", "sym8"])
    @pytest.mark.parametrize("shape", [(16, 16), (32, 8)])
    def test_the_basis_is_orthonormal(self, wavelet, shape):
        basis = WaveletBasis(wavelet, 3)
        size = shape[0] * shape[1]
        matrix = basis.analyse(torch.eye(size, dtype=DOUBLE).reshape(size, *shape)).reshape(size, size)
        # PyWavelets has its filters to about 1e-12.
        torch.testing.assert_close(matrix @ matrix.mT, torch.eye(size, dtype=DOUBLE), rtol=0, atol=1e-9)
        back = basis.synthesise(torch.eye(size, dtype=DOUBLE).reshape(size, *shape)).reshape(size, size)
        torch.testing.assert_close(back, matrix.mT, rtol=0, atol=1e-9)

    def test_denoising_is_one_soft_threshold(self):
        # With A = I the minimiser is W^T soft(W y, lambda s^2), and the coarsest means stay.
        y = torch.randn(1, 16, 16, generator=torch.Generator().manual_seed(0), dtype=DOUBLE)
        solver = WaveletCS(strength=2.0, wavelet="db4", levels=2, iterations=100)
        task = Task(PRIOR, Likelihood(Identity((1, 16, 16)), GaussianNoise(0.5)), y, DOUBLE)
        c = solver.basis.analyse(y)
        thresholded = c.sign() * (c.abs() - 2.0 * 0.5**2).clamp_min(0)
        thresholded[..., :4, :4] = c[..., :4, :4]
        expected = solver.basis.synthesise(thresholded)
        torch.testing.assert_close(solver(task, rng=Streams(0)).samples[0, 0], expected, rtol=0, atol=1e-8)

    def test_the_minimiser_is_stationary(self):
        # No small step in any of 50 directions lowers the objective.
        task = Task(PRIOR, Likelihood(BlockMean((1, 16, 16), 2), GaussianNoise(0.1)), torch.rand(
            1, 8, 8, generator=torch.Generator().manual_seed(1), dtype=DOUBLE), DOUBLE)  # fmt: skip
        solver = WaveletCS(strength=5.0, wavelet="db2", levels=2, iterations=300)
        x = solver(task, rng=Streams(0)).samples[0, 0]
        directions = torch.randn(50, 1, 16, 16, generator=torch.Generator().manual_seed(2), dtype=DOUBLE)
        least = solver.objective(task, x[None])
        for length in (1e-1, 1e-3):
            assert (solver.objective(task, x + length * directions) >= least - 1e-9).all()

    def test_missing_values_and_batches(self):
        y = torch.rand(3, 1, 1, 8, 8, generator=torch.Generator().manual_seed(3), dtype=DOUBLE)
        y[1, ..., :2] = torch.nan
        task = Task(PRIOR, Likelihood(BlockMean((1, 16, 16), 2), GaussianNoise(0.1)), y, DOUBLE)
        solver = WaveletCS(iterations=20)
        together = solver(task, rng=Streams(0, 3, 1)).samples
        alone = solver(task._replace(y=y[1:2]), rng=Streams(0, 1, 1)).samples
        torch.testing.assert_close(together[1:2], alone, rtol=0, atol=1e-10)

    def test_errors_speak(self):
        with pytest.raises(UserError, match="orthogonal"):
            WaveletBasis("bior2.2")
        with pytest.raises(UserError, match="nonsense"):
            WaveletBasis("nonsense")
        task = Task(PRIOR, Likelihood(Identity((1, 12, 12)), GaussianNoise(0.5)), torch.zeros(1, 12, 12))
        with pytest.raises(CapabilityError, match="divide by 8"):
            WaveletCS()(task, rng=Streams(0))
