"""Filtered back-projection of known sinograms gives the known image back."""

import math

import numpy as np
import pytest
import torch

from dynamics import SpaceMismatch
from imaging.operators.tomography import FanBeam, ParallelBeam, filtered_back_projection
from imaging.operators.tomography.back_projection import ramp_filter, redundancy
from observations import BlockMean

BLOBS = [((0.3, 0.2), 0.12, 1.0), ((-0.35, 0.1), 0.18, 0.6), ((0.1, -0.45), 0.1, -0.4)]
OPENING = math.degrees(2 * math.asin(math.sqrt(0.5)))
"""Opening of the default fan: the source is as far as the image is wide."""


def picture(grid):
    x, y = grid.centres()
    parts = [a * np.exp(-((x - c[0]) ** 2 + (y - c[1]) ** 2) / (2 * w * w)) for c, w, a in BLOBS]
    return torch.from_numpy(sum(parts)).reshape(1, grid.rows, grid.columns)


def sinogram(lines):
    """Exact line integrals of the picture."""
    total = np.zeros_like(lines.theta)
    for c, w, a in BLOBS:
        distance = c[0] * np.cos(lines.theta) + c[1] * np.sin(lines.theta) - lines.offset
        total += a * math.sqrt(2 * math.pi) * w * np.exp(-(distance**2) / (2 * w * w))
    return torch.from_numpy(total)[None]


def relative_error(scan, window="ramp"):
    found, true = filtered_back_projection(scan, sinogram(scan.lines()), window), picture(scan.grid)
    return float((found - true).norm() / true.norm())


# Linear interpolation between detector cells damps a blob by about (cell / width)^2 / 12: 0.2 to 1.3 % for blobs that
# are 2.5 to 6 cells wide. A wrong factor (spacing, pi / views, twice-measured lines, distance weights) is far more.
@pytest.mark.parametrize(
    "scan",
    [
        ParallelBeam((1, 64, 64), views=120),
        ParallelBeam((1, 64, 64), views=120, arc=-180.0, first=31.0),
        ParallelBeam((1, 64, 64), views=180, arc=270.0),
        ParallelBeam((1, 64, 64), views=240, arc=360.0, spacing=0.04, detectors=76),
        ParallelBeam((1, 64, 48), views=120, pixel_size=(0.03, 0.05)),
        FanBeam((1, 64, 64), views=240),
        FanBeam((1, 64, 64), views=240, detector_radius=0.0, source_radius=5.0),
        FanBeam((1, 64, 64), views=240, arc=180.0 + OPENING),
        FanBeam((1, 64, 64), views=240, arc=-180.0 - OPENING, first=50.0),
        FanBeam((1, 64, 64), views=240, arc=320.0),
    ],
    ids=repr,
)
def test_exact_line_integrals_give_the_picture(scan):
    assert relative_error(scan) < 0.015


def test_error_falls_with_the_spacing_at_second_order():
    errors = [relative_error(ParallelBeam((1, size, size), views=4 * size)) for size in (32, 64)]
    assert errors[0] / errors[1] > 3.0


