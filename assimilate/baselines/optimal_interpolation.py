r"""Optimal interpolation (simple kriging): the exact posterior of a Gaussian field with known mean and covariance.

    mean(g) = mu + k_g^T C^-1 (y - mu),      var(g) = s2 - k_g^T C^-1 k_g
    k_gi    = s2 rho(d_gi / length),         C_ij   = s2 rho(d_ij / length) + R_i delta_ij

for cells g and observed values i, j. C is factored once for a set of places and its weights `C^-1 k_g` are kept for as
long as the places stay; there is no matrix of cells by cells. All of it is float64, the kept weights are in the
dtype of the observations.

References:
    Gandin (1963), Objective analysis of meteorological fields (translated 1965)
    Cressie (1993), Statistics for spatial data, https://doi.org/10.1002/9781119115151
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor

from assimilate.baselines.base import (
    Estimate,
    Pattern,
    check_single_channel,
    experiments_of,
    patterns,
    without_no_data,
)
from assimilate.baselines.kernels import FitMethod, Kernel, PointValues, check_kernel, correlation, fit_kernel
from assimilate.filters.base import Exactness
from assimilate.memo import Memo, content
from dynamics.random import Streams, uniform
from dynamics.space import Space
from observations.likelihood import Observation

CHUNK_NUMBERS = 4_000_000
"""How many weights are computed at a time."""
REMEMBERED_NUMBERS = 64_000_000
"""More weights than this (256 MB in float32) are computed anew for every estimate."""


class Block(NamedTuple):
    """The weights of a chunk of cells.

    Attributes:
        cells: a slice of the C order.
        weights: `C^-1 k_g`, `(m, cells)`.
        std: `(cells,)`, posterior standard deviations.
    """

    cells: slice
    weights: Tensor
    std: Tensor


@dataclass(frozen=True)
class OptimalInterpolation:
    """Simple kriging with constant mean; its Gaussian standard deviation is its spread.

    Args:
        space: one field on a grid.
        mean: mu, in Space units.
        variance: s2, in Space units squared.
        length: in the units of `Space.distance` (great-circle km where the grid has latitudes and longitudes);
            "exponential" is `exp(-d / length)`.
        kernel: "exponential" (default), "matern32", "matern52" or "gaussian".

    `fit` and `fit_fields` find mean, variance and length from observations or from a simulator's fields.
    """

    space: Space
    mean: float
    variance: float
    length: float
    kernel: Kernel = "exponential"
    _memo: Memo = field(default_factory=Memo, init=False, repr=False, compare=False)
    name: ClassVar[str] = "optimal interpolation"
    exactness: ClassVar[Exactness] = "biased"

    def __post_init__(self) -> None:
        """Check the settings."""
        check_single_channel(self.space, method=self.name)
        check_kernel(self.kernel)
        for name in ("variance", "length"):
            value = getattr(self, name)
            if not (value > 0 and math.isfinite(value)):
                raise ValueError(f"{name} is {value}; expected a positive number")

    @classmethod
    def fit(
        cls,
        observations: Sequence[Observation | None],
        space: Space,
        *,
        kernel: Kernel = "exponential",
        method: FitMethod = "likelihood",
        gauges: int = 200,
        seed: int = 0,
    ) -> OptimalInterpolation:
        """Settings fitted to the observed values of all times (and experiments), their noise taken as known.

        Args:
            observations: point values; times are taken as independent draws of the field.
            space: one field on a grid.
            kernel: form of the correlation.
            method: "likelihood" (maximum likelihood, default) or "variogram" (weighted least squares).
            gauges: at most this many places are used by the likelihood, drawn at random (its cost is their cube).
            seed: of that draw.
        """
        check_single_channel(space, method=cls.name)
        found: dict[object, list[Pattern]] = {}
        for observation in observations:
            for part in patterns(observation, method=cls.name, errors=True) if observation is not None else ():
                found.setdefault(content(part.positions), []).append(part)
        groups = []
        for parts in found.values():
            kept = _sample(parts[0].positions.shape[0], gauges if method == "likelihood" else 2000, seed)
            places, variance = parts[0].positions.cpu()[kept], parts[0].variance
            assert variance is not None
            values = torch.cat([part.values.cpu()[:, kept] for part in parts]).double()
            groups.append(PointValues(space.distance(places, places), values, variance.cpu()[kept]))
        return cls(space, *fit_kernel(groups, kernel, method), kernel)

    @classmethod
    def fit_fields(
        cls,
        fields: Tensor,
        space: Space,
        *,
        kernel: Kernel = "exponential",
        method: FitMethod = "likelihood",
        cells: int = 200,
        seed: int = 0,
    ) -> OptimalInterpolation:
        """Settings fitted to whole fields, such as those of a simulator.

        Args:
            fields: `(*b, 1, *grid)` in Space units, taken as independent draws.
            space: one field on a grid.
            kernel: form of the correlation.
            method: "likelihood" or "variogram".
            cells: number of cells used, drawn at random.
            seed: of that draw.
        """
        check_single_channel(space, method=cls.name)
        valid = torch.arange(math.prod(space.grid_shape))
        if space.mask is not None:
            valid = valid[~torch.from_numpy(space.mask.copy()).flatten()]
        kept = valid[_sample(valid.numel(), cells, seed)]
        places = space.positions()[kept]
        values = fields.detach().cpu().double().reshape(-1, math.prod(space.grid_shape))[:, kept]
        group = PointValues(space.distance(places, places), values, torch.zeros(kept.numel(), dtype=torch.float64))
        return cls(space, *fit_kernel([group], kernel, method), kernel)

    def estimate(self, observation: Observation | None, time: float) -> Estimate:
        """Posterior mean and standard deviation; the prior's where nothing is observed. See `Baseline.estimate`."""
        like = torch.zeros(()) if observation is None else observation.y
        shape = (experiments_of(observation), math.prod(self.space.grid_shape))
        mean, std = like.new_full(shape, self.mean), like.new_full(shape, math.sqrt(self.variance))
        for pattern in patterns(observation, method=self.name, errors=True) if observation is not None else ():
            if pattern.values.shape[1] == 0:
                continue
            departures = pattern.values - self.mean
            for block in self._blocks(pattern):
                mean[pattern.experiments, block.cells] += departures @ block.weights
                std[pattern.experiments, block.cells] = block.std
        event = (-1, *self.space.event_shape)
        return Estimate(
            without_no_data(mean.reshape(event), self.space), without_no_data(std.reshape(event), self.space)
        )

    def _blocks(self, pattern: Pattern) -> Sequence[Block] | Iterator[Block]:
        assert pattern.variance is not None
        if math.prod(self.space.grid_shape) * pattern.values.shape[1] > REMEMBERED_NUMBERS:
            return self._weights(pattern)
        key = (content(pattern.positions), content(pattern.variance), pattern.values.dtype)
        return self._memo.get(key, lambda: list(self._weights(pattern)))

    def _weights(self, pattern: Pattern) -> Iterator[Block]:
        places = pattern.positions
        cells = self.space.positions().to(places.device)
        assert pattern.variance is not None
        root = torch.linalg.cholesky(self._covariance(places, places) + torch.diag(pattern.variance))
        chunk = max(1, CHUNK_NUMBERS // places.shape[0])
        for start in range(0, cells.shape[0], chunk):
            part = slice(start, min(start + chunk, cells.shape[0]))
            cross = self._covariance(places, cells[part])
            weights = torch.cholesky_solve(cross, root)
            variance = (self.variance - (cross * weights).sum(0)).clamp_min(0)
            yield Block(part, weights.to(pattern.values.dtype), variance.sqrt().to(pattern.values.dtype))

    def _covariance(self, a: Tensor, b: Tensor) -> Tensor:
        return self.variance * correlation(self.space.distance(a, b), self.length, self.kernel)


def _sample(count: int, most: int, seed: int) -> Tensor:
    """Indices of at most `most` of `count` things, drawn at random, in order."""
    if count <= most:
        return torch.arange(count)
    numbers = uniform(Streams(seed), (1, 1, count), dtype=torch.float64)[0, 0]
    return torch.argsort(numbers)[:most].sort().values
