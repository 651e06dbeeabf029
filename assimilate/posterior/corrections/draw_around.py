r"""Draws of `p(y | x) N(x; c, V)`: exact where the observation is linear and Gaussian, by Langevin steps otherwise.

The data half of every split Gibbs sampler (PnP-DM) and of decoupled annealing (DAPS).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

from torch import Tensor

from assimilate.posterior.corrections.isotropic import isotropic_update
from assimilate.posterior.corrections.langevin import langevin
from dynamics.errors import CapabilityError
from dynamics.random import Rng
from dynamics.settings import COUNT, check_settings, number
from observations.base import LinearOperator
from observations.likelihood import Likelihood
from observations.noise import GaussianNoise

Inner = Literal["auto", "exact", "langevin", "short"]


@dataclass(frozen=True)
class DrawAround:
    """How a clean state is drawn around a centre.

    Args:
        kind: "exact" (linear operators with Gaussian noise; an error for others), "langevin" (any), "auto": exact
            where it can be, or "short": a walk from the centre that ends early, see `langevin`.
        steps: Langevin steps.
        step: their length, see `langevin`.
        iterations: most conjugate-gradient iterations of the exact draw.
        rate: largest step of a short walk, units of the state squared.
    """

    kind: Inner = "auto"
    steps: int = 100
    step: float = 0.1
    iterations: int = 100
    rate: float | None = None

    def __post_init__(self) -> None:
        """Check the settings."""
        if self.kind not in get_args(Inner):
            raise ValueError(f"inner is {self.kind!r}; expected one of {', '.join(get_args(Inner))}")
        check_settings(self, steps=COUNT, step=number(above=0, below=2), iterations=COUNT)
        check_settings(self, rate=number(above=0, none=True))
        if (self.kind == "short") != (self.rate is not None):
            raise ValueError(f"inner is {self.kind!r} and rate {self.rate}; a short walk, and only that, has a rate")

    def __call__(self, centre: Tensor, variance: Tensor, likelihood: Likelihood, y: Tensor, rng: Rng) -> Tensor:
        """One draw a row, `(*b, *event)`.

        Args:
            centre: c, `(*b, *event)`.
            variance: the diagonal of V, broadcastable against the centre.
            likelihood: operator and noise.
            y: observed values; NaN = not observed.
            rng: random numbers.

        Raises:
            CapabilityError: an exact draw was asked of a likelihood that has none.
        """
        closed = isinstance(likelihood.operator, LinearOperator) and isinstance(likelihood.noise, GaussianNoise)
        if self.kind in ("langevin", "short") or (self.kind == "auto" and not closed):
            return langevin(
                centre, variance, likelihood, y, steps=self.steps, step=self.step, rng=rng, rate=self.rate
            )
        if not closed:
            raise CapabilityError(
                f"an exact draw needs a linear operator and Gaussian noise; {likelihood.operator!r} with "
                f"{likelihood.noise!r} was given: use inner='langevin'"
            )
        shift, covariance = isotropic_update(centre, variance, likelihood, y, iterations=self.iterations)
        shape = tuple(centre.shape)
        return centre + shift + covariance.draw(rng, shape, dtype=centre.dtype, device=centre.device)