def test_hann_window_is_smoother_and_keeps_the_mean():
    scan = ParallelBeam((1, 48, 48), views=60)
    exact = sinogram(scan.lines())
    noise = torch.randn(exact.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    sharp, smooth = (filtered_back_projection(scan, noise, w) for w in ("ramp", "hann"))
    # Noise power of |f|^2 against |f|^2 cos^4: the ratio of the integrals over [0, 1] is 0.096.
    assert float(smooth.std() / sharp.std()) < 0.5
    means = [float(filtered_back_projection(scan, exact, w).mean()) for w in ("ramp", "hann")]
    assert means[1] == pytest.approx(means[0], rel=0.02)


def test_few_views_and_a_limited_angle_lose_information():
    sparse = relative_error(ParallelBeam((1, 64, 64), views=8))
    limited = relative_error(ParallelBeam((1, 64, 64), views=60, arc=90.0))
    short = relative_error(FanBeam((1, 64, 64), views=60, arc=150.0))
    assert min(sparse, limited, short) > 0.1 and max(sparse, limited, short) < 1.0


def test_ramp_is_the_derivative_of_the_hilbert_transform():
    """On a cosine of frequency f below Nyquist the filter is the factor |f|."""
    spacing, count = 0.1, 4096
    place = torch.arange(count, dtype=torch.float64) * spacing
    for frequency in (0.5, 1.7, 3.9):
        wave = torch.cos(2 * math.pi * frequency * place)
        middle = slice(count // 2 - 50, count // 2 + 50)
        # Cutting the wave off at both ends leaves terms of the order 1 / (pi^2 length).
        assert torch.allclose(ramp_filter(wave, spacing)[middle], frequency * wave[middle], atol=2e-3)


def test_lines_that_are_seen_twice_share_their_weight():
    scan = ParallelBeam((1, 8, 8), views=270, arc=270.0)
    weight = redundancy(scan)
    assert np.allclose(weight[:90] + weight[180:], 1.0, atol=1e-12) and np.all(weight[90:180] == 1.0)
    assert np.all(redundancy(FanBeam((1, 8, 8), views=9)) == 0.5)
    assert np.all(redundancy(ParallelBeam((1, 8, 8), views=9)) == 1.0)


def test_rows_stand_alone_and_gradients_pass():
    scan = FanBeam((2, 12, 12), views=9)
    y = torch.randn(2, 3, *scan.obs_shape, generator=torch.Generator().manual_seed(1))
    images = filtered_back_projection(scan, y)
    assert images.shape == (2, 3, 2, 12, 12) and images.dtype == torch.float32
    assert torch.allclose(filtered_back_projection(scan, y[1, 2]), images[1, 2], atol=1e-6)
    leaf = y[0, 0].double().requires_grad_()
    probe = torch.randn(2, 12, 12, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    (gradient,) = torch.autograd.grad((filtered_back_projection(scan, leaf) * probe).sum(), leaf)
    # The map is linear: <B y, probe> = <y, gradient>.
    leaf = leaf.detach()
    assert float((leaf * gradient).sum()) == pytest.approx(float((filtered_back_projection(scan, leaf) * probe).sum()))


@pytest.mark.parametrize("window", ["ramp", "hann"])
def test_agrees_with_scikit_image(window):
    transform = pytest.importorskip("skimage.transform")
    size, views = 65, 36
    scan = ParallelBeam((1, size, size), views=views, detectors=size, spacing=1.0, pixel_size=1.0)
    image = picture(ParallelBeam((1, size, size)).grid)
    x, y = scan.grid.centres()
    radius = torch.from_numpy(np.hypot(x, y)).reshape(size, size)
    image = image * (radius < 0.9 * size / 2)
    y = scan(image)
    angles = np.rad2deg(scan.angles)
    # Its projector rotates the image with bilinear interpolation: the same integrals to that accuracy.
    theirs = torch.from_numpy(transform.radon(image[0].numpy(), angles, circle=True)).mT
    assert float((theirs - y[0]).norm() / y.norm()) < 0.01
    found = filtered_back_projection(scan, y, window)[0]
    expected = transform.iradon(y[0].mT.numpy(), angles, filter_name=window, circle=True)
    inside = radius < size / 2 - 1
    expected = torch.from_numpy(expected)
    # It computes in the same way (scale, kernel, interpolation); only the padding differs.
    assert float((found - expected)[inside].abs().max()) < 2e-3 * float(expected.abs().max())


def test_errors_speak():
    scan = ParallelBeam((1, 8, 8), views=4)
    y = torch.zeros(scan.obs_shape)
    with pytest.raises(ValueError, match="window='cosine'"):
        filtered_back_projection(scan, y, "cosine")
    with pytest.raises(SpaceMismatch, match="sinogram"):
        filtered_back_projection(scan, y[..., :-1])
    with pytest.raises(ValueError, match="not finite"):
        filtered_back_projection(scan, y * torch.nan)
    with pytest.raises(TypeError, match="ParallelBeam"):
        filtered_back_projection(BlockMean((1, 8, 8), 2), y)
