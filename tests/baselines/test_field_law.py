"""Laws of fields: stretched distances, the restricted likelihood in closed form, and known laws found again."""

from __future__ import annotations

import math

import pytest
import torch

from assimilate.baselines.field_law import LawFit, at_distance, correlation, isotropic, scale, stretched
from assimilate.baselines.motion import field_scale

GRID = (60, 50)


def law(length: float, stretch: float = 0.0, angle: float = 0.0, power: float = 1.0) -> torch.Tensor:
    turn = 2 * math.radians(angle)
    return torch.tensor(
        [math.log(length), stretch * math.cos(turn), stretch * math.sin(turn), power], dtype=torch.float64
    )


def seen(of: torch.Tensor, hours: int, count: int = 150, seed: int = 0) -> torch.Tensor:
    """Gaussian fields of a law with mean 3 at random gauges, `(hours, rows, columns)`."""
    rng = torch.Generator().manual_seed(seed)
    index = torch.randperm(GRID[0] * GRID[1], generator=rng)[:count].sort().values
    places = torch.stack([index // GRID[1], index % GRID[1]], 1).double()
    matrix = correlation(of, places, places) + 0.05**2 * torch.eye(count)
    values = 3 + torch.randn(hours, count, generator=rng, dtype=torch.float64) @ torch.linalg.cholesky(matrix).mT
    fields = torch.full((hours, GRID[0] * GRID[1]), torch.nan, dtype=torch.float64)
    fields[:, index] = values
    return fields.reshape(hours, *GRID)


def test_bands_are_alike_for_longer_along_than_across():
    one, zero = torch.ones((), dtype=torch.float64), torch.zeros((), dtype=torch.float64)
    found = law(20, 1.2, angle=0)
    # exp(s / 2) is the ratio of the ranges.
    torch.testing.assert_close(stretched(found, one, zero), math.exp(1.2) * stretched(found, zero, one))
    found = law(20, 1.2, angle=30)
    way = torch.tensor([math.sin(math.pi / 6), math.cos(math.pi / 6)], dtype=torch.float64)
    along, across = stretched(found, *way), stretched(found, way[1], -way[0])
    torch.testing.assert_close(along * across, one)
    torch.testing.assert_close(across / along, math.exp(1.2) * one)
    torch.testing.assert_close(stretched(law(20), way[0], way[1]), one)
    torch.testing.assert_close(at_distance(law(20, power=1.5), 9 * one), torch.exp(-((3 * one / 20) ** 1.5)))


def test_depth_is_a_third_dimension_and_the_scale_is_that_of_the_plain_law():
    fields = seen(law(30), 1)
    places = (~torch.isnan(fields[0])).nonzero().double()
    deep = torch.arange(150.0, dtype=torch.float64) % 7
    plain = isotropic(30.0, places)
    at = torch.cat([places, deep[:, None]], 1)
    torch.testing.assert_close(correlation(plain, places, places, deep, deep), torch.exp(-torch.cdist(at, at) / 30))
    values = fields[0][~torch.isnan(fields[0])]
    torch.testing.assert_close(scale(plain, places, values, 0.05), field_scale(places, values[None], 30.0, 0.05)[0])


def test_the_likelihood_is_that_of_contrasts():
    fields, fit = seen(law(10, 0.7, 20), 2, count=25), LawFit(lengths=(8.0, 30.0), stretches=(1.0,), angles=2)
    mask = ~torch.isnan(fields[0])
    places, values = mask.nonzero().double(), fields[:, mask]
    m, exact = 25, []
    # Rows that are orthonormal and add up to zero see neither the mean nor anything but the field.
    contrasts = torch.linalg.qr(torch.eye(m, dtype=torch.float64) - 1 / m)[0].mT[: m - 1]
    contrasts = torch.linalg.svd(contrasts - contrasts.mean(1, keepdim=True))[2][: m - 1]
    for one in fit.table():
        matrix = contrasts @ (correlation(one, places, places) + 0.05**2 * torch.eye(m)) @ contrasts.mT
        y = values @ contrasts.mT
        variance = (y * torch.linalg.solve(matrix, y.mT).mT).sum(1) / (m - 1)
        exact.append(-0.5 * (m - 1) * variance.log() - 0.5 * torch.logdet(matrix))
    found, expected = fit.log_likelihoods(places, values), torch.stack(exact)
    torch.testing.assert_close(found - found[:1], expected - expected[:1])


@pytest.mark.parametrize("angle", [25.0, 115.0])
def test_a_known_law_is_found_again(angle):
    # 150 gauges in five independent Gaussian hours: about 0.1 in log length and 0.15 in the stretch, by the curvature
    # of the likelihood; without tempering, and with a prior that hardly counts.
    fit = LawFit(temperature=1.0, spread=(3.0, 3.0, 0.2))
    true = law(16, 1.05, angle)
    found = fit(seen(true, 5))
    assert abs(float(found[0] - true[0])) < 0.4
    torch.testing.assert_close(found[1:3], true[1:3], rtol=0, atol=0.4)


def test_hours_may_have_other_gauges_and_dry_hours_say_nothing():
    fields, fit = torch.cat([seen(law(16), 2), seen(law(16), 1, seed=1)]), LawFit(hours=3, powers=(1.0,))
    mask = [~torch.isnan(f) for f in fields]
    table, width = fit.table(), torch.tensor([0.8, 0.7, 0.7, 0.2], dtype=torch.float64)
    logs = sum(fit.log_likelihoods(m.nonzero().double(), f[m][None])[:, 0] for m, f in zip(mask, fields, strict=True))
    middle = torch.tensor([math.log(30.0), 0.0, 0.0, 1.0], dtype=torch.float64)
    weights = torch.softmax(logs / fit.temperature - 0.5 * ((table - middle) / width).square().sum(1), 0)
    torch.testing.assert_close(fit(fields), weights @ table)
    dry = torch.where(torch.isnan(fields[:1]), torch.nan, 0.0)
    torch.testing.assert_close(fit(torch.cat([fields[:2], dry])), fit(fields[:2]))
    assert fit(dry) is None


def test_laws_of_many_fields_are_those_of_each():
    fit = LawFit(lengths=(8.0, 30.0), stretches=(1.0,), angles=4, powers=(1.0,), hours=3)
    storms = [seen(law(10, 0.7, angle), 3) for angle in (20, 70)]
    mask = ~torch.isnan(storms[0][0])
    values = torch.stack([storm[:, mask] for storm in storms] + [storms[0][:, mask] * 0])
    values[1, 2] = torch.nan
    found = fit.of_many(mask.nonzero(), values)
    torch.testing.assert_close(found[:2], torch.stack([fit(storms[0]), fit(storms[1][:2])]))
    assert bool(torch.isnan(found[2]).all())
