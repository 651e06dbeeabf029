"""The norm of a linear operator: the largest factor by which it can stretch an image.

    ||A|| = largest singular value = sqrt(largest eigenvalue of A* A)

Gradient steps need it (a step below 2 / ||A||^2 is stable), and a user who prefers an operator of norm 1 divides by it.
Operators themselves are never normalised behind the user's back.
"""

from __future__ import annotations

import torch

from dynamics.random import Rng, normal
from observations.base import LinearOperator


def operator_norm(
    operator: LinearOperator,
    iterations: int = 50,
    rng: Rng | None = None,
    *,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
) -> float:
    """The norm ||A||_2 by power iteration on A* A, in units of an observed value per unit of the image.

    The result never exceeds the norm. Its expected relative error after k iterations is below ln(d) / (2 (k - 1)) for
    images of d values whatever the singular values, and falls like (s_2 / s_1)^(4 k) where the two largest differ.

    Args:
        operator: any linear operator.
        iterations: products with A and with A*; the default gives three digits or more for tomography.
        rng: draws the first image (default: a generator with seed 0, so that the result is always the same).
        dtype: float32 or float64.
        device: where to compute.

    Returns:
        The norm; 0 for the zero operator.

    Raises:
        ValueError: fewer than one iteration, or a product that is not finite.

    References:
        Kuczynski, Wozniakowski (1992), Estimating the largest eigenvalue by the power and Lanczos algorithms with a
        random start, https://doi.org/10.1137/0613066
    """
    if iterations < 1:
        raise ValueError(f"iterations={iterations}; power iteration needs at least 1")
    start = torch.Generator(device).manual_seed(0) if rng is None else rng
    image = normal(start, operator.event_shape, dtype=dtype, device=device)
    estimate = 0.0
    with torch.no_grad():
        for _ in range(iterations):
            length = image.norm()
            if not bool(torch.isfinite(length)):
                raise ValueError(f"{operator!r} gave values that are not finite; its norm cannot be found")
            if length == 0.0:
                return 0.0
            image = image / length
            observed = operator(image)
            # |A v| for a unit v: the square root of the Rayleigh quotient of A* A.
            estimate = float(observed.norm())
            image = operator.adjoint(observed)
    return estimate
