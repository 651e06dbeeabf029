r"""Kinetic-energy spectra of flows on a doubly periodic square, and how wrong those of an ensemble are.

    E(k) = sum over k - 1/2 <= |q| < k + 1/2 of |u_q|^2 / 2,    |u_q|^2 = |w_q|^2 / |q|^2 for vorticity w

q counts waves around the square, u_q and w_q are Fourier coefficients (means over the cells of exp(-i q.r) times the
field), so that the sum of E over all shells is the mean kinetic energy <u^2 + v^2> / 2 of a flow without a mean. Shells
are k = 1..K with K the two-thirds cut, 3 K < n: beyond it models keep nothing.

    spectrum_error = mean over k of | E(k) / E_true(k) - 1 |

E is the mean over members (by their weights), times and experiments, E_true that over times and experiments. The error
is that of the fields that a method offers as possible states: its members, or its one estimate where it has no members.
An estimate alone is smooth, as a mean must be, and its spectrum falls short; that of members should not. It tends to 0
for a perfect ensemble as times and experiments grow in number. Shells in which the truth has no energy (less than 1e-12
of its largest) are left out.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import torch
import xarray as xr
from torch import Tensor

from dynamics.space import Space

SPECTRUM_BYTES = 2**26
"""Fields of about this size are transformed at a time."""


class Flow(NamedTuple):
    """What a Space holds of a flow.

    Attributes:
        kind: "vorticity" or "velocity".
        size: n, cells along a side.
        length: of a side.
    """

    kind: str
    size: int
    length: float

    @property
    def cut(self) -> int:
        """K, the last shell."""
        return (self.size - 1) // 3


def flow_of(space: Space) -> Flow | None:
    """The flow that a Space holds: one vorticity or the two velocities on a periodic square; None for anything else."""
    grid, shape = space.grid, space.grid_shape
    if len(grid) != 2 or shape[0] != shape[1] or shape[0] < 4 or set(space.periodic) != set(grid):
        return None
    if space.mask is not None or any(repr(f.transform) != "Identity()" for f in space.fields):
        return None
    lengths = [abs(np.diff(space.coords[d].numbers)[0]) * shape[0] for d in grid]
    if not math.isclose(lengths[0], lengths[1], rel_tol=1e-3):
        return None
    named = [f"{f.name} {f.long_name} {f.standard_name}".lower() for f in space.fields]
    kind = {1: "vorticity", 2: "velocity"}.get(len(named))
    if space.channels != tuple(f.name for f in space.fields) or kind is None:
        return None
    return Flow(kind, shape[0], float(lengths[0])) if all(kind in words for words in named) else None


def energy_spectrum(fields: Tensor, flow: Flow) -> Tensor:
    """E(k) of states, k = 1..K.

    Args:
        fields: `(*b, channel, n, n)`.
        flow: what they are.

    Returns:
        `(*b, K)`, in squared units of velocity.
    """
    n = flow.size
    rows = torch.fft.fftfreq(n, d=1 / n, dtype=torch.float64, device=fields.device)[:, None]
    columns = torch.arange(n // 2 + 1, dtype=torch.float64, device=fields.device)[None]
    waves = (rows**2 + columns**2).sqrt()
    # Columns stand for k and -k, except the first and, for even n, the last.
    share = torch.full_like(columns, 2.0)
    share[:, 0] = 1.0
    if n % 2 == 0:
        share[:, -1] = 1.0
    power = torch.fft.rfft2(fields, norm="forward").abs().square().sum(-3) * (0.5 * share).to(fields.dtype)
    if flow.kind == "vorticity":
        squared = (2 * math.pi / flow.length * waves) ** 2
        power = power * torch.where(squared > 0, 1 / squared.clamp_min(1e-300), 0.0).to(fields.dtype)
    shell = (waves + 0.5).floor().long().flatten()
    sums = power.new_zeros(*power.shape[:-2], int(shell.max()) + 1)
    return sums.index_add(-1, shell, power.flatten(-2))[..., 1 : flow.cut + 1]


def spectra(
    space: Space,
    truth: xr.DataArray,
    members: xr.DataArray | None,
    mean: xr.DataArray,
    weights: xr.DataArray | None = None,
) -> dict[str, xr.DataArray]:
    """Spectra of truth, members and mean at each time; nothing for a Space without a flow.

    Args:
        space: of the state.
        truth: dims (experiment, time, channel, *grid), some absent.
        members: the same with `member`; None without an ensemble.
        mean: the same as the truth.
        weights: of the members, summing to 1 over `member`; None for equal ones.

    Returns:
        `spectrum_of_truth`, `spectrum_of_mean` and perhaps `spectrum_of_members`, dims (experiment, time, shell).
    """
    flow = flow_of(space)
    if flow is None:
        return {}
    found = {"spectrum_of_truth": _spectrum(truth, space, flow), "spectrum_of_mean": _spectrum(mean, space, flow)}
    if members is not None:
        each = _spectrum(members, space, flow)
        found["spectrum_of_members"] = each.mean("member") if weights is None else (each * weights).sum("member")
    return found


def pooled_spectra(statistics: xr.Dataset, drop: int = 0) -> xr.Dataset:
    """Spectra pooled over times and experiments, dims (shell); no variables where there are none.

    Args:
        statistics: what `assimilate.verification.statistics.statistics` returns, concatenated along time.
        drop: times at the beginning that are left out.
    """
    held = statistics[[n for n in statistics.data_vars if str(n).startswith("spectrum_of_")]]
    if "time" in held.dims:
        held = held.isel(time=slice(drop, None))
    return held.mean([d for d in held.dims if d != "shell"])


def spectrum_error(pooled: xr.Dataset) -> float | None:
    """The score; see the module.

    Args:
        pooled: what `pooled_spectra` returned.
    """
    if "spectrum_of_truth" not in pooled:
        return None
    true = pooled["spectrum_of_truth"]
    own = pooled.get("spectrum_of_members", pooled["spectrum_of_mean"])
    filled = true > 1e-12 * true.max()
    return float(abs(own / true - 1.0).where(filled).mean())


def _spectrum(values: xr.DataArray, space: Space, flow: Flow) -> xr.DataArray:
    lead = [d for d in values.dims if d not in ("channel", *space.grid)]
    fields = torch.from_numpy(np.ascontiguousarray(values.transpose(*lead, "channel", *space.grid).values))
    flat = fields.reshape(-1, *fields.shape[len(lead) :])
    rows = max(1, SPECTRUM_BYTES // (flat[0].numel() * flat.element_size()))
    found = torch.cat([energy_spectrum(part, flow) for part in flat.split(rows)])
    coords = {d: values[d] for d in lead if d in values.coords} | {"shell": np.arange(1, flow.cut + 1)}
    return xr.DataArray(found.reshape(*fields.shape[: len(lead)], -1).numpy(), dims=[*lead, "shell"], coords=coords)
