r"""How the errors of a denoiser go together in space: measured on held-out fields, by noise level.

    d = r - D(r + rho z),   e = d / s_rho
    periodic grid:   P_rho(k) = mean |F e|^2(k), scaled to unit variance
    any other:       c_rho(l) = sum of d_i d_j / sum of s_i s_j over the pairs of cells l apart, scaled to c_rho(0) = 1

r is the field that the denoiser was trained on and s_rho the root of its own variance. The variance of a value alone
says nothing of its neighbours: a sampler that draws what is left open value by value loses the wide patterns, and takes
a hundred levels where a handful are enough with P or c. A few observed cells then tell their neighbours, too.

P knows every wave of the grid that it was measured on. c knows the distance alone, for one field, and serves grids of
any size with cells of the same size; the sums weigh cells by their spread, so that cells in which nothing happens,
where e is a ratio of two small numbers, do not decide.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from assimilate.learning.denoiser import EDMDenoiser
from assimilate.learning.fit import Draw
from assimilate.posterior.covariance import Isotropic, Modulated
from assimilate.posterior.periodic import Periodic, correlation_power
from dynamics.random import normal

LEVELS = 13
"""Noise levels of the table, equally spaced in their logarithm."""
LAGS = 48
"""Distances of the table without periodicity, cells; a smaller grid has fewer."""


@dataclass(frozen=True, eq=False)
class ResidualCorrelation:
    """The table of a periodic grid.

    Args:
        ratios: noise levels, increasing, `(levels,)`, in units of the residual.
        power: P at each of them, `(levels, channel, rows, columns // 2 + 1)`. Its mean is the factor by which the
            variance was calibrated, 1 if it was not.
    """

    ratios: Tensor
    power: Tensor

    def at(self, ratio: float) -> Tensor:
        """P at a level, linear in its logarithm, `(channel, rows, columns // 2 + 1)`."""
        return _between(self.ratios, self.power, ratio)

    def covariance(self, std: Tensor, ratio: float) -> Periodic:
        """The covariance of a belief with this spread at this level.

        Raises:
            ValueError: the grid is not the one that the table was measured on.
        """
        rows, columns = std.shape[-2:]
        if tuple(self.power.shape[-2:]) != (rows, columns // 2 + 1):
            measured = self.power.shape[-2], 2 * (self.power.shape[-1] - 1)
            raise ValueError(
                f"the correlation of residuals was measured on a grid of {measured}; the state has {(rows, columns)}"
            )
        return Periodic(std, self.at(ratio).to(std))

    def scaled(self, factor: float) -> ResidualCorrelation:
        """The table of a variance that is `factor` times as large."""
        return ResidualCorrelation(self.ratios, self.power * factor)

    def to(self, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> ResidualCorrelation:
        """A copy on another device or in another precision."""
        return ResidualCorrelation(self.ratios.to(device=device), self.power.to(device=device, dtype=dtype))

    def tensors(self) -> dict[str, Tensor]:
        """What a file holds of it."""
        return {"correlation_ratios": self.ratios, "correlation_power": self.power}


@dataclass(frozen=True, eq=False)
class LaggedCorrelation:
    """The table by distance, for one field on a grid that is not periodic.

    Args:
        ratios: noise levels, increasing, `(levels,)`, in units of the residual.
        lags: c at whole distances at each of them, `(levels, lags)`. Its first column is the factor by which the
            variance was calibrated, 1 if it was not.
    """

    ratios: Tensor
    lags: Tensor

    def at(self, ratio: float) -> Tensor:
        """The table at a level, linear in its logarithm, `(lags,)`."""
        return _between(self.ratios, self.lags, ratio)

    def covariance(self, std: Tensor, ratio: float) -> Modulated:
        """The covariance of a belief with this spread at this level, on a grid of any size.

        Raises:
            ValueError: several fields.
        """
        if std.shape[-3] != 1:
            raise ValueError(f"a correlation by distance is for one field; the state has {std.shape[-3]}")
        found = self.at(ratio).to(std)
        return Modulated(found[0].sqrt() * std, found / found[0])

    def scaled(self, factor: float) -> LaggedCorrelation:
        """The table of a variance that is `factor` times as large."""
        return LaggedCorrelation(self.ratios, self.lags * factor)

    def to(self, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> LaggedCorrelation:
        """A copy on another device or in another precision."""
        return LaggedCorrelation(self.ratios.to(device=device), self.lags.to(device=device, dtype=dtype))

    def tensors(self) -> dict[str, Tensor]:
        """What a file holds of it."""
        return {"correlation_ratios": self.ratios, "correlation_lags": self.lags}


Correlation = ResidualCorrelation | LaggedCorrelation


def stored_correlation(tensors: Mapping[str, Tensor]) -> Correlation | None:
    """The table that a file holds, if any."""
    if "correlation_power" in tensors:
        return ResidualCorrelation(tensors["correlation_ratios"], tensors["correlation_power"])
    if "correlation_lags" in tensors:
        return LaggedCorrelation(tensors["correlation_ratios"], tensors["correlation_lags"])
    return None


@torch.no_grad()
def measured_correlation(
    denoiser: EDMDenoiser,
    draw: Draw,
    ratios: tuple[float, float],
    *,
    periodic: bool = True,
    fields: int = 256,
    seed: int = 11,
) -> Correlation:
    """Measure the table.

    Args:
        denoiser: with a variance output.
        draw: held-out fields and what the denoiser is told.
        ratios: largest and smallest level.
        periodic: whether the grid is periodic in both directions; by distance otherwise.
        fields: how many.
        seed: of fields and noise.

    Raises:
        ValueError: the denoiser gives no variance, or several fields on a grid that is not periodic.
    """
    rng = torch.Generator().manual_seed(seed)
    levels = torch.logspace(math.log10(ratios[1]), math.log10(ratios[0]), LEVELS)
    batches = [draw(min(64, fields - k), rng) for k in range(0, fields, 64)]
    table = []
    for ratio in levels:
        errors, spreads = [], []
        for batch in batches:
            noisy = batch.clean + ratio.to(batch.clean) * normal(rng, tuple(batch.clean.shape)).to(batch.clean)
            clean = denoiser(noisy, ratio.to(batch.clean), batch.condition)
            if not isinstance(clean.covariance, Isotropic):
                raise ValueError("a correlation of residuals needs a denoiser with a variance output (variance=True)")
            errors.append(batch.clean - clean.mean)
            spreads.append(clean.covariance.variance.sqrt())
        error, spread = torch.cat(errors), torch.cat(spreads)
        table.append(correlation_power(error / spread) if periodic else correlation_by_distance(error, spread))
    found = torch.stack(table).cpu()
    return ResidualCorrelation(levels, found) if periodic else LaggedCorrelation(levels, found)


def correlation_by_distance(error: Tensor, spread: Tensor) -> Tensor:
    """The table c of errors with these spreads, both `(n, 1, rows, columns)`, at whole distances in cells, `(lags,)`.

    Few pairs of cells are a whole number of cells apart, and a correlation can fall by much within a cell. So c is what
    fits all pairs best when it is read linearly between its distances, as it is used (`at_lag`).

    Raises:
        ValueError: several fields.
    """
    if error.shape[1] != 1:
        raise ValueError(f"a correlation by distance is for one field; the state has {error.shape[1]}")
    size = tuple(error.shape[-2:])
    lags = min(LAGS, *size)
    # On a torus of twice the size the grid does not see itself across the edge.
    torus = tuple(2 * n for n in size)
    products, weights = (
        torch.fft.irfft2(torch.fft.rfft2(x.double(), s=torus).abs().square().sum((0, 1)), s=torus).flatten().cpu()
        for x in (error, spread)
    )
    gaps = [torch.minimum(torch.arange(n), n - torch.arange(n)).double() for n in torus]
    distance = torch.hypot(gaps[0][:, None], gaps[1][None]).flatten()
    near = (distance < lags - 1) & (weights > 0)
    below, share = distance[near].floor().long(), distance[near].frac()
    hats = torch.stack([1 - share, share])
    columns = torch.stack([below, below + 1])
    right = torch.zeros(lags).double().index_add(0, columns.flatten(), (hats * products[near]).flatten())
    matrix = torch.zeros(lags * lags).double()
    for a in range(2):
        for b in range(2):
            matrix.index_add_(0, columns[a] * lags + columns[b], hats[a] * hats[b] * weights[near])
    # The distance beyond which there are no pairs has a correlation of zero.
    ridge = 1e-9 * float(weights[0])
    found = torch.linalg.solve(matrix.reshape(lags, lags) + ridge * torch.eye(lags).double(), right)
    return (found / found[0]).float()


def _between(ratios: Tensor, table: Tensor, ratio: float) -> Tensor:
    """A table by noise level at any level, linear in its logarithm and constant beyond its ends."""
    logs = torch.log(ratios.double())
    place = min(max(math.log(max(ratio, 1e-12)), float(logs[0])), float(logs[-1]))
    upper = int(torch.searchsorted(logs, torch.tensor(place, dtype=logs.dtype)).clamp(1, len(logs) - 1))
    share = (place - float(logs[upper - 1])) / float(logs[upper] - logs[upper - 1])
    return (1 - share) * table[upper - 1] + share * table[upper]
