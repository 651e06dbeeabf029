r"""Background covariances made of the forecast members, alone or blended with a static one.

    B = (1 - weight) B_c + weight P o C,        P = 1/(N - 1) sum_n a_n a_n^T,     a_n = x_n - mean

`P o C` is P tapered by a correlation C (B-localisation). Its root needs no matrix: with C = M M^T,

    L (v_1 .. v_N) = (N - 1)^-1/2 sum_n a_n o (M v_n)         (without localisation v_n is a number)

References:
    Hamill, Snyder (2000), A hybrid ensemble Kalman filter-3D variational analysis scheme,
    https://doi.org/10.1175/1520-0493(2000)128<2905:AHEKFV>2.0.CO;2
    Lorenc (2003), The potential of the ensemble Kalman filter for NWP: a comparison with 4D-Var,
    https://doi.org/10.1256/qj.02.132 (the extended control variable)
    Wang, Snyder, Hamill (2007), On the theoretical equivalence of differently proposed ensemble-3DVAR hybrid analysis
    schemes, https://doi.org/10.1175/MWR3282.1
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from assimilate.variational.background import Background
from dynamics.settings import check_settings, number


@dataclass(frozen=True, eq=False)
class EnsembleBackground:
    """The covariance of members, localised or not.

    Args:
        anomalies: `(E, N, *event)`, members minus their mean; controls then are `(E, K, size)`, any K.
        localisation: the taper as a `Background` with standard deviation 1, such as a `SpectralBackground` or a
            `DiffusionBackground`; None: no localisation. On a Space of one field with the same grid it tapers all
            channels alike; on that of the state, whose channels it takes as independent, it also removes the
            covariances between channels.

    Memory grows with N times K states.
    """

    anomalies: Tensor
    localisation: Background | None = None

    @property
    def size(self) -> int:
        """One number a member, or one taper control a member."""
        each = 1 if self.localisation is None else self.localisation.size
        return self.anomalies.shape[1] * each

    @property
    def event_shape(self) -> tuple[int, ...]:
        """Shape of a state."""
        return tuple(self.anomalies.shape[2:])

    @property
    def mean(self) -> Any:
        """None: members have a mean of their own."""
        return None

    def root(self, control: Tensor) -> Tensor:
        """See `Background`; controls `(E, K, size)`."""
        n = self.anomalies.shape[1]
        anomalies = self.anomalies.to(control.dtype) / math.sqrt(n - 1)
        if self.localisation is None:
            return torch.einsum("ekn,en...->ek...", control, anomalies)
        tapers = self.localisation.root(control.reshape(*control.shape[:-1], n, -1))
        return (tapers * anomalies.unsqueeze(1)).sum(2)

    def at(self, members: Tensor) -> Background:
        """The covariance of these members instead."""
        return ensemble_background(members, self.localisation)


@dataclass(frozen=True, eq=False)
class BlendedBackground:
    """`(1 - weight) first + weight second`, roots side by side.

    Args:
        first: a covariance.
        second: another, of the same states.
        weight: of the second, between 0 and 1.
    """

    first: Background
    second: Background
    weight: float

    @property
    def size(self) -> int:
        """Both controls, one after the other."""
        return self.first.size + self.second.size

    @property
    def event_shape(self) -> tuple[int, ...]:
        """Shape of a state."""
        return self.first.event_shape

    @property
    def mean(self) -> Any:
        """That of the first."""
        return self.first.mean

    def root(self, control: Tensor) -> Tensor:
        """See `Background`."""
        one, two = control.split([self.first.size, self.second.size], -1)
        return math.sqrt(1 - self.weight) * self.first.root(one) + math.sqrt(self.weight) * self.second.root(two)

    def at(self, members: Tensor) -> Background:
        """Both where the members are these."""
        return BlendedBackground(self.first.at(members), self.second.at(members), self.weight)


@dataclass(frozen=True, eq=False)
class Hybrid:
    """Settings of a blend of a static covariance and that of the forecast members.

    Args:
        static: B_c.
        weight: of the members' covariance, between 0 (static only) and 1 (members only); 0.5 by default.
        localisation: see `EnsembleBackground`.

    Raises:
        ValueError: `weight` is no fraction.
    """

    static: Background
    weight: float = 0.5
    localisation: Background | None = None

    def __post_init__(self) -> None:
        """Check the weight."""
        check_settings(self, weight=number(0, 1, words="a fraction between 0 (static) and 1 (members)"))

    @property
    def mean(self) -> Any:
        """That of the static covariance."""
        return self.static.mean

    def at(self, members: Tensor) -> Background:
        """The blend where the forecast members are `(E, N, *event)`."""
        return BlendedBackground(self.static, ensemble_background(members, self.localisation), self.weight)


def ensemble_background(members: Tensor, localisation: Background | None = None) -> EnsembleBackground:
    """The covariance of members `(E, N, *event)`.

    Raises:
        ValueError: fewer than two members.
    """
    if members.shape[1] < 2:
        raise ValueError("a covariance of members needs at least 2 of them; 1 was given")
    return EnsembleBackground(members - members.mean(1, keepdim=True), localisation)
