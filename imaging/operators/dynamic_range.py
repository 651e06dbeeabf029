"""High dynamic range: the image that a camera took of a scene too bright and too dark for it.

    y = clip( c + gain (x - c), low, high ),     c = (low + high) / 2

Published as clip(2 u, -1, 1) for images u in [-1, 1]. For an image x = (u + 1) / 2 in [0, 1] that is
clip(2 x - 1/2, 0, 1), the default here: contrast is doubled about the middle grey, and both ends saturate. The
published noise of 0.05 is 0.025 in these units.

References:
    Zhang et al. (2024), Improving diffusion inverse problem solving with decoupled noise annealing,
    https://arxiv.org/abs/2407.01521 (the task and its gain)
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from observations.base import ObservationOperator, SpaceOrShape, space_name


@dataclass(frozen=True, eq=False)
class HighDynamicRange(ObservationOperator):
    """Contrast that saturates, obs shape = event shape; the gradient is 0 where it is saturated.

    Args:
        space: Space of the image, or its event shape.
        gain: factor of the contrast, dimensionless (default 2, as published).
        low: smallest value that the camera records, in the units of the image (published images: -1).
        high: largest value, likewise (1).

    Raises:
        ValueError: a gain that is not positive, or an empty range.
    """

    space: SpaceOrShape
    gain: float = 2.0
    low: float = 0.0
    high: float = 1.0

    def __post_init__(self) -> None:
        """Check the settings."""
        if not self.gain > 0 or not self.low < self.high:
            raise ValueError(f"gain={self.gain}, low={self.low}, high={self.high}; expected gain > 0 and low < high")

    def forward(self, x: Tensor) -> Tensor:
        """The clipped contrast."""
        middle = (self.low + self.high) / 2
        return (middle + self.gain * (x - middle)).clamp(self.low, self.high)

    def carry(self, positions: Tensor) -> Tensor:
        """The same places."""
        return positions

    def __repr__(self) -> str:
        return f"HighDynamicRange({space_name(self.space)}, gain={self.gain}, low={self.low}, high={self.high})"
