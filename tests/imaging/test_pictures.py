"""Phantoms and pictures: ranges, seeds, files."""

import gzip
import struct

import numpy as np
import pytest
import torch

from assimilate.errors import DataError, UserError
from imaging.phantoms import Phantoms, volume
from imaging.pictures import Pictures, read_idx


def total_variation(x):
    return (x.diff(dim=-1).abs().mean((1, 2, 3)) + x.diff(dim=-2).abs().mean((1, 2, 3))).mean()


def test_phantoms_lie_in_range_and_belong_to_their_seed():
    law = Phantoms(32)
    first, again = (law(6, torch.Generator().manual_seed(3)) for _ in range(2))
    assert torch.equal(first, again)
    assert first.shape == (6, 1, 32, 32) and float(first.min()) >= 0 and float(first.max()) <= 1
    assert not torch.equal(first, law(6, torch.Generator().manual_seed(4)))


def test_flat_phantoms_are_piecewise_constant_and_textured_ones_are_not():
    """Flat: most neighbours are equal. Textured: most neighbours inside the body differ."""
    flat, textured = (Phantoms(64, style)(16, torch.Generator().manual_seed(1)) for style in ("flat", "textured"))

    def equal(x):
        inside = (x[..., :-1] > 0) & (x[..., 1:] > 0)
        return float((x.diff(dim=-1).abs() < 1e-6)[inside].double().mean())

    assert equal(flat) > 0.6 > 0.4 > equal(textured)
    assert total_variation(textured) > total_variation(flat)


def test_a_phantom_keeps_its_shape_at_another_size():
    """The same random numbers at twice the pixels: the same picture, up to the softened edges."""
    small, large = (Phantoms(size, "flat")(4, torch.Generator().manual_seed(1)) for size in (32, 64))
    assert float((torch.nn.functional.avg_pool2d(large, 2) - small).abs().mean()) < 0.01


def test_neighbouring_slices_of_a_volume_are_alike():
    x = volume(12, 32, torch.Generator().manual_seed(0))
    assert x.shape == (12, 32, 32) and float(x.min()) >= 0 and float(x.max()) <= 1
    assert float(x.diff(dim=0).abs().mean()) < 0.3 * float((x[0] - x[-1]).abs().mean() + x.diff(dim=1).abs().mean())


def test_an_idx_file_plain_and_zipped(tmp_path):
    values = np.arange(2 * 3 * 4, dtype=np.uint8).reshape(2, 3, 4)
    content = struct.pack(">IIII", 0x0803, 2, 3, 4) + values.tobytes()
    (tmp_path / "a-idx3-ubyte").write_bytes(content)
    (tmp_path / "a-idx3-ubyte.gz").write_bytes(gzip.compress(content))
    for name in ("a-idx3-ubyte", "a-idx3-ubyte.gz"):
        read = read_idx(tmp_path / name)
        assert read.shape == (2, 1, 3, 4)
        assert torch.allclose(read[:, 0] * 255, torch.from_numpy(values).float())
    (tmp_path / "bad").write_bytes(content[:-1])
    with pytest.raises(DataError, match="not an idx file"):
        read_idx(tmp_path / "bad")
    with pytest.raises(DataError, match="none is downloaded"):
        read_idx(tmp_path / "absent")


def test_a_folder_gives_crops_of_its_pictures(tmp_path):
    for k in range(2):
        np.save(tmp_path / f"{k}.npy", np.full((20, 24), 0.25 * (k + 1), dtype=np.float32))
    crops = Pictures("folder", count=6, size=16, path=str(tmp_path)).load()
    assert crops.shape == (6, 1, 16, 16)
    assert sorted({round(float(v), 2) for v in crops.unique()}) == [0.25, 0.5]
    with pytest.raises(DataError, match="no folder"):
        Pictures("folder", path=str(tmp_path / "none")).load()


def test_wrong_sources_are_named():
    with pytest.raises(UserError, match="expected one of"):
        Pictures("fotos")
    with pytest.raises(UserError, match="need 'path'"):
        Pictures("folder")


def test_photographs_where_the_package_is_there():
    pytest.importorskip("skimage")
    x = Pictures("scikit-image", size=64, names=("camera", "coins")).load()
    assert x.shape == (2, 1, 64, 64) and float(x.min()) >= 0 and float(x.max()) <= 1
