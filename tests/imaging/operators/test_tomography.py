"""The projectors of tomography against line integrals that are known, and against their own transpose."""

import math

import numpy as np
import pytest
import torch

from dynamics import Coordinate, Field, Space, SpaceMismatch
from imaging.operators.norm import operator_norm
from imaging.operators.tomography import FanBeam, ParallelBeam, joseph
from observations import BlockMean, check_operator
from observations.base import LinearOperator

CARDINAL = Space(
    Field("attenuation", "mm-1", ("y", "x")),
    {"y": Coordinate(np.arange(12)[::-1] * 2.0, ("y",), "mm"), "x": Coordinate(np.arange(10) * 1.5, ("x",), "mm")},
)
SCANS = [
    ParallelBeam((1, 16, 16), views=7),
    ParallelBeam((2, 9, 12), views=5, detectors=11, spacing=0.3, arc=-90.0, first=20.0),
    ParallelBeam((1, 8, 8), views=4, arc=120.0, pixel_size=(0.5, 2.0), decompose=True),
    ParallelBeam((2, 6, 6), views=3, decompose=True),
    ParallelBeam(CARDINAL, views=6),
    FanBeam((1, 16, 16), views=7),
    FanBeam((1, 9, 12), views=6, arc=200.0, detectors=10, source_radius=3.0, detector_radius=0.0),
    FanBeam(CARDINAL, views=5, decompose=True),
]


def generator():
    return torch.Generator().manual_seed(3)


def gaussian(x, y, centre, width):
    return torch.from_numpy(np.exp(-((x - centre[0]) ** 2 + (y - centre[1]) ** 2) / (2 * width**2)))


def gaussian_integral(lines, centre, width):
    """Line integral of `gaussian` along each line: a Gaussian of the line's distance from the centre."""
    distance = centre[0] * np.cos(lines.theta) + centre[1] * np.sin(lines.theta) - lines.offset
    return torch.from_numpy(math.sqrt(2 * math.pi) * width * np.exp(-(distance**2) / (2 * width**2)))


@pytest.mark.parametrize("scan", SCANS, ids=repr)
def test_contract(scan):
    check_operator(scan)


@pytest.mark.parametrize("scan", SCANS, ids=repr)
def test_adjoint_is_the_transpose_to_round_off(scan):
    x = torch.randn(4, *scan.event_shape, generator=generator(), dtype=torch.float64)
    y = torch.randn(4, *scan.obs_shape, generator=generator(), dtype=torch.float64)
    left = (scan(x) * y).flatten(1).sum(-1)
    right = (x * scan.adjoint(y)).flatten(1).sum(-1)
    assert torch.allclose(left, right, rtol=0, atol=1e-10 * float(left.abs().max()))
    assert torch.allclose(scan.adjoint(y), LinearOperator.adjoint(scan, y), rtol=1e-13), (
        "automatic differentiation uses A^T as well"
    )


# Linear interpolation and midpoint steps have errors of second order: halving the pixel divides the error by 4. The
# factor 3.5 leaves room for the terms of higher order on the coarse grid.
@pytest.mark.parametrize("kind", [ParallelBeam, FanBeam])
@pytest.mark.parametrize("sides", [(1, 1), (1, 2)])
def test_error_is_of_second_order_in_the_pixel(kind, sides):
    centre, width, errors = (0.22, -0.17), 0.12, []
    for size in (32, 64, 128):
        rows, columns = size // sides[0], size // sides[1]
        pixel = (2 / rows, 2 / columns)
        scan = kind((1, rows, columns), views=9, detectors=31, spacing=0.06, first=7.0, pixel_size=pixel)
        x, y = scan.grid.centres()
        image = gaussian(x, y, centre, width).reshape(1, rows, columns)
        errors.append(float((scan(image)[0] - gaussian_integral(scan.lines(), centre, width)).abs().max()))
    assert errors[0] / errors[1] > 3.5 and errors[1] / errors[2] > 3.5
    # Linear interpolation at a distance h: h^2 / 8 times the second derivative, 1 / width^2 of the maximum.
    assert errors[-1] < (max(pixel) / width) ** 2 / 8 * math.sqrt(2 * math.pi) * width


