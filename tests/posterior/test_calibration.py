"""Calibration finds the spread and the stretch that innovations were drawn with, for each experiment by itself."""

from __future__ import annotations

import pytest
import torch

from assimilate.posterior.calibration import Calibration
from assimilate.posterior.covariance import Modulated
from observations.likelihood import Likelihood
from observations.noise import GaussianNoise
from observations.sampling import Identity, random_mask

GRID = (1, 40, 40)
LAGS = torch.arange(30, dtype=torch.float64)


def innovations(alpha: float, stretch: float, members: int, seed: int) -> torch.Tensor:
    """Observed values minus zero means, drawn from the law that the calibration assumes."""
    truth = Modulated(
        torch.full((members, *GRID), 0.5 * alpha**0.5, dtype=torch.float64), torch.exp(-stretch * LAGS / 6)
    )
    rng = torch.Generator().manual_seed(seed)
    field = truth.draw(rng, (members, *GRID), dtype=torch.float64, device="cpu")
    return field + 0.05 * torch.randn(field.shape, generator=rng, dtype=torch.float64)


def test_scale_and_stretch_are_found_for_each_experiment():
    # 24 members x 160 gauges: the scale is known to about sqrt(2 / (24 * 40)) = 5 %, a grid step is 20 %.
    mask = random_mask(GRID, 0.1, 3)
    likelihood = Likelihood(mask, GaussianNoise(0.05))
    law = [(1.0, 1.0), (2.1, 1.45)]
    fields = torch.stack([innovations(*pair, 24, seed) for seed, pair in enumerate(law)])
    base = Modulated(torch.full((2, 24, *GRID), 0.5, dtype=torch.float64), torch.exp(-LAGS / 6))
    # y = 0 and means of the other sign give the same innovations.
    fitted = Calibration()(-fields, base, likelihood, torch.zeros(2, 1, mask.obs_size, dtype=torch.float64))
    for row, (alpha, stretch) in enumerate(law):
        found = float((fitted.std[row] / base.std[row]).mean() ** 2)
        assert found == pytest.approx(alpha, rel=0.25)
        at_six = float(fitted.correlation[row, 0, 6])
        assert at_six == pytest.approx(float(torch.exp(torch.tensor(-stretch))), rel=0.3)


def test_values_are_needed():
    base = Modulated(torch.ones(1, 2, *GRID, dtype=torch.float64), torch.exp(-LAGS / 6))
    with pytest.raises(ValueError, match="picks values"):
        Calibration()(
            torch.zeros(1, 2, *GRID), base, Likelihood(Identity(GRID), GaussianNoise(0.1)), torch.zeros(1, 1, *GRID)
        )
    mask = random_mask(GRID, 0.1, 3)
    nothing = torch.full((1, 1, mask.obs_size), torch.nan, dtype=torch.float64)
    likelihood = Likelihood(mask, GaussianNoise(0.1))
    assert Calibration()(torch.zeros(1, 2, *GRID, dtype=torch.float64), base, likelihood, nothing) is base
