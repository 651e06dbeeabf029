"""Calibration: where the truth ranks among members of the analysis, on a stochastic Lorenz-96.

If members are draws of the posterior the truth is one draw more: its rank among M of them is uniform on 0..M. Truths,
observations and first ensembles come from one law, and each case has a truth of its own, so counts are independent and
their chi-square has M degrees of freedom. Ten variables with model noise, five of them seen at every step, which is
short: the posterior is close to Gaussian, and Kalman filters with many members are as good as exact. The covariance of
N = 100 is wrong by about 10 / N of itself after some cycles: 600 cases see less than one unit of chi-square of that.
"""

import pytest
import torch
from scipy.stats import chi2

from assimilate.filters.auxiliary import AuxiliaryFilter
from assimilate.filters.ensemble import ETKF, EnKF
from assimilate.filters.extended_kalman import ExtendedKalmanFilter
from assimilate.filters.finite_size import EnKFN
from assimilate.filters.iterative import IEnKF
from assimilate.filters.particle import BootstrapFilter, GuidedParticleFilter
from assimilate.filters.serial import SerialEnSRF
from dynamics import Lorenz96
from observations import GaussianNoise, Likelihood, Mask, Observation

DRAWS = 9
"""Members that the truth is ranked among: ten ranks."""
CYCLES = 8
CASES = 600
FLAT = chi2.isf(1e-3, DRAWS)
"""A calibrated filter stays below with probability 0.999 (and always or never so: the generator has a seed)."""
NOT_FLAT = chi2.isf(1e-9, DRAWS)
SYSTEM = Lorenz96(size=10, noise_std=0.2)
SEEN = Mask(SYSTEM.space, torch.arange(0, 10, 2))
ACCURATE = 0.3
"""Standard deviation of observation errors, near that of the forecast."""
COARSE = 1.0
"""One that some hundred particles can follow."""


def law(std):
    return Likelihood(SEEN, GaussianNoise(std=std))


def chi_square(method, *, members, std, assumed=None, cases=CASES, seed=0):
    """Chi-square of the ranks in the last analysis, of an observed variable and an unobserved one in turn.

    Args:
        method: a filter.
        members: of its ensemble.
        std: of the observation errors.
        assumed: standard deviation that the filter is told (default: `std`).
        cases: number of truths.
        seed: of all random numbers.
    """
    rng = torch.Generator().manual_seed(seed)
    base = SYSTEM.prior((cases, 1), rng=rng)
    for _ in range(60):
        base = SYSTEM.step(base, 0.0, rng=None)
    truth = base + 0.2 * torch.randn(base.shape, generator=rng)
    state = method.init(base + 0.2 * torch.randn(cases, members, 1, 10, generator=rng))
    told = law(std if assumed is None else assumed)
    for k in range(1, CYCLES + 1):
        truth = SYSTEM.step(truth, 0.0, rng=rng)
        y = law(std).sample(truth, rng=rng)
        state, _ = method.step(state, Observation(told, y), SYSTEM.dt * k, rng=rng)
    x, log_weights = method.ensemble(state)
    equal = bool((log_weights == log_weights[:, :1]).all())
    chosen = torch.multinomial(log_weights.exp(), DRAWS, replacement=not equal, generator=rng)
    case, variable = torch.arange(cases), torch.arange(cases) % 2
    drawn = x[case.unsqueeze(-1), chosen, 0, variable.unsqueeze(-1)]
    ranks = (drawn < truth[case, 0, 0, variable].unsqueeze(-1)).sum(-1)
    counts = torch.bincount(ranks, minlength=DRAWS + 1)
    expected = cases / (DRAWS + 1)
    return float((counts - expected).square().sum() / expected)


@pytest.mark.parametrize(
    ("method", "members", "std"),
    [
        (EnKF(SYSTEM), 100, ACCURATE),
        (ETKF(SYSTEM), 100, ACCURATE),
        (SerialEnSRF(SYSTEM), 100, ACCURATE),
        (IEnKF(SYSTEM), 100, ACCURATE),
        (ExtendedKalmanFilter(SYSTEM, prior="members"), 100, ACCURATE),
        (EnKFN(SYSTEM), 20, ACCURATE),
        (GuidedParticleFilter(SYSTEM), 400, COARSE),
        (BootstrapFilter(SYSTEM), 600, COARSE),
        (AuxiliaryFilter(SYSTEM), 600, COARSE),
    ],
    ids=lambda value: value.name if hasattr(value, "name") else str(value),
)
def test_rank_histograms_are_flat(method, members, std):
    assert chi_square(method, members=members, std=std) < FLAT


@pytest.mark.parametrize(
    ("method", "members", "std"), [(EnKF, 100, ACCURATE), (ETKF, 100, ACCURATE), (BootstrapFilter, 600, COARSE)]
)
def test_the_same_check_finds_wrong_settings(method, members, std):
    without_noise = Lorenz96(size=10)
    assert chi_square(method(SYSTEM), members=members, std=std, assumed=std / 3) > NOT_FLAT
    assert chi_square(method(without_noise), members=members, std=std) > NOT_FLAT


def test_ten_members_are_overconfident_without_inflation():
    """Kalman filters with as many members as variables; twenty with the finite-size law are calibrated (above)."""
    assert chi_square(EnKF(SYSTEM), members=10, std=ACCURATE) > NOT_FLAT
    assert chi_square(ETKF(SYSTEM), members=10, std=ACCURATE) > NOT_FLAT


@pytest.mark.slow
@pytest.mark.parametrize(
    ("method", "members", "std"),
    [
        (EnKF(SYSTEM), 400, ACCURATE),
        (ETKF(SYSTEM), 400, ACCURATE),
        (GuidedParticleFilter(SYSTEM), 2000, COARSE),
        (BootstrapFilter(SYSTEM), 8000, COARSE),
    ],
    ids=lambda value: value.name if hasattr(value, "name") else str(value),
)
def test_rank_histograms_of_many_cases_are_flat(method, members, std):
    """Ten batches: their chi-squares add up to one with ten times the degrees of freedom."""
    found = [chi_square(method, members=members, std=std, seed=seed) for seed in range(10)]
    assert sum(found) < chi2.isf(1e-3, 10 * DRAWS), found
