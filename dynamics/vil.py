"""Vertically integrated liquid (VIL) and storms that look like the SEVIR archive, simulated.

SEVIR keeps VIL as codes X from 0 to 254, linear for little of it and logarithmic beyond,

    VIL [kg m-2] = 0 for X <= 5,  (X - 2) / 90.66 for X <= 18,  exp((X - 83.9) / 38.9) above.

Simulated rain becomes VIL by the radar laws Z = 200 R^1.6 and VIL = 3.44e-6 Z^(4/7) depth, with R in mm/h, Z in
mm6 m-3 and a column of 4 km. The state is X / 255. Of the storms of `dynamics.storms` a step lasts 10 minutes, so that
whole events keep their motion and their texture. With the default ranges a pixel has mean 0.14 and standard deviation
0.19 (32 events); the archive's, by which its authors normalise, are 33.44 / 255 = 0.131 and 47.54 / 255 = 0.186.

References:
    Marshall, Palmer (1948), The distribution of raindrops with size,
    https://doi.org/10.1175/1520-0469(1948)005<0165:TDORWS>2.0.CO;2
    Greene, Clark (1972), Vertically integrated liquid water: a new analysis tool,
    https://doi.org/10.1175/1520-0493(1972)100<0548:VILWNA>2.3.CO;2
    Veillette, Samsi, Mattioli (2020), SEVIR, https://registry.opendata.aws/sevir/ (the codes)
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from dynamics.fields import Coordinate, Field
from dynamics.radar import RainStorms
from dynamics.random import Rng, Streams
from dynamics.settings import POSITIVE, check_settings, whole
from dynamics.sevir import LABELS
from dynamics.sevir_catalogue import Split
from dynamics.space import Space
from dynamics.storms import StormRanges

if TYPE_CHECKING:
    import xarray as xr

RANGES = StormRanges(
    wet=(0.08, 0.95), peak=(1.2, 4.8), wind=(0.0, 3.0), vortex=0.1, speed=(0.5, 3.0), lifetime=(12.0, 60.0),
    period=(12.0, 48.0),
)  # fmt: skip
"""Numbers of storms in cells of 3 km and steps of 10 minutes: winds up to 54 km/h, large scales that live for hours."""
MINUTES = 10.0
_SEEDS: dict[str | None, int] = {None: 0, "train": 1, "validation": 2, "test": 3}
_PER_RAIN, _POWER = 3.44e-6 * 200 ** (4 / 7) * 4000, 1.6 * 4 / 7
_JOINT = 16 / 90.66


def liquid(code: Tensor) -> Tensor:
    """VIL in kg m-2 of codes from 0 to 254; multiply a state by 255 to have its code."""
    linear, exponential = (code - 2) / 90.66, torch.exp((code - 83.9) / 38.9)
    return torch.where(code <= 5, torch.zeros_like(code), torch.where(code <= 18, linear, exponential))


def code(vil: Tensor) -> Tensor:
    """Codes of VIL in kg m-2, not rounded; 0 below the least amount that has a code, at most 254."""
    linear, logarithmic = 2 + 90.66 * vil, 83.9 + 38.9 * torch.log(vil.clamp_min(_JOINT))
    found = torch.where(vil <= _JOINT, linear, logarithmic.clamp_min(18.0))
    return torch.where(found <= 5, torch.zeros_like(found), found.clamp_max(254.0))


def of_rain(rain: Tensor) -> Tensor:
    """The state of rain given as log(1 + mm/h)."""
    return code(_PER_RAIN * torch.expm1(rain).clamp_min(0.0) ** _POWER) / 255


def to_rain(state: Tensor) -> Tensor:
    """Rain as log(1 + mm/h) of a state, the inverse of `of_rain` where it rains."""
    return torch.log1p((liquid(255 * state) / _PER_RAIN) ** (1 / _POWER))


@dataclass(frozen=True)
class SimulatedVIL:
    """VIL of simulated storms, on [0, 1], frames 10 minutes apart; the unit of time is the minute.

    Args:
        size: cells along each side; 128, the reduced SEVIR's.
        spacing: size of a cell in km (3). It labels the grid; the storms' lengths are in cells.
        ranges: from where the numbers of a storm are drawn.

    Raises:
        ValueError: fewer than 8 cells, or a spacing that is not positive.
    """

    size: int = 128
    spacing: float = 3.0
    ranges: StormRanges = RANGES

    def __post_init__(self) -> None:
        """Refuse a grid on which a storm has no room."""
        check_settings(self, size=whole(8), spacing=POSITIVE)
        _ = self.storms

    @property
    def dt(self) -> float:
        """10 minutes."""
        return MINUTES

    @cached_property
    def storms(self) -> RainStorms:
        """The storms; their "hour" is a step."""
        return RainStorms(self.size, self.size, self.spacing, self.ranges)

    @cached_property
    def space(self) -> Space:
        """`vil(y, x)` on [0, 1]."""
        centres = (np.arange(self.size) + 0.5) * self.spacing
        axes = {dim: Coordinate(centres, (dim,), "km") for dim in ("y", "x")}
        return Space((Field("vil", LABELS["units"], ("y", "x"), LABELS["long_name"]),), axes)

    def events(
        self,
        shape: tuple[int, ...],
        frames: int = 25,
        *,
        rng: Rng,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ) -> Tensor:
        """Whole events, whose flow and texture persist; `(*shape, frames, 1, size, size)`.

        Args:
            shape: leading dims, `(n,)` or `(experiment, member)`.
            frames: of each event; 25 are four hours.
            rng: source of random numbers.
            dtype: float32 or float64.
            device: where the events live.
        """
        return of_rain(self.storms.storms(shape, frames, rng=rng, dtype=dtype, device=device))

    def prior(
        self,
        shape: tuple[int, ...],
        *,
        rng: Rng,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ) -> Tensor:
        """First frames of new events, `(*shape, 1, size, size)`."""
        return of_rain(self.storms.prior(shape, rng=rng, dtype=dtype, device=device))

    def step(self, x: Tensor, time: float, *, rng: Rng | None) -> Tensor:
        """The frame 10 minutes later for someone who sees the storm but not its motion; see `RainStorms.step`.

        Args:
            x: frames, `(*b, 1, size, size)`.
            time: time of `x`; the law does not depend on it.
            rng: source of random numbers; None for the deterministic part alone (persistence).
        """
        return x.clone() if rng is None else of_rain(self.storms.step(to_rain(x), time, rng=rng))


@dataclass(frozen=True)
class Drawn:
    """Simulated events as one array (event, frame, row, column), float32; what is indexed is simulated.

    Args:
        system: the law.
        count: number of events.
        frames: of each.
        seed: of all; event n has a stream of its own, so that it is the same whatever their number.
    """

    system: SimulatedVIL
    count: int
    frames: int
    seed: int

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """(event, frame, row, column)."""
        return self.count, self.frames, self.system.size, self.system.size

    @property
    def dtype(self) -> np.dtype:
        """float32."""
        return np.dtype(np.float32)

    @property
    def ndim(self) -> int:
        """4."""
        return 4

    def __getitem__(self, key: tuple[Any, ...]) -> np.ndarray:
        """Simulate the events of a part, indices and slices of all axes."""
        rows = np.arange(self.count)[key[0]]
        of = tuple(int(n) for n in np.atleast_1d(rows))
        events = self.system.events((len(of), 1), self.frames, rng=Streams(self.seed, experiments=of, members=1))
        found = events[:, 0, :, 0].numpy()
        return found[0][key[1:]] if rows.ndim == 0 else found[(slice(None), *key[1:])]


def simulated_sevir(
    *, split: Split | None = None, size: int = 128, events: int = 256, frames: int = 25, seed: int = 0
) -> xr.Dataset:
    """Simulated events in the layout of `open_sevir`, each drawn when it is used.

    Args:
        split: the splits have different storms.
        size: cells along each side, 3 km each.
        events: number of events.
        frames: of each, 10 minutes apart, centred on 0.
        seed: of the storms.

    Returns:
        Dataset of dask arrays, one chunk an event: `vil` (experiment, time, y, x) on [0, 1].
    """
    import dask.array as da
    import xarray as xr

    system = SimulatedVIL(size)
    array = Drawn(system, events, frames, 4 * seed + _SEEDS[split])
    values = da.from_array(array, chunks=(1, *array.shape[1:]), fancy=False)
    time = MINUTES * (np.arange(frames) - (frames - 1) // 2)
    attrs = {"title": f"simulated storms in the shape of SEVIR, {events} events" + (f" ({split})" if split else "")}
    axes: dict[str, Any] = {dim: (dim, system.space.coords[dim].values, {"units": "km"}) for dim in ("y", "x")}
    axes["time"] = ("time", time, {"long_name": "minutes from the time of the event"})
    axes["event"] = ("experiment", np.array([f"simulated {n}" for n in range(events)]))
    return xr.Dataset({"vil": (("experiment", "time", "y", "x"), values, LABELS)}, axes, attrs)
