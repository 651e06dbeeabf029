"""A system on a coarser grid: exact interpolation, one law, and the same flow as the fine grid's."""

import math

import numpy as np
import pytest
import torch

from dynamics import simulate
from dynamics.lorenz import Lorenz96
from dynamics.navier_stokes import NavierStokes
from dynamics.random import Streams
from dynamics.truncated import Truncated, resampled


def wave(size: int, k_y: int, k_x: int) -> torch.Tensor:
    angle = 2 * math.pi * torch.arange(size, dtype=torch.float64) / size
    return torch.cos(k_y * angle[:, None] + k_x * angle[None] + 0.3)


@pytest.mark.parametrize("vector", [(0, 0), (1, 0), (0, -3), (7, 5), (-6, 7)])
def test_waves_that_both_grids_hold_are_moved_exactly(vector: tuple[int, int]) -> None:
    up = resampled(wave(16, *vector), 24)
    assert torch.allclose(up, wave(24, *vector), atol=1e-12)
    assert torch.allclose(resampled(up, 16), wave(16, *vector), atol=1e-12)


@pytest.mark.parametrize("vector", [(8, 0), (0, 9), (-8, 3), (11, -11)])
def test_waves_that_the_coarse_grid_cannot_hold_are_dropped(vector: tuple[int, int]) -> None:
    assert float(resampled(wave(24, *vector), 16).abs().max()) < 1e-12


def test_a_step_is_the_fine_systems_step() -> None:
    fine = NavierStokes(size=32, noise=1.0, noise_wavevectors=((3, 0),), dt=0.1, substeps=8, prior_waves=2.0)
    coarse = Truncated(fine, 16)
    x = coarse.prior((2, 3), rng=Streams(0, 2, 3).at(0), dtype=torch.float64)
    expected = resampled(fine.step(resampled(x, 32), 0.0, rng=Streams(1, 2, 3).at(0)), 16)
    assert torch.equal(coarse.step(x, 0.0, rng=Streams(1, 2, 3).at(0)), expected)
    assert coarse.space.event_shape == (1, 16, 16) and coarse.dt == fine.dt
    assert np.allclose(coarse.space.coords["x"].numbers, 2 * math.pi * np.arange(16) / 16)


def test_what_is_dropped_between_steps_is_little() -> None:
    # Two-thirds of 48 modes are resolved by 32 cells: only the tail beyond is cut at every step.
    fine = NavierStokes(size=48, noise=0.0, viscosity=5e-3, dt=0.05, substeps=8, prior_waves=3.0, prior_decay=4.0)
    coarse = Truncated(fine, 32)
    x = coarse.prior((1,), rng=torch.Generator().manual_seed(3), dtype=torch.float64)
    seen, whole = x, resampled(x, 48)
    for _ in range(10):
        seen, whole = coarse.step(seen, 0.0, rng=None), fine.step(whole, 0.0, rng=None)
    error = (seen - resampled(whole, 32)).square().mean().sqrt() / seen.std()
    assert float(error) < 1e-3


def test_simulated_datasets_carry_the_coarse_coordinates() -> None:
    ds = simulate(Truncated(NavierStokes(size=24, noise=0.0, dt=0.1, substeps=4), 12), steps=2, trajectories=2, seed=1)
    assert ds["vorticity"].shape == (2, 3, 12, 12)


@pytest.mark.parametrize("size", [5, 2, 40])
def test_sizes_that_do_not_fit_are_named(size: int) -> None:
    with pytest.raises(ValueError, match=f"size is {size}"):
        Truncated(NavierStokes(size=32, noise=0.0), size)


def test_other_grids_are_refused() -> None:
    with pytest.raises(ValueError, match="periodic square"):
        Truncated(Lorenz96(), 8)
