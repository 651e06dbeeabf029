r"""The data term of a linear operator with Gaussian noise: its value, its gradient and solves with its curvature.

    f(x) = 1/2 |R_oo^-1/2 (y - A x)_o|^2,    grad f = A^T R^-1 (A x - y),    H = A^T R^-1 A

Values of y that are NaN are not observed and contribute nothing. With white noise f is `|y - A x|^2 / (2 s^2)`, the
negative log likelihood of the image: whatever is added to it is in nats too.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from assimilate.posterior.corrections.data_term import slope, stiffness
from assimilate.posterior.linearize import gaussian_noise, observe_flat
from assimilate.posterior.solvers import conjugate_gradient
from imaging.solvers.base import Task
from observations.base import LinearOperator
from observations.likelihood import Likelihood

_MARGIN = 1.05
"""Power iteration gives the curvature from below, by a few per cent at worst; gradient steps need it from above."""
_ITERATIONS = 50
"""Of the power iteration."""


@dataclass(frozen=True, eq=False)
class DataTerm:
    """`f(x)` for a batch of measurements.

    Args:
        likelihood: linear operator and Gaussian noise.
        y: `(*b', *obs)`, b' broadcasting against the images' leading dims; NaN = not observed.
    """

    likelihood: Likelihood
    y: Tensor

    @classmethod
    def of(cls, task: Task) -> DataTerm:
        """The data term of a task; the solver's needs must say "linear" and "gaussian"."""
        gaussian_noise(task.likelihood)
        return cls(task.likelihood, task.y)

    @property
    def operator(self) -> LinearOperator:
        """A."""
        assert isinstance(self.likelihood.operator, LinearOperator)
        return self.likelihood.operator

    @cached_property
    def _observed(self) -> Tensor:
        """Which values are, `(*b', m)`."""
        return ~torch.isnan(self.y.reshape(*self.y.shape[: self.y.ndim - len(self.operator.obs_shape)], -1))

    def value(self, x: Tensor) -> Tensor:
        """`f(x)`, `(*b, *event) -> (*b,)`."""
        return 0.5 * self.likelihood.residual(self.y, x).flatten(-len(self.operator.obs_shape)).square().sum(-1)

    def gradient(self, x: Tensor) -> Tensor:
        """`grad f`, `(*b, *event)`."""
        return -slope(self.likelihood, self.y, x)

    def product(self, v: Tensor) -> Tensor:
        """`H v`, `(*b, *event)`."""
        noise = gaussian_noise(self.likelihood)
        seen = observe_flat(self.operator, v)
        weighted = noise.solve(torch.where(self._observed, seen, 0.0), self._observed.expand(seen.shape))
        return self.operator.adjoint(weighted.reshape(*weighted.shape[:-1], *self.operator.obs_shape))

    @cached_property
    def zero(self) -> Tensor:
        """The image 0 for each measurement, `(*b', *event)`."""
        lead = self.y.shape[: self.y.ndim - len(self.operator.obs_shape)]
        return self.y.new_zeros(*lead, *self.operator.event_shape)

    @cached_property
    def curvature(self) -> Tensor:
        """An upper bound of the largest eigenvalue of H, `(*b', 1, ...)` to multiply images; 1 where H = 0."""
        found = _MARGIN * stiffness(self.likelihood, self.y, self.zero, iterations=_ITERATIONS)
        return torch.where(found > 0, found, 1.0)

    def solve(
        self,
        extra: Callable[[Tensor], Tensor],
        right: Tensor,
        start: Tensor,
        *,
        iterations: int,
        tolerance: float = 1e-6,
        share: Tensor | float = 1.0,
    ) -> Tensor:
        """The image with `(share H + Q) x = share A^T R^-1 y + q`, by conjugate gradients for each sample.

        Args:
            extra: the product with Q, `(*b, *event) -> (*b, *event)`, symmetric and positive semi-definite.
            right: q, broadcastable against `start`.
            start: first guess, `(*b, *event)`.
            iterations: most iterations; few of them keep part of the first guess.
            tolerance: residual, relative to that of the first guess, at which a sample stands still.
            share: factor on the data term, broadcastable against images.
        """
        dims = len(self.operator.event_shape)
        lead = start.shape[: start.ndim - dims]

        def matvec(flat: Tensor) -> Tensor:
            v = flat.reshape(start.shape)
            return (share * self.product(v) + extra(v)).reshape(flat.shape)

        residual = right - extra(start) - share * self.gradient(start)
        flat = residual.expand(start.shape).reshape(*lead, -1)
        moved = conjugate_gradient(matvec, flat, iterations=iterations, tolerance=tolerance)
        return start + moved.reshape(start.shape)
