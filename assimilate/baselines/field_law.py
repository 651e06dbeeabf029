r"""The law of a field, found from its gauges: how fast it varies, and which way its bands run.

    rho(p, q) = exp(-(d / length)^power),   d^2 = (p - q)^T S^-1 (p - q),   det S = 1

S stretches distances: rain that lies in bands is alike for longer along them than across. Four numbers make a law: log
length, two for the stretch, and power. The stretch is (s cos 2a, s sin 2a): exp(s / 2) is the ratio of the ranges along
and across the bands, and a the angle of the bands from the columns' axis towards the rows'. The two numbers are
continuous where the field is alike in all directions.

The values of some hours have a restricted likelihood for every law (mean and variance of each hour unknown),

    log L = -(m - 1)/2 log s2 - log det(C)/2 - log(1^T C^-1 1)/2,     s2 = y^T Q y / (m - 1)
    Q = C^-1 - C^-1 1 1^T C^-1 / (1^T C^-1 1)

and the law of now is the posterior mean over a table of laws. Rain is not Gaussian and its hours are alike, so its
values say less than the likelihood believes; `temperature` divides it.

References:
    Harville (1974), Bayesian inference for variance components using only error contrasts,
    https://doi.org/10.1093/biomet/61.2.383 (the restricted likelihood)
    Chiles, Delfiner (2012), Geostatistics: modeling spatial uncertainty, https://doi.org/10.1002/9781118136188
    (geometric anisotropy)

Differs from them: a table and a tempered mean in place of a search for the maximum, so the law changes smoothly with
the values and nothing can fail to converge.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass

import torch
from torch import Tensor

MIDDLE = (math.log(30.0), 0.0, 0.0, 1.0)
"""The law that is likeliest before any gauge has spoken."""


@dataclass(frozen=True)
class LawFit:
    """How a law is found; the defaults were chosen on simulated storms.

    Args:
        lengths: of the table, cells.
        stretches: s, twice the logs of the ratios of ranges; 0 is always among them.
        angles: directions of each stretch.
        powers: of the table.
        hours: so many last hours are used.
        temperature: divides the log likelihood; 1 believes every value.
        spread: standard deviations of the prior, of log length (about 30 cells), of either number of the stretch
            (about 0) and of the power (about 1).
        gauges: at most this many are used, evenly spaced in their order (the cost is their cube).
        noise: standard deviation of the values' errors over that of the field.
    """

    lengths: tuple[float, ...] = (6.0, 10.0, 16.0, 25.0, 40.0, 70.0)
    stretches: tuple[float, ...] = (0.35, 0.7, 1.05, 1.5)
    angles: int = 8
    powers: tuple[float, ...] = (0.8, 1.0, 1.25)
    hours: int = 5
    temperature: float = 4.0
    spread: tuple[float, float, float] = (0.8, 0.7, 0.2)
    gauges: int = 200
    noise: float = 0.05

    def __call__(self, fields: Tensor) -> Tensor | None:
        """The law of now, `(4,)`; None where no hour says anything.

        Args:
            fields: gauge values on the grid, newest first, `(hours, rows, columns)`; NaN where there is no gauge.
        """
        total, used = fields.new_zeros(len(self.table()), dtype=torch.float64), False
        seen = ~torch.isnan(fields[: self.hours])
        for mask in torch.unique(seen, dim=0):
            values = fields[: self.hours][(seen == mask).all(-1).all(-1)][:, mask]
            logs, says = self._evidence(mask.nonzero(), values.double())
            total, used = total + logs.sum(1), used or bool(says.any())
        return self.mean(total).to(fields.dtype) if used else None

    def of_many(self, places: Tensor, values: Tensor) -> Tensor:
        """Laws of many fields that have the same gauges, `(n, 4)`; NaN where no hour says anything.

        Args:
            places: `(m, 2)`.
            values: `(n, hours, m)`, newest first; NaN in hours that were not seen.
        """
        logs, says = self._evidence(places, values[:, : self.hours])
        return torch.where(says.any(1, keepdim=True), self.mean(logs.sum(2)), torch.nan)

    def _evidence(self, places: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Log likelihoods `(laws, ...)` of fields `(..., m)`, 0 for those that say nothing; and which say something.

        A dry field, one that is equal everywhere and one of few gauges fit every law.
        """
        logs = values.new_zeros(len(self.table()), *values.shape[:-1])
        says = torch.zeros_like(logs[0], dtype=torch.bool)
        if len(places) >= 10:
            says = values.std(-1) > 1e-3
            kept = torch.linspace(0, len(places) - 1, min(len(places), self.gauges)).round().long()
            if bool(says.any()):
                logs[:, says] = self.log_likelihoods(places[kept].to(values), values[says][:, kept])
        return logs, says

    def mean(self, logs: Tensor) -> Tensor:
        """Posterior mean of the law, `(*n, 4)`, from log likelihoods `(laws, *n)`."""
        laws = self.table().to(logs)
        middle = laws.new_tensor(MIDDLE)
        width = laws.new_tensor([self.spread[0], self.spread[1], self.spread[1], self.spread[2]])
        prior = -0.5 * ((laws - middle) / width).square().sum(1)
        weights = torch.softmax(logs / self.temperature + prior.reshape(-1, *[1] * (logs.ndim - 1)), 0)
        return torch.tensordot(weights, laws, dims=([0], [0]))

    def table(self) -> Tensor:
        """All laws, `(n, 4)`, float64."""
        turns = [2 * math.pi * k / self.angles for k in range(self.angles)]
        ways = [(0.0, 0.0), *((s * math.cos(a), s * math.sin(a)) for s in self.stretches for a in turns)]
        laws = itertools.product(self.powers, self.lengths, ways)
        return torch.tensor([[math.log(length), *way, power] for power, length, way in laws], dtype=torch.float64)

    def log_likelihoods(self, places: Tensor, values: Tensor) -> Tensor:
        """Restricted log likelihood of every law for every hour, `(n, hours)`, up to a constant.

        Args:
            places: `(m, 2)`.
            values: `(hours, m)`.
        """
        m = len(places)
        found = []
        for laws in self.table().to(places).split(64):
            matrix = correlation(laws, places, places) + self.noise**2 * torch.eye(m).to(places)
            factor = torch.linalg.cholesky(matrix)
            right = torch.cat([torch.ones_like(values[:1]), values]).mT.expand(len(laws), -1, -1)
            white = torch.linalg.solve_triangular(factor, right, upper=False)
            one, y = white[..., :1], white[..., 1:]
            size = one.square().sum(-2, keepdim=True)
            y = y - one * ((one * y).sum(-2, keepdim=True) / size)
            variance = y.square().sum(-2) / (m - 1)
            logs = factor.diagonal(dim1=-2, dim2=-1).log().sum(-1, keepdim=True) + 0.5 * size.squeeze(-1).log()
            found.append(-0.5 * (m - 1) * variance.log() - logs)
        return torch.cat(found)


