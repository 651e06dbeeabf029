"""Scores of images: closed forms, scikit-image, calibrated samples, arrays like tensors."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
import xarray as xr

from imaging import metrics
from observations.likelihood import Likelihood
from observations.noise import GaussianNoise
from observations.sampling import Identity

DOUBLE = torch.float64


def noisy(*lead, std=0.1, seed=0, shape=(1, 16, 16)):
    return std * torch.randn(*lead, *shape, generator=torch.Generator().manual_seed(seed), dtype=DOUBLE)


def test_psnr_of_a_constant_error():
    truth = torch.rand(3, 1, 8, 8, dtype=DOUBLE)
    score = metrics.psnr(truth + torch.tensor([0.1, 0.01, 0.0]).double()[:, None, None, None], truth, data_range=2.0)
    torch.testing.assert_close(score[:2], torch.tensor([20.0, 40.0], dtype=DOUBLE) + 20 * math.log10(2.0))
    assert score[2] == math.inf
    with pytest.raises(ValueError, match="data_range"):
        metrics.psnr(truth, truth, data_range=0.0)


def test_complex_images_are_compared_by_magnitude_but_their_errors_are_complex():
    truth = torch.complex(torch.rand(1, 8, 8, dtype=DOUBLE) + 1, torch.rand(1, 8, 8, dtype=DOUBLE))
    turned = truth * np.exp(0.3j)
    assert metrics.psnr(turned, truth) > 250
    assert float(metrics.nrmse(turned, truth)) == pytest.approx(abs(np.exp(0.3j) - 1), rel=1e-12)


def test_scores_agree_with_scikit_image():
    ours = pytest.importorskip("skimage.metrics")
    truth = torch.rand(2, 1, 24, 20, generator=torch.Generator().manual_seed(1), dtype=DOUBLE)
    image = truth + noisy(2, shape=(1, 24, 20))
    for k in range(2):
        a, b = truth[k, 0].numpy(), image[k, 0].numpy()
        expected = ours.peak_signal_noise_ratio(a, b, data_range=1.0)
        assert float(metrics.psnr(image, truth)[k]) == pytest.approx(expected)
        expected = ours.structural_similarity(
            a, b, data_range=1.0, gaussian_weights=True, sigma=1.5, use_sample_covariance=False
        )
        assert float(metrics.ssim(image, truth)[k]) == pytest.approx(expected)
        assert float(metrics.nrmse(image, truth)[k]) == pytest.approx(ours.normalized_root_mse(a, b))
    assert float(metrics.ssim(truth[0], truth[0])) == pytest.approx(1.0)
    with pytest.raises(ValueError, match="11 pixels"):
        metrics.ssim(truth[..., :8, :8], truth[..., :8, :8])


def test_chi_square_of_the_truth_is_one():
    # 20 x 256 observed values: 5 standard errors of sqrt(2 / 5120).
    truth = torch.rand(20, 1, 1, 16, 16, dtype=DOUBLE)
    likelihood = Likelihood(Identity((1, 16, 16)), GaussianNoise(0.1))
    y = truth + noisy(20, 1)
    y[0, 0, 0, 0] = torch.nan
    score = metrics.chi_square(likelihood, y, truth.expand(20, 3, 1, 16, 16))
    assert score.shape == (20, 3)
    assert float(score.mean()) == pytest.approx(1.0, abs=5 * math.sqrt(2 / 5104))
    assert float(score[0, 0]) == pytest.approx(float((y[0] - truth[0])[..., 1:, :].square().mean()) / 0.01)
    assert torch.isnan(metrics.chi_square(likelihood, torch.full_like(y[0, 0], torch.nan), truth[0, 0]))


@pytest.mark.parametrize("count", [4, 16, 40])
def test_coverage_and_spread_of_calibrated_samples(count):
    centre = noisy(1, std=1.0, seed=1, shape=(1, 100, 100))
    truth = centre + noisy(1, std=0.3, seed=2, shape=(1, 100, 100))
    samples = centre[:, None] + noisy(1, count, std=0.3, seed=3, shape=(1, 100, 100))
    expected = metrics.expected_coverage(count)
    # 10,000 independent pixels: 5 standard errors; interpolation between order statistics costs below 0.01.
    band = 5 * math.sqrt(expected * (1 - expected) / 1e4) + 0.01
    assert float(metrics.coverage(samples, truth)) == pytest.approx(expected, abs=band)
    assert float(metrics.spread_skill(samples, truth)) == pytest.approx(1.0, abs=5 / math.sqrt(2e4) * 1.5)
    narrow = centre[:, None] + (samples - centre[:, None]) / 3
    assert float(metrics.coverage(narrow, truth)) < expected - 0.2
    # The narrow samples' mean has another error too: (1 + 1/(9 N)) against a spread of 1/9 (1 + 1/N).
    ratio = math.sqrt((1 + 1 / count) / 9 / (1 + 1 / (9 * count)))
    assert float(metrics.spread_skill(narrow, truth)) == pytest.approx(ratio, abs=0.02)


def test_intervals_of_few_samples_are_the_outermost():
    samples = torch.tensor([3.0, 1.0, 2.0]).reshape(1, 3, 1)
    low, high = metrics.interval(samples)
    assert (float(low), float(high)) == (1.0, 3.0)
    low, high = metrics.interval(samples, level=0.5)
    assert (float(low), float(high)) == (1.0, 3.0)
    low, high = metrics.interval(samples, level=0.25)
    assert (float(low), float(high)) == (1.5, 2.5)
    with pytest.raises(ValueError, match="2 samples"):
        metrics.interval(samples[:, :1])
    with pytest.raises(ValueError, match="level"):
        metrics.interval(samples, level=1.0)


def test_arrays_give_what_tensors_give():
    truth = torch.rand(2, 1, 16, 16, generator=torch.Generator().manual_seed(4), dtype=DOUBLE)
    samples = truth[:, None] + noisy(2, 6, seed=5)
    dims = ("measurement", "sample", "channel", "y", "x")
    array = xr.DataArray(samples.numpy(), dims=dims, coords={"x": np.arange(16)})
    target = xr.DataArray(truth.numpy(), dims=("measurement", "channel", "y", "x"), coords={"x": np.arange(16)})
    mean, means = samples.mean(1), array.mean("sample")
    for score in (metrics.psnr, metrics.nrmse, metrics.ssim):
        if score is metrics.ssim:
            pytest.importorskip("skimage")
        found = score(means, target)
        assert found.dims == ("measurement",)
        np.testing.assert_allclose(found.to_numpy(), score(mean, truth).numpy(), rtol=1e-12)
        assert score(array, target).dims == ("measurement", "sample")
    for score in (metrics.coverage, metrics.spread_skill):
        found = score(array, target)
        assert found.dims == ("measurement",)
        np.testing.assert_allclose(found.to_numpy(), score(samples, truth).numpy(), rtol=1e-12)
    low, _ = metrics.interval(array)
    assert low.dims == ("measurement", "channel", "y", "x") and "x" in low.coords
    with pytest.raises(ValueError):
        metrics.psnr(means, target.assign_coords(x=np.arange(16) + 0.5))
    with pytest.raises(ValueError, match="same"):
        metrics.psnr(means, target.isel(channel=0))
    with pytest.raises(ValueError, match="sample"):
        metrics.coverage(means, target)
