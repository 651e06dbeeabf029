"""Energy spectra: fields whose spectrum is known, Parseval, and scores that pool over times and experiments."""

import math

import numpy as np
import pytest
import torch
import xarray as xr

from assimilate.report import render
from assimilate.storage import write_groups
from assimilate.verification import statistics as v
from assimilate.verification.spectra import Flow, energy_spectrum, flow_of, pooled_spectra, spectrum_error
from dynamics.navier_stokes import NavierStokes
from dynamics.space import Field, LogOnePlus, Space
from dynamics.spectral import SpectralGrid

SIZES = [16, 17, 24]


def vorticity(size, length=2 * math.pi, name="vorticity", **more):
    axis = np.arange(size) * length / size
    return Space((Field(name, "1", ("y", "x")),), {"y": axis, "x": axis}, **({"periodic": ("y", "x")} | more))


def band_limited(size, seed=0):
    """Random vorticities with the modes below the two-thirds cut, float64 (3, n, n)."""
    grid = SpectralGrid(size)
    noise = torch.randn(3, size, size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return grid.field(grid.spectrum(noise - noise.mean((-2, -1), keepdim=True)))


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("length", [2 * math.pi, 3.0])
def test_a_wave_has_its_energy_in_its_shell(size, length):
    # w = a cos(q.r) with q = (2 pi / L) (3, 4): |u|^2 has the mean a^2 / (2 |q|^2), energy a^2 / (4 |q|^2), shell 5.
    axis = torch.arange(size, dtype=torch.float64) * length / size
    unit = 2 * math.pi / length
    field = 1.5 * torch.cos(unit * (4 * axis[:, None] + 3 * axis[None]) + 0.3)
    found = energy_spectrum(field[None], Flow("vorticity", size, length))
    expected = torch.zeros((size - 1) // 3, dtype=torch.float64)
    expected[4] = 1.5**2 / (4 * (5 * unit) ** 2)
    torch.testing.assert_close(found, expected, atol=1e-14, rtol=1e-12)


@pytest.mark.parametrize("size", SIZES)
def test_shells_add_up_to_the_energy(size):
    """Parseval. Corners of the square of modes lie beyond the last shell, so waves there are left out."""
    grid, flow = SpectralGrid(size), Flow("vorticity", size, 2 * math.pi)
    rows, columns = grid.waves
    inside = (rows**2 + columns**2).sqrt() < grid.cut + 0.5
    spectrum = grid.spectrum(band_limited(size)) * inside
    found = energy_spectrum(grid.field(spectrum)[:, None], flow)
    assert found.shape == (3, flow.cut)
    torch.testing.assert_close(found.sum(-1), grid.energy(spectrum), rtol=1e-12, atol=0)


@pytest.mark.parametrize("size", SIZES)
def test_velocity_and_vorticity_have_one_spectrum(size):
    grid, field = SpectralGrid(size), band_limited(size)
    velocity = grid.velocity(grid.spectrum(field))
    torch.testing.assert_close(
        energy_spectrum(velocity, Flow("velocity", size, 2 * math.pi)),
        energy_spectrum(field[:, None], Flow("vorticity", size, 2 * math.pi)),
    )


def test_a_state_does_not_depend_on_the_others():
    flow, fields = Flow("vorticity", 16, 2 * math.pi), band_limited(16)[:, None]
    together = energy_spectrum(fields.reshape(3, 1, 1, 16, 16), flow)
    assert together.shape == (3, 1, 5)
    torch.testing.assert_close(together[2, 0], energy_spectrum(fields[2], flow), rtol=1e-12, atol=0)
    single = energy_spectrum(fields.float(), flow)
    torch.testing.assert_close(single.double(), together[:, 0], rtol=1e-4, atol=0)


def test_only_flows_on_a_periodic_square_have_a_spectrum():
    assert flow_of(NavierStokes(size=24).space) == Flow("vorticity", 24, pytest.approx(2 * math.pi))
    assert flow_of(vorticity(16, 3.0)) == Flow("vorticity", 16, pytest.approx(3.0))
    assert flow_of(vorticity(16, name="w")) is None
    axis = np.arange(16.0)
    labelled = (Field("u", "m s-1", ("y", "x"), standard_name="sea_water_x_velocity"),
                Field("v", "m s-1", ("y", "x"), standard_name="sea_water_y_velocity"))  # fmt: skip
    flow = flow_of(Space(labelled, {"y": axis, "x": axis}, periodic=("y", "x")))
    assert flow == Flow("velocity", 16, pytest.approx(16.0))
    for other in (
        vorticity(16, periodic=("y",)),
        vorticity(16, mask=np.eye(16, dtype=bool)),
        Space((Field("vorticity", "1", ("y", "x"), transform=LogOnePlus(1.0)),), {"y": axis, "x": axis}, ("y", "x")),
        Space((Field("vorticity", "1", ("y", "x")),), {"y": axis, "x": 2 * axis}, periodic=("y", "x")),
        Space((Field("vorticity", "1", ("y", "x")),), {"y": axis, "x": axis[:8]}, periodic=("y", "x")),
        Space((Field("vorticity", "1", ("x",)),), {"x": axis}, periodic=("x",)),
        Space.scalars("vorticity"),
    ):
        assert flow_of(other) is None


def flows(members, truth):
    """An analysis (experiment, member, time, y, x) and its truth as Datasets."""
    size = truth.shape[-1]
    space = vorticity(size)
    coords = {"time": np.arange(float(truth.shape[1])), **{d: space.coords[d].values for d in "yx"}}
    analysis = xr.Dataset({"vorticity": (("experiment", "member", "time", "y", "x"), members)}, coords)
    return analysis, xr.Dataset({"vorticity": (("experiment", "time", "y", "x"), truth)}, coords), space


def test_members_with_the_wrong_amplitude_have_the_known_error():
    rng = np.random.default_rng(0)
    truth = rng.normal(size=(2, 3, 16, 16))
    analysis, known, space = flows(np.stack([1.1 * truth, -0.9 * truth], 1), truth)
    # Signs do not matter: E is (1.21 + 0.81) / 2 = 1.01 times that of the truth; that of the mean 0.01 times.
    assert v.evaluate(analysis, known, space=space)["spectrum_error"] == pytest.approx(0.01, rel=1e-9)
    pooled = pooled_spectra(v.statistics(analysis, known, space=space))
    np.testing.assert_allclose(pooled["spectrum_of_mean"], 0.01 * pooled["spectrum_of_truth"], rtol=1e-9)
    weights = np.log(np.broadcast_to([[[1.0], [1e-300]]], (2, 2, 3)))
    weighted = analysis.assign(log_weights=(("experiment", "member", "time"), weights))
    assert v.evaluate(weighted, known, space=space)["spectrum_error"] == pytest.approx(0.21, rel=1e-9)
    means = xr.Dataset({"vorticity_mean": known["vorticity"] * 0.5}, known.coords)
    assert v.evaluate(means, known, space=space)["spectrum_error"] == pytest.approx(0.75, rel=1e-9)


def test_times_and_experiments_are_pooled_before_they_are_compared():
    """Two times with energies 1 and 9 where the members have 9 and 1: no error, and none from where time is cut."""
    field = band_limited(16).numpy()[:1]
    truth = np.stack([np.concatenate([field, 3 * field])])
    analysis, known, space = flows(np.repeat(truth[:, ::-1][:, None], 2, 1).copy(), truth)
    whole = v.statistics(analysis, known, space=space)
    parts = [v.statistics(analysis.isel(time=[k]), known, space=space) for k in range(2)]
    joined = xr.concat(parts, "time", data_vars="minimal")
    assert spectrum_error(pooled_spectra(whole)) == pytest.approx(0.0, abs=1e-9)
    assert spectrum_error(pooled_spectra(joined)) == pytest.approx(0.0, abs=1e-9)
    assert v.scores(joined, v.Scoring(drop=1))["spectrum_error"] == pytest.approx(1 - 1 / 9, rel=1e-9)


def test_other_states_have_no_such_score():
    space = Space.scalars("x")
    times = {"time": np.arange(3.0)}
    truth = xr.Dataset({"x": ("time", np.zeros(3))}, times)
    analysis = xr.Dataset({"x": (("member", "time"), np.ones((2, 3)))}, times)
    assert "spectrum_error" not in v.evaluate(analysis, truth, space=space)


def test_the_report_draws_the_spectra(tmp_path):
    rng = np.random.default_rng(0)
    truth = rng.normal(size=(1, 3, 16, 16))
    analysis, known, space = flows(np.stack([1.1 * truth, truth], 1), truth)
    analysis = analysis.isel(experiment=0)
    analysis = analysis.assign(vorticity_mean=analysis["vorticity"].mean("member"))
    spectra = pooled_spectra(v.statistics(analysis, known.isel(experiment=0), space=space))
    seen = xr.Dataset({"observation": (("time", "value"), np.zeros((3, 1)))}, {"time": known["time"]})
    groups = {"truth": known.isel(experiment=0), "observations": seen,
              "one": analysis.assign(spectra).assign_attrs(label="one")}  # fmt: skip
    write_groups(tmp_path / "result.nc", groups, {"title": "t", "labels": '["one"]'})
    page = render(tmp_path).read_text()
    assert "Kinetic-energy spectra" in page and (tmp_path / "figures" / "spectra.png").stat().st_size > 5000
