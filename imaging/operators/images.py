"""What an image operator works on: events `(channel, rows, columns)` on a full grid."""

from __future__ import annotations

from dynamics.space import Space
from observations.base import SpaceOrShape


def image_shape(space: SpaceOrShape, *, full: bool = True) -> tuple[int, int, int]:
    """The event shape as `(channel, rows, columns)`.

    Args:
        space: Space of the image, or its event shape.
        full: refuse a Space with no-data cells, for operators that mix neighbouring pixels.

    Raises:
        ValueError: the event has other than three dimensions, or it has no-data cells.
    """
    event = space.event_shape if isinstance(space, Space) else tuple(space)
    if len(event) != 3:
        raise ValueError(f"the event shape is {event}; an image operator needs (channel, rows, columns)")
    if full and isinstance(space, Space) and space.mask is not None:
        raise ValueError(
            "this operator mixes neighbouring pixels and the Space has no-data cells; crop the image or fill them"
        )
    channels, rows, columns = event
    return channels, rows, columns
