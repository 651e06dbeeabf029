"""What an analysis looks like as a Dataset, and the way there from tensors.

    <field>                   (experiment, member, time, *grid)   members, units of the data
    <field>_mean, _std        (experiment, time, *grid)           weighted moments of the whole ensemble, Space units
    <field>_background_mean, _background_std                      the same of the forecast before the analysis
    log_weights               (experiment, member, time)          where members are not equally likely
    log_evidence, ess         (experiment, time)
    chi_square, rejected      (experiment, time)                  with quality control or feedback

Moments are in the units that are assimilated, log(1 + mm) for rain: there the mean is the best estimate, and there it
is scored. `experiment` is absent where the observations have none. A method whose estimate is a Gaussian or a single
field has only moments. Stored members may be fewer than the method ran (`keep`): they are then equally likely again.
Experiments that diverged are NaN from then on, and named in `diverged_at`; see `assimilate.engine.divergence`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import torch
import xarray as xr
from torch import Tensor

from assimilate.posterior.weights import effective_sample_size, weighted_mean, weighted_variance
from dynamics.fields import Field
from dynamics.space import Space
from dynamics.transforms import Identity, Log, LogOnePlus

MOMENTS = ("mean", "std", "background_mean", "background_std")
ABOUT = {
    "log_evidence": "log p(y_k | earlier y)",
    "ess": "effective sample size",
    "chi_square": "innovation chi-square over the number of values, 1 expected",
    "rejected": "values rejected by quality control",
}
"""What an analysis has one number of, and what that is."""


class Slice(NamedTuple):
    """The analysis of one time.

    Attributes:
        mean: `(E, *event)`.
        std: the same; None for an estimate without a spread.
        members: `(E, N, *event)` or None.
        log_weights: `(E, N)` normalised, or None for equal weights.
        background_mean: `(E, *event)` or None.
        background_std: the same.
        log_evidence: `(E,)` or None.
        ess: `(E,)` or None.
        chi_square: `(E,)` or None, of the innovations, see `assimilate.engine.inspection`.
        rejected: `(E,)` or None, values that quality control rejected.
    """

    mean: Tensor
    std: Tensor | None = None
    members: Tensor | None = None
    log_weights: Tensor | None = None
    background_mean: Tensor | None = None
    background_std: Tensor | None = None
    log_evidence: Tensor | None = None
    ess: Tensor | None = None
    chi_square: Tensor | None = None
    rejected: Tensor | None = None

    @property
    def nbytes(self) -> int:
        """Size of its largest part."""
        held = self.mean if self.members is None else self.members
        return held.numel() * held.element_size()


def moments(members: Tensor, log_weights: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """Weighted mean and unbiased standard deviation `(E, *event)`; no deviation for a single member."""
    if log_weights is None or not _weighted(log_weights):
        if members.shape[1] == 1:
            return members[:, 0], None
        return members.mean(1), members.std(1)
    return weighted_mean(members, log_weights), weighted_variance(members, log_weights).sqrt()


def keep_members(members: Tensor, log_weights: Tensor | None, keep: int) -> tuple[Tensor, Tensor | None]:
    """At most `keep` members; equally likely ones when there were more (systematic, at midpoints: deterministic)."""
    count = members.shape[1]
    if count <= keep:
        return members, log_weights
    levels = (torch.arange(keep, device=members.device, dtype=torch.float64) + 0.5) / keep
    if log_weights is None:
        return members[:, (levels * count).long()], None
    total = log_weights.double().exp().cumsum(-1)
    picks = torch.searchsorted(total / total[:, -1:], levels.expand(len(total), -1).contiguous()).clamp_max(count - 1)
    rows = torch.arange(len(members), device=members.device).unsqueeze(-1)
    return members[rows, picks], None


def moment_space(space: Space, suffix: str) -> Space:
    """The Space of a moment: fields renamed, units those of the tensor, no transform."""
    fields = tuple(
        Field(
            f"{f.name}_{suffix}",
            working_units(f),
            f.dims,
            long_name=f"{suffix.replace('_', ' ')} of {f.long_name or f.name}",
        )
        for f in space.fields
    )
    return replace(space, fields=fields)


def working_units(field: Field) -> str:
    """Units of a field in tensors: those of the data, inside its transform."""
    if isinstance(field.transform, Identity):
        return field.units
    if isinstance(field.transform, LogOnePlus):
        divided = field.units if field.transform.scale == 1.0 else f"{field.transform.scale:g} {field.units}"
        return f"log(1 + {divided})" if field.transform.scale == 1.0 else f"log(1 + x / ({divided}))"
    if isinstance(field.transform, Log):
        return f"log({field.units})"
    return f"{field.transform!r} of {field.units}"


def to_dataset(
    space: Space,
    slices: Sequence[Slice],
    times: xr.DataArray,
    *,
    experiments: bool,
    keep: int | None = None,
    weighted: bool = False,
    attrs: Mapping[str, Any] | None = None,
) -> xr.Dataset:
    """Analyses of consecutive times as one Dataset.

    Args:
        space: of the state.
        slices: one per time.
        times: their time coordinate.
        experiments: whether the result has an `experiment` dim; without it there must be one experiment.
        keep: largest number of members to store; None stores all.
        weighted: store `log_weights` even where all are equal.
        attrs: attributes of the Dataset.
    """
    coords = {"time": times}
    lead = ("experiment", "time") if experiments else ("time",)
    parts: list[xr.Dataset] = []
    if slices[0].members is not None:
        kept = [
            keep_members(s.members, s.log_weights, keep or s.members.shape[1]) for s in slices if s.members is not None
        ]
        members = torch.stack([m for m, _ in kept], 2)
        dims = ("experiment", "member", "time") if experiments else ("member", "time")
        parts.append(space.to_dataset(members if experiments else members[0], dims, coords))
        weights = [w for _, w in kept]
        if weighted or any(w is not None and _weighted(w) for w in weights):
            equal = members.new_full(members.shape[:2], -np.log(members.shape[1]))
            stacked = torch.stack([equal if w is None else w for w in weights], 2)
            parts.append(_variable("log_weights", stacked, dims, coords, experiments, {"long_name": "log weight"}))
    for name in MOMENTS:
        values = [getattr(s, name) for s in slices]
        if all(v is not None for v in values):
            stacked = torch.stack(values, 1)
            parts.append(moment_space(space, name).to_dataset(stacked if experiments else stacked[0], lead, coords))
    for name, long_name in ABOUT.items():
        values = [getattr(s, name) for s in slices]
        if all(v is not None for v in values):
            stacked = torch.stack(values, 1)
            parts.append(_variable(name, stacked, lead, coords, experiments, {"long_name": long_name, "units": "1"}))
    return xr.merge(parts, compat="override", join="override", combine_attrs="override").assign_attrs(attrs or {})


def slice_of(members: Tensor, log_weights: Tensor | None, **more: Tensor | None) -> Slice:
    """The analysis of one time from an ensemble; equal weights are dropped."""
    weights = log_weights if log_weights is not None and _weighted(log_weights) else None
    mean, std = moments(members, weights)
    if more.get("ess") is None:
        size = float(members.shape[1])
        more["ess"] = members.new_full((len(members),), size) if weights is None else effective_sample_size(weights)
    return Slice(mean, std, members, weights, **more)


def _weighted(log_weights: Tensor) -> bool:
    """Whether weights differ by more than rounding."""
    # Rows of NaN are those of experiments that diverged; they say nothing of the others.
    return bool(((log_weights.amax(-1) - log_weights.amin(-1)) > 1e-5).any())


def _variable(
    name: str, x: Tensor, dims: tuple[str, ...], coords: Mapping[str, Any], experiments: bool, attrs: Mapping[str, str]
) -> xr.Dataset:
    values = (x if experiments else x[0]).detach().cpu().numpy()
    return xr.Dataset({name: (dims, values, dict(attrs))}, coords)
