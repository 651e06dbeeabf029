"""Iterative linear solves for a batch of independent systems, each row with its own step lengths.

Every inner product is taken per sample: a product over the whole batch would let one sample's residual set another's
step. Vectors are `(*b, n)`; the operator maps `(*b, n) -> (*b, n)` row by row.

References:
    Saad (2003), Iterative methods for sparse linear systems, 2nd edition, https://doi.org/10.1137/1.9780898718003
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

Matvec = Callable[[Tensor], Tensor]


def conjugate_gradient(
    matvec: Matvec,
    right: Tensor,
    *,
    iterations: int,
    tolerance: float = 1e-6,
    precondition: Matvec | None = None,
) -> Tensor:
    """Solve `A x = right` for symmetric positive definite `A`, from zero.

    Args:
        matvec: the product with A.
        right: `(*b, n)`.
        iterations: most iterations.
        tolerance: a row stands still once its residual norm is below `tolerance` times that of `right`.
        precondition: the product with an approximate inverse, symmetric positive definite.
    """
    x = torch.zeros_like(right)
    residual = right.clone()
    direction = residual if precondition is None else precondition(residual)
    product_rz = (residual * direction).sum(-1, keepdim=True)
    goal = residual.square().sum(-1, keepdim=True) * tolerance**2
    for _ in range(iterations):
        active = residual.square().sum(-1, keepdim=True) > goal
        if not bool(active.any()):
            break
        moved = matvec(direction)
        curvature = (direction * moved).sum(-1, keepdim=True)
        step = torch.where(active & (curvature > 0), product_rz / curvature, 0.0)
        x = x + step * direction
        residual = residual - step * moved
        better = residual if precondition is None else precondition(residual)
        updated = (residual * better).sum(-1, keepdim=True)
        ratio = torch.where(product_rz > 0, updated / torch.where(product_rz > 0, product_rz, 1.0), 0.0)
        direction = torch.where(active, better + ratio * direction, direction)
        product_rz = torch.where(active, updated, product_rz)
    return x


def gmres(matvec: Matvec, right: Tensor, *, iterations: int) -> Tensor:
    """Solve `A x = right` for any `A` by one GMRES cycle, from zero.

    The Jacobian of a learned denoiser is not symmetric, and conjugate gradients then diverge; GMRES lowers the
    residual of each row in every iteration.

    Args:
        matvec: the product with A.
        right: `(*b, n)`.
        iterations: size of the Krylov space.
    """
    size = min(iterations, right.shape[-1])
    norm = torch.linalg.vector_norm(right, dim=-1, keepdim=True)
    tiny = torch.finfo(right.dtype).tiny
    basis = [right / norm.clamp_min(tiny)]
    upper = right.new_zeros(*right.shape[:-1], size + 1, size)
    for column in range(size):
        vector = matvec(basis[column])
        scale = torch.linalg.vector_norm(vector, dim=-1, keepdim=True)
        # Twice is enough: a second pass restores the orthogonality that cancellation costs in float32.
        for _ in range(2):
            for row, known in enumerate(basis):
                part = (known * vector).sum(-1, keepdim=True)
                upper[..., row, column] += part[..., 0]
                vector = vector - part * known
        length = torch.linalg.vector_norm(vector, dim=-1, keepdim=True)
        # The Krylov space is exhausted when nothing but rounding is left; a zero vector then ends the row quietly.
        alive = length > 10 * torch.finfo(right.dtype).eps * scale
        upper[..., column + 1, column] = torch.where(alive, length, 0.0)[..., 0]
        basis.append(torch.where(alive, vector / length.clamp_min(tiny), 0.0))
    first = right.new_zeros(*right.shape[:-1], size + 1)
    first[..., 0] = norm[..., 0]
    coefficients = _least_squares(upper, first)
    return sum((coefficients[..., i, None] * basis[i] for i in range(size)), torch.zeros_like(right))


def _least_squares(matrix: Tensor, right: Tensor) -> Tensor:
    """Minimum-norm least squares by the pseudo-inverse: exhausted rows have columns of zeros."""
    return (torch.linalg.pinv(matrix.double(), rtol=1e-12) @ right.double()[..., None]).squeeze(-1).to(right.dtype)
