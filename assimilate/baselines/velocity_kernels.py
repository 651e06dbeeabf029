r"""Covariance of a plane velocity (u, v) that is nearly free of divergence, and its fit to point values.

    (u, v) = mu + (d psi / dy, -d psi / dx) + grad chi + white,      psi, chi isotropic Gaussian fields

    cov(u_i(r'), u_j(r' + r)) = s2 [ T delta_ij + (L - T) r_i r_j / |r|^2 ] + n2 delta_ij [r = 0]
    L = (1 - a) f + a g,     T = (1 - a) g + a f,     f = rho(|r| / length),     g = f + |r| df/d|r|

f is the correlation along r of the part without divergence, g the one across; in the part without rotation they change
places. `a` is that part's share of the variance: 0 for an incompressible flow, and at 1/2 the components are
independent. n2 is what no neighbour tells of: small scales, and the error of the instrument whose values are the truth.
With f of Matern's family psi has the smoothness nu + 1, so every kernel of `kernels.py` is one of a velocity.

All numbers are found by maximum likelihood: (s2, length, a, n2) by L-BFGS, mu in closed form. The errors of the values
are taken as known, and several times as independent.

References:
    Azijli, Dwight (2015), Solenoidal filtering of volumetric velocity measurements using Gaussian process regression,
    https://doi.org/10.1007/s00348-015-2067-7
    Berlinghieri et al. (2023), Gaussian processes at the Helm(holtz): a more fluid model for ocean currents,
    https://arxiv.org/abs/2302.10364 (a part without divergence and one without rotation)
    Differs: both parts have one length; their shares are fitted.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from assimilate.baselines.base import Pattern
from assimilate.baselines.kernels import Kernel, correlation


class Components(NamedTuple):
    """Values of components of the velocity.

    Attributes:
        places: `(m, 2)` float64, columns (y, x).
        channels: `(m,)`, 0 for u along x, 1 for v along y.
    """

    places: Tensor
    channels: Tensor


class VelocityLaw(NamedTuple):
    """The numbers of a velocity's covariance: (mu_u, mu_v), s2, length, a and n2; Space units, its square..."""

    mean: tuple[float, float]
    variance: float
    length: float
    divergent: float
    nugget: float


def longitudinal_and_transverse(distance: Tensor, length: Tensor | float, kernel: Kernel) -> tuple[Tensor, Tensor]:
    """Correlations f and g = f + |r| df/d|r| of a flow without divergence, 1 at distance 0; shape of `distance`."""
    f = correlation(distance, length, kernel)
    z = distance / length
    if kernel == "exponential":
        return f, f * (1 - z)
    if kernel == "matern32":
        return f, f - 3 * z.square() * torch.exp(-math.sqrt(3) * z)
    if kernel == "matern52":
        return f, f - 5 / 3 * z.square() * (1 + math.sqrt(5) * z) * torch.exp(-math.sqrt(5) * z)
    return f, f * (1 - z.square())


def covariance(a: Components, b: Components, law: VelocityLaw, kernel: Kernel) -> Tensor:
    """Covariances of components `(m, k)`, float64; the numbers of `law` may be tensors that need a gradient."""
    # Columns (x, y): the direction of component 0, u, is x.
    apart = (a.places[:, None] - b.places[None]).flip(-1)
    distance = torch.linalg.vector_norm(apart, dim=-1)
    unit = apart / torch.where(distance > 0, distance, 1.0).unsqueeze(-1)
    f, g = longitudinal_and_transverse(distance, law.length, kernel)
    along, across = (1 - law.divergent) * f + law.divergent * g, (1 - law.divergent) * g + law.divergent * f
    rows, columns = a.channels[:, None], b.channels[None]
    same = rows == columns
    first = torch.where(rows == 0, unit[..., 0], unit[..., 1])
    second = torch.where(columns == 0, unit[..., 0], unit[..., 1])
    smooth = law.variance * (torch.where(same, across, 0.0) + (along - across) * first * second)
    return smooth + law.nugget * (same & (distance == 0))


