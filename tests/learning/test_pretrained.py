"""Shipped weights: they load, they say where they are from, and one step of them is right."""

from __future__ import annotations

import pytest
import torch

from assimilate.errors import UnknownName
from assimilate.learning.diagnose import one_step_errors
from assimilate.learning.pretrained import find_pretrained, list_pretrained, load_pretrained
from assimilate.learning.samples import Trajectories
from assimilate.posterior.samplers import Ancestral
from assimilate.posterior.time_grids import ratio_times
from dynamics import Lorenz63, Streams
from dynamics.double_well import DoubleWell
from dynamics.lorenz import FLOWDAS_SCALE


def test_the_list_says_what_each_file_is():
    found = list_pretrained()
    assert {"lorenz63", "lorenz63-window", "double-well"} <= set(found)
    for name in ("lorenz63", "double-well"):
        entry = found[name]
        assert entry["kind"] == "transition" and "measured" in entry["record"]
        assert entry["record"]["denoiser"]["seconds"] > 0 and entry["data"]["trajectories"] > 0
        assert entry["bytes"] < 10_000_000
    assert found["lorenz63"]["data"]["trajectories"] == 819
    with pytest.raises(UnknownName, match="did you mean 'lorenz63'"):
        find_pretrained("lorenz64")


def test_one_step_of_lorenz63():
    # Goal: mean within 0.002 in normalised units, spread within 3 % in each component. 400 states and 200 draws know
    # the rms mean error to 0.0002 of 0.02 (its square has the noise 0.02^2 sqrt(2 / 400) / 200) and the spread to
    # 1 / sqrt(2 * 80,000) = 0.25 %: tolerances are the goals.
    true, learned = Lorenz63.flowdas(), load_pretrained("lorenz63")
    assert learned.dt == true.dt and learned.space.channels == true.space.channels
    states = Trajectories.simulated(true, trajectories=400, states=2, spinup=300, seed=4711).states[:, 0]
    errors = one_step_errors(learned, true, states, draws=200, rng=torch.Generator().manual_seed(0))
    assert bool((errors.mean / torch.tensor(FLOWDAS_SCALE) < 0.002).all())
    assert bool(((errors.spread > 0.97) & (errors.spread < 1.03)).all())
    # The forecast alone, which has no sampling error.
    forecast = (learned.step(states, 0.0, rng=None) - true.step(states, 0.0, rng=None)) / torch.tensor(FLOWDAS_SCALE)
    assert float(forecast.square().mean().sqrt()) < 0.001


@pytest.mark.parametrize("start", [-1.3, -1.0, -0.4, 0.0, 0.7, 1.1])
def test_one_step_of_the_double_well_has_both_modes(start):
    # Kolmogorov distance to the exact transition. 20,000 draws of the true law stay below 1.95 / sqrt(n) = 0.014 in
    # all but a thousandth of cases; the learned law may add 0.03. A Gaussian of the right mean and spread has 0.24.
    true, learned = DoubleWell(), load_pretrained("double-well")
    points = torch.linspace(-3, 3, 241, dtype=torch.float64)
    spacing = float(points[1] - points[0])
    row = round((start + 3) / spacing)
    exact = torch.cumsum(true.transition_matrix(points)[row] * spacing, 0)
    x = torch.full((20_000, 1), float(points[row]))
    for dynamics, low, high in ((learned, 0.0, 0.045), (learned.gaussian(), 0.2, 1.0)):
        drawn = dynamics.step(x, 0.0, rng=torch.Generator().manual_seed(0))[:, 0].double().sort().values
        found = torch.searchsorted(drawn, points + spacing / 2) / len(x)
        assert low <= float((found - exact).abs().max()) < high


def test_rows_of_a_shipped_transition_do_not_depend_on_others():
    learned = load_pretrained("lorenz63")
    x = learned.prior((2, 5), rng=Streams(1, 2, 5))
    whole = learned.step(x, 0.0, rng=Streams(2, 2, 5))
    part = learned.step(x[:, :3], 0.0, rng=Streams(2, 2, 3))
    assert torch.allclose(whole[:, :3], part, atol=1e-4)


def test_windows_of_lorenz63_obey_the_dynamics():
    # Mean log density per transition of windows drawn from the prior: 1.27 nats for true ones (3 x -log(0.158 sqrt(2 pi
    # e))), each window's mean with a standard deviation of sqrt(3 / 2 / 14) = 0.33 over its 14 transitions.
    true, prior = Lorenz63.flowdas(), load_pretrained("lorenz63-window")
    times = ratio_times(prior.path, 64, largest=50.0, smallest=0.004, start=False)
    rng = torch.Generator().manual_seed(0)
    length = 2 * prior.order + 1
    start = prior.path.coefficients(times[0], torch.zeros(1)).noise * torch.randn(200, length, 3, generator=rng)
    drawn = Ancestral()(prior.trajectories(), prior.path, start, times=times, event_dims=2, rng=rng).x
    windows = prior.decode(drawn)
    density = true.log_prob(windows[:, 1:], windows[:, :-1], 0.0).mean(1)
    assert 0.9 < float(density.median()) < 1.7
    # The climate: mean of z and the spread of x, each known to 200 windows of one independent state.
    climate = Trajectories.simulated(true, trajectories=400, states=2, spinup=300, seed=3).standardisation()
    assert float(windows[..., 2].mean()) == pytest.approx(climate.mean[2], abs=4 * 8.4 / 200**0.5)
    assert float(windows[..., 0].std()) == pytest.approx(climate.std[0], rel=4 * (0.5 / 200) ** 0.5)
