"""The climate of the stochastic flow: independent of the step, and losing as much enstrophy as the noise feeds."""

import math
from dataclasses import replace

import pytest
import torch

from dynamics.navier_stokes import NavierStokes
from dynamics.random import Streams

# Small, thick and strongly damped, so that it is cheap and forgets its start in a few units of time; its Reynolds
# number is still high enough that half of the energy lies outside the shell that the noise drives.
SYSTEM = NavierStokes(
    size=32, viscosity=0.005, drag=0.3, noise=2.0, noise_wavevectors=((3, 0), (2, 2), (0, 3), (1, -3)), dt=1.0
)
MEMBERS, SPINUP, STEPS = 64, 10, 50


def climate(substeps, seed):
    """Time means of every member: energy in shells `(member, K)`, enstrophy lost in a unit of time `(member,)`."""
    system = replace(SYSTEM, substeps=substeps)
    grid = system.grid
    shell = grid.squared.sqrt().round().long().flatten()
    rng = Streams(seed, 1, MEMBERS)
    x = system.prior((1, MEMBERS), rng=rng.at(0))
    spectra, losses = torch.zeros(MEMBERS, grid.cut + 1, dtype=torch.float64), torch.zeros(MEMBERS, dtype=torch.float64)
    for k in range(1, SPINUP + STEPS + 1):
        x = system.step(x, float(k), rng=rng.at(k))
        if k <= SPINUP:
            continue
        spectrum = grid.spectrum(x[0, :, 0].double())
        factors = grid.multipliers(spectrum)
        power = spectrum.abs() ** 2 * factors.weight
        energy = torch.zeros(MEMBERS, int(shell.max()) + 1, dtype=torch.float64)
        energy.index_add_(1, shell, (0.5 * power * factors.inverse).flatten(1))
        spectra += energy[:, : grid.cut + 1] / STEPS
        losses += ((system.drag + system.viscosity * grid.squared) * power).sum((-2, -1)) / STEPS
    return spectra[:, 1:], losses


def mean_and_error(values):
    return values.mean(0), values.std(0) / math.sqrt(MEMBERS)


@pytest.mark.slow
def test_the_climate_does_not_depend_on_the_step():
    runs = [climate(substeps, seed) for substeps, seed in ((32, 0), (64, 1))]
    (coarse, coarse_error), (fine, fine_error) = (mean_and_error(spectra) for spectra, _ in runs)
    error = (coarse_error**2 + fine_error**2).sqrt()
    # Members are independent, so their spread tells the error of the mean; it must be small enough to tell anything.
    assert float((error / fine).max()) < 0.04
    assert bool(((coarse - fine).abs() < 4 * error).all())
    # Only shell 3 is driven, the others are fed by the flow: a linear flow would have nothing there.
    assert float(fine.sum() - fine[2]) > 0.4 * float(fine.sum())
    # What is driven is eight waves of mean square 1/2: d<w^2>/2 = eps^2 8/4 dt must go out again, at any step.
    for _, losses in runs:
        loss, loss_error = mean_and_error(losses)
        assert abs(float(loss) - SYSTEM.noise**2 * 2) < 4 * float(loss_error)
        assert float(loss_error) < 0.02 * float(loss)
