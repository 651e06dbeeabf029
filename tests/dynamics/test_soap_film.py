"""The soap-film sample against figures of its files, and the signs of its axes."""

import numpy as np
import pytest
import xarray as xr

from dynamics import DataError, Space, SpaceMismatch, open_dataset
from dynamics.datasets import soap_film

VALID = (3616, 3610, 3570, 3576, 3582)
"""Vectors with a positive flag in each frame."""


def test_flagged_vectors_are_missing():
    ds = open_dataset("soap-film")
    assert list(ds.data_vars) == ["u", "v"] and ds.u.dims == ("time", "y", "x") and ds.u.shape == (5, 63, 63)
    assert ds.u.chunks is not None
    assert ds.u.units == ds.v.units == "m s-1" and ds.x.units == ds.y.units == "mm"
    np.testing.assert_allclose(np.diff(ds.x), 0.31248, rtol=1e-4)
    np.testing.assert_allclose(np.diff(ds.y), 0.31248, rtol=1e-4)  # upwards
    for name in ("u", "v"):
        assert tuple(ds[name].notnull().sum(("y", "x")).values) == VALID
    assert ds.time.values.tolist() == [1.0, 2.0, 3.0, 4.0, 5.0]


def test_the_common_vectors_make_a_state():
    every, common = open_dataset("soap-film").load(), open_dataset("soap-film-common").load()
    kept = every.u.notnull().all("time")
    assert int(kept.sum()) == 3217
    xr.testing.assert_identical(common, every.where(kept))
    space = Space.from_dataset(common)
    assert space.event_shape == (2, 63, 63) and np.array_equal(~space.mask[0], kept.values)
    assert space.to_tensor(common).shape == (5, 2, 63, 63)
    # The flow stays below 0.12 m/s; the one vector of 0.23 m/s that has no flag is not among the common ones.
    assert float(abs(every.u).max()) > 0.2 and float(abs(common.u).max()) < 0.12 and float(abs(common.v).max()) < 0.12
    with pytest.raises(SpaceMismatch, match="only no-data cells"):
        Space.from_dataset(every).to_tensor(every)


def test_the_axes_have_the_right_signs():
    """The divergence is a fifth of the vorticity, and only with u along x and v along y upwards."""
    ds = soap_film()
    u, v = ds.u, ds.v
    divergence = u.differentiate("x") + v.differentiate("y")
    mirrored = u.differentiate("x") - v.differentiate("y")
    vorticity = v.differentiate("x") - u.differentiate("y")
    rms = [float(np.sqrt((part**2).mean())) for part in (divergence, mirrored, vorticity)]
    assert rms[0] < 0.3 * rms[1] and rms[0] < 0.3 * rms[2], rms


def test_a_name_that_is_no_sample():
    with pytest.raises(DataError, match="shipped samples are florence, soap-film, soap-film-common"):
        open_dataset("soap-bubble")
