"""The correlation of what a denoiser leaves open: measured, kept in the file, and calibrated on held-out steps."""

import math

import numpy as np
import pytest
import torch
from torch import nn

from assimilate.learning.checkpoint import save_checkpoint
from assimilate.learning.correlation import (
    LaggedCorrelation,
    ResidualCorrelation,
    correlation_by_distance,
    measured_correlation,
    stored_correlation,
)
from assimilate.learning.denoiser import EDMDenoiser
from assimilate.learning.fit import FitSettings
from assimilate.learning.networks import UNetSettings
from assimilate.learning.objectives import Batch
from assimilate.learning.pretrained import load_pretrained
from assimilate.learning.samples import Trajectories
from assimilate.learning.transition_fit import TransitionFit, fit_transition
from assimilate.posterior.covariance import Modulated
from assimilate.posterior.periodic import Periodic
from assimilate.posterior.transition import draw
from dynamics import Coordinate, Field, Space, Streams

SIZE = 16


def ring(size: int = SIZE) -> torch.Tensor:
    rows = torch.fft.fftfreq(size, 1 / size)[:, None]
    columns = torch.arange(size // 2 + 1.0)[None]
    power = torch.exp(-2 * ((rows**2 + columns**2).sqrt() - 3).square()) + 1e-3
    return (power / torch.fft.irfft2(power, s=(size, size))[0, 0])[None]


def fields(count: int, seed: int) -> torch.Tensor:
    covariance = Periodic(torch.ones(1, SIZE, SIZE), ring())
    rng = torch.Generator().manual_seed(seed)
    return covariance.draw(rng, (count, 1, SIZE, SIZE), dtype=torch.float32, device="cpu")


class Silent(nn.Module):
    """A network that says nothing: the denoiser is then EDM's linear one."""

    def __init__(self) -> None:
        super().__init__()
        self.settings = UNetSettings(outputs=2)
        self.nothing = nn.Parameter(torch.zeros(1))

    def forward(self, x: torch.Tensor, noise: torch.Tensor, context: torch.Tensor | None = None) -> torch.Tensor:
        return x.new_zeros(len(x), 2, *x.shape[2:])


def test_the_power_is_that_of_the_errors_of_a_linear_denoiser() -> None:
    denoiser = EDMDenoiser(Silent(), event_dims=3, variance=True)
    table = measured_correlation(denoiser, lambda count, rng: Batch(fields(count, 7)), (10.0, 0.1), fields=512)
    assert table.power.shape == (13, 1, SIZE, SIZE // 2 + 1)
    for ratio, power in zip(table.ratios.tolist(), table.power, strict=True):
        skip = 1 / (1 + ratio**2)
        # r - skip (r + rho z), in units of rho skip^(1/2).
        expected = ((1 - skip) ** 2 * ring() + skip**2 * ratio**2) / (ratio**2 * skip)
        expected = expected / torch.fft.irfft2(expected, s=(SIZE, SIZE))[0, 0, 0]
        large = expected > 0.1
        # A wave's power in 512 fields (64 of them different): sqrt(2 / 64), five times.
        assert float((power / expected - 1)[large].abs().max()) < 5 * math.sqrt(2 / 64)


def test_levels_between_those_of_the_table_and_other_grids() -> None:
    table = ResidualCorrelation(torch.tensor([0.1, 1.0]), torch.stack([ring(), torch.ones_like(ring())]))
    assert torch.allclose(table.at(10**-0.5), 0.5 * (ring() + 1), atol=1e-5)
    assert torch.equal(table.at(5.0), torch.ones_like(ring())) and torch.equal(table.at(0.0), ring())
    with pytest.raises(ValueError, match=r"measured on a grid of \(16, 16\); the state has \(8, 8\)"):
        table.covariance(torch.ones(2, 1, 8, 8), 0.5)


def test_the_correlation_by_distance_is_that_of_the_law_whatever_the_spread() -> None:
    lags = torch.exp(-torch.arange(12.0) / 3)
    rng = torch.Generator().manual_seed(5)
    count = 400
    spread = 0.1 + torch.rand(count, 1, SIZE, SIZE, generator=rng)
    law = Modulated(spread, lags)
    error = law.draw(rng, tuple(spread.shape), dtype=torch.float32, device="cpu")
    found = correlation_by_distance(error, spread)
    # The torus of the law drops what its table has of negative power, so that is asked for its correlations.
    expected = law.block(torch.arange(SIZE)).matrix[0]
    # A field of 16 cells a side has about ten patches of three cells: sqrt(1 / (10 * 400)) = 0.016, four times.
    assert len(found) == SIZE and found[0] == 1
    assert float((found - expected)[:12].abs().max()) < 0.064
    assert abs(float(found[1]) - math.exp(-1 / 3)) < 0.02


def test_the_table_by_distance_makes_covariances_on_any_grid_and_is_kept() -> None:
    near, far = torch.exp(-torch.arange(8.0) / 2), torch.ones(8)
    table = LaggedCorrelation(torch.tensor([0.1, 1.0]), torch.stack([near, far])).scaled(4.0)
    std = torch.rand(3, 1, 6, 10, generator=torch.Generator().manual_seed(0))
    block = table.covariance(std, 0.1).block(torch.tensor([0, 1, 30]))
    assert torch.allclose(block.scale, 2 * std.flatten(-3)[:, [0, 1, 30]])
    assert torch.allclose(block.matrix.diagonal(), torch.ones(3), atol=1e-6)
    # On the torus a table that is not quite positive definite moves a little.
    assert abs(float(block.matrix[0, 1]) - math.exp(-0.5)) < 0.05
    assert torch.allclose(table.at(10**-0.5), 2 * (near + far))
    kept = stored_correlation(table.tensors())
    assert isinstance(kept, LaggedCorrelation) and torch.equal(kept.lags, table.lags)
    assert stored_correlation({"states": std}) is None
    with pytest.raises(ValueError, match="for one field; the state has 2"):
        table.covariance(torch.ones(2, 8, 8), 0.5)
    with pytest.raises(ValueError, match="for one field; the state has 2"):
        correlation_by_distance(torch.ones(1, 2, 8, 8), torch.ones(1, 2, 8, 8))


def trajectories_of(noise: torch.Tensor, periodic: tuple[str, ...]) -> Trajectories:
    """x_k = 0.8 x_{k-1} + 0.6 e_k."""
    states = [noise[:, 0]]
    for k in range(1, noise.shape[1]):
        states.append(0.8 * states[-1] + 0.6 * noise[:, k])
    axes = {d: Coordinate(np.arange(SIZE, dtype=float), (d,), "1") for d in ("y", "x")}
    space = Space((Field("vorticity", "1", ("y", "x")),), axes, periodic=periodic)
    return Trajectories(torch.stack(states, 1), space, 1.0)


@pytest.fixture(scope="module")
def trajectories() -> Trajectories:
    """Driven by fields of a ring of waves."""
    return trajectories_of(fields(16 * 20, 3).reshape(16, 20, 1, SIZE, SIZE), ("y", "x"))


def test_a_transition_fitted_without_periodicity_knows_its_errors_by_distance(tmp_path) -> None:
    lags = torch.exp(-torch.arange(12.0) / 3)
    law = Modulated(torch.ones(1, SIZE, SIZE), lags)
    noise = law.draw(torch.Generator().manual_seed(4), (320, 1, SIZE, SIZE), dtype=torch.float32, device="cpu")
    data = trajectories_of(noise.reshape(16, 20, 1, SIZE, SIZE), ())
    quick = FitSettings(steps=40, batch=16, learning_rate=5e-3, warmup=10, ema=0.9, held_out_every=0)
    network = {"widths": [8, 16]}
    settings = TransitionFit(
        architecture="unet", forecast_network=network, denoiser_network=network, forecast=quick, denoiser=quick,
        held_out=0.25, patch=(8, 8), ratios=(20.0, 0.1), correlated=True, calibrate=False, steps=4,
        stored=8,
    )  # fmt: skip
    made = fit_transition(data, settings)
    assert isinstance(made.correlation, LaggedCorrelation)
    # At the largest level what is left open is the noise of a step itself.
    found = made.correlation.lags[-1] / made.correlation.lags[-1, 0]
    assert abs(float(found[1]) - math.exp(-1 / 3)) < 0.1 and abs(float(found[2]) - math.exp(-2 / 3)) < 0.15
    loaded = load_pretrained(save_checkpoint(made.to_checkpoint(), tmp_path / "made.safetensors"))
    assert torch.equal(loaded.correlation.lags, made.correlation.lags)
    assert loaded.predictor.largest == 20.0
    assert bool((made.correlation.lags[:, 0] == 1).all()) and "calibration" not in made.record


def test_a_fitted_transition_has_the_spread_of_its_errors(trajectories: Trajectories, tmp_path) -> None:
    quick = FitSettings(steps=80, batch=16, learning_rate=5e-3, warmup=10, ema=0.9, held_out_every=0)
    network = {"widths": [16, 24], "padding": "circular"}
    settings = TransitionFit(
        architecture="unet", forecast_network=network, denoiser_network=network, forecast=quick, denoiser=quick,
        held_out=0.25, ratios=(50.0, 0.1), correlated=True, steps=4, stored=8,
    )  # fmt: skip
    made = fit_transition(trajectories, settings)
    loaded = load_pretrained(save_checkpoint(made.to_checkpoint(), tmp_path / "made.safetensors"))
    x, after = trajectories.states[12:, ::4][:, :4].flatten(0, 1), trajectories.states[12:, 1::4][:, :4].flatten(0, 1)
    many = x.unsqueeze(1).expand(-1, 8, *x.shape[1:]).contiguous()
    with torch.no_grad():
        drawn = draw(loaded, many, 0.0, event_dims=3, rng=Streams(1, len(x), 8).at(0)).x
    spread = float(drawn.var(1).mean())
    error = float((drawn.mean(1) - after).square().mean()) - spread / 8
    # 16 steps of about 40 waves each: the squared error is known to sqrt(2 / 640) = 6 %, three times that.
    assert abs(spread / error - 1) < 0.18
    assert torch.equal(loaded.correlation.power, made.correlation.power)
    assert 0.2 < made.record["calibration"]["factors"][0] < 5


def test_a_correlation_needs_levels() -> None:
    with pytest.raises(ValueError, match="needs 'ratios'"):
        TransitionFit(correlated=True)
