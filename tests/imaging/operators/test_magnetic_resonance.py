"""Magnetic resonance: the transform, its adjoint and decomposition; masks count, coils sum to one, arrays go round."""

import math

import numpy as np
import pytest
import torch

from dynamics import SpaceMismatch
from imaging.operators.magnetic_resonance import (
    MagneticResonance,
    achieved_acceleration,
    from_complex,
    gaussian_lines,
    gaussian_points,
    poisson_disc,
    ring_coils,
    root_sum_of_squares,
    simulated_scan,
    to_complex,
    uniform_lines,
)
from observations import GaussianNoise, Likelihood, check_operator

SCANS = [
    (channels, *grid, sampling, coils)
    for channels, grid in ((1, (12, 16)), (2, (12, 16)), (1, (9, 7)), (2, (9, 7)))
    for sampling, coils in (("uniform-lines", 1), ("gaussian-points", 1), ("poisson-disc", 3))
]


def scan(channels, rows, columns, sampling, coils):
    return simulated_scan((channels, rows, columns), sampling, 3.0, coils, seed=2)


def random(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("settings", SCANS, ids=str)
def test_contract(settings):
    check_operator(scan(*settings))


@pytest.mark.parametrize("grid", [(12, 16), (9, 7)])
def test_values_are_those_of_the_centred_unitary_transform(grid):
    maps = ring_coils(*grid, 3)
    mask = gaussian_points(*grid, 3.0, seed=1)
    operator = MagneticResonance((2, *grid), mask, maps)
    x = random(4, 2, *grid)
    image = to_complex(x).numpy()[:, None] * maps.numpy()
    kspace = np.fft.fftshift(np.fft.fft2(np.fft.ifftshift(image, axes=(-2, -1)), norm="ortho"), axes=(-2, -1))
    values = operator(x)
    assert values.shape == (4, 3, 2, int(mask.sum()))
    expected = kspace[..., mask.numpy()]
    np.testing.assert_allclose(values[:, :, 0].numpy(), expected.real, atol=1e-13)
    np.testing.assert_allclose(values[:, :, 1].numpy(), expected.imag, atol=1e-13)
    assert torch.equal(operator.to_values(kspace), torch.from_numpy(np.stack([expected.real, expected.imag], -2)))
    assert torch.equal(operator.to_kspace(operator.to_values(kspace)), torch.from_numpy(kspace * mask.numpy()))


def test_a_pixel_in_the_middle_has_a_flat_spectrum_without_phase():
    operator = MagneticResonance((1, 8, 9), torch.ones(9))
    x = torch.zeros(1, 8, 9, dtype=torch.float64)
    x[0, 4, 4] = 1.0
    flat = torch.full((72,), 1 / math.sqrt(72), dtype=torch.float64)
    assert torch.allclose(operator(x)[0], torch.stack([flat, torch.zeros(72)]), atol=1e-15)
    # And an even picture has its mean at the zero frequency, index n // 2.
    kspace = operator.to_kspace(operator(torch.ones(1, 8, 9, dtype=torch.float64)))
    assert abs(complex(kspace[0, 4, 4]) - math.sqrt(72)) < 1e-12


@pytest.mark.parametrize("settings", SCANS, ids=str)
def test_adjoint_is_the_transposed_matrix(settings):
    operator = scan(*settings)
    y = random(2, *operator.obs_shape)
    expected = (y.flatten(1) @ operator.matrix()).reshape(2, *operator.event_shape)
    assert torch.allclose(operator.adjoint(y), expected, atol=1e-12)


@pytest.mark.parametrize("settings", [s for s in SCANS if s[-1] == 1], ids=str)
def test_decomposition(settings):
    operator = scan(*settings)
    svd = operator.svd()
    matrix = operator.matrix()
    exact = torch.linalg.svdvals(matrix)
    rank = int((exact > 1e-10).sum())
    assert torch.allclose(svd.singular.double().sort(descending=True).values, exact[:rank], atol=1e-12)
    identity = torch.eye(rank, dtype=torch.float64)
    assert torch.allclose(svd.project(svd.expand(identity)), identity, atol=1e-12)
    assert torch.allclose(svd.project_observed(svd.expand_observed(identity)), identity, atol=1e-12)
    # A+ = V S^-1 U^T from the functions is the pseudo-inverse of the matrix.
    y = random(3, *operator.obs_shape)
    inverse = svd.expand(svd.project_observed(y) / svd.singular.to(y))
    expected = (y.flatten(1) @ torch.linalg.pinv(matrix).mT).reshape(inverse.shape)
    assert torch.allclose(inverse, expected, atol=1e-10)
    projected = operator(operator.adjoint(operator(inverse)))
    assert projected.shape == y.shape
    assert torch.allclose(
        operator(svd.expand(svd.project_observed(operator(inverse)) / svd.singular.to(y))),
        operator(inverse),
        atol=1e-12,
    )
    if operator.event_shape[0] == 2:
        assert bool((svd.singular == 1).all())


def test_coils_have_no_decomposition_and_norm_one():
    operator = scan(2, 12, 16, "poisson-disc", 4)
    assert operator.svd() is None
    norm = float(torch.linalg.matrix_norm(operator.matrix(), 2))
    assert 0.9 < norm <= 1 + 1e-12
    full = MagneticResonance((2, 12, 16), torch.ones(16), ring_coils(12, 16, 4))
    x = random(3, 2, 12, 16)
    assert torch.allclose(full.adjoint(full(x)), x, atol=1e-12)  # sum |S|^2 = 1 and F unitary


def test_zero_filling():
    maps = 3.0 * ring_coils(8, 8, 2)
    maps[:, :2] = 0  # nothing is known of these rows
    operator = MagneticResonance((2, 8, 8), torch.ones(8, 8), maps)
    x = random(2, 2, 8, 8)
    assert torch.allclose(operator.zero_filled(operator(x))[..., 2:, :], x[..., 2:, :], atol=1e-12)
    assert float(operator.zero_filled(operator(x))[..., :2, :].abs().max()) == 0
    single = MagneticResonance((2, 8, 8), uniform_lines(8, 2.0))
    y = single(x)
    weights = torch.linspace(1, 2, single.samples, dtype=torch.float64)
    assert torch.equal(single.zero_filled(y), single.adjoint(y))
    assert torch.allclose(single.zero_filled(y, weights), single.adjoint(y * weights), atol=1e-15)


def test_noise_is_that_of_each_real_component():
    operator = MagneticResonance((1, 64, 64), torch.ones(64))
    likelihood = Likelihood(operator, GaussianNoise(std=0.3))
    y = likelihood.sample(torch.zeros(4, 1, 64, 64), rng=torch.Generator().manual_seed(0))
    count = 4 * 64 * 64
    for part in (0, 1):
        assert float(y[..., part, :].std()) == pytest.approx(0.3, rel=5 / math.sqrt(2 * count))
    # Unitary: the full inverse transform keeps it in each part of the image.
    image = MagneticResonance((2, 64, 64), torch.ones(64)).adjoint(y)
    assert float(image.std()) == pytest.approx(0.3, rel=5 / math.sqrt(4 * count))


def test_real_and_complex_images_agree():
    x = random(2, 1, 9, 12)
    mask = uniform_lines(12, 2.0)
    real, full = MagneticResonance((1, 9, 12), mask), MagneticResonance((2, 9, 12), mask)
    both = torch.cat([x, torch.zeros_like(x)], -3)
    assert torch.allclose(real(x), full(both), atol=1e-14)
    assert torch.allclose(real.adjoint(real(x)), full.adjoint(full(both))[:, :1], atol=1e-14)
    assert torch.equal(from_complex(to_complex(both)), both)


MASKS = {
    "uniform": lambda a, **k: uniform_lines(96, a, **k),
    "gaussian": lambda a, **k: gaussian_lines(96, a, **k),
    "points": lambda a, **k: gaussian_points(40, 48, a, **k),
    "disc": lambda a, **k: poisson_disc(40, 48, a, **k),
}


@pytest.mark.parametrize("name", MASKS)
@pytest.mark.parametrize("acceleration", [1, 3.7, 4, 8])
def test_masks_hold_the_centre_and_the_exact_number(name, acceleration):
    mask = MASKS[name](acceleration, seed=3)
    assert int(mask.sum()) == round(mask.numel() / acceleration)
    assert achieved_acceleration(mask) == pytest.approx(acceleration, rel=0.03)
    fraction = 0.08 if acceleration <= 6 else 0.04
    box = tuple(slice(n // 2 - round(n * fraction) // 2, n // 2 + (round(n * fraction) + 1) // 2) for n in mask.shape)
    assert bool(mask[box].all()) and bool(mask[tuple(n // 2 for n in mask.shape)])
    assert torch.equal(mask, MASKS[name](acceleration, seed=3))
    if acceleration > 1:
        assert not torch.equal(mask, MASKS[name](acceleration, seed=4))


def test_uniform_lines_are_evenly_spaced():
    for seed in range(20):
        mask = uniform_lines(128, 4.0, seed=seed)
        centre = torch.arange(59, 69)
        outside = torch.nonzero(mask)[:, 0]
        gaps = torch.diff(outside[outside < centre[0]]).tolist() + torch.diff(outside[outside > centre[-1]]).tolist()
        # 22 lines in 118 places: gaps of 5 and 6.
        assert set(gaps) == {5, 6}


def test_gaussian_masks_thin_out_as_their_density_says():
    # Few points of many: a sample without replacement is then close to independent draws.
    mask = gaussian_points(128, 128, 100.0, centre_fraction=0.0, std=0.1, seed=0)
    places = torch.nonzero(mask).double() - 64
    count = places.shape[0]
    assert count == 164
    assert bool((places.std(0) - 12.8).abs().max() < 5 * 12.8 / math.sqrt(2 * count) + 0.05 * 12.8)
    assert bool(places.mean(0).abs().max() < 5 * 12.8 / math.sqrt(count))


@pytest.mark.parametrize("slope", [0.0, 2.0])
def test_poisson_discs_keep_their_distance(slope):
    mask = poisson_disc(64, 64, 6.0, centre_fraction=0.0, slope=slope, seed=1)
    places = torch.nonzero(mask).double() - 32
    gaps = torch.cdist(places, places) + 1e9 * torch.eye(places.shape[0], dtype=torch.float64)
    reach = 1 + slope * places.norm(dim=-1) / 32
    # The smallest gap in units of the smaller reach is r_0 or more; independent points come as close as one cell.
    closest = float((gaps / torch.minimum(reach[:, None], reach[None])).min())
    # Discs thrown at random fill 0.547 of the plane at most, here pi r^2 / 4 of every 6 cells: r <= 2.04.
    assert closest >= (2.0 if slope == 0 else 0.75)
    inner, outer = (mask[16:48, 16:48].double().mean(), (mask.sum() - mask[16:48, 16:48].sum()) / (64 * 64 * 3 / 4))
    assert (float(inner / outer) > 1.8) if slope else (0.8 < float(inner / outer) < 1.25)


def test_coils_are_smooth_normalised_and_alike():
    maps = ring_coils(32, 32, 4)
    assert torch.allclose(root_sum_of_squares(maps), torch.ones(32, 32, dtype=torch.float64), atol=1e-14)
    # A quarter of a turn of the picture takes a coil to its neighbour, up to the phase of the turn.
    assert torch.allclose(torch.rot90(maps[0], 1, (1, 0)).abs(), maps[1].abs(), atol=1e-13)
    assert float(maps[0].diff(dim=-1).abs().max()) < 2 * 2 / 32  # |dS/dz| < 2 in half sides
    assert bool(maps[0].abs()[16].argmax() == 31)  # strongest near its wire


@pytest.mark.parametrize(
    ("build", "error", "message"),
    [
        (lambda: MagneticResonance((3, 8, 8), torch.ones(8)), SpaceMismatch, "given \\(3, 8, 8\\)"),
        (lambda: MagneticResonance((1, 8, 8), torch.ones(7)), ValueError, r"shape \(7,\)"),
        (lambda: MagneticResonance((1, 8, 8), torch.zeros(8)), ValueError, "at least one point"),
        (lambda: MagneticResonance((1, 8, 8), torch.full((8,), 0.5)), ValueError, "True or False"),
        (lambda: MagneticResonance((1, 8, 8), torch.ones(8), torch.ones(2, 8, 8)), ValueError, "complex"),
        (lambda: MagneticResonance((1, 8, 8), torch.ones(8)).to_values(torch.ones(8, 8)), ValueError, "coils first"),
        (lambda: MagneticResonance((1, 8, 8), torch.ones(8)).adjoint(torch.ones(64)), SpaceMismatch, "expected"),
        (lambda: uniform_lines(64, 20.0, centre_fraction=0.1), ValueError, "smaller centre_fraction"),
        (lambda: uniform_lines(64, 0.5), ValueError, "at least 1"),
        (lambda: gaussian_lines(64, std=0.0), ValueError, "std=0.0"),
        (lambda: poisson_disc(16, 16, slope=-1.0), ValueError, "slope"),
        (lambda: ring_coils(8, 8, 2, distance=1.0), ValueError, "distance=1.0"),
        (lambda: simulated_scan((1, 8, 8), "spiral"), ValueError, "poisson-disc"),
    ],
)
def test_what_does_not_fit_is_refused(build, error, message):
    with pytest.raises(error, match=message):
        build()
