"""Is this object a `Dynamics`? Run `check_dynamics` on your own class before anything else.

Each check says what was given and what was expected; nothing is tried on the physics.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from dynamics.base import Dynamics, TransitionDensity
from dynamics.covariance import Covariance
from dynamics.errors import CapabilityError, ContractError
from dynamics.random import Streams
from dynamics.space import Space


def require(condition: bool, message: str) -> None:
    """Raise a `ContractError` unless the condition holds."""
    if not condition:
        raise ContractError(message)


def require_tensor(value: Any, what: str, shape: tuple[int, ...], like: Tensor) -> None:
    """Raise unless `value` is a finite tensor of a shape, with the dtype and device of `like`."""
    require(isinstance(value, Tensor), f"{what} is a {type(value).__name__}; expected a tensor")
    require(tuple(value.shape) == shape, f"{what} has shape {tuple(value.shape)}; expected {shape}")
    require(value.dtype == like.dtype, f"{what} has dtype {value.dtype}; expected that of its input, {like.dtype}")
    require(value.device == like.device, f"{what} is on {value.device}; expected {like.device}")
    require(bool(torch.isfinite(value).all()), f"{what} is not finite everywhere")


def agree(a: Tensor, b: Tensor, what: str, *, tolerance: float | None = None) -> None:
    """Raise unless two tensors are equal up to round-off (`tolerance` relative to the largest value)."""
    limit = (200 * torch.finfo(a.dtype).eps if tolerance is None else tolerance) * (1.0 + float(b.abs().max()))
    gap = float((a - b).abs().max())
    require(gap <= limit, f"{what}: they differ by {gap:.3g}; expected at most {limit:.3g}")


def check_dynamics(dynamics: Any, *, seed: int = 0, device: torch.device | str = "cpu") -> None:
    """Check that an object keeps the contract of `Dynamics` (and of `TransitionDensity` where it claims to).

    Checked: attributes, shapes with any leading dims, dtype and device, finite values, that rows do not depend on each
    other, that one seed gives one result, that `rng=None` draws nothing, that the inputs stay as they were, and that
    the density is the one of the moments' Gaussian where both are given.

    Args:
        dynamics: the object.
        seed: seed of the random numbers used.
        device: where to check.

    Raises:
        ContractError: the first broken promise.
    """
    require(isinstance(dynamics, Dynamics), f"{dynamics!r} lacks one of: space, dt, prior, step")
    require(isinstance(dynamics.space, Space), f"space is a {type(dynamics.space).__name__}; expected a Space")
    require(math.isfinite(dynamics.dt) and dynamics.dt > 0, f"dt is {dynamics.dt}; expected a positive number")
    event = dynamics.space.event_shape
    for dtype in (torch.float32, torch.float64):
        _check_rows(dynamics, event, dtype, seed, device)
    if isinstance(dynamics, TransitionDensity):
        _check_density(dynamics, event, seed, device)


def _check_rows(
    dynamics: Dynamics, event: tuple[int, ...], dtype: torch.dtype, seed: int, device: torch.device | str
) -> None:
    like = torch.zeros((), dtype=dtype, device=device)
    few, many = Streams(seed, 2, 3), Streams(seed, 2, 5)
    x = dynamics.prior((2, 3), rng=few.at(0), dtype=dtype, device=device)
    require_tensor(x, "prior((2, 3))", (2, 3, *event), like)
    generator = torch.Generator(device="cpu").manual_seed(seed)
    require_tensor(dynamics.prior((4,), rng=generator, dtype=dtype, device=device), "prior((4,))", (4, *event), like)
    more = dynamics.prior((2, 5), rng=many.at(0), dtype=dtype, device=device)
    agree(more[:, :3], x, "prior: the first rows of a larger ensemble differ from those of a smaller one")

    before = x.clone()
    noisy = dynamics.step(x, 0.0, rng=few.at(1))
    require_tensor(noisy, "step(x)", tuple(x.shape), x)
    require(torch.equal(x, before), "step changed its input in place; work on a copy")
    agree(dynamics.step(x, 0.0, rng=few.at(1)), noisy, "step: one seed gave two results", tolerance=0.0)
    larger = dynamics.step(more, 0.0, rng=many.at(1))
    agree(larger[:, :3], noisy, "step: a row changed when rows were added (norms or random numbers mix rows)")
    plain = dynamics.step(x, 0.0, rng=None)
    require_tensor(plain, "step(x, rng=None)", tuple(x.shape), x)
    agree(dynamics.step(x, 0.0, rng=None), plain, "step with rng=None gave two results", tolerance=0.0)
    for lead in ((), (1,), (1, 2, 1)):
        rows = x.flatten(0, 1)[: math.prod(lead)].reshape(*lead, *event)
        expected = plain.flatten(0, 1)[: math.prod(lead)].reshape(*lead, *event)
        result = dynamics.step(rows, 0.0, rng=None)
        require_tensor(result, f"step(x) with leading dims {lead}", (*lead, *event), x)
        agree(result, expected, f"step: leading dims {lead} changed the result")


def _check_density(dynamics: Any, event: tuple[int, ...], seed: int, device: torch.device | str) -> None:
    streams = Streams(seed, 2, 3)
    x = dynamics.prior((2, 3), rng=streams.at(0), dtype=torch.float64, device=device)
    x_next = dynamics.step(x, 0.0, rng=streams.at(1))
    mean, covariance = dynamics.moments(x, 0.0)
    require_tensor(mean, "the mean of moments(x)", tuple(x.shape), x)
    require(isinstance(covariance, Covariance), f"moments(x) gave {covariance!r} as covariance; expected a Covariance")
    size = math.prod(event)
    require_tensor(covariance.dense(), "covariance.dense()", (size, size), x)
    try:
        log_prob = dynamics.log_prob(x_next, x, 0.0)
    except CapabilityError:
        return
    require_tensor(log_prob, "log_prob(x_next, x)", (2, 3), x)
    alone = dynamics.log_prob(x_next[:1, :1], x[:1, :1], 0.0)
    agree(alone, log_prob[:1, :1], "log_prob: a row changed when rows were removed")
