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

from assimilate.posterior.linearize import gaussian_noise, observe_flat
from assimilate.posterior.solvers import conjugate_gradient
from imaging.operators.norm import operator_norm
from imaging.solvers.base import Task
from observations.base import LinearOperator, SpaceOrShape
from observations.noise import GaussianNoise

_MARGIN = 1.05
"""Power iteration gives the norm from below, a few per cent short at worst; gradient steps need it from above."""


@dataclass(frozen=True, eq=False)
class DataTerm:
    """`f(x)` for a batch of measurements.

    Args:
        operator: A.
        noise: its law, R.
        y: `(*b', *obs)`, b' broadcasting against the images' leading dims; NaN = not observed.
    """

    operator: LinearOperator
    noise: GaussianNoise
    y: Tensor

    @classmethod
    def of(cls, task: Task) -> DataTerm:
        """The data term of a task; the solver's needs must say "linear" and "gaussian"."""
        return cls(task.linear, gaussian_noise(task.likelihood), task.y)

    @cached_property
    def _flat(self) -> tuple[Tensor, Tensor]:
        """Values with 0 for missing ones, `(*b', m)`, and which are observed."""
        flat = self.y.reshape(*self.y.shape[: self.y.ndim - len(self.operator.obs_shape)], -1)
        observed = ~torch.isnan(flat)
        return torch.where(observed, flat, 0.0), observed

    def _adjoint(self, values: Tensor) -> Tensor:
        """`A^T R_oo^-1 v`, `(*b, m) -> (*b, *event)`."""
        weighted = self.noise.solve(values, self._flat[1])
        return self.operator.adjoint(weighted.reshape(*weighted.shape[:-1], *self.operator.obs_shape))

    def value(self, x: Tensor) -> Tensor:
        """`f(x)`, `(*b, *event) -> (*b,)`."""
        values, observed = self._flat
        return 0.5 * self.noise.whiten(values - observe_flat(self.operator, x), observed).square().sum(-1)

    def gradient(self, x: Tensor) -> Tensor:
        """`grad f`, `(*b, *event)`."""
        return self._adjoint(observe_flat(self.operator, x) - self._flat[0])

    def product(self, v: Tensor) -> Tensor:
        """`H v`, `(*b, *event)`."""
        return self._adjoint(observe_flat(self.operator, v))

    @cached_property
    def start(self) -> Tensor:
        """The image 0, `(*b', *event)`."""
        lead = self.y.shape[: self.y.ndim - len(self.operator.obs_shape)]
        return self.y.new_zeros(*lead, *self.operator.event_shape)

    @cached_property
    def curvature(self) -> float:
        """An upper bound of the largest eigenvalue of H, or 1 where H = 0."""
        whitened = _Whitened(self.operator, self.noise)
        norm = operator_norm(whitened, dtype=self.y.dtype, device=self.y.device)
        return _MARGIN * norm**2 or 1.0

    def solve(
        self,
        extra: Callable[[Tensor], Tensor],
        right: Tensor,
        start: Tensor,
        *,
        iterations: int,
        tolerance: float = 1e-6,
        share: float = 1.0,
    ) -> Tensor:
        """The image with `(share H + Q) x = share A^T R^-1 y + q`, by conjugate gradients for each sample.

        Args:
            extra: the product with Q, `(*b, *event) -> (*b, *event)`, symmetric and positive semi-definite.
            right: q, broadcastable against `start`.
            start: first guess, `(*b, *event)`.
            iterations: most iterations; few of them keep part of the first guess.
            tolerance: residual, relative to that of the first guess, at which a sample stands still.
            share: factor on the data term.
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


@dataclass(frozen=True, eq=False)
class _Whitened(LinearOperator):
    """`R^-1/2 A` with flattened values, all observed; missing ones can only lower its norm."""

    operator: LinearOperator
    noise: GaussianNoise

    @property
    def space(self) -> SpaceOrShape:  # type: ignore[override]
        return self.operator.space

    def forward(self, x: Tensor) -> Tensor:
        return self.noise.whiten(observe_flat(self.operator, x))

    @cached_property
    def obs_shape(self) -> tuple[int, ...]:
        return (self.operator.obs_size,)

    def adjoint(self, y: Tensor) -> Tensor:
        if not self.noise.diagonal:
            return super().adjoint(y)
        # For a diagonal R, R^-1/2 is its own transpose.
        white = self.noise.whiten(y)
        return self.operator.adjoint(white.reshape(*white.shape[:-1], *self.operator.obs_shape))
