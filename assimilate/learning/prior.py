r"""A learned prior of single states: a denoiser in the units of its Space.

    E[x_1 | x_1 + rho z],     network coordinates u = (x - offset) / scale, so that rho there is rho / scale

The prior is a `Denoiser` of `assimilate.posterior.predictors`: `OnPath(prior, path)` runs it on any path, and noise
levels are in the units of the data as given. A network without grid statistics serves other grid sizes than the one
that it was trained on; what a picture looks like at another pixel size is for the user to judge.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import torch
from torch import Tensor

from assimilate.learning.checkpoint import Checkpoint
from assimilate.learning.consistency import ConsistencyDenoiser
from assimilate.learning.denoiser import EDMDenoiser
from assimilate.posterior.covariance import Isotropic
from assimilate.posterior.predictors import Clean
from dynamics.space import Space


@dataclass(frozen=True, eq=False)
class LearnedPrior:
    """A prior over states, as a denoiser.

    Args:
        space: what a state is and in which units.
        denoiser: in network coordinates.
        offset: subtracted from states, units of the Space.
        scale: and then divided by, units of the Space.
        smallest: smallest noise level it was trained on, units of the Space.
        largest: largest noise level it was trained on.
        bounds: least and largest value that a state can have; None = any.
        data: what it was trained on.
        record: how it was trained and what was measured.
    """

    space: Space
    denoiser: EDMDenoiser = field(repr=False)
    offset: float = 0.0
    scale: float = 1.0
    smallest: float = 0.002
    largest: float = 80.0
    bounds: tuple[float, float] | None = None
    data: dict[str, Any] = field(default_factory=dict, repr=False)
    record: dict[str, Any] = field(default_factory=dict, repr=False)

    @property
    def event_shape(self) -> tuple[int, ...]:
        """Shape of one state."""
        return self.space.event_shape

    @property
    def spread(self) -> float:
        """Standard deviation of the data, units of the Space."""
        return self.scale * self.denoiser.sigma_data

    @property
    def gives(self) -> Literal["mean", "draw"]:
        """What one call gives: the clean mean, or (a consistency model) a draw of the clean state."""
        return "draw" if isinstance(self.denoiser, ConsistencyDenoiser) else "mean"

    def __call__(self, noisy: Tensor, ratio: Tensor, condition: Tensor | None = None) -> Clean:
        """See `Denoiser`.

        Args:
            noisy: a state plus `ratio` times noise, `(*b, *event)`, on any grid.
            ratio: noise level, `()` or `(*b,)`, units of the Space.
            condition: of a conditional network.
        """
        clean = self.denoiser((noisy - self.offset) / self.scale, ratio / self.scale, condition)
        covariance = clean.covariance
        if isinstance(covariance, Isotropic):
            covariance = Isotropic(covariance.variance * self.scale**2)
        return Clean(self.offset + self.scale * clean.mean, covariance=covariance)

    def to(self, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> LearnedPrior:
        """A copy on another device or in another precision."""
        return replace(self, denoiser=copy.deepcopy(self.denoiser).to(device=device, dtype=dtype))

    def to_checkpoint(self) -> Checkpoint:
        """What a file holds of it."""
        return Checkpoint(
            kind="prior",
            networks={"denoiser": self.denoiser.network},
            space=self.space,
            constants={
                "sigma_data": self.denoiser.sigma_data,
                "variance": self.denoiser.variance,
                "gives": self.gives,
                "offset": self.offset,
                "scale": self.scale,
                "smallest": self.smallest,
                "largest": self.largest,
                "bounds": None if self.bounds is None else list(self.bounds),
            },
            data=self.data,
            record=self.record,
        )


def learned_prior(checkpoint: Checkpoint) -> LearnedPrior:
    """The prior that a checkpoint of kind "prior" holds."""
    constants = dict(checkpoint.constants)
    space, bounds = checkpoint.space, constants.pop("bounds")
    assert space is not None
    kind = ConsistencyDenoiser if constants.pop("gives") == "draw" else EDMDenoiser
    denoiser = kind(
        checkpoint.networks["denoiser"],
        event_dims=len(space.event_shape),
        sigma_data=constants.pop("sigma_data"),
        variance=constants.pop("variance"),
    )
    return LearnedPrior(
        space=space,
        denoiser=denoiser.eval(),
        bounds=None if bounds is None else (bounds[0], bounds[1]),
        data=checkpoint.data,
        record=checkpoint.record,
        **constants,
    )
