"""reconstruct: right posteriors, right labels, no dependence on parts, and errors that speak."""

import math
from typing import ClassVar

import numpy as np
import pytest
import torch
import xarray as xr

import imaging
from assimilate.errors import UserError
from assimilate.posterior.denoisers import StationaryDenoiser
from dynamics.errors import CapabilityError, SpaceMismatch
from dynamics.random import Streams
from imaging.memory import layer_bytes, samples_at_once
from imaging.operators.magnetic_resonance.scanner import MagneticResonance, to_complex
from imaging.operators.tomography import ParallelBeam
from imaging.priors import Channels, Complex, load_prior
from imaging.reconstruction import reconstruct
from imaging.result import concerns
from imaging.solvers.base import Solution, Solver
from observations.noise import GaussianNoise
from observations.poisson import Poisson
from observations.sampling import Mask

SIDE = 12
NOISE = 0.1
FAST = {"steps": 12}


def stationary(side=SIDE, mean=0.5, bounds=(0.0, 1.0)):
    """A Gaussian field on a torus with a power-law spectrum, standard deviation near 0.2."""
    rows = torch.fft.fftfreq(side, dtype=torch.float64)[:, None] * side
    columns = torch.fft.rfftfreq(side, dtype=torch.float64)[None] * side
    spectrum = (1 + rows**2 + columns**2) ** -1.0
    prior = StationaryDenoiser(spectrum[None], side, mean=mean)
    return StationaryDenoiser(spectrum[None] * (0.2 / prior.spread) ** 2, side, mean=mean, bounds=bounds)


PRIOR = stationary()
TRUTH = PRIOR.draw((1, 1), rng=Streams(1))[0, 0, 0].numpy()
NOISY = TRUTH + NOISE * np.random.default_rng(0).normal(size=TRUTH.shape)


class Answer(Solver):
    """A solver that answers with half of the adjoint, whatever the noise."""

    name, reference, exactness = "answer", "none", "point"

    def solve(self, task, rng):
        x = task.linear.adjoint(task.y) / 2
        return Solution(x.expand(*rng.rows, *task.event_shape), 0)


class Numbers(Solver):
    """A solver that gives its random numbers and remembers how it was called."""

    name, reference, exactness = "numbers", "none", "exact"
    calls: ClassVar[list] = []

    def solve(self, task, rng):
        from dynamics.random import normal

        Numbers.calls.append((rng.rows, task.y.shape[0]))
        return Solution(normal(rng, (*rng.rows, *task.event_shape), dtype=task.dtype) + task.y.mean(), 1)


class Coupled(Numbers):
    couples = True


def run(measurement=NOISY, operator="identity", prior=PRIOR, solver="clean-covariance", **more):
    settings = {"noise": NOISE, "samples": 4, "dtype": "float64"}
    if isinstance(solver, str):
        settings["solver_settings"] = FAST
    return reconstruct(measurement, operator, prior, solver, **{**settings, **more})


