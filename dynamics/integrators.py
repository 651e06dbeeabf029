"""One step of a differential equation: explicit schemes with their orders, each a short pure function.

    dx/dt = f(x, t)                                euler 1, heun 2, rk4 4, adaptive (Dormand-Prince 5(4))
    dX = f dt + g o dW  (diagonal g)               euler_maruyama (Ito), stochastic_heun (Stratonovich)
    dx/dt = L x + n(x, t)  (diagonal L, stiff)     etdrk4 4

States are `(*b, *event)`; rows never mix. `noise` is a standard normal tensor of the state's shape: the increment of
the Wiener process is sqrt(dt) noise.

References:
    Kloeden, Platen (1992), Numerical solution of stochastic differential equations,
    https://doi.org/10.1007/978-3-662-12616-5
    Kassam, Trefethen (2005), Fourth-order time-stepping for stiff PDEs, https://doi.org/10.1137/S1064827502410633
    Chen (2018), torchdiffeq, https://github.com/rtqichen/torchdiffeq
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

Tendency = Callable[[Tensor, float], Tensor]
"""f(x, time) -> dx/dt, shapes `(*b, *event)`."""


def euler(rhs: Tendency, x: Tensor, time: float, dt: float) -> Tensor:
    """Explicit Euler, order 1."""
    return x + dt * rhs(x, time)


def heun(rhs: Tendency, x: Tensor, time: float, dt: float) -> Tensor:
    """Heun's trapezoidal rule, order 2."""
    first = rhs(x, time)
    second = rhs(x + dt * first, time + dt)
    return x + dt / 2 * (first + second)


def rk4(rhs: Tendency, x: Tensor, time: float, dt: float) -> Tensor:
    """The classical Runge-Kutta method, order 4."""
    k1 = rhs(x, time)
    k2 = rhs(x + dt / 2 * k1, time + dt / 2)
    k3 = rhs(x + dt / 2 * k2, time + dt / 2)
    k4 = rhs(x + dt * k3, time + dt)
    return x + dt / 6 * (k1 + 2 * k2 + 2 * k3 + k4)


def euler_maruyama(
    drift: Tendency, diffusion: Tendency | float, x: Tensor, time: float, dt: float, noise: Tensor
) -> Tensor:
    """Euler-Maruyama for Ito equations: strong order 1/2 (1 if the diffusion is constant), weak order 1.

    Args:
        drift: f(x, time).
        diffusion: g(x, time), elementwise, or a constant.
        x: state `(*b, *event)`.
        time: time of `x`.
        dt: length of the step.
        noise: standard normal numbers of the shape of `x`.
    """
    return x + dt * drift(x, time) + math.sqrt(dt) * _evaluate(diffusion, x, time) * noise


def stochastic_heun(
    drift: Tendency, diffusion: Tendency | float, x: Tensor, time: float, dt: float, noise: Tensor
) -> Tensor:
    """Heun's method for Stratonovich equations: strong order 1 for one noise or elementwise noise, weak order 1.

    With a constant diffusion the Ito and Stratonovich equations are one, and the weak order is 2.

    Args:
        drift: f(x, time).
        diffusion: g(x, time), elementwise, or a constant.
        x: state `(*b, *event)`.
        time: time of `x`.
        dt: length of the step.
        noise: standard normal numbers of the shape of `x`.
    """
    increment = math.sqrt(dt) * noise
    first_drift, first_diffusion = drift(x, time), _evaluate(diffusion, x, time)
    guess = x + dt * first_drift + first_diffusion * increment
    second_drift, second_diffusion = drift(guess, time + dt), _evaluate(diffusion, guess, time + dt)
    return x + dt / 2 * (first_drift + second_drift) + (first_diffusion + second_diffusion) / 2 * increment


class ExponentialCoefficients(NamedTuple):
    """Weights of the `etdrk4` scheme for one L and dt."""

    full: Tensor
    half: Tensor
    inner: Tensor
    first: Tensor
    middle: Tensor
    last: Tensor


