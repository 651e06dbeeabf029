"""Is this object an observation operator? Run `check_operator` on your own class before anything else."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from dynamics.check import agree, require, require_tensor
from dynamics.errors import ContractError
from dynamics.space import Space
from observations.base import LinearOperator, ObservationOperator
from observations.likelihood import Likelihood
from observations.noise import GaussianNoise


def check_operator(
    operator: Any, space: Space | tuple[int, ...] | None = None, *, seed: int = 0, device: torch.device | str = "cpu"
) -> None:
    """Check that an object keeps the contract of `ObservationOperator` (and of `LinearOperator`, if it is one).

    Checked: shapes with any leading dims, dtype and device, finite values, that rows do not depend on each other, that
    it has a finite gradient, the shape of the positions; for a linear operator that it is linear, that <H x, y> =
    <x, H* y>, and that the SVD rebuilds it; and that a likelihood on it ignores values that are NaN.

    Args:
        operator: the object.
        space: the Space (or event shape) it is meant for (default: its own).
        seed: seed of the states it is tried on.
        device: where to check.

    Raises:
        ContractError: the first broken promise.
    """
    require(isinstance(operator, ObservationOperator), f"{operator!r} does not derive from ObservationOperator")
    event = operator.event_shape
    if space is not None:
        expected = space.event_shape if isinstance(space, Space) else tuple(space)
        require(event == expected, f"{operator!r} observes events {event}; expected {expected}")
    obs = operator.obs_shape
    generator = torch.Generator().manual_seed(seed)
    for dtype in (torch.float32, torch.float64):
        x = torch.randn(2, 3, *event, generator=generator, dtype=torch.float64).to(device, dtype)
        _check_rows(operator, x, obs)
    _check_gradient(operator, x)
    positions = operator.positions
    if positions is not None:
        count = math.prod(obs)
        require(
            positions.ndim == 2 and positions.shape[0] == count,
            f"positions has shape {tuple(positions.shape)}; expected ({count}, n_dims), a row for each value",
        )
    if isinstance(operator, LinearOperator):
        _check_linear(operator, x, obs, generator)
    _check_missing(operator, x, generator)


def _check_rows(operator: ObservationOperator, x: Tensor, obs: tuple[int, ...]) -> None:
    before = x.clone()
    y = operator(x)
    require_tensor(y, "H(x)", (2, 3, *obs), x)
    require(torch.equal(x, before), "H changed its input in place; work on a copy")
    event = operator.event_shape
    for lead in ((), (1,), (1, 2, 1)):
        count = math.prod(lead)
        rows = x.flatten(0, 1)[:count].reshape(*lead, *event)
        result = operator(rows)
        require_tensor(result, f"H(x) with leading dims {lead}", (*lead, *obs), x)
        expected = y.flatten(0, 1)[:count].reshape(*lead, *obs)
        agree(result, expected, f"H: leading dims {lead} or other rows changed the result")


def _check_gradient(operator: ObservationOperator, x: Tensor) -> None:
    variable = x.clone().requires_grad_()
    value = operator(variable).sum()
    require(value.requires_grad, "H(x) has no gradient; write it with torch operations")
    (gradient,) = torch.autograd.grad(value, variable, allow_unused=True)
    require(gradient is not None and bool(torch.isfinite(gradient).all()), "the gradient of H is not finite")


def _check_linear(operator: LinearOperator, x: Tensor, obs: tuple[int, ...], generator: torch.Generator) -> None:
    first, second = x[0], x[1]
    agree(
        operator(2.0 * first - 3.0 * second),
        2.0 * operator(first) - 3.0 * operator(second),
        "H(2 x - 3 z) is not 2 H(x) - 3 H(z): the operator is not linear; derive it from ObservationOperator",
        tolerance=1e-10,
    )
    y = torch.randn(3, *obs, generator=generator, dtype=torch.float64).to(x)
    back = operator.adjoint(y)
    require_tensor(back, "adjoint(y)", tuple(first.shape), x)
    left = (operator(first) * y).reshape(3, -1).sum(-1)
    right = (first * back).reshape(3, -1).sum(-1)
    scale = (operator(first).reshape(3, -1).norm(dim=-1) * y.reshape(3, -1).norm(dim=-1)).clamp_min(1.0)
    agree(left / scale, right / scale, "<H x, y> is not <x, adjoint(y)>", tolerance=1e-10)
    svd = operator.svd()
    if svd is not None:
        singular = svd.singular.to(x)
        rebuilt = svd.expand_observed(singular * svd.project(first))
        agree(rebuilt, operator(first), "the SVD does not rebuild H: U S V^T x is not H(x)", tolerance=1e-6)
        coefficients = torch.randn(3, singular.numel(), generator=generator, dtype=torch.float64).to(x)
        agree(svd.project(svd.expand(coefficients)), coefficients, "V^T V is not the identity", tolerance=1e-6)


def _check_missing(operator: ObservationOperator, x: Tensor, generator: torch.Generator) -> None:
    likelihood = Likelihood(operator, GaussianNoise(std=1.0))
    with torch.no_grad():
        y = likelihood.blank(operator(x[0, 0]))
    kept = torch.rand(y.shape, generator=generator).to(y.device) < 0.5
    partial = torch.where(kept, y + 1.0, torch.nan)
    log_prob = likelihood.log_prob(partial, x)
    require_tensor(log_prob, "Likelihood.log_prob with NaN in y", (2, 3), x)
    variable = x.clone().requires_grad_()
    total = likelihood.log_prob(torch.full_like(y, torch.nan), variable)
    if bool((total != 0).any()):
        raise ContractError("observations that are all NaN have a log_prob other than 0")
    (gradient,) = torch.autograd.grad(total.sum(), variable, allow_unused=True)
    if gradient is not None and bool((gradient != 0).any()):
        raise ContractError("observations that are all NaN have a gradient other than 0")
