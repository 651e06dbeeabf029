"""An operator by name: which image does it look at?

    keeps the grid       the image is as large as the measurement            blur, inpainting, HDR, quantise
    coarsens it          `factor` times larger, pixel centres between        super-resolution, bicubic
    k-space              as large as the k-space, one or two channels        mri...
    anything else        `shape=`, or the shape of the prior's images        tomography, phase retrieval

Coordinates of a labelled measurement become those of the image, so that pixel sizes and units are kept.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import xarray as xr

from assimilate.errors import UserError
from dynamics.space import Coordinate, Field, Space
from imaging.measurement import CHANNEL, SEVERAL
from imaging.operators import build_operator, operator_settings
from observations.base import ObservationOperator, SpaceOrShape
from observations.sampling import Mask

SAME_GRID = ("identity", "inpainting", "box-inpainting", "gaussian-blur", "motion-blur", "hdr", "quantise")
COARSER = ("super-resolution", "bicubic")
MASKED = ("inpainting", "box-inpainting")


def find_operator(
    name: str,
    measurement: xr.DataArray,
    *,
    prior_shape: tuple[int, ...],
    shape: Sequence[int] | None = None,
    mask: Any = None,
    settings: Mapping[str, Any] | None = None,
    prior_units: str = "",
) -> ObservationOperator:
    """The operator of a name, for the image that the measurement is one of.

    Args:
        name: key of `imaging.operators.OPERATORS`, or "module:Class".
        measurement: what `labelled` gave.
        prior_shape: of the prior's images, `(channel, rows, columns)`.
        shape: of the image, where it does not follow: `(rows, columns)` or `(channel, rows, columns)`.
        mask: True where a pixel is seen (inpainting) or a point of k-space is sampled; with "inpainting" and without
            a mask, NaN in the measurement says what is missing, if there is any.
        settings: of the operator.
        prior_units: units of the prior's images.

    Raises:
        UnknownName: no such operator.
        UserError: settings that it refuses, a mask for an operator without one, or a shape that does not fit.
    """
    settings = dict(settings or {})
    if name == "mri" and mask is not None:
        # The name alone stands for a simulated mask.
        name = "imaging.operators.magnetic_resonance.scanner:MagneticResonance"
    accepted = operator_settings(name)
    space = image_space(name, measurement, prior_shape, shape, settings, prior_units)
    if name in MASKED:
        seen = mask
        if seen is None and not settings and _pictured(measurement, space) and measurement.isnull().any():
            seen = _finite(measurement)
        if seen is not None:
            if settings:
                raise UserError(f"operator '{name}': a mask says what is seen; leave out {', '.join(settings)}")
            return _mask(space, seen)
    elif mask is not None:
        if "mask" not in accepted:
            raise UserError(f"operator '{name}' takes no mask; 'inpainting' does")
        settings["mask"] = np.asarray(mask).astype(bool)
    return build_operator(name, space, **settings)


def image_space(
    name: str,
    measurement: xr.DataArray,
    prior_shape: tuple[int, ...],
    shape: Sequence[int] | None,
    settings: Mapping[str, Any],
    units: str = "",
) -> SpaceOrShape:
    """The Space of the image where the measurement has coordinates for it, else its event shape.

    Raises:
        UserError: see `find_operator`.
    """
    channels = prior_shape[0]
    if shape is not None:
        event = tuple(int(side) for side in shape)
        if len(event) not in (2, 3, 4) or any(side < 1 for side in event):
            raise UserError(f"shape={tuple(shape)}; expected (rows, columns) or (channel, rows, columns)")
        event = (channels, *event) if len(event) == 2 else event
        same = name in SAME_GRID and event[1:] == tuple(measurement.shape[-2:])
        return _labelled_space(measurement, event, 1, units) if same else event
    if name in SAME_GRID or name in COARSER:
        factor = 1 if name in SAME_GRID else _factor(name, settings)
        event = _picture_shape(measurement, channels, name)
        event = (event[0], *(factor * side for side in event[1:]))
        return _labelled_space(measurement, event, factor, units)
    if measurement.dtype.kind == "c" and measurement.ndim >= 2:
        return (channels if channels <= 2 else 1, *(int(s) for s in measurement.shape[-2:]))
    return tuple(prior_shape)


def _picture_shape(measurement: xr.DataArray, channels: int, name: str) -> tuple[int, int, int]:
    dims = [d for d in measurement.dims if d != SEVERAL]
    sizes = [measurement.sizes[d] for d in dims]
    if len(dims) == 2:
        return 1, sizes[0], sizes[1]
    named = CHANNEL in dims
    if len(dims) == 3 and (named or sizes[0] == channels):
        return sizes[0], sizes[1], sizes[2]
    if len(dims) == 3 and channels == 1:
        return 1, sizes[1], sizes[2]
    if len(dims) == 4:
        return sizes[1], sizes[2], sizes[3]
    raise UserError(
        f"operator '{name}' works on pictures; the measurement has shape {tuple(measurement.shape)}: expected "
        "(rows, columns), (channel, rows, columns), or several of those; give shape=... otherwise"
    )


def _factor(name: str, settings: Mapping[str, Any]) -> int:
    factor = settings.get("factor", operator_settings(name)["factor"].default)
    if not isinstance(factor, int) or factor < 1:
        raise UserError(f"operator '{name}': factor={factor!r}; expected a whole number of at least 1")
    return factor


def _labelled_space(measurement: xr.DataArray, event: tuple[int, ...], factor: int, units: str) -> SpaceOrShape:
    """A Space with the measurement's coordinates, refined; the bare shape if it has none."""
    dims = [str(d) for d in measurement.dims[-2:]]
    coords: dict[str, Coordinate] = {}
    for dim, size in zip(dims, event[-2:], strict=True):
        if dim not in measurement.coords:
            return event
        given = measurement.coords[dim]
        if given.dtype.kind not in "fiu" or given.size < 2:
            return event
        values = refined(given.values.astype(np.float64), factor)
        if values.size != size:
            return event
        units_of, standard, long = (str(given.attrs.get(key, "")) for key in ("units", "standard_name", "long_name"))
        coords[dim] = Coordinate(values, (dim,), units_of, standard, long)
    front: tuple[str, ...] = ()
    if event[0] > 1:
        front = (CHANNEL,)
        coords[CHANNEL] = Coordinate.count(CHANNEL, event[0])
    name = str(measurement.attrs.get("long_name", "image"))
    field = Field("image", units or str(measurement.attrs.get("units", "1")), (*front, *dims), long_name=name)
    return Space((field,), coords, channel_dims=front)


def refined(values: np.ndarray, factor: int) -> np.ndarray:
    """Centres of `factor` pixels in each of the given evenly spaced ones."""
    if factor == 1:
        return values
    step = (values[-1] - values[0]) / (len(values) - 1)
    inside = (np.arange(factor) + 0.5) / factor - 0.5
    return (values[:, None] + step * inside[None, :]).ravel()


def _pictured(measurement: xr.DataArray, space: SpaceOrShape) -> bool:
    event = space.event_shape if isinstance(space, Space) else tuple(space)
    return tuple(measurement.shape[-2:]) == event[1:]


def _finite(measurement: xr.DataArray) -> np.ndarray:
    """What all measurements and channels see."""
    seen = ~np.isnan(measurement.values)
    return seen.reshape(-1, *seen.shape[-2:]).any(0)


def _mask(space: SpaceOrShape, seen: Any) -> Mask:
    try:
        return Mask(space, np.asarray(seen).astype(bool))
    except ValueError as error:
        raise UserError(f"mask: {error}") from error
