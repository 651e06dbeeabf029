"""Results that cannot be written: refused in one line, with everything that is there left as it was."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from assimilate.engine.restart import Journal
from assimilate.errors import UserError
from observations import GaussianNoise
from tests.lorenz_run import TIMES, analysed, few, observed, speaks


def files(folder):
    """All files below a folder, with what is in them."""
    found = sorted(p for p in folder.rglob("*"))
    return {str(p): hashlib.sha256(p.read_bytes()).hexdigest() if p.is_file() else "folder" for p in found}


@pytest.mark.parametrize(
    "name",
    ["a.grib", "a", "a.NC", ".nc", "file/a.nc", "folder.nc", "finished.nc", "text.nc", "text.zarr", "a" * 300 + ".nc"],
)
@pytest.mark.parametrize("change", [{}, {"resume": True}, {"overwrite": True}], ids=["new", "resume", "overwrite"])
def test_a_result_that_cannot_be_written_is_refused_and_changes_nothing(tmp_path, name, change):
    (tmp_path / "file").write_text("precious")
    (tmp_path / "text.nc").write_text("precious")
    (tmp_path / "text.zarr").write_text("precious")
    (tmp_path / "folder.nc").mkdir()
    (tmp_path / "folder.nc" / "notes").write_text("precious")
    analysed(out=tmp_path / "finished.nc").close()
    if name in ("finished.nc", "text.nc") and change == {"overwrite": True}:
        return
    before = files(tmp_path)
    with pytest.raises(UserError) as caught:
        analysed(out=tmp_path / name, **({"seed": 2} | change))
    assert speaks(caught.value) and files(tmp_path) == before


@given(
    change=st.sampled_from(
        [
            {"members": 0},
            {"keep": -1},
            {"dtype": torch.int32},
            {"initial": torch.zeros(1, 4, 2)},
            {"likelihood": GaussianNoise(1.0)},
            {"start": 1.0},
            {"checkpoint_every": 0},
            {"observations": observed(np.zeros((4, 2)))},
            {"observations": observed(np.full((4, 3), np.inf))},
            {"observations": observed(np.full((4, 3), "a"))},
            {"observations": observed(times=TIMES[::-1].copy())},
        ]
    ),
    overwrite=st.booleans(),
)
@few
def test_a_run_that_cannot_be_made_writes_nothing_and_keeps_what_is_there(tmp_path_factory, change, overwrite):
    folder = tmp_path_factory.mktemp("out")
    if overwrite:
        analysed(out=folder / "a.nc").close()
    before = files(folder)
    with pytest.raises(UserError):
        analysed(**change, out=folder / "a.nc", overwrite=overwrite)
    assert files(folder) == before


def test_what_is_overwritten_stays_until_the_new_result_is_whole(tmp_path):
    class Stop(Exception):
        pass

    def stop(index):
        if index == 2:
            raise Stop

    out = tmp_path / "a.nc"
    analysed(out=out).close()
    before = out.read_bytes()
    with pytest.raises(Stop):
        analysed(out=out, overwrite=True, seed=2, checkpoint_every=1, progress=stop)
    assert out.read_bytes() == before and Journal(out).folder.is_dir()
    resumed, done = [], []
    with analysed(out=out, resume=True, seed=2, progress=resumed.append) as result:
        done = result["x"].values
    assert resumed == [2, 3] and Path(Journal(out).folder).exists() is False
    np.testing.assert_array_equal(done, analysed(seed=2)["x"].values)
