"""Vertically integrated liquid: its codes, and simulated events."""

import numpy as np
import pytest
import torch

from dynamics import Streams, check_dynamics
from dynamics.vil import SimulatedVIL, code, liquid, of_rain, simulated_sevir, to_rain


def test_codes_are_the_published_rule():
    x = torch.tensor([0.0, 5.0, 6.0, 18.0, 19.0, 254.0]).double()
    expected = [0, 0, 4 / 90.66, 16 / 90.66, np.exp(-64.9 / 38.9), np.exp(170.1 / 38.9)]
    np.testing.assert_allclose(liquid(x), expected)


def test_codes_are_inverted():
    x = torch.arange(6.0, 255.0).double()
    torch.testing.assert_close(code(liquid(x)), x, atol=1e-9, rtol=0)
    # No amount has no code, any larger one has no lower code; 1 mm/h of rain is 0.284 kg m-2.
    amounts = torch.cat([torch.zeros(1), torch.logspace(-4, 3, 4000)]).double()
    found = code(amounts)
    assert found[0] == 0 and found[-1] == 254 and (found.diff() >= 0).all()
    x = float(255 * of_rain(torch.log1p(torch.ones(1).double())))
    assert float(liquid(torch.tensor(x))) == pytest.approx(3.44e-6 * 200 ** (4 / 7) * 4000, rel=1e-5)


def test_rain_is_inverted():
    rain = torch.linspace(0.2, 5.0, 200).double()
    torch.testing.assert_close(to_rain(of_rain(rain)), rain)


def test_contract():
    check_dynamics(SimulatedVIL(16))


def test_refuses_a_grid_without_room():
    with pytest.raises(ValueError, match="size is 4; expected a whole number of 8 or more"):
        SimulatedVIL(4)


@pytest.fixture(scope="module")
def events():
    return SimulatedVIL(48).events((40,), 3, rng=torch.Generator().manual_seed(0))


def test_events_have_the_archive_s_moments(events):
    """The archive: mean 0.131, standard deviation 0.186. Storms differ: their mean varies by 0.1, so by 0.016 here."""
    assert events.shape == (40, 3, 1, 48, 48) and float(events.min()) == 0 and float(events.max()) < 1
    assert abs(float(events.mean()) - 0.131) < 3 * float(events.mean((1, 2, 3, 4)).std()) / 40**0.5
    assert abs(float(events.std()) - 0.186) < 0.04


def test_motion_persists(events):
    """A storm that moves on as it did is foretold by its own motion better than by standing still.

    The motion between the first two frames is found by shifting; the shift is then tried on the third.
    """

    def error(a, b, dy, dx):
        n = 8
        moved = torch.roll(a, (dy, dx), (-2, -1))[..., n:-n, n:-n]
        return (moved - b[..., n:-n, n:-n]).square().mean()

    shifts = [(dy, dx) for dy in range(-4, 5) for dx in range(-4, 5)]
    still = moving = 0.0
    for first, second, third in events[:, :, 0]:
        best = min(shifts, key=lambda s: float(error(first, second, *s)))
        still, moving = still + float(error(second, third, 0, 0)), moving + float(error(second, third, *best))
    assert moving < 0.8 * still


def test_simulated_archive_is_lazy_and_reproducible():
    ds = simulated_sevir(events=6, size=16, frames=5)
    assert ds.vil.shape == (6, 5, 16, 16) and ds.vil.chunks is not None
    assert list(ds.time.values) == [-20, -10, 0, 10, 20] and float(ds.x[1] - ds.x[0]) == 3
    third = ds.vil[2].values
    # An event is the same among more of them, alone, and drawn directly; another split has others.
    np.testing.assert_array_equal(simulated_sevir(events=9, size=16, frames=5).vil[2].values, third)
    rng = Streams(0, experiments=(2,), members=1)
    np.testing.assert_array_equal(SimulatedVIL(16).events((1, 1), 5, rng=rng)[0, 0, :, 0].numpy(), third)
    assert not np.array_equal(simulated_sevir(split="test", events=6, size=16, frames=5).vil[2].values, third)
