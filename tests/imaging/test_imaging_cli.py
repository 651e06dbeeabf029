"""`assimilate reconstruct` and the lists of imaging: files in, files out, one line for every mistake."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

import imaging
from assimilate.cli import run_app
from assimilate.learning.checkpoint import save_checkpoint
from assimilate.learning.denoiser import EDMDenoiser
from assimilate.learning.networks import sized_network
from assimilate.learning.prior import LearnedPrior
from dynamics.space import Field, Space
from imaging.listing import short
from imaging.operators import OPERATORS
from imaging.solvers import SOLVERS

RNG = np.random.default_rng(0)
PICTURE = (255 * RNG.random((16, 16))).astype(np.uint8)
FAST = ["--set", "solver.steps=3", "--samples", "2"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A picture, a mask, a truth, a sinogram and the checkpoint of an untrained prior."""
    folder = tmp_path_factory.mktemp("files")
    torch.manual_seed(0)
    network = sized_network("unet", {"widths": (4, 4), "blocks": 1}, 1, 2, noise=True)
    space = Space((Field("image", "1", ("y", "x")),), {"y": 16, "x": 16})
    denoiser = EDMDenoiser(network, event_dims=3, variance=True)
    prior = LearnedPrior(space, denoiser, 0.4, 0.25, 0.002, 20.0, (0.0, 1.0), {"pictures": "none"}, {"loss": 0.5})
    save_checkpoint(prior.to_checkpoint(), folder / "prior.safetensors")
    Image.fromarray(PICTURE).save(folder / "scan.png")
    Image.fromarray(PICTURE[:8, :8]).save(folder / "coarse.png")
    Image.fromarray(np.where(PICTURE > 80, 255, 0).astype(np.uint8)).save(folder / "mask.png")
    Image.fromarray(np.stack([PICTURE] * 3, -1)).save(folder / "colour.png")
    np.save(folder / "sinogram.npy", RNG.random((4, 23)))
    np.save(folder / "kspace.npy", RNG.normal(size=(16, 16)) + 1j * RNG.normal(size=(16, 16)))
    (folder / "broken.png").write_bytes(b"broken")
    return folder


def reconstruct(folder, out, file="scan.png", operator="gaussian-blur", *more, noise="0.05", solver="mmps"):
    settings = ["--set", "operator.std=1.0", "--set", "operator.size=5"] if operator == "gaussian-blur" else []
    return run_app(
        ["reconstruct", str(folder / file), "--operator", operator, *(["--noise", noise] if noise else []),
         "--solver", solver, "--prior", str(folder / "prior.safetensors"), "--out", str(out), *settings, *FAST, *more]
    )  # fmt: skip


def test_files_in_files_out(folder, tmp_path, capsys):
    assert reconstruct(folder, tmp_path, "scan.png", "gaussian-blur", "--truth", str(folder / "scan.png")) == 0
    assert {p.name for p in tmp_path.iterdir()} == {"result.nc", "report.html", "figures"}
    printed = capsys.readouterr().out
    for text in ("PSNR", "result.nc", "report.html", "range of the 2 samples"):
        assert text in printed, text
    result = imaging.read_result(tmp_path)
    assert result.sizes["sample"] == 2 and result["image_mean"].shape == (16, 16)
    np.testing.assert_allclose(result["measured"], PICTURE / 255, atol=1e-6)
    assert result["measured"].attrs["scaling"] == "8-bit values divided by 255"
    assert "MMPS(steps=3" in result.attrs["solver"] and "kernel (5, 5)" in result.attrs["operator"]
    assert result.attrs["source"] == "scan.png" and "pictures: none" in result.attrs["prior_record"]
    assert f"{float(result['psnr']):.4g}" in printed


def test_the_same_seed_gives_the_same_image(folder, tmp_path):
    images = []
    for name, more in (("a", ()), ("b", ("--at-once", "1")), ("c", ("--seed", "1"))):
        assert reconstruct(folder, tmp_path / name, "scan.png", "gaussian-blur", "--no-report", *more) == 0
        assert not (tmp_path / name / "report.html").exists()
        images.append(imaging.read_result(tmp_path / name)["image_sample"].values)
    np.testing.assert_allclose(images[0], images[1], atol=1e-4)
    assert np.abs(images[0] - images[2]).max() > 0.01


@pytest.mark.parametrize(
    ("file", "operator", "more", "shape"),
    [
        ("scan.png", "inpainting", ["--mask", "mask.png"], (16, 16)),
        ("coarse.png", "super-resolution", ["--set", "operator.factor=2"], (16, 16)),
        ("sinogram.npy", "parallel-beam", ["--set", "operator.views=4", "--shape", "16,16"], (16, 16)),
        ("kspace.npy", "mri", ["--mask", "mask.png", "--shape", "2,16,16"], (16, 16)),
        ("colour.png", "identity", ["--colour"], (3, 16, 16)),
    ],
)
def test_instruments_by_name(file, operator, more, shape, folder, tmp_path):
    more = [str(folder / part) if part.endswith(".png") else part for part in more]
    assert reconstruct(folder, tmp_path, file, operator, *more) == 0
    result = imaging.read_result(tmp_path)
    assert result["image_mean"].shape == shape and np.isfinite(result["image_mean"].values).all()
    prior = result.attrs["prior"]
    assert ("Complex" in prior) == (operator == "mri") and ("Channels" in prior) == ("--colour" in more)


