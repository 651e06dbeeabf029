r"""Symmetric inverse square roots of many small matrices, by matrix products alone.

With `M = I + G / c`, G positive semidefinite, the transform of an ETKF is `T = M^-1/2` and the weights of its mean are
`M^-1 b / c = T T b / c`. The eigenvalues of M lie in [1, 1 + |G| / c], so the coupled Newton-Schulz iteration

    Y <- Y (p I + q X),  Z <- (p I + q X) Z,    X = Z Y;    Y -> (M / s)^1/2,  Z -> (M / s)^-1/2,   s >= |M|

can be planned before it starts: if the eigenvalues of X are in [l^2, 1], the cubic `x (3 a - a^3 x^2) / 2` with
`a^2 = 3 / (1 + l + l^2)` brings them into [a l (3 - a^2 l^2) / 2, 1] squared, the best that a cubic can do. A condition
number of 100 takes five steps, three products each. Matrices that are done are multiplied by I, so that they do not
depend on the others.

In float32 on a CPU this takes less than half the time of an eigendecomposition, which is as fast in float64. So float32
matrices are iterated; those of float64, ill-conditioned ones and any that did not converge are decomposed in float64.
Relative errors, N = 8 to 64 (`tests/filters/test_symmetric_root.py`): T 2e-6 at condition numbers to 100 and 1e-5 to
1,000, of which the rounding of G to float32 makes a fifth to a third; weights of the mean twice that.

References:
    Higham (2008), Functions of matrices: theory and computation, https://doi.org/10.1137/1.9780898717778 (chapter 6:
    the coupled iteration)
    Chen, Chow (2014), A stable scaling of Newton-Schulz for improving the sign function computation of a Hermitian
    matrix, https://www.mcs.anl.gov/papers/P5059-0114.pdf (the scaling)
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from assimilate.filters.transforms import transform_weights

CONDITION_LIMIT = 1000.0
"""Above this bound of the condition number float32 is not enough, and the eigendecomposition is used."""
TOLERANCE = 1e-6
"""Relative error at which the iteration ends, before rounding."""
PIECE_NUMBERS = 262_144
"""Numbers of a piece of the batch: 1 MB in float32, so that the few matrices of an iteration stay in the cache."""


class Step(NamedTuple):
    """Coefficients of one step, `(b,)` each: the polynomial `p I + q X`, and the interval [l^2, 1] of X before it."""

    p: Tensor
    q: Tensor
    lower: Tensor


def transforms(gram: Tensor, projection: Tensor) -> tuple[Tensor, Tensor]:
    """Weights of the mean and the symmetric root, as `transform_weights`, for many matrices.

    Args:
        gram: `S S^T`, `(*b, N, N)`.
        projection: `S d`, `(*b, N)`.

    Returns:
        `(S S^T + c I)^-1 S d` `(*b, N)` and `T = sqrt(c) (S S^T + c I)^-1/2` `(*b, N, N)`, c = N - 1, in the dtype of
        `gram`: float64 by eigendecomposition, float32 by Newton-Schulz iteration.
    """
    n = gram.shape[-1]
    if gram.dtype != torch.float32:
        return transform_weights(gram, projection)
    matrices, vectors = gram.reshape(-1, n, n), projection.reshape(-1, n)
    pieces = max(1, -(-matrices.numel() // PIECE_NUMBERS))
    parts = [_transforms(a, b) for a, b in zip(matrices.chunk(pieces), vectors.chunk(pieces), strict=True)]
    weights, root = (torch.cat(part) if len(parts) > 1 else part[0] for part in zip(*parts, strict=True))
    return weights.reshape(projection.shape), root.reshape(gram.shape)


def _transforms(gram: Tensor, projection: Tensor) -> tuple[Tensor, Tensor]:
    c = gram.shape[-1] - 1
    root, converged = inverse_root(gram / c)
    first = _squared(root, projection) / c
    # One step of refinement: the square of the root loses more digits than the matrix itself.
    left = projection - (gram @ first.unsqueeze(-1)).squeeze(-1) - c * first
    weights = first + _squared(root, left) / c
    if not bool(converged.all()):
        rest = (~converged).nonzero().squeeze(-1)
        exact = transform_weights(gram[rest].double(), projection[rest].double())
        weights = weights.index_copy(0, rest, exact[0].to(weights.dtype))
        root = root.index_copy(0, rest, exact[1].to(root.dtype))
    return weights, root


def inverse_root(excess: Tensor) -> tuple[Tensor, Tensor]:
    """`(I + H)^-1/2` of positive semidefinite H by the scaled Newton-Schulz iteration.

    Args:
        excess: H, `(b, N, N)`, symmetric.

    Returns:
        The roots `(b, N, N)`, and which are to be trusted, `(b,)` bool: False where the condition number may be above
        `CONDITION_LIMIT` or the iteration did not do what was planned (NaN among them).
    """
    square = excess @ excess
    # The fourth root of the trace of H^4 is at most N^1/4 above the largest eigenvalue, and H^2 is needed anyway.
    bound = 1 + square.detach().square().sum((-2, -1)).double().sqrt().sqrt()
    sound = bound <= CONDITION_LIMIT
    scale = 1 / torch.where(sound, bound, 1.0)
    steps = plan(scale.sqrt())
    if not steps:
        return _plus_identity(torch.zeros_like(excess), torch.ones_like(scale)), sound
    eye = torch.eye(excess.shape[-1], dtype=excess.dtype, device=excess.device)
    p, q, _ = steps[0]
    # Written in H rather than in I + H, which spares a product. Y = X (p I + q X), Z = p I + q X for X = s (I + H).
    t = _plus_identity(_column(scale * q, excess) * excess, p + scale * q)
    y = _column(scale * scale * q, excess) * square + _column(scale * (p + 2 * scale * q), excess) * excess
    y = _plus_identity(y, scale * (p + scale * q))
    z = t
    for k, (p, q, lower) in enumerate(steps[1:], 2):
        x = z @ y
        t = _plus_identity(_column(q, x) * x, p)
        if k < len(steps):
            y = y @ t
        else:
            # Eigenvalues of X in [l^2, 1] leave no entry further from those of I than this, but for rounding.
            error = (x.detach() - eye).abs().amax((-2, -1))
            sound = sound & (error <= 1 - lower * lower + 1e-3)
        z = t @ z
    return z * _column(scale.sqrt(), z), sound


def plan(lower: Tensor) -> list[Step]:
    """The steps that bring eigenvalues in [l^2, 1] to 1 within `TOLERANCE`, for each l of `lower` `(b,)` float64."""
    steps: list[Step] = []
    while True:
        live = 1 - lower > TOLERANCE
        if not bool(live.any()):
            return steps
        square = 3 / (1 + lower + lower * lower)
        factor = square.sqrt()
        p = torch.where(live, 1.5 * factor, 1.0)
        q = torch.where(live, -0.5 * factor * square, 0.0)
        steps.append(Step(p, q, lower))
        lower = torch.where(live, lower * (p + q * lower * lower), lower)


def _column(values: Tensor, like: Tensor) -> Tensor:
    return values.to(like.dtype)[:, None, None]


def _plus_identity(matrices: Tensor, values: Tensor) -> Tensor:
    """Add multiples of I in place, for matrices made here."""
    matrices.diagonal(dim1=-2, dim2=-1).add_(values.to(matrices.dtype).unsqueeze(-1))
    return matrices


def _squared(root: Tensor, vectors: Tensor) -> Tensor:
    return (root @ (root @ vectors.unsqueeze(-1))).squeeze(-1)
