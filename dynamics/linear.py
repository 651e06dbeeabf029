"""A linear Gaussian system: the one whose filter, smoother and evidence are known exactly.

    x_0 ~ N(m_0, P_0),    x_{k+1} = A x_k + e_k,    e_k ~ N(0, Q)
    m_{k+1} = A m_k,      P_{k+1} = A P_k A^T + Q

Matrices act on flattened events; they are kept in float64 and used in the dtype and on the device of the state.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from dynamics.covariance import FullCovariance
from dynamics.fields import Coordinate, Field
from dynamics.random import Rng, normal
from dynamics.settings import POSITIVE, check_settings
from dynamics.space import Space


@dataclass(frozen=True, eq=False)
class LinearGaussian:
    """The linear Gaussian system; `TransitionDensity` if Q is definite.

    Args:
        matrix: A, `(d, d)`.
        noise_covariance: Q of one step, `(d, d)`, positive semi-definite.
        prior_mean: m_0, `(d,)`.
        prior_covariance: P_0, `(d, d)`, positive semi-definite.
        dt: length of a step.
        space: what a state is (default: d scalar fields x0, x1, ...; event `(d,)`).

    Raises:
        ValueError: shapes that do not fit, or a matrix that is no covariance.
    """

    matrix: Tensor
    noise_covariance: Tensor
    prior_mean: Tensor
    prior_covariance: Tensor
    dt: float = 1.0
    space: Space = None  # type: ignore[assignment]

    def __post_init__(self) -> None:
        """Convert to float64 tensors and check the shapes."""
        check_settings(self, dt=POSITIVE)
        for name in ("matrix", "noise_covariance", "prior_mean", "prior_covariance"):
            object.__setattr__(self, name, torch.as_tensor(getattr(self, name), dtype=torch.float64))
        size = self.prior_mean.numel()
        if self.space is None:
            object.__setattr__(self, "space", Space.scalars(*(f"x{i}" for i in range(size))))
        if tuple(self.matrix.shape) != (size, size) or self.space.size != size:
            raise ValueError(
                f"matrix has shape {tuple(self.matrix.shape)}, prior_mean {tuple(self.prior_mean.shape)} "
                f"and the space {self.space.size} values; expected (d, d), (d,) and d"
            )
        object.__setattr__(self, "prior_mean", self.prior_mean.reshape(size))
        # Both raise for what is no covariance matrix.
        FullCovariance(self.noise_covariance, self.space.event_shape)
        FullCovariance(self.prior_covariance, self.space.event_shape)

    @classmethod
    def scalar(
        cls, coefficient: float = 0.9, noise_std: float = 0.5, *, prior_mean: float = 0.0, prior_std: float = 1.0
    ) -> LinearGaussian:
        """The autoregressive process x_{k+1} = coefficient x_k + noise_std e_k; event `(1,)`."""
        return cls(
            torch.tensor([[coefficient]]),
            torch.tensor([[noise_std**2]]),
            torch.tensor([prior_mean]),
            torch.tensor([[prior_std**2]]),
        )

    @classmethod
    def ring(
        cls, size: int = 20, *, decay: float = 0.95, shift: int = 1, noise_std: float = 0.3, length: float = 2.0
    ) -> LinearGaussian:
        """A field that drifts around a ring by `shift` cells a step and is stationary; event `(1, size)`.

        Args:
            size: number of cells.
            decay: factor of the amplitude per step (0 < decay < 1).
            shift: cells moved per step.
            noise_std: standard deviation of the noise of one step.
            length: correlation length of the noise, in cells.
        """
        cells = torch.arange(size, dtype=torch.float64)
        gap = (cells[:, None] - cells[None]).abs()
        gap = torch.minimum(gap, size - gap)
        # A Gaussian of the chord is positive definite on a ring; one of the arc is not.
        chord = size / math.pi * torch.sin(math.pi * gap / size)
        noise = noise_std**2 * torch.exp(-0.5 * (chord / length) ** 2)
        place = Coordinate(np.arange(size, dtype=np.float64), ("site",), units="1")
        return cls(
            decay * torch.roll(torch.eye(size, dtype=torch.float64), shift, 0),
            noise,
            torch.zeros(size),
            noise / (1 - decay**2),
            space=Space((Field("x", "1", ("site",)),), {"site": place}, periodic=("site",)),
        )

    def prior(
        self,
        shape: tuple[int, ...],
        *,
        rng: Rng,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ) -> Tensor:
        """Draws of N(m_0, P_0), `(*shape, *event)`."""
        mean, covariance = self.prior_moments(dtype=dtype, device=device)
        return mean + covariance.colour(normal(rng, (*shape, *mean.shape), dtype=dtype, device=device))

    def prior_moments(
        self, *, dtype: torch.dtype = torch.float64, device: torch.device | str = "cpu"
    ) -> tuple[Tensor, FullCovariance]:
        """m_0 `(*event)` and P_0."""
        return self.marginal_moments(0, dtype=dtype, device=device)

    def marginal_moments(
        self, steps: int, *, dtype: torch.dtype = torch.float64, device: torch.device | str = "cpu"
    ) -> tuple[Tensor, FullCovariance]:
        """m_k `(*event)` and P_k after `steps` steps without observations."""
        mean, covariance = self.prior_mean, self.prior_covariance
        for _ in range(steps):
            mean = self.matrix @ mean
            covariance = self.matrix @ covariance @ self.matrix.mT + self.noise_covariance
        event = self.space.event_shape
        covariance = (covariance + covariance.mT) / 2
        return mean.reshape(event).to(device, dtype), FullCovariance(covariance.to(device, dtype), event)

    def step(self, x: Tensor, time: float, *, rng: Rng | None) -> Tensor:
        """A x and its noise, `(*b, *event)`."""
        mean, covariance = self.moments(x, time)
        if rng is None:
            return mean
        return mean + covariance.colour(normal(rng, tuple(x.shape), dtype=x.dtype, device=x.device))

    def moments(self, x: Tensor, time: float) -> tuple[Tensor, FullCovariance]:
        """A x and Q."""
        matrix, covariance = self._prepared(x.dtype, x.device)
        flat = x.flatten(x.ndim - len(self.space.event_shape))
        return (flat @ matrix.mT).reshape(x.shape), covariance

    def log_prob(self, x_next: Tensor, x: Tensor, time: float) -> Tensor:
        """Log transition density, `(*b,)`."""
        mean, covariance = self.moments(x, time)
        return covariance.log_prob(x_next - mean)

    def __repr__(self) -> str:
        if self.prior_mean.numel() > 3:
            return f"LinearGaussian({self.space!r}, dt={self.dt})"
        names = ("matrix", "noise_covariance", "prior_mean", "prior_covariance")
        values = ", ".join(f"{name}={getattr(self, name).tolist()}" for name in names)
        return f"LinearGaussian({values}, dt={self.dt})"

    @cached_property
    def _cache(self) -> dict[tuple[torch.dtype, torch.device], tuple[Tensor, FullCovariance]]:
        return {}

    def _prepared(self, dtype: torch.dtype, device: torch.device) -> tuple[Tensor, FullCovariance]:
        """A and Q in a dtype and on a device, kept for the next step."""
        key = (dtype, device)
        if key not in self._cache:
            covariance = FullCovariance(self.noise_covariance.to(device, dtype), self.space.event_shape)
            self._cache[key] = (self.matrix.to(device, dtype), covariance)
        return self._cache[key]