@pytest.mark.parametrize("kind", [ParallelBeam, FanBeam])
def test_disc_has_its_chords(kind):
    """Pixel errors at the edge of a disc, drawn with a soft edge, are about a pixel of path; their mean is far less."""
    radius, size = 0.7, 128
    scan = kind((1, size, size), views=12)
    x, y = scan.grid.centres()
    soft = torch.from_numpy(0.5 - (np.hypot(x, y) - radius) / scan.grid.width).clamp(0, 1)
    chord = 2 * np.sqrt((radius**2 - scan.lines().offset ** 2).clip(0))
    error = (scan(soft.reshape(1, size, size))[0] - torch.from_numpy(chord)).abs()
    # Near a tangent the chord is sqrt(2 r e) long at a depth e: the edge spreads over half a pixel.
    assert float(error.max()) < 2 * math.sqrt(2 * radius * scan.grid.width / 2)
    assert float(error.mean()) < 0.1 * scan.grid.width


def test_orientation_and_units():
    """One bright pixel, top right: a view from theta = 0 sees its column, one from 90 degrees its row."""
    scan = ParallelBeam((1, 5, 7), views=2, detectors=9, spacing=1.0, pixel_size=1.0)
    image = torch.zeros(1, 5, 7)
    image[0, 0, 6] = 2.0
    seen = scan(image)[0]
    assert seen[0].argmax() - 4 == 3 and seen[1].argmax() - 4 == 2
    assert torch.allclose(seen.amax(-1), torch.tensor(2.0))
    double = ParallelBeam((1, 5, 7), views=2, detectors=9, spacing=2.0, pixel_size=2.0)
    assert torch.allclose(double(image), 2 * scan(image), atol=1e-6), "integrals grow with the length"


def test_rays_of_a_fan_join_the_source_and_the_detector():
    scan = FanBeam((1, 8, 8), views=5, first=33.0, source_radius=2.0, detector_radius=1.5)
    lines, beta = scan.lines(), scan.angles[:, None]
    away, along = np.stack([-np.sin(beta), np.cos(beta)]), np.stack([np.cos(beta), np.sin(beta)])
    for place in (2.0 * away, scan.cells * along - 1.5 * away):
        on_line = place[0] * np.cos(lines.theta) + place[1] * np.sin(lines.theta)
        assert np.allclose(on_line, lines.offset, rtol=0, atol=1e-12)


def test_a_far_source_gives_parallel_rays():
    """The rays differ by angles of at most 1 / 4000, so by a 1/4000 of the width of the blob's gradient."""
    shape, settings = (1, 32, 32), {"views": 6, "arc": 180.0, "spacing": 0.05, "detectors": 41}
    far = FanBeam(shape, source_radius=4e3, detector_radius=0.0, **settings)
    near = ParallelBeam(shape, **settings)
    x, y = near.grid.centres()
    image = gaussian(x, y, (0.2, 0.1), 0.2).reshape(shape)
    assert torch.allclose(far(image), near(image), atol=1e-3 * float(near(image).max()))


def test_the_matrix_does_not_depend_on_the_pieces_it_is_built_in(monkeypatch):
    whole = SCANS[0].matrix()
    monkeypatch.setattr(joseph, "_CHUNK", 5 * 16)
    assert torch.equal(ParallelBeam((1, 16, 16), views=7).matrix(), whole)


def test_pixel_size_is_that_of_the_coordinates():
    scan = ParallelBeam(CARDINAL)
    assert (scan.grid.height, scan.grid.width) == (2.0, 1.5)
    assert scan.spacing == 1.5 and scan.detectors == math.ceil(math.hypot(24, 15) / 1.5)
    counted = ParallelBeam(Space(Field("a", dims=("y", "x")), {"y": 12, "x": 10}))
    assert counted.grid.height == pytest.approx(2 / 12)
    assert ParallelBeam((1, 64, 64)).detectors == 91


def test_repr_rebuilds_the_scan():
    for scan in (SCANS[1], SCANS[6]):
        again = eval(repr(scan))
        assert np.array_equal(again.lines().theta, scan.lines().theta) and repr(again) == repr(scan)


def test_every_kind_of_derivative():
    scan = FanBeam((1, 6, 6), views=3)
    x = torch.randn(2, 1, 6, 6, generator=generator(), dtype=torch.float64)
    v = torch.randn(2, 1, 6, 6, generator=generator(), dtype=torch.float64)
    value, slope = torch.func.jvp(scan, (x,), (v,))
    assert torch.equal(value, scan(x)) and torch.equal(slope, scan(v))
    leaf = x.clone().requires_grad_()
    assert torch.autograd.gradcheck(scan, (leaf,)) and torch.autograd.gradgradcheck(scan, (leaf,))
    each = torch.func.vmap(scan, in_dims=2)(x.movedim(0, 2))
    assert torch.allclose(each, scan(x), atol=1e-14)
    # Gauss-Newton products of a solver: A^T A v by forward over reverse.
    half = torch.func.grad(lambda z: 0.5 * (scan(z) ** 2).sum())
    assert torch.allclose(torch.func.jvp(half, (x,), (v,))[1], scan.adjoint(scan(v)), atol=1e-12)
    rows = torch.func.jacrev(lambda z: scan(z).flatten())(x[0])
    assert torch.allclose(rows.flatten(1), scan.matrix(), atol=1e-14)


