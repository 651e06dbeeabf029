"""Tuning: the setting with the least error over the validation tasks, and an honest table."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from assimilate.posterior.denoisers import GaussianDenoiser
from dynamics.random import Streams
from imaging.baselines import FISTA, PnPRED
from imaging.solvers.base import Task
from imaging.tuning import tune
from observations.likelihood import Likelihood
from observations.noise import GaussianNoise
from observations.sampling import Identity

DOUBLE = torch.float64


def validation():
    prior = GaussianDenoiser(torch.zeros(4, dtype=DOUBLE), torch.eye(4, dtype=DOUBLE))
    likelihood = Likelihood(Identity((4,)), GaussianNoise(1.0))
    truth = prior.draw((400,), rng=torch.Generator().manual_seed(0))
    y = likelihood.sample(truth[:, None], rng=Streams(1, 400, 1))
    return Task(prior, likelihood, y, DOUBLE), truth


def test_it_finds_the_minimum_of_a_known_curve():
    # RED with strength r on a unit prior shrinks y by 1 / (1 + r / (1 + s^2)): best is r = 1 + s^2, where the shrinkage
    # is 1 / 2 and the error 1 / 2.
    task, truth = validation()
    grid = {"strength": [0.2, 0.6, 1.25, 2.5, 6.0], "level": [0.5]}
    tuned = tune(lambda **settings: PnPRED(iterations=60, **settings), grid, [task], [truth])
    assert tuned.solver.strength == 1.25
    error = tuned.table.mean_squared_error
    assert error.dims == ("strength", "level")
    # Squared errors of 1,600 values: 5 standard errors of sqrt(2 / 1600) of it.
    assert float(error.sel(strength=1.25)[0]) == pytest.approx(0.5, rel=5 * (2 / 1600) ** 0.5)
    shrink = 1 / (1 + 6.0 / 1.25)
    assert float(error.sel(strength=6.0)[0]) == pytest.approx(shrink**2 + (1 - shrink) ** 2, rel=0.2)
    assert tuned.table.attrs["at_edge"] == ""


def test_edges_and_divergence_are_told():
    task, truth = validation()

    def make(strength):
        if strength > 3:
            class Diverging(PnPRED):
                def answer(self, task):
                    raise FloatingPointError("diverged")

            return Diverging()
        return PnPRED(strength=strength, level=0.5)

    tuned = tune(make, {"strength": [1.0, 0.1, 4.0]}, [task], [truth])
    assert tuned.solver.strength == 1.0 and tuned.table.attrs["at_edge"] == "strength"
    assert np.isinf(tuned.table.mean_squared_error.sel(strength=4.0))
    with pytest.raises(FloatingPointError, match="every setting"):
        tune(make, {"strength": [4.0]}, [task], [truth])


def test_arguments_are_checked():
    task, truth = validation()
    with pytest.raises(ValueError, match="one truth"):
        tune(FISTA, {"strength": [1.0]}, [task], [])
    with pytest.raises(ValueError, match="setting"):
        tune(FISTA, {}, [task], [truth])
