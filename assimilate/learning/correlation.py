r"""How the errors of a denoiser go together in space: measured on held-out fields of a periodic grid, by noise level.

    e = (r - D(r + rho z)) / s_rho,      P_rho(k) = mean |F e|^2(k), scaled to unit variance

r is the field that the denoiser was trained on and s_rho the root of its own variance. The variance of a value alone
says nothing of its neighbours: a sampler that draws what is left open value by value loses the wide patterns, and takes
a hundred levels where a handful are enough with P.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from assimilate.learning.denoiser import EDMDenoiser
from assimilate.learning.fit import Draw
from assimilate.posterior.covariance import Isotropic
from assimilate.posterior.periodic import Periodic, correlation_power
from dynamics.random import normal

LEVELS = 13
"""Noise levels of the table, equally spaced in their logarithm."""


@dataclass(frozen=True, eq=False)
class ResidualCorrelation:
    """The table.

    Args:
        ratios: noise levels, increasing, `(levels,)`, in units of the residual.
        power: P at each of them, `(levels, channel, rows, columns // 2 + 1)`. Its mean is the factor by which the
            variance was calibrated, 1 if it was not.
    """

    ratios: Tensor
    power: Tensor

    def at(self, ratio: float) -> Tensor:
        """P at a level, linear in its logarithm, `(channel, rows, columns // 2 + 1)`."""
        logs = torch.log(self.ratios.double())
        place = min(max(math.log(max(ratio, 1e-12)), float(logs[0])), float(logs[-1]))
        upper = int(torch.searchsorted(logs, torch.tensor(place, dtype=logs.dtype)).clamp(1, len(logs) - 1))
        share = (place - float(logs[upper - 1])) / float(logs[upper] - logs[upper - 1])
        return (1 - share) * self.power[upper - 1] + share * self.power[upper]

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

    def to(self, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> ResidualCorrelation:
        """A copy on another device or in another precision."""
        return ResidualCorrelation(self.ratios.to(device=device), self.power.to(device=device, dtype=dtype))


@torch.no_grad()
def measured_correlation(
    denoiser: EDMDenoiser, draw: Draw, ratios: tuple[float, float], *, fields: int = 256, seed: int = 11
) -> ResidualCorrelation:
    """Measure the table.

    Args:
        denoiser: with a variance output.
        draw: held-out fields and what the denoiser is told.
        ratios: largest and smallest level.
        fields: how many.
        seed: of fields and noise.

    Raises:
        ValueError: the denoiser gives no variance.
    """
    rng = torch.Generator().manual_seed(seed)
    levels = torch.logspace(math.log10(ratios[1]), math.log10(ratios[0]), LEVELS)
    batches = [draw(min(64, fields - k), rng) for k in range(0, fields, 64)]
    table = []
    for ratio in levels:
        errors = []
        for batch in batches:
            noisy = batch.clean + ratio.to(batch.clean) * normal(rng, tuple(batch.clean.shape)).to(batch.clean)
            clean = denoiser(noisy, ratio.to(batch.clean), batch.condition)
            if not isinstance(clean.covariance, Isotropic):
                raise ValueError("a correlation of residuals needs a denoiser with a variance output (variance=True)")
            errors.append((batch.clean - clean.mean) / clean.covariance.variance.sqrt())
        table.append(correlation_power(torch.cat(errors)))
    return ResidualCorrelation(levels, torch.stack(table).cpu())