def correlation(
    law: Tensor, a: Tensor, b: Tensor, a_depth: Tensor | None = None, b_depth: Tensor | None = None
) -> Tensor:
    """Correlation between places, `(*n, i, j)`.

    Args:
        law: `(*n, 4)`.
        a: rows and columns, `(i, 2)`.
        b: `(j, 2)`.
        a_depth: distance in a third dimension that is not stretched, cells, `(i,)`; 0 by default.
        b_depth: `(j,)`.
    """
    y, x = (a[:, None] - b).unbind(-1)
    deep = 0.0 if a_depth is None and b_depth is None else _zero(a_depth, a)[:, None] - _zero(b_depth, b)
    return at_distance(law, stretched(law, y, x) + deep * deep)


def stretched(law: Tensor, y: Tensor, x: Tensor) -> Tensor:
    """Squared distances `(y, x) S^-1 (y, x)^T` under laws `(*n, 4)`: `(*n, *shape)` of y and x."""
    along, across = (part[(..., *(None,) * y.ndim)] for part in law[..., 1:3].unbind(-1))
    # S^-1 = exp(-A) with A = [[along, across], [across, -along]] / 2 over (x, y), which has the eigenvalues -+ s / 2.
    size = torch.sqrt(along.square() + across.square())
    even = torch.cosh(0.5 * size)
    odd = torch.where(size > 1e-6, torch.sinh(0.5 * size) / size.clamp_min(1e-6), 0.5)
    return (even - odd * along) * x * x + (even + odd * along) * y * y - 2.0 * odd * across * x * y


def at_distance(law: Tensor, squared: Tensor) -> Tensor:
    """Correlation at squared distances `(*n, *shape)` under laws `(*n, 4)`."""
    extra = (..., *(None,) * (squared.ndim - law.ndim + 1))
    length, power = law[..., 0].exp()[extra], law[..., 3][extra]
    return torch.exp(-((squared.clamp_min(0.0) + 1e-12).sqrt() / length) ** power)


def isotropic(length: float, like: Tensor) -> Tensor:
    """The law `exp(-d / length)`, `(4,)`."""
    return like.new_tensor([math.log(length), 0.0, 0.0, 1.0])


def scale(law: Tensor, places: Tensor, values: Tensor, noise: float) -> Tensor:
    """Standard deviation of a field of this law and unknown mean from its values, `()`; at least 1e-3.

    Args:
        law: `(4,)`.
        places: `(m, 2)`.
        values: `(m,)`.
        noise: standard deviation of the values' errors over that of the field.
    """
    places, y = places.double(), values.double()[:, None]
    matrix = correlation(law.double(), places, places) + noise**2 * torch.eye(len(places)).to(places)
    factor = torch.linalg.cholesky(matrix)
    one, y = torch.linalg.solve_triangular(factor, torch.cat([torch.ones_like(y), y], 1), upper=False).unbind(1)
    y = y - one * ((one @ y) / (one @ one))
    return (y.square().sum() / max(1, len(places) - 1)).sqrt().clamp_min(1e-3).to(values)


def _zero(depth: Tensor | None, places: Tensor) -> Tensor:
    return torch.zeros_like(places[:, 0]) if depth is None else depth
