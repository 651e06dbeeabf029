"""Storms: the hidden state of the rain simulator, and the rain that it makes.

Two Gaussian fields on a periodic canvas, larger than the domain, are carried by a flow and cut off at a threshold:

    u(p, t) = sum_i w_i(t) G(X_i(p, t)) + ring(r) - decay(r) + cells(p, t)
    rate    = scale (exp(growth (u - threshold + jump)) - 1)  where u > threshold, else exactly 0

* G mixes two Matern spectra (outer and inner correlation range, each with its roughness), stretched along one
  direction: bands. A second, small-scale field makes convective cells inside the rain.
* X_i(p, t) is where the flow carried the air at p from: a mean wind whose direction turns, a shear, and a vortex with a
  core, all moving with the wind. Old rain winds up into spiral bands. Deformation grows without bound, so two copies
  (phases) i, half a period apart, start again in turn while their weight w_i = |sin| is zero; w_0^2 + w_1^2 = 1.
* Between hours each Fourier mode keeps exp(-1 / lifetime(k)), small scales the least, and fresh noise replaces the
  rest: cells are born, grow and decay.
* The rain of an hour is the mean of the rate over `SUBSTEPS` positions of the flow, so fast rain is smeared along its
  way as an hourly sum is.

Every storm has its own numbers, drawn from wide ranges (`StormRanges`): what is trained on them must not expect one
kind of storm. Lengths are in grid cells, times in hours, rates in mm per hour.

References:
    Neyret (2003), Advected textures, https://doi.org/10.2312/SCA03/147-153 (phases that restart in turn)
    Seed (2003), A dynamic and spatial scaling approach to advection forecasting,
    https://doi.org/10.1175/1520-0450(2003)042<0381:ADASSA>2.0.CO;2 (lifetimes by scale)
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from dynamics.random import Rng, normal, uniform

SUBSTEPS = 8
"""Positions of the flow in one hourly sum; 12 cells per hour then move 1.5 cells from one to the next."""
MARGIN = 32
"""Cells that the canvas is larger than the domain at least, so that its periodicity does not show."""
SMALLEST_RATE = 1e-3
LARGEST_LOG_RATE = 5.2
"""log(1 + 180 mm): beyond it an hourly sum saturates smoothly."""

# The order is the order of the random numbers: appending keeps every storm of a seed, inserting does not.
_DRAWN = (
    *("outer_range", "inner_range", "outer_roughness", "inner_roughness", "inner_weight", "elongation", "angle", "wet"),
    *("peak", "growth", "wind", "wind_angle", "turn", "shear", "shear_angle", "vortex", "speed", "core", "y", "x"),
    *("period", "phase", "cells", "cell_range", "cell_gate", "jump", "eyewall", "decay", "lifetime", "sense", "fall"),
)


@dataclass(frozen=True)
class StormRanges:
    """Ranges from which each storm draws its numbers; lengths in cells, times in hours.

    Args:
        outer_range: correlation range of the rain areas (log-uniform).
        inner_range: correlation range of the texture inside them (log-uniform).
        outer_roughness: Matern smoothness of the former; the spectrum falls as k^(-2 roughness - 2).
        inner_roughness: that of the latter.
        inner_weight: share of the texture in the variance.
        elongation: ratio of the ranges along and across the bands (log-uniform).
        wet: share of the domain with rain at the start; above 1 counts as 1.
        peak: log(1 + mm) that 0.5 % of the domain exceeds at the start.
        growth: steepness of the rate in the latent field (log-uniform): from a plateau to sharp peaks.
        wind: speed of the mean wind, cells per hour.
        vortex: probability that a storm turns about a centre.
        speed: largest speed of that vortex, roughly, cells per hour (log-uniform).
        core: radius of its core (log-uniform).
        lifetime: memory of the largest scales (log-uniform).
        period: hours after which wound-up rain starts anew (log-uniform).
    """

    outer_range: tuple[float, float] = (8.0, 60.0)
    inner_range: tuple[float, float] = (2.0, 10.0)
    outer_roughness: tuple[float, float] = (0.4, 1.5)
    inner_roughness: tuple[float, float] = (0.3, 1.0)
    inner_weight: tuple[float, float] = (0.0, 0.6)
    elongation: tuple[float, float] = (1.0, 4.0)
    wet: tuple[float, float] = (0.08, 1.1)
    peak: tuple[float, float] = (0.8, 4.6)
    growth: tuple[float, float] = (0.3, 2.2)
    wind: tuple[float, float] = (0.0, 12.0)
    vortex: float = 0.45
    speed: tuple[float, float] = (2.0, 18.0)
    core: tuple[float, float] = (3.0, 20.0)
    lifetime: tuple[float, float] = (1.0, 8.0)
    period: tuple[float, float] = (2.0, 8.0)


class Storm(NamedTuple):
    """A batch of storms, leading dims `(*b,)`: what the rain alone does not show."""

    numbers: dict[str, Tensor]
    """One number a storm, each `(*b, 1, 1)`."""
    spectra: Tensor
    """Amplitudes of the two latent fields, `(*b, 1, 2, my, mx // 2 + 1)`."""
    latent: Tensor
    """Fourier coefficients, `(*b, phase, field, my, mx // 2 + 1)`."""
    threshold: Tensor
    """Latent value at the edge of the rain, `(*b, 1, 1)`."""
    scale: Tensor
    """Rate in mm per hour of one unit of exp(growth ...) - 1, `(*b, 1, 1)`."""
    hour: int


@dataclass(frozen=True)
class StormLaw:
    """Draws storms on a domain of `ny` by `nx` cells and lets them live.

    Args:
        ny: cells in y.
        nx: cells in x.
        ranges: from where the numbers of a storm are drawn.
    """

    ny: int
    nx: int
    ranges: StormRanges = StormRanges()

    @property
    def canvas(self) -> tuple[int, int]:
        """Size of the periodic canvas: the domain and a margin, in multiples of 32 for the Fourier transforms."""
        my, mx = (32 * math.ceil((n + MARGIN) / 32) for n in (self.ny, self.nx))
        return my, mx

    def begin(
        self,
        shape: tuple[int, ...],
        *,
        rng: Rng,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ) -> Storm:
        """New storms with leading dims `shape`, whose rain at the start has the drawn area and peak."""
        p = self.numbers(shape, rng=rng, dtype=dtype, device=device)
        spectra = self.spectra(p)
        one = torch.ones_like(p["wet"])
        storm = Storm(p, spectra, self._noise(spectra, rng), 0.0 * one, one, 0)
        u = self._excess(storm, self._textures(storm.latent), 0.5)
        ordered = u[..., ::2, ::2].flatten(-2).sort(-1).values
        last = ordered.shape[-1] - 1
        threshold = ordered.gather(-1, ((1.0 - p["wet"]) * last).long().squeeze(-1)).unsqueeze(-1)
        top = ordered[..., int(0.995 * last), None, None] - threshold
        rate = torch.expm1((p["growth"] * (top + p["jump"])).clamp(max=12.0)).clamp_min(SMALLEST_RATE)
        return storm._replace(threshold=threshold, scale=torch.expm1(p["peak"]) / rate)

    def evolve(self, storm: Storm, *, rng: Rng) -> tuple[Storm, Tensor]:
        """The storm an hour later, and the rain of that hour in log(1 + mm), `(*b, 1, ny, nx)`."""
        p, textures = storm.numbers, self._textures(storm.latent)
        total = torch.zeros_like(p["wet"])
        for i in range(SUBSTEPS):
            u = self._excess(storm, textures, storm.hour + (i + 0.5) / SUBSTEPS) - storm.threshold
            rate = torch.expm1((p["growth"] * (u + p["jump"])).clamp(max=14.0)).clamp_min(0.0)
            total = total + storm.scale * torch.where(u > 0, rate, torch.zeros_like(rate))
        rain = LARGEST_LOG_RATE * torch.tanh(torch.log1p(total / SUBSTEPS) / LARGEST_LOG_RATE)
        keep = self._memory(p)
        latent = keep * storm.latent + (1.0 - keep**2).clamp_min(0.0).sqrt() * self._noise(storm.spectra, rng)
        fresh = self._noise(storm.spectra, rng)
        restarted = self._age(p, storm.hour + 1) < self._age(p, storm.hour)
        latent = torch.where(restarted.unsqueeze(-1), fresh, latent)
        return storm._replace(latent=latent, hour=storm.hour + 1), rain.unsqueeze(-3)

    def numbers(
        self,
        shape: tuple[int, ...],
        *,
        rng: Rng,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ) -> dict[str, Tensor]:
        """The numbers of new storms, each `(*shape, 1, 1)`."""
        drawn = uniform(rng, (*shape, len(_DRAWN), 1, 1), dtype=dtype, device=device)
        raw = {name: drawn[..., i, :, :] for i, name in enumerate(_DRAWN)}
        of = self.ranges

        def even(name: str, low: float, high: float) -> Tensor:
            return low + (high - low) * raw[name]

        def log(name: str, low: float, high: float) -> Tensor:
            return low * (high / low) ** raw[name]

        whirls = (raw["vortex"] < of.vortex).to(dtype)
        # Three of four storms turn as in the northern hemisphere where y runs south, like the rows of a picture.
        sense = torch.where(raw["sense"] < 0.75, -1.0, 1.0).to(dtype)
        p = {name: log(name, *getattr(of, name)) for name in ("outer_range", "inner_range", "elongation", "growth")}
        p |= {name: log(name, *getattr(of, name)) for name in ("core", "lifetime", "period")}
        p |= {name: even(name, *getattr(of, name)) for name in ("outer_roughness", "inner_roughness")}
        p |= {name: even(name, *getattr(of, name)) for name in ("inner_weight", "peak", "wind")}
        return p | {
            "wet": even("wet", *of.wet).clamp(max=0.999),
            "angle": even("angle", 0.0, math.pi),
            "wind_angle": even("wind_angle", -math.pi, math.pi),
            "turn": even("turn", -0.15, 0.15),
            "shear": even("shear", -0.15, 0.15),
            "shear_angle": even("shear_angle", -math.pi, math.pi),
            "phase": raw["phase"],
            "cells": even("cells", -1.0, 1.5).clamp_min(0.0),
            "cell_range": log("cell_range", 1.4, 4.0),
            "cell_gate": even("cell_gate", -2.0, 2.0),
            "jump": even("jump", -0.25, 0.25).clamp_min(0.0),
            "speed": whirls * sense * log("speed", *of.speed),
            "y": even("y", -0.3, 1.3) * self.ny,
            "x": even("x", -0.3, 1.3) * self.nx,
            "eyewall": whirls * even("eyewall", -0.5, 2.0).clamp_min(0.0),
            "decay": whirls * even("decay", -0.5, 2.0).clamp_min(0.0),
            "fall": log("fall", 20.0, 80.0),
        }

    def spectra(self, p: dict[str, Tensor]) -> Tensor:
        """Amplitudes of the rain field and of the cells' field, unit variance each, `(*b, 1, 2, my, mx // 2 + 1)`."""
        ky, kx = self._wavenumbers(p["angle"])
        cosine, sine, stretch = torch.cos(p["angle"]), torch.sin(p["angle"]), p["elongation"].sqrt()
        k2 = ((cosine * kx + sine * ky) * stretch) ** 2 + ((cosine * ky - sine * kx) / stretch) ** 2
        share = p["inner_weight"]
        rain = (1 - share) * _matern(k2, p["outer_range"], p["outer_roughness"])
        rain = rain + share * _matern(k2, p["inner_range"], p["inner_roughness"])
        cells = _matern(ky**2 + kx**2, p["cell_range"], torch.full_like(share, 2.0))
        power = torch.stack([rain, cells], -3)
        # A real transform stores half of the plane: all but its first and last column stand for two.
        twice = torch.full_like(kx[0], 2.0)
        twice[0] = twice[-1] = 1.0
        power = power / (power * twice).sum((-1, -2), keepdim=True)
        return (power.sqrt() * math.sqrt(math.prod(self.canvas))).unsqueeze(-4)

    def origin(self, p: dict[str, Tensor], y: Tensor, x: Tensor, age: Tensor) -> tuple[Tensor, Tensor]:
        """Where the air at (y, x), relative to the storm's centre, was `age` hours ago (the centre's own way aside)."""
        spin = p["speed"] / p["core"] * (1.0 + (x**2 + y**2 + 1e-6) / p["core"] ** 2) ** -0.8
        turn = -spin * age
        cosine, sine = torch.cos(turn), torch.sin(turn)
        x, y = cosine * x - sine * y, sine * x + cosine * y
        along_x, along_y = torch.cos(p["shear_angle"]), torch.sin(p["shear_angle"])
        slip = (along_x * y - along_y * x) * p["shear"] * age
        return y - along_y * slip, x - along_x * slip

    def travelled(self, p: dict[str, Tensor], hour: float) -> tuple[Tensor, Tensor]:
        """Way of the storm's centre in `hour` hours, (y, x): the integral of a wind that turns at a constant rate."""
        turn = torch.where(p["turn"].abs() < 1e-3, torch.full_like(p["turn"], 1e-3), p["turn"])
        angle, radius = p["wind_angle"], p["wind"] / turn
        return (
            radius * (torch.cos(angle) - torch.cos(angle + turn * hour)),
            radius * (torch.sin(angle + turn * hour) - torch.sin(angle)),
        )

    def _excess(self, storm: Storm, textures: Tensor, hour: float) -> Tensor:
        """The latent field u on the domain, `(*b, ny, nx)`."""
        p = {name: value.unsqueeze(-3) for name, value in storm.numbers.items()}  # room for the phases
        like = p["wet"]
        way_y, way_x = self.travelled(p, hour)
        y = torch.arange(self.ny, device=like.device, dtype=like.dtype)[:, None] - p["y"] - way_y
        x = torch.arange(self.nx, device=like.device, dtype=like.dtype)[None] - p["x"] - way_x
        age = self._age(storm.numbers, hour)
        from_y, from_x = self.origin(p, y, x, age)
        my, mx = self.canvas
        points = torch.stack([(from_x % mx) / mx * 2 - 1, (from_y % my) / my * 2 - 1], -1)
        carried = functional.grid_sample(textures.flatten(0, -4), points.flatten(0, -4), align_corners=True)
        weight = torch.sin(math.pi * age / p["period"]).abs().unsqueeze(-3)
        carried = (carried.reshape(*points.shape[:-3], 2, self.ny, self.nx) * weight).sum(-4)
        rain, cells = carried[..., 0, :, :], carried[..., 1, :, :]
        p, r = storm.numbers, (x**2 + y**2 + 1e-6).sqrt().squeeze(-3)
        s = r / p["core"]
        ring = torch.exp(-0.5 * ((s - 1.2) / 0.5) ** 2) - 1.5 * torch.exp(-0.5 * (s / 0.5) ** 2)
        rain = rain + p["eyewall"] * ring - p["decay"] * (r / p["fall"]).clamp(max=3.0)
        gate = torch.sigmoid(4.0 * (rain - storm.threshold) + p["cell_gate"])
        return rain + p["cells"] * (cells - 0.8).clamp_min(0.0) * gate

    def _textures(self, latent: Tensor) -> Tensor:
        """The fields on the canvas, closed periodically by one more row and column for the interpolation."""
        field = torch.fft.irfft2(latent, s=self.canvas)
        field = torch.cat([field, field[..., :1, :]], -2)
        return torch.cat([field, field[..., :1]], -1)

    def _noise(self, spectra: Tensor, rng: Rng) -> Tensor:
        """Fresh Fourier coefficients of both phases, `(*b, 2, 2, my, mx // 2 + 1)`."""
        lead = spectra.shape[:-4]
        white = normal(rng, (*lead, 2, 2, *self.canvas), dtype=spectra.dtype, device=spectra.device)
        return torch.fft.rfft2(white) * spectra

    def _memory(self, p: dict[str, Tensor]) -> Tensor:
        """What each Fourier mode keeps over an hour, `(*b, 1, 1, my, mx // 2 + 1)`."""
        ky, kx = self._wavenumbers(p["wet"])
        return torch.exp(-(1.0 + 4.0 * (ky**2 + kx**2).sqrt()) / p["lifetime"][..., None, None])

    def _age(self, p: dict[str, Tensor], hour: float) -> Tensor:
        """Hours since each of the two phases started, `(*b, 2, 1, 1)`."""
        turns = hour / p["period"] + p["phase"]
        return torch.stack([turns % 1.0, (turns + 0.5) % 1.0], -3) * p["period"].unsqueeze(-3)

    def _wavenumbers(self, like: Tensor) -> tuple[Tensor, Tensor]:
        """Angular wavenumbers of the canvas, (my, 1) and (1, mx // 2 + 1), per cell."""
        my, mx = self.canvas
        ky = torch.fft.fftfreq(my, device=like.device, dtype=like.dtype)[:, None]
        kx = torch.fft.rfftfreq(mx, device=like.device, dtype=like.dtype)[None]
        return 2 * math.pi * ky, 2 * math.pi * kx


def _matern(k2: Tensor, length: Tensor, roughness: Tensor) -> Tensor:
    """Power of a Matern field, normalised over the stored half-plane."""
    power = (k2 + length**-2) ** -(roughness + 1.0)
    return power / power.sum((-1, -2), keepdim=True)
