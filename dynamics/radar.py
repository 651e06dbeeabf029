"""Rain as a radar network sees it: a stochastic simulator of hourly rain on any grid.

State: log(1 + mm) of the last hour, event `(1, ny, nx)`; never negative, exactly 0 where it is dry.

* `storms` gives whole sequences. Their hidden state (`dynamics.storms`: flow, latent fields, threshold) lives on from
  hour to hour, so rain keeps its motion and its character.
* `prior` is the first hour of a new storm.
* `step` knows the rain of the last hour and nothing else, so it draws a flow and a texture anew for every state:

      w = x where wet, minus a depth that grows away from the rain where dry
      x' = max(0, k w(origin(p)) + sqrt(1 - k^2) a e(p)),     k = exp(-dt / lifetime)

  with the storm law's flow (`origin`), e a unit Gaussian field of its spectrum, and a the field's own spread. It is the
  transition of someone who sees the rain but not the wind. A transition learned from `storms` is sharper.

The ranges are wide on purpose (rain on 8 % of the domain to all of it, 1 to 100 mm per hour, smooth to rough, round to
banded, calm to hurricane): a prior trained on it has to work on a storm that nobody has seen.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from dynamics.fields import Coordinate, Field
from dynamics.random import Rng, normal
from dynamics.settings import POSITIVE, check_settings, whole
from dynamics.space import Space
from dynamics.storms import StormLaw, StormRanges
from dynamics.transforms import LogOnePlus

_DEPTH = 0.5
"""How far below the edge of the rain the latent state of a dry cell far from it lies, log(1 + mm)."""
_BLUR = 4
"""Passes of a 5-cell mean over the wet area; "far" is about 8 cells."""
_LEAST_SPREAD = 0.5
"""Spread of the fresh part where a state is (nearly) dry, so that rain can be born anywhere."""


@dataclass(frozen=True)
class RainStorms:
    """Hourly rain of simulated storms, log(1 + mm).

    Args:
        ny: cells in y (118, the Stage IV sample's).
        nx: cells in x (87).
        spacing: size of a cell in km (4, Stage IV's). It labels the grid; the storms' lengths are in cells.
        ranges: from where the numbers of a storm are drawn.

    Raises:
        ValueError: fewer than 8 cells in a direction, or a spacing that is not positive.
    """

    ny: int = 118
    nx: int = 87
    spacing: float = 4.0
    ranges: StormRanges = field(default_factory=StormRanges)

    def __post_init__(self) -> None:
        """Refuse a grid on which a rain cell has no room."""
        check_settings(self, ny=whole(8), nx=whole(8), spacing=POSITIVE)

    @property
    def dt(self) -> float:
        """One hour; the unit of time is the hour."""
        return 1.0

    @cached_property
    def space(self) -> Space:
        """`precipitation(y, x)` in mm, as log(1 + mm)."""
        label = "hourly precipitation"
        name = "lwe_thickness_of_precipitation_amount"
        entry = Field("precipitation", "mm", ("y", "x"), label, name, LogOnePlus(1.0))
        axes = {
            dim: Coordinate(self.spacing * np.arange(size, dtype=np.float64), (dim,), "km")
            for dim, size in (("y", self.ny), ("x", self.nx))
        }
        return Space((entry,), axes)

    @cached_property
    def law(self) -> StormLaw:
        """The law of the hidden storms."""
        return StormLaw(self.ny, self.nx, self.ranges)

    def storms(
        self,
        shape: tuple[int, ...],
        steps: int,
        *,
        rng: Rng,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ) -> Tensor:
        """Sequences of rain whose flow and texture persist; what a prior or a transition is trained on.

        Args:
            shape: leading dims, `(n,)` or `(experiment, member)`.
            steps: hours.
            rng: source of random numbers.
            dtype: float32 or float64.
            device: where the sequences live.

        Returns:
            `(*shape, steps, 1, ny, nx)`.
        """
        storm = self.law.begin(shape, rng=rng, dtype=dtype, device=device)
        frames = []
        for _ in range(steps):
            storm, rain = self.law.evolve(storm, rng=rng)
            frames.append(rain)
        return torch.stack(frames, -4)

    def prior(
        self,
        shape: tuple[int, ...],
        *,
        rng: Rng,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ) -> Tensor:
        """The first hour of new storms, `(*shape, 1, ny, nx)`."""
        return self.storms(shape, 1, rng=rng, dtype=dtype, device=device)[..., 0, :, :, :]

    def step(self, x: Tensor, time: float, *, rng: Rng | None) -> Tensor:
        """The rain an hour later, by a flow and a texture drawn anew; `rng=None` leaves the rain where it is.

        Args:
            x: rain, `(*b, 1, ny, nx)`.
            time: time of `x`; the law does not depend on it.
            rng: source of random numbers; None for the deterministic part alone (persistence).
        """
        if rng is None:
            return x.clone()
        lead = x.shape[:-3]
        law = self.law
        p = law.numbers(lead, rng=rng, dtype=x.dtype, device=x.device)
        w = _with_depth(x[..., 0, :, :])
        way_y, way_x = law.travelled(p, self.dt)
        y = torch.arange(self.ny, dtype=x.dtype, device=x.device)[:, None]
        x_axis = torch.arange(self.nx, dtype=x.dtype, device=x.device)[None]
        from_y, from_x = law.origin(p, y - p["y"] - way_y, x_axis - p["x"] - way_x, torch.ones_like(p["wet"]))
        points = torch.stack([_scaled(from_x + p["x"], self.nx), _scaled(from_y + p["y"], self.ny)], -1)
        carried = functional.grid_sample(
            w.reshape(-1, 1, self.ny, self.nx), points.reshape(-1, self.ny, self.nx, 2),
            padding_mode="border", align_corners=True,
        ).reshape(w.shape)  # fmt: skip
        white = normal(rng, (*lead, *law.canvas), dtype=x.dtype, device=x.device)
        fresh = torch.fft.irfft2(torch.fft.rfft2(white) * law.spectra(p)[..., 0, 0, :, :], s=law.canvas)
        keep = torch.exp(-self.dt / p["lifetime"])
        centre, spread = w.mean((-1, -2), keepdim=True), w.std((-1, -2), keepdim=True).clamp_min(_LEAST_SPREAD)
        part = torch.sqrt(1.0 - keep**2) * spread * fresh[..., : self.ny, : self.nx]
        return (centre + keep * (carried - centre) + part).clamp_min(0.0).unsqueeze(-3)


def _with_depth(x: Tensor) -> Tensor:
    """The rain where it is wet; below zero where it is dry, the deeper the farther from the rain."""
    wet = (x > 0).to(x.dtype).reshape(-1, 1, *x.shape[-2:])
    near = wet
    for _ in range(_BLUR):
        near = functional.avg_pool2d(functional.pad(near, (2, 2, 2, 2), mode="replicate"), 5, stride=1)
    return x - (_DEPTH * (1.0 - near) * (1.0 - wet)).reshape(x.shape)


def _scaled(cells: Tensor, size: int) -> Tensor:
    """Cell indices to the -1..1 of `grid_sample`."""
    return 2.0 * cells / (size - 1) - 1.0
