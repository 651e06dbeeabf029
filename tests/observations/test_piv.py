"""Velocity at particles: closed forms, an independent sum over modes, the contract, places, and what it refuses."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from assimilate.registry import build
from dynamics import CapabilityError, Coordinate, Field, NavierStokes, Space
from observations import GaussianNoise, Likelihood, Observation, check_operator
from observations.piv import ParticleVelocity

POINTS = np.array([[0.3, 1.7], [4.0, 0.01], [6.2, 6.25], [-1.0, 9.0], [2.5, 2.5]])


def torus(rows, columns, length_y=2 * math.pi, length_x=2 * math.pi, *, start=(0.0, 0.0), flip=False, unit="1"):
    y = start[0] + np.arange(rows) * length_y / rows
    x = start[1] + np.arange(columns) * length_x / columns
    axes = {"y": Coordinate(y[::-1] if flip else y, ("y",), unit), "x": Coordinate(x, ("x",), unit)}
    return Space((Field("vorticity", "1", ("y", "x")),), axes, periodic=("y", "x"))


def on_grid(space, function):
    y, x = space.positions().T
    return function(y, x).reshape(1, *space.grid_shape)


def taylor_green(a, b):
    """Psi = cos(a x) cos(b y): its vorticity, u and v."""
    return (
        lambda y, x: (a**2 + b**2) * torch.cos(a * x) * torch.cos(b * y),
        lambda y, x: -b * torch.cos(a * x) * torch.sin(b * y),
        lambda y, x: a * torch.sin(a * x) * torch.cos(b * y),
    )


@pytest.mark.parametrize("sampling", ["spectral", "bilinear"])
@pytest.mark.parametrize("shape", [(8, 8), (6, 9), (7, 10)])
def test_contract_and_adjoint(sampling, shape):
    operator = ParticleVelocity(torus(*shape, 2.0, 5.0, start=(1.0, -3.0)), count=7, seed=3, sampling=sampling)
    check_operator(operator)
    x = torch.randn(2, 3, *operator.event_shape, dtype=torch.float64)
    y = torch.randn(2, 3, 2, 7, dtype=torch.float64)
    left = (operator(x) * y).sum((-2, -1))
    right = (x * operator.adjoint(y)).sum((-3, -2, -1))
    torch.testing.assert_close(left, right, rtol=1e-12, atol=1e-12)
    assert operator.obs_shape == (2, 7)


@pytest.mark.parametrize("flip", [False, True])
def test_taylor_green_is_exact_anywhere(flip):
    """Rectangular cells, a torus that is not square, and y downwards: the flow does not care."""
    space = torus(12, 18, 2 * math.pi, 4 * math.pi, flip=flip)
    vorticity, u, v = taylor_green(1.5, 3.0)
    operator = ParticleVelocity(space, POINTS)
    y, x = torch.from_numpy(POINTS).T
    found = operator(on_grid(space, vorticity))
    torch.testing.assert_close(found, torch.stack([u(y, x), v(y, x)]), rtol=0, atol=1e-13)


def test_a_mode_up_to_the_nyquist_wavenumber_counts():
    """The operator keeps what the two-thirds rule of the flow's solver would drop; at Nyquist there is no sine."""
    space = torus(12, 12)
    for waves in (5, 6):
        found = ParticleVelocity(space, POINTS)(on_grid(space, lambda y, x, k=waves: k * torch.cos(k * x) + 0 * y))
        expected = torch.sin(5 * torch.from_numpy(POINTS[:, 1])) if waves == 5 else torch.zeros(5, dtype=torch.float64)
        torch.testing.assert_close(found, torch.stack([0 * expected, expected]), rtol=0, atol=1e-13)


def test_it_is_the_sum_over_modes():
    """Against a plain sum over all modes of a field without symmetry, written down apart from the operator."""
    space = torus(5, 6, 3.0, 2.0, start=(0.5, 0.2))
    field = torch.randn(5, 6, dtype=torch.float64).numpy()
    spectrum = np.fft.fft2(field) / 30
    expected = np.zeros((2, len(POINTS)), dtype=complex)
    for row in (-2, -1, 0, 1, 2):
        for column in (-2, -1, 0, 1, 2):
            if row or column:
                k_y, k_x = 2 * math.pi * row / 3.0, 2 * math.pi * column / 2.0
                wave = np.exp(1j * (k_y * (POINTS[:, 0] - 0.5) + k_x * (POINTS[:, 1] - 0.2)))
                psi = spectrum[row, column] / (k_y**2 + k_x**2) * wave
                expected += np.stack([1j * k_y * psi, -1j * k_x * psi])
    found = ParticleVelocity(space, POINTS)(torch.from_numpy(field)[None])
    torch.testing.assert_close(found, torch.from_numpy(expected.real), rtol=0, atol=1e-13)


def test_it_is_the_velocity_of_the_solver_at_its_cells():
    system = NavierStokes(size=16)
    state = system.prior((2,), rng=torch.Generator().manual_seed(0), dtype=torch.float64)
    expected = system.velocity(state).flatten(-2)
    for sampling in ("spectral", "bilinear"):
        found = ParticleVelocity(system.space, system.space.positions().numpy(), sampling=sampling)(state)
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-13)
    assert found.mean(-1).abs().max() < 1e-13  # no mean flow


