"""A small linear problem, and a correction at one noise level."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from assimilate.posterior.condition import condition
from assimilate.posterior.denoisers import GaussianDenoiser
from assimilate.posterior.paths import VE
from assimilate.posterior.predictors import Context, OnPath
from observations.base import LinearOperator, ObservationOperator
from observations.likelihood import Likelihood
from observations.noise import GaussianNoise
from observations.sampling import Matrix

PATH = VE(smallest=0.0, largest=40.0)


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


A = draw(3, 6, seed=1) / 6**0.5
Y = draw(3, seed=2)
LINEAR = Likelihood(Matrix((6,), A), GaussianNoise(0.2))
PRIOR = GaussianDenoiser(0.3 * draw(6, seed=3), torch.diag(torch.tensor([2.0, 1.0, 0.5, 0.25, 0.1, 0.05]).double()))


@dataclass(frozen=True, eq=False)
class NoSVD(LinearOperator):
    """A matrix that hides its decomposition."""

    inner: Matrix

    @property
    def space(self):
        return self.inner.space

    def forward(self, x):
        return self.inner.forward(x)


@dataclass(frozen=True, eq=False)
class Square(ObservationOperator):
    """A strongly nonlinear operator, without a sign."""

    space: tuple = (6,)

    def forward(self, x):
        return x[..., :3] ** 2 + 0.5 * x[..., 3:]


def time_of(level):
    return torch.tensor(PATH.time(level), dtype=torch.float64)


def correct(guidance, likelihood, y, x, level, rng=None, prior=PRIOR):
    predictor = condition(
        OnPath(prior, PATH), PATH, likelihood, y, guidance, event_dims=x.ndim - 2 if x.ndim > 2 else 1,
        rng=rng or torch.Generator().manual_seed(0),
    )
    return predictor(x, time_of(level), Context())


def direct(x, level):
    return PRIOR(x, torch.tensor(level, dtype=torch.float64)).mean
