"""Plug-and-play with exact Gaussian denoisers: fixed points in closed form."""

from __future__ import annotations

import pytest
import torch

from assimilate.posterior.denoisers import GaussianDenoiser
from dynamics.errors import CapabilityError
from dynamics.random import Streams
from imaging.baselines import PnPADMM, PnPRED
from imaging.solvers.base import Task
from observations.likelihood import Likelihood
from observations.noise import GaussianNoise
from observations.nonlinear import Arctan
from observations.sampling import Matrix

DOUBLE = torch.float64


def problem():
    rng = torch.Generator().manual_seed(0)
    root = torch.randn(6, 6, generator=rng, dtype=DOUBLE)
    prior = GaussianDenoiser(torch.randn(6, generator=rng, dtype=DOUBLE), root @ root.mT / 6 + 0.2 * torch.eye(6))
    matrix = torch.randn(3, 6, generator=rng, dtype=DOUBLE)
    y = torch.randn(2, 1, 3, generator=rng, dtype=DOUBLE)
    likelihood = Likelihood(Matrix((6,), matrix), GaussianNoise(0.3))
    return Task(prior, likelihood, y, DOUBLE), matrix


def posterior_mean(task, matrix, covariance):
    precision = matrix.mT @ matrix / 0.3**2 + torch.linalg.inv(covariance)
    pull = task.y @ matrix / 0.3**2 + torch.linalg.solve(covariance, task.prior.mean)
    return torch.linalg.solve(precision, pull.mT).mT


@pytest.mark.parametrize("level", [0.5, 1.0])
def test_admm_ends_at_the_posterior_mean_for_every_level(level):
    task, matrix = problem()
    answer = PnPADMM(level=level, iterations=600, inner=20)(task, rng=Streams(0, 2, 1))
    torch.testing.assert_close(answer.samples, posterior_mean(task, matrix, task.prior.covariance), rtol=0, atol=1e-6)
    assert answer.evaluations == 600


@pytest.mark.parametrize("level", [0.5, 1.0])
def test_red_ends_at_the_posterior_mean_of_the_smoothed_prior(level):
    task, matrix = problem()
    answer = PnPRED(level=level, iterations=600, inner=20)(task, rng=Streams(0, 2, 1))
    smoothed = task.prior.covariance + (level * task.prior.spread) ** 2 * torch.eye(6)
    torch.testing.assert_close(answer.samples, posterior_mean(task, matrix, smoothed), rtol=0, atol=1e-6)


@pytest.mark.parametrize("solver", [PnPADMM(iterations=10), PnPRED(iterations=10)])
def test_a_measurement_does_not_see_the_others(solver):
    task, _ = problem()
    together = solver(task, rng=Streams(0, 2, 3)).samples
    alone = solver(task._replace(y=task.y[1:]), rng=Streams(0, 1, 1)).samples
    torch.testing.assert_close(together[1:, :1], alone, rtol=0, atol=1e-10)


def test_what_they_need():
    task, _ = problem()
    nonlinear = task._replace(likelihood=Likelihood(Arctan((6,)), GaussianNoise(0.3)), y=torch.zeros(6))
    with pytest.raises(CapabilityError, match="linear"):
        PnPADMM()(nonlinear, rng=Streams(0))
    with pytest.raises(ValueError, match="level"):
        PnPRED(level=0.0)
