"""How far a method is from a reference method: in its mean, in its spread, and in the ranks of the truth.

With the true model and many members a filter is close to the law of the state given the observations. Errors against
the truth cannot tell a method that is as good as that law from one that is close to it for the wrong reasons; these do:

    mean_distance   sqrt(<(m - m_r)^2>) / sqrt(<s_r^2>)     0: the same mean; 1: a standard deviation away
    spread_ratio    sqrt(<s^2>) / sqrt(<s_r^2>)             1: the same spread
    rank_distance   1/2 sum_r |f_r - 1 / R|                 0: flat; f_r how often the truth has rank r of R

m and s are mean and standard deviation of the ensembles, m_r and s_r those of the reference, < > the mean over
experiments, times, channels and cells (each counts once). With several draws of the observations the first is compared.

A reference of N members is itself off by 1 / sqrt(N) standard deviations, and an ensemble of n by 1 / sqrt(n): smaller
distances cannot be told from 0. `rank_distance` needs members and a truth, and is given for the reference as well.
"""

from __future__ import annotations

import math

import numpy as np
import torch
import xarray as xr

from assimilate.cards.card import Scores
from assimilate.engine.results import moment_space
from assimilate.errors import UserError
from dynamics.space import Space

DISTANCES = ("mean_distance", "spread_ratio", "rank_distance")
"""Scores that exist where a card names a reference."""


class Comparison:
    """The distances of methods from the reference, as they finish in any order.

    Args:
        scores: the card's table, with the label of the reference (or none: then there are no distances).
        space: of the state.
    """

    def __init__(self, scores: Scores, space: Space) -> None:
        self.label, self.drop, self.space = scores.reference, scores.drop, space
        self.waiting: dict[str, xr.Dataset] = {}
        self.reference: xr.Dataset | None = None

    def add(self, label: str, analysis: xr.Dataset) -> dict[str, dict[str, float]]:
        """Distances that are known now that a method has finished: `{label: {score: value}}`.

        Args:
            label: of the method.
            analysis: what it gave.

        Raises:
            UserError: it is the reference, and has no spread to measure in.
        """
        if self.label is None:
            return {}
        found = {label: rank_distance(analysis)}
        if label == self.label:
            _unit(analysis, self.space, self.drop)
            self.reference = analysis
            waiting, self.waiting = self.waiting, {}
        else:
            waiting = {label: analysis}
        if self.reference is None:
            # Moments only: members would be held until the reference has finished.
            kept = [n for n in analysis.data_vars if str(n).endswith(("_mean", "_std"))]
            self.waiting[label] = analysis[kept]
            return found
        for other, one in waiting.items():
            found[other] = found.get(other, {}) | distances(one, self.reference, self.space, drop=self.drop)
        return found


def distances(analysis: xr.Dataset, reference: xr.Dataset, space: Space, *, drop: int = 0) -> dict[str, float]:
    """`mean_distance` and `spread_ratio` of an analysis.

    Args:
        analysis: what `run` returns; without a spread (`<field>_std`) there is no `spread_ratio`.
        reference: the same of the reference, with a spread, at the same times.
        space: of the state.
        drop: times at the beginning that are left out.

    Raises:
        UserError: the reference has no spread, or a spread of 0 everywhere.
    """
    unit = _unit(reference, space, drop)
    centres = [_moment(one, space, "mean") for one in (analysis, reference)]
    if centres[0] is None or centres[1] is None:
        raise UserError(f"no <field>_mean of {[f.name for f in space.fields]} in the analysis or the reference")
    out = {"mean_distance": _size(centres[0] - centres[1], drop) / unit}
    own = _moment(analysis, space, "std")
    if own is not None:
        out["spread_ratio"] = _size(own, drop) / unit
    return {k: v for k, v in out.items() if math.isfinite(v)}


def rank_distance(analysis: xr.Dataset) -> dict[str, float]:
    """`rank_distance` of an analysis that has a rank histogram; nothing otherwise."""
    if "rank_frequency" not in analysis:
        return {}
    frequency = analysis["rank_frequency"].values.astype(float)
    return {"rank_distance": 0.5 * float(np.abs(frequency - 1.0 / frequency.size).sum())}


def _unit(reference: xr.Dataset, space: Space, drop: int) -> float:
    """The spread in which distances are measured."""
    std = _moment(reference, space, "std")
    size = 0.0 if std is None else _size(std, drop)
    if not size > 0:
        raise UserError("the reference has no spread: take a method with an ensemble or a Gaussian")
    return size


def _moment(analysis: xr.Dataset, space: Space, which: str) -> torch.Tensor | None:
    """A moment as `(time, experiment or 1, *event)`, or None."""
    moments = moment_space(space, which)
    if not all(f.name in analysis for f in moments.fields):
        return None
    values = moments.to_tensor(analysis, dtype=torch.float64)
    event = len(space.event_shape)
    return values.unsqueeze(0).transpose(0, 1) if values.ndim == event + 1 else values.transpose(0, 1)


def _size(values: torch.Tensor, drop: int) -> float:
    return float(values[drop:].square().mean().sqrt())
