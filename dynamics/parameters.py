r"""Unknown parameters of a system: their prior law and how they change, in the units of a tensor.

With u = T(p), the parameter after its transform, at every step of the model

    constant       u' = u                                                walk = 0 (default)
    random walk    u' = u + w e                                          the variance grows by w^2 a step
    with memory    u' = c + a (u - c) + s sqrt(1 - a^2) e,  a = exp(-dt / memory)         the law N(c, s^2) stays

where p ~ prior: u ~ N(c, s^2), c = T(guess), s = T'(guess) std and w = T'(guess) walk. For T = log, a positive
parameter, s and w are relative: std / guess and walk / guess.

A parameter is one number for the whole grid, or with a finite correlation `length` a field with the covariance
s^2 exp(-distance / length).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from dynamics.covariance import FullCovariance
from dynamics.errors import CapabilityError
from dynamics.fields import Field
from dynamics.settings import ANY, NOT_NEGATIVE, check_number, number
from dynamics.space import Space
from dynamics.transforms import Identity, Log, Transform

MOST_CELLS = 4096
"""Largest grid of a parameter that is a field: its covariance is a matrix that is decomposed once."""


@dataclass(frozen=True)
class Parameter:
    """One unknown parameter of a system.

    Args:
        name: the attribute of the dynamics, such as "rho"; also the name of the variable in a Dataset.
        guess: first guess, the median of the prior law, in the parameter's units.
        std: standard deviation of the prior law (at the guess, where there is a transform); 0: known to be `guess`.
        walk: standard deviation of the change in one step of the model, at the guess likewise (0: constant).
        memory: the time, in the unit of the time axis, in which the parameter forgets and returns to its prior law
            (infinity: never). It says how large the changes are, so it excludes `walk`.
        positive: keep it positive: the tensor holds its logarithm. The prior is then log-normal.
        length: correlation length over the grid, in the units of `Space.distance`; infinity (default): one number for
            the whole grid.
        units: its units.
        long_name: a phrase for axes and legends.
        transform: another transform to tensor units (default: none, or the logarithm of a positive parameter).

    Raises:
        ValueError: a setting out of its range, or two that exclude each other.
    """

    name: str
    guess: float
    std: float
    walk: float = 0.0
    memory: float = math.inf
    positive: bool = False
    length: float = math.inf
    units: str = "1"
    long_name: str = ""
    transform: Transform | None = None

    def __post_init__(self) -> None:
        """Check the settings."""
        long = number(above=0, infinite=True)
        expected = {"guess": ANY, "std": NOT_NEGATIVE, "walk": NOT_NEGATIVE, "memory": long, "length": long}
        for name, numbers in expected.items():
            check_number(f"{self.name}: {name}", getattr(self, name), numbers)
        if self.walk > 0 and self.memory < math.inf:
            raise ValueError(f"{self.name}: with a memory the prior law says how much it changes; leave out the walk")
        if self.positive and self.transform is not None:
            raise ValueError(f"{self.name}: a positive parameter has the logarithm as transform; give one of the two")
        if not (math.isfinite(self.centre) and math.isfinite(self.slope) and self.slope > 0):
            raise ValueError(f"{self.name}: the guess {self.guess} is not in the range of {self.working!r}")

    @classmethod
    def of(cls, given: Parameter | Mapping[str, Any]) -> Parameter:
        """A parameter from itself or from a table of its settings, as it stands in a card.

        Raises:
            ValueError: the table has an unknown setting or lacks one.
        """
        if isinstance(given, Parameter):
            return given
        try:
            return cls(**given)
        except TypeError as error:
            raise ValueError(f"parameters: {dict(given)} is no Parameter: {error}") from error

    @property
    def working(self) -> Transform:
        """From the parameter's units to those of a tensor."""
        return Log() if self.positive else self.transform or Identity()

    @property
    def centre(self) -> float:
        """The guess in tensor units."""
        return float(self.working.forward(torch.tensor(self.guess, dtype=torch.float64)))

    @property
    def slope(self) -> float:
        """Tensor units per unit of the parameter, at the guess."""
        with torch.enable_grad():
            at = torch.tensor(self.guess, dtype=torch.float64, requires_grad=True)
            (slope,) = torch.autograd.grad(self.working.forward(at), at)
        return float(slope)

    def field(self, grid: tuple[str, ...]) -> Field:
        """The variable that holds it; one number for the whole grid stands in every cell."""
        return Field(self.name, self.units, grid, self.long_name, transform=self.working)