def test_bilinear_is_of_second_order():
    vorticity, u, v = taylor_green(2.0, 1.0)
    points = np.random.default_rng(0).uniform(0, 2 * math.pi, (400, 2))
    y, x = torch.from_numpy(points).T
    errors = []
    for size in (32, 64, 128):
        space = torus(size, size)
        found = ParticleVelocity(space, points, sampling="bilinear")(on_grid(space, vorticity))
        error = (found - torch.stack([u(y, x), v(y, x)])).abs().max()
        # The bound of its docstring: second derivatives of v are at most 2^3 along x and 2 along y.
        assert error < (2 * math.pi / size) ** 2 / 8 * (8 + 2)
        errors.append(float(error))
    orders = np.log2(np.array(errors[:-1]) / errors[1:])
    # 400 places rarely hit the worst one: the largest error is known to some per cent.
    assert np.all(np.abs(orders - 2) < 0.15), orders


@pytest.mark.parametrize("sampling", ["spectral", "bilinear"])
def test_around_the_torus(sampling):
    space = torus(8, 8)
    x = torch.randn(1, 8, 8, dtype=torch.float64)
    here = ParticleVelocity(space, POINTS, sampling=sampling)(x)
    there = ParticleVelocity(space, POINTS + 2 * math.pi * np.array([1, -2]), sampling=sampling)(x)
    torch.testing.assert_close(here, there, rtol=0, atol=1e-12)
    # Translation: the flow moved by a cell, seen a cell further.
    cell = np.array([2 * math.pi / 8, 0.0])
    moved = ParticleVelocity(space, POINTS + cell, sampling=sampling)(x.roll(1, -2))
    torch.testing.assert_close(here, moved, rtol=0, atol=1e-12)


def test_particles_at_random():
    space = torus(8, 8, 2.0, 5.0, start=(1.0, -3.0))
    many = ParticleVelocity(space, count=2000, seed=5)
    few = ParticleVelocity(space, count=10, seed=5)
    assert np.array_equal(few.points, many.points[:10])
    assert not np.array_equal(few.points, ParticleVelocity(space, count=10, seed=6).points)
    share = (many.points - [1.0, -3.0]) / [2.0, 5.0]
    assert share.min() >= 0 and share.max() < 1
    # Uniform: mean 1/2 and variance 1/12, each to 5 standard errors; the two columns are not correlated.
    assert np.abs(share.mean(0) - 0.5).max() < 5 * math.sqrt(1 / 12 / 2000)
    assert np.abs(share.var(0) - 1 / 12).max() < 5 * math.sqrt(1 / 180 / 2000)
    assert abs(np.corrcoef(share.T)[0, 1]) < 5 / math.sqrt(2000)
    # Places of u, then of v, as filters with localisation want them.
    assert torch.equal(few.positions, torch.from_numpy(few.points).repeat(2, 1))


def test_particles_that_move():
    """Each time has its own operator; carried by a uniform flow, particles see the flow that moves with them."""
    space = torus(16, 16)
    x = torch.randn(1, 16, 16, dtype=torch.float64)
    start = ParticleVelocity(space, count=6)
    for k in range(3):
        moved = replace(start, points=start.points + k * np.array([0.0, 2 * math.pi / 16]))
        seen = Observation(Likelihood(moved, GaussianNoise(std=0.1)), start(x))
        assert float(seen.likelihood.residual(seen.y, x.roll(k, -1)).abs().max()) < 1e-10
        assert float(moved.positions[0, 1]) == pytest.approx(start.points[0, 1] + k * 2 * math.pi / 16)


def test_a_mapping_of_places_and_the_name_in_a_card():
    space = torus(8, 8)
    named = ParticleVelocity(space, {"x": POINTS[:, 1], "y": POINTS[:, 0]})
    assert np.array_equal(named.points, POINTS)
    listed = build("operator", {"type": "ParticleVelocity", "points": POINTS.tolist()}, "operator", space=space)
    assert np.array_equal(listed.points, POINTS)
    assert repr(build("operator", {"type": "ParticleVelocity", "count": 4}, "operator", space=space)) == (
        "ParticleVelocity((1, 8, 8), 4 particles, spectral)"
    )


def test_what_it_refuses():
    space = torus(8, 8)
    open_plane = Space(space.fields, space.coords)
    two = Space((*space.fields, Field("t", "1", ("y", "x"))), space.coords, periodic=("y", "x"))
    for wrong in (open_plane, two, Space.scalars("w"), (1, 8, 8)):
        with pytest.raises(CapabilityError, match="ParticleVelocity needs"):
            ParticleVelocity(wrong, POINTS)
    for settings in ({}, {"points": POINTS, "count": 3}, {"count": 0}, {"points": POINTS, "sampling": "cubic"}):
        with pytest.raises(ValueError, match=r"points|count|sampling"):
            ParticleVelocity(space, **settings)
    with pytest.raises(ValueError, match="no finite position"):
        ParticleVelocity(space, [[0.0, math.nan]])
