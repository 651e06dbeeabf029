"""Background covariances: symmetric and positive, the right variance and correlation, and what edges do to them."""

import math

import numpy as np
import pytest
import torch

from assimilate.variational.background import DenseBackground, DiagonalBackground, dense, product, transpose
from assimilate.variational.diffusion import DiffusionBackground
from assimilate.variational.hybrid import EnsembleBackground, Hybrid, ensemble_background
from assimilate.variational.spectral import SpectralBackground
from dynamics import CapabilityError, Coordinate, Field, LinearGaussian, Lorenz63, Space


def grid_space(*shape, periodic=False, fields=1, spacing=1.0, mask=None):
    names = ("y", "x")[-len(shape) :]
    coords = {n: Coordinate(spacing * np.arange(s, dtype=float), (n,), "1") for n, s in zip(names, shape, strict=True)}
    members = tuple(Field(f"f{i}", "1", names) for i in range(fields))
    return Space(members, coords, periodic=names if periodic else (), mask=mask)


def sphere():
    latitude = Coordinate(np.linspace(-60.0, 60.0, 13), ("lat",), "degrees_north", "latitude")
    longitude = Coordinate(np.arange(0.0, 360.0, 15.0), ("lon",), "degrees_east", "longitude")
    return Space((Field("t", "K", ("lat", "lon")),), {"lat": latitude, "lon": longitude}, periodic=("lon",))


COAST = np.zeros((8, 9), dtype=bool)
COAST[2:, 4] = True
RING, TORUS, BOX = grid_space(16, periodic=True), grid_space(8, 6, periodic=True, fields=2), grid_space(7, 5)
MADE = {
    "diagonal": DiagonalBackground(TORUS, (0.5, 2.0)),
    "dense": DenseBackground(Space.scalars("a", "b"), torch.tensor([[2.0, 0.6], [0.6, 0.5]])),
    "singular": DenseBackground(Space.scalars("a", "b"), torch.ones(2, 2)),
    "spectral ring": SpectralBackground(RING, 1.5, 2.0),
    "spectral torus": SpectralBackground(TORUS, (1.0, 2.0), (1.0, 2.0), smoothness=1.5),
    "diffusion box": DiffusionBackground(BOX, 0.7, 1.5),
    "diffusion torus": DiffusionBackground(TORUS, (1.0, 2.0), (1.0, 1.5)),
    "diffusion coast": DiffusionBackground(grid_space(8, 9, mask=COAST), 1.3, 2.0),
    "diffusion sphere": DiffusionBackground(sphere(), 2.0, 2000.0),
}
EVERY = pytest.mark.parametrize("background", MADE.values(), ids=MADE.keys())


@EVERY
def test_product_is_symmetric_positive_and_that_of_the_root(background):
    g = torch.Generator().manual_seed(0)
    x, z = torch.randn(2, 3, *background.event_shape, generator=g, dtype=torch.float64).unbind(0)
    v = torch.randn(3, background.size, generator=g, dtype=torch.float64)

    def dot(a, b):
        return (a * b).flatten(1).sum(-1)

    torch.testing.assert_close(dot(background.root(v), x), dot(v, transpose(background, x)))
    torch.testing.assert_close(dot(product(background, x), z), dot(x, product(background, z)))
    assert (dot(product(background, x), x) > 0).all()
    assert torch.linalg.eigvalsh(dense(background)).min() > -1e-10
    # Rows do not look at each other, and float32 is the same covariance.
    torch.testing.assert_close(background.root(v)[1:2], background.root(v[1:2]))
    torch.testing.assert_close(background.root(v.float()), background.root(v).float(), rtol=1e-4, atol=1e-4)