def test_moments_are_those_of_the_wiener_filter():
    count = 400
    # Guided means are kept within the prior's range; a Gaussian has none.
    result = run(
        prior=stationary(bounds=None), samples=count, solver_settings={"steps": 60}, truth=TRUTH.clip(0.0, 1.0)
    )
    gain = PRIOR.spectrum / (PRIOR.spectrum + NOISE**2)
    centred = torch.fft.rfft2(torch.from_numpy(NOISY)[None] - PRIOR.mean)
    mean = PRIOR.mean + torch.fft.irfft2(gain * centred, s=(SIDE, SIDE))[0].numpy()
    kernel = torch.fft.irfft2(torch.complex(gain * NOISE**2, torch.zeros_like(gain)), s=(SIDE, SIDE))
    std = math.sqrt(float(kernel[0, 0, 0]))
    # 144 correlated means of 400 samples; the time grid adds about as much again.
    assert np.abs(result["image_mean"].values - mean).max() < 6 * std / math.sqrt(count)
    assert float(result["image_std"].mean()) == pytest.approx(std, rel=0.05)
    width = (result["image_upper"] - result["image_lower"]).mean()
    assert float(width) == pytest.approx(2 * 1.645 * std, rel=0.06)
    assert float(result["coverage"]) == pytest.approx(0.9, abs=0.12)
    # E |y - x|^2 / noise^2 over the posterior, per value, is 1 on average over measurements; 144 values here.
    assert float(result["residual_chi_square"]) == pytest.approx(1.0, abs=4 * math.sqrt(2 / SIDE**2))
    error = result["image_mean"].values - TRUTH.clip(0.0, 1.0)
    peak = TRUTH.clip(0.0, 1.0).max() - TRUTH.clip(0.0, 1.0).min()
    assert float(result["rmse"]) == pytest.approx(math.sqrt((error**2).mean()))
    assert float(result["psnr"]) == pytest.approx(20 * math.log10(peak / float(result["rmse"])))


def test_parts_and_the_number_of_samples_do_not_change_a_sample():
    whole = run(samples=5)
    parts = run(samples=5, at_once=2)
    fewer = run(samples=2)
    several = run(np.stack([NOISY, NOISY[::-1]]), samples=5, at_once=3)
    reference = whole["image_sample"].values
    for other in (parts["image_sample"].values, several["image_sample"].values[0]):
        np.testing.assert_allclose(other, reference, atol=1e-10)
    np.testing.assert_allclose(fewer["image_sample"].values, reference[:2], atol=1e-10)
    assert np.abs(several["image_sample"].values[1] - reference).max() > 0.05
    assert np.abs(run(seed=1, samples=5)["image_sample"].values - reference).max() > 0.05


def test_how_samples_are_parted():
    Numbers.calls = []
    run(np.stack([NOISY] * 3), solver=Numbers(), samples=5, at_once=2)
    assert Numbers.calls == [((1, 2), 1), ((1, 2), 1), ((1, 1), 1)] * 3
    Numbers.calls = []
    run(np.stack([NOISY] * 3), solver=Numbers(), samples=2, at_once=4)
    assert Numbers.calls == [((2, 2), 2), ((1, 2), 1)]
    Numbers.calls = []
    run(solver=Coupled(), samples=5, at_once=2)
    assert Numbers.calls == [((1, 5), 1)]


def test_labels_units_and_pixel_sizes_are_kept():
    y = xr.DataArray(
        NOISY, dims=("row", "col"), attrs={"units": "1", "scaling": "none"},
        coords={"row": ("row", 0.5 * np.arange(SIDE), {"units": "mm"}), "col": ("col", 2.0 * np.arange(SIDE))},
    )  # fmt: skip
    result = run(y, "gaussian-blur", operator_settings={"std": 1.0, "size": 5})
    assert result["image_mean"].dims == ("row", "col") and result["image_sample"].dims == ("sample", "row", "col")
    assert result["row"].attrs["units"] == "mm" and result["image_mean"].attrs["units"] == "1"
    np.testing.assert_array_equal(result["col"], y["col"])
    np.testing.assert_array_equal(result["measured"], y)
    assert result["measured"].attrs["scaling"] == "none"
    for name in ("solver", "solver_reference", "exactness", "prior", "operator", "noise", "seed", "version", "title"):
        assert name in result.attrs, name
    assert result.attrs["noise"] == "GaussianNoise(std=0.1)" and "kernel (5, 5)" in result.attrs["operator"]
    assert int(result["evaluations"]) == FAST["steps"] and float(result["seconds"]) > 0


