"""What solvers with interacting particles share: an ensemble of fixed size, and samples drawn from it.

The ensemble is run with streams of its own, whose number does not depend on how many samples are asked for; sample n is
then a member, drawn by its weight with stream n. Samples are therefore not independent: more of them than particles say
nothing new.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from dynamics.random import Streams, uniform
from imaging.solvers.base import PathSolver

# Sample n and particle n would otherwise share their numbers.
_ENSEMBLE = 1 << 31


@dataclass(frozen=True)
class ParticleSolver(PathSolver):
    """A solver whose samples are drawn from an ensemble.

    Args:
        particles: size of the ensemble, for each measurement.
    """

    particles: int = 64

    def __post_init__(self) -> None:
        """Check the settings."""
        if self.particles < 2:
            raise ValueError(f"particles is {self.particles}; expected at least 2")

    def streams(self, rng: Streams) -> Streams:
        """One stream for each particle."""
        return Streams(rng.seed, rng.experiments, self.particles, step=rng.step + _ENSEMBLE)


def draw_members(members: Tensor, log_weights: Tensor, rng: Streams) -> Tensor:
    """One member for each stream, `(E, N, *event)`, by weight.

    Args:
        members: the ensemble, `(E, P, *event)`.
        log_weights: `(E, P)`, normalised.
        rng: streams of the samples, rows `(E, N)`.
    """
    limits = log_weights.double().exp().cumsum(-1)
    chance = uniform(rng, (*rng.rows, 1), dtype=torch.float64, device=members.device)[..., 0]
    index = torch.searchsorted(limits / limits[..., -1:], chance).clamp_max(members.shape[1] - 1)
    rows = torch.arange(len(index), device=members.device)[:, None]
    return members[rows, index]
