"""Phase retrieval: the amplitudes of an image's Fourier transform, without their phases.

    y = | F pad(x) |,     F the orthonormal Fourier transform, so that |y| = |x|

Padding with zeros (oversampling) makes the problem solvable, up to what the amplitudes cannot tell: a shift of the
picture within the padded frame, its image in a point (turned by 180 degrees) and its sign. A solution may be any of
these; runs from several seeds are compared by their residual, as the published best of four.

For a real image the amplitudes at k and -k are equal. All are observed, as published, each with its own noise.

References:
    Fienup (1982), Phase retrieval algorithms: a comparison, https://doi.org/10.1364/AO.21.002758
    Chung et al. (2023), Diffusion posterior sampling, https://arxiv.org/abs/2209.14687 (oversampling 2)
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from imaging.operators.images import image_shape
from observations.base import ObservationOperator, SpaceOrShape, space_name


@dataclass(frozen=True, eq=False)
class PhaseRetrieval(ObservationOperator):
    """Fourier amplitudes of each channel, `(*b, channel, rows, columns)` -> `(*b, channel, padded, padded)`.

    The frequency 0 is the first value along each side. At an amplitude of exactly 0, where |z| has a corner, the
    gradient is 0 (the middle of the subgradients): finite everywhere, but an image that is exactly 0 gets no push.

    Args:
        space: Space of the image, or `(channel, rows, columns)`.
        oversample: zeros of `oversample / 8` times the side are added on each of the four sides (default 2, as
            published: 256 pixels become 384).

    Raises:
        ValueError: a negative oversampling, or the Space has no-data cells.
    """

    space: SpaceOrShape
    oversample: float = 2.0

    def __post_init__(self) -> None:
        """Count the zeros."""
        _, rows, columns = image_shape(self.space)
        if not self.oversample >= 0:
            raise ValueError(f"oversample={self.oversample}; expected a number >= 0 (0 adds no zeros)")
        object.__setattr__(self, "margins", tuple(int(self.oversample / 8 * side) for side in (rows, columns)))

    def forward(self, x: Tensor) -> Tensor:
        """Amplitudes, >= 0."""
        down, across = self.margins  # type: ignore[attr-defined]
        padded = torch.nn.functional.pad(x, (across, across, down, down))
        return torch.fft.fft2(padded, norm="ortho").abs()

    def __repr__(self) -> str:
        return f"PhaseRetrieval({space_name(self.space)}, oversample={self.oversample})"
