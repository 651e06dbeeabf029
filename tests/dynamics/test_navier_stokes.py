"""The flow on the torus: exact solutions, invariants, budgets, order, noise, derivatives."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from dynamics import Streams, check_dynamics, simulate
from dynamics.navier_stokes import NavierStokes
from dynamics.spectral import SpectralGrid

FREE = NavierStokes(size=24, viscosity=0.0, drag=0.0, dt=0.5, substeps=8, prior_waves=3.0)
SYSTEMS = [
    NavierStokes(size=16, substeps=2),
    NavierStokes(size=27, noise=1.0, substeps=3),
    NavierStokes(size=16, body_force=1.0, length=3.0, dt=0.1, substeps=2),
]


def draw(system, rows=2, seed=0):
    return system.prior((rows,), rng=torch.Generator().manual_seed(seed), dtype=torch.float64)


def axes(size):
    angle = 2 * math.pi * torch.arange(size, dtype=torch.float64) / size
    return angle[:, None], angle[None, :]


@pytest.mark.parametrize("system", SYSTEMS, ids=["free", "noise", "force"])
def test_contract_and_repr(system):
    check_dynamics(system)
    assert eval(repr(system), {"NavierStokes": NavierStokes}) == system


def test_taylor_green_vortices_decay_as_they_should():
    system = NavierStokes(size=32, viscosity=0.02, drag=0.3, dt=0.7, substeps=3)
    y, x = axes(32)
    # Any flow of one |k| is a steady flow without viscosity; all of these have |k|^2 = 25.
    start = (torch.cos(5 * x) + 2 * torch.sin(3 * x + 4 * y) - torch.cos(4 * x - 3 * y)).reshape(1, 32, 32)
    expected = start * math.exp(-(0.02 * 25 + 0.3) * 0.7)
    assert torch.allclose(system.step(start, 0.0, rng=None), expected, rtol=0, atol=1e-13)


def test_laminar_kolmogorov_flow_stands_still_at_any_step():
    system = NavierStokes(size=32, viscosity=0.05, drag=0.1, body_force=2.0, dt=5.0, substeps=1)
    y, x = axes(32)
    laminar = (-2.0 * 4 * torch.cos(4 * y) / (0.05 * 16 + 0.1) + 0 * x).reshape(1, 32, 32)
    assert torch.allclose(system.step(laminar, 0.0, rng=None), laminar, rtol=1e-12, atol=1e-12)


def test_advection_is_that_of_the_velocity_without_aliasing():
    grid, n, fine = SpectralGrid(24), 24, 72
    x = draw(FREE, 1)[0, 0]
    # Another form on another grid: u dw/dx + v dw/dy on three times the points, by full complex transforms.
    waves = np.fft.fftfreq(n, 1 / n)
    full, places = np.zeros((fine, fine), complex), np.r_[0 : n // 2, fine - n // 2 : fine]
    full[np.ix_(places, places)] = np.fft.fft2(x.numpy()) * (fine / n) ** 2
    k = np.fft.fftfreq(fine, 1 / fine)
    k_y, k_x = k[:, None], k[None]
    stream = full / np.where(k_x**2 + k_y**2 > 0, k_x**2 + k_y**2, 1)
    u, v, w_x, w_y = (np.fft.ifft2(1j * part).real for part in (k_y * stream, -k_x * stream, k_x * full, k_y * full))
    product = np.fft.fft2(-(u * w_x + v * w_y))[np.ix_(places, places)] * (n / fine) ** 2
    kept = np.maximum(abs(waves[:, None]), abs(waves[None])) <= grid.cut
    expected = np.fft.ifft2(product * kept).real
    found = grid.field(grid.advection(grid.spectrum(x))).numpy()
    assert np.abs(expected).max() > 1
    np.testing.assert_allclose(found, expected, atol=1e-12)


def test_spectra_and_velocity():
    grid = SpectralGrid(27)
    x = draw(replace(FREE, size=27), 3)[:, 0]
    spectrum = grid.spectrum(x)
    assert grid.cut == 8 and spectrum.shape == (3, 27, 9)
    assert torch.allclose(grid.field(spectrum), x, atol=1e-13)  # the prior lies below the cut
    assert torch.allclose(grid.enstrophy(spectrum), 0.5 * x.square().mean((-2, -1)), rtol=1e-12)
    velocity = grid.velocity(spectrum)
    assert torch.allclose(grid.energy(spectrum), 0.5 * velocity.square().sum(-3).mean((-2, -1)), rtol=1e-12)
    # w = dv/dx - du/dy and du/dx + dv/dy = 0: of a shear u = cos(2 y) the vorticity is 2 sin(2 y).
    y, along = axes(27)
    shear = grid.velocity(grid.spectrum(2 * torch.sin(2 * y) + 0 * along))
    assert torch.allclose(shear, torch.stack([torch.cos(2 * y) + 0 * along, torch.zeros(27, 27)]), atol=1e-13)


def test_energy_and_enstrophy_are_conserved_to_the_order_of_the_scheme():
    x = draw(FREE)
    grid = FREE.grid
    spectrum = grid.spectrum(x[:, 0])
    # The truncated equations conserve both exactly: a tendency is orthogonal to w and to the stream function.
    tendency = grid.field(grid.advection(spectrum))
    stream = grid.field(spectrum * grid.multipliers(spectrum).inverse)
    scale = float(tendency.square().mean().sqrt())
    assert float((tendency * x[:, 0]).mean((-2, -1)).abs().max()) < 1e-13 * scale
    assert float((tendency * stream).mean((-2, -1)).abs().max()) < 1e-13 * scale
    drift = {}
    for substeps in (16, 32):
        end = replace(FREE, substeps=substeps).step(x, 0.0, rng=None)
        drift[substeps] = torch.stack([FREE.energy(end) / FREE.energy(x), FREE.enstrophy(end) / FREE.enstrophy(x)]) - 1
    # ETDRK4 without a linear part is RK4, whose quadratic invariants drift with h^5 over a fixed time.
    assert float(drift[32].abs().max()) < 1e-6
    assert bool((drift[16].abs() > 14 * drift[32].abs()).all())


def test_the_error_goes_with_the_fourth_power_of_the_step():
    system = NavierStokes(size=24, viscosity=0.01, drag=0.1, body_force=1.0, dt=0.5, prior_waves=3.0)
    x = draw(system)
    ends = [replace(system, substeps=count).step(x, 0.0, rng=None) for count in (8, 16, 32, 256)]
    errors = [float((end - ends[-1]).norm()) for end in ends[:-1]]
    orders = [math.log2(errors[i] / errors[i + 1]) for i in range(2)]
    assert min(orders) > 3.7 and max(orders) < 4.4
    assert errors[2] < 1e-5 * float(x.norm())


def test_energy_and_enstrophy_budgets():
    """dE/dt = -2 alpha E - 2 nu Z + <u F>,   dZ/dt = -2 alpha Z - 2 nu <|grad w|^2> / 2 + <w f>."""
    h = 1e-3
    system = NavierStokes(size=32, viscosity=0.02, drag=0.3, body_force=1.5, body_force_waves=3, dt=h, substeps=1)
    middle = draw(system)
    before, after = middle, system.step(system.step(middle, 0.0, rng=None), 0.0, rng=None)
    middle = system.step(middle, 0.0, rng=None)
    y, _ = axes(32)
    work = (system.velocity(middle)[:, 0] * 1.5 * torch.sin(3 * y)).mean((-2, -1))
    torque = (middle[:, 0] * -1.5 * 3 * torch.cos(3 * y)).mean((-2, -1))
    energy, enstrophy = system.energy(middle), system.enstrophy(middle)
    spectrum = system.grid.spectrum(middle[:, 0])
    factors = system.grid.multipliers(spectrum)
    gradients = 0.5 * (spectrum.abs() ** 2 * factors.weight * system.grid.squared).sum((-2, -1))
    found = [(f(after) - f(before)) / (2 * h) for f in (system.energy, system.enstrophy)]
    # Central differences: h^2 / 6 times the third derivative, rates here are of order 10 per unit of time.
    assert torch.allclose(found[0], -0.6 * energy - 0.04 * enstrophy + work, rtol=0, atol=2e-4)
    assert torch.allclose(found[1], -0.6 * enstrophy - 0.04 * gradients + torque, rtol=0, atol=2e-3)


def test_shifts_and_batches_change_nothing():
    system = NavierStokes(size=128, dt=0.05, substeps=2)
    x = draw(system, 6)
    step = system.step(x, 0.0, rng=None)
    # Six rows of 128 x 128 are more than one chunk.
    assert torch.equal(step[3], system.step(x[3], 0.0, rng=None))
    shifted = system.step(torch.roll(x, (5, -9), (-2, -1)), 0.0, rng=None)
    assert torch.allclose(shifted, torch.roll(step, (5, -9), (-2, -1)), atol=1e-12)
    single = system.step(x.float(), 0.0, rng=None)
    assert float((single - step).abs().max()) < 1e-5 * float(step.abs().max())


def test_noise_on_parallel_waves_is_an_ornstein_uhlenbeck_process():
    # Waves of one direction do not advect each other, so the law is known: var = eps^2 (1 - e^(-2 a t)) / (2 a).
    system = NavierStokes(
        size=16, viscosity=0.1, drag=0.5, noise=1.3, noise_wavevectors=((1, 2), (2, 4)), dt=0.5, substeps=4
    )
    rows = 4000
    x = system.step(torch.zeros(1, rows, 1, 16, 16, dtype=torch.float64), 0.0, rng=Streams(1, 1, rows))[0, :, 0]
    y, along = axes(16)
    for k_x, k_y in system.noise_wavevectors:
        rate = 0.5 + 0.1 * (k_x**2 + k_y**2)
        variance = 1.3**2 * (1 - math.exp(-2 * rate * 0.5)) / (2 * rate)
        for wave in (torch.sin, torch.cos):
            amplitude = 2 * (x * wave(k_x * along + k_y * y)).mean((-2, -1))
            # Halves of the noise at both ends of a substep are the trapezoidal rule for its integral.
            trapezoid = (rate * 0.5 / 4) ** 2 / 3
            tolerance = 5 * math.sqrt(2 / rows) + trapezoid
            assert float(amplitude.square().mean()) == pytest.approx(variance, rel=tolerance)
            x = x - amplitude[:, None, None] * wave(k_x * along + k_y * y)
    assert float(x.abs().max()) < 1e-13  # and nothing else is driven


def test_noise_feeds_two_units_of_enstrophy_a_time_in_the_published_setting():
    system = replace(NavierStokes.flowdas(32), dt=0.01, substeps=1)
    rows = 2000
    x = system.step(torch.zeros(1, rows, 1, 32, 32, dtype=torch.float64), 0.0, rng=Streams(0, 1, rows))
    # Eight modes of mean square 1/2; a sum of eight squares has a relative spread of sqrt(2 / 8).
    assert float(system.enstrophy(x).mean()) == pytest.approx(2 * 0.01, rel=5 * math.sqrt(0.25 / rows) + 0.005)


def test_derivatives():
    system = NavierStokes(size=8, viscosity=0.01, body_force=0.5, body_force_waves=2, dt=0.2, substeps=2)
    x = draw(system).requires_grad_()
    assert torch.autograd.gradcheck(lambda s: system.step(s, 0.0, rng=None), (x,), atol=1e-7, fast_mode=True)
    tangent = torch.randn(x.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    step = 1e-5
    with torch.no_grad():
        ends = [system.step(x + sign * step * tangent, 0.0, rng=None) for sign in (1, -1)]
    _, found = torch.func.jvp(lambda s: system.step(s, 0.0, rng=None), (x.detach(),), (tangent,))
    assert torch.allclose(found, (ends[0] - ends[1]) / (2 * step), atol=1e-8)


def test_prior_has_its_spread_and_no_mean():
    system = NavierStokes(size=32, prior_std=2.0, length=5.0)
    x = system.prior((1, 400), rng=Streams(0, 1, 400), dtype=torch.float64)
    assert float(x.mean((-2, -1)).abs().max()) < 1e-13
    # A row holds at least about 20 independent modes.
    assert float(x.square().mean()) == pytest.approx(4.0, rel=5 * math.sqrt(2 / (20 * 400)))
    # What lies beyond the cut does not take part.
    rough = x[0, :2] + torch.cos(math.pi * torch.arange(32, dtype=torch.float64))
    assert torch.allclose(system.step(rough, 0.0, rng=None), system.step(x[0, :2], 0.0, rng=None), atol=1e-12)


def test_presets():
    flow = NavierStokes.flowdas()
    assert (flow.viscosity, flow.drag, flow.noise, flow.size) == (1e-3, 0.1, 1.0, 128)
    assert flow.noise_wavevectors == ((6, 0), (7, 0), (5, 5), (8, 8)) and flow.dt == 1.0
    shear = NavierStokes.kolmogorov()
    assert (shear.viscosity, shear.drag, shear.body_force, shear.body_force_waves) == (1e-3, 0.1, 1.0, 4)
    assert shear.noise == 0 and shear.dt == 0.2 and shear.space.event_shape == (1, 256, 256)
    assert flow.space.distance(torch.tensor([[0.0, 0.1]]), torch.tensor([[0.0, 6.2]])) == pytest.approx(
        2 * math.pi - 6.1, abs=1e-6
    )


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"size": 4}, "size is 4; expected a whole number of 8 or more"),
        ({"substeps": 0}, "substeps is 0"),
        ({"drag": -0.1}, "drag is -0.1"),
        ({"size": 16, "noise": 1.0}, "beyond the cut"),
        ({"size": 16, "body_force": 1.0, "body_force_waves": 7}, "keeps 1..5"),
        ({"noise_wavevectors": ((1, 2), (-1, -2))}, "twice"),
    ],
)
def test_settings_are_checked(settings, message):
    with pytest.raises(ValueError, match=message):
        NavierStokes(**settings)


@pytest.mark.slow
def test_climate_of_the_published_setting():
    system = NavierStokes.flowdas()
    ds = simulate(system, steps=40, trajectories=4, seed=0, spinup=20)
    rms = float(np.sqrt((ds.vorticity**2).mean()))
    # The published scale is 3.07; 160 snapshots with a memory of a few units of time leave about 3 %.
    assert rms == pytest.approx(3.1, abs=0.25)
