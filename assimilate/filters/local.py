r"""Local ensemble Kalman filters: the LETKF, and the stochastic EnKF with localised covariances.

**LETKF**: one ETKF in every grid cell, all of them at once. Cell g uses the observations within `2 * radius` of it,
each with its error variance divided by the Gaspari-Cohn weight rho_gj (R-localisation). In whitened observation space
(`transforms.py`) that is

    G_g = S diag(rho_g) S^T,    b_g = S diag(rho_g) d,
    x_g,n = mean_g + sum_k [ w_k + T_nk ] a_g,k,     w = (G_g + c I)^-1 b_g,   T = sqrt(c) (G_g + c I)^-1/2

Cells go in tiles that fit the cache, one tile to a thread, and only the observations in reach of a tile enter
(`neighbours.py`). In a tile the upper triangles of all G and b are one matrix product,
`rho (g, j) @ [S_j S_j^T, S_j d_j]`, and the N x N roots one batch (`symmetric_root.py`). Weights may be computed on a
coarser grid and interpolated (`weight_interpolation.py`). Cost and memory grow in proportion to the number of cells; in
float32 an analysis takes less CPU time than the eigendecompositions alone would (`benchmarks/speed_letkf.py`).

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

from abc import abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import ClassVar, NamedTuple, TypeVar

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
from assimilate.filters.localization import check_radius, gaspari_cohn
from assimilate.filters.neighbours import Neighbourhood, Neighbours, Tile
from assimilate.filters.symmetric_root import transforms
from assimilate.filters.threads import in_threads
from assimilate.filters.transforms import tapered_coefficients
from assimilate.filters.weight_interpolation import CoarseGrid, apply_interpolated, box_pieces, check_stride
from assimilate.memo import Memo, content
from dynamics.errors import CapabilityError
from dynamics.random import Rng
from observations.likelihood import Observation

CHUNK_NUMBERS = 4_000_000
"""How many numbers a tile of cells may hold at a time: 16 MB in float32, the size of a cache."""
REMEMBERED_NUMBERS = 64_000_000
"""Tapers with more numbers than this (256 MB in float32) are computed anew at every analysis."""

Result = TypeVar("Result")


class Part(NamedTuple):
    """The analysis in some of the cells.

    Attributes:
        cells: `(k,)` int64.
        increments: of the members, `(E, N, channels, k)`.
        reached: which of the cells an observation reached, `(E, k)` bool.
    """

    cells: Tensor
    increments: Tensor
    reached: Tensor


class Surroundings(NamedTuple):
    """What is remembered of the places of observed values: their search, and tiles with or without their tapers."""

    neighbours: Neighbours
    tiles: Sequence[Tile | Neighbourhood]


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
        neighbours = Neighbours(self.dynamics.space, self._places(observation), self.radius)
        return self._on_grid(neighbours.reached(observed_values(observation, members)))

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

    def _surroundings(
        self, places: Tensor, like: Tensor, *, numbers: int, per_value: int, cells: Tensor | None = None
    ) -> Surroundings:
        """Tiles for an analysis that holds `numbers + per_value * (values in reach)` numbers for each cell.

        Args:
            places: of the observed values.
            like: tensor whose dtype and device the tapers get.
            numbers: see above.
            per_value: see above.
            cells: only these; None: all.
        """

        def compute() -> Surroundings:
            neighbours = Neighbours(self.dynamics.space, places, self.radius)
            size = max(1, CHUNK_NUMBERS // max(1, numbers + per_value * neighbours.count()))
            tiles = neighbours.tiles(size, cells)
            if sum(tile.cells.numel() * tile.values.numel() for tile in tiles) > REMEMBERED_NUMBERS:
                return Surroundings(neighbours, tiles)
            exact = in_threads(lambda tile: neighbours.neighbourhood(tile, like), tiles, like.device)
            return Surroundings(neighbours, exact)

        return self._memo.get((content(places), numbers, per_value, like.dtype, str(like.device)), compute)


@dataclass(frozen=True)
class LETKF(LocalFilter):
    """The local ensemble transform Kalman filter with R-localisation.

    Args:
        dynamics: the system; `space` gives the places and distances, only `step` is used.
        radius: Gaspari-Cohn length; see `LocalFilter`, and there also what raises. Infinity gives the ETKF.
        inflation: see `EnsembleKalmanFilter`, and there also the other settings of the spread.
        interpolation: stride in cells of the grid on which weights are computed, along each dimension; in between they
            are interpolated linearly. 1 (default): computed in every cell. The cost falls with the number of computed
            cells, and the error grows with the square of the stride. With radius 8 cells and 10 % of the cells of a
            smooth plane observed, the root-mean-square difference of the mean (and of the members) from the analysis
            without interpolation is 0.013 (0.018) of the analysis spread at stride 2 and 0.050 (0.073) at stride 4
            (`benchmarks/speed_letkf.py`). Strides to half the radius are reasonable.

    Every channel of a cell gets the weights of that cell.

    Raises:
        ValueError: `interpolation` is not a positive whole number.
        CapabilityError: weights cannot be interpolated on a list of cells, whose neighbours are unknown.

    References:
        Hunt, Kostelich, Szunyogh (2007), https://doi.org/10.1016/j.physd.2006.11.008
        Yang, Kalnay, Hunt, Bowler (2009), Weight interpolation for efficient data assimilation with the local ensemble
        transform Kalman filter, https://doi.org/10.1002/qj.353
    """

    interpolation: int = field(default=1, kw_only=True)
    name: ClassVar[str] = "LETKF"
    exactness: ClassVar[Exactness] = "biased"

    def __post_init__(self) -> None:
        """Check the settings."""
        super().__post_init__()
        check_stride(self.interpolation)
        if self.interpolation > 1:
            _ = self._coarse

    @cached_property
    def _coarse(self) -> CoarseGrid:
        return CoarseGrid.of(self.dynamics.space, self.interpolation, method=self.name)

    def _analyse_at(self, background: Tensor, found: Departures, places: Tensor, *, rng: Rng) -> tuple[Tensor, Tensor]:
        anomalies = anomalies_on_grid(background)
        chosen = self._coarse.cells if self.interpolation > 1 else None
        numbers = 12 * background.shape[0] * background.shape[1] ** 2
        around = self._surroundings(places, background, numbers=numbers, per_value=4, cells=chosen)
        if self.interpolation > 1:
            return self._interpolated(background, anomalies, found, around)

        def analyse(near: Neighbourhood) -> Part:
            weights, root = local_weights(near, found)
            block = anomalies[..., near.cells].permute(0, 3, 1, 2).contiguous()
            # As a change of the members, so that cells without observations stay exact.
            shift = (weights.to(block.dtype).unsqueeze(-1) * block).sum(-2, keepdim=True)
            change = root.to(block.dtype) @ block - block + shift
            reached = reached_by(near, found.observed)
            return Part(near.cells, change.permute(0, 2, 3, 1) * reached[:, None, None], reached)

        return assembled(each(analyse, around, background), background, anomalies)

    def _interpolated(
        self, background: Tensor, anomalies: Tensor, found: Departures, around: Surroundings
    ) -> tuple[Tensor, Tensor]:
        """The analysis with weights from the coarse grid."""
        experiments, n, _, cells = anomalies.shape
        grid = self._coarse

        def analyse(near: Neighbourhood) -> tuple[Tensor, Tensor]:
            weights, root = local_weights(near, found)
            change = weights.unsqueeze(-2) + root - torch.eye(n, dtype=root.dtype, device=root.device)
            return near.cells, change * reached_by(near, found.observed)[..., None, None]

        rank = torch.empty(cells, dtype=torch.int64, device=background.device)
        rank[grid.cells.to(rank.device)] = torch.arange(grid.cells.numel(), device=rank.device)
        changes = background.new_zeros(experiments, grid.cells.numel(), n, n)
        for where, change in each(analyse, around, background):
            changes[:, rank[where]] = change.to(changes.dtype)
        reached = around.neighbours.reached(found.observed)

        def interpolate(boxes: slice) -> Part:
            inside, increments = apply_interpolated(grid, changes, anomalies, boxes)
            here = reached[:, inside]
            return Part(inside, increments * here[:, None, None], here)

        size = max(1, CHUNK_NUMBERS // (12 * experiments * n * anomalies.shape[2]))
        parts = in_threads(interpolate, box_pieces(grid, size), background.device)
        return assembled(parts, background, anomalies)


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
        anomalies = anomalies_on_grid(background)
        experiments, n, channels, _ = anomalies.shape
        noise = perturbations(found, self.perturbations, rng=rng)
        where = places.to(background.device)
        taper = gaspari_cohn(self.dynamics.space.distance(where, where), self.radius)
        departures = found.departure.unsqueeze(1) - found.spread + noise
        coefficients = tapered_coefficients(found.spread, departures, taper).to(background.dtype)

        def analyse(near: Neighbourhood) -> Part:
            spread = found.spread[..., near.values]
            covariance = torch.einsum("encg,enk->ecgk", anomalies[..., near.cells], spread) * (near.taper / (n - 1))
            increments = torch.einsum("enk,ecgk->encg", coefficients[..., near.values], covariance)
            return Part(near.cells, increments, reached_by(near, found.observed))

        around = self._surroundings(places, background, numbers=0, per_value=4 * (1 + experiments * channels))
        return assembled(each(analyse, around, background), background, anomalies)


def anomalies_on_grid(background: Tensor) -> Tensor:
    """Anomalies of members `(E, N, channels, *grid)` as `(E, N, channels, cells)`."""
    _, anomalies = split(background)
    return anomalies.reshape(*background.shape[:3], -1)


def each(function: Callable[[Neighbourhood], Result], around: Surroundings, like: Tensor) -> list[Result]:
    """`function` of every tile with observed values in reach."""

    def call(tile: Tile | Neighbourhood) -> Result | None:
        near = around.neighbours.neighbourhood(tile, like) if isinstance(tile, Tile) else tile
        return function(near) if near.values.numel() else None

    return [result for result in in_threads(call, around.tiles, like.device) if result is not None]


def assembled(parts: list[Part], background: Tensor, anomalies: Tensor) -> tuple[Tensor, Tensor]:
    """Members after the analysis of all parts, and which cells an observation reached."""
    increments = torch.zeros_like(anomalies)
    reached = torch.zeros(anomalies.shape[0], anomalies.shape[-1], dtype=torch.bool, device=anomalies.device)
    for part in parts:
        increments[..., part.cells] = part.increments
        reached[:, part.cells] = part.reached
    return background + increments.reshape(background.shape), reached


def reached_by(near: Neighbourhood, observed: Tensor) -> Tensor:
    """Which cells of a chunk have an observed value in reach, `(E, cells)`, from `(E, m)`."""
    return observed[:, near.values].to(near.taper.dtype) @ near.taper.mT > 0


def local_weights(near: Neighbourhood, found: Departures) -> tuple[Tensor, Tensor]:
    """Weights of the mean `(E, cells, N)` and symmetric roots `(E, cells, N, N)` in the cells of a tile.

    Both are functions of `S diag(rho_g) S^T` and `S diag(rho_g) d`, which are sums over the observed values of the
    products of each, weighted with the tapers: one matrix product for all cells.
    """
    n = found.spread.shape[1]
    spread = found.spread[..., near.values].permute(2, 0, 1)
    departure = found.departure[:, near.values].mT
    rows, columns = torch.triu_indices(n, n, device=spread.device)
    pairs = spread[..., rows] * spread[..., columns]
    products = torch.cat([pairs, spread * departure.unsqueeze(-1)], -1)
    sums = (near.taper @ products.flatten(1)).reshape(-1, *products.shape[1:]).transpose(0, 1)
    # The place of (i, j) and of (j, i) in the upper triangle.
    place = torch.empty(n, n, dtype=torch.int64, device=spread.device)
    place[rows, columns] = place[columns, rows] = torch.arange(rows.numel(), device=spread.device)
    gram = sums[..., place.flatten()].unflatten(-1, (n, n))
    return transforms(gram, sums[..., rows.numel() :])
