"""The SEVIR archive: a small one in its layout, read lazily; splits, means, gaps, errors."""

import base64
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from dynamics import DataError, Space
from dynamics.sevir import THRESHOLDS, Images, open_sevir

FRAMES, SIDE = 9, 12
COLUMNS = (
    "id,file_name,file_index,img_type,time_utc,minute_offsets,episode_id,event_id,event_type,llcrnrlat,llcrnrlon,"
    "urcrnrlat,urcrnrlon,proj,size_x,size_y,height_m,width_m,data_min,data_max,pct_missing"
)
OFFSETS = ":".join(str(minute) for minute in range(-20, 25, 5))
EVENTS = [  # id, file, index, time, pct_missing; not in order of time
    ("S100", "vil/2018/SEVIR_VIL_STORMEVENTS_2018_0101_0630.h5", 1, "2018-04-01 12:00:00", 0.0),
    ("R200", "vil/2018/SEVIR_VIL_STORMEVENTS_2018_0101_0630.h5", 0, "2018-03-01 12:00:00", 0.0),
    ("S300", "vil/2019/SEVIR_VIL_STORMEVENTS_2019_0101_0630.h5", 2, "2019-06-01 00:00:00", 0.0),
    ("S400", "vil/2019/SEVIR_VIL_STORMEVENTS_2019_0101_0630.h5", 0, "2019-06-02 12:00:00", 0.0),
    ("S500", "vil/2019/SEVIR_VIL_STORMEVENTS_2019_0101_0630.h5", 1, "2019-05-01 12:00:00", 1.5),
    ("S600", "vil/2018/SEVIR_VIL_STORMEVENTS_2018_0101_0630.h5", 2, "2018-05-01 12:00:00", 0.0),
    ("S600", "vil/2018/SEVIR_VIL_STORMEVENTS_2018_0101_0630.h5", 2, "2018-05-01 12:00:00", 0.0),
]


def codes(name):
    """The images of an event as they are stored, (row, column, frame)."""
    found = np.random.default_rng(zlib.crc32(name.encode())).integers(0, 255, (SIDE, SIDE, FRAMES), dtype=np.uint8)
    if name == "S500":
        found[0, 0, 4] = 255
    return found


@pytest.fixture
def archive(tmp_path):
    """An archive of six events, one of them twice in the catalogue; all have rows of another sensor too."""
    import netCDF4

    lines = [COLUMNS]
    for name, file, index, time, missing in EVENTS:
        for kind, place in (("ir069", file.replace("vil", "ir069")), ("vil", file)):
            lines.append(
                f"{name},{place},{index},{kind},{time},{OFFSETS},,,Hail,30.5,-98.0,34.0,-94.0,+proj=laea,"
                f"{SIDE},{SIDE},12000.0,12000.0,0,254,{missing}"
            )
    (tmp_path / "CATALOG.csv").write_text("\n".join(lines) + "\n")
    for file in {event[1] for event in EVENTS}:
        path = tmp_path / "data" / file
        path.parent.mkdir(parents=True, exist_ok=True)
        with netCDF4.Dataset(path, "w") as ds:
            for dim, length in (("n", 3), ("row", SIDE), ("column", SIDE), ("frame", FRAMES)):
                ds.createDimension(dim, length)
            ds.createVariable("id", str, ("n",))
            stored = ds.createVariable("vil", "u1", ("n", "row", "column", "frame"), zlib=True)
            for name, other, index, *_ in EVENTS:
                if other == file:
                    stored[index] = codes(name)
    return tmp_path


def test_values_and_labels(archive):
    ds = open_sevir(archive, size=SIDE, minutes=5)
    assert ds.vil.dims == ("experiment", "time", "y", "x") and ds.vil.dtype == np.float32
    # In order of time, without the event with a gap and without the one that occurs twice.
    assert list(ds.event.values) == ["R200", "S100", "S300", "S400"]
    assert list(ds.time.values) == list(range(-20, 25, 5))
    assert str(ds.event_time.values[0]).startswith("2018-03-01T12") and ds.event_type.values[0] == "Hail"
    assert float(ds.south[0]) == 30.5 and float(ds.east[0]) == -94.0 and ds.west.units == "degrees_east"
    np.testing.assert_allclose(ds.x, np.arange(SIDE) + 0.5)
    assert ds.x.units == "km"
    for n, name in enumerate(ds.event.values):
        np.testing.assert_array_equal(np.moveaxis(codes(name), -1, 0), np.round(255 * ds.vil[n].values))
    assert Space.from_dataset(ds, mask=None).event_shape == (1, SIDE, SIDE)
    assert Space.from_dataset(ds, mask=None).to_tensor(ds).shape == (4, FRAMES, 1, SIDE, SIDE)


