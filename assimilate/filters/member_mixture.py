r"""A law known by its members alone, as the prior of a diffusion: kernels around them, in units that they give.

    p(u) = 1/N sum_j N(c_j, h^2 I),    x = mean + root u,    root root^T the covariance of the members or its diagonal

Its clean mean is known at every noise level rho, so that there is nothing to train:

    m(u) = sum_j s_j [ c_j + g (u - c_j) ],   s_j ~ exp( -|u - c_j|^2 / 2 (h^2 + rho^2) ),   g = h^2 / (h^2 + rho^2)

In units of the covariance the kernels have the shape of the ensemble.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from assimilate.posterior.covariance import Isotropic
from assimilate.posterior.predictors import Clean
from observations.base import ObservationOperator, SpaceOrShape

Scaling = Literal["none", "spread", "covariance"]


@dataclass(frozen=True, eq=False)
class MemberDenoiser:
    """The clean mean of a mixture of equal kernels around members, each experiment with its own.

    Args:
        members: c_j, `(E, N, *event)`.
        bandwidth: h, standard deviation of a kernel.
        own: whether row n knows member n alone.
    """

    members: Tensor
    bandwidth: float = 0.0
    own: bool = False

    def __call__(self, noisy: Tensor, ratio: Tensor, condition: Tensor | None = None) -> Clean:
        """The belief about `x_1` given `x_1 + ratio z`, `(E, N, *event)`; `ratio` is zero-dimensional."""
        total = (self.bandwidth**2 + ratio.to(noisy) ** 2).clamp_min(torch.finfo(noisy.dtype).tiny)
        gain = self.bandwidth**2 / total
        variance = gain * ratio.to(noisy) ** 2
        if self.own:
            return Clean(self.members + gain * (noisy - self.members), covariance=Isotropic(variance))
        u, c = noisy.flatten(2), self.members.flatten(2)
        # |u|^2 is the same for all members and drops out of the weights.
        square = c.square().sum(-1)
        share = torch.softmax((u @ c.mT - 0.5 * square.unsqueeze(1)) / total, -1)
        centre = share @ c
        # One variance for all values, the mean of the exact ones.
        between = ((share @ square.unsqueeze(-1)).squeeze(-1) - centre.square().sum(-1)).clamp_min(0) / c.shape[-1]
        between = (1 - gain) ** 2 * between.detach()
        shape = (*noisy.shape[:2], *[1] * (noisy.ndim - 2))
        centre = centre.reshape(noisy.shape)
        return Clean(centre + gain * (noisy - centre), covariance=Isotropic(variance + between.reshape(shape)))


class Units(NamedTuple):
    """States as `x = mean + root u`.

    Attributes:
        mean: `(E, 1, *event)`.
        root: `(E, 1, *event)` factors value by value, or a symmetric matrix `(E, d, d)`.
        inverse: of the root (0 where that is 0).
        dense: whether root and inverse are matrices.
    """

    mean: Tensor
    root: Tensor
    inverse: Tensor
    dense: bool

    @classmethod
    def of(cls, members: Tensor, scaling: Scaling) -> Units:
        """The units of members `(E, N, *event)`."""
        mean = members.mean(1, keepdim=True)
        if scaling == "none":
            one = torch.ones_like(mean)
            return cls(torch.zeros_like(mean), one, one, False)
        if scaling == "spread":
            std = members.std(1, keepdim=True)
            return cls(mean, std, torch.where(std > 0, 1 / std, 0.0), False)
        flat = (members - mean).flatten(2).double()
        values, vectors = torch.linalg.eigh(flat.mT @ flat / (flat.shape[1] - 1))
        # Directions in which the members do not differ stay at the mean.
        kept = values > 1e-10 * values[:, -1:]
        level = torch.where(kept, values, 0.0).sqrt()
        inverse = torch.where(kept, 1 / level, 0.0)
        root, inverse = ((vectors * v.unsqueeze(-2)) @ vectors.mT for v in (level, inverse))
        return cls(mean, root.to(members.dtype), inverse.to(members.dtype), True)

    def into(self, x: Tensor) -> Tensor:
        """`u` of states `(E, N, *event)`."""
        return self._times(self.inverse, x - self.mean)

    def back(self, u: Tensor) -> Tensor:
        """`x` of `u`, `(E, N, *event)`."""
        return self.mean + self._times(self.root, u)

    def _times(self, factor: Tensor, x: Tensor) -> Tensor:
        return (x.flatten(2) @ factor).reshape(x.shape) if self.dense else factor * x


@dataclass(frozen=True, eq=False)
class Rescaled(ObservationOperator):
    """An operator of states in other units: `u -> H(x(u))`.

    Args:
        operator: H.
        units: of the states `(E, N, *event)`.
    """

    operator: ObservationOperator
    units: Units

    @property
    def space(self) -> SpaceOrShape:  # type: ignore[override]
        """Event shape of H."""
        return self.operator.event_shape

    @property
    def obs_shape(self) -> tuple[int, ...]:  # type: ignore[override]
        """That of H."""
        return self.operator.obs_shape

    def forward(self, x: Tensor) -> Tensor:
        """H(mean + root u)."""
        return self.operator.forward(self.units.back(x))
