"""Scores of one field among several: `rmse_<field>`, in the units of that field.

A state of a temperature in K and a wind in m/s has one `rmse` over both, in mixed units. The same score over the
channels of one field says how well that field is known, and what observations of the others do for it. Names are made
of a score and the field: `rmse_u`, `crps_t`, `spread_skill_u`.
"""

from __future__ import annotations

import xarray as xr

from assimilate.verification.statistics import Scoring, scores
from dynamics.space import Space

BY_FIELD = ("rmse", "mae", "crps", "spread_skill")
"""Scores that a field can have of its own."""


def names_by_field(space: Space) -> list[str]:
    """The scores that the fields of a Space can have; none where there is one field only."""
    if len(space.fields) < 2:
        return []
    return [f"{score}_{entry.name}" for score in BY_FIELD for entry in space.fields]


def scores_by_field(pooled: xr.Dataset, space: Space, scoring: Scoring | None = None) -> dict[str, float]:
    """Scores of every field, from statistics of the whole time axis.

    Args:
        pooled: what `statistics` returned, concatenated along time.
        space: of the state; its channels are those of `pooled`.
        scoring: the same as there.

    Returns:
        `{score_field: value}`; a score that does not exist for a method is left out. Empty for a single field.
    """
    out: dict[str, float] = {}
    if len(space.fields) < 2:
        return out
    channels = pooled[[n for n in pooled.data_vars if "channel" in pooled[n].dims]]
    for entry in space.fields:
        some = [space.channels.index(name) for name in space.channel_names(entry)]
        found = scores(channels.isel(channel=some), scoring)
        out |= {f"{score}_{entry.name}": found[score] for score in BY_FIELD if score in found}
    return out
