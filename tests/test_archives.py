"""Archives of events in a card: names, splits, parts, and training data that are read as they are drawn."""

import tomllib

import numpy as np
import pytest

from assimilate.cards import sources
from assimilate.cards.card import Truth
from assimilate.cards.files import CARDS_FOLDER, load, parse
from assimilate.cards.problem import prepare
from assimilate.cards.sources import Archive, archive_of, open_truth
from assimilate.cards.training import source_of
from assimilate.errors import DataError
from assimilate.learning import samples
from assimilate.learning.archive import StoredTrajectories

OFFSETS = ":".join(str(minute) for minute in range(-120, 125, 10))
TIMES = ("2018-03-01 12:00:00", "2018-04-01 12:00:00", "2019-06-02 12:00:00")


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """A reduced archive of three events, the last of them test data; every pixel has the frame's number as code."""
    import netCDF4

    folder = tmp_path_factory.mktemp("sevir")
    rows = [f"S{n},vil/all.h5,{n},vil,{time},{OFFSETS},0" for n, time in enumerate(TIMES)]
    header = "id,file_name,file_index,img_type,time_utc,minute_offsets,pct_missing"
    (folder / "CATALOG.csv").write_text("\n".join([header, *rows]) + "\n")
    (folder / "data" / "vil").mkdir(parents=True)
    with netCDF4.Dataset(folder / "data" / "vil" / "all.h5", "w") as ds:
        for dim, length in (("n", 3), ("row", 128), ("column", 128), ("frame", 25)):
            ds.createDimension(dim, length)
        stored = ds.createVariable("vil", "u1", ("n", "row", "column", "frame"), zlib=True)
        for n in range(3):
            stored[n] = np.broadcast_to(np.arange(25, dtype=np.uint8) + 50 * n, (128, 128, 25))
    return folder


def test_names():
    assert archive_of("sevir:a/b") == Archive("sevir", None, "a/b")
    assert archive_of("sevir-full-train:/x:y") == Archive("sevir-full", "train", "/x:y")
    assert archive_of("sevir-test:simulated") == Archive("sevir", "test", "simulated")
    assert archive_of("florence") is None and archive_of("sevir.nc") is None and archive_of("sevir-tset:x") is None


def test_a_truth_is_the_part_that_was_asked_for(root):
    told = Truth(data=f"sevir-test:{root}", time=["0", "30"], region={"y": [0, 16], "x": [8, 32]})
    data, space = open_truth(told)
    assert space.event_shape == (1, 16, 24) and data.vil.chunks is None
    assert list(data.event.values) == ["S2"] and list(data.time.values) == [0, 10, 20, 30]
    np.testing.assert_allclose(255 * data.vil[0, :, 3, 4], 100 + np.arange(12, 16), rtol=1e-6)


def test_a_path_beside_the_card(root):
    data, _ = open_truth(Truth(data=f"sevir-train:{root.name}", region={"x": [0, 8], "y": [0, 8]}), root.parent)
    assert set(data.event.values) <= {"S0", "S1"}


def test_the_card_takes_the_archive(root):
    card = load("sevir", [f"data.root={root}", "truth.region.experiment=[0,1]"])
    problem = prepare(card)
    assert problem.space.event_shape == (1, 64, 64) and problem.truth is not None
    assert problem.truth.sizes["time"] == 9 and problem.observations.sizes["time"] == 3
    known, _ = problem.initial()
    assert list(known["time"].values) == [-50, -40, -30, -20, -10, 0] and problem.start == 0
    assert problem.likelihood.operator.obs_size == round(0.1 * 64 * 64)
    # The same pixels at every step, with noise of the stated size.
    errors = 255 * problem.observations.observation.values - (100 + np.arange(13, 16))[:, None]
    assert float(np.abs(errors).std()) < 3 * 255 * 1e-4


def test_training_data_too_large_for_memory_are_read_as_they_are_drawn(root, monkeypatch):
    monkeypatch.setattr(samples, "IN_MEMORY", 2**20)
    monkeypatch.setattr(sources, "IN_MEMORY", 2**20)
    table = tomllib.loads((CARDS_FOLDER / "sevir.toml").read_text())
    for fit in table["fit"]:
        fit["data"] = "sevir:{root}"
    table["data"]["root"] = str(root)
    card = parse(table)
    for fit in card.fit:
        found = source_of(card, fit)
        assert isinstance(found, StoredTrajectories) and found.dt == 10 and len(found.chosen) == 3
        assert not found.recent.kept


def test_what_is_wrong_is_said_in_one_line(root, tmp_path):
    for name, message in [
        (f"sevir-test:{tmp_path}", r"has no CATALOG\.csv"),
        (f"sevir-full:{root}", "25 frames 10 minutes apart"),
        ("sevir-full-test:simulated", "use 'sevir:simulated'"),
    ]:
        with pytest.raises(DataError, match=message):
            open_truth(Truth(data=name))
