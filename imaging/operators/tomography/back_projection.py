r"""Filtered back-projection: the classical inversion of the Radon transform.

    x(r) = integral over the views of  (h * p_view)(t(r)) d theta,     H(f) = |f| up to the Nyquist frequency

Each view is filtered along the detector with the band-limited ramp, whose samples are known exactly,

    h(0) = 1 / (4 s^2),     h(k) = -1 / (pi k s)^2 for odd k,     0 for even k        (s = spacing of the detector)

and smeared back along its rays, by linear interpolation between detector cells. Sampling |f| in frequency instead
would lose the mean of the image. A fan has two more factors: the rays are weighted by the cosine of their opening
angle, and a pixel by the inverse square of its distance from the source.

Lines that are measured twice share their weight (`redundancy`), so any arc is used in full. An arc too short to see
every line gives the image with the streaks of a limited angle.

References:
    Kak, Slaney (1988), Principles of computerized tomographic imaging, chapter 3, https://doi.org/10.1137/1.9780898719277
    Noo, Defrise, Clackdoyle, Kudo (2002), Image reconstruction from fan-beam projections on less than a short scan,
    https://doi.org/10.1088/0031-9155/47/14/311 (the weights c / (c + c') of lines measured twice)
    Differs from the papers: the shared weights are used with the ramp filter in every arc, and in parallel scans.
"""

from __future__ import annotations

import math
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from dynamics.space import SpaceMismatch
from imaging.operators.tomography.fan import FanBeam
from imaging.operators.tomography.geometry import PixelGrid
from imaging.operators.tomography.parallel import ParallelBeam

Window = Literal["ramp", "hann"]

_FEATHER = 10.0
"""Degrees over which the weight of twice-measured lines falls to 0 at the ends of an arc (Noo et al. 2002)."""


def filtered_back_projection(operator: ParallelBeam | FanBeam, y: Tensor, window: Window = "ramp") -> Tensor:
    """Reconstruct images from sinograms, `(*b, channel, views, detectors)` -> `(*b, channel, rows, columns)`.

    Linear in `y`, differentiable, each row alone, in the units of the image. It is not the adjoint, nor exactly the
    inverse: the error falls with the spacing and the number of views.

    Args:
        operator: the scan, with its geometry and pixels.
        y: sinograms.
        window: "ramp" (all frequencies up to Nyquist), or "hann": the ramp times (1 + cos(pi f / f_Nyquist)) / 2,
            smoother, with less noise.

    Raises:
        SpaceMismatch: sinograms of another shape.
        ValueError: an unknown window, or values that are not finite: a filter spreads each over the whole view.
        TypeError: an operator that is no scan.
    """
    if not isinstance(operator, ParallelBeam | FanBeam):
        raise TypeError(f"filtered back-projection of {operator!r}; expected a ParallelBeam or a FanBeam")
    if tuple(y.shape[-3:]) != operator.obs_shape:
        raise SpaceMismatch(f"a sinogram of {operator!r} has shape (*b, *{operator.obs_shape}); given {tuple(y.shape)}")
    if not bool(torch.isfinite(y).all()):
        raise ValueError("the sinogram has values that are not finite; fill missing detector cells first")
    weight, start, spacing = redundancy(operator), float(operator.cells[0]), operator.pitch
    if isinstance(operator, FanBeam):
        # The formula is written for the virtual detector through the centre.
        start, spacing = start / operator.magnification, spacing / operator.magnification
        weight = weight * np.cos(operator.opening)
    step = math.radians(abs(operator.arc)) / operator.views
    filtered = ramp_filter(y * torch.from_numpy(weight).to(y), spacing, window) * step
    # Cells first and images last, so that a view reads whole rows of memory.
    views = filtered.reshape(-1, *filtered.shape[-2:]).permute(1, 2, 0).contiguous()
    smeared = _smear(views, operator, start, spacing)
    grid = operator.grid
    return smeared.mT.reshape(*y.shape[:-2], grid.rows, grid.columns)


