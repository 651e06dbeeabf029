r"""The local ensemble transform Kalman filter (LETKF): one ETKF in every grid cell, all of them at once.

Cell g uses the observations within `2 * radius` of it, each with its error variance divided by the Gaspari-Cohn weight
rho_gj (R-localisation). In whitened observation space (`transforms.py`) that is

    G_g = S diag(rho_g) S^T,    b_g = S diag(rho_g) d,
    x_g,n = mean_g + sum_k [ w_k + T_nk ] a_g,k,     w = (G_g + c I)^-1 b_g,   T = sqrt(c) (G_g + c I)^-1/2

For all cells together, the upper triangles of G and b are one matrix product, `rho (g, j) @ [S_j S_j^T, S_j d_j]`, and
the N x N roots one batched eigendecomposition. Cells go in chunks that fit the cache; in each chunk only the
observations in its reach enter.

References:
    Hunt, Kostelich, Szunyogh (2007), Efficient data assimilation for spatiotemporal chaos: a local ensemble transform
    Kalman filter, https://doi.org/10.1016/j.physd.2006.11.008
    Gaspari, Cohn (1999), Construction of correlation functions in two and three dimensions,
    https://doi.org/10.1002/qj.49712555417
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor

from assimilate.filters.base import EnsembleFilter, Exactness, FilterState, Info, check_finite, forecast
from assimilate.filters.departures import Departures, gaussian_departures, gaussian_noise
from assimilate.filters.ensemble import split, unobserved
from assimilate.filters.inflation import check_spread_settings, inflate, rotate
from assimilate.filters.localization import check_radius, gaspari_cohn
from assimilate.filters.transforms import transform_weights
from assimilate.memo import Memo, content
from assimilate.posterior.weights import uniform_log_weights
from dynamics.base import Dynamics
from dynamics.errors import CapabilityError
from dynamics.random import Rng
from dynamics.space import Space
from observations.likelihood import Observation

CHUNK_NUMBERS = 4_000_000
"""How many numbers a chunk of cells may hold at a time: 16 MB in float32, the size of a cache."""
REMEMBERED_NUMBERS = 64_000_000
"""Tapers with more numbers than this (256 MB in float32) are computed anew at every analysis."""


class Neighbourhood(NamedTuple):
    """A chunk of cells and the observations in its reach.

    Attributes:
        cells: the grid cells, a slice of the C order.
        values: `(k,)` int64, the observed values with a positive weight in some cell of the chunk.
        taper: `(cells, k)`, Gaspari-Cohn weights.
    """

    cells: slice
    values: Tensor
    taper: Tensor


@dataclass(frozen=True)
class LETKF(EnsembleFilter):
    """The local ensemble transform Kalman filter with R-localisation.

    Args:
        dynamics: the system; `space` gives the places and distances, only `step` is used.
        radius: Gaspari-Cohn length in the units of `Space.distance` (great-circle km where the grid has latitudes and
            longitudes, coordinate units otherwise): weight 5/24 at `radius`, **0 from `2 * radius` on**. See
            `localization.py`. Infinity gives the ETKF.
        inflation: factor of the anomalies after the analysis, dimensionless (1: none), in cells with an observation in
            reach.
        relaxation: relaxation to the prior spread, a fraction (0: none).
        rotate: whether a random rotation, the same in all cells, follows the analysis.

    Raises:
        CapabilityError: the Space has no grid, the operator does not know the places of its values, or the noise is not
            Gaussian and independent from value to value.

    Every channel of a cell gets the weights of that cell. There is no evidence: `Info.log_evidence` is NaN where
    something was observed.
    """

    dynamics: Dynamics
    radius: float
    inflation: float = 1.0
    relaxation: float = 0.0
    rotate: bool = False
    _memo: Memo = field(default_factory=Memo, init=False, repr=False, compare=False)
    name: ClassVar[str] = "LETKF"
    exactness: ClassVar[Exactness] = "biased"

    def __post_init__(self) -> None:
        """Check the settings."""
        check_radius(self.radius)
        check_spread_settings(self.inflation, self.relaxation)
        if not self.dynamics.space.grid:
            raise CapabilityError(
                f"LETKF needs a grid to localise on; {self.dynamics.space!r} has scalar fields only: use ETKF or EnKF"
            )

    def step(
        self, state: FilterState, observation: Observation | None, time: float, *, rng: Rng
    ) -> tuple[FilterState, Info]:
        """Forecast to `time`, then assimilate; see `Filter.step`."""
        background = forecast(self.dynamics, state.members, state.time, time, rng=rng, method=self.name)
        if observation is None:
            return unobserved(state, background, time)
        found = local_departures(observation, background)
        positions = observation.likelihood.operator.positions
        assert positions is not None
        members, reached = self._analyse(background, found, positions)
        members = inflate(members, background, reached, inflation=self.inflation, relaxation=self.relaxation)
        observed = found.observed.any(-1)
        if self.rotate:
            members = rotate(members, observed, rng=rng)
        check_finite(members, self.name, time, state.time, "members after the analysis")
        experiments, n = members.shape[:2]
        evidence = torch.where(observed, torch.nan, 0.0).to(members.dtype)
        info = Info(background, evidence, members.new_full((experiments,), float(n)))
        return FilterState(members, uniform_log_weights(members), float(time)), info

    def _analyse(self, background: Tensor, found: Departures, positions: Tensor) -> tuple[Tensor, Tensor]:
        """Members after the analysis and which cells an observation reached, `(E, 1, *grid)`."""
        experiments, n = background.shape[:2]
        space = self.dynamics.space
        _, anomalies = split(background)
        grid = math.prod(space.grid_shape)
        anomalies = anomalies.reshape(experiments, n, -1, grid)
        increments = torch.zeros_like(anomalies)
        reached = torch.zeros(experiments, grid, dtype=torch.bool, device=background.device)
        products = local_products(found)
        for near in self._neighbourhoods(positions, background, found.spread.shape):
            if near.values.numel() == 0:
                continue
            gram, projection = local_gram(near, products, experiments, n)
            weights, root = transform_weights(gram, projection)
            # Rows are the new members: the identity is taken off, so that cells without observations stay exact.
            change = weights.unsqueeze(-2) + root - torch.eye(n, dtype=root.dtype, device=root.device)
            block = anomalies[..., near.cells]
            increments[..., near.cells] = torch.einsum("egnk,ekcg->encg", change.to(block.dtype), block)
            seen = found.observed[:, near.values].to(near.taper.dtype)
            reached[:, near.cells] = seen @ near.taper.mT > 0
        increments = increments * reached[:, None, None, :]
        members = background + increments.reshape(background.shape)
        return members, reached.reshape(experiments, 1, *space.grid_shape)

    def _neighbourhoods(self, positions: Tensor, like: Tensor, shape: torch.Size) -> list[Neighbourhood]:
        experiments, n, values = shape
        cells = math.prod(self.dynamics.space.grid_shape)
        chunk = max(1, CHUNK_NUMBERS // (values + 6 * experiments * n * n))

        def compute() -> list[Neighbourhood]:
            return neighbourhoods(self.dynamics.space, positions, self.radius, chunk, like)

        if cells * values > REMEMBERED_NUMBERS:
            return compute()
        return self._memo.get((content(positions), chunk, like.dtype, str(like.device)), compute)


def local_departures(observation: Observation, members: Tensor) -> Departures:
    """Departures whose values belong to one place each; CapabilityError if they do not."""
    found = gaussian_departures(observation, members, method="LETKF")
    operator = observation.likelihood.operator
    if operator.positions is None:
        raise CapabilityError(
            f"LETKF needs to know where each observed value is; {operator!r} has no positions: give it a Space and a "
            "carry() that returns places, or use ETKF or EnKF"
        )
    if not gaussian_noise(observation, method="LETKF").diagonal:
        raise CapabilityError(
            "LETKF weighs every observed value by its distance, so their errors must be independent; the noise has a "
            "full covariance: use GaussianNoise(std=...), ETKF or EnKF"
        )
    return found


def neighbourhoods(space: Space, positions: Tensor, radius: float, chunk: int, like: Tensor) -> list[Neighbourhood]:
    """Cells in chunks of `chunk`, each with the observed values in its reach and their tapers.

    Args:
        space: gives the cells and the distances.
        positions: places of the observed values, `(m, n_dims)`.
        radius: Gaspari-Cohn length.
        chunk: cells in a chunk.
        like: tensor whose dtype and device the tapers get.
    """
    cells = space.positions().to(like.device)
    places = positions.to(like.device)
    found = []
    for start in range(0, cells.shape[0], chunk):
        part = slice(start, min(start + chunk, cells.shape[0]))
        taper = gaspari_cohn(space.distance(cells[part], places), radius).to(like.dtype)
        values = (taper > 0).any(0).nonzero().squeeze(-1)
        found.append(Neighbourhood(part, values, taper[:, values].contiguous()))
    return found


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
