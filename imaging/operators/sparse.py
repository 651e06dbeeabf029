"""A sparse matrix as a differentiable linear map with an exact adjoint.

    y = A x,     A* y = A^T y

Automatic differentiation through a sparse product is slow, and scatters in an order that is not fixed. So A and A^T
are both stored in compressed rows, the derivative of either product is the other one, and the two hold the same
rounded numbers: <A x, y> = <x, A^T y> to round-off in any dtype. Both directions of differentiation work to any order,
and `torch.func.vmap` folds its dimension into the rows of the batch.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor


class SparsePair(NamedTuple):
    """A matrix and its transpose, both in compressed sparse rows, with 32-bit indices where they fit."""

    matrix: Tensor
    transposed: Tensor


class SparseMatrix:
    """A matrix that is built at its first use in a dtype and on a device, and kept there.

    Args:
        build: makes the SciPy sparse matrix `(m, d)` in float64; the same one at each call. It is called again for
            another dtype or device, so that no float64 copy need be kept beside a float32 one.
    """

    def __init__(self, build: Callable[[], Any]) -> None:
        self._build = build
        self._pairs: dict[tuple[torch.device, torch.dtype], SparsePair] = {}

    def product(self, x: Tensor) -> Tensor:
        """A x for each row of a batch, `(n, d)` -> `(n, m)`, differentiable; float32 or float64."""
        result: Tensor = _Product.apply(x, self, False)  # type: ignore[no-untyped-call]
        return result

    def transposed_product(self, y: Tensor) -> Tensor:
        """A^T y for each row of a batch, `(n, m)` -> `(n, d)`, differentiable; float32 or float64."""
        result: Tensor = _Product.apply(y, self, True)  # type: ignore[no-untyped-call]
        return result

    def placed(self, dtype: torch.dtype, device: torch.device) -> SparsePair:
        """The matrix and its transpose in a dtype and on a device; the numbers are rounded once, for both."""
        if (device, dtype) not in self._pairs:
            rows = self._build().tocsr()
            pair = SparsePair(_compressed(rows, dtype, device), _compressed(rows.T.tocsr(), dtype, device))
            self._pairs[device, dtype] = pair
        return self._pairs[device, dtype]


class _Product(torch.autograd.Function):
    """The product, whose derivative is the product with the other matrix."""

    @staticmethod
    def forward(x: Tensor, matrix: SparseMatrix, transpose: bool) -> Tensor:
        # The matrix is looked up here and not outside: here no transform of torch.func wraps what is built and kept.
        pair = matrix.placed(x.dtype, x.device)
        return (pair[int(transpose)] @ x.mT.contiguous()).mT.contiguous()

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, SparseMatrix, bool], output: Tensor) -> None:
        _, ctx.matrix, ctx.transpose = inputs

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        matrix: SparseMatrix = ctx.matrix
        other = matrix.product if ctx.transpose else matrix.transposed_product
        return other(gradients[0]), None, None

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> Tensor:
        matrix: SparseMatrix = ctx.matrix
        return (matrix.transposed_product if ctx.transpose else matrix.product)(tangents[0])

    @staticmethod
    def vmap(info: Any, in_dims: Any, x: Tensor, matrix: SparseMatrix, transpose: bool) -> tuple[Tensor, int]:
        rows = x.movedim(in_dims[0], 0)
        product = matrix.transposed_product if transpose else matrix.product
        return product(rows.flatten(0, 1)).unflatten(0, rows.shape[:2]), 0


def _compressed(rows: Any, dtype: torch.dtype, device: torch.device) -> Tensor:
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
