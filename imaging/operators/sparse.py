"""A sparse matrix as a differentiable linear map with an exact adjoint.

    y = A x,     A* y = A^T y

Automatic differentiation through a sparse product is slow, and scatters in an order that is not fixed. So A and A^T
are both stored in compressed rows, the derivative of either product is the other one, and the two hold the same
rounded numbers: <A x, y> = <x, A^T y> to round-off in any dtype. Both directions of differentiation work to any order,
and `torch.func.vmap` folds its dimension into the rows of the batch.
"""

from __future__ import annotations

import warnings
from typing import Any, NamedTuple

import torch
from torch import Tensor


class SparsePair(NamedTuple):
    """A matrix and its transpose, both in compressed sparse rows, with 32-bit indices where they fit."""

    matrix: Tensor
    transposed: Tensor

    @property
    def flipped(self) -> SparsePair:
        """The pair of the transposed matrix."""
        return SparsePair(self.transposed, self.matrix)


def sparse_pair(matrix: Any, *, dtype: torch.dtype, device: torch.device | str = "cpu") -> SparsePair:
    """A SciPy sparse matrix, placed in torch together with its transpose.

    Args:
        matrix: a SciPy sparse matrix or array of any format, `(m, d)`; equal entries are summed.
        dtype: float32 or float64; the numbers are rounded once, for both.
        device: where they live.
    """
    rows = matrix.tocsr()
    rows.sum_duplicates()
    return SparsePair(_compressed(rows, dtype, device), _compressed(rows.T.tocsr(), dtype, device))


def sparse_product(x: Tensor, pair: SparsePair) -> Tensor:
    """A x for each row of a batch, `(n, d)` -> `(n, m)`, differentiable.

    Args:
        x: rows to multiply, in the dtype and on the device of the pair.
        pair: from `sparse_pair`; `pair.flipped` gives A^T x.
    """
    result: Tensor = _Product.apply(x, pair)  # type: ignore[no-untyped-call]
    return result


class _Product(torch.autograd.Function):
    """The product, whose derivative is the product with the other matrix."""

    @staticmethod
    def forward(x: Tensor, pair: SparsePair) -> Tensor:
        return (pair.matrix @ x.mT.contiguous()).mT.contiguous()

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, SparsePair], output: Tensor) -> None:
        ctx.pair = inputs[1]

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return sparse_product(gradients[0], ctx.pair.flipped), None

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> Tensor:
        return sparse_product(tangents[0], ctx.pair)

    @staticmethod
    def vmap(info: Any, in_dims: tuple[int | None, ...], x: Tensor, pair: SparsePair) -> tuple[Tensor, int]:
        assert in_dims[0] is not None
        rows = x.movedim(in_dims[0], 0)
        return sparse_product(rows.flatten(0, 1), pair).unflatten(0, rows.shape[:2]), 0


def _compressed(rows: Any, dtype: torch.dtype, device: torch.device | str) -> Tensor:
    index = torch.int32 if max(rows.nnz, *rows.shape) < 2**31 else torch.int64
    with warnings.catch_warnings():
        # Torch calls all compressed layouts a beta feature, once a process; the product is what is used, and is tested.
        warnings.filterwarnings("ignore", message=".*Sparse.*beta state.*")
        return torch.sparse_csr_tensor(
            torch.as_tensor(rows.indptr, device=device, dtype=index),
            torch.as_tensor(rows.indices, device=device, dtype=index),
            torch.as_tensor(rows.data, device=device, dtype=dtype),
            size=rows.shape,
            check_invariants=True,
        )
