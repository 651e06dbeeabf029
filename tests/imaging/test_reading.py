"""Images from files: values, units and scaling as stated; what cannot be read says so."""

import sys

import numpy as np
import pytest
import xarray as xr
from PIL import Image

from assimilate.errors import DataError
from imaging.reading import open_image

RNG = np.random.default_rng(0)
BYTES = RNG.integers(0, 256, (5, 7), dtype=np.uint8)
WORDS = RNG.integers(0, 65536, (5, 7), dtype=np.uint16)
COLOURS = RNG.integers(0, 256, (5, 7, 3), dtype=np.uint8)


@pytest.mark.parametrize("ending", ["png", "tif"])
def test_whole_numbers_become_parts_of_their_range(ending, tmp_path):
    for values, full in ((BYTES, 255), (WORDS, 65535)):
        file = tmp_path / f"{full}.{ending}"
        Image.fromarray(values).save(file)
        image = open_image(file)
        assert image.dims == ("y", "x") and image.dtype == np.float32
        assert image.attrs["units"] == "1" and str(full) in image.attrs["scaling"]
        np.testing.assert_allclose(image.values, values / full, atol=1e-7)


def test_floating_point_tiff_is_as_stored(tmp_path):
    values = RNG.normal(size=(4, 6)).astype(np.float32) * 1000
    Image.fromarray(values).save(tmp_path / "a.tiff")
    image = open_image(tmp_path / "a.tiff")
    np.testing.assert_array_equal(image.values, values)
    assert image.attrs["scaling"] == "values as stored"


def test_black_and_white(tmp_path):
    Image.fromarray(BYTES > 100).save(tmp_path / "a.png")
    np.testing.assert_array_equal(open_image(tmp_path / "a.png").values, (BYTES > 100).astype(np.float32))


def test_colour_is_kept_or_becomes_grey(tmp_path):
    Image.fromarray(COLOURS).save(tmp_path / "a.png")
    kept = open_image(tmp_path / "a.png", colour=True)
    assert kept.dims == ("channel", "y", "x") and kept["channel"].values.tolist() == ["red", "green", "blue"]
    np.testing.assert_allclose(kept.values, np.moveaxis(COLOURS, -1, 0) / 255, atol=1e-7)
    grey = open_image(tmp_path / "a.png")
    np.testing.assert_allclose(grey.values, COLOURS / 255 @ [0.299, 0.587, 0.114], atol=1e-6)
    assert "grey" in grey.attrs["scaling"]


def test_alpha_channels_must_say_nothing(tmp_path):
    opaque = np.concatenate([COLOURS, np.full((5, 7, 1), 255, np.uint8)], -1)
    Image.fromarray(opaque).save(tmp_path / "a.png")
    assert open_image(tmp_path / "a.png", colour=True).shape == (3, 5, 7)
    opaque[2, 2, 3] = 10
    Image.fromarray(opaque).save(tmp_path / "b.png")
    with pytest.raises(DataError, match="transparent in places"):
        open_image(tmp_path / "b.png")


def test_sixteen_bit_colour_is_not_cut_to_eight(tmp_path):
    tifffile = pytest.importorskip("tifffile")
    deep = RNG.integers(0, 65536, (5, 7, 3), dtype=np.uint16)
    tifffile.imwrite(tmp_path / "a.tif", deep, photometric="rgb")
    image = open_image(tmp_path / "a.tif", colour=True)
    np.testing.assert_allclose(image.values, np.moveaxis(deep, -1, 0) / 65535, atol=1e-7)
    # A hand-made header is enough: the refusal looks at nothing else.
    head = b"\x89PNG\r\n\x1a\n\x00\x00\x00\rIHDR" + (7).to_bytes(4, "big") + (5).to_bytes(4, "big") + b"\x10\x02"
    (tmp_path / "a.png").write_bytes(head + bytes(20))
    with pytest.raises(DataError, match="16-bit colour PNG"):
        open_image(tmp_path / "a.png")


def test_stacks_ask_for_a_page(tmp_path):
    pages = [Image.fromarray(BYTES), Image.fromarray(255 - BYTES)]
    pages[0].save(tmp_path / "a.tif", save_all=True, append_images=pages[1:])
    with pytest.raises(DataError, match="holds 2 pages; choose one with slice=0 to 1"):
        open_image(tmp_path / "a.tif")
    np.testing.assert_allclose(open_image(tmp_path / "a.tif", slice="1").values, (255 - BYTES) / 255.0, atol=1e-7)
    with pytest.raises(DataError, match="2 pages"):
        open_image(tmp_path / "a.tif", slice=2)


def test_arrays_are_as_stored(tmp_path):
    kspace = RNG.normal(size=(2, 4, 4)) + 1j
    np.save(tmp_path / "a.npy", kspace)
    np.testing.assert_array_equal(open_image(tmp_path / "a.npy").values, kspace)
    np.savez(tmp_path / "a.npz", first=BYTES, second=WORDS)
    np.testing.assert_array_equal(open_image(tmp_path / "a.npz", variable="second").values, WORDS)
    with pytest.raises(DataError, match="first, second; choose one"):
        open_image(tmp_path / "a.npz")
    with pytest.raises(DataError, match="did you mean 'second'"):
        open_image(tmp_path / "a.npz", variable="secnd")
    np.save(tmp_path / "o.npy", np.array([{}], dtype=object), allow_pickle=True)
    with pytest.raises(DataError, match="cannot be read"):
        open_image(tmp_path / "o.npy")


