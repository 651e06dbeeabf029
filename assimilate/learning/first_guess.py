r"""A first guess of a field from its gauges: what FlowDAS starts from when it is told of gauges before it draws.

    gauges now, and those of an hour ago where the storm has carried them since  (`baselines.motion`)
    K   = ordinary kriging of both under the law of the last hours   (`baselines.field_law`)
    x_g = K + N(K, standard deviation of K, where the gauges are, how far K is off there, with and without them; law)

An old gauge lies `depth` cells away in a third dimension. Ordinary kriging depends on neither the field's mean nor its
variance; how rough the field is and which way its bands run are found from the gauges themselves. N is a small U-Net on
blocks of cells, trained on simulated fields: it knows the shapes of rain (bands, edges, cores) that no covariance
knows. It sees blocks because single cells between sparse gauges are not decided by them. What kriging of the other
gauges makes of a gauge's place tells it where the rain is not as kriging believes.

The errors of the first guess are those of kriging, drawn by conditional simulation: a field, less what kriging makes of
the same gauges in it. Where rain cannot be negative, a draw is a censored normal variable with the first guess as mean,

    x = max(floor, m + e),      E x = x_g,

since a floor under x_g + e would make it rain where all gauges around are dry.

References:
    Matheron (1963), Principles of geostatistics, https://doi.org/10.2113/gsecongeo.58.8.1246
    Tobin (1958), Estimation of relationships for limited dependent variables, https://doi.org/10.2307/1907382
    (censored normal variables)
    Journel (1974), Geostatistics for conditional simulation of ore bodies,
    https://doi.org/10.2113/gsecongeo.69.5.673
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from assimilate.baselines.field_law import MIDDLE, LawFit, at_distance, correlation, isotropic, scale, stretched
from assimilate.baselines.motion import MotionFit, carried
from assimilate.memo import Memo, content
from dynamics.random import Rng, normal

CHUNK = 4_000_000
"""How many weights are computed at a time."""
STD_SCALE = 8.0
"""The standard deviation of kriging is multiplied by it for the network, so that it is of order one."""
LAW_SCALE = (0.5, 1.0, 1.0, 0.25)
"""A law less the middle one, over it, is of order one."""
EDGE = 4.0
"""Carried gauges farther than so many cells outside the grid are left out."""
DRIEST = 0.02
"""Least mean of a censored variable, over the standard deviation of what is censored."""


class Gauges(NamedTuple):
    """Places that say something about a field.

    Attributes:
        places: row and column, `(m, 2)`; the `now` first are at the centres of cells and of the present hour.
        depth: distance in the third dimension, cells, `(m,)`; 0 for the present hour.
        now: how many are of the present hour.
        law: of the field, `(4,)`; None: `exp(-d / length)`.
    """

    places: Tensor
    depth: Tensor
    now: int
    law: Tensor | None = None


class Kriging(NamedTuple):
    """Weights of ordinary kriging.

    Attributes:
        weights: `(m, cells)`, sums of 1.
        std: `(cells,)`, of the error over that of the field, without that of the mean.
        left_out: `(m, now)`; values times it are those of present gauges less what kriging makes of all others there.
    """

    weights: Tensor
    std: Tensor
    left_out: Tensor


@dataclass(frozen=True, eq=False)
class FirstGuess:
    """Kriging in moving coordinates, corrected by a network.

    Args:
        network: a U-Net, one channel in and out and eight of context (`told`). None: kriging alone.
        block: rows and columns of a block, cells; odd.
        length: of the correlation where no law is fitted, cells; much longer than the gaps between gauges.
        noise: standard deviation of the observations over that of the field.
        memory: how wrong motions are, cells: its square is added to that of an hour's depth, which was found at the
            gauges that the motion was fitted to. Chosen on simulated storms, as `forgotten`; from 6 to 10 the error
            changes by 0.2 %.
        forgotten: a memory of the motion above which the hour before says nothing.
        densest: share of the cells above which gauges of the hour before add nothing.
        motion: how the motion is found.
        law: how the field's law is found; None: `exp(-d / length)` always.
    """

    network: nn.Module | None = field(default=None, repr=False)
    block: int = 3
    length: float = 40.0
    noise: float = 0.05
    memory: float = 8.0
    forgotten: float = 9.0
    densest: float = 0.05
    motion: MotionFit = MotionFit()
    law: LawFit | None = LawFit()
    _memo: Memo = field(default_factory=lambda: Memo(2), init=False, repr=False, compare=False)

    @property
    def settings(self) -> dict[str, Any]:
        """The numbers, for a checkpoint."""
        names = ("block", "length", "noise", "memory", "forgotten", "densest")
        return {name: getattr(self, name) for name in names}

    @property
    def hours(self) -> int:
        """How many hours before the present one count."""
        return max(self.motion.pairs, 0 if self.law is None else self.law.hours - 1)

    def moved(self, fields: Tensor, previous: Tensor | None) -> Tensor | None:
        """The motion of the last hour, `(7,)`; None where it is not needed or cannot be known.

        Args:
            fields: gauge values on the grid, newest first, `(hours, rows, columns)`; NaN where there is no gauge.
            previous: the motion of the hour before.
        """
        fields = fields[: self.motion.pairs + 1]
        grid = (fields.shape[-2], fields.shape[-1])
        always = (~torch.isnan(fields)).all(0)
        values = fields[:, always]
        if len(fields) < 2 or values.shape[1] < 10 or values.shape[1] > self.densest * math.prod(grid):
            return None
        # Where all is dry or equal nothing moves that could be seen.
        if not bool((values.std(1) > 1e-3).all()):
            return None
        return self.motion(always.nonzero(), values, grid, previous)

    def gauges(self, fields: Tensor, motion: Tensor | None) -> tuple[Gauges, Tensor]:
        """The gauges that count, and their values `(m,)`.

        Args:
            fields: see `moved`.
            motion: of the last hour; None leaves out the hour before.
        """
        seen = ~torch.isnan(fields[0])
        places, values = seen.nonzero().to(fields.dtype), fields[0][seen]
        depth, now = torch.zeros_like(values), len(places)
        law = None if self.law is None else self.law(fields)
        if motion is None or len(fields) < 2 or float(motion[6].exp()) > self.forgotten:
            return Gauges(places, depth, now, law), values
        before = ~torch.isnan(fields[1])
        came = carried(motion[None].to(places), before.nonzero().to(fields.dtype))[0]
        size = came.new_tensor(fields.shape[-2:])
        near = ((came > -EDGE) & (came < size + EDGE)).all(1)
        came, old = came[near], fields[1][before][near]
        farther = torch.full_like(old, math.hypot(float(motion[6].exp()), self.memory))
        return (
            Gauges(torch.cat([places, came]), torch.cat([depth, farther]), now, law),
            torch.cat([values, old]),
        )

    def kriging(self, gauges: Gauges, grid: tuple[int, int]) -> Kriging:
        """Weights for all cells in C order; those of present gauges under no fitted law are kept for the next hour."""
        if gauges.law is not None or len(gauges.places) > gauges.now:
            return self.kriging_at(gauges, cells(grid, gauges.places))
        key = (content(gauges.places), grid)
        return self._memo.get(key, lambda: self.kriging_at(gauges, cells(grid, gauges.places)))

    def kriging_at(self, gauges: Gauges, wanted: Tensor) -> Kriging:
        """Weights for places `(n, 2)`."""
        places, depth, law = gauges.places, gauges.depth, self._law(gauges)
        matrix = correlation(law, places, places, depth, depth).double()
        exact = torch.linalg.cholesky(matrix + self.noise**2 * torch.eye(len(places)).to(matrix))
        factor = exact.to(places)
        one = torch.cholesky_solve(torch.ones_like(places[:, :1]), factor)
        weights, stds = [], []
        for part in wanted.split(max(1, CHUNK // len(places))):
            cross = correlation(law, places, part, depth)
            simple = torch.cholesky_solve(cross, factor)
            stds.append((1.0 - (cross * simple).sum(0)).clamp_min(0.0).sqrt())
            weights.append(simple + one / one.sum() * (1.0 - simple.sum(0)))
        # Leaving a value out is closed-form: its error is (Q y)_i / Q_ii with Q as in `baselines.field_law`.
        inverse = torch.cholesky_inverse(exact)
        total = inverse.sum(0)
        left = inverse[:, : gauges.now] - total[:, None] * total[: gauges.now] / total.sum()
        left = left / left.diagonal()
        return Kriging(torch.cat(weights, 1), torch.cat(stds), left.to(places))

    def _law(self, gauges: Gauges) -> Tensor:
        return isotropic(self.length, gauges.places) if gauges.law is None else gauges.law.to(gauges.places)

    def mean(self, gauges: Gauges, values: Tensor, grid: tuple[int, int], kriging: Kriging | None = None) -> Tensor:
        """The first guess, `(n, 1, rows, columns)`.

        Args:
            gauges: the places.
            values: `(n, m)`.
            grid: rows and columns.
            kriging: of these gauges under their law, if known already.
        """
        kriging = kriging or self.kriging(gauges, grid)
        kriged = (values @ kriging.weights).reshape(-1, 1, *grid)
        if self.network is None:
            return kriged
        centres = self.centres(grid)
        blocks = kriged[centres]
        told = self.told(gauges, values, blocks, kriging.std.reshape(grid)[centres], kriging.left_out)
        return kriged + self.spread(self.corrected(torch.cat([blocks, told], 1)), grid)

    def corrected(self, told: Tensor) -> Tensor:
        """What the network makes of kriging and `told`, `(n, 9, rows, columns)`: the mean over eight orientations."""
        assert self.network is not None
        total = torch.zeros_like(told[:, :1])
        with torch.no_grad():
            for turns in range(8):
                x = torch.cat([turned(told[:, :5], turns), turned(turned_law(told[:, 5:], turns), turns)], 1)
                made = self.network(x[:, :1].contiguous(), x.new_zeros(len(x)), x[:, 1:])
                total += torch.rot90(made.flip(-1) if turns >= 4 else made, -(turns % 4), (-2, -1))
        return total / 8

    def centres(self, grid: tuple[int, int]) -> tuple[Any, slice, slice]:
        """The index of the central cells of all whole blocks."""
        size, middle = self.block, self.block // 2
        rows, columns = (n // size * size for n in grid)
        return (..., slice(middle, rows, size), slice(middle, columns, size))

    def told(self, gauges: Gauges, values: Tensor, blocks: Tensor, std: Tensor, left_out: Tensor) -> Tensor:
        """What the network sees beside kriging, `(n, 8, rows, columns)` on blocks.

        The standard deviation of kriging, whether there is a gauge, how far kriging is off there, and how far that of
        the other gauges is; log length, stretch (2) and power of the law, the same everywhere.

        Args:
            gauges: the places.
            values: `(n, m)`.
            blocks: kriging at the central cells of blocks, `(n, 1, rows, columns)`.
            std: of kriging there, `(rows, columns)`.
            left_out: see `Kriging`.
        """
        rows, columns = blocks.shape[-2:]
        here = (gauges.places[: gauges.now] / self.block).long()
        block = here[:, 0].clamp_max(rows - 1) * columns + here[:, 1].clamp_max(columns - 1)
        count = torch.zeros_like(std.flatten()).index_add(0, block, torch.ones_like(values[0, : gauges.now]))
        off = torch.stack([values[:, : gauges.now] - blocks.flatten(1)[:, block], values @ left_out], 1)
        mean = off.new_zeros(len(values), 2, rows * columns).index_add(2, block, off) / count.clamp_min(1.0)
        law = self._law(gauges).to(std)
        law = (law - law.new_tensor(MIDDLE)) / law.new_tensor(LAW_SCALE)
        shared = torch.stack([STD_SCALE * std, count.clamp_max(1.0).reshape(rows, columns)])
        return torch.cat([
            shared.expand(len(values), -1, -1, -1), mean.reshape(-1, 2, rows, columns),
            law.reshape(4, 1, 1).expand(len(values), -1, rows, columns),
        ], 1)  # fmt: skip

    def spread(self, blocks: Tensor, grid: tuple[int, int]) -> Tensor:
        """A field on blocks as one on cells: linear between the centres, continued where no whole block is left."""
        fine = functional.interpolate(blocks, scale_factor=float(self.block), mode="bilinear", align_corners=False)
        missing = (0, grid[1] - fine.shape[-1], 0, grid[0] - fine.shape[-2])
        return functional.pad(fine, missing, mode="replicate")

    def errors(self, gauges: Gauges, values: Tensor, grid: tuple[int, int], white: Draws, kriging: Kriging) -> Tensor:
        """Draws of the first guess' errors, `(members, 1, rows, columns)`.

        Args:
            gauges: the places.
            values: `(m,)`; they give the scale.
            grid: rows and columns.
            white: normal numbers, see `draws`.
            kriging: of these gauges.
        """
        torus = white.field.shape[-2:]
        law = self._law(gauges)
        gaps = [(torch.arange(n) + n // 2) % n - n // 2 for n in torus]
        apart = torch.meshgrid(*(gap.to(white.field) for gap in gaps), indexing="ij")
        table = at_distance(law, stretched(law, *apart))
        spectrum = torch.fft.rfft2(table).real.clamp_min(0.0)
        fields = torch.fft.irfft2(torch.fft.rfft2(white.field) * spectrum.sqrt(), s=torus)
        fields = fields[..., : grid[0], : grid[1]]
        ends = gauges.places.new_tensor(grid) - 1
        points = (2.0 * gauges.places / ends - 1.0).flip(-1)[None, None].expand(len(fields), -1, -1, -1)
        seen = functional.grid_sample(fields[:, None], points, padding_mode="border", align_corners=True)[:, 0, 0]
        # An old gauge saw a pattern that has changed since by as much as the field changes over its depth.
        variance = self.noise**2 + 2.0 * (1.0 - at_distance(law, gauges.depth.square()))
        seen = seen + variance.sqrt() * white.gauges[:, : len(gauges.places)]
        error = fields - (seen @ kriging.weights).reshape(fields.shape)
        return (self.size(gauges, values) * error).unsqueeze(1)

    def size(self, gauges: Gauges, values: Tensor) -> Tensor:
        """Standard deviation of the field from its present values, `()`."""
        return scale(self._law(gauges), gauges.places[: gauges.now], values[: gauges.now], self.noise)

    def bases(
        self, gauges: Gauges, values: Tensor, grid: tuple[int, int], white: Draws, floor: float | None = None
    ) -> Tensor:
        """First guesses with errors, `(members, 1, rows, columns)`, whose expectation is the first guess.

        Args:
            gauges: the places.
            values: `(m,)`.
            grid: rows and columns.
            white: normal numbers, see `draws`.
            floor: least value of the field; None: any value.
        """
        kriging = self.kriging(gauges, grid)
        mean = self.mean(gauges, values[None], grid, kriging)
        errors = self.errors(gauges, values, grid, white, kriging)
        if floor is None:
            return mean + errors
        std = self.size(gauges, values) * kriging.std.reshape(mean.shape)
        return floor + censored(mean - floor, std, errors)


def cells(grid: tuple[int, int], like: Tensor) -> Tensor:
    """Row and column of all cells in C order, `(n, 2)`."""
    axes = [torch.arange(n, device=like.device, dtype=like.dtype) for n in grid]
    return torch.stack(torch.meshgrid(*axes, indexing="ij"), -1).reshape(-1, 2)


def turned(x: Tensor, turns: int) -> Tensor:
    """Fields `(..., rows, columns)` in one of eight orientations: quarter turns, from 4 on with the columns flipped."""
    x = torch.rot90(x, turns % 4, (-2, -1))
    return x.flip(-1) if turns >= 4 else x


def turned_law(law: Tensor, turns: int) -> Tensor:
    """Laws `(n, 4, ...)` of turned fields: a quarter turn changes both signs of the stretch, a flip the second's."""
    sign = -1.0 if turns % 2 else 1.0
    signs = law.new_tensor([1.0, sign, -sign if turns >= 4 else sign, 1.0])
    return law * signs.reshape(4, *[1] * (law.ndim - 2))