@pytest.mark.parametrize(
    ("file", "operator", "more", "message"),
    [
        ("none.png", "identity", [], "there is no file"),
        ("broken.png", "identity", [], "cannot be read as a picture"),
        ("scan.png", "gausian-blur", [], "did you mean 'gaussian-blur'?"),
        ("scan.png", "identity", ["--solver", "difpir"], "did you mean 'diffpir'?"),
        ("scan.png", "identity", ["--prior", "phantom-46"], "unknown prior 'phantom-46'"),
        ("scan.png", "identity", ["--prior", "lorenz63"], "is no prior of images"),
        ("scan.png", "gaussian-blur", ["--set", "operator.sdt=2"], "no setting 'sdt'"),
        ("scan.png", "identity", ["--set", "solver.stepps=2"], "stepps"),
        ("scan.png", "identity", ["--set", "steps=2"], "expected operator.NAME=VALUE or solver.NAME=VALUE"),
        ("scan.png", "identity", ["--set", "solver.steps"], "expected operator.NAME=VALUE"),
        ("scan.png", "identity", ["--shape", "a,b"], "expected rows,columns"),
        ("scan.png", "identity", ["--dtype", "half"], "expected float32 or float64"),
        ("scan.png", "identity", ["--device", "gpu"], "device 'gpu' is not there"),
        ("scan.png", "identity", ["--samples", "0"], "--samples"),
        ("scan.png", "inpainting", ["--mask", "scan.png"], "expected black (not seen) and white"),
        ("scan.png", "identity", ["--truth", "coarse.png"], "the truth has shape"),
        ("sinogram.npy", "gaussian-blur", [], "kernel"),
        ("sinogram.npy", "parallel-beam", ["--set", "operator.views=7"], "observes"),
        ("kspace.npy", "identity", [], "the measurement is complex"),
        ("scan.png", "phase-retrieval", ["--solver", "ddrm"], "observes"),
    ],
)
def test_mistakes_are_one_line_and_nothing_is_written(file, operator, more, message, folder, tmp_path, capsys):
    more = [str(folder / part) if part.endswith(".png") else part for part in more]
    out = tmp_path / "out"
    assert reconstruct(folder, out, file, operator, *more) == 2
    captured = capsys.readouterr()
    assert message in captured.err, captured.err
    assert captured.err.count("\n") == 1 and captured.err.startswith("error: ") and captured.out == ""
    assert not out.exists()


def test_the_noise_and_the_folder_are_asked_for(folder, tmp_path, capsys):
    assert reconstruct(folder, tmp_path / "out", noise=None) == 2
    assert "the noise is missing" in capsys.readouterr().err
    (tmp_path / "file").write_text("")
    assert reconstruct(folder, tmp_path / "file") == 2
    assert "is not a folder" in capsys.readouterr().err
    assert run_app(["reconstruct", str(folder / "scan.png")]) == 2
    assert "operator" in capsys.readouterr().err


def test_divergence_is_one_line(folder, tmp_path, capsys, monkeypatch):
    from imaging.solvers.base import Solver

    def diverge(self, task, *, rng):
        raise FloatingPointError("MMPS diverged: take more levels")

    monkeypatch.setattr(Solver, "__call__", diverge)
    assert reconstruct(folder, tmp_path / "out") == 2
    assert capsys.readouterr().err == "error: MMPS diverged: take more levels\n"


def test_lists_know_solvers_and_image_operators(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "120")
    assert run_app(["list", "solvers", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert [row["name"] for row in rows] == list(SOLVERS)
    mmps = next(row for row in rows if row["name"] == "mmps")
    assert mmps["needs"] == ["gaussian"] and mmps["backpropagates"] and "Rozet" in mmps["reference"]
    assert mmps["exactness"] in ("exact", "consistent", "biased", "point") and "steps" in mmps["settings"]
    assert all(row["summary"] for row in rows)
    assert run_app(["list", "solvers"]) == 0
    printed = capsys.readouterr().out
    assert all(name in printed for name in SOLVERS) and "exactness" in printed
    assert run_app(["list", "operators", "--json"]) == 0
    names = [row["name"] for row in json.loads(capsys.readouterr().out)]
    assert set(OPERATORS) < set(names) and "BlockMean" in names
    assert run_app(["list", "solver"]) == 2
    assert "did you mean 'solvers'?" in capsys.readouterr().err


def test_references_in_short():
    assert short("Chung, Kim (2023), Diffusion posterior sampling, https://x") == "Chung et al. (2023)"
    assert short("Chen et al. (2024), FlowDAS") == "Chen et al. (2024)"
    assert short("Fienup (1982), Phase retrieval") == "Fienup (1982)"
    assert short("Assimilate; see there") == "Assimilate"


def test_the_public_names_are_there():
    plain = {"SOLVERS", "OPERATORS", "DISTRIBUTION"}
    assert all(callable(getattr(imaging, name)) for name in set(imaging.__all__) - plain)
    with pytest.raises(AttributeError, match="has no attribute 'reconstrct'"):
        _ = imaging.reconstrct
