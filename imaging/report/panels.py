"""What is shown of a reconstruction: one row of pictures for each measurement, and the colours of each kind.

Images are grey (or red, green and blue), on one scale for measurement, mean, sample and truth where they have one unit;
spreads are purple from 0; residuals and errors are blue and red around 0. Of complex values the magnitude is shown, of
k-space its logarithm. Row 0 is the top of a picture.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import xarray as xr

from assimilate.report.colours import NO_DATA, Scale
from imaging.measurement import CHANNEL, SEVERAL

MAX_ROWS = 6
"""At most this many measurements are drawn."""
RESIDUAL_LIMIT = 4.0
"""Ends of the scale of whitened residuals, in standard deviations of the noise."""


@dataclass(frozen=True)
class Grey(Scale):
    """A grey scale; `kind` is "grey"."""

    def matplotlib(self) -> tuple[Any, Any]:
        """The colour map and the norm."""
        import matplotlib as mpl
        from matplotlib.colors import Normalize

        return mpl.colormaps["gray"], Normalize(self.low, self.high)


@dataclass(frozen=True)
class Panel:
    """One picture.

    Args:
        key: for file names.
        title: for people.
        values: `(rows, columns)`, or `(rows, columns, 3)` for colours on the scale.
        scale: of the values.
        note: a few words or a number below it.
    """

    key: str
    title: str
    values: np.ndarray
    scale: Scale
    note: str = ""

    @property
    def rgb(self) -> np.ndarray:
        """Colours, uint8 `(rows, columns, 3)`."""
        if self.values.ndim == 2:
            return self.scale.rgba(self.values)[..., :3]
        span = self.scale.high - self.scale.low
        unit = np.clip((np.nan_to_num(self.values) - self.scale.low) / span, 0, 1)
        colours = (255 * unit).round().astype(np.uint8)
        colours[~np.isfinite(self.values).all(-1)] = NO_DATA[:3]
        return colours


def panels_of(result: xr.Dataset) -> list[list[Panel]]:
    """The pictures of a result, one row for each measurement."""
    if SEVERAL not in result["image_mean"].dims:
        return [_row(result)]
    return [_row(result.isel({SEVERAL: k})) for k in range(min(MAX_ROWS, result.sizes[SEVERAL]))]


def _row(result: xr.Dataset) -> list[Panel]:
    units = str(result["image_mean"].attrs.get("units", "1"))
    images = [result[n] for n in ("image_mean", "truth") if n in result]
    shown = np.concatenate([_plane(image).ravel() for image in images])
    low, high = (float(q) for q in np.nanquantile(shown, [0.002, 0.998]))
    limits = _limits(str(result.attrs.get("prior_range", "")), low, high)
    grey = Grey("grey", *limits, units)
    panels = [_measured(result, grey)]
    if "truth" in result:
        panels.append(Panel("truth", "Truth", _plane(result["truth"]), grey))
    point = "image_sample" not in result
    title = "Reconstruction" if point else "Mean"
    panels.append(Panel("mean", title, _plane(result["image_mean"]), grey, _score(result)))
    if np.iscomplexobj(result["image_mean"].values):
        phase = Scale("signed", -np.pi, np.pi, "rad")
        panels.append(Panel("phase", "Phase of the mean", np.angle(result["image_mean"].values), phase))
    if not point:
        panels.append(Panel("sample", "One sample", _plane(result["image_sample"].isel(sample=0)), grey))
    if "image_std" in result:
        std = _flat(result["image_std"])
        panels.append(Panel("std", "Standard deviation", std, _spread(std, units), f"mean {std.mean():.3g}"))
        width = _flat(result["image_upper"] - result["image_lower"])
        title = f"{100 * float(result.attrs.get('interval', 0.9)):g} % interval"
        panels.append(Panel("interval", title, width, _spread(width, units), f"mean width {width.mean():.3g}"))
    white = _flat(_real(result["residual"]))
    residual = Scale("signed", -RESIDUAL_LIMIT, RESIDUAL_LIMIT, "std of the noise")
    chi = float(np.nanmean(np.abs(result["residual"].values) ** 2))
    panels.append(Panel("residual", "Residual", white, residual, f"mean square {_mean_square(result, chi):.3g}"))
    if "image_error" in result:
        error = _flat(_real(result["image_error"]))
        limit = float(np.quantile(np.abs(error), 0.995)) or 1.0
        signed = Scale("signed", -limit, limit, units)
        panels.append(Panel("error", "Error of the mean", error, signed, f"RMSE {float(result['rmse']):.3g}"))
    return panels


def _measured(result: xr.Dataset, grey: Grey) -> Panel:
    """The measurement; on the image's scale where it is a picture of the same kind."""
    measured = result["measured"]
    title = "Measurement"
    if measured.dims == result["image_mean"].dims or "measured_y" in measured.dims:
        return Panel("measurement", title, _plane(measured), grey)
    if np.iscomplexobj(measured.values):
        size = _flat(abs(measured))
        level = np.log10(np.maximum(size, 1e-4 * float(size.max())))
        shown = np.where(size > 0, level, np.nan)
        scale = Grey("grey", float(np.nanmin(shown)), float(np.nanmax(shown)), "log10")
        return Panel("measurement", "k-space, magnitude", shown, scale)
    values = _flat(measured)
    low, high = (float(q) for q in np.nanquantile(values, [0.002, 0.998]))
    scale = Grey("grey", low, high if high > low else low + 1.0, str(measured.attrs.get("units", "")))
    return Panel("measurement", title, values, scale)


def _plane(image: xr.DataArray) -> np.ndarray:
    """A picture, colours last; of other numbers of channels and of volumes the first part is shown."""
    values = _real(image)
    if CHANNEL in values.dims and values.sizes[CHANNEL] == 3 and values.ndim == 3:
        return values.transpose(..., CHANNEL).values
    return _flat(values)


def _flat(image: xr.DataArray) -> np.ndarray:
    """Two dims: the mean over channels, the middle of volumes, coils next to each other; 1-D values as a strip."""
    values = image.mean(CHANNEL) if CHANNEL in image.dims else image
    array = values.values
    if array.ndim == 1:
        return array[None]
    if values.dims[0] == "coil":
        return np.concatenate(list(array), 1)
    while array.ndim > 2:
        array = array[array.shape[0] // 2]
    return array


def _real(image: xr.DataArray) -> xr.DataArray:
    return abs(image) if np.iscomplexobj(image.values) else image


def _spread(values: np.ndarray, units: str) -> Scale:
    top = float(np.nanquantile(values, 0.995))
    return Scale("spread", 0.0, top if top > 0 else 1.0, units)


def _limits(stated: str, low: float, high: float) -> tuple[float, float]:
    """The prior's range, if the image fills a good part of it; else that of the image."""
    parts = stated.split(" to ")
    if len(parts) == 2:
        ends = float(parts[0]), float(parts[1])
        if (high - low) > 0.4 * (ends[1] - ends[0]):
            return ends
    return low, high if high > low else low + 1.0


def _score(result: xr.Dataset) -> str:
    return f"PSNR {float(result['psnr']):.1f} dB" if "psnr" in result else ""


def _mean_square(result: xr.Dataset, pooled: float) -> float:
    """Of a complex residual, per real value."""
    return pooled / 2 if np.iscomplexobj(result["residual"].values) else pooled
