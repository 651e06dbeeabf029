"""Lost tracks are counted where an error leaves the reference's behind for a whole window."""

import numpy as np
import xarray as xr

from benchmarks.tracks import lost_tracks


def test_a_lost_track_is_found():
    time = np.arange(200.0)
    truth = xr.Dataset({"x": (("experiment", "time"), np.zeros((3, 200)))}, {"time": time})
    exact = xr.Dataset({"x_mean": (("experiment", "time"), np.full((3, 200), 1.0))}, {"time": time})
    error = np.full((3, 200), 1.2)
    error[1, 100:160] = 5.0
    method = xr.Dataset({"x_mean": (("experiment", "time"), error)}, {"time": time})
    tree = xr.DataTree.from_dict({"truth": truth, "exact": exact, "method": method})
    assert lost_tracks(tree, "method", "exact") == (1, 5.0)
    assert lost_tracks(tree, "exact", "exact")[0] == 0