def test_coarse_pixels_have_their_fine_ones_inside():
    coarse = xr.DataArray(
        NOISY[:6, :6], dims=("y", "x"), coords={"y": [1.0, 3, 5, 7, 9, 11], "x": np.arange(6.0) * 4}
    )
    result = run(coarse, "super-resolution", operator_settings={"factor": 2})
    np.testing.assert_allclose(result["y"], np.arange(12) + 0.5)
    np.testing.assert_allclose(result["x"], np.arange(12) * 2 - 1)
    assert result["measured"].dims == ("measured_y", "measured_x")
    np.testing.assert_array_equal(result["measured_x"], coarse["x"])


def test_inpainting_takes_pictures_with_holes_masks_and_flat_values():
    holes = NOISY.copy()
    holes[3:6, 2:9] = np.nan
    seen = np.isfinite(holes)
    by_holes = run(holes, "inpainting")
    by_mask = run(NOISY, "inpainting", mask=seen)
    flat = run(NOISY[seen], Mask((1, SIDE, SIDE), seen))
    for other in (by_mask, flat):
        np.testing.assert_allclose(other["image_sample"].values, by_holes["image_sample"].values, atol=1e-8)
    np.testing.assert_array_equal(by_mask["measured"].values, holes)
    assert bool(np.isnan(by_mask["residual"].values[~seen]).all())
    # Where nothing is seen the spread is larger.
    spread = run(holes, "inpainting", samples=40)["image_std"].values
    assert spread[~seen].mean() > 1.3 * spread[seen].mean()
    random = run(NOISY, "inpainting", operator_settings={"missing": 0.5, "seed": 3})
    assert np.isnan(random["measured"].values).mean() == pytest.approx(0.5, abs=0.01)


def test_a_sinogram_names_its_views():
    operator = ParallelBeam((1, SIDE, SIDE), views=5)
    sinogram = operator(torch.from_numpy(TRUTH)[None]).numpy()
    result = run(sinogram[0], operator, noise=0.02)
    assert result["measured"].dims == ("view", "detector")
    np.testing.assert_allclose(result["view"], 36.0 * np.arange(5))
    named = run(sinogram[0], "parallel-beam", noise=0.02, operator_settings={"views": 5})
    np.testing.assert_allclose(named["image_mean"], result["image_mean"])


def test_complex_images_stay_complex(tmp_path):
    mask = np.zeros((SIDE, SIDE), bool)
    mask[::2] = True
    image = torch.stack([torch.from_numpy(TRUTH), 0.5 + 0 * torch.from_numpy(TRUTH)])
    operator = MagneticResonance((2, SIDE, SIDE), mask)
    kspace = operator.to_kspace(operator(image))[0].numpy()
    result = run(kspace, operator, Complex(PRIOR), noise=0.02, truth=to_complex(image).numpy())
    assert result["image_mean"].dtype.kind == "c" and result["image_mean"].dims == ("y", "x")
    assert result["measured"].dims == ("ky", "kx") and not result["measured"].values[1::2].any()
    np.testing.assert_allclose(result["measured"].values[::2], kspace[::2])
    samples = result["image_sample"].values
    spread = np.sqrt((np.abs(samples - samples.mean(0)) ** 2).sum(0) / 3)
    np.testing.assert_allclose(result["image_std"], spread)
    assert bool((result["image_upper"] >= result["image_lower"]).all())
    imaging.write_result(result, tmp_path / "result.nc")
    assert imaging.read_result(tmp_path).identical(result)
    by_name = run(kspace, "mri", Complex(PRIOR), noise=0.02, mask=mask, shape=(2, SIDE, SIDE))
    np.testing.assert_allclose(by_name["image_mean"], result["image_mean"])
    with pytest.raises(SpaceMismatch, match=r"Complex\(prior\)"):
        run(kspace, operator, PRIOR)
    with pytest.raises(UserError, match="the measurement is complex"):
        run(kspace, "identity")


