r"""Minimisers of a misfit in whitened coordinates, each row of a batch by itself.

    J(v) = 1/2 |v - c|^2 + phi(v),      phi = -log p(y | x(v)) + const = 1/2 |r(v)|^2 for Gaussian noise

v are standard normal under the prior (`background.py`), so that the Hessian is at least the identity wherever the
Gauss-Newton approximation I + G^T G of it holds (G = dr/dv): the norm of the gradient then bounds the distance to the
minimum, in prior standard deviations, and is what `tolerance` speaks of.

Controls are `(*b, n)`. Costs, line searches and inner products are per row, and a row that is done stands still.

References:
    Liu, Nocedal (1989), On the limited memory BFGS method for large scale optimization,
    https://doi.org/10.1007/BF01589116
    Courtier, Thepaut, Hollingsworth (1994), A strategy for operational implementation of 4D-Var, using an incremental
    approach, https://doi.org/10.1002/qj.49712051912 (Gauss-Newton with conjugate gradients inside)
    Nocedal, Wright (2006), Numerical optimization, 2nd edition, https://doi.org/10.1007/978-0-387-40065-5

Differs from the papers: steps are shortened until the cost falls enough (Armijo); a pair of L-BFGS without positive
curvature is left out, instead of a search for a step that has it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple, Protocol, runtime_checkable

import torch
from torch import Tensor

from assimilate.posterior.solvers import conjugate_gradient
from dynamics.errors import CapabilityError
from dynamics.settings import COUNT, check_number, check_settings, number

Map = Callable[[Tensor], Tensor]
SUFFICIENT = 1e-4
"""The share of the decrease promised by the slope that a step must keep (Nocedal and Wright, eq. 3.4)."""
HALVINGS = 25
"""How often a step is halved before a row is given up: it then stands at the noise of its arithmetic."""


@dataclass(frozen=True, eq=False)
class Cost:
    """J as functions of the control.

    Args:
        residual: r, `(*b, n) -> (*b, m)`, dimensionless.
        centre: c, broadcastable against `(*b, n)`.
        misfit: phi, `(*b, n) -> (*b,)`; None for half the squared residual.
    """

    residual: Map
    centre: Tensor
    misfit: Map | None = None

    def __call__(self, control: Tensor) -> Tensor:
        """J, `(*b,)`."""
        data = 0.5 * self.residual(control).square().sum(-1) if self.misfit is None else self.misfit(control)
        return data + 0.5 * (control - self.centre).square().sum(-1)

    def slope(self, control: Tensor) -> tuple[Tensor, Tensor]:
        """J `(*b,)` and its gradient `(*b, n)`."""
        with torch.enable_grad():
            leaf = control.detach().requires_grad_()
            value = self(leaf)
            # Rows do not look at each other, so the gradient of their sum is the gradient of each.
            (gradient,) = torch.autograd.grad(value.sum(), leaf)
        return value.detach(), gradient


class Minimum(NamedTuple):
    """Where a minimiser stopped; the last iterate.

    Attributes:
        control: `(*b, n)`.
        cost: J there, `(*b,)`.
        gradient_norm: `(*b,)`; above `tolerance` where the iterations or the digits did not suffice.
    """

    control: Tensor
    cost: Tensor
    gradient_norm: Tensor


@runtime_checkable
class Minimiser(Protocol):
    """The contract of a minimiser: a frozen dataclass of settings that is called with a cost and a start."""

    def __call__(self, cost: Cost, start: Tensor) -> Minimum:
        """The minimum found from controls `start` `(*b, n)`."""
        ...


@dataclass(frozen=True, eq=False)
class Tangent:
    """The residual near a control, `r(v + u) = value + G u`, as products with G and its transpose.

    Args:
        value: r, `(*b, m)`.
        forward: G u, `(*b, n) -> (*b, m)`.
        adjoint: G^T w, `(*b, m) -> (*b, n)`.
    """

    value: Tensor
    forward: Map
    adjoint: Map

    def normal(self, u: Tensor) -> Tensor:
        """The Gauss-Newton Hessian, `(I + G^T G) u`."""
        return u + self.adjoint(self.forward(u))

    def solve(self, right: Tensor, *, iterations: int, tolerance: float) -> Tensor:
        """`(I + G^T G)^-1 right` by conjugate gradients, `(*b, n)`.

        Args:
            right: `(*b, n)`.
            iterations: most iterations. G^T G has no more than min(n, m) eigenvalues that are not 0, so that one more
                would do but for rounding; twice as many are never exceeded.
            tolerance: relative residual at which a row stops.
        """
        most = min(iterations, 2 * min(right.shape[-1], self.value.shape[-1]) + 5)
        return conjugate_gradient(self.normal, right, iterations=most, tolerance=tolerance)


def tangent(residual: Map, control: Tensor) -> Tangent:
    """The tangent of `residual` at `control`; the residual is computed once, whatever the number of products.

    G u is the derivative of w -> G^T w, which is linear: two backward passes serve every model that has one.

    Raises:
        CapabilityError: the residual has no gradient.
    """
    with torch.enable_grad():
        leaf = control.detach().requires_grad_()
        value = residual(leaf)
        if value.shape[-1] == 0:
            return Tangent(value.detach(), lambda u: u[..., :0], lambda w: torch.zeros_like(control))
        if not value.requires_grad:
            raise CapabilityError(
                "the observed values have no gradient with respect to the state: the dynamics or the operator detaches "
                "it or is not differentiable; use an ensemble or particle filter"
            )
        dual = torch.zeros_like(value).requires_grad_()
        (pulled,) = torch.autograd.grad(value, leaf, dual, create_graph=True)

    def forward(u: Tensor) -> Tensor:
        return torch.autograd.grad(pulled, dual, u.to(pulled.dtype), retain_graph=True)[0]

    def adjoint(w: Tensor) -> Tensor:
        return torch.autograd.grad(value, leaf, w.to(value.dtype), retain_graph=True)[0]

    return Tangent(value.detach(), forward, adjoint)


@dataclass(frozen=True)
class GaussNewton:
    """Gauss-Newton with conjugate gradients inside: incremental variational assimilation.

    Args:
        iterations: most linearisations (outer loops); a linear problem needs two or three.
        inner: most conjugate-gradient iterations for each; as many as there are observed values are always enough.
        accuracy: relative residual at which they stop.
        tolerance: a row is done when its gradient norm is below this, prior standard deviations.

    Convergence is quick where the residual is nearly linear or small; where large residuals meet a strong curvature it
    is linear, and LBFGS may need fewer gradients.

    Raises:
        CapabilityError: the misfit is not half a squared residual (noise that is not Gaussian).
    """

    iterations: int = 10
    inner: int = 100
    accuracy: float = 1e-3
    tolerance: float = 1e-3

    def __post_init__(self) -> None:
        """Check the settings."""
        _check(self.iterations, self.tolerance)
        check_settings(self, inner=COUNT, accuracy=number(above=0, below=1))

    def __call__(self, cost: Cost, start: Tensor) -> Minimum:
        """See `Minimiser`."""
        if cost.misfit is not None:
            raise CapabilityError(
                "Gauss-Newton needs Gaussian observation noise; use minimiser = LBFGS(), which takes any differentiable"
            )
        control, value, gradient = start, *cost.slope(start)
        _check_start(value)
        stalled = torch.zeros_like(value, dtype=torch.bool)
        for _ in range(self.iterations):
            done = stalled | (_norm(gradient) <= self.tolerance)
            if bool(done.all()):
                break
            near = tangent(cost.residual, control)
            downhill = torch.where(done.unsqueeze(-1), 0.0, -gradient)
            step = near.solve(downhill, iterations=self.inner, tolerance=self.accuracy)
            control, value, gradient, alive = _search(cost, control, value, gradient, step, done)
            stalled = stalled | ~(alive | done)
        return Minimum(control, value, _norm(gradient))


@dataclass(frozen=True)
class LBFGS:
    """Limited-memory BFGS: gradients only, for any differentiable noise.

    Args:
        iterations: most iterations.
        history: pairs of steps and gradient changes that are kept (10; 3 to 20 are customary).
        tolerance: a row is done when its gradient norm is below this, prior standard deviations.
    """

    iterations: int = 100
    history: int = 10
    tolerance: float = 1e-3

    def __post_init__(self) -> None:
        """Check the settings."""
        _check(self.iterations, self.tolerance)
        check_settings(self, history=COUNT)

    def __call__(self, cost: Cost, start: Tensor) -> Minimum:
        """See `Minimiser`."""
        control, value, gradient = start, *cost.slope(start)
        _check_start(value)
        stalled = torch.zeros_like(value, dtype=torch.bool)
        pairs: list[tuple[Tensor, Tensor, Tensor]] = []
        # The first step is as long as the gradient, but at most one prior standard deviation.
        scale = 1 / _norm(gradient).clamp_min(1.0).unsqueeze(-1)
        for _ in range(self.iterations):
            done = stalled | (_norm(gradient) <= self.tolerance)
            if bool(done.all()):
                break
            step = -_inverse_hessian(gradient, pairs, scale)
            new, value, slope, alive = _search(cost, control, value, gradient, step, done)
            stalled = stalled | ~(alive | done)
            travelled, change = new - control, slope - gradient
            curvature = _dot(travelled, change)
            valid = curvature > torch.finfo(curvature.dtype).eps * _dot(change, change)
            inverse = torch.where(valid, 1 / torch.where(valid, curvature, 1.0), 0.0)
            pairs = [*pairs, (travelled, change, inverse)][-self.history :]
            scale = torch.where(valid, curvature / _dot(change, change).clamp_min(1e-30), scale)
            control, gradient = new, slope
        return Minimum(control, value, _norm(gradient))


def _inverse_hessian(gradient: Tensor, pairs: list[tuple[Tensor, Tensor, Tensor]], scale: Tensor) -> Tensor:
    """The two-loop recursion; a pair with an inverse curvature of 0 counts for nothing in that row."""
    vector, shares = gradient, []
    for travelled, change, inverse in reversed(pairs):
        shares.append(inverse * _dot(travelled, vector))
        vector = vector - shares[-1] * change
    vector = scale * vector
    for (travelled, change, inverse), share in zip(pairs, reversed(shares), strict=True):
        vector = vector + (share - inverse * _dot(change, vector)) * travelled
    return vector


def _search(
    cost: Cost, control: Tensor, value: Tensor, gradient: Tensor, step: Tensor, done: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Halve each row's step until its cost falls enough: control, cost, gradient, and which rows can still gain."""
    promised = _dot(gradient, step).squeeze(-1)
    length = torch.ones_like(value)
    # Rounding of the cost itself must not refuse the last step; a row that promises no more than that has arrived.
    slack = 10 * torch.finfo(value.dtype).eps * value.abs()
    for _ in range(HALVINGS):
        trial = torch.where(done.unsqueeze(-1), control, control + length.unsqueeze(-1) * step)
        found, slope = cost.slope(trial)
        enough = done | (found <= value + SUFFICIENT * length * promised + slack) & torch.isfinite(slope).all(-1)
        if bool(enough.all()):
            break
        length = torch.where(enough, length, length / 2)
    keep = (enough & ~done).unsqueeze(-1)
    moved = torch.where(keep, trial, control)
    alive = enough & ~done & (-promised > slack)
    return moved, torch.where(enough, found, value), torch.where(keep, slope, gradient), alive


def _dot(a: Tensor, b: Tensor) -> Tensor:
    return (a * b).sum(-1, keepdim=True)


def _norm(x: Tensor) -> Tensor:
    return torch.linalg.vector_norm(x, dim=-1)


def _check(iterations: int, tolerance: float) -> None:
    check_number("iterations", iterations, COUNT)
    check_number("tolerance", tolerance, number(above=0, infinite=True))


def _check_start(value: Tensor) -> None:
    if not bool(torch.isfinite(value).all()):
        lost = (~torch.isfinite(value)).nonzero().tolist()
        raise FloatingPointError(f"the misfit of row(s) {lost} is not finite at the first guess")
