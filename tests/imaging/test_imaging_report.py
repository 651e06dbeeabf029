"""The report of a reconstruction: self-contained, complete, and with the picture's pixels where they belong."""

import base64
import io
import re
from html.parser import HTMLParser

import numpy as np
import pytest
import xarray as xr
from PIL import Image

import imaging
from assimilate.cli import run_app
from assimilate.errors import UserError
from imaging.report.panels import panels_of

RNG = np.random.default_rng(0)
LABELS = {"units": "1"}


def result(shape=(6, 8), *, point=False, truth=True, complex_image=False, measurements=0, channels=0, **attrs):
    """A small result as `reconstruct` gives it."""
    lead = ("measurement",) if measurements else ()
    event = (*((channels,) if channels else ()), *shape)
    dims = (*lead, *(("channel",) if channels else ()), "y", "x")
    size = (*((measurements,) if measurements else ()), *event)

    def draw(*front):
        values = RNG.random((*front, *size))
        return values + 1j * RNG.random((*front, *size)) if complex_image else values

    mean, samples = draw(), np.moveaxis(draw(3), 0, len(lead))
    held = {
        "image_mean": (dims, mean, LABELS),
        "measured": (dims, draw(), {"units": "1", "scaling": "8-bit values divided by 255"}),
        "predicted": (dims, draw(), LABELS),
        "residual": (dims, draw(), LABELS),
        "residual_chi_square": (lead, np.ones(size[: len(lead)]), LABELS),
        "evaluations": ((), 12, LABELS),
        "seconds": ((), 1.5, {"units": "s"}),
    }
    if not point:
        held["image_sample"] = ((*lead, "sample", *dims[len(lead) :]), samples, LABELS)
        for name in ("image_std", "image_lower"):
            held[name] = (dims, abs(mean) / 4, LABELS)
        held["image_upper"] = (dims, abs(mean), LABELS)
    if truth:
        held["truth"], held["image_error"] = (dims, draw(), LABELS), (dims, draw() - 0.5, LABELS)
        held |= {n: (lead, np.full(size[: len(lead)], 0.25)) for n in ("rmse", "psnr", "coverage")}
    about = {
        "kind": "reconstruction", "title": "DiffPIR of <scan>.png", "solver": "DiffPIR(steps=3)",
        "solver_name": "DiffPIR", "solver_reference": "Zhu et al. (2023)", "exactness": "point" if point else "biased",
        "noise": "GaussianNoise(std=0.02)", "operator": "Blur((1, 6, 8))", "prior": "phantom-64",
        "prior_range": "0 to 1", "seed": 3, "interval": 0.9, "version": "1",
    }  # fmt: skip
    return xr.Dataset(held, attrs={**about, **attrs})


class Checker(HTMLParser):
    VOID = ("meta", "img", "br")

    def __init__(self):
        super().__init__()
        self.stack, self.sources, self.links = [], [], []

    def handle_starttag(self, tag, attrs):
        if tag not in self.VOID:
            self.stack.append(tag)
        values = dict(attrs)
        self.links += [v for k, v in values.items() if k in ("href", "src") and not v.startswith("data:")]
        if tag == "img":
            assert values["alt"]
            self.sources.append(values["src"])

    def handle_endtag(self, tag):
        assert self.stack.pop() == tag


def page_of(held, folder):
    page = imaging.render(held, folder).read_text()
    checker = Checker()
    checker.feed(page)
    assert not checker.stack and not checker.links and "http" not in re.sub(r"https://\S*", "", page)
    return page, checker.sources


def test_the_page_is_whole_and_says_what_was_assumed(tmp_path):
    held = result(range_note="3 % lie outside", prior_record="pictures: phantoms")
    page, sources = page_of(held, tmp_path)
    assert len(sources) == 8
    for text in (
        "DiffPIR of &lt;scan&gt;.png", "GaussianNoise(std=0.02)", "Blur((1, 6, 8))", "Range of the prior", "0 to 1",
        "8-bit values divided by 255", "DiffPIR, biased", "error bars may be too narrow", "3 % lie outside",
        "Zhu et al. (2023)", "pictures: phantoms", "PSNR", "Coverage", "90 % interval", "12 network evaluations",
    ):  # fmt: skip
        assert text in page, text
    names = {p.name for p in (tmp_path / "figures").iterdir()}
    assert names == {
        "overview.png", "measurement.png", "truth.png", "mean.png", "sample.png", "std.png", "interval.png",
        "residual.png", "error.png",
    }  # fmt: skip


