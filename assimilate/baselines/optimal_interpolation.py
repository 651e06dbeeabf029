r"""Optimal interpolation (simple kriging): the exact posterior of a Gaussian field with known mean and covariance.

    mean(g) = mu + k_g^T C^-1 (y - mu),      var(g) = s2 - k_g^T C^-1 k_g
    k_gi    = s2 rho(d_gi / length),         C_ij   = s2 rho(d_ij / length) + R_i delta_ij

for cells g and observed values i, j. Several fields are independent, each with its own mu, s2 and length. C is factored
once for a set of places and its weights `C^-1 k_g` are kept for as long as the places stay; there is no matrix of cells
by cells. All of it is float64, the kept weights are in the dtype of the observations.

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
    check_grid,
    experiments_of,
    patterns,
    without_no_data,
)
from assimilate.baselines.kernels import (
    FitMethod,
    Kernel,
    KernelFit,
    PointValues,
    check_kernel,
    correlation,
    fit_kernel,
)
from assimilate.filters.base import Exactness
from assimilate.memo import Memo, content
from dynamics.random import Streams, uniform
from dynamics.settings import ANY, POSITIVE, check_settings, one_or_several
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
        space: fields on a grid.
        mean: mu, in Space units; a number, or one per channel.
        variance: s2, in Space units squared; likewise.
        length: in the units of `Space.distance` (great-circle km where the grid has latitudes and longitudes);
            likewise. "exponential" is `exp(-d / length)`.
        kernel: "exponential" (default), "matern32", "matern52" or "gaussian".

    Raises:
        CapabilityError: the Space has no grid.
        ValueError: a setting out of its range, or one for another number of channels.

    `fit` and `fit_fields` find mean, variance and length from observations or from a simulator's fields.
    """

    space: Space
    mean: float | tuple[float, ...]
    variance: float | tuple[float, ...]
    length: float | tuple[float, ...]
    kernel: Kernel = "exponential"
    _memo: Memo = field(default_factory=lambda: Memo(4), init=False, repr=False, compare=False)
    name: ClassVar[str] = "optimal interpolation"
    exactness: ClassVar[Exactness] = "biased"

    def __post_init__(self) -> None:
        """Check the settings."""
        check_grid(self.space, method=self.name)
        check_kernel(self.kernel)
        positive = one_or_several(POSITIVE)
        check_settings(self, mean=one_or_several(ANY), variance=positive, length=positive)
        for channel in range(len(self.space.channels)):
            self.law(channel)

    def law(self, channel: int) -> KernelFit:
        """Mean, variance and length of a channel."""
        channels = len(self.space.channels)
        found = []
        for name in ("mean", "variance", "length"):
            value = getattr(self, name)
            several = value if isinstance(value, tuple) else (value,) * channels
            if len(several) != channels:
                raise ValueError(f"{name} has {len(several)} numbers; the state has {channels} channels")
            found.append(several[channel])
        return KernelFit(*found)

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
            observations: point values; times are taken as independent draws of the fields.
            space: fields on a grid.
            kernel: form of the correlation.
            method: "likelihood" (maximum likelihood, default) or "variogram" (weighted least squares).
            gauges: at most this many places are used by the likelihood, drawn at random (its cost is their cube).
            seed: of that draw.
        """
        check_grid(space, method=cls.name)
        most = gauges if method == "likelihood" else 2000
        laws = []
        for channel in range(len(space.channels)):
            groups = point_values(observations, space, channel, most=most, seed=seed, method=cls.name)
            laws.append(fit_kernel(groups, kernel, method))
        return cls._of(laws, space, kernel)

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
            fields: `(*b, channel, *grid)` in Space units, taken as independent draws.
            space: fields on a grid.
            kernel: form of the correlation.
            method: "likelihood" or "variogram".
            cells: number of cells used, drawn at random.
            seed: of that draw.
        """
        check_grid(space, method=cls.name)
        size = math.prod(space.grid_shape)
        flat = fields.detach().cpu().double().reshape(-1, len(space.channels), size)
        laws = []
        for channel in range(len(space.channels)):
            valid = torch.arange(size)
            if space.mask is not None:
                valid = valid[~torch.from_numpy(space.mask[channel].copy()).flatten()]
            kept = valid[sample_of(valid.numel(), cells, seed)]
            places = space.positions()[kept]
            values = flat[:, channel, kept]
            group = PointValues(space.distance(places, places), values, torch.zeros(kept.numel(), dtype=torch.float64))
            laws.append(fit_kernel([group], kernel, method))
        return cls._of(laws, space, kernel)

    @classmethod
    def _of(cls, laws: Sequence[KernelFit], space: Space, kernel: Kernel) -> OptimalInterpolation:
        """With the law of each channel; plain numbers for a single one."""
        if len(laws) == 1:
            return cls(space, *laws[0], kernel)
        mean, variance, length = zip(*laws, strict=True)
        return cls(space, mean, variance, length, kernel)

    def estimate(self, observation: Observation | None, time: float) -> Estimate:
        """Posterior mean and standard deviation; the prior's where nothing is observed. See `Baseline.estimate`."""
        like = torch.zeros(()) if observation is None else observation.y
        channels = range(len(self.space.channels))
        shape = (experiments_of(observation), len(channels), math.prod(self.space.grid_shape))
        laws = [self.law(channel) for channel in channels]
        mean = like.new_tensor([law.mean for law in laws])[:, None].repeat(shape[0], 1, shape[2])
        std = like.new_tensor([math.sqrt(law.variance) for law in laws])[:, None].repeat(shape[0], 1, shape[2])
        for pattern in patterns(observation, method=self.name, errors=True) if observation is not None else ():
            for channel in pattern.channels.unique().tolist():
                part, law = pattern.of(channel), laws[channel]
                departures = part.values - law.mean
                for block in self._blocks(part, law):
                    mean[part.experiments, channel, block.cells] += departures @ block.weights
                    std[part.experiments, channel, block.cells] = block.std
        event = (-1, *self.space.event_shape)
        return Estimate(
            without_no_data(mean.reshape(event), self.space), without_no_data(std.reshape(event), self.space)
        )

    def _blocks(self, pattern: Pattern, law: KernelFit) -> Sequence[Block] | Iterator[Block]:
        assert pattern.variance is not None
        if math.prod(self.space.grid_shape) * pattern.values.shape[1] > REMEMBERED_NUMBERS:
            return self._weights(pattern, law)
        key = (law, content(pattern.positions), content(pattern.variance), pattern.values.dtype)
        return self._memo.get(key, lambda: list(self._weights(pattern, law)))

    def _weights(self, pattern: Pattern, law: KernelFit) -> Iterator[Block]:
        places = pattern.positions
        cells = self.space.positions().to(places.device)
        assert pattern.variance is not None
        root = torch.linalg.cholesky(self._covariance(places, places, law) + torch.diag(pattern.variance))
        chunk = max(1, CHUNK_NUMBERS // places.shape[0])
        for start in range(0, cells.shape[0], chunk):
            part = slice(start, min(start + chunk, cells.shape[0]))
            cross = self._covariance(places, cells[part], law)
            weights = torch.cholesky_solve(cross, root)
            variance = (law.variance - (cross * weights).sum(0)).clamp_min(0)
            yield Block(part, weights.to(pattern.values.dtype), variance.sqrt().to(pattern.values.dtype))

    def _covariance(self, a: Tensor, b: Tensor, law: KernelFit) -> Tensor:
        return law.variance * correlation(self.space.distance(a, b), law.length, self.kernel)


def point_values(
    observations: Sequence[Observation | None], space: Space, channel: int, *, most: int, seed: int, method: str
) -> list[PointValues]:
    """The values of one channel at all times, by places.

    Args:
        observations: of all times.
        space: gives the distances.
        channel: of the state.
        most: at most this many places of a pattern are kept, drawn at random.
        seed: of that draw.
        method: name for messages.
    """
    found: dict[object, list[Pattern]] = {}
    for observation in observations:
        for pattern in patterns(observation, method=method, errors=True) if observation is not None else ():
            part = pattern.of(channel)
            found.setdefault(content(part.positions), []).append(part)
    groups = []
    for parts in found.values():
        kept = sample_of(parts[0].positions.shape[0], most, seed)
        places, variance = parts[0].positions.cpu()[kept], parts[0].variance
        assert variance is not None
        values = torch.cat([part.values.cpu()[:, kept] for part in parts]).double()
        groups.append(PointValues(space.distance(places, places), values, variance.cpu()[kept]))
    return groups


def sample_of(count: int, most: int, seed: int) -> Tensor:
    """Indices of at most `most` of `count` things, drawn at random, in order."""
    if count <= most:
        return torch.arange(count)
    numbers = uniform(Streams(seed), (1, 1, count), dtype=torch.float64)[0, 0]
    return torch.argsort(numbers)[:most].sort().values