def etdrk4_coefficients(linear: Tensor, dt: float, *, points: int = 32) -> ExponentialCoefficients:
    """The weights of ETDRK4, by means over a circle in the complex plane (their closed forms cancel near L dt = 0).

    Args:
        linear: the diagonal of L, real or complex, of a shape that broadcasts over events.
        dt: length of the step.
        points: points on the circle of radius 1 around each L dt.
    """
    z = dt * linear.to(torch.complex128)
    angles = math.pi * (torch.arange(points, device=linear.device, dtype=torch.float64) + 0.5) / points * 2
    r = z.unsqueeze(-1) + torch.polar(torch.ones_like(angles), angles)
    exponential = torch.exp(r)
    weights = (
        torch.exp(z),
        torch.exp(z / 2),
        dt * ((torch.exp(r / 2) - 1) / r).mean(-1),
        dt * ((-4 - r + exponential * (4 - 3 * r + r**2)) / r**3).mean(-1),
        dt * ((2 + r + exponential * (-2 + r)) / r**3).mean(-1),
        dt * ((-4 - 3 * r - r**2 + exponential * (4 - r)) / r**3).mean(-1),
    )
    if not linear.is_complex():
        return ExponentialCoefficients(*(weight.real.to(linear.dtype) for weight in weights))
    return ExponentialCoefficients(*(weight.to(linear.dtype) for weight in weights))


def etdrk4(nonlinear: Tendency, x: Tensor, time: float, dt: float, coefficients: ExponentialCoefficients) -> Tensor:
    """Exponential time differencing of order 4: the diagonal linear part is integrated exactly.

    Args:
        nonlinear: n(x, time), the rest of the tendency.
        x: state `(*b, *event)`, usually spectral coefficients.
        time: time of `x`.
        dt: length of the step, the one of `coefficients`.
        coefficients: from `etdrk4_coefficients`.
    """
    c = coefficients
    n1 = nonlinear(x, time)
    a = c.half * x + c.inner * n1
    n2 = nonlinear(a, time + dt / 2)
    b = c.half * x + c.inner * n2
    n3 = nonlinear(b, time + dt / 2)
    last = c.half * a + c.inner * (2 * n3 - n1)
    n4 = nonlinear(last, time + dt)
    return c.full * x + c.first * n1 + 2 * c.middle * (n2 + n3) + c.last * n4


def adaptive(
    rhs: Tendency,
    x: Tensor,
    start: float,
    end: float,
    rtol: float = 1e-6,
    atol: float = 1e-8,
    *,
    event_dims: int = 1,
    method: str = "dopri5",
) -> Tensor:
    """The state at `end`, by torchdiffeq with error control.

    Rows share their steps, chosen so that the worst row meets the tolerances: a row may change by less than them
    when rows are added. Use a fixed scheme where rows must not change at all.

    Args:
        rhs: f(x, time); `time` is a 0-dimensional tensor here.
        x: state `(*b, *event)`.
        start: time of `x`.
        end: time of the result.
        rtol: relative tolerance (1e-6; float32 states should not ask for less).
        atol: absolute tolerance, in the units of the state.
        event_dims: number of dims of an event.
        method: any adaptive method of torchdiffeq.
    """
    from torchdiffeq import odeint

    def worst_row(error: Tensor) -> Tensor:
        # Called with flattened states as well as with scalars, which have no rows.
        if error.numel() != x.numel():
            return error.abs().max()
        rows = error.reshape(*x.shape[: x.ndim - event_dims], -1)
        return rows.abs().pow(2).mean(-1).sqrt().max()

    times = torch.tensor([start, end], dtype=torch.float64, device=x.device)
    solution = odeint(
        lambda time, state: rhs(state, time), x, times, rtol=rtol, atol=atol, method=method, options={"norm": worst_row}
    )
    return solution[-1]


def _evaluate(diffusion: Tendency | float, x: Tensor, time: float) -> Tensor | float:
    return diffusion(x, time) if callable(diffusion) else diffusion
