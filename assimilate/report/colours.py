"""Colours: maps for rain, for signed and for other fields, shared scales, and one colour per method.

Rain has the classes of a weather chart, in mm; signed fields have a diverging map around 0; everything else viridis.
Method colours are those of Okabe and Ito (2008), which people with colour-blindness can tell apart.
"""

from __future__ import annotations

import base64
import io
from dataclasses import dataclass
from typing import Any

import numpy as np
import xarray as xr

RAIN_LEVELS = (0.1, 0.5, 1.0, 2.0, 5.0, 10.0, 20.0, 40.0, 80.0)
RAIN_COLOURS = (
    "#f3f6f8", "#cfe6f5", "#9ccbec", "#5aa4d8", "#2b77b8", "#2f9e6e", "#f2d544", "#f39c34", "#d9432f", "#8e1e6b",
)  # fmt: skip
METHOD_COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00", "#6a51a3", "#8c564b", "#444444")
TRUTH_COLOUR = "#16202a"
NO_DATA = (226, 229, 232, 255)


@dataclass(frozen=True)
class Scale:
    """From values to colours.

    Args:
        kind: "rain", "signed", "sequential" or "spread".
        low: value of the first colour.
        high: value of the last colour.
        units: for the legend.
    """

    kind: str
    low: float
    high: float
    units: str

    def rgba(self, values: np.ndarray) -> np.ndarray:
        """Colours of values, uint8 (*shape, 4); NaN has the colour of no data."""
        from matplotlib.colors import BoundaryNorm, ListedColormap, Normalize

        if self.kind == "rain":
            cmap: Any = ListedColormap(RAIN_COLOURS)
            norm: Any = BoundaryNorm([-np.inf, *RAIN_LEVELS, np.inf], len(RAIN_COLOURS))
            coloured = cmap(np.clip(np.searchsorted(RAIN_LEVELS, np.nan_to_num(values), side="right"), 0, norm.N))
        else:
            cmap, norm = self.matplotlib()
            coloured = cmap(Normalize(self.low, self.high, clip=True)(np.nan_to_num(values)))
        out = (np.asarray(coloured) * 255).round().astype(np.uint8)
        out[~np.isfinite(values)] = NO_DATA
        return out

    def matplotlib(self) -> tuple[Any, Any]:
        """The same as a colour map and a norm for matplotlib."""
        import matplotlib as mpl
        from matplotlib.colors import BoundaryNorm, LinearSegmentedColormap, ListedColormap, Normalize

        if self.kind == "rain":
            cmap = ListedColormap(list(RAIN_COLOURS[1:-1])).with_extremes(under=RAIN_COLOURS[0], over=RAIN_COLOURS[-1])
            return cmap, BoundaryNorm(RAIN_LEVELS, cmap.N)
        if self.kind == "spread":
            purple = LinearSegmentedColormap.from_list(
                "spread", ["#f6f5fa", "#c9c2e3", "#8a78c0", "#54389b", "#2a0f5c"]
            )
            return purple, Normalize(self.low, self.high)
        name = "RdBu_r" if self.kind == "signed" else "viridis"
        return mpl.colormaps[name], Normalize(self.low, self.high)

    def legend(self) -> list[tuple[str, str]]:
        """Colour and text of each step of a legend."""
        if self.kind == "rain":
            texts = ["0", *(f"{level:g}" for level in RAIN_LEVELS)]
            return list(zip(RAIN_COLOURS, texts, strict=True))
        from matplotlib.colors import to_hex

        cmap, norm = self.matplotlib()
        values = np.linspace(self.low, self.high, 9)
        return [(to_hex(cmap(norm(v))), f"{v:.3g}" if k % 2 == 0 else "") for k, v in enumerate(values)]


def is_rain(field: xr.DataArray) -> bool:
    """Whether a field is an amount of precipitation in mm (kg m-2), by its CF attributes."""
    name = f"{field.attrs.get('standard_name', '')} {field.attrs.get('long_name', '')} {field.name}".lower()
    wet = any(word in name for word in ("precipitation", "rain", "lwe_thickness"))
    return wet and str(field.attrs.get("units", "")) in ("mm", "kg m-2", "kg/m2", "kg m**-2", "mm h-1", "mm/h")


def state_scale(field: xr.DataArray) -> Scale:
    """The scale of a field, from its truth or all estimates of it."""
    units = str(field.attrs.get("units", ""))
    if is_rain(field):
        return Scale("rain", RAIN_LEVELS[0], RAIN_LEVELS[-1], "mm" if units.startswith("kg") else units)
    values = field.values[np.isfinite(field.values)]
    low, high = np.quantile(values, [0.005, 0.995]) if values.size else (0.0, 1.0)
    if low < 0 < high and -low > 0.2 * high:
        limit = float(max(-low, high))
        return Scale("signed", -limit, limit, units)
    return Scale("sequential", float(low), float(high if high > low else low + 1.0), units)


def png(rgba: np.ndarray) -> str:
    """A small picture as a data URI; rows of the array go downwards."""
    from PIL import Image

    picture = Image.fromarray(rgba[..., :3]).quantize(64)
    buffer = io.BytesIO()
    picture.save(buffer, "PNG", optimize=True)
    return f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode('ascii')}"


def method_colour(index: int) -> str:
    """The colour of the method with this index."""
    return METHOD_COLOURS[index % len(METHOD_COLOURS)]
