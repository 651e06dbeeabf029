"""What the guidances share: pulling observation-space weights back to `x_t`, and the two gains.

Most estimators of `g` linearise `p(y | x_t) ~ N(y; A(m), S)` and differ only in the covariance `S`:

    g = (dm/dx)^T A'^T w,      w = S^-1 (y - A(m)).

`gain="exact"` shifts the clean mean by `strength * noise^2 / beta * g`, which is right for a right g at strength 1.
`gain="constant"` is how several papers publish their rule: the next state is displaced by `strength * g` after every
step, whatever the path, its time step or the noise. The strength then has units (state^2) and belongs to one grid.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from assimilate.posterior.condition import Problem
from assimilate.posterior.linearize import gaussian_noise, observe_flat
from assimilate.posterior.paths import Path
from assimilate.posterior.predictors import Clean, Context
from dynamics.settings import NOT_NEGATIVE, check_settings, number

Gain = Literal["exact", "constant"]


@dataclass(frozen=True)
class Guided(ABC):
    """Settings that every gradient guidance has.

    Args:
        gain: "exact" or "constant", see the module's docstring.
        strength: factor on the shift (exact: 1, dimensionless) or on the displacement (constant: the papers' zeta).
        trust: longest shift with the exact gain, in units of `rho sqrt(m)` for m observed values; None = any. A clean
            covariance no larger than `rho^2 I` cannot shift the mean further than `rho |S^-1/2 (y - A m)|`, about
            `rho sqrt(m)`; off the data a learned Jacobian can, and one such step throws a sample away for good.
    """

    gain: Gain = "exact"
    strength: float = 1.0
    trust: float | None = None

    def __post_init__(self) -> None:
        """Check the settings that all share."""
        if self.gain not in ("exact", "constant"):
            raise ValueError(f"gain is {self.gain!r}; expected 'exact' or 'constant'")
        check_settings(self, strength=NOT_NEGATIVE, trust=number(above=0, infinite=True, none=True))

    @property
    def backpropagates(self) -> bool:
        """Gradient guidances differentiate through the predictor."""
        return True

    @abstractmethod
    def gradient(self, clean: Clean, x: Tensor, t: Tensor, context: Context, problem: Problem) -> Tensor:
        """`g` at `x`, `(*b, *event)`."""

    def __call__(self, clean: Clean, x: Tensor, t: Tensor, context: Context, problem: Problem) -> Clean:
        """See `Guidance`."""
        gradient = self.gradient(clean, x, t, context, problem)
        if self.gain == "constant":
            return clean._replace(kick=self.strength * gradient)
        shift = self.strength * inverse_pull(problem.path, t, x) * gradient
        if self.trust is not None:
            shift = shift * self._within(shift, x, t, problem)
        return clean._replace(mean=clean.mean + shift)

    def _within(self, shift: Tensor, x: Tensor, t: Tensor, problem: Problem) -> Tensor:
        """The factor that brings each sample's shift within the trusted length, at most 1."""
        assert self.trust is not None
        events = tuple(range(-problem.event_dims, 0))
        # Channels may differ in scale, so lengths are taken in units of rho.
        length = (shift.square() * problem.path.coefficients(t, x).snr).sum(events, keepdim=True).sqrt()
        count = (~torch.isnan(flat_y(problem))).sum(-1).to(shift.dtype)
        limit = self.trust * count.sqrt().reshape(*count.shape, *(1,) * problem.event_dims)
        return (limit / length.clamp_min(torch.finfo(shift.dtype).tiny)).clamp_max(1.0)


@dataclass(frozen=True)
class Linearized(Guided):
    """A guidance that is one choice of `w = S^-1 (y - A(m))`."""

    @abstractmethod
    def weights(self, residual: Tensor, clean: Clean, x: Tensor, t: Tensor, problem: Problem) -> Tensor:
        """`w`, shaped like the residual `(*b, m)`; zero where nothing is observed."""

    def gradient(self, clean: Clean, x: Tensor, t: Tensor, context: Context, problem: Problem) -> Tensor:
        """See `Guided`."""
        predicted = observe_flat(problem.likelihood.operator, clean.mean)
        residual = observed_residual(predicted.detach(), problem)
        weights = self.weights(residual, clean, x, t, problem).detach()
        return torch.autograd.grad((weights * predicted).sum(), x)[0]


def flat_y(problem: Problem) -> Tensor:
    """The observed values flattened, `(*b', m)`."""
    lead = problem.y.ndim - len(problem.likelihood.operator.obs_shape)
    return problem.y.reshape(*problem.y.shape[:lead], -1)


def observed(predicted: Tensor, problem: Problem) -> Tensor:
    """Which values are observed, `predicted`'s shape `(*b, m)`."""
    return (~torch.isnan(flat_y(problem))).expand(predicted.shape)


def observed_residual(predicted: Tensor, problem: Problem) -> Tensor:
    """`y - A(m)`, `(*b, m)`, exactly zero where y is NaN."""
    y = flat_y(problem)
    return torch.where(torch.isnan(y), 0.0, y - predicted)


def inverse_pull(path: Path, t: Tensor, x: Tensor) -> Tensor:
    """`noise^2 / beta`, and zero at a start that holds no signal, where g vanishes faster than this grows."""
    pull = path.coefficients(t, x).pull
    return torch.where(pull > 0, 1.0 / torch.where(pull > 0, pull, 1.0), 0.0)


def isotropic_variance(path: Path, t: Tensor, x: Tensor, prior_std: float | None) -> Tensor:
    """Variance of `x_1` given `x_t` for a clean state with independent values of standard deviation `prior_std`.

    `r^2 = rho^2 p^2 / (rho^2 + p^2) = 1 / (snr + 1 / p^2)`; `p` is the path's own spread unless given.
    """
    snr = path.coefficients(t, x).snr
    prior = path.spread(x) if prior_std is None else torch.as_tensor(prior_std, dtype=x.dtype, device=x.device)
    return 1.0 / (snr + 1.0 / prior**2)


def solve_observed(
    product: Callable[[Tensor], Tensor],
    residual: Tensor,
    problem: Problem,
    solver: Callable[..., Tensor],
    iterations: int,
) -> Tensor:
    """Solve `(R + product) w = residual` over the observed values; the others stay exactly zero.

    Args:
        product: the clean covariance seen through the operator, `(*b, m) -> (*b, m)`.
        residual: `(*b, m)`, zero where nothing is observed.
        problem: gives R and which values are observed.
        solver: `conjugate_gradient` or `gmres`.
        iterations: most iterations.
    """
    hidden = ~observed(residual, problem)
    noise = gaussian_noise(problem.likelihood)
    return solver(lambda w: (product(w) + noise.product(w)).masked_fill(hidden, 0.0), residual, iterations=iterations)
