r"""Local ensemble Kalman filters: the LETKF, and the stochastic EnKF with localised covariances.

**LETKF**: one ETKF in every grid cell, all of them at once. Cell g uses the observations within `2 * radius` of it,
each with its error variance divided by the Gaspari-Cohn weight rho_gj (R-localisation). In whitened observation space
(`transforms.py`) that is

    G_g = S diag(rho_g) S^T,    b_g = S diag(rho_g) d,
    x_g,n = mean_g + sum_k [ w_k + T_nk ] a_g,k,     w = (G_g + c I)^-1 b_g,   T = sqrt(c) (G_g + c I)^-1/2

For all cells together, the upper triangles of G and b are one matrix product, `rho (g, j) @ [S_j S_j^T, S_j d_j]`, and
the N x N roots one batched eigendecomposition. Cells go in chunks that fit the cache; in each chunk only the
observations in its reach enter.

**Local EnKF**: the covariances of the ensemble are tapered (B-localisation), and members are updated with perturbed
observations as in the EnKF. It is global in the observations, so their number m enters as m^3:

    x_n + (rho_xy o A^T S / c) (rho_yy o S^T S / c + I)^-1 (d_n + e_n)

References:
    Hunt, Kostelich, Szunyogh (2007), Efficient data assimilation for spatiotemporal chaos: a local ensemble transform
    Kalman filter, https://doi.org/10.1016/j.physd.2006.11.008
    Gaspari, Cohn (1999), Construction of correlation functions in two and three dimensions,
    https://doi.org/10.1002/qj.49712555417
    Houtekamer, Mitchell (2001), A sequential ensemble Kalman filter for atmospheric data assimilation,
    https://doi.org/10.1175/1520-0493(2001)129<0123:ASEKFF>2.0.CO;2
"""

from __future__ import annotations

import math
from abc import abstractmethod
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor

from assimilate.filters.base import Exactness
from assimilate.filters.departures import Departures, gaussian_noise, observed_values
from assimilate.filters.ensemble import (
    Analysis,
    EnsembleKalmanFilter,
    Perturbations,
    check_perturbations,
    perturbations,
    split,
)
from assimilate.filters.localization import Neighbourhood, check_radius, gaspari_cohn, neighbourhoods
from assimilate.filters.transforms import tapered_coefficients, transform_weights
from assimilate.memo import Memo, content
from dynamics.errors import CapabilityError
from dynamics.random import Rng
from observations.likelihood import Observation

CHUNK_NUMBERS = 4_000_000
"""How many numbers a chunk of cells may hold at a time: 16 MB in float32, the size of a cache."""
REMEMBERED_NUMBERS = 64_000_000
"""Tapers with more numbers than this (256 MB in float32) are computed anew at every analysis."""