def test_colours_are_channels():
    colours = xr.DataArray(np.stack([NOISY, NOISY.T, 1 - NOISY]), dims=("channel", "y", "x"))
    colours = colours.assign_coords(channel=["red", "green", "blue"])
    result = run(colours, "gaussian-blur", Channels(PRIOR, 3), operator_settings={"std": 1.0, "size": 5})
    assert result["image_mean"].dims == ("channel", "y", "x")
    assert result["channel"].values.tolist() == ["red", "green", "blue"]
    with pytest.raises(SpaceMismatch, match="Channels"):
        run(colours, "identity", PRIOR)


def test_channels_are_the_prior_of_each():
    noisy = PRIOR.draw((2, 3, 3), rng=torch.Generator().manual_seed(0)).squeeze(-3)
    assert noisy.shape == (2, 3, 3, SIDE, SIDE)
    level = torch.tensor([[0.1, 0.2, 0.3], [0.4, 0.5, 0.6]], dtype=torch.float64)
    together = Channels(PRIOR, 3)(noisy, level)
    for c in range(3):
        alone = PRIOR(noisy[:, :, c : c + 1], level)
        torch.testing.assert_close(together.mean[:, :, c], alone.mean[:, :, 0])
        product = alone.covariance.apply(noisy[:, :, c : c + 1])
        torch.testing.assert_close(together.covariance.apply(noisy)[:, :, c], product[:, :, 0])
    assert Complex(PRIOR).event_shape == (2, SIDE, SIDE)
    with pytest.raises(UserError, match="1, rows, columns"):
        Channels(Channels(PRIOR, 2), 2)


def test_point_answers_have_no_spread():
    result = run(solver=Answer(), samples=16)
    assert not {"image_std", "image_lower", "image_upper", "image_sample"} & set(result)
    assert "without a spread" in result.attrs["spread_note"]
    np.testing.assert_allclose(result["image_mean"], NOISY / 2)
    one = run(samples=1)
    assert "image_sample" in one and "image_std" not in one and "one sample" in one.attrs["spread_note"]
    assert "range of the 4 samples" in run(samples=4).attrs["spread_note"]
    assert "spread_note" not in run(samples=19).attrs


def test_a_residual_that_does_not_fit_is_said():
    assert any("larger than stated" in c for c in concerns(run(solver=Answer(), noise=0.01)))
    assert any("smaller than stated" in c for c in concerns(run(solver=Answer(), noise=5.0)))
    assert not concerns(run(samples=19))


def test_laws_of_noise_are_taken_as_they_are():
    exact = run(noise=GaussianNoise(torch.full((1, SIDE, SIDE), NOISE)))
    np.testing.assert_allclose(exact["image_mean"], run()["image_mean"])
    counts = np.round(np.clip(NOISY, 0, None) * 100) / 100
    with pytest.raises(CapabilityError, match="needs Gaussian noise"):
        run(counts, noise=Poisson(100.0))
    result = run(counts, noise=Poisson(100.0), solver="dps-score")
    assert result.attrs["noise"].startswith("Poisson") and np.isfinite(float(result["residual_chi_square"]))