def fit_velocity(groups: Sequence[Sequence[Pattern]], kernel: Kernel) -> VelocityLaw:
    """The law of maximum likelihood.

    Args:
        groups: patterns; those of one group observe the same components at the same places.
        kernel: form of f.

    Raises:
        ValueError: no group, or values that do not vary.
    """
    from scipy.optimize import minimize

    if not groups:
        raise ValueError("a covariance needs at least 3 observed values to be fitted to")
    pooled = torch.cat([part.values.flatten() for parts in groups for part in parts]).double()
    scale = float(pooled.var())
    if not scale > 0:
        raise ValueError("a covariance cannot be fitted: all values are equal")
    tables = [_Table.of(parts) for parts in groups]

    def loss(parameters: np.ndarray) -> tuple[float, np.ndarray]:
        theta = torch.tensor(parameters, dtype=torch.float64, requires_grad=True)
        value = _profile(tables, _law(theta), kernel)[0] / pooled.numel()
        value.backward()
        assert theta.grad is not None
        return float(value.detach()), theta.grad.numpy()

    extent = max(float(torch.pdist(table.seen.places).max()) for table in tables)
    start = [math.log(scale), math.log(extent / 5), -3.0, math.log(scale / 100)]
    bounds = [
        (start[0] - 7, start[0] + 5),
        (math.log(extent / 1000), math.log(20 * extent)),
        (-9.0, 9.0),
        (start[0] - 16, start[0] + 1),
    ]
    found = minimize(loss, start, jac=True, method="L-BFGS-B", bounds=bounds, options={"ftol": 1e-8})
    with torch.no_grad():
        law = _law(torch.from_numpy(found.x))
        u, v = _profile(tables, law, kernel)[1].tolist()
    return VelocityLaw((u, v), *(float(number) for number in law[1:]))


class _Table(NamedTuple):
    """Values `(m, t)` of the same components at t times, and their error variances `(m,)`."""

    seen: Components
    values: Tensor
    variance: Tensor

    @classmethod
    def of(cls, parts: Sequence[Pattern]) -> _Table:
        first = parts[0]
        assert first.variance is not None
        values = torch.cat([part.values for part in parts]).cpu().double().mT
        return cls(Components(first.positions.cpu(), first.channels.cpu()), values, first.variance.cpu())


def _law(theta: Tensor) -> VelocityLaw:
    """From log s2, log length, the logit of a, and log n2."""
    variance, length, nugget = torch.exp(theta[0]), torch.exp(theta[1]), torch.exp(theta[3])
    return VelocityLaw((0.0, 0.0), variance, length, torch.sigmoid(theta[2]), nugget)  # type: ignore[arg-type]


def _profile(tables: Sequence[_Table], law: VelocityLaw, kernel: Kernel) -> tuple[Tensor, Tensor]:
    """Minus the log likelihood (less constants) at the best mean, and that mean `(2,)`."""
    squares, log_det = (torch.zeros((), dtype=torch.float64) for _ in range(2))
    precision, weighted = torch.zeros(2, 2, dtype=torch.float64), torch.zeros(2, dtype=torch.float64)
    for seen, values, variance in tables:
        times = values.shape[1]
        root = torch.linalg.cholesky(covariance(seen, seen, law, kernel) + torch.diag(variance))
        design = torch.nn.functional.one_hot(seen.channels, 2).double()
        white = torch.linalg.solve_triangular(root, values, upper=False)
        ones = torch.linalg.solve_triangular(root, design, upper=False)
        precision = precision + times * ones.mT @ ones
        weighted = weighted + (ones.mT @ white).sum(1)
        squares = squares + white.square().sum()
        log_det = log_det + 2 * times * torch.log(torch.diagonal(root)).sum()
    # A component that is never observed has the mean 0.
    mean = torch.linalg.pinv(precision, hermitian=True) @ weighted
    return 0.5 * (log_det + squares - weighted @ mean), mean
