r"""Background covariance on any grid: a polynomial of the diffusion operator.

    A x = -div grad x in finite volumes: (A x)_i = 1/w_i sum_j c_ij (x_i - x_j) over the neighbours j of cell i
    S   = w^1/2 A w^-1/2,  symmetric;       L = std / sqrt(diag f(S)^2) f(S),       B = L L^T

with `f(a) = exp(-length^2 a / 4)`, the heat flow of half the time, or Matern's root (`spectral.root_response`). w are
the cells' areas, c the widths of the faces over the distances between centres. Nothing flows through the edges of the
grid or into no-data cells, so correlations go round a coast and not across it; the division by the diagonal gives every
cell its variance nevertheless. Cells may differ in size: latitudes and longitudes, curvilinear and stretched grids.

`f(S)` is a Chebyshev series: its order grows with the square root of the number of explicit diffusion steps that it
replaces, it is differentiable, and it is accurate to `ACCURACY`. The diagonal is exact on small grids and, for the
Gaussian, on planes without no-data cells; elsewhere it is estimated from random fields, once.

References:
    Weaver, Courtier (2001), Correlation modelling on the sphere using a generalized diffusion equation,
    https://doi.org/10.1002/qj.49712757518
    Mirouze, Weaver (2010), Representation of correlation functions in variational assimilation using an implicit
    diffusion operator, https://doi.org/10.1002/qj.643 (Matern correlations)
    Druskin, Knizhnerman (1989), Two polynomial methods of calculating functions of symmetric matrices,
    https://doi.org/10.1016/S0041-5553(89)80020-5

Differs from the papers: the Chebyshev series stands in for the time steps, explicit or implicit.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from assimilate.variational.background import Background, Placed, amplitude, per_channel
from assimilate.variational.spectral import check_smoothness, root_response
from dynamics.errors import CapabilityError
from dynamics.fields import Field
from dynamics.geometry import EARTH_RADIUS, unit_vectors
from dynamics.random import Streams, normal
from dynamics.settings import check_settings, whole
from dynamics.space import Space

ACCURACY = 1e-7
"""Largest error of the series, relative to f(0) = 1."""
MOST_TERMS = 4096
"""Longest series; it serves lengths up to about a thousand of the smallest cells."""
EXACT_CELLS = 4096
"""Up to this many cells the diagonal is computed cell by cell."""
BATCH_NUMBERS = 65_536
"""Numbers of the fields that the diagonal is computed from at a time: they stay in the cache."""


@dataclass(frozen=True, eq=False)
class DiffusionBackground:
    """A covariance on any grid: edges, no-data cells, latitudes and longitudes.

    Args:
        space: of the state. Channels are independent.
        std: standard deviation in Space units: a number, one per channel, or one per value.
        length: correlation length in the units of `Space.distance` (km on the sphere), a number or one per channel:
            far from edges the correlation is `exp(-d^2 / (2 length^2))`.
        smoothness: nu of Matern's family, dimensionless; infinity (default) for the Gaussian.
        draws: random fields for the diagonal on grids of more than `EXACT_CELLS` cells that have a coast, lie on the
            sphere or are of Matern's family; standard deviations then have the relative error `1 / sqrt(2 draws)`
            (1,000: 2 %).
        mean: see `Background`.

    Raises:
        CapabilityError: the Space has no grid.
        ValueError: a setting out of its range, or a length of more cells than the series can bridge.
    """

    space: Space
    std: Any
    length: Any
    smoothness: float = math.inf
    draws: int = 1000
    mean: Any = None

    def __post_init__(self) -> None:
        """Check grid and settings."""
        if not self.space.grid:
            raise CapabilityError(
                f"DiffusionBackground needs a grid; {self.space!r} has scalar fields: DenseBackground"
            )
        self.space.distance(self.space.positions()[:1], self.space.positions()[:1])
        check_smoothness(self.smoothness)
        check_settings(self, draws=whole(2))
        per_channel(self.length, self.space, "length")
        amplitude(self.std, self.space)

    @property
    def size(self) -> int:
        """White noise on the grid, one number a value of the state."""
        return self.space.size

    @property
    def event_shape(self) -> tuple[int, ...]:
        """Shape of a state."""
        return self.space.event_shape

    def root(self, control: Tensor) -> Tensor:
        """See `Background`; symmetric before the amplitude."""
        white = control.reshape(*control.shape[:-1], *self.space.event_shape)
        return self._scale.on(white) * self._smooth(white)

    def at(self, members: Tensor) -> Background:
        """Itself."""
        return self

    @property
    def order(self) -> int:
        """Degree of the Chebyshev series."""
        return self._series.value.shape[0] - 1

    def laplacian(self, x: Tensor) -> Tensor:
        """The symmetric S, `(*b, *event)` to itself."""
        scaled = x * self._inverse_root_areas.on(x)
        total = torch.zeros_like(x)
        for axis, face in enumerate(self._faces):
            dim = axis - len(self._faces)
            c, size = face.on(x), x.shape[dim]
            # The last face leads round to the first cell; it is closed (0) unless the dimension is periodic.
            flux = c * (scaled - torch.roll(scaled, -1, dim)) if size > 1 else torch.zeros_like(x)
            total = total + flux - torch.roll(flux, 1, dim)
        return total * self._inverse_root_areas.on(x)

    def _smooth(self, x: Tensor) -> Tensor:
        """f(S) x by the recursion T_k+1 = 2 X T_k - T_k-1 with X = 2 S / bound - 1."""
        series = self._series.on(x)
        before, now = x, self._stretched(x)
        total = series[0] * before + series[1] * now
        for k in range(2, series.shape[0]):
            before, now = now, 2 * self._stretched(now) - before
            total = total + series[k] * now
        return total

    def _stretched(self, x: Tensor) -> Tensor:
        return (2 / self._bound) * self.laplacian(x) - x

    @cached_property
    def _bound(self) -> float:
        """An upper bound of the eigenvalues of S: twice its largest diagonal entry (Gershgorin)."""
        diagonal = torch.zeros(self.space.event_shape, dtype=torch.float64)
        for axis, face in enumerate(self._faces):
            diagonal = diagonal + face.value + torch.roll(face.value, 1, axis - len(self._faces))
        return float((2 * diagonal * self._inverse_root_areas.value**2).max().clamp_min(1e-300))

    @cached_property
    def _series(self) -> Placed:
        """Chebyshev coefficients `(order + 1, channel, 1, ...)` of f on [0, bound]."""
        length = per_channel(self.length, self.space, "length")
        dims = len(self.space.grid)
        nodes = 32
        while nodes <= MOST_TERMS:
            angle = math.pi * (torch.arange(nodes, dtype=torch.float64) + 0.5) / nodes
            values = root_response(
                self._bound * (1 + torch.cos(angle)) / 2, length.reshape(-1, 1), self.smoothness, dims
            )
            coefficients = 2 / nodes * values @ torch.cos(angle[:, None] * torch.arange(nodes))
            coefficients[:, 0] /= 2
            left = coefficients.abs().flip(1).cumsum(1).flip(1).amax(0)
            small = (left < ACCURACY).nonzero().flatten()
            # The tail says nothing where the nodes are too few to see f: it must also have its value 1 at 0.
            signs = 1.0 - 2.0 * (torch.arange(nodes, dtype=torch.float64) % 2)
            seen = bool(((coefficients @ signs - 1).abs() < ACCURACY).all())
            if seen and small.numel() and int(small[0]) <= nodes // 2:
                kept = coefficients[:, : max(2, int(small[0]))]
                return Placed(kept.mT.reshape(kept.shape[1], -1, *[1] * dims).contiguous())
            nodes *= 2
        raise ValueError(
            f"length={self.length} is too long for the smallest cells of {self.space!r}: the series has more than "
            f"{MOST_TERMS // 2} terms; coarsen the grid (near the poles, for instance) or take a shorter length"
        )

    @cached_property
    def _scale(self) -> Placed:
        """Amplitude over the standard deviations of f(S) applied to white noise."""
        return Placed(amplitude(self.std, self.space) / self._variance.sqrt())

    @property
    def _variance(self) -> Tensor:
        """The diagonal of f(S)^2, float64 `(*event)`."""
        if math.prod(self.space.grid_shape) <= EXACT_CELLS:
            return self._exact_variance()
        plain = self.space.mask is None and self.space.spherical is None and math.isinf(self.smoothness)
        if plain and len(self.space.grid) > 1:
            return self._product_variance()
        return self._random_variance()

    def _product_variance(self) -> Tensor:
        """On a plane without coast S is a sum over the dimensions, and its heat flow the product of theirs."""
        channels, *shape = self.space.event_shape
        variance = torch.ones(channels, *shape, dtype=torch.float64)
        for axis, dim in enumerate(self.space.grid):
            fields = tuple(Field(f"line{k}", "1", (dim,)) for k in range(channels))
            periodic = (dim,) if dim in self.space.periodic else ()
            line = DiffusionBackground(Space(fields, {dim: self.space.coords[dim]}, periodic), 1.0, self.length)
            along = [1] * len(shape)
            along[axis] = -1
            variance = variance * line._variance.reshape(channels, *along)
        return variance

    def _exact_variance(self) -> Tensor:
        event, cells = self.space.event_shape, math.prod(self.space.grid_shape)
        batch = max(1, BATCH_NUMBERS // self.space.size)
        found = []
        for start in range(0, cells, batch):
            # The same cell in every channel: channels do not mix.
            unit = torch.eye(cells, dtype=torch.float64)[start : start + batch]
            white = unit.reshape(-1, 1, *event[1:]).expand(-1, *event)
            found.append(self._smooth(white).square().flatten(2).sum(-1))
        return torch.cat(found).mT.reshape(event)

    def _random_variance(self) -> Tensor:
        event = self.space.event_shape
        batch = max(1, BATCH_NUMBERS // self.space.size)
        total = torch.zeros(event, dtype=torch.float64)
        for start in range(0, self.draws, batch):
            rows = Streams(0, tuple(range(start, min(start + batch, self.draws))), 1)
            white = normal(rows, (rows.rows[0], 1, *event), dtype=torch.float32)[:, 0]
            total += self._smooth(white).square().sum(0)
        return total / self.draws

    @cached_property
    def _faces(self) -> list[Placed]:
        """The face coefficients c between each cell and the next along every grid dimension, `(channel, *grid)`."""
        gaps, widths = self._gaps, self._widths
        faces = []
        for axis, gap in enumerate(gaps):
            face = torch.where(gap > 0, 1 / torch.where(gap > 0, gap, 1.0), 0.0)
            for other, width in enumerate(widths):
                if other != axis:
                    face = face * (width + torch.roll(width, -1, axis)) / 2
            face = face.expand(self.space.event_shape).clone()
            if self.space.mask is not None:
                valid = torch.from_numpy(~self.space.mask)
                face = face * (valid & torch.roll(valid, -1, axis + 1))
            faces.append(Placed(face))
        return faces

    @cached_property
    def _inverse_root_areas(self) -> Placed:
        area = torch.ones(self.space.grid_shape, dtype=torch.float64)
        for width in self._widths:
            area = area * width
        return Placed(area.rsqrt())

    @cached_property
    def _widths(self) -> list[Tensor]:
        """Widths of the cells along each grid dimension: half the way to both neighbours, one at an edge twice."""
        widths = []
        for axis, gap in enumerate(self._gaps):
            back = torch.roll(gap, 1, axis)
            both = (gap > 0).double() + (back > 0).double()
            widths.append(torch.where(both > 0, (gap + back) / both.clamp_min(1), 1.0))
        return widths

    @cached_property
    def _gaps(self) -> list[Tensor]:
        """Distance from each cell to the next along every grid dimension; 0 where there is none."""
        shape = self.space.grid_shape
        places = self.space.positions().reshape(*shape, -1)
        if self.space.spherical is not None:
            places = unit_vectors(places.reshape(-1, 2)).reshape(*shape, 3)
        gaps = []
        for axis, dim in enumerate(self.space.grid):
            ahead = torch.roll(places, -1, axis)
            distance = torch.linalg.vector_norm(ahead - places, dim=-1)
            if self.space.spherical is not None:
                distance = 2 * EARTH_RADIUS * torch.asin((distance / 2).clamp_max(1.0))
            closing = [slice(None)] * len(shape)
            closing[axis] = slice(-1, None)
            if shape[axis] == 1 or dim not in self.space.periodic:
                distance[tuple(closing)] = 0.0
            elif self.space.spherical is None:
                # Evenly spaced, as every periodic coordinate.
                first = [slice(None)] * len(shape)
                first[axis] = slice(0, 1)
                distance[tuple(closing)] = distance[tuple(first)]
            gaps.append(distance)
        return gaps
