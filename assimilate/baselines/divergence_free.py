r"""Optimal interpolation of a plane velocity that is nearly free of divergence: u tells of v, and v of u.

    mean(g) = mu + k_g^T C^-1 (y - mu),      var(g) = s2 + n2 - k_g^T C^-1 k_g

for components g of cells, with the covariance of `velocity_kernels.py` between them and the observed values, R added in
C. It is the exact posterior of a Gaussian velocity made of a stream function and a little potential; it needs no
boundary values and no periodic grid. All of it is float64, the kept weights are in the dtype of the observations.

References:
    Azijli, Dwight (2015), Solenoidal filtering of volumetric velocity measurements using Gaussian process regression,
    https://doi.org/10.1007/s00348-015-2067-7
    Differs: two dimensions, Matern's kernels, and a fitted share of the variance that has divergence.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import ClassVar

import torch

from assimilate.baselines.base import Estimate, Pattern, check_grid, experiments_of, patterns, without_no_data
from assimilate.baselines.kernels import Kernel, check_kernel
from assimilate.baselines.optimal_interpolation import CHUNK_NUMBERS, REMEMBERED_NUMBERS, Block, sample_of
from assimilate.baselines.velocity_kernels import Components, VelocityLaw, covariance, fit_velocity
from assimilate.filters.base import Exactness
from assimilate.memo import Memo, content
from dynamics.errors import CapabilityError
from dynamics.settings import ANY, FRACTION, NOT_NEGATIVE, POSITIVE, check_settings, several
from dynamics.space import Space
from observations.likelihood import Observation


@dataclass(frozen=True)
class DivergenceFreeInterpolation:
    """Simple kriging of both components at once; its Gaussian standard deviation is its spread.

    Args:
        space: two fields, u along x and v along y in the same units, on a plane grid (y, x) that is not periodic.
        mean: (mu_u, mu_v), in Space units.
        variance: s2 of each component, in Space units squared.
        length: in the units of the coordinates.
        kernel: of f, along the line between two places: "exponential", "matern32" (default), "matern52" or "gaussian".
        divergent: a, the share of the variance in the part without rotation, from 0 (default) to 1.
        nugget: n2, in Space units squared (0).

    Raises:
        CapabilityError: another kind of Space.
        ValueError: a setting out of its range.

    `fit` finds the numbers from observations.
    """

    space: Space
    mean: tuple[float, float]
    variance: float
    length: float
    kernel: Kernel = "matern32"
    divergent: float = 0.0
    nugget: float = 0.0
    _memo: Memo = field(default_factory=Memo, init=False, repr=False, compare=False)
    name: ClassVar[str] = "divergence-free interpolation"
    exactness: ClassVar[Exactness] = "biased"

    def __post_init__(self) -> None:
        """Check the Space and the settings."""
        check_velocity(self.space, method=self.name)
        check_kernel(self.kernel)
        check_settings(self, mean=several(ANY, 2), variance=POSITIVE, length=POSITIVE)
        check_settings(self, nugget=NOT_NEGATIVE, divergent=FRACTION)

    @classmethod
    def fit(
        cls,
        observations: Sequence[Observation | None],
        space: Space,
        *,
        kernel: Kernel = "matern32",
        gauges: int = 200,
        seed: int = 0,
    ) -> DivergenceFreeInterpolation:
        """Settings of maximum likelihood, given the observed values of all times; their noise is taken as known.

        Args:
            observations: point values; times are taken as independent draws of the fields.
            space: of the velocity.
            kernel: form of f.
            gauges: at most this many places are used, drawn at random (the cost is their cube).
            seed: of that draw.

        Raises:
            ValueError: fewer than three observed values, or values that do not vary.
        """
        check_velocity(space, method=cls.name)
        check_kernel(kernel)
        groups: dict[object, list[Pattern]] = {}
        for observation in observations:
            for part in patterns(observation, method=cls.name, errors=True) if observation is not None else ():
                kept = _sampled(part, gauges, seed)
                groups.setdefault((content(kept.positions), content(kept.channels)), []).append(kept)
        law = fit_velocity([parts for parts in groups.values() if parts[0].values.shape[1] >= 3], kernel)
        return cls(space, law.mean, law.variance, law.length, kernel, law.divergent, law.nugget)

    def estimate(self, observation: Observation | None, time: float) -> Estimate:
        """Posterior mean and standard deviation; the prior's where nothing is observed. See `Baseline.estimate`."""
        like = torch.zeros(()) if observation is None else observation.y
        cells = math.prod(self.space.grid_shape)
        centre = like.new_tensor(self.mean).repeat_interleave(cells)
        mean = centre.repeat(experiments_of(observation), 1)
        std = torch.full_like(mean, math.sqrt(self.variance + self.nugget))
        for pattern in patterns(observation, method=self.name, errors=True) if observation is not None else ():
            if pattern.values.shape[1] == 0:
                continue
            departures = pattern.values - like.new_tensor(self.mean)[pattern.channels]
            for block in self._blocks(pattern):
                mean[pattern.experiments, block.cells] += departures @ block.weights
                std[pattern.experiments, block.cells] = block.std
        event = (-1, *self.space.event_shape)
        return Estimate(
            without_no_data(mean.reshape(event), self.space), without_no_data(std.reshape(event), self.space)
        )

    def _blocks(self, pattern: Pattern) -> Sequence[Block] | Iterator[Block]:
        if self.space.size * pattern.values.shape[1] > REMEMBERED_NUMBERS:
            return self._weights(pattern)
        assert pattern.variance is not None
        places = tuple(content(part) for part in (pattern.positions, pattern.channels, pattern.variance))
        return self._memo.get((*places, pattern.values.dtype), lambda: list(self._weights(pattern)))

    def _weights(self, pattern: Pattern) -> Iterator[Block]:
        """The weights of the values, `C^-1 k`, for chunks of the state in C order: all of u, then all of v."""
        law = VelocityLaw(self.mean, self.variance, self.length, self.divergent, self.nugget)
        seen = Components(pattern.positions, pattern.channels)
        assert pattern.variance is not None
        root = torch.linalg.cholesky(covariance(seen, seen, law, self.kernel) + torch.diag(pattern.variance))
        cells = self.space.positions().to(pattern.positions.device)
        places = cells.repeat(2, 1)
        channels = torch.arange(2, device=cells.device).repeat_interleave(cells.shape[0])
        chunk = max(1, CHUNK_NUMBERS // seen.channels.shape[0])
        for start in range(0, places.shape[0], chunk):
            part = slice(start, min(start + chunk, places.shape[0]))
            cross = covariance(seen, Components(places[part], channels[part]), law, self.kernel)
            weights = torch.cholesky_solve(cross, root)
            variance = (self.variance + self.nugget - (cross * weights).sum(0)).clamp_min(0)
            yield Block(part, weights.to(pattern.values.dtype), variance.sqrt().to(pattern.values.dtype))


def check_velocity(space: Space, *, method: str) -> None:
    """Raise a CapabilityError unless the Space is that of a velocity (u, v) on a plane."""
    check_grid(space, method=method)
    units = {entry.units for entry in space.fields}
    if len(space.channels) != 2 or len(space.grid) != 2 or len(units) > 1 or space.spherical or space.periodic:
        raise CapabilityError(
            f"{method} works on two fields (u, v) of one unit on a plane grid (y, x) that is not periodic; given "
            f"{space!r}"
        )
    # Raises where the coordinates have no common unit of length.
    space.distance(space.positions()[:1], space.positions()[:1])


def _sampled(pattern: Pattern, most: int, seed: int) -> Pattern:
    """The values at no more than `most` places, drawn at random."""
    places, owner = torch.unique(pattern.positions, dim=0, return_inverse=True)
    kept = torch.isin(owner.cpu(), sample_of(places.shape[0], most, seed))
    assert pattern.variance is not None
    return Pattern(
        pattern.experiments,
        pattern.positions[kept],
        pattern.values[:, kept],
        pattern.variance[kept],
        pattern.channels[kept],
    )
