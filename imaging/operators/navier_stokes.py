r"""Initial vorticity from a later snapshot: the Navier-Stokes inverse problem, on the flow of `dynamics`.

    y = subsample( w(T) ) + noise,    dw/dt + u.grad w = (1/Re) lap w - 4 cos(4 y),    w(0) = x

The unknown x is the vorticity at time 0 on the periodic square of side 2 pi, event `(1, n, n)`. The flow mixes: what
viscosity has removed by time T cannot be seen, so the posterior is wide at small scales.

References:
    Zheng et al. (2025), InverseBench: benchmarking plug-and-play diffusion priors for inverse problems in physical
    sciences, https://arxiv.org/abs/2503.11043
    Differs: a fixed time step that is the same for every row, where the published solver takes the smallest step that
    any row of the batch needs.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch import Tensor

from dynamics.errors import SpaceMismatch
from dynamics.navier_stokes import NavierStokes
from dynamics.space import Space
from observations.base import LinearOperator, SpaceOrShape, space_name
from observations.evolution import Evolved


@dataclass(frozen=True, eq=False)
class EveryPixel(LinearOperator):
    """One pixel in `every` along rows and columns, the first included: `(*b, channel, rows / every, columns / every)`.

    Args:
        space: Space of the image, or its event shape `(channel, rows, columns)`.
        every: distance of the pixels that are seen, in pixels.

    Raises:
        ValueError: `every` does not divide the sides.
    """

    space: SpaceOrShape
    every: int = 2

    def __post_init__(self) -> None:
        """Check that it fits."""
        grid = self.event_shape[1:]
        if len(grid) != 2 or self.every < 1 or any(side % self.every for side in grid):
            raise ValueError(f"every={self.every} does not divide the sides of an image {grid}")

    def forward(self, x: Tensor) -> Tensor:
        """The pixels."""
        return x[..., :: self.every, :: self.every]

    def carry(self, positions: Tensor) -> Tensor:
        """Places of the pixels."""
        rows = positions.mT.reshape(-1, *self.event_shape)
        return self.forward(rows).reshape(positions.shape[-1], -1).mT

    def __repr__(self) -> str:
        return f"EveryPixel({space_name(self.space)}, {self.every})"


def initial_vorticity(
    space: SpaceOrShape,
    every: int = 2,
    reynolds: float = 200.0,
    time: float = 1.0,
    steps: int = 8,
    recompute: bool = True,
) -> Evolved:
    """The operator from the vorticity at time 0 to every `every`-th pixel of the vorticity at `time`.

    Args:
        space: event shape `(1, n, n)`, or a Space with it. The side of the square is 2 pi whatever its coordinates
            say; the operator's own `space` is that of the flow.
        every: distance of the observed pixels (published: 2, 4, 8).
        reynolds: 1 / viscosity (200, as published).
        time: when the flow is seen (1, as published).
        steps: into how many steps the time is cut. With `recompute` a gradient needs the memory of one of them.
        recompute: trade one more run of the flow for that memory.

    Raises:
        SpaceMismatch: the event is not one square channel.
        ValueError: a Reynolds number or time that is not positive, no steps, or pixels that do not divide the square.
    """
    event = space.event_shape if isinstance(space, Space) else tuple(space)
    if len(event) != 3 or event[0] != 1 or event[1] != event[2]:
        raise SpaceMismatch(f"an initial vorticity is one square field (1, n, n); given {event}")
    if not reynolds > 0 or not time > 0 or steps < 1:
        raise ValueError(f"reynolds={reynolds}, time={time}, steps={steps}: all must be positive")
    size = event[1]
    # h <= 1 / n is stable up to |u| + |v| = 8, several times what the flow reaches.
    flow = NavierStokes(
        size=size,
        viscosity=1.0 / reynolds,
        drag=0.0,
        noise_wavevectors=(),
        body_force=1.0,
        body_force_waves=4,
        dt=time / steps,
        substeps=math.ceil(time / steps * size),
    )
    return Evolved(flow, steps, EveryPixel(flow.space, every), recompute=recompute)
