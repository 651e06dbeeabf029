r"""The pseudo-inverse of a linear operator: `A^+ y`, the least-squares solution of least norm.

Through the singular values where the operator knows them, `V diag(1 / s) U^T y`; by conjugate gradients on
`A^T A x = A^T y` from zero otherwise, which stays in the row space of A.
"""

from __future__ import annotations

import torch
from torch import Tensor

from assimilate.posterior.solvers import conjugate_gradient
from observations.base import LinearOperator


def pseudo_inverse(operator: LinearOperator, y: Tensor, *, iterations: int = 100, tolerance: float = 1e-6) -> Tensor:
    """`A^+ y`.

    Args:
        operator: A.
        y: `(*b, *obs)`; NaN counts as 0, which is right only where the operator itself leaves such values out.
        iterations: most iterations where there is no SVD. Few of them regularise.
        tolerance: relative residual at which a row stands still.

    Returns:
        `(*b, *event)`.
    """
    y = torch.nan_to_num(y, nan=0.0) if bool(torch.isnan(y).any()) else y
    svd = operator.svd()
    if svd is not None:
        return svd.expand(svd.project_observed(y) / svd.singular.to(y))
    event = operator.event_shape
    right = operator.adjoint(y)
    lead = right.shape[: right.ndim - len(event)]

    def normal_equations(v: Tensor) -> Tensor:
        return operator.adjoint(operator(v.reshape(*lead, *event))).reshape(v.shape)

    flat = conjugate_gradient(normal_equations, right.reshape(*lead, -1), iterations=iterations, tolerance=tolerance)
    return flat.reshape(right.shape)