def censored(mean: Tensor, std: Tensor, errors: Tensor) -> Tensor:
    """`max(0, m + errors)` with the m for which its expectation is `mean` where errors are normal with `std`.

    With a = m / std, E max(0, a + z) = a Phi(a) + phi(a), which increases with a; a is found by Newton's method.

    Args:
        mean: wanted; what is below `DRIEST` standard deviations counts as that.
        std: of the errors.
        errors: leading dims broadcast.
    """
    std = std.clamp_min(1e-6)
    wanted = (mean / std).clamp_min(DRIEST)
    # The function is convex and above its argument: from above the root, no step goes below it.
    a = wanted
    for _ in range(12):
        below = 0.5 * torch.erfc(-a / math.sqrt(2.0))
        a = a - (a * below + torch.exp(-0.5 * a * a) / math.sqrt(2.0 * math.pi) - wanted) / below
    return (a * std + errors).clamp_min(0.0)


class Draws(NamedTuple):
    """Normal numbers for `FirstGuess.errors`.

    Attributes:
        field: `(..., members, 2 rows, 2 columns)`.
        gauges: `(..., members, most)`.
    """

    field: Tensor
    gauges: Tensor


def draws(rng: Rng, shape: tuple[int, int], grid: tuple[int, int], most: int, like: Tensor) -> Draws:
    """Normal numbers for every experiment and member of `shape`, for at most `most` gauges."""
    field = normal(rng, (*shape, 2 * grid[0], 2 * grid[1]), dtype=like.dtype, device=like.device)
    return Draws(field, normal(rng, (*shape, most), dtype=like.dtype, device=like.device))
