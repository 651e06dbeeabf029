r"""A denoiser of windows of consecutive states: the prior of score-based data assimilation.

    x_{i-k : i+k} + rho z  ->  E[x_{i-k : i+k} | .],      2k + 1 states, in standardised coordinates

The states of a window are stacked along the channel, so that a network for one state serves a window with more
channels. A window of one state is a prior of states.

Shapes: windows `(*b, length, channel, *grid)`.

References:
    Rozet, Louppe (2023), Score-based data assimilation, https://arxiv.org/abs/2306.10574
"""

from __future__ import annotations

import copy
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from assimilate.learning.checkpoint import Checkpoint
from assimilate.learning.denoiser import EDMDenoiser
from assimilate.learning.samples import Standardisation
from assimilate.posterior.covariance import Isotropic
from assimilate.posterior.paths import VE, Path
from assimilate.posterior.predictors import Clean, OnPath
from assimilate.posterior.windows import WindowPrior
from dynamics import Space

DATA_BOUND = 4.0
"""Standard deviations of the data at which a composed clean mean is cut."""


@dataclass(frozen=True, eq=False)
class WindowDenoiser:
    """A trained denoiser of windows; see the module docstring.

    Args:
        space: what a state is.
        dt: time between states.
        length: states in a window.
        denoiser: EDM denoiser of `(length * channel, *grid)`.
        standardisation: Space units -> the denoiser's coordinates.
        data: what it was trained on.
        record: how it was trained and what was measured.
    """

    space: Space
    dt: float
    length: int
    denoiser: EDMDenoiser
    standardisation: Standardisation
    data: dict[str, Any] = field(default_factory=dict, repr=False)
    record: dict[str, Any] = field(default_factory=dict, repr=False)

    @property
    def order(self) -> int:
        """k: neighbours on each side of the middle state."""
        return (self.length - 1) // 2

    def to_model(self, x: Tensor) -> Tensor:
        """Space units -> standardised coordinates, `(*b, *event)`; affine, one pair of numbers a channel."""
        return self.standardisation.encode(x)

    def from_model(self, u: Tensor) -> Tensor:
        """The inverse of `to_model`."""
        return self.standardisation.decode(u)

    def __call__(self, noisy: Tensor, ratio: Tensor, condition: Tensor | None = None) -> Clean:
        """The belief about clean windows, in standardised coordinates; a `Denoiser`.

        Args:
            noisy: standardised windows plus `ratio` times noise, `(*b, length, *event)`.
            ratio: noise level, `()` or `(*b,)`.
            condition: not used by windows trained here.
        """
        lead = noisy.ndim - 1 - len(self.space.event_shape)
        clean = self.denoiser(noisy.flatten(lead, lead + 1), ratio, condition)
        covariance = None
        if isinstance(clean.covariance, Isotropic):
            covariance = Isotropic(clean.covariance.variance.reshape(noisy.shape))
        return Clean(clean.mean.reshape(noisy.shape), covariance=covariance)

    def to(self, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> WindowDenoiser:
        """A copy on another device or in another precision."""
        return replace(self, denoiser=copy.deepcopy(self.denoiser).to(device=device, dtype=dtype))

    def prior(self, path: Path | None = None) -> WindowPrior:
        """The prior over windows that score-based data assimilation composes.

        Args:
            path: the path it runs on; default VE, whose noise levels are the denoiser's own.
        """
        path = path or VE()
        mean, std = (torch.tensor(v) for v in (self.standardisation.mean, self.standardisation.std))
        column = (-1, *(1,) * (len(self.space.event_shape) - 1))
        return WindowPrior(
            space=self.space,
            dt=self.dt,
            order=self.order,
            path=path,
            predictor=OnPath(self, path),
            mean=mean.reshape(column),
            std=std.reshape(column),
            record=self.record,
            bound=DATA_BOUND,
        )

    def to_checkpoint(self) -> Checkpoint:
        """What a file holds of it."""
        constants = {
            "dt": self.dt,
            "length": self.length,
            "state": {"mean": list(self.standardisation.mean), "std": list(self.standardisation.std)},
            "variance": self.denoiser.variance,
        }
        tensors = {"sigma_data": self.denoiser.sigma}
        if self.denoiser.basis is not None:
            tensors["basis"] = self.denoiser.basis
        return Checkpoint(
            kind="window",
            networks={"denoiser": self.denoiser.network},
            tensors=tensors,
            space=self.space,
            constants=constants,
            data=self.data,
            record=self.record,
        )

    @classmethod
    def from_checkpoint(cls, checkpoint: Checkpoint) -> WindowDenoiser:
        """The denoiser that a file holds."""
        c, space = checkpoint.constants, checkpoint.space
        assert space is not None
        dims = len(space.event_shape)
        denoiser = EDMDenoiser(
            checkpoint.networks["denoiser"],
            event_dims=dims,
            sigma_data=checkpoint.tensors["sigma_data"],
            variance=c["variance"],
            basis=checkpoint.tensors.get("basis"),
        )
        return cls(
            space=space,
            dt=c["dt"],
            length=c["length"],
            denoiser=denoiser.eval(),
            standardisation=Standardisation(**c["state"], grid_dims=dims - 1),
            data=checkpoint.data,
            record=checkpoint.record,
        )


def stacked(windows: Tensor, standardisation: Standardisation) -> Tensor:
    """Windows `(n, length, channel, *grid)` in Space units as standardised `(n, length * channel, *grid)`."""
    return torch.flatten(standardisation.encode(windows), 1, 2)


def window_prior(checkpoint: Checkpoint) -> WindowPrior:
    """The prior over windows that a file holds."""
    return WindowDenoiser.from_checkpoint(checkpoint).prior()
