r"""The pseudo-inverse of a linear operator: `A^+ y`, the least-squares solution of least norm.

Through the singular values where the operator knows them, `V diag(1 / s) U^T y`; by conjugate gradients on
`A^T A x = A^T y` from zero otherwise, which stays in the row space of A.
"""

from __future__ import annotations

import torch
from torch import Tensor

from assimilate.posterior.solvers import conjugate_gradient
from observations.base import LinearOperator


def pseudo_inverse(
    operator: LinearOperator, y: Tensor, *, iterations: int = 100, tolerance: float = 1e-6, cutoff: float = 0.0
) -> Tensor:
    """`A^+ y`.

    Args:
        operator: A.
        y: `(*b, *obs)`; NaN counts as 0, which is right only where the operator itself leaves such values out.
        iterations: most iterations where there is no SVD. Few of them regularise.
        tolerance: relative residual at which a row stands still.
        cutoff: singular values below this share of the largest are left out, where there is an SVD: the noise of y is
            enlarged by their inverse, without limit for a blur.

    Returns:
        `(*b, *event)`.
    """
    y = torch.nan_to_num(y, nan=0.0) if bool(torch.isnan(y).any()) else y
    svd = operator.svd()
    if svd is not None:
        singular = svd.singular.to(y)
        limit = cutoff * float(singular.amax()) if len(singular) else 0.0
        inverse = torch.where(singular > limit, 1 / singular, 0.0)
        return svd.expand(svd.project_observed(y) * inverse)
    event = operator.event_shape
    right = operator.adjoint(y)
    lead = right.shape[: right.ndim - len(event)]

    def normal_equations(v: Tensor) -> Tensor:
        return operator.adjoint(operator(v.reshape(*lead, *event))).reshape(v.shape)

    flat = conjugate_gradient(normal_equations, right.reshape(*lead, -1), iterations=iterations, tolerance=tolerance)
    return flat.reshape(right.shape)
