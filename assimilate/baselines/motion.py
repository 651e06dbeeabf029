r"""The motion of a storm, found from what its gauges saw in two or three hours.

Rain keeps its pattern while it moves. In coordinates that move along, a gauge of an hour ago is one more gauge at
another place, only farther: with a field whose covariance is `s2 exp(-d / length)`,

    d(i, j)^2 = |p_i - M(p_j)|^2 + (memory * hours between i and j)^2,

where M carries a place for an hour and `memory` (cells an hour) says how fast the pattern forgets: a pattern of size L
lives about L / memory hours, so small scales die first, as they do in rain. M is a mean wind and a vortex,

    M(p) = c' + R(spin (1 + r^2 / core^2)^-0.8) (p - c),   r = |p - c|,   c' = c + wind

with seven numbers in all: wind (2, cells an hour), centre (2, cells, now), spin (radians an hour), log core (cells) and
log memory. They maximise the likelihood of the values of an hour given those of the hour before, of the last pairs of
hours, under a weak prior; a grid of winds and of vortices says where to start.

References:
    Germann, Zawadzki (2002), Scale-dependence of the predictability of precipitation from continental radar images,
    https://doi.org/10.1175/1520-0493(2002)130<2859:SDOTPO>2.0.CO;2 (patterns live longer in moving coordinates)
    Seed (2003), A dynamic and spatial scaling approach to advection forecasting,
    https://doi.org/10.1175/1520-0450(2003)042<0381:ADASSA>2.0.CO;2 (lifetimes grow with the scale)
    Gneiting, Genton, Guttorp (2007), Geostatistical space-time models, stationarity, separability and full symmetry
    (covariances in moving coordinates)

Differs from them: radar tracks echoes in pictures; here values at some tens of places are all there is, so the motion
has few numbers and is found by likelihood.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

NUMBERS = 7
"""wind y, wind x, centre y, centre x, spin, log core, log memory."""
_SCALES = (4.0, 4.0, 10.0, 10.0, 0.6, 0.5, 0.5)
"""Typical changes of the numbers, by which a search steps."""
_WINDS = (3.0, 6.0, 10.0, 14.0)
_CENTRES = (-0.1, 0.15, 0.4, 0.6, 0.85, 1.1)
_SPINS = (-2.4, -1.2, -0.5, 0.5, 1.2, 2.4)


@dataclass(frozen=True)
class MotionFit:
    """How a motion is found; the defaults were chosen on simulated storms.

    Args:
        gauges: at most this many gauges are used, evenly spaced in their order (the cost is their cube).
        pairs: pairs of consecutive hours.
        starts: best candidates that are refined.
        steps: gradient steps of the refinement.
        length: of the covariance, cells; much longer than the gaps between gauges, so that it does not matter.
        noise: standard deviation of the values over that of the field.
    """

    gauges: int = 110
    pairs: int = 2
    starts: int = 4
    steps: int = 25
    length: float = 40.0
    noise: float = 0.05

    def __call__(self, places: Tensor, values: Tensor, grid: tuple[int, int], previous: Tensor | None = None) -> Tensor:
        """The motion of the last hour, `(7,)`, float32.

        Args:
            places: row and column of the gauges, `(m, 2)`.
            values: `(hours, m)`, newest first, at least two hours; none of them NaN.
            grid: rows and columns of the field.
            previous: the motion of the hour before, from which the search starts too.
        """
        count = len(places)
        kept = torch.linspace(0, count - 1, min(count, self.gauges), device=places.device).round().long()
        where, seen = places[kept].float(), values[:, kept].float()
        seen = seen / self._scale(where, seen[0])
        hours = min(self.pairs, len(seen) - 1)
        with torch.no_grad():
            first = candidates(grid).to(where)
            first = first[self._misfit(first, where, seen, grid, 1).argsort()[: 3 * self.starts]]
            if previous is not None:
                first = torch.cat([first, _around(previous.to(where))])
            best = first[self._misfit(first, where, seen, grid, hours).argsort()[: self.starts]]
        scales = best.new_tensor(_SCALES)
        with torch.enable_grad():
            change = torch.zeros_like(best, requires_grad=True)
            optimiser = torch.optim.Adam([change], lr=0.1)
            for k in range(self.steps):
                for group in optimiser.param_groups:
                    group["lr"] = 0.1 * (1 - k / self.steps) + 0.005
                optimiser.zero_grad()
                self._misfit(best + change * scales, where, seen, grid, hours).nan_to_num(0.0).sum().backward()
                optimiser.step()
        with torch.no_grad():
            found = best + change * scales
            return found[self._misfit(found, where, seen, grid, hours).argmin()]

    def _misfit(self, motions: Tensor, places: Tensor, values: Tensor, grid: tuple[int, int], pairs: int) -> Tensor:
        """Minus the log posterior of motions, `(b,)`; infinite where a matrix cannot be factored."""
        parts = [self._pair(motions, places, values[k], values[k + 1], k) for k in range(pairs)]
        total = torch.stack(parts).sum(0) + _prior(motions, grid)
        return torch.where(torch.isnan(total), torch.inf, total)

    def _pair(self, motions: Tensor, places: Tensor, now: Tensor, before: Tensor, ago: int) -> Tensor:
        """Minus the log likelihood of the values `now` given those an hour `before`, `(b,)`."""
        m = len(places)
        moved = carried(motions, places, ago=ago)
        where = torch.cat([moved, places.expand_as(moved)], -2)
        hour = torch.cat([torch.ones(m), torch.zeros(m)]).to(places)
        apart = (motions[:, 6].exp()[:, None, None] * (hour[:, None] - hour)).square()
        matrix = torch.exp(-torch.sqrt(_squared(where, where) + apart + 1e-10) / self.length)
        factor, failed = torch.linalg.cholesky_ex(matrix + self.noise**2 * torch.eye(2 * m).to(matrix))
        right = torch.stack([torch.ones(2 * m).to(places), torch.cat([before, now])], -1)
        white = torch.linalg.solve_triangular(factor, right.expand(len(motions), -1, -1), upper=False)
        one, y = white.unbind(-1)
        mean = (one * y).sum(-1) / one.square().sum(-1)
        rest = (y - mean[:, None] * one)[:, m:]
        likelihood = 0.5 * rest.square().sum(-1) + factor.diagonal(dim1=-2, dim2=-1)[:, m:].log().sum(-1)
        return torch.where(failed > 0, torch.nan, likelihood)

    def _scale(self, places: Tensor, values: Tensor) -> Tensor:
        """Standard deviation of the field whose covariance fits the values of one hour, `()`."""
        return field_scale(places, values[None], self.length, self.noise)[0]


def carried(motions: Tensor, places: Tensor, *, ago: int = 0) -> Tensor:
    """Where places are an hour later, `(b, m, 2)`.

    Args:
        motions: `(b, 7)`.
        places: `(m, 2)` or `(b, m, 2)`.
        ago: the hour ends so many hours before now, when the vortex was elsewhere.
    """
    wind, spin, core = motions[:, None, 0:2], motions[:, None, 4], motions[:, None, 5].exp()
    centre = motions[:, None, 2:4] - (ago + 1) * wind
    apart = places - centre
    angle = -spin * (1 + apart.square().sum(-1) / core**2) ** -0.8
    sine, cosine = torch.sin(angle), torch.cos(angle)
    y, x = apart.unbind(-1)
    return centre + wind + torch.stack([cosine * y - sine * x, sine * y + cosine * x], -1)


def field_scale(places: Tensor, values: Tensor, length: float, noise: float) -> Tensor:
    """Standard deviation `s` of a field with covariance `s2 exp(-d / length)` and unknown mean, `(n,)`; at least 1e-3.

    Args:
        places: `(m, 2)`.
        values: `(n, m)`.
        length: cells.
        noise: standard deviation of the values' errors over s.
    """
    matrix = torch.exp(-torch.sqrt(_squared(places, places)).double() / length)
    factor = torch.linalg.cholesky(matrix + noise**2 * torch.eye(len(places)).to(matrix))
    right = torch.cat([torch.ones_like(values[:1]), values]).mT.double()
    white = torch.linalg.solve_triangular(factor, right, upper=False)
    one, y = white[:, :1], white[:, 1:]
    y = y - one * ((one * y).sum(0) / one.square().sum())
    return (y.square().sum(0) / max(1, len(places) - 1)).sqrt().clamp_min(1e-3).to(values)


def candidates(grid: tuple[int, int]) -> Tensor:
    """Motions to start from: winds in eight directions, and vortices at rest; `(n, 7)`."""
    rows, columns = grid
    found = []
    for memory in (2.0, 5.0):
        for wind in (0.0, *_WINDS):
            for k in range(8 if wind else 1):
                angle = k * math.pi / 4
                uv = [wind * math.sin(angle), wind * math.cos(angle)]
                found.append([*uv, rows / 2, columns / 2, 0.0, math.log(10.0), math.log(memory)])
    for y in _CENTRES:
        for x in _CENTRES:
            for spin in _SPINS:
                for core in (5.0, 12.0):
                    found.append([0.0, 0.0, y * rows, x * columns, spin, math.log(core), math.log(3.0)])
    return torch.tensor(found)


def _around(previous: Tensor) -> Tensor:
    """The motion of the hour before, its centre an hour on, and changes of each number by its scale."""
    now = torch.cat([previous[:2], previous[2:4] + previous[:2], previous[4:]])
    steps = torch.diag(now.new_tensor(_SCALES))
    return torch.cat([now[None], now + 0.5 * steps, now - 0.5 * steps])


def _prior(motions: Tensor, grid: tuple[int, int]) -> Tensor:
    """Minus the log of a weak Gaussian prior: winds of 8 cells an hour, a core of 10 cells, a memory of 4."""
    rows, columns = grid
    mean = motions.new_tensor([0.0, 0.0, rows / 2, columns / 2, 0.0, math.log(10.0), math.log(4.0)])
    std = motions.new_tensor([8.0, 8.0, 0.6 * rows, 0.6 * columns, 1.2, 0.7, 0.8])
    return 0.5 * ((motions - mean) / std).square().sum(-1)


def _squared(a: Tensor, b: Tensor) -> Tensor:
    """Squared distances, `(..., m, n)`; by differences, which keep near places apart in float32."""
    return (a[..., :, None, :] - b[..., None, :, :]).square().sum(-1)
