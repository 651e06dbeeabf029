"""Two public solvers against ours, from the same vorticity. A peer that is not installed is skipped.

Both write the advection as u.grad w (ours: Basdevant's form) and step by a Runge-Kutta scheme of order 4 with
Crank-Nicolson for the linear part, which is of order 2. They keep one row of modes more than the two-thirds rule
allows, and that without its mirror image; here they are given the rule itself, and then solve the same equations as
ours. One is a port of the other: they are independent of this project, not of each other.
"""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from dynamics.navier_stokes import NavierStokes

SYSTEM = NavierStokes(size=64, viscosity=1e-3, drag=0.1, dt=0.25)
HOW = "is not installed: pip install 'assimilate-da[{}]'"


def kept(size):
    """The two-thirds rule on half spectra `(n, n // 2 + 1)`."""
    rows, columns = np.fft.fftfreq(size, 1 / size), np.arange(size // 2 + 1)
    return np.maximum(abs(rows)[:, None], columns[None]) <= (size - 1) // 3


class TorchCfd:
    """torch-cfd, in float64."""

    def __init__(self, system):
        pytest.importorskip("torch_cfd", reason="torch-cfd " + HOW.format("peers-torch-cfd"))
        from torch_cfd import spectral
        from torch_cfd.grids import Grid

        # The weights of its scheme and its modes are made in the default precision.
        default = torch.get_default_dtype()
        torch.set_default_dtype(torch.float64)
        try:
            grid = Grid((system.size, system.size), domain=((0, system.length), (0, system.length)))
            self.equation = spectral.NavierStokes2DSpectral(
                system.viscosity, grid, drag=system.drag, step_fn=spectral.RK4CrankNicolsonStepper()
            )
        finally:
            torch.set_default_dtype(default)
        self.equation.filter = torch.from_numpy(kept(system.size)).double()

    def tendency(self, field):
        spectrum = torch.fft.rfft2(torch.from_numpy(field))
        total = self.equation.explicit_terms(spectrum) + self.equation.implicit_terms(spectrum)
        return torch.fft.irfft2(total, s=field.shape).numpy()

    def advance(self, field, span, steps):
        spectrum = torch.fft.rfft2(torch.from_numpy(field))
        with torch.no_grad():
            spectrum, _ = self.equation(spectrum, span / steps, steps)
        return torch.fft.irfft2(spectrum, s=field.shape).numpy()


class JaxCfd:
    """jax-cfd, in float64."""

    def __init__(self, system):
        self.jax = pytest.importorskip("jax", reason="jax " + HOW.format("peers"))
        pytest.importorskip("jax_cfd", reason="jax-cfd " + HOW.format("peers"))
        from jax_cfd.base.grids import Grid
        from jax_cfd.spectral import equations, time_stepping

        self.jax.config.update("jax_enable_x64", True)
        self.make = time_stepping.crank_nicolson_rk4
        grid = Grid((system.size, system.size), domain=((0, system.length), (0, system.length)))
        self.equation = equations.NavierStokes2D(system.viscosity, grid, drag=system.drag)
        self.equation.filter_ = self.jax.numpy.asarray(kept(system.size), float)

    def tendency(self, field):
        spectrum = self.jax.numpy.fft.rfftn(field)
        total = self.equation.explicit_terms(spectrum) + self.equation.implicit_terms(spectrum)
        return np.asarray(self.jax.numpy.fft.irfftn(total, s=field.shape))

    def advance(self, field, span, steps):
        step = self.make(self.equation, span / steps)
        run = self.jax.jit(lambda x: self.jax.lax.fori_loop(0, steps, lambda _, state: step(state), x))
        return np.asarray(self.jax.numpy.fft.irfftn(run(self.jax.numpy.fft.rfftn(field)), s=field.shape))


@pytest.fixture(params=[TorchCfd, JaxCfd], ids=["torch-cfd", "jax-cfd"])
def peer(request):
    return request.param


def start():
    return SYSTEM.prior((1,), rng=torch.Generator().manual_seed(0), dtype=torch.float64)


def swapped(x):
    """A state `(1, 1, n, n)` with dims (x, y), as the peers have them."""
    return np.ascontiguousarray(x[0, 0].numpy().T)


def rms(x):
    return float(np.sqrt(np.mean(x**2)))


def orders(differences):
    return [math.log2(differences[i] / differences[i + 1]) for i in range(len(differences) - 1)]


def exact(system, x):
    """The flow after a step, from two runs of ours without the term in h^4 of their error."""
    coarse, fine = (swapped(replace(system, substeps=count).step(x, 0.0, rng=None)) for count in (128, 256))
    return fine + (fine - coarse) / 15


def test_tendencies_are_equal(peer):
    x = start()
    grid = SYSTEM.grid
    spectrum = grid.spectrum(x[:, 0])
    ours = grid.advection(spectrum) - (SYSTEM.viscosity * grid.squared + SYSTEM.drag) * spectrum
    ours = swapped(grid.field(ours)[None])
    assert rms(ours) > 1
    # Rounding only, some hundred units of it (measured: 13).
    assert rms(peer(SYSTEM).tendency(swapped(x)) - ours) < 1e-13 * rms(ours)


def test_a_step_differs_with_the_fifth_power_of_its_length(peer):
    x = start()
    solver = peer(SYSTEM)
    differences = []
    for h in (2**-6, 2**-7, 2**-8):
        ours = swapped(replace(SYSTEM, dt=h, substeps=1).step(x, 0.0, rng=None))
        differences.append(rms(solver.advance(swapped(x), h, 1) - ours))
    # Both are of order 4 where advection leads, as it does in every step of this length at this viscosity.
    assert min(orders(differences)) > 4.7 and max(orders(differences)) < 5.3
    assert differences[-1] < 1e-6


def test_many_steps_tend_to_the_same_turbulent_flow(peer):
    x = start()
    ours, solver = exact(SYSTEM, x), peer(SYSTEM)
    differences = [rms(solver.advance(swapped(x), SYSTEM.dt, steps) - ours) for steps in (16, 32, 64, 256)]
    assert min(orders(differences[:3])) > 3.8 and max(orders(differences[:3])) < 4.2
    # From 16 steps to 256 the fourth power is 65536; the flow has gone as far as it is large.
    assert differences[-1] < 2e-5 * differences[0] < 2e-8
    assert rms(ours - swapped(x)) > 0.5 * rms(ours)


def test_many_steps_tend_to_the_same_viscous_flow(peer):
    x = start()
    system = replace(SYSTEM, viscosity=0.05)
    ours, solver = exact(system, x), peer(system)
    ends = [solver.advance(swapped(x), system.dt, steps) for steps in (32, 64, 128)]
    differences = [rms(end - ours) for end in ends]
    # Crank-Nicolson leads here, so order 2; without the term in h^2 next to nothing of the difference is left.
    assert min(orders(differences)) > 1.9 and max(orders(differences)) < 2.1
    assert rms(ends[2] + (ends[2] - ends[1]) / 3 - ours) < 0.03 * differences[2]
