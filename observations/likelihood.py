"""The likelihood of a state: an operator and a noise.

    log p(y | x) = log N(y - H(x); 0, R),    NaN in y = not observed: it contributes exactly nothing

Other laws stand for N where the noise is not Gaussian; one that depends on the signal is taken at H(x).

Everything is per row: `(*b, *event)` gives `(*b,)`. `y` is `(*obs)` or has leading dims that broadcast with `b`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from dynamics.random import Rng
from dynamics.space import SpaceMismatch
from observations.base import LinearOperator, ObservationOperator
from observations.noise import Noise, noise_at


@dataclass(frozen=True, eq=False)
class Likelihood:
    """What is measured and how well.

    Args:
        operator: H.
        noise: law of y - H(x), in the units of the observed values.
    """

    operator: ObservationOperator
    noise: Noise

    @property
    def linear(self) -> bool:
        """Whether the operator is linear."""
        return isinstance(self.operator, LinearOperator)

    def log_prob(self, y: Tensor, x: Tensor) -> Tensor:
        """Log density of the observed values given each state.

        Args:
            y: observations `(*obs)` or `(*b', *obs)` with b' broadcasting with b; NaN = not observed.
            x: states `(*b, *event)`.

        Returns:
            `(*b,)`, summed over observed values, differentiable in `x`.
        """
        residual, observed, expected = self._difference(y, x)
        return noise_at(self.noise, expected).log_prob(residual, observed)

    def residual(self, y: Tensor, x: Tensor) -> Tensor:
        """The whitened residual R^-1/2 (y - H(x)), `(*b, *obs)`, exactly 0 where not observed."""
        residual, observed, expected = self._difference(y, x)
        white = noise_at(self.noise, expected).whiten(residual, observed)
        return white.reshape(*white.shape[:-1], *self.operator.obs_shape)

    def sample(self, x: Tensor, *, rng: Rng) -> Tensor:
        """Observations of states, `(*b, *obs)`; NaN where the operator sees only no-data cells."""
        clean = self.operator(x)
        law = noise_at(self.noise, clean.reshape(*clean.shape[: clean.ndim - len(self.operator.obs_shape)], -1))
        noise = law.sample(tuple(clean.shape), rng=rng, dtype=clean.dtype, device=clean.device)
        return self.blank(clean + noise)

    def blank(self, y: Tensor) -> Tensor:
        """NaN where an observed value has no meaning."""
        available = self.operator.available
        return y if available is None else y.masked_fill(~available.to(y.device), torch.nan)

    def _difference(self, y: Tensor, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The difference y - H(x) `(*b, m)`, finite everywhere; what is observed; and H(x), flat."""
        expected = self.operator(x)
        obs = self.operator.obs_shape
        if y.ndim < len(obs) or tuple(y.shape[y.ndim - len(obs) :]) != obs:
            raise SpaceMismatch(f"y has shape {tuple(y.shape)}; {self.operator!r} observes (*b, *{obs})")
        size = math.prod(obs)
        expected = expected.reshape(*expected.shape[: expected.ndim - len(obs)], size)
        y = y.to(expected.device, expected.dtype).reshape(*y.shape[: y.ndim - len(obs)], size)
        observed = ~torch.isnan(y)
        residual = torch.where(observed, y, 0.0) - expected
        return torch.where(observed, residual, 0.0), observed, expected


class Observation(NamedTuple):
    """What was seen at one time.

    Attributes:
        likelihood: operator and noise; they may change from time to time.
        y: values `(*obs)`, the same for all experiments, or `(E, 1, *obs)`; NaN = not observed.
    """

    likelihood: Likelihood
    y: Tensor
