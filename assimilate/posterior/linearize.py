"""The tangent of an observation operator at a state, as a pair of products on flattened values, and its noise."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from dynamics.errors import CapabilityError
from observations.base import LinearOperator, ObservationOperator
from observations.likelihood import Likelihood
from observations.noise import GaussianNoise

Product = Callable[[Tensor], Tensor]


def observe_flat(operator: ObservationOperator, x: Tensor) -> Tensor:
    """`A(x)` with the observed values flattened, `(*b, *event) -> (*b, m)`."""
    value = operator(x)
    return value.reshape(*value.shape[: value.ndim - len(operator.obs_shape)], -1)


def gaussian_noise(likelihood: Likelihood) -> GaussianNoise:
    """The noise of a likelihood, which a linearised update needs to be Gaussian.

    Raises:
        CapabilityError: it is not.
    """
    if not isinstance(likelihood.noise, GaussianNoise):
        raise CapabilityError(
            f"this guidance linearises the observation and needs Gaussian noise; {type(likelihood.noise).__name__} was "
            "given: DPS and MonteCarlo take any noise, and Poisson(...).gaussian(y) is its Gaussian approximation"
        )
    return likelihood.noise


def linearize(operator: ObservationOperator, x: Tensor) -> tuple[Tensor, Product, Product]:
    """`A(x)`, the product with `A'(x)` and the product with its transpose.

    Args:
        operator: linear (its own products are used) or not (products by automatic differentiation).
        x: `(*b, *event)`.

    Returns:
        The value `(*b, m)`, `forward: (*b, *event) -> (*b, m)` and `adjoint: (*b, m) -> (*b, *event)`.
    """
    obs = operator.obs_shape
    if isinstance(operator, LinearOperator):
        linear = operator
        return (
            observe_flat(operator, x),
            lambda v: observe_flat(linear, v),
            lambda w: linear.adjoint(w.reshape(*w.shape[:-1], *obs)),
        )
    with torch.enable_grad():
        leaf = x.detach().requires_grad_()
        value = observe_flat(operator, leaf)

    def forward(v: Tensor) -> Tensor:
        return torch.func.jvp(lambda z: observe_flat(operator, z), (x.detach(),), (v,))[1]

    def adjoint(w: Tensor) -> Tensor:
        return torch.autograd.grad(value, leaf, w, retain_graph=True)[0]

    return value.detach(), forward, adjoint
