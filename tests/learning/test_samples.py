"""Training data: windows, gaps, splits, no-data cells, patches, standardisation."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import xarray as xr

from assimilate.errors import DataError
from assimilate.learning.samples import Simulation, Standardisation, Trajectories
from dynamics import LogOnePlus, Space
from dynamics.linear import LinearGaussian


def counting(times=40, trajectories=3, rows=4, columns=5):
    """A Dataset of two variables whose value says where and when it is: 1000 trajectory + time, and the column."""
    when = 1000.0 * np.arange(trajectories)[:, None] + np.arange(times)
    shape = (trajectories, times, rows, columns)
    a = np.broadcast_to(when[..., None, None], shape).astype(np.float32)
    b = np.broadcast_to(np.arange(columns, dtype=np.float32), shape)
    dims = ("experiment", "time", "y", "x")
    return xr.Dataset({"a": (dims, a), "b": (dims, b)}, {"time": 0.5 * np.arange(times)})


def test_windows_are_consecutive_and_stay_in_their_trajectory():
    data = Trajectories.from_dataset(counting())
    assert data.dt == 0.5 and data.states.shape == (3, 40, 2, 4, 5)
    windows, weight = data.windows(500, 3, torch.Generator().manual_seed(0))
    when = windows[:, :, 0, 0, 0]
    assert weight is None and torch.equal(when[:, 1:] - when[:, :-1], torch.ones(500, 2))
    # Every start occurs: 3 x 38 of them, each missed with probability exp(-500/114), so 1.4 are missed on average.
    assert len(when[:, 0].unique()) > 100


def test_a_gap_in_time_is_never_straddled():
    ds = counting(trajectories=1).isel(time=[*range(10), *range(15, 30)])
    data = Trajectories.from_dataset(ds)
    windows, _ = data.windows(300, 4, torch.Generator().manual_seed(0))
    when = windows[:, :, 0, 0, 0]
    assert torch.equal(when[:, 3] - when[:, 0], torch.full((300,), 3.0))
    with pytest.raises(DataError, match="no 16 consecutive"):
        data.windows(1, 16, torch.Generator())


def test_held_out_are_whole_trajectories_or_the_last_times():
    several = Trajectories.from_dataset(counting(trajectories=10)).split(0.2)
    assert [len(part.states) for part in several] == [8, 2]
    assert float(several[0].states[:, :, 0].max()) < float(several[1].states[:, :, 0].min())
    first, second = Trajectories.from_dataset(counting(trajectories=1)).split(0.25)
    assert (first.states.shape[1], second.states.shape[1]) == (30, 10)
    assert float(second.states[:, :, 0].min()) == 30.0
    with pytest.raises(DataError, match="cannot be split"):
        Trajectories.from_dataset(counting(times=3, trajectories=1)).split(0.1)


def test_no_data_cells_weigh_nothing():
    ds = counting()
    ds = ds.where(xr.DataArray(np.arange(5) != 1, dims="x"))
    data = Trajectories.from_dataset(ds)
    windows, weight = data.windows(7, 2, torch.Generator().manual_seed(0))
    assert bool(torch.isfinite(windows).all())
    expected = torch.ones(7, 2, 4, 5)
    expected[..., 1] = 0
    assert torch.equal(weight, expected)
    # Columns 0, 2, 3, 4 have mean 2.25 and variance 2.1875.
    state = data.standardisation()
    assert state.mean[1] == pytest.approx(2.25) and state.std[1] == pytest.approx(2.1875**0.5)


def test_patches_come_from_everywhere_and_keep_their_weights():
    data = Trajectories.from_dataset(counting())
    windows, _ = data.windows(200, 2, torch.Generator().manual_seed(0), patch=(2, 3))
    assert windows.shape == (200, 2, 2, 2, 3)
    assert torch.equal(windows[..., 1, :, 2] - windows[..., 1, :, 0], torch.full((200, 2, 2), 2.0))
    assert set(windows[:, 0, 1, 0, 0].tolist()) == {0.0, 1.0, 2.0}
    with pytest.raises(DataError, match="does not fit"):
        data.windows(1, 2, torch.Generator(), patch=(5, 3))


def test_transforms_are_applied_and_datetimes_are_read():
    ds = counting(trajectories=1).isel(experiment=0)[["b"]]
    ds = ds.assign_coords(time=np.datetime64("2020-01-01", "ns") + np.arange(40) * np.timedelta64(3600, "s"))
    space = Space.from_dataset(ds, transforms={"b": LogOnePlus()})
    data = Trajectories.from_dataset(ds, space)
    assert data.dt == 3600.0
    assert torch.allclose(data.states[0, 0, 0, 0], torch.log1p(torch.arange(5.0)))


def test_standardisation_is_affine_per_channel_and_exact():
    x = torch.randn(4, 2, 3, 5, dtype=torch.float64)
    s = Standardisation((1.0, -2.0), (3.0, 0.5), grid_dims=2)
    assert torch.allclose(s.decode(s.encode(x)), x, atol=1e-12)
    assert torch.allclose(s.encode(x)[:, 1], (x[:, 1] + 2) / 0.5)
    with pytest.raises(ValueError, match="positive"):
        Standardisation((0.0,), (0.0,))


def test_every_channel_has_its_own_moments():
    x = torch.tensor([1.0, 10.0, -5.0]) + torch.tensor([2.0, 0.1, 1.0]) * torch.randn(
        20, 50, 3, generator=torch.Generator().manual_seed(0)
    )
    state = Trajectories(x, Space.scalars("a", "b", "c"), 1.0).standardisation()
    flat = x.flatten(0, 1).double()
    assert state.mean == pytest.approx(tuple(flat.mean(0).tolist()), rel=1e-6)
    assert state.std == pytest.approx(tuple(flat.std(0, correction=0).tolist()), rel=1e-6)
    unit = state.encode(flat).std(0, correction=0)
    assert torch.allclose(unit, torch.ones(3, dtype=torch.float64), atol=1e-6)


def test_a_simulator_and_bad_input():
    data = Trajectories.of(LinearGaussian.scalar(0.9, 1.0), Simulation(50, 21, 30, seed=3))
    assert data.states.shape == (50, 21, 1)
    # Stationary variance 1 / (1 - 0.81); 50 trajectories of about 21 (1 - 0.9) / (1 + 0.9) = 1.1 independent values.
    assert data.standardisation().std[0] ** 2 == pytest.approx(1 / 0.19, rel=5 * (2 / 55) ** 0.5)
    assert data.increments().std[0] ** 2 == pytest.approx(2 * 0.1 / 0.19, rel=5 * (2 / 1000) ** 0.5)
    with pytest.raises(DataError, match="time dimension"):
        Trajectories.from_dataset(counting().isel(time=0))
    with pytest.raises(DataError, match="must increase"):
        Trajectories.from_dataset(counting().isel(time=[1, 0, 2]))
    with pytest.raises(DataError, match="list was given"):
        Trajectories.of([1, 2], Simulation())
