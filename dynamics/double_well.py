"""A particle in a double well, seen so rarely that the next state is bimodal.

    dX = -V'(X) dt + noise dW,    V(x) = barrier (x^2 - 1)^2

Wells at -1 and 1, an unstable point at 0. One step is the observation interval `dt`, made of `substeps` steps of
Euler-Maruyama: that chain, not its limit, is the system. By Kramers the particle changes wells at the rate

    r = sqrt(V''(1) |V''(0)|) / (2 pi) exp(-2 barrier / noise^2)

and is found in the other well after dt with probability (1 - exp(-2 r dt)) / 2: 0.17 with the defaults, where the
density between the wells is 0.04 of that in the wells. No Gaussian, and no ensemble Kalman filter, can hold that.
With several dimensions the wells are independent.

References:
    Kramers (1940), Brownian motion in a field of force, https://doi.org/10.1016/S0031-8914(40)90098-2
    Miller, Ghil, Gauthiez (1994), Advanced data assimilation in strongly nonlinear dynamical systems,
    https://doi.org/10.1175/1520-0469(1994)051<1037:ADAISN>2.0.CO;2
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from dynamics.integrators import euler_maruyama
from dynamics.random import Rng, normal
from dynamics.settings import ANY, COUNT, NOT_NEGATIVE, POSITIVE, check_settings
from dynamics.space import Space

_BLOCK = 50
"""Substeps whose noise is drawn in one call: a compromise of memory and calls."""


@dataclass(frozen=True)
class DoubleWell:
    """Independent particles in double wells; event `(dimension,)`.

    Args:
        barrier: height of V at 0 over the wells (1).
        noise: diffusion, per square root of time (0.8: a jump every 40 time units).
        dt: observation interval, the length of a step (5, in the time units of the equation).
        substeps: steps of Euler-Maruyama in a `dt` (250, each 0.02).
        dimension: number of wells (1).
        prior_mean: mean of each particle in the prior law (0).
        prior_std: its standard deviation (1).

    Raises:
        ValueError: a setting out of its range, or substeps that are too long for the curvature of the wells (8 barrier
            dt / substeps above 1).
    """

    barrier: float = 1.0
    noise: float = 0.8
    dt: float = 5.0
    substeps: int = 250
    dimension: int = 1
    prior_mean: float = 0.0
    prior_std: float = 1.0

    def __post_init__(self) -> None:
        """Check the settings and stability."""
        check_settings(self, barrier=NOT_NEGATIVE, noise=NOT_NEGATIVE, dt=POSITIVE, substeps=COUNT, dimension=COUNT)
        check_settings(self, prior_mean=ANY, prior_std=NOT_NEGATIVE)
        if 8 * self.barrier * self.dt / self.substeps > 1:
            raise ValueError(
                f"substeps={self.substeps} of {self.dt / self.substeps:g} are too long for a well of curvature "
                f"{8 * self.barrier:g}; take at least {math.ceil(8 * self.barrier * self.dt)}"
            )

    @cached_property
    def space(self) -> Space:
        """Scalar fields: x, or x0, x1, ..."""
        return Space.scalars(*(["x"] if self.dimension == 1 else [f"x{i}" for i in range(self.dimension)]))

    def drift(self, x: Tensor, time: float) -> Tensor:
        """-V'(x) = 4 barrier x (1 - x^2), elementwise."""
        return 4 * self.barrier * x * (1 - x**2)

    def prior(
        self,
        shape: tuple[int, ...],
        *,
        rng: Rng,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ) -> Tensor:
        """Independent draws of N(prior_mean, prior_std^2), `(*shape, dimension)`."""
        z = normal(rng, (*shape, self.dimension), dtype=dtype, device=device)
        return self.prior_mean + self.prior_std * z

    def step(self, x: Tensor, time: float, *, rng: Rng | None) -> Tensor:
        """The state one observation interval later, `(*b, dimension)`."""
        inner = self.dt / self.substeps
        lead = tuple(x.shape[:-1])
        for start in range(0, self.substeps, _BLOCK):
            count = min(_BLOCK, self.substeps - start)
            block = None
            if rng is not None:
                block = normal(rng, (*lead, count, self.dimension), dtype=x.dtype, device=x.device)
            for k in range(count):
                now = time + (start + k) * inner
                if block is None:
                    x = x + inner * self.drift(x, now)
                else:
                    x = euler_maruyama(self.drift, self.noise, x, now, inner, block[..., k, :])
        return x

    def transition_matrix(self, points: Tensor) -> Tensor:
        """The exact transition density of one well on a grid, for reference filters and tests.

        The chain of substeps is composed by quadrature on `points`. It is exact to round-off (rows sum to 1 over the
        spacing) if the spacing is at most half the noise of a substep, 0.113 by default, and the points reach from
        -2.5 to 2.5.

        Args:
            points: evenly spaced `(g,)`, float64.

        Returns:
            `(g, g)`: entry (i, j) is the density of points[j] after one `dt` from points[i].
        """
        inner = self.dt / self.substeps
        spacing = (points[-1] - points[0]) / (points.numel() - 1)
        mean = points + inner * self.drift(points, 0.0)
        std = self.noise * math.sqrt(inner)
        kernel = torch.exp(-0.5 * ((points[None] - mean[:, None]) / std) ** 2) / (std * math.sqrt(2 * math.pi))
        return torch.linalg.matrix_power(kernel * spacing, self.substeps) / spacing