def test_float32_is_float64_rounded_and_keeps_its_adjoint():
    scan = ParallelBeam((1, 24, 24), views=8)
    x = torch.rand(3, 1, 24, 24, generator=generator())
    y = torch.rand(3, *scan.obs_shape, generator=generator())
    assert scan(x).dtype == torch.float32
    # Sums of about 50 positive terms, each rounded to 6e-8.
    assert torch.allclose(scan(x).double(), scan(x.double()), rtol=50 * 6e-8, atol=1e-7)
    left, right = (scan(x) * y).sum((-3, -2, -1)), (x * scan.adjoint(y)).sum((-3, -2, -1))
    assert torch.allclose(left, right, rtol=2e-5)


def test_the_decomposition_is_that_of_the_matrix():
    scan = ParallelBeam((1, 8, 8), views=4, decompose=True)
    svd = scan.svd()
    full = torch.linalg.svdvals(scan.matrix())
    kept = full[full > 1e-6 * full[0]]
    assert torch.allclose(svd.singular, kept, atol=1e-12)
    coefficients = torch.randn(kept.numel(), generator=generator(), dtype=torch.float64)
    assert torch.allclose(scan(svd.expand(coefficients)), svd.expand_observed(kept * coefficients), atol=1e-12)
    assert torch.allclose(svd.project_observed(svd.expand_observed(coefficients)), coefficients, atol=1e-12)
    assert ParallelBeam((1, 8, 8), views=4).svd() is None


@pytest.mark.parametrize("operator", [SCANS[0], SCANS[5], BlockMean((1, 8, 8), 2)], ids=repr)
def test_norm_is_the_largest_singular_value(operator):
    exact = float(torch.linalg.matrix_norm(operator.matrix(), 2))
    found = operator_norm(operator, 200, dtype=torch.float64)
    assert exact * (1 - 1e-3) < found <= exact * (1 + 1e-12)
    assert operator_norm(operator, 5) == operator_norm(operator, 5), "the same start every time"
    assert operator_norm(operator, 5, torch.Generator().manual_seed(8)) != operator_norm(operator, 1)


def test_errors_speak():
    with pytest.raises(ValueError, match="channel, rows, columns"):
        ParallelBeam((64, 64))
    with pytest.raises(ValueError, match="outside the circle"):
        FanBeam((1, 8, 8), source_radius=1.2)
    with pytest.raises(ValueError, match="arc"):
        ParallelBeam((1, 8, 8), arc=0.0)
    with pytest.raises(ValueError, match="views=0"):
        FanBeam((1, 8, 8), views=0)
    with pytest.raises(ValueError, match="positive spacing"):
        ParallelBeam((1, 8, 8), detectors=0)
    with pytest.raises(ValueError, match="pixel_size"):
        ParallelBeam((1, 8, 8), pixel_size=-1.0)
    with pytest.raises(ValueError, match="dense matrix"):
        ParallelBeam((1, 256, 256), views=60, decompose=True)
    uneven = Space(Field("a", dims=("y", "x")), {"y": np.array([0.0, 1.0, 3.0]), "x": np.arange(3.0)})
    with pytest.raises(ValueError, match="not evenly spaced"):
        ParallelBeam(uneven)
    with pytest.raises(SpaceMismatch, match="adjoint"):
        SCANS[0].adjoint(torch.zeros(1, 3, 3))
    with pytest.raises(TypeError, match="float32 or float64"):
        SCANS[0](torch.zeros(1, 16, 16, dtype=torch.bfloat16))
    with pytest.raises(ValueError, match="at least 1"):
        operator_norm(SCANS[0], 0)


@pytest.mark.gpu
@pytest.mark.parametrize("kind", [ParallelBeam, FanBeam])
def test_a_gpu_gives_the_same(kind):
    scan = kind((1, 32, 32), views=9)
    x = torch.randn(3, 1, 32, 32, generator=generator(), dtype=torch.float64)
    assert torch.allclose(scan(x.cuda()).cpu(), scan(x), atol=1e-12)
    check_operator(scan, device="cuda")