@dataclass(frozen=True, eq=False)
class ParameterLaw:
    """The law of a parameter on the grid of a Space, in tensor units, cells flattened to n (1 without a grid).

    Args:
        parameter: the settings.
        space: of the state.
        dt: length of a model step.

    Raises:
        ValueError: a finite length without a grid, or on one with too many cells.
    """

    parameter: Parameter
    space: Space
    dt: float

    def __post_init__(self) -> None:
        """Check that a field has a grid, and one that is not too large."""
        if self.single:
            return
        name, cells = self.parameter.name, math.prod(self.space.grid_shape)
        if not self.space.grid:
            raise ValueError(f"{name}: length is {self.parameter.length}, but the state has no grid; leave it out")
        if cells > MOST_CELLS:
            raise ValueError(
                f"{name}: a field of {cells} cells is too large (at most {MOST_CELLS}); estimate one number, or write "
                "dynamics whose state holds it"
            )

    @property
    def single(self) -> bool:
        """Whether it is one number for the whole grid."""
        return math.isinf(self.parameter.length)

    @property
    def numbers(self) -> int:
        """Standard normal numbers in a draw."""
        return 1 if self.single else math.prod(self.space.grid_shape)

    @property
    def std(self) -> float:
        """Standard deviation of the prior law."""
        return self.parameter.std * self.parameter.slope

    @cached_property
    def keep(self) -> float:
        """The factor a of the departure from the guess in a step."""
        return math.exp(-self.dt / self.parameter.memory)

    @cached_property
    def shock(self) -> float:
        """Standard deviation of the noise of a step."""
        if self.parameter.memory < math.inf:
            return self.std * math.sqrt(-math.expm1(-2 * self.dt / self.parameter.memory))
        return self.parameter.walk * self.parameter.slope

    def coloured(self, z: Tensor) -> Tensor:
        """Draws of unit variance from standard normal numbers, `(*b, numbers) -> (*b, n)`."""
        if self.single:
            return z.expand(*z.shape[:-1], math.prod(self.space.grid_shape))
        return z @ self.correlation.root.mT.to(z)

    def drawn(self, z: Tensor) -> Tensor:
        """Draws of the prior law, `(*b, numbers) -> (*b, n)`."""
        return self.parameter.centre + self.std * self.coloured(z)

    def moved(self, u: Tensor) -> Tensor:
        """The next value but for its noise, `(*b, n)`."""
        if self.keep == 1:
            return u
        return self.parameter.centre + self.keep * (u - self.parameter.centre)

    @cached_property
    def correlation(self) -> FullCovariance:
        """Correlations between the cells, float64 `(n, n)`.

        Raises:
            ValueError: they are not those of a random field: the length is too long for a periodic domain.
        """
        cells = self.space.positions()
        distance = self.space.distance(cells, cells)
        if self.single:
            return FullCovariance(torch.ones_like(distance), (distance.shape[0],))
        try:
            return FullCovariance(torch.exp(-distance / self.parameter.length), (distance.shape[0],))
        except ValueError as error:
            raise ValueError(f"{self.parameter.name}: length {self.parameter.length} on this grid: {error}") from error

    def log_density(self, residual: Tensor, std: float) -> Tensor:
        """Log density of departures with a standard deviation, `(*b, n) -> (*b,)`; one number counts once.

        Raises:
            CapabilityError: the standard deviation is 0.
        """
        if std == 0:
            raise CapabilityError(
                f"the parameter {self.parameter.name!r} does not change: its transition has no density; give it a walk"
            )
        if self.single:
            white = residual[..., 0] / std
            return -0.5 * (white.square() + math.log(2 * math.pi)) - math.log(std)
        placed = FullCovariance(self.correlation.matrix.to(residual), self.correlation.event_shape)
        return placed.log_prob(residual / std) - residual.shape[-1] * math.log(std)
