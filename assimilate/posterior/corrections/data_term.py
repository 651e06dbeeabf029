r"""The data term `log p(y | x)` as solvers that step along it see it: its slope, and how stiff it is.

    slope      g = grad_x log p(y | x)                      ( = A'^T R^-1 (y - A(x)) for Gaussian noise )
    stiffness  L = largest eigenvalue of A'^T W A'          ( W = R^-1 for Gaussian noise )

A gradient step `x + step / L g` is stable for step < 2 whatever the units of the image, of the measurement and of the
noise, so steps are given in units of 1 / L. Published steps belong to operators of norm 1 and to one noise law; with
Gaussian noise of one standard deviation `L = ||A||^2 / sigma_y^2`.

For other noises W holds the curvature of -log p at a zero residual, or 1 / variance where that is larger (a Laplace
density has no curvature); for noise that depends on the signal, 1 / variance at A(x) or at y, whichever is larger. Both
numbers are per sample.
"""

from __future__ import annotations

import torch
from torch import Tensor

from assimilate.posterior.linearize import linearize
from observations.base import LinearOperator
from observations.likelihood import Likelihood
from observations.noise import GaussianNoise, Noise, SignalNoise, noise_at


def flat_values(likelihood: Likelihood, y: Tensor, like: Tensor) -> Tensor:
    """The observed values flattened, `(*b', m)`, in the dtype and on the device of `like`."""
    lead = y.ndim - len(likelihood.operator.obs_shape)
    return y.to(like).reshape(*y.shape[:lead], -1)


def slope(likelihood: Likelihood, y: Tensor, x: Tensor) -> Tensor:
    """`grad_x log p(y | x)`, `(*b, *event)`, detached.

    Args:
        likelihood: operator and any noise.
        y: observed values, broadcastable against `A(x)`; NaN = not observed.
        x: `(*b, *event)`.
    """
    if isinstance(likelihood.noise, GaussianNoise):
        value, _, adjoint = linearize(likelihood.operator, x)
        flat = flat_values(likelihood, y, x)
        seen = (~torch.isnan(flat)).expand(value.shape)
        return adjoint(likelihood.noise.solve(torch.where(seen, flat - value, 0.0), seen))
    with torch.enable_grad():
        leaf = x.detach().requires_grad_()
        return torch.autograd.grad(likelihood.log_prob(y, leaf).sum(), leaf)[0]


def steady(likelihood: Likelihood) -> bool:
    """Whether the stiffness is the same everywhere: a linear operator, and noise that does not look at the signal."""
    return isinstance(likelihood.operator, LinearOperator) and not isinstance(likelihood.noise, SignalNoise)


def stiffness(
    likelihood: Likelihood, y: Tensor, x: Tensor, scale: Tensor | float = 1.0, iterations: int = 20
) -> Tensor:
    """The largest eigenvalue of `S A'(x)^T W A'(x) S`, `S = diag(scale)`, shaped `(*b, 1, ...)` to multiply states.

    By power iteration, which stays below it, by some 1 / iterations at most. Where nothing depends on the sample (a
    linear operator, Gaussian noise, no gaps) one row is computed for all.

    Args:
        likelihood: operator and noise.
        y: observed values; NaN = not observed.
        x: where the operator is linearised, `(*b, *event)`.
        scale: of the coordinates, broadcastable against `x`; 1 for the state itself.
        iterations: products with `A'` and its transpose.
    """
    operator, noise = likelihood.operator, likelihood.noise
    event = tuple(range(-len(operator.event_shape), 0))
    flat = flat_values(likelihood, y, x)
    seen = ~torch.isnan(flat)
    if isinstance(operator, LinearOperator) and isinstance(noise, GaussianNoise) and bool(seen.all()):
        seen = seen[(0,) * (seen.ndim - 1)]
        x = x[tuple(slice(0, 1) for _ in range(x.ndim - len(event)))]
    value, forward, adjoint = linearize(operator, x)
    seen = seen.expand(value.shape)
    weights = None if isinstance(noise, GaussianNoise) else _curvature(noise, value, torch.where(seen, flat, value))
    # Every row starts from the same vector, whatever stands beside it.
    start = torch.randn(operator.event_shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    v = start.to(x).expand(x.shape)
    found = x.new_zeros(*x.shape[: x.ndim - len(event)], *(1,) * len(event))
    for _ in range(iterations):
        length = torch.linalg.vector_norm(v, dim=event, keepdim=True)
        v = v / torch.where(length > 0, length, 1.0)
        turned = forward(scale * v)
        if weights is None:
            assert isinstance(noise, GaussianNoise)
            turned = noise.solve(turned, seen)
        else:
            turned = torch.where(seen, weights * turned, 0.0)
        image = scale * adjoint(turned)
        found = (v * image).sum(event, keepdim=True)
        v = image
    return found.clamp_min(0)


def _curvature(noise: Noise, value: Tensor, data: Tensor) -> Tensor:
    """W, `(*b, m)`, for independent values with `A(x) = value` and `y = data`."""
    ones = torch.ones_like(value)
    if isinstance(noise, SignalNoise):
        # Where nothing was counted -log p is a straight line, and the tiny variance at y = 0 says nothing of it.
        there = torch.where(data > 0, data, value)
        return torch.maximum(*(noise_at(noise, at).whiten(ones).square() for at in (value, there))).detach()
    with torch.enable_grad():
        residual = torch.zeros_like(value).requires_grad_()
        first = torch.autograd.grad(noise.log_prob(residual).sum(), residual, create_graph=True)[0]
        second = torch.zeros_like(value)
        if first.requires_grad:
            second = -torch.autograd.grad(first.sum(), residual)[0]
    return torch.maximum(second.nan_to_num(0.0), noise.whiten(ones).square()).detach()
