"""How images and measurements lie in a Dataset: dims, coordinates, and what is shown of flat values.

By kind of values:

    image          ([channel], y, x), named and placed as the operator's Space or the measurement says
    inpainting     laid back into the picture, NaN where not seen
    k-space        complex (coil, ky, kx), 0 where not sampled
    sinogram       ([channel], view, detector), angles in degrees
    other          measured_0, measured_1...; named dims of the measurement as they are
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np
import torch
import xarray as xr
from torch import Tensor

from dynamics.conversion import grid_coords
from dynamics.space import Space
from imaging.measurement import CHANNEL, Measured, is_complex_image
from imaging.operators.inpainting import picture
from imaging.operators.phase_retrieval import PhaseRetrieval
from imaging.operators.tomography.line_integrals import LineIntegrals
from observations.base import ObservationOperator
from observations.sampling import Mask

_GRIDS = {1: ("x",), 2: ("y", "x"), 3: ("z", "y", "x")}


class Layout(NamedTuple):
    """Where values stand in a Dataset.

    Attributes:
        dims: names, without those of measurements and samples.
        coords: coordinates of these dims.
        show: `(*b, *values)` tensors to arrays `(*b, *dims)`.
    """

    dims: tuple[str, ...]
    coords: Mapping[str, Any]
    show: Callable[[Tensor], np.ndarray]


def image_layout(operator: ObservationOperator, measured: Measured) -> Layout:
    """The layout of the image; complex images are complex arrays without a channel."""
    event = operator.event_shape
    space, given = operator.space, measured.given
    grid = event[1:]
    names: tuple[str, ...] = _GRIDS.get(len(grid), tuple(f"axis_{k}" for k in range(len(grid))))
    coords: dict[str, Any] = {}
    if isinstance(space, Space) and len(space.grid) == len(grid):
        names, coords = space.grid, dict(grid_coords(space))
    elif operator.obs_shape == event or isinstance(operator, Mask):
        names, coords = _given(given, grid) or (names, coords)
    if CHANNEL in given.coords and given.sizes.get(CHANNEL) == event[0]:
        coords[CHANNEL] = given.coords[CHANNEL].variable
    if is_complex_image(operator):
        return Layout(names, coords, lambda x: _numpy(torch.complex(x[..., 0, :, :], x[..., 1, :, :])))
    if len(grid) and event[0] == 1:
        coords.pop(CHANNEL, None)
        axis = -len(event)
        return Layout(names, coords, lambda x: _numpy(x.squeeze(axis)))
    return Layout((CHANNEL, *names), coords, _numpy)


def observed_layout(operator: ObservationOperator, measured: Measured, image: Layout) -> Layout:
    """The layout of the measured values."""
    obs = operator.obs_shape
    if isinstance(operator, Mask) and len(operator.event_shape) == 3:
        return image._replace(show=lambda y: image.show(picture(operator, y)))
    to_kspace = getattr(operator, "to_kspace", None)
    if to_kspace is not None:
        one = obs[0] == 1
        dims: tuple[str, ...] = ("ky", "kx") if one else ("coil", "ky", "kx")
        return Layout(dims, {}, lambda y: _numpy(to_kspace(y).squeeze(-3) if one else to_kspace(y)))
    if obs == operator.event_shape:
        return image
    front = (CHANNEL,) if len(obs) == 3 and obs[0] > 1 else ()
    bare = len(obs) == 3 and obs[0] == 1

    def show(y: Tensor) -> np.ndarray:
        return _numpy(y.squeeze(-3) if bare else y)

    if isinstance(operator, LineIntegrals):
        return Layout((*front, "view", "detector"), _scanner(operator), show)
    if isinstance(operator, PhaseRetrieval):
        return Layout((*front, "frequency_y", "frequency_x"), {}, show)
    if len(obs) == 3:
        names, coords = _given(measured.given, obs[1:]) or (("measured_y", "measured_x"), {})
        # A coarse pixel and a fine one cannot share a dim.
        renamed = {n: f"measured_{n}" for n in names if n in image.dims}
        coords = {renamed.get(n, n): _renamed(c, renamed) for n, c in coords.items()}
        return Layout((*front, *(renamed.get(n, n) for n in names)), coords, show)
    return Layout(tuple(f"measured_{k}" for k in range(len(obs))), {}, _numpy)


def _given(given: xr.DataArray, grid: tuple[int, ...]) -> tuple[tuple[str, ...], dict[str, Any]] | None:
    """Names and coordinates of the measurement's last dims, where they are named and of these sizes."""
    dims = tuple(str(d) for d in given.dims[-len(grid) :])
    if len(dims) != len(grid) or any(d.startswith("axis_") for d in dims) or given.shape[-len(grid) :] != grid:
        return None
    coords = {str(n): c.variable for n, c in given.coords.items() if c.dims and set(map(str, c.dims)) <= set(dims)}
    return dims, coords


def _renamed(variable: Any, renamed: Mapping[str, str]) -> Any:
    return xr.Variable([renamed.get(str(d), str(d)) for d in variable.dims], variable.values, variable.attrs)


def _scanner(operator: LineIntegrals) -> dict[str, Any]:
    """Angles of the views and places of the detector cells, where the operator knows them."""
    coords: dict[str, Any] = {}
    angles = getattr(operator, "angles", None)
    if angles is not None and np.ndim(angles) == 1:
        degrees = np.rad2deg(np.asarray(angles))
        coords["view"] = ("view", degrees, {"units": "degree", "long_name": "angle of the view"})
    space = operator.space
    units = space.coords[space.grid[-1]].units if isinstance(space, Space) else ""
    labels = {"long_name": "place on the detector", **({"units": units} if units else {})}
    coords["detector"] = ("detector", np.asarray(operator.cells), labels)
    return coords


def _numpy(x: Tensor) -> np.ndarray:
    # A copy: the Dataset must not change when the tensor does.
    return np.array(x.detach().cpu().resolve_conj().numpy())