@EVERY
def test_variances_are_those_that_were_asked_for(background):
    variance = dense(background).diagonal().reshape(background.event_shape)
    if isinstance(background, DenseBackground):
        expected = background.matrix.diagonal()
    else:
        std = torch.as_tensor(background.std, dtype=torch.float64).flatten()
        expected = (std**2).reshape(-1, *[1] * (len(background.event_shape) - 1)).expand(background.event_shape).clone()
        if background.space.mask is not None:
            expected[torch.from_numpy(background.space.mask.copy())] = 0.0
    torch.testing.assert_close(variance, expected, atol=1e-5, rtol=1e-5)


def correlation_on_the_circle(kernel, size):
    """The kernel wrapped around, as a Fourier sum does it."""
    lag = torch.arange(size, dtype=torch.float64)
    wrapped = sum(kernel((lag + k * size).abs()) for k in range(-6, 7))
    return wrapped / wrapped[0]


@pytest.mark.parametrize(
    ("smoothness", "kernel", "error"),
    [
        (math.inf, lambda d: torch.exp(-(d**2) / (2 * 4.0**2)), 1e-6),
        # Matern: the grid cannot hold its waves beyond half a cell's, a share of order (cell / length)^(2 nu).
        (1.5, lambda d: (1 + math.sqrt(3) * d / 4) * torch.exp(-math.sqrt(3) * d / 4), 0.01),
    ],
)
def test_spectral_correlation_has_the_length(smoothness, kernel, error):
    background = SpectralBackground(grid_space(64, periodic=True), 2.0, 4.0, smoothness=smoothness)
    row = dense(background)[0] / 4
    torch.testing.assert_close(row, correlation_on_the_circle(kernel, 64), atol=error, rtol=0)


def test_length_is_in_the_units_of_the_coordinates():
    fine = dense(SpectralBackground(grid_space(32, periodic=True, spacing=0.5), 1.0, 2.0))
    torch.testing.assert_close(fine, dense(SpectralBackground(grid_space(32, periodic=True), 1.0, 4.0)))
    fine = dense(DiffusionBackground(grid_space(32, spacing=0.5), 1.0, 2.0))
    torch.testing.assert_close(fine, dense(DiffusionBackground(grid_space(32), 1.0, 4.0)))


