r"""The Gaussian around a minimum: draws from it, and the evidence that it gives.

Near the minimum v* of J (`minimise.py`) the posterior of the control is N(v*, (I + G^T G)^-1), G = dr/dv at v*:

    draws        (I + G^T G)^-1 (e + G^T d),    e ~ N(0, I_n),  d ~ N(0, I_m)
    evidence     log p(y) = log p(y | v*) - 1/2 |v*|^2 - 1/2 log det(I + G^T G)

Both are exact where r is linear and the noise Gaussian; elsewhere this is Laplace's approximation with the Gauss-Newton
Hessian. Without observations G is 0 and the draws are `e` itself.

References:
    Bardsley, Solonen, Haario, Laine (2014), Randomize-then-optimize, https://doi.org/10.1137/140964023
    Tierney, Kadane (1986), Accurate approximations for posterior moments and marginal densities,
    https://doi.org/10.1080/01621459.1986.10478240
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from assimilate.variational.minimise import Tangent
from dynamics.random import Rng, normal

ACCURACY = 1e-5
"""Relative residual of the solves for draws."""


def posterior_draws(near: Tangent, prior: Tensor, noise: Tensor, *, iterations: int = 200) -> Tensor:
    """Departures from the minimum with covariance (I + G^T G)^-1.

    Args:
        near: the tangent at the minimum.
        prior: e, `(*b, n)`, standard normal.
        noise: d, `(*b, m)`, standard normal; what it says of unobserved values does not count.
        iterations: most conjugate-gradient iterations.
    """
    return near.solve(prior + near.adjoint(noise), iterations=iterations, tolerance=ACCURACY)


def half_log_determinant(near: Tangent, size: int) -> Tensor:
    """1/2 log det(I + G^T G), `(*b,)` float64, by as many products as there are controls (or values, if fewer).

    Args:
        near: the tangent, at controls `(*b, size)`.
        size: n.
    """
    m = near.value.shape[-1]
    by_value = m <= size
    count = min(m, size)
    lead = near.value.shape[:-1]
    rows = []
    for j in range(count):
        basis = near.value.new_zeros(*lead, m if by_value else size)
        basis[..., j] = 1.0
        rows.append(near.adjoint(basis) if by_value else near.forward(basis))
    if not rows:
        return near.value.new_zeros(lead, dtype=torch.float64)
    matrix = torch.stack(rows, -2).double()
    gram = matrix @ matrix.mT + torch.eye(count, dtype=torch.float64, device=matrix.device)
    return torch.log(torch.diagonal(torch.linalg.cholesky(gram), dim1=-2, dim2=-1)).sum(-1)


def centred_normals(rng: Rng, shape: tuple[int, ...], *, dtype: torch.dtype, device: torch.device | str) -> Tensor:
    """Standard normal numbers `(E, N, k)` with mean 0 over the members and covariance I; 0 for a single member.

    Draws around an analysis then have exactly the analysis as their mean.
    """
    n = shape[1]
    if n == 1 or shape[-1] == 0:
        return torch.zeros(shape, dtype=dtype, device=device)
    numbers = normal(rng, shape, dtype=dtype, device=device)
    return (numbers - numbers.mean(1, keepdim=True)) * math.sqrt(n / (n - 1))
