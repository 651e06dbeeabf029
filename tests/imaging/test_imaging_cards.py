"""Shipped imaging cards: valid, their solvers take their settings and find what they need in the instrument."""

import pytest
import torch

from assimilate.cards.files import checked
from assimilate.errors import CardError, DataError, UserError
from assimilate.learning.prior_fit import PriorFit
from assimilate.learning.recipes import build_settings
from imaging.cards import ImagingCard, is_imaging, load, shipped
from imaging.comparison import Comparison, align, compare
from imaging.priors import load_prior
from imaging.solvers import solver_class

COMPARISONS = [name for name, path in shipped().items() if load(path).solver]


@pytest.mark.parametrize("name", COMPARISONS)
def test_solvers_of_a_card_can_run(name):
    card = load(shipped()[name])
    try:
        comparison = Comparison.of(card)
    except DataError as error:
        pytest.skip(str(error))
    assert comparison.y.shape[:2] == (len(comparison.truth), 1)
    for entry in card.solver:
        task = comparison.task(load_prior(entry.prior or card.prior))
        for values in entry.tune.values():
            assert len(set(values)) == len(values) > 1
        first = {key: values[0] for key, values in entry.tune.items()}
        try:
            solver_class(entry.type)(**entry.settings(), **first).check(task)
        except UserError as error:
            assert "pip install" in str(error)


@pytest.mark.parametrize("name", [name for name in shipped() if name not in COMPARISONS])
def test_training_cards_hold_settings_that_exist(name):
    fit = load(shipped()[name]).fit
    from assimilate.learning.consistency import ConsistencyFit

    build_settings(PriorFit if fit.recipe == "prior" else ConsistencyFit, fit.settings(), name)


SMALL = {
    "title": "small",
    "noise": 0.05,
    "prior": "phantom-64",
    "seed": 3,
    "images": {"source": "phantoms", "count": 2, "size": 64, "seed": 5},
    "operator": {"type": "inpainting", "missing": 0.5},
    "tuning": {"count": 2},
    "solver": [
        {"type": "pseudo-inverse", "label": "A+"},
        {"type": "fista-tv", "label": "TV", "tune": {"strength": [0.02, 1.0]}, "iterations": 60},
        {"type": "clean-covariance", "label": "posterior", "samples": 3, "steps": 12},
        {"type": "ddrm", "label": "broken", "steps": 2, "prior": "no-such-prior"},
    ],
    "expected": [{"method": "posterior", "score": "psnr", "min": 1.0, "relative_to": "A+", "source": "a prior helps"}],
}


def small(**changes):
    return checked({**SMALL, **changes}, [], ImagingCard, "small.toml")


def test_a_comparison_writes_scores_pictures_and_a_page(tmp_path):
    from imaging.gallery import render

    card = small(solver=SMALL["solver"][:3])
    outcome = compare(card, tmp_path, name="small")
    assert outcome.labels == ["A+", "TV", "posterior"] and not outcome.failures
    assert "strength=1.0" in outcome.chosen["TV"] and "validation" in outcome.chosen["TV"]
    found = outcome.scores["posterior"]
    # The prior fills half of the pixels, which the pseudo-inverse leaves black.
    assert found["psnr"] > outcome.scores["A+"]["psnr"] + 3
    assert found["psnr_sample"] < found["psnr"]
    assert 0.3 < found["spread_skill"] < 2.0
    assert outcome.scores["A+"].keys().isdisjoint({"spread_skill", "psnr_sample"})
    assert found["evaluations"] == 12
    assert outcome.checks[0]["passed"]
    page = render(tmp_path / "result.nc").read_text()
    for piece in ("Scores", "posterior", "data:image/png", "Provenance"):
        assert piece in page
    assert (tmp_path / "figures" / "reconstructions.png").stat().st_size > 5000


def test_the_same_card_gives_the_same_numbers_and_more_samples_leave_the_first_alone(tmp_path):
    entry = {"type": "clean-covariance", "label": "posterior", "steps": 4}
    runs = []
    for samples in (2, 3):
        folder = tmp_path / str(samples)
        compare(small(solver=[{**entry, "samples": samples}]), folder, name="small")
        import xarray as xr

        with xr.open_datatree(folder / "result.nc") as tree:
            runs.append(tree["posterior"]["image_sample"].values)
    assert abs(runs[0] - runs[1]).max() < 2e-4  # float32 convolutions of other batch sizes