def test_netcdf_keeps_coordinates(tmp_path):
    image = xr.DataArray(
        BYTES.astype(float), dims=("y", "x"), coords={"x": ("x", np.arange(7) * 0.5, {"units": "mm"})},
        attrs={"units": "K"}, name="t",
    )  # fmt: skip
    image.to_netcdf(tmp_path / "a.nc")
    read = open_image(tmp_path / "a.nc")
    np.testing.assert_array_equal(read.values, image.values)
    assert read.attrs["units"] == "K" and read["x"].attrs["units"] == "mm"
    xr.Dataset({"t": image, "u": image}).to_netcdf(tmp_path / "b.nc")
    with pytest.raises(DataError, match="choose one"):
        open_image(tmp_path / "b.nc")


def write_dicom(file, values, **tags):
    pydicom = pytest.importorskip("pydicom")
    from pydicom.dataset import FileDataset, FileMetaDataset
    from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, generate_uid

    meta = FileMetaDataset()
    meta.TransferSyntaxUID, meta.MediaStorageSOPClassUID = ExplicitVRLittleEndian, CTImageStorage
    meta.MediaStorageSOPInstanceUID = generate_uid()
    held = FileDataset(str(file), {}, file_meta=meta, preamble=b"\0" * 128)
    held.SOPClassUID, held.SOPInstanceUID = CTImageStorage, meta.MediaStorageSOPInstanceUID
    held.Modality, held.SamplesPerPixel, held.PhotometricInterpretation = "CT", 1, "MONOCHROME2"
    held.Rows, held.Columns = values.shape[-2:]
    held.BitsAllocated = held.BitsStored = 16
    held.HighBit, held.PixelRepresentation = 15, 0
    for name, value in tags.items():
        setattr(held, name, value)
    held.PixelData = values.astype(np.uint16).tobytes()
    pydicom.dcmwrite(file, held, enforce_file_format=True)


def test_dicom_is_in_hounsfield_units_and_millimetres(tmp_path):
    write_dicom(
        tmp_path / "a.dcm", BYTES, RescaleSlope=2.0, RescaleIntercept=-1024.0, PixelSpacing=[0.5, 0.75]
    )
    image = open_image(tmp_path / "a.dcm")
    np.testing.assert_allclose(image.values, 2.0 * BYTES - 1024)
    assert image.attrs["units"] == "HU" and image["y"].attrs["units"] == "mm"
    np.testing.assert_allclose(image["y"], 0.5 * np.arange(5))
    np.testing.assert_allclose(image["x"], 0.75 * np.arange(7))
    # Without an ending it is known by its content.
    (tmp_path / "a.dcm").rename(tmp_path / "IM0001")
    np.testing.assert_array_equal(open_image(tmp_path / "IM0001").values, image.values)
    write_dicom(tmp_path / "b.dcm", np.stack([BYTES, BYTES + 1]), NumberOfFrames=2)
    with pytest.raises(DataError, match="2 frames"):
        open_image(tmp_path / "b.dcm")
    np.testing.assert_array_equal(open_image(tmp_path / "b.dcm", slice=1).values, (BYTES + 1).astype(float))


def test_nifti_slices_lie_the_right_way_up(tmp_path):
    nibabel = pytest.importorskip("nibabel")
    volume = RNG.normal(size=(4, 5, 3)).astype(np.float32)
    # Stored from right to left: the first axis is turned when it is read.
    affine = np.diag([-2.0, 3.0, 5.0, 1.0])
    affine[:3, 3] = [6.0, -30.0, 10.0]
    nibabel.save(nibabel.Nifti1Image(volume, affine), tmp_path / "a.nii.gz")
    image = open_image(tmp_path / "a.nii.gz", slice=1)
    assert image.dims == ("y", "x") and image["y"].attrs["units"] == "mm"
    np.testing.assert_allclose(image["x"], [0.0, 2, 4, 6])
    np.testing.assert_allclose(image["y"], [-18.0, -21, -24, -27, -30])
    for i in range(4):
        for j in range(5):
            place = np.linalg.inv(affine) @ [image["x"][i], image["y"][j], 15.0, 1.0]
            a, b, c = (round(float(v)) for v in place[:3])
            assert image.values[j, i] == volume[a, b, c]
    side = open_image(tmp_path / "a.nii.gz", slice="x=0")
    assert side.dims == ("z", "y") and side.shape == (3, 5) and side["z"].values[0] == 20.0
    with pytest.raises(DataError, match=r"choose one slice, x=0 to 3, y=0 to 4, z=0 to 2"):
        open_image(tmp_path / "a.nii.gz")
    with pytest.raises(DataError, match="3 slices along z"):
        open_image(tmp_path / "a.nii.gz", slice="z=3")
    with pytest.raises(DataError, match="unknown axis 'k'"):
        open_image(tmp_path / "a.nii.gz", slice="k=3")


@pytest.mark.parametrize("name", ["a.png", "a.tif", "a.npy", "a.npz", "a.nc", "a.dcm", "a.nii", "a.nii.gz", "a.txt"])
def test_damaged_files_are_one_line(name, tmp_path):
    for library, ending in (("pydicom", ".dcm"), ("nibabel", ".nii")):
        if ending in name:
            pytest.importorskip(library)
    (tmp_path / name).write_bytes(b"not an image at all")
    with pytest.raises(DataError, match=r"cannot be read|unknown kind") as caught:
        open_image(tmp_path / name)
    assert "\n" not in str(caught.value)
    with pytest.raises(DataError, match="there is no file"):
        open_image(tmp_path / f"none-{name}")


@pytest.mark.parametrize(("library", "name"), [("pydicom", "a.dcm"), ("nibabel", "a.nii.gz")])
def test_a_missing_library_is_named(library, name, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, library, None)
    (tmp_path / name).write_bytes(b"anything")
    with pytest.raises(DataError, match=f"pip install {library}"):
        open_image(tmp_path / name)