def test_measurements_without_a_value_are_not_guessed():
    stack = xr.DataArray(np.stack([NOISY, NOISY]), dims=("measurement", "y", "x"), coords={"measurement": ["a", "b"]})
    result = run(stack)
    assert result["image_mean"].dims == ("measurement", "y", "x") and list(result["measurement"].values) == ["a", "b"]
    assert run(stack[:1]).sizes["measurement"] == 1
    stack[1] = np.nan
    with pytest.raises(UserError, match="measurement 1 has no values"):
        run(stack)


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"noise": None}, "the noise is missing"),
        ({"noise": 0.0}, "expected a positive standard deviation"),
        ({"noise": "2 %"}, "expected a positive number or a law"),
        ({"measurement": 255 * NOISY}, "divide it, and the noise, by 255"),
        ({"measurement": 40000 * NOISY}, "divide it, and the noise, by 65535"),
        ({"measurement": NOISY * np.inf}, "infinite"),
        ({"measurement": NOISY * np.nan}, "no values but NaN"),
        ({"measurement": NOISY[:5]}, "the prior has images"),
        ({"measurement": xr.Dataset({"a": ("x", [1.0]), "b": ("x", [2.0])})}, "choose the measured one"),
        ({"measurement": np.array(["a"])}, "expected real or complex numbers"),
        ({"operator": "gausian-blur"}, "did you mean 'gaussian-blur'"),
        ({"operator": Mask((1, SIDE, SIDE), TRUTH > 0.5), "measurement": NOISY[:5]}, "observes"),
        ({"operator": "phase-retrieval"}, "observes"),
        ({"operator": "identity", "mask": TRUTH > 0}, "takes no mask"),
        ({"operator": 3}, "expected a name or an ObservationOperator"),
        ({"solver": "mmsp"}, "did you mean 'mmps'"),
        ({"solver": "mmps", "solver_settings": {"stepps": 3}}, "stepps"),
        ({"prior": "phantom-46"}, "unknown prior 'phantom-46'"),
        ({"prior": "lorenz63"}, "is no prior of images"),
        ({"prior": 7}, "is no prior of images"),
        ({"samples": 0}, "samples=0"),
        ({"interval": 90}, "interval=90"),
        ({"dtype": "half"}, "expected float32 or float64"),
        ({"device": "gpu"}, "is not there"),
        ({"truth": TRUTH[:3]}, "the truth has shape"),
        ({"measurement": xr.DataArray(NOISY, dims=("y", "x"), attrs={"units": "HU"}), "prior": "units"}, "'HU'"),
    ],
)
def test_mistakes_are_named(more, message):
    if more.get("prior") == "units":
        from dynamics.space import Field, Space

        prior = stationary()
        space = Space((Field("image", "1", ("y", "x")),), {"y": SIDE, "x": SIDE})
        object.__setattr__(prior, "space", space)
        more = {**more, "prior": prior}
    with pytest.raises((UserError, SpaceMismatch), match=message):
        run(**more)


def test_values_somewhat_outside_the_range_are_a_note():
    with pytest.warns(UserWarning, match="outside the prior's range"):
        result = run(NOISY + 0.8)
    assert "outside the prior's range" in result.attrs["range_note"]
    assert "not checked" in run(prior=stationary(bounds=None)).attrs["range_note"]


def test_the_memory_rule_counts_layers():
    layers = torch.nn.Conv2d(1, 8, 3, padding=1), torch.nn.SiLU(), torch.nn.Conv2d(8, 1, 3, padding=1)
    network = torch.nn.Sequential(*layers)
    prior = imaging.from_deepinv_denoiser(lambda x, sigma: x, (1, SIDE, SIDE))
    object.__setattr__(prior, "model", _Called(network))
    shape, pixels = (1, 16, 16), 256
    assert layer_bytes(prior, shape, dtype=torch.float32) == 4 * pixels * (8 + 8 + 1)
    assert layer_bytes(Channels(prior, 3), (3, 16, 16), dtype=torch.float32) == 3 * 4 * pixels * 17
    assert layer_bytes(PRIOR, (1, SIDE, SIDE), dtype=torch.float32) == 0
    one = 4 * pixels * (3 * 17 + 40)
    kwargs = {"backpropagates": True, "dtype": torch.float32}
    assert samples_at_once(prior, shape, budget=10.5 * one, **kwargs) == 10
    assert samples_at_once(prior, shape, budget=1.0, **kwargs) == 1


class _Called(torch.nn.Module):
    def __init__(self, network):
        super().__init__()
        self.network = network

    def forward(self, x, sigma):
        return self.network(x)


def test_priors_are_found_or_refused(tmp_path):
    assert load_prior(PRIOR) is PRIOR
    (tmp_path / "x.safetensors").write_bytes(b"nothing")
    with pytest.raises(UserError, match=r"x\.safetensors"):
        load_prior(tmp_path / "x.safetensors")