def test_a_solver_that_fails_is_named_and_the_others_go_on(tmp_path):
    card = small(operator={"type": "hdr"}, solver=[{"type": "ddrm", "label": "needs an SVD"},
                                                  {"type": "dps-score", "label": "works", "steps": 3}])
    outcome = compare(card, tmp_path, name="small")
    assert outcome.labels == ["works"]
    assert outcome.failures[0]["method"] == "needs an SVD" and "linear operator" in outcome.failures[0]["error"]


def test_mistakes_in_a_card_are_one_line(tmp_path):
    with pytest.raises(CardError, match="unknown key"):
        small(imags={})
    with pytest.raises(CardError, match=r"needs .operator., 'noise' and 'prior'"):
        small(noise=0.0)
    with pytest.raises(CardError, match="labels of solvers must differ"):
        small(solver=[{"type": "dps"}, {"type": "dps"}])
    with pytest.raises(UserError, match="did you mean 'ddrm'"):
        compare(small(solver=[{"type": "ddrn"}]), tmp_path, name="small")
    with pytest.raises(UserError, match="stepps"):
        compare(small(solver=[{"type": "ddrm", "stepps": 3}]), tmp_path, name="small")
    with pytest.raises(UserError, match="unknown prior"):
        compare(small(solver=SMALL["solver"][3:]), tmp_path, name="small")
    assert not list(tmp_path.iterdir()), "a mistake leaves nothing behind"


def test_half_a_turn_and_a_shift_are_undone():
    truth = torch.rand(2, 1, 16, 16, generator=torch.Generator().manual_seed(0))
    moved = torch.roll(truth.flip((-2, -1)), (3, -5), (-2, -1))[:, None]
    assert torch.allclose(align(moved, truth)[:, 0], truth)


def test_an_imaging_card_is_told_by_its_images(tmp_path):
    (tmp_path / "a.toml").write_text("[images]\n")
    (tmp_path / "b.toml").write_text("[truth]\n")
    assert is_imaging(tmp_path / "a.toml") and not is_imaging(tmp_path / "b.toml")

CARD = """
title = "small"
noise = 0.05
prior = "phantom-64"
[images]
count = 1
[operator]
type = "inpainting"
missing = 0.5
[[solver]]
type = "clean-covariance"
label = "ours"
steps = 3
samples = 2
[[expected]]
method = "ours"
score = "psnr"
min = 99.0
source = "more than is possible"
"""


def test_the_command_runs_an_imaging_card(tmp_path, capsys):
    from assimilate.cli import run_app

    (tmp_path / "small.toml").write_text(CARD)
    arguments = ["run", str(tmp_path / "small.toml"), "--out", str(tmp_path / "out"), "--set", "images.seed=4"]
    assert run_app(arguments) == 0
    assert run_app([*arguments, "--check", "--no-report"]) == 1
    printed = capsys.readouterr()
    assert "ours" in printed.out and "PSNR" in printed.err
    page = tmp_path / "out" / "report.html"
    page.unlink()
    assert run_app(["report", str(tmp_path / "out")]) == 0
    assert "Reconstructions" in page.read_text()
    capsys.readouterr()
    assert run_app(["run", str(tmp_path / "small.toml"), "--set", "image.seed=4"]) == 2
    assert "did you mean 'images'" in capsys.readouterr().err
    assert run_app(["run", "ct-200"]) == 2
    assert "did you mean 'ct-20'" in capsys.readouterr().err


def test_the_command_trains_a_prior_on_a_folder_of_pictures(tmp_path, capsys):
    import numpy as np

    from assimilate.cli import run_app

    folder = tmp_path / "pictures"
    folder.mkdir()
    for k in range(4):
        np.save(folder / f"{k}.npy", np.random.default_rng(k).random((20, 20), dtype=np.float32))
    changes = ["images.source=folder", f"images.path={folder}", "images.size=16", "images.count=40",
               "fit.training.steps=2", "fit.training.batch=4", "fit.training.held_out_every=0",
               "fit.network.widths=[4, 6]", "fit.network.blocks=1"]
    flags = [part for change in changes for part in ("--set", change)]
    assert run_app(["fit", "phantom-64", "--out", str(tmp_path / "mine.safetensors"), *flags]) == 0
    prior = load_prior(str(tmp_path / "mine.safetensors"))
    assert prior.event_shape == (1, 16, 16) and "folder" in prior.data["pictures"]
    assert not (tmp_path / "mine.safetensors.parts").exists()
