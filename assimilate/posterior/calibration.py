r"""A covariance of the clean state, calibrated by the observations that it is about to take in.

Where `(x_t, y)` is a joint draw, the innovation has a known law,

    y - A m ~ N(0, alpha A V_f A^T + R),

with the spread scaled by `alpha` and the correlation stretched by `f`: `rho_f(d) = rho(f d)`. Both are chosen on a grid
by maximum likelihood, for each experiment by itself, from a sample of the observed values. A prior trained on one
family of fields then keeps an honest spread on a field that is rougher or smoother than those: adaptive inflation, at
every noise level.

References:
    Dee (1995), On-line estimation of error covariance parameters for atmospheric data assimilation,
    https://doi.org/10.1175/1520-0493(1995)123<1128:OLEOEC>2.0.CO;2
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from assimilate.posterior.covariance import Modulated, at_lag
from assimilate.posterior.linearize import observe_flat
from dynamics.settings import POSITIVE, check_settings, several, whole
from observations.likelihood import Likelihood
from observations.sampling import Mask


@dataclass(frozen=True)
class Calibration:
    """How a modulated covariance is fitted to innovations.

    Args:
        scales: candidates of alpha, dimensionless.
        stretches: candidates of f, dimensionless; above 1 the correlation is shorter.
        values: at most this many observed values are used, evenly spaced among them (the cost is their cube).
    """

    scales: tuple[float, ...] = (0.5, 0.7, 0.85, 1.0, 1.2, 1.45, 1.75, 2.1, 2.5, 3.0, 4.0)
    stretches: tuple[float, ...] = (0.55, 0.7, 0.85, 1.0, 1.2, 1.45, 1.8)
    values: int = 256

    def __post_init__(self) -> None:
        """Check the settings."""
        check_settings(self, scales=several(POSITIVE), stretches=several(POSITIVE), values=whole(2))

    def __call__(self, mean: Tensor, covariance: Modulated, likelihood: Likelihood, y: Tensor) -> Modulated:
        """The fitted covariance.

        Args:
            mean: clean means `(experiment, member, 1, rows, columns)`.
            covariance: to be fitted.
            likelihood: its operator picks values (`Mask`).
            y: `(*obs)` or `(experiment, 1, *obs)`; values that some experiment lacks are not used.

        Raises:
            ValueError: the operator is not a `Mask`.
        """
        operator = likelihood.operator
        if not isinstance(operator, Mask):
            raise ValueError(f"calibration needs an operator that picks values (Mask), not {operator!r}")
        residual = y - observe_flat(operator, mean)
        use = (~torch.isnan(residual)).flatten(0, -2).all(0).nonzero().flatten()
        if len(use) < 2:
            return covariance
        use = use[torch.linspace(0, len(use) - 1, min(self.values, len(use)), device=use.device).round().long()]
        index = operator.index.to(mean.device)[use]
        rows, columns = index // mean.shape[-1], index % mean.shape[-1]
        distance = torch.sqrt(
            ((rows[:, None] - rows[None]) ** 2 + (columns[:, None] - columns[None]) ** 2).to(mean.dtype)
        )
        scale = covariance.std.flatten(-3)[..., index].square().mean(1).sqrt()
        noise = likelihood.noise.variance(len(operator.index), dtype=mean.dtype, device=mean.device)[use]
        right = residual[..., use].mT
        tables = torch.stack([at_lag(covariance.correlation, f * distance) for f in self.stretches])
        tables = tables.reshape(len(self.stretches), -1, len(use), len(use))
        best = torch.full((len(mean),), -torch.inf, dtype=mean.dtype, device=mean.device)
        alpha, stretch = torch.ones_like(best), torch.ones_like(best)
        for candidate in self.scales:
            matrix = candidate * scale[:, :, None] * tables * scale[:, None, :]
            # A stretched table is positive definite only nearly; the jitter is far below the noise of any gauge.
            matrix = matrix + torch.diag(noise + 1e-4 * float(scale.square().mean()))
            factor, failed = torch.linalg.cholesky_ex(matrix)
            white = torch.linalg.solve_triangular(factor, right.expand(len(self.stretches), *right.shape), upper=False)
            fit = -0.5 * white.square().sum(-2).mean(-1) - factor.diagonal(dim1=-2, dim2=-1).log().sum(-1)
            fit = torch.where((failed > 0) | torch.isnan(fit), -torch.inf, fit)
            top, which = fit.max(0)
            better = top > best
            best = torch.where(better, top, best)
            alpha = torch.where(better, candidate, alpha)
            stretch = torch.where(better, torch.tensor(self.stretches).to(best)[which], stretch)
        lags = torch.arange(covariance.correlation.shape[-1], device=mean.device).to(mean)
        stretched = torch.stack([at_lag(covariance.correlation, f * lags) for f in stretch])
        wide = alpha.reshape(-1, *(1,) * (covariance.std.ndim - 1)).sqrt()
        return Modulated(wide * covariance.std, stretched.unsqueeze(1))