def middle_error(cells):
    """Diffusion against its Gaussian in the middle of a line of length 20, correlation length 1.5."""
    h = 20.0 / cells
    row = dense(DiffusionBackground(grid_space(cells + 1, spacing=h), 1.0, 1.5))[cells // 2]
    distance = h * (torch.arange(cells + 1, dtype=torch.float64) - cells // 2)
    return float((row - torch.exp(-(distance**2) / (2 * 1.5**2))).abs().max())


def test_diffusion_tends_to_the_gaussian_with_second_order():
    coarse, fine = middle_error(40), middle_error(80)
    # The operator's |k|^2 lacks k^4 h^2 / 12, and the Gaussian weighs (k length)^4 with 3: (h / length)^2 / 8.
    assert fine < 1.2 * (0.25 / 1.5) ** 2 / 8
    assert 3.6 < coarse / fine < 4.4


def test_diffusion_is_the_exponential_of_the_laplacian():
    """The series against the matrix function, and the order that grows like the length."""
    background = DiffusionBackground(BOX, 1.0, 1.5)
    basis = torch.eye(35, dtype=torch.float64).reshape(35, 1, 7, 5)
    matrix = background.laplacian(basis).flatten(1)
    torch.testing.assert_close(matrix, matrix.mT)
    # Constant fields do not diffuse: the flow keeps the total.
    assert matrix.sum(1).abs().max() < 1e-12
    values, vectors = torch.linalg.eigh(matrix)
    heat = (vectors * torch.exp(-0.5 * 1.5**2 * values)) @ vectors.mT
    scale = heat.diagonal().sqrt()
    torch.testing.assert_close(dense(background), heat / scale[:, None] / scale, atol=1e-6, rtol=0)
    line = grid_space(400)
    short, long = DiffusionBackground(line, 1.0, 10.0).order, DiffusionBackground(line, 1.0, 40.0).order
    assert 3 < long / short < 5


def test_diffusion_on_a_torus_is_the_spectral_covariance():
    torus = grid_space(24, 20, periodic=True)
    one, other = DiffusionBackground(torus, 1.0, 3.0), SpectralBackground(torus, 1.0, 3.0)
    # Second differences for derivatives: relative error of |k|^2 of k^2 h^2 / 12 at k = 1 / length.
    assert (dense(one) - dense(other)).abs().max() < 2 / (12 * 3.0**2)


def test_correlation_on_the_sphere_follows_the_great_circle():
    space = sphere()
    row = dense(DiffusionBackground(space, 1.0, 3000.0))[6 * 24]
    distance = space.distance(space.positions()[6 * 24 : 6 * 24 + 1], space.positions())[0]
    near = distance < 5000.0
    expected = torch.exp(-(distance**2) / (2 * 3000.0**2))
    # Cells of 1,100 to 1,700 km, a curved surface: (L / R)^2 / 3 = 0.07.
    assert (row - expected)[near].abs().max() < 0.08
    # At 60 degrees north a step of longitude is half as long.
    matrix = dense(DiffusionBackground(space, 1.0, 2000.0))
    assert matrix[12 * 24, 12 * 24 + 2] > matrix[6 * 24, 6 * 24 + 2]
    assert abs(matrix[12 * 24, 12 * 24 + 23] - matrix[12 * 24, 12 * 24 + 1]) < 1e-10


def test_nothing_crosses_a_coast():
    wall = np.zeros((8, 9), dtype=bool)
    wall[:, 4] = True
    for mask, crosses in ((wall, False), (COAST, True)):
        matrix = dense(DiffusionBackground(grid_space(8, 9, mask=mask), 1.0, 2.0)).reshape(8, 9, 8, 9)
        assert (matrix[1, 3, 1, 5].abs() > 1e-2) == crosses
        assert matrix[0, 4].abs().max() == 0 or not mask[0, 4]
    # Around the end of the wall the way is longer than across it.
    open_water = dense(DiffusionBackground(grid_space(8, 9), 1.0, 2.0)).reshape(8, 9, 8, 9)
    closed = dense(MADE["diffusion coast"]).reshape(8, 9, 8, 9) / 1.3**2
    assert closed[6, 3, 6, 5] < 0.2 * open_water[6, 3, 6, 5]


def test_diagonals_of_large_grids_are_near_the_exact_one(monkeypatch):
    stretched = {"y": Coordinate(np.array([0.0, 1.0, 3.0, 4.0, 7.0]), ("y",), "1"), "x": BOX.coords["x"]}
    fields = (Field("a", "1", ("y", "x")), Field("b", "1", ("y", "x")))
    for space in (BOX, Space(fields, stretched, periodic="x")):
        exact = dense(DiffusionBackground(space, 1.0, 1.5))
        monkeypatch.setattr("assimilate.variational.diffusion.EXACT_CELLS", 8)
        torch.testing.assert_close(dense(DiffusionBackground(space, 1.0, 1.5)), exact, atol=1e-5, rtol=0)
        # Relative standard error sqrt(2 / draws) of a variance, at most 50 of them.
        mask = np.zeros(space.grid_shape, dtype=bool)
        mask[0, 0] = True
        masked = Space(space.fields, space.coords, space.periodic, mask)
        drawn = dense(DiffusionBackground(masked, 1.0, 1.5, draws=4000)).diagonal()
        kept = ~torch.from_numpy(masked.mask.copy()).flatten()
        assert (drawn[kept] - 1).abs().max() < 4 * (2 / 4000) ** 0.5
        monkeypatch.undo()


def test_members_and_hybrids():
    g = torch.Generator().manual_seed(1)
    members = torch.randn(2, 5, 1, 16, generator=g, dtype=torch.float64)
    taper = SpectralBackground(RING, 1.0, 3.0)
    plain, local = ensemble_background(members), ensemble_background(members, taper)
    for made, expected in ((plain, torch.ones(16, 16)), (local, dense(taper))):
        for e in range(2):
            one = EnsembleBackground(made.anomalies[e : e + 1], made.localisation)
            rows = one.root(torch.eye(one.size, dtype=torch.float64)[None])[0].flatten(1)
            torch.testing.assert_close(rows.mT @ rows, torch.cov(members[e, :, 0].mT) * expected)
    v = torch.randn(2, 3, plain.size, generator=g, dtype=torch.float64)
    torch.testing.assert_close(plain.root(v)[1:], EnsembleBackground(plain.anomalies[1:]).root(v[1:]))
    static = SpectralBackground(RING, 2.0, 1.0)
    both = Hybrid(static, 0.3).at(members[:1])
    rows = both.root(torch.eye(both.size, dtype=torch.float64)[None])[0].flatten(1)
    expected = 0.7 * dense(static) + 0.3 * torch.cov(members[0, :, 0].mT)
    torch.testing.assert_close(rows.mT @ rows, expected)


def test_a_taper_of_one_field_keeps_the_covariance_between_channels():
    g = torch.Generator().manual_seed(2)
    members = torch.randn(1, 4, 2, 8, 6, generator=g, dtype=torch.float64)
    shared = SpectralBackground(grid_space(8, 6, periodic=True), 1.0, 2.0)
    made = ensemble_background(members, shared)
    rows = made.root(torch.eye(made.size, dtype=torch.float64)[None])[0].flatten(1)
    found = (rows.mT @ rows).reshape(2, 48, 2, 48)
    full = torch.cov(members[0].flatten(1).mT).reshape(2, 48, 2, 48)
    torch.testing.assert_close(found, full * dense(shared)[None, :, None, :])


def test_climatology_and_prior():
    chain = LinearGaussian.ring(6)
    exact = chain.prior_moments()[1].dense()
    found = DenseBackground.climatology(chain, scale=0.5, steps=600, trajectories=32, spinup=20, every=1)
    # The ring forgets with 0.95 a step, its squares in a time of 10 steps: 600 are 60 draws, of 32 runs.
    assert (found.matrix / 0.5 - exact).abs().max() < 5 * (2 / (32 * 60)) ** 0.5 * exact.max()
    torch.testing.assert_close(DenseBackground.prior(chain).matrix, exact)
    lorenz = DenseBackground.prior(Lorenz63(), draws=4000)
    wanted = torch.tensor(Lorenz63().prior_covariance, dtype=torch.float64)
    assert (lorenz.matrix - wanted).abs().max() < 5 * (2 / 4000) ** 0.5 * 81
    assert abs(float(lorenz.mean[2]) - 25) < 5 * (75 / 4000) ** 0.5


def test_what_they_refuse():
    with pytest.raises(CapabilityError, match="DiffusionBackground"):
        SpectralBackground(BOX, 1.0, 1.0)
    with pytest.raises(CapabilityError, match="DenseBackground"):
        DiffusionBackground(Space.scalars("a"), 1.0, 1.0)
    with pytest.raises(ValueError, match="positive"):
        SpectralBackground(RING, 1.0, -1.0)
    with pytest.raises(ValueError, match="2 channels"):
        SpectralBackground(TORUS, (1.0, 1.0, 1.0), 1.0)
    with pytest.raises(ValueError, match="shape"):
        DiagonalBackground(TORUS, torch.ones(3, 3))
    with pytest.raises(ValueError, match="smoothness"):
        DiffusionBackground(BOX, 1.0, 1.0, smoothness=0.0)
    with pytest.raises(ValueError, match="too long"):
        DiffusionBackground(BOX, 1.0, 1e5).root(torch.zeros(35))
    with pytest.raises(ValueError, match="fraction"):
        Hybrid(MADE["spectral ring"], 1.5)
    with pytest.raises(ValueError, match="at least 2"):
        Hybrid(MADE["spectral ring"]).at(torch.zeros(1, 1, 1, 16))