def test_many_threads_read_at_once(archive):
    """HDF5 crashes where two threads open and close files at a time; dask reads in threads."""
    ds = open_sevir(archive, size=SIDE, minutes=5)
    expected = ds.vil.values
    with ThreadPoolExecutor(8) as pool:
        for found in pool.map(lambda _: open_sevir(archive, size=SIDE, minutes=5).vil.values, range(48)):
            np.testing.assert_array_equal(found, expected)


def test_reduced_version(archive):
    ds = open_sevir(archive, size=SIDE // 3, minutes=10)
    assert list(ds.time.values) == [-20, -10, 0, 10, 20]
    np.testing.assert_allclose(ds.x, [1.5, 4.5, 7.5, 10.5])
    whole = np.moveaxis(codes("R200")[..., ::2], -1, 0).astype(float) / 255
    means = whole.reshape(5, 4, 3, 4, 3).mean((2, 4))
    np.testing.assert_allclose(ds.vil[0], means, atol=1e-6)
    # A part of an event is the part of the whole.
    np.testing.assert_array_equal(ds.vil[0, 2, 1:, :2].values, ds.vil[0].values[2, 1:, :2])


def test_nothing_is_read_before_it_is_used(archive, monkeypatch):
    read = []
    original = Images._read
    monkeypatch.setattr(Images, "_read", lambda self, n: (read.append(n), original(self, n))[1])
    ds = open_sevir(archive, size=4)
    chosen = ds.isel(experiment=[2], time=slice(1, 3))
    assert ds.vil.chunks is not None and read == []
    assert chosen.vil.values.shape == (1, 2, 4, 4)
    assert read == [2]


def test_missing_pixels(archive):
    ds = open_sevir(archive, size=SIDE, minutes=5, events=["S500"], complete=False)
    gaps = np.isnan(ds.vil.values[0])
    assert gaps.sum() == 1 and gaps[4, 0, 0]
    # A mean over a missing pixel is missing.
    gaps = np.isnan(open_sevir(archive, size=4, minutes=5, events=["S500"], complete=False).vil.values[0])
    assert gaps.sum() == 1 and gaps[4, 0, 0]
    # The means at 10 minutes still have the frame at 0.
    assert np.isnan(open_sevir(archive, size=4, events=["S500"], complete=False).vil.sel(time=0).values).any()


def test_splits_by_date(archive):
    parts = {split: list(open_sevir(archive, size=4, split=split).event.values) for split in ("train", "test")}
    # The date itself still trains, as published.
    assert parts["test"] == ["S400"]
    assert set(parts["train"]) <= {"R200", "S100", "S300"}


def test_a_tenth_of_the_days_is_validation(archive):
    catalogue = archive / "CATALOG.csv"
    lines = [COLUMNS]
    for day in range(400):
        time = np.datetime64("2018-01-01") + day
        for part in ("00", "12"):
            name = f"S{day}{part},{EVENTS[0][1]},0,vil,{time} {part}:00:00"
            lines.append(f"{name},{OFFSETS},,,,30,-98,34,-94,,12,12,12000,12000,0,1,0")
    catalogue.write_text("\n".join(lines) + "\n")
    found = {split: open_sevir(archive, size=4, split=split).event_time for split in ("train", "validation")}
    days = {split: set(times.values.astype("M8[D]").tolist()) for split, times in found.items()}
    assert not days["train"] & days["validation"] and len(days["train"] | days["validation"]) == 400
    # 400 days of which each is validation with probability 0.1: 40 +- 6, here within 4 of those.
    assert 16 < len(days["validation"]) < 64
    assert found["validation"].size == 2 * len(days["validation"])


def test_some_events(archive):
    assert list(open_sevir(archive, size=4, events=["S400", "R200"]).event.values) == ["S400", "R200"]
    assert list(open_sevir(archive, size=4, events=2).event.values) == ["R200", "S400"]


def test_without_the_folder_data(archive):
    (archive / "data" / "vil").rename(archive / "vil")
    assert open_sevir(archive, size=4).vil.sizes["experiment"] == 4


# As h5py writes a file, without names of dimensions: 3 events of 6 x 6 x 5, values 0, 1, ... 250, 0, ..., one gap.
PLAIN = (
    "c-rgqaB<`1lHy_j0S*oZ76t(ZWbhvfJmgUMF!=;1%?PDCp!5nRm^dR?P68?}2sIyFT}Y6tD@gT!Gyt>5fCWOMx^5JV6yV|N7yzOppnO<*I>CghE"
    ";9u}mu2Rlq)P`f?PX+Og_ywz<3ns_WP}JXL)9T@4zN;TAOUh3E0oW~#01vB0oBjU2xNi*8=8$X26a3H`}w;t0(}N`Jc9x=e)X{YTERM+hEdZM8(O"
    ";ZfY2<c>52`FW<^VHxa9@FMhn2L;DE|Q(<3t^J#sTBfccDYcW{79?3C2BoWzn;257Mh6jgwj%ft$cQ%0z@Y*1^VCK!xH?hpdOhQUTb#uaglTNu3mG"
    "cYnSv#_$Ub8vET^YHTV3kV7ci-?MeOGrvd%gD;fD<~={tEj4}YiMd|>*(s~8yFfHo0yuJTUc6I+t}LKJ2*NyySTc!dw6<z`}q3#2LuKMhlGZOM?^"
    "+N$Hd0PCnP2%0~1zyMrKxaPHtX)L19sGNoiSmMP*fWO>JF$Lt|5OOKV$uM`u@ePj6rUgo%?TPnkMx`iz;gX3v>BZ~lUXixw|gx@`H1m8({-S-WoihK"
    "-vxU-Phg4|V>Qt=qQm*tu)>p1u3_A2@jE@R6g(j-NPr>hzhj=gwcac<J($tJkjIxOwaLoxAt$KX~})@sp>|p1*kc>h+tq@7{m-`04YPuiw7^`1y;j"
    "p)h}9&;qFQ|5GPG=o$+3x6&SuW};Cr3P!;w7=i%Q?`8zH7Sa3N`$;s14cZ~tk2W4a2pmPz$3&#Q7EV+?q4qH2XjG4aQ7{Td!6+C7qhJ(_f>AIEM"
    "gdg-0F-f27Xt"
)


def test_plain_hdf5(tmp_path):
    line = "S2,plain.h5,2,vil,2018-04-01 12:00:00,-10:-5:0:5:10,,,,,,,,,6,6,6000,6000,0,255,0"
    (tmp_path / "CATALOG.csv").write_text(f"{COLUMNS}\n{line}\n")
    (tmp_path / "plain.h5").write_bytes(zlib.decompress(base64.b85decode(PLAIN)))
    found = open_sevir(tmp_path, size=6, minutes=5).vil.values[0]
    stored = (np.arange(3 * 6 * 6 * 5) % 251).reshape(3, 6, 6, 5)[2].astype(float)
    stored[0, 0, 0] = np.nan
    np.testing.assert_allclose(found, np.moveaxis(stored, -1, 0) / 255, rtol=1e-6)


def test_reduced_archive_with_the_full_catalogue(tmp_path):
    """SEVIR-LR: half of the frames in the files, the offsets of the full archive in the catalogue."""
    line = "S2,plain.h5,0,vil,2018-04-01 12:00:00,-20:-15:-10:-5:0:5:10:15:20,,,,,,,,,384,384,384000,384000,0,255,0"
    (tmp_path / "CATALOG.csv").write_text(f"{COLUMNS}\n{line}\n")
    (tmp_path / "plain.h5").write_bytes(zlib.decompress(base64.b85decode(PLAIN)))
    ds = open_sevir(tmp_path, size=6, minutes=10)
    assert list(ds.time.values) == [-20, -10, 0, 10, 20] and float(ds.x[1] - ds.x[0]) == 64


def test_published_thresholds():
    assert THRESHOLDS["published"] == (0.3, 0.5)
    assert [round(255 * one) for one in THRESHOLDS["codes"]] == [20, 40]


def test_errors_are_one_clear_line(archive):
    file = archive / "data" / EVENTS[2][1]

    def fails(message, **settings):
        with pytest.raises(DataError, match=message) as caught:
            open_sevir(archive, **{"size": 4, **settings})
        assert "\n" not in str(caught.value)

    fails("divisor of 12", size=5)
    fails("divisor of 12", size=24)
    fails("9 frames 5 minutes apart", minutes=15)
    fails("9 frames 5 minutes apart", minutes=7)
    fails("expected 'train', 'validation', 'test'", split="tset")
    fails("no event 'S101'.*did you mean 'S100'", events=["S101"])
    fails("7 events were asked for", events=7)
    text = (archive / "CATALOG.csv").read_text()
    (archive / "CATALOG.csv").write_text(text.replace(f"{EVENTS[3][1]},0,vil", f"{EVENTS[3][1]},3,vil"))
    fails("has 3 events; the catalogue has 'S400' at index 3")
    (archive / "CATALOG.csv").write_text(text.replace("file_index", "place"))
    fails("no column 'file_index'")
    (archive / "CATALOG.csv").write_text(text.replace("2018-04-01 12:00:00", "yesterday"))
    fails("not a readable catalogue")
    (archive / "CATALOG.csv").write_text(text.replace(OFFSETS, "-5:0:5"))
    fails("9 frames and the catalogue 3 minute_offsets")
    (archive / "CATALOG.csv").write_text(text)
    file.write_bytes(b"not HDF5")
    fails("not a readable HDF5 file")
    file.unlink()
    fails(r"0101_0630.h5: no such file; the catalogue has event 'S300'")
    with pytest.raises(DataError, match=r"no CATALOG\.csv"):
        open_sevir(Path(archive) / "data")