def test_pictures_show_each_pixel_in_its_place(tmp_path):
    held = result()
    _, sources = page_of(held, tmp_path)
    titles = [panel.title for panel in panels_of(held)[0]]
    shown = dict(zip(titles, sources, strict=True))
    grey = np.asarray(Image.open(io.BytesIO(base64.b64decode(shown["Mean"].partition(",")[2]))))
    # Row 0 is the top; the prior's range is black to white.
    np.testing.assert_allclose(grey / 255.0, held["image_mean"].values, atol=1.5 / 255)
    large = np.asarray(Image.open(tmp_path / "figures" / "mean.png"))
    assert large.shape == (192, 256, 3)
    np.testing.assert_array_equal(large[16::32, 16::32, 0], grey)


def test_point_answers_show_no_error_bars(tmp_path):
    page, sources = page_of(result(point=True, truth=False, spread_note="the solver gives one answer"), tmp_path)
    assert len(sources) == 3 and "Reconstruction</b>" in page and "interval" not in page
    assert "one answer" in page and "no error bars" in page


@pytest.mark.parametrize("kind", [{"complex_image": True}, {"measurements": 3}, {"channels": 3}, {"channels": 2}])
def test_complex_images_colours_and_several_measurements(kind, tmp_path):
    held = result(**kind)
    page, sources = page_of(held, tmp_path)
    assert len(sources) == 8 * max(1, kind.get("measurements", 0)) + ("complex_image" in kind)
    if "complex_image" in kind:
        assert "Phase of the mean" in page
    if "measurements" in kind:
        assert (tmp_path / "figures" / "mean-2.png").exists() and "Measurement 2" in page
    if kind.get("channels") == 3:
        mean = next(p for p in panels_of(held)[0] if p.key == "mean")
        np.testing.assert_allclose(mean.rgb / 255.0, np.moveaxis(held["image_mean"].values, 0, -1), atol=0.6 / 255)


def test_measurements_of_other_shapes(tmp_path):
    sinogram = result().drop_vars(["measured", "predicted", "residual"])
    values = RNG.random((5, 9))
    values[1, 2] = np.nan
    for name in ("measured", "predicted", "residual"):
        sinogram[name] = (("view", "detector"), values)
    assert len(page_of(sinogram, tmp_path / "a")[1]) == 8
    kspace = sinogram.drop_vars(["measured", "predicted", "residual"])
    for name in ("measured", "predicted", "residual"):
        kspace[name] = (("coil", "ky", "kx"), RNG.random((2, 6, 8)) * (1 + 1j) * (RNG.random((2, 6, 8)) > 0.5))
    panels = panels_of(kspace)[0]
    assert panels[0].title.startswith("k-space") and panels[0].values.shape == (6, 16)
    assert len(page_of(kspace, tmp_path / "b")[1]) == 8


def test_the_file_is_enough_to_make_the_page_again(tmp_path, capsys):
    held = result(complex_image=True)
    imaging.write_result(held, tmp_path / "result.nc")
    first = imaging.render(tmp_path).read_text()
    assert run_app(["report", str(tmp_path), "--out", str(tmp_path / "again")]) == 0
    assert (tmp_path / "again" / "report.html").read_text() == first
    assert capsys.readouterr().out.strip() == str(tmp_path / "again" / "report.html")
    with pytest.raises(UserError, match="give out="):
        imaging.render(held)
    with pytest.raises(UserError, match="no readable result"):
        imaging.render(tmp_path / "nowhere")
    xr.Dataset().to_netcdf(tmp_path / "other.nc")
    with pytest.raises(UserError, match="is no reconstruction"):
        imaging.read_result(tmp_path / "other.nc")
