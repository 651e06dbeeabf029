"""Windows of trajectories on disk: the interface and the windows of trajectories in memory."""

import numpy as np
import pytest
import torch
import xarray as xr

from assimilate.errors import DataError
from assimilate.learning import samples
from assimilate.learning.archive import Recent, StoredTrajectories
from assimilate.learning.samples import Simulation, Trajectories
from dynamics.vil import SimulatedVIL, simulated_sevir


def counting(trajectories=12, times=10, rows=4, columns=5):
    """A lazy Dataset whose value says where and when it is: 1000 trajectory + 10 time + column / 10; and a log."""
    import dask.array as da

    read = []

    class Source:
        shape, ndim, dtype = (trajectories, times, rows, columns), 4, np.dtype("f4")

        def __getitem__(self, key):
            index = [np.arange(n)[k] for n, k in zip(self.shape, key, strict=True)]
            read.extend(index[0].tolist())
            n, t, _, c = np.meshgrid(*index, indexing="ij")
            return (1000 * n + 10 * t + c / 10).astype("f4")

    values = da.from_array(Source(), chunks=(1, -1, -1, -1), name="counting", meta=np.empty((0,) * 4, "f4"))
    return xr.Dataset({"a": (("experiment", "time", "y", "x"), values)}, {"time": 0.5 * np.arange(times)}), read


def test_nothing_is_read_before_a_draw():
    ds, read = counting()
    data = StoredTrajectories.from_dataset(ds)
    train, held_out = data.split(0.25)
    assert read == [] and (train.chosen, held_out.chosen) == (tuple(range(9)), (9, 10, 11)) and data.dt == 0.5
    train.windows(8, 3, torch.Generator().manual_seed(0))
    # Eight windows are cut from two trajectories.
    assert 1 <= len(read) <= 2


def test_windows_are_consecutive_and_all_occur():
    data, _ = StoredTrajectories.from_dataset(counting()[0]).split(0.25)
    rng = torch.Generator().manual_seed(1)
    found = torch.cat([data.windows(40, 3, rng)[0] for _ in range(25)])
    first = found[:, :, 0, 0, 0]
    assert found.shape == (1000, 3, 1, 4, 5)
    torch.testing.assert_close(first[:, 1:] - first[:, :-1], torch.full((1000, 2), 10.0))
    # 9 trajectories x 8 starts, uniformly: chi-square over the trajectories, 250 independent draws of which have a
    # mean of 8 and a standard deviation of 4; over the starts 1000 draws.
    names = (first[:, 0] / 1000).long().bincount(minlength=9) / 4
    starts = (first[:, 0] % 1000 / 10).round().long().bincount(minlength=8)
    assert ((names - 250 / 9) ** 2 / (250 / 9)).sum() < 8 + 4 * 4
    assert ((starts - 125.0) ** 2 / 125).sum() < 7 + 4 * 14**0.5


def test_patches_are_parts_of_the_grid():
    data = StoredTrajectories.from_dataset(counting()[0])
    found, weight = data.windows(30, 2, torch.Generator().manual_seed(0), patch=(2, 3))
    assert found.shape == (30, 2, 1, 2, 3) and weight is None
    torch.testing.assert_close(found[..., 1:] - found[..., :-1], torch.full((30, 2, 1, 2, 2), 0.1), atol=2e-3, rtol=0)
    corners = (found[:, 0, 0, 0, 0] % 10 * 10).round()
    assert set(corners.tolist()) == {0.0, 1.0, 2.0}


def test_a_draw_does_not_depend_on_what_was_read_before():
    alone = StoredTrajectories.from_dataset(counting()[0], cached=1)
    warm = StoredTrajectories.from_dataset(counting()[0])
    warm.windows(100, 2, torch.Generator().manual_seed(5))
    both = [data.windows(16, 2, torch.Generator().manual_seed(9))[0] for data in (alone, warm)]
    assert torch.equal(*both)


def test_memory_keeps_what_was_used_last():
    recent = Recent(2)
    for index in (1, 2):
        recent.put(index, torch.tensor(float(index)))
    assert recent.get(1) is not None
    recent.put(3, torch.tensor(3.0))
    assert recent.get(2) is None and recent.get(1) is not None and recent.get(3) is not None


def test_what_is_in_memory_is_not_read_again():
    ds, read = counting()
    data = StoredTrajectories.from_dataset(ds)
    for seed in (0, 0, 0):
        data.windows(8, 3, torch.Generator().manual_seed(seed))
    assert len(read) == len(set(read))


def test_moments_are_those_of_trajectories_in_memory():
    ds, _ = counting()
    stored, loaded = StoredTrajectories.from_dataset(ds), Trajectories.from_dataset(ds.load())
    assert stored.standardisation() == loaded.standardisation() and stored.increments() == loaded.increments()
    assert stored.described(0.1) == loaded.described(0.1)
    assert torch.equal(stored.states, loaded.states) and torch.equal(stored.starts(4), loaded.starts(4))


def test_gaps_in_time_are_not_straddled():
    ds, _ = counting()
    data = StoredTrajectories.from_dataset(ds.isel(time=[0, 1, 2, 6, 7, 8, 9]))
    first = data.windows(200, 3, torch.Generator().manual_seed(0))[0][:, :, 0, 0, 0]
    torch.testing.assert_close(first[:, 2] - first[:, 0], torch.full((200,), 20.0))


def test_errors():
    ds, _ = counting()
    with pytest.raises(DataError, match="expected experiment"):
        StoredTrajectories.from_dataset(ds.isel(experiment=0))
    with pytest.raises(DataError, match="cannot be split"):
        StoredTrajectories.from_dataset(ds).split(0.0)
    with pytest.raises(DataError, match="no 11 consecutive"):
        StoredTrajectories.from_dataset(ds).windows(1, 11, torch.Generator())


def test_large_data_sets_are_read_as_they_are_drawn(monkeypatch):
    ds, read = counting()
    assert isinstance(Trajectories.of(ds, Simulation()), Trajectories)
    read.clear()
    monkeypatch.setattr(samples, "IN_MEMORY", 100)
    found = Trajectories.of(ds, Simulation())
    assert isinstance(found, StoredTrajectories) and read == [] and Trajectories.of(found, Simulation()) is found


def test_a_transition_learns_from_stored_trajectories():
    from assimilate.learning.fit import FitSettings
    from assimilate.learning.transition_fit import TransitionFit, fit_transition

    data = StoredTrajectories.from_dataset(simulated_sevir(events=6, size=16, frames=5))
    few = FitSettings(steps=2, batch=4, held_out_batch=4)
    small = {"widths": (4, 4)}
    settings = TransitionFit(
        held_out=0.2, architecture="unet", forecast_network=small, denoiser_network=small, forecast=few, denoiser=few,
        patch=(8, 8), stored=4,
    )  # fmt: skip
    learned = fit_transition(data, settings)
    assert learned.dt == 10 and learned.space.event_shape == (1, 16, 16) and learned.data["trajectories"] == 6


def test_a_simulator_with_sequences_gives_whole_sequences():
    system = SimulatedVIL(16)
    data = Trajectories.simulated(system, trajectories=3, states=3, spinup=1, every=2, seed=4)
    assert data.states.shape == (3, 3, 1, 16, 16) and data.dt == 20
    from dynamics import Streams

    whole = system.events((3, 1), 6, rng=Streams(4, experiments=3, members=1))[:, 0]
    torch.testing.assert_close(data.states, whole[:, 1::2])
