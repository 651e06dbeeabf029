"""A measurement as a user holds it, and as an operator needs it.

Arrays, DataArrays and Datasets become tensors `(E, 1, *obs)`, E = number of measurements of one instrument (a dim
called `measurement`, or one more leading dim than the operator's values have). Values are never rescaled: what does not
fit the operator, the noise or the range of the prior's images is an error that says so. NaN = not measured.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
import torch
import xarray as xr
from torch import Tensor

from assimilate.errors import UserError
from assimilate.posterior.denoisers import Prior
from dynamics.errors import SpaceMismatch
from dynamics.space import Space
from imaging.operators.blur import Blur
from imaging.operators.dynamic_range import HighDynamicRange
from imaging.operators.quantisation import Quantise
from imaging.operators.resolution import Bicubic
from observations.averaging import BlockMean
from observations.base import ObservationOperator
from observations.noise import Noise
from observations.sampling import Identity, Mask

SEVERAL = "measurement"
"""The dim of several measurements."""
CHANNEL = "channel"
"""The dim of colours."""
FAR = 3.0
"""A measurement this many times stronger than that of the strongest image is taken for one in other units."""


class Measured(NamedTuple):
    """A measurement that fits its operator.

    Attributes:
        y: values, `(E, 1, *obs)`; NaN = not measured.
        several: whether the user gave several, with a dim for them.
        given: as it was given, with its labels, the dim of several first.
    """

    y: Tensor
    several: bool
    given: xr.DataArray


def labelled(measurement: Any) -> xr.DataArray:
    """A measurement as a DataArray, dims `([measurement], [channel], ...)`.

    Args:
        measurement: array, tensor, DataArray, or Dataset of one variable.

    Raises:
        UserError: a Dataset of several variables, no numbers, infinite values, or nothing but NaN.
    """
    if isinstance(measurement, xr.Dataset):
        if len(measurement.data_vars) != 1:
            names = ", ".join(map(str, measurement.data_vars)) or "none"
            raise UserError(f"the Dataset has the variables {names}; choose the measured one: dataset['name']")
        measurement = measurement[next(iter(measurement.data_vars))]
    if isinstance(measurement, xr.DataArray):
        front = [dim for dim in (SEVERAL, CHANNEL) if dim in measurement.dims]
        array = measurement.transpose(*front, ...)
    else:
        if isinstance(measurement, Tensor):
            measurement = measurement.detach().cpu().numpy()
        values = np.asarray(measurement)
        array = xr.DataArray(values, dims=[f"axis_{k}" for k in range(values.ndim)])
    if array.dtype.kind not in "fiubc":
        raise UserError(f"the measurement holds {array.dtype} values; expected real or complex numbers")
    values = array.values
    if values.size == 0 or bool(np.isnan(values).all()):
        raise UserError("the measurement holds no values but NaN (not measured)")
    if bool(np.isinf(values).any()):
        raise UserError("the measurement holds infinite values; NaN marks what was not measured")
    return array


def fitted(array: xr.DataArray, operator: ObservationOperator, *, dtype: torch.dtype) -> Measured:
    """The values as the operator observes them.

    Accepted are the operator's own values (a single channel may be left out), complex k-space for an operator that
    takes it apart (`to_values`), and for inpainting a whole image, of which the seen pixels are taken.

    Args:
        array: what `labelled` gave.
        operator: of the image.
        dtype: of the tensor.

    Raises:
        UserError: the shape does not fit, or complex values for an operator of real ones.
    """
    values = torch.from_numpy(np.ascontiguousarray(array.values))
    if values.is_complex():
        return _complex(array, values, operator, dtype)
    values = values.to(dtype)
    shapes = [operator.obs_shape]
    if isinstance(operator, Mask):
        shapes.append(operator.event_shape)
    for shape in shapes:
        for short in (shape, shape[1:] if len(shape) > 2 and shape[0] == 1 else shape):
            rows = _rows(array, tuple(values.shape), short)
            if rows is not None:
                y = values.reshape(rows, 1, *shape)
                whole = isinstance(operator, Mask) and shape == operator.event_shape
                return _checked(Measured(operator.forward(y) if whole else y, rows != 1 or _is_lead(array), array))
    expected = " or ".join(str(tuple(s)) for s in dict.fromkeys(shapes))
    raise UserError(
        f"the measurement has shape {tuple(array.shape)}; {operator!r} of images {operator.event_shape} observes "
        f"{expected} (several measurements: one more dim in front, called '{SEVERAL}' if dims have names)"
    )


def _checked(measured: Measured) -> Measured:
    empty = torch.isnan(measured.y).flatten(1).all(1)
    if bool(empty.any()):
        raise UserError(f"measurement {int(empty.nonzero()[0])} has no values where the operator looks: all are NaN")
    return measured


def _complex(array: xr.DataArray, values: Tensor, operator: ObservationOperator, dtype: torch.dtype) -> Measured:
    to_values = getattr(operator, "to_values", None)
    if to_values is None:
        raise UserError(f"the measurement is complex; {operator!r} observes real values (k-space: an MRI operator)")
    coils, grid = operator.obs_shape[0], tuple(operator.event_shape[1:])
    for short in ((coils, *grid), grid) if coils == 1 else ((coils, *grid),):
        rows = _rows(array, tuple(values.shape), short)
        if rows is not None:
            y = to_values(values.reshape(rows, 1, coils, *grid)).to(dtype)
            return _checked(Measured(y, rows != 1 or _is_lead(array), array))
    raise UserError(
        f"the k-space has shape {tuple(array.shape)}; {operator!r} takes {(coils, *grid)}: coils first, the zero "
        "frequency in the middle"
    )


def _rows(array: xr.DataArray, given: tuple[int, ...], shape: tuple[int, ...]) -> int | None:
    """How many measurements of `shape` an array holds; None if it holds none."""
    if given == tuple(shape) and not _is_lead(array):
        return 1
    fits = len(given) == len(shape) + 1 and given[1:] == tuple(shape)
    named = array.dims and not str(array.dims[0]).startswith("axis_")
    # A named dim that is not called `measurement` is not silently taken for one.
    return given[0] if fits and (_is_lead(array) or not named) else None


def _is_lead(array: xr.DataArray) -> bool:
    return bool(array.dims) and array.dims[0] == SEVERAL


def keeps_units(operator: ObservationOperator) -> bool:
    """Whether the measured values are in the units of the image, by what is known of the operator."""
    return isinstance(operator, Identity | Mask | Blur | BlockMean | Bicubic | HighDynamicRange | Quantise)


def check_units(array: xr.DataArray, operator: ObservationOperator, prior: Prior) -> str:
    """The units of the image: those of the prior, or else of a measurement that keeps them.

    Raises:
        UserError: both are stated and differ.
    """
    given = str(array.attrs.get("units", ""))
    space = getattr(prior, "space", getattr(getattr(prior, "prior", None), "space", None))
    known = space.fields[0].units if isinstance(space, Space) else ""
    if not keeps_units(operator):
        return known or "1"
    if given and known and given != known:
        raise UserError(
            f"the measurement is in {given!r}, the prior's images are in {known!r}; convert the measurement (and its "
            "noise), and set attrs['units']"
        )
    return known or given or "1"


def check_range(measured: Measured, operator: ObservationOperator, prior: Prior, noise: Noise) -> str:
    """Compare the measurement with that of the strongest image that the prior knows.

    The root mean square of the values is compared with those of A(x) for the constant images at both ends of the
    prior's range. For blur, tomography, k-space and all else whose response grows with the image, no image of the range
    gives much more.

    Returns:
        A note, empty where nothing is to be said.

    Raises:
        UserError: the measurement is `FAR` times stronger: it is in other units.
    """
    if prior.bounds is None:
        return "the prior states no range of values: the range of the measurement was not checked"
    y = measured.y
    with torch.no_grad():
        ends = [operator(torch.full((1, 1, *operator.event_shape), end, dtype=y.dtype)) for end in prior.bounds]
    seen = ~torch.isnan(y)
    std = _noise_std(noise, math.prod(operator.obs_shape))
    strongest = math.hypot(max(float(end.square().mean().sqrt()) for end in ends), std)
    found = float((torch.where(seen, y, 0.0).square().flatten(1).sum(1) / seen.flatten(1).sum(1)).max().sqrt())
    peak = float(torch.where(seen, y, 0.0).abs().max())
    low, high = prior.bounds
    if found > FAR * strongest:
        raise UserError(
            f"the measurement is far outside the prior's range: its values have a root mean square of {found:.4g}, and "
            f"images in [{low:g}, {high:g}] give at most {strongest:.4g}. {_advice(peak, high, operator)}"
        )
    if keeps_units(operator) and not isinstance(operator, HighDynamicRange):
        slack = 4 * std
        values = y[seen]
        outside = float(((values < low - slack) | (values > high + slack)).float().mean())
        if outside > 0.001:
            return (
                f"{100 * outside:.2g} % of the measured values lie outside the prior's range [{low:g}, {high:g}] by "
                "more than 4 standard deviations of the noise"
            )
    return ""


def _advice(peak: float, high: float, operator: ObservationOperator) -> str:
    if keeps_units(operator) and high == 1 and 1 < peak <= 2 * 65535:
        # Noise may reach beyond the ends.
        divisor = 255 if peak <= 2 * 255 else 65535
        return f"It looks like {8 if divisor == 255 else 16}-bit values: divide it, and the noise, by {divisor}."
    return "Convert it, and the noise, to the units of the prior's images."


def _noise_std(noise: Noise, size: int) -> float:
    """The root mean variance, 0 where it depends on the signal."""
    try:
        return math.sqrt(float(noise.variance(size, dtype=torch.float64).mean()))
    except TypeError:
        return 0.0


def check_prior(prior: Prior, operator: ObservationOperator) -> str:
    """Compare the prior's images with those of the operator.

    Returns:
        A note where a network works on another grid than it was trained on, else empty.

    Raises:
        SpaceMismatch: another number of channels, or another grid for a prior that is no network.
    """
    have, want = tuple(prior.event_shape), tuple(operator.event_shape)
    if have == want:
        return ""
    if len(have) == len(want) == 3 and have[0] == 1 and want[0] > 1:
        wrapper = "Complex(prior)" if hasattr(operator, "to_values") else f"Channels(prior, {want[0]})"
        raise SpaceMismatch(
            f"the prior has images {have}, the operator {want}; imaging.priors.{wrapper} uses it on each channel alone"
        )
    if len(have) == len(want) and have[0] == want[0] and hasattr(prior, "to"):
        return f"the prior was trained on images of {have[1:]} pixels and is used on {want[1:]}"
    if len(want) == 4 and len(have) == 3:
        return f"images {have} of the prior are slices of the volume {want}"
    raise SpaceMismatch(f"the prior has images {have}, the operator {want}; they must be the same")


def is_complex_image(operator: ObservationOperator) -> bool:
    """Whether the image's two channels are a real and an imaginary part (k-space operators)."""
    inner = operator
    while hasattr(inner, "inner"):
        inner = inner.inner
    return hasattr(inner, "to_kspace") and len(inner.event_shape) == 3 and inner.event_shape[0] == 2
