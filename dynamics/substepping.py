r"""Shorter steps: the same system with another `dt`, for observations that fall between its steps.

    a capability:  dynamics.with_dt(h)       a `Dynamics` whose law over a time t is that of the original, up to its
                                             own discretisation
    the question:  with_dt(dynamics, h)      the capability, or what is known of the systems of this package

The noise of a step must shrink with the step, so that what gathers over a time t stays the same:

    noise per square root of time (double well, Navier-Stokes)    nothing to change
    noise_std per step (Lorenz-63, Lorenz-96)                     noise_std sqrt(h / dt): h / dt steps add up to it
    linear Gaussian     A_h = exp(F h), F = log(A) / dt;   Q_h = int_0^h e^{Fs} L e^{F^T s} ds, with the L that gives Q

The last is exact: dt / h steps give A and Q again. For Lorenz the noise of the earlier steps goes through the later
ones, as in a stochastic differential equation; the sum is right to first order in dt. A system whose step is all that
is known of it (rain by the hour, a learned transition, a truncated flow) cannot be divided.

References:
    Van Loan (1978), Computing integrals involving the matrix exponential, https://doi.org/10.1109/TAC.1978.1101743
"""

from __future__ import annotations

import math
from dataclasses import replace
from functools import singledispatch
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor

from dynamics.base import Dynamics
from dynamics.double_well import DoubleWell
from dynamics.errors import CapabilityError
from dynamics.linear import LinearGaussian
from dynamics.lorenz import Lorenz63, Lorenz96
from dynamics.navier_stokes import NavierStokes

_CONDITION = 1e8
"""Largest condition number of the eigenvectors of a matrix whose root is taken: half of the digits of float64."""


@runtime_checkable
class Divisible(Protocol):
    """A declared capability: the step can have another length."""

    def with_dt(self, dt: float) -> Dynamics:
        """The same system with steps of `dt`."""
        ...


def with_dt(dynamics: Dynamics, dt: float) -> Any:
    """The same system with steps of another length.

    Args:
        dynamics: a system of this package, or one with a method `with_dt`.
        dt: the new length, in the units of the time axis.

    Raises:
        ValueError: `dt` is not positive.
        CapabilityError: the step cannot be divided.
    """
    if not (dt > 0 and math.isfinite(dt)):
        raise ValueError(f"dt is {dt}; expected a positive length of a step")
    if abs(dt - dynamics.dt) <= 1e-12 * dynamics.dt:
        return dynamics
    return dynamics.with_dt(dt) if isinstance(dynamics, Divisible) else _divided(dynamics, dt)


def step_that_reaches(dynamics: Dynamics, start: float, end: float) -> float:
    """The longest step up to `dynamics.dt` of which a whole number leads from `start` to `end`."""
    count = (end - start) / dynamics.dt
    if abs(count - round(count)) <= 1e-4 * max(1.0, abs(count) * 1e-3):
        return dynamics.dt
    return (end - start) / math.ceil(count)


@singledispatch
def _divided(dynamics: Any, dt: float) -> Any:
    raise CapabilityError(
        f"the step of {type(dynamics).__name__}, {dynamics.dt:g}, cannot be divided into steps of {dt:g}: move the "
        "observations to the nearest step, gather them in windows, or give the class a method with_dt(dt)"
    )


@_divided.register
def _(dynamics: Lorenz63, dt: float) -> Lorenz63:
    return replace(dynamics, dt=dt, noise_std=dynamics.noise_std * math.sqrt(dt / dynamics.dt))


@_divided.register
def _(dynamics: Lorenz96, dt: float) -> Lorenz96:
    return replace(dynamics, dt=dt, noise_std=dynamics.noise_std * math.sqrt(dt / dynamics.dt))


@_divided.register
def _(dynamics: DoubleWell, dt: float) -> DoubleWell:
    return replace(dynamics, dt=dt, substeps=_at_most_as_long(dynamics.substeps, dt / dynamics.dt))


@_divided.register
def _(dynamics: NavierStokes, dt: float) -> NavierStokes:
    return replace(dynamics, dt=dt, substeps=_at_most_as_long(dynamics.substeps, dt / dynamics.dt))


@_divided.register
def _(dynamics: LinearGaussian, dt: float) -> LinearGaussian:
    matrix, noise = divided_moments(dynamics.matrix, dynamics.noise_covariance, dt / dynamics.dt)
    return replace(dynamics, matrix=matrix, noise_covariance=noise, dt=dt)


def _at_most_as_long(substeps: int, share: float) -> int:
    """Substeps of a part of a step, each at most as long as before."""
    return max(1, math.ceil(substeps * share - 1e-9))


def divided_moments(matrix: Tensor, covariance: Tensor, share: float) -> tuple[Tensor, Tensor]:
    r"""A_h and Q_h of a part of a step, `share = h / dt`, float64.

    In the eigenvectors V of A, with eigenvalues exp(mu_i) over a step,

        (V^-1 Q_h V^-H)_ij = (V^-1 Q V^-H)_ij g(share (mu_i + mu_j*)) share / g(mu_i + mu_j*),    g(z) = (e^z - 1) / z

    Raises:
        CapabilityError: there is no real linear stochastic differential equation whose step this is: A is singular,
            has a negative eigenvalue, is not diagonalisable, or needs a noise that is no covariance.
    """

    def refused(why: str) -> CapabilityError:
        return CapabilityError(f"this linear Gaussian step cannot be divided: {why}; observe at multiples of dt")

    matrix, covariance = matrix.double(), covariance.double()
    values, vectors = torch.linalg.eig(matrix)
    size = float(values.abs().max())
    if float(values.abs().min()) <= 1e-12 * max(size, 1e-300):
        raise refused("its matrix is singular")
    if bool(((values.real < 0) & (values.imag.abs() <= 1e-9 * size)).any()):
        raise refused("its matrix has a negative eigenvalue")
    if not float(torch.linalg.cond(vectors)) < _CONDITION:
        raise refused("its matrix has no full set of eigenvectors")
    rates = torch.log(values)
    inverse = torch.linalg.inv(vectors)
    root = vectors @ torch.diag(torch.exp(share * rates)) @ inverse
    sums = rates[:, None] + rates.conj()[None]
    noise = inverse @ covariance.to(inverse.dtype) @ inverse.mH
    noise = noise * share * _growth(share * sums) / _growth(sums)
    noise = vectors @ noise @ vectors.mH
    part = (noise.real + noise.real.mT) / 2
    if float(torch.linalg.eigvalsh(part).min()) < -1e-9 * max(float(part.abs().max()), 1e-300):
        raise refused("the noise of a part of it would have a negative variance")
    # Round-off may leave a variance of -1e-17, which is no covariance either.
    levels, axes = torch.linalg.eigh(part)
    return root.real, (axes * levels.clamp_min(0)) @ axes.mT


def _growth(z: Tensor) -> Tensor:
    """(e^z - 1) / z, 1 at 0; complex."""
    small = z.abs() < 1e-6
    safe = torch.where(small, torch.ones_like(z), z)
    return torch.where(small, 1 + z / 2, (torch.exp(safe) - 1) / safe)
