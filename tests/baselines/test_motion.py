"""The motion of a storm from its gauges: carried places are right, and a known motion is found again."""

from __future__ import annotations

import math

import pytest
import torch
from torch.nn import functional

from assimilate.baselines.motion import MotionFit, candidates, carried, field_scale
from dynamics.random import normal

GRID = (96, 80)


def texture(rng: torch.Generator, length: float = 12.0) -> torch.Tensor:
    """A field with an exponential covariance on a torus of 256 cells."""
    gap = torch.minimum(torch.arange(256), 256 - torch.arange(256)).float()
    table = torch.exp(-torch.sqrt(gap[:, None] ** 2 + gap**2) / length)
    spectrum = torch.fft.rfft2(table).real.clamp_min(0)
    return torch.fft.irfft2(torch.fft.rfft2(normal(rng, (256, 256))) * spectrum.sqrt(), s=(256, 256))


def values(field: torch.Tensor, places: torch.Tensor) -> torch.Tensor:
    points = (2 * (places + 80) / 255 - 1).flip(-1)[None, None]
    return functional.grid_sample(field[None, None], points, align_corners=True)[0, 0, 0]


def test_carried_places_move_with_the_wind_and_turn_about_the_centre():
    places = torch.tensor([[40.0, 50.0], [40.0, 40.0]])
    wind = torch.tensor([[3.0, -2.0, 43.0, 38.0, 0.0, math.log(10.0), 0.0]])
    torch.testing.assert_close(carried(wind, places)[0], places + torch.tensor([3.0, -2.0]))
    # The centre is at (40, 40) an hour before; a quarter turn takes what lies in x to y, up the rows.
    quarter = torch.tensor([[0.0, 0.0, 40.0, 40.0, math.pi / 2 * 2**0.8, math.log(10.0), 0.0]])
    expected = torch.tensor([[50.0, 40.0], [40.0, 40.0]])
    found = carried(quarter, places)[0]
    assert torch.allclose(found, expected, atol=1e-4) or torch.allclose(found, 80 - expected + 0 * found, atol=1e-4)
    torch.testing.assert_close((found - 40).norm(dim=1), (places - 40).norm(dim=1))
    # An hour that ended an hour ago turned about where the centre was then.
    assert torch.equal(carried(wind, places, ago=1), carried(wind, places))


def test_a_known_wind_is_found_from_a_hundred_gauges():
    rng = torch.Generator().manual_seed(3)
    field, true = texture(rng), torch.tensor([5.0, -7.0])
    places = torch.rand(110, 2, generator=rng) * torch.tensor(GRID)
    seen = torch.stack([values(field, places + true * k) for k in (0, 1, 2)]) + 0.03 * normal(rng, (3, 110))
    motion = MotionFit(gauges=80)(places, seen, GRID)
    # What counts is where the gauges went; the vortex may take a part of a wind.
    error = (carried(motion[None], places)[0] - places - true).norm(dim=1).median()
    assert float(error) < 1.0
    assert float(motion[6].exp()) < 3.0


def test_a_known_vortex_is_found():
    rng = torch.Generator().manual_seed(4)
    field = texture(rng)
    true = torch.tensor([[2.0, 1.0, 50.0, 45.0, 0.9, math.log(15.0), 0.0]])
    places = torch.rand(110, 2, generator=rng) * torch.tensor(GRID)
    # A gauge of the hour before saw what is now where its place was carried to.
    went = carried(true, places)[0]
    seen = torch.stack([values(field, places), values(field, went)]) + 0.03 * normal(rng, (2, 110))
    motion = MotionFit(gauges=80)(places, seen, GRID)
    inside = ((went > 0) & (went < torch.tensor(GRID))).all(1)
    error = (carried(motion[None], places)[0] - went).norm(dim=1)[inside].median()
    assert float((went - places).norm(dim=1).median()) > 5 and float(error) < 1.5


def test_hours_that_have_nothing_in_common_are_forgotten():
    rng = torch.Generator().manual_seed(5)
    places = torch.rand(110, 2, generator=rng) * torch.tensor(GRID)
    seen = torch.stack([values(texture(rng), places) for _ in range(2)])
    assert float(MotionFit(gauges=80, starts=2)(places, seen, GRID)[6].exp()) > 8


def test_the_scale_of_a_field_is_that_of_its_law():
    rng = torch.Generator().manual_seed(6)
    places = torch.rand(150, 2, generator=rng) * torch.tensor(GRID)
    distance = torch.cdist(places, places).double()
    factor = torch.linalg.cholesky(torch.exp(-distance / 40) + 0.05**2 * torch.eye(150))
    drawn = 3.0 * (factor @ torch.randn(150, 40, generator=rng, dtype=torch.float64)).T.float() + 7.0
    # The squared scale of one draw is known to sqrt(2 / 149) = 12 %, the mean of 40 to 2 %.
    assert float(field_scale(places, drawn, 40.0, 0.05).square().mean()) == pytest.approx(9.0, rel=0.06)


def test_candidates_lie_about_the_grid():
    found = candidates(GRID)
    assert found.shape[1] == 7 and bool(torch.isfinite(found).all())