def ramp_filter(y: Tensor, spacing: float, window: Window = "ramp") -> Tensor:
    """Filter along the last dimension with the band-limited ramp; the unit is that of `y` per length.

    Args:
        y: values at evenly spaced places, `(*b, n)`; 0 outside.
        spacing: distance between them.
        window: "ramp" or "hann".

    Raises:
        ValueError: an unknown window.
    """
    if window not in ("ramp", "hann"):
        raise ValueError(f"window={window!r}; expected 'ramp' or 'hann'")
    count = y.shape[-1]
    # Twice the length and more, so that the ends do not meet.
    padded = 2 ** math.ceil(math.log2(2 * count))
    place = torch.arange(padded, dtype=torch.float64, device=y.device)
    place = torch.minimum(place, padded - place)
    kernel = torch.where(place % 2 == 1, -1 / (math.pi * place.clamp_min(1) * spacing) ** 2, 0.0)
    kernel[0] = 1 / (4 * spacing**2)
    response = torch.fft.rfft(kernel).real * spacing
    if window == "hann":
        response = response * (0.5 + 0.5 * torch.cos(torch.linspace(0, math.pi, response.numel()).to(response)))
    return torch.fft.irfft(torch.fft.rfft(y, padded) * response.to(y), padded)[..., :count]


def redundancy(operator: ParallelBeam | FanBeam) -> np.ndarray:
    """Weights of the rays, float64 `(views, detectors)`; those of one line, seen from both sides, add up to 1.

    The ray (beta, gamma) is the line of (beta + 180 degrees + 2 gamma, -gamma). With c smooth on the arc and 0 outside,
    each has the weight c / (c + c').
    """
    arc = abs(operator.arc)
    if arc == 360:
        return np.full(operator.obs_shape[1:], 0.5)
    turn = math.copysign(1.0, operator.arc)
    gamma = np.rad2deg(operator.opening) if isinstance(operator, FanBeam) else np.zeros_like(operator.cells)
    # A view stands for the part of the arc around it; taken at its middle, no weight is 0 / 0.
    place = (np.arange(operator.views)[:, None] + 0.5) * arc / operator.views
    own = _feather(place, arc)
    other = _feather((place + turn * (180 + 2 * gamma)) % 360, arc)
    return own / (own + other)


def _feather(place: np.ndarray, arc: float) -> np.ndarray:
    """1 within the arc, falling smoothly to 0 at its ends, 0 outside; degrees."""
    inside = np.minimum(place, arc - place) / min(_FEATHER, arc / 2)
    return np.sin(0.5 * np.pi * inside.clip(0.0, 1.0)) ** 2


def _smear(views: Tensor, operator: ParallelBeam | FanBeam, start: float, spacing: float) -> Tensor:
    """Sum of the filtered views at the pixels, `(views, detectors, n)` -> `(pixels, n)`."""
    grid: PixelGrid = operator.grid
    x, y = (torch.from_numpy(line).to(views.device) for line in grid.centres())
    total = torch.zeros(x.numel(), views.shape[-1], dtype=views.dtype, device=views.device)
    last = views.shape[1] - 1
    for view, angle in zip(views, operator.angles.tolist(), strict=True):
        across = x * math.cos(angle) + y * math.sin(angle)
        nearness = torch.ones_like(across)
        if isinstance(operator, FanBeam):
            distance = 1 + (x * math.sin(angle) - y * math.cos(angle)) / operator.distances[0]
            across, nearness = across / distance, 1 / distance**2
        place = (across - start) / spacing
        low = place.floor()
        part = place - low
        for index, weight in ((low, 1 - part), (low + 1, part)):
            weight = torch.where((index >= 0) & (index <= last), weight * nearness, 0.0).to(views)
            rows = view.index_select(0, index.clamp(0, last).long())
            total = torch.addcmul(total, rows, weight[:, None])
    return total