@dataclass(frozen=True)
class LocalFilter(EnsembleKalmanFilter):
    """What local filters share: a length, the checks, and no evidence.

    Args:
        dynamics: the system; `space` gives the places and distances, only `step` is used.
        radius: Gaspari-Cohn length in the units of `Space.distance` (great-circle km where the grid has latitudes and
            longitudes, coordinate units otherwise): weight 5/24 at `radius`, **0 from `2 * radius` on**. See
            `localization.py`. Infinity gives the global filter.
        inflation: see `EnsembleKalmanFilter`, and there also the other settings of the spread. They act in cells with
            an observation in reach; the rotation is the same in all cells.

    Raises:
        CapabilityError: the Space has no grid, the operator does not know the places of its values, or the noise is not
            Gaussian and independent from value to value.

    There is no evidence: `Info.log_evidence` is NaN where something was observed.
    """

    radius: float
    _memo: Memo = field(default_factory=Memo, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        """Check the settings."""
        super().__post_init__()
        check_radius(self.radius)
        if not self.dynamics.space.grid:
            raise CapabilityError(
                f"{self.name} needs a grid to localise on; {self.dynamics.space!r} has scalar fields only: use ETKF "
                "or EnKF"
            )

    def _analyse(self, background: Tensor, found: Departures, observation: Observation, *, rng: Rng) -> Analysis:
        places = self._places(observation)
        members, reached = self._analyse_at(background, found, places, rng=rng)
        evidence = torch.where(found.observed.any(-1), torch.nan, 0.0).to(members.dtype)
        return Analysis(members, self._on_grid(reached), evidence)

    @abstractmethod
    def _analyse_at(self, background: Tensor, found: Departures, places: Tensor, *, rng: Rng) -> tuple[Tensor, Tensor]:
        """Members after the analysis, and which cells an observation reached, `(E, cells)` bool.

        Args:
            background: `(E, N, *event)`.
            found: departures of values whose errors are independent.
            places: of the values, `(m, n_dims)`.
            rng: random numbers.
        """

    def _reached(self, observation: Observation, members: Tensor) -> Tensor:
        places = self._places(observation)
        observed = observed_values(observation, members)
        reached = observed.new_zeros(members.shape[0], math.prod(self.dynamics.space.grid_shape))
        for near in self._neighbourhoods(places, members, places.shape[0]):
            reached[:, near.cells] = reached_by(near, observed)
        return self._on_grid(reached)

    def _on_grid(self, reached: Tensor) -> Tensor:
        return reached.reshape(reached.shape[0], 1, *self.dynamics.space.grid_shape)

    def _places(self, observation: Observation) -> Tensor:
        """Places of the observed values, `(m, n_dims)`; a CapabilityError if there are none, or errors go together."""
        operator = observation.likelihood.operator
        if operator.positions is None:
            raise CapabilityError(
                f"{self.name} needs to know where each observed value is; {operator!r} has no positions: give it a "
                "Space and a carry() that returns places, or use ETKF or EnKF"
            )
        if not gaussian_noise(observation, method=self.name).diagonal:
            raise CapabilityError(
                f"{self.name} weighs every observed value by its distance, so their errors must be independent; the "
                "noise has a full covariance: use GaussianNoise(std=...), ETKF or EnKF"
            )
        return operator.positions

    def _neighbourhoods(self, positions: Tensor, like: Tensor, numbers: int) -> list[Neighbourhood]:
        """Chunks of cells for an analysis that holds that many `numbers` for each cell."""
        cells = math.prod(self.dynamics.space.grid_shape)
        chunk = max(1, CHUNK_NUMBERS // numbers)

        def compute() -> list[Neighbourhood]:
            return neighbourhoods(self.dynamics.space, positions, self.radius, chunk, like)

        if cells * positions.shape[0] > REMEMBERED_NUMBERS:
            return compute()
        return self._memo.get((content(positions), chunk, like.dtype, str(like.device)), compute)


@dataclass(frozen=True)
class LETKF(LocalFilter):
    """The local ensemble transform Kalman filter with R-localisation.

    Args:
        dynamics: the system; `space` gives the places and distances, only `step` is used.
        radius: Gaspari-Cohn length; see `LocalFilter`, and there also what raises. Infinity gives the ETKF.
        inflation: see `EnsembleKalmanFilter`, and there also the other settings of the spread.

    Every channel of a cell gets the weights of that cell.

    References:
        Hunt, Kostelich, Szunyogh (2007), https://doi.org/10.1016/j.physd.2006.11.008
    """

    name: ClassVar[str] = "LETKF"
    exactness: ClassVar[Exactness] = "biased"

    def _analyse_at(self, background: Tensor, found: Departures, places: Tensor, *, rng: Rng) -> tuple[Tensor, Tensor]:
        experiments, n = background.shape[:2]
        _, anomalies = split(background)
        grid = math.prod(self.dynamics.space.grid_shape)
        anomalies = anomalies.reshape(experiments, n, -1, grid)
        increments = torch.zeros_like(anomalies)
        reached = torch.zeros(experiments, grid, dtype=torch.bool, device=background.device)
        products = local_products(found)
        for near in self._neighbourhoods(places, background, places.shape[0] + 6 * experiments * n * n):
            if near.values.numel() == 0:
                continue
            gram, projection = local_gram(near, products, experiments, n)
            weights, root = transform_weights(gram, projection)
            # Rows are the new members: the identity is taken off, so that cells without observations stay exact.
            change = weights.unsqueeze(-2) + root - torch.eye(n, dtype=root.dtype, device=root.device)
            block = anomalies[..., near.cells]
            increments[..., near.cells] = torch.einsum("egnk,ekcg->encg", change.to(block.dtype), block)
            reached[:, near.cells] = reached_by(near, found.observed)
        increments = increments * reached[:, None, None, :]
        return background + increments.reshape(background.shape), reached


@dataclass(frozen=True)
class LocalEnKF(LocalFilter):
    """The stochastic ensemble Kalman filter with B-localisation.

    Args:
        dynamics: the system; `space` gives the places and distances, only `step` is used.
        radius: Gaspari-Cohn length; see `LocalFilter`, and there also what raises. Infinity gives the EnKF.
        inflation: see `EnsembleKalmanFilter`, and there also the other settings of the spread.
        perturbations: "rescaled", "centred" or "independent"; see `EnKF`.

    Raises:
        ValueError: the tapered covariance of the observed values is not positive: distances on this domain are not
            those of a plane or a sphere within the taper's reach (a ring shorter than `4 * radius`).

    Memory is `E * m^2` numbers in float64 for m observed values: for thousands, not for millions.

    References:
        Houtekamer, Mitchell (2001), https://doi.org/10.1175/1520-0493(2001)129<0123:ASEKFF>2.0.CO;2
    """

    perturbations: Perturbations = field(default="rescaled", kw_only=True)
    name: ClassVar[str] = "local EnKF"
    exactness: ClassVar[Exactness] = "biased"

    def __post_init__(self) -> None:
        """Check the settings."""
        super().__post_init__()
        check_perturbations(self.perturbations)

    def _analyse_at(self, background: Tensor, found: Departures, places: Tensor, *, rng: Rng) -> tuple[Tensor, Tensor]:
        experiments, n = background.shape[:2]
        _, anomalies = split(background)
        grid = math.prod(self.dynamics.space.grid_shape)
        anomalies = anomalies.reshape(experiments, n, -1, grid)
        noise = perturbations(found, self.perturbations, rng=rng)
        where = places.to(background.device)
        taper = gaspari_cohn(self.dynamics.space.distance(where, where), self.radius)
        departures = found.departure.unsqueeze(1) - found.spread + noise
        coefficients = tapered_coefficients(found.spread, departures, taper).to(background.dtype)
        increments = torch.zeros_like(anomalies)
        reached = torch.zeros(experiments, grid, dtype=torch.bool, device=background.device)
        numbers = places.shape[0] * (1 + experiments * anomalies.shape[2])
        for near in self._neighbourhoods(places, background, numbers):
            if near.values.numel() == 0:
                continue
            spread = found.spread[..., near.values]
            covariance = torch.einsum("encg,enk->ecgk", anomalies[..., near.cells], spread) * (near.taper / (n - 1))
            increments[..., near.cells] = torch.einsum("enk,ecgk->encg", coefficients[..., near.values], covariance)
            reached[:, near.cells] = reached_by(near, found.observed)
        return background + increments.reshape(background.shape), reached


def reached_by(near: Neighbourhood, observed: Tensor) -> Tensor:
    """Which cells of a chunk have an observed value in reach, `(E, cells)`, from `(E, m)`."""
    return observed[:, near.values].to(near.taper.dtype) @ near.taper.mT > 0


def local_products(found: Departures) -> Tensor:
    """For each value j, the upper triangle of `S_j S_j^T` and `S_j d_j`: `(m, E * (N (N + 1) / 2 + N))`."""
    spread = found.spread.permute(2, 0, 1)
    rows, columns = _triangle(spread)
    pairs = spread[..., rows] * spread[..., columns]
    return torch.cat([pairs, spread * found.departure.mT.unsqueeze(-1)], -1).flatten(1)


def local_gram(near: Neighbourhood, products: Tensor, experiments: int, n: int) -> tuple[Tensor, Tensor]:
    """`S diag(rho_g) S^T` `(E, cells, N, N)` and `S diag(rho_g) d` `(E, cells, N)` in float64."""
    sums = (near.taper @ products[near.values]).reshape(near.taper.shape[0], experiments, -1).transpose(0, 1).double()
    upper, projection = sums[..., :-n], sums[..., -n:]
    rows, columns = torch.triu_indices(n, n, device=sums.device)
    gram = sums.new_empty(*sums.shape[:2], n, n)
    gram[..., rows, columns] = upper
    gram[..., columns, rows] = upper
    return gram, projection


def _triangle(spread: Tensor) -> tuple[Tensor, Tensor]:
    rows, columns = torch.triu_indices(spread.shape[-1], spread.shape[-1], device=spread.device)
    return rows, columns
