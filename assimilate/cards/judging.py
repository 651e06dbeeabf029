"""The judge of a card's methods: collects statistics while a method runs, and says what came out."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import xarray as xr

from assimilate.cards.instruments import quality_of
from assimilate.diagnosis import innovation_scores
from assimilate.engine.results import moment_space
from assimilate.verification.by_field import names_by_field, scores_by_field
from assimilate.verification.missing import blanked, filled, gone_of, present
from assimilate.verification.reference import DISTANCES
from assimilate.verification.spectra import flow_of, pooled_spectra
from assimilate.verification.statistics import (
    Estimated,
    compare,
    diverged,
    own_scores,
    rank_histogram,
    scores,
    series,
    statistics,
)

if TYPE_CHECKING:
    from assimilate.cards.card import Card
    from assimilate.cards.problem import Examiners, Problem

ENSEMBLE = ("rmse", "rmse_time", "mae", "nrmse", "crps", "crps_fair", "rmse_member", "nrmse_member", "spread_skill")


class Judge:
    """Called with every finished part of an analysis, all members in it.

    With a truth the scores are against it; with withheld observations there are `withheld_*` scores against those.
    """

    def __init__(self, problem: Problem) -> None:
        self.problem = problem
        self.against_truth: list[xr.Dataset] = []
        self.against_withheld: list[xr.Dataset] = []
        self.divergence = ""

    def __call__(self, analysis: xr.Dataset) -> None:
        """Add the statistics of a part."""
        problem = self.problem
        self.divergence = analysis.attrs.get("divergence", self.divergence)
        if problem.truth is not None:
            found = statistics(analysis, problem.truth, space=problem.space, scoring=problem.scoring)
            self.against_truth.append(found)
        if problem.examiners is not None:
            self.against_withheld.append(examine(analysis, problem.examiners, problem))

    def scores(self) -> dict[str, float]:
        """All scores of the analysis so far.

        Raises:
            FloatingPointError: every experiment diverged, so that there is nothing to score.
        """
        out: dict[str, float] = {}
        for parts in (self.against_truth, self.against_withheld):
            if parts and present(_joined(parts))[0] is None:
                raise FloatingPointError(self.divergence or "every experiment diverged")
        if self.against_truth:
            out |= scores(_joined(self.against_truth), self.problem.scoring)
            asked = asked_by_field(self.problem)
            if asked:
                found = scores_by_field(_joined(self.against_truth), self.problem.space, self.problem.scoring)
                out |= {name: value for name, value in found.items() if name in asked}
        if self.against_withheld:
            plain = scores(_joined(self.against_withheld), _without_events(self.problem))
            out |= {f"withheld_{k}": v for k, v in plain.items() if not k.startswith(("nrmse", "csi", "diverged"))}
            out |= {k: v for k, v in plain.items() if k == "diverged" and not self.against_truth}
        return {k: v for k, v in out.items() if math.isfinite(v)}

    def own(self, analysis: xr.Dataset) -> dict[str, float]:
        """Scores that the analysis itself holds: effective sample size, evidence, innovations, seconds."""
        return own_scores(analysis) | innovation_scores(analysis)

    def annotated(self, analysis: xr.Dataset) -> xr.Dataset:
        """The analysis with its scores over time and its rank histogram."""
        pooled = self.against_truth or self.against_withheld
        if not pooled:
            return analysis
        whole = _joined(pooled)
        rest, _ = present(whole)
        found = series(whole).rename({n: f"score_{n}" for n in series(whole).data_vars})
        analysis = analysis.assign({n: ("time", v.values) for n, v in found.data_vars.items()})
        lost, count = diverged(whole, self.problem.scoring), whole.sizes.get("experiment", 1)
        if lost:
            analysis = analysis.assign_attrs(diverged_experiments=lost, diverged=f"{len(lost)} of {count}")
        if self.against_truth:
            analysis = analysis.assign(pooled_spectra(whole if rest is None else rest, self.problem.scoring.drop))
        ranks = rank_histogram(whole, self.problem.scoring)
        return analysis if ranks is None else analysis.assign(ranks)

    @staticmethod
    def possible(problem: Problem) -> list[str]:
        """Names of all scores that a method of this problem can have."""
        names: list[str] = []
        if problem.truth is not None:
            unit = problem.scoring.threshold_unit
            names += [*ENSEMBLE, *(["diverged"] if problem.scoring.diverged is not None else [])]
            names += [*(f"csi_{t:g}{unit}" for t in problem.scoring.thresholds)]
            names += ["spectrum_error"] if flow_of(problem.space) is not None else []
            names += asked_by_field(problem)
        if problem.examiners is not None:
            names += [f"withheld_{n}" for n in ENSEMBLE if not n.startswith("nrmse")]
        if problem.card.scores.reference is not None:
            names += DISTANCES
        if quality_of(problem.card) is not None:
            names += ["chi_square", "rejected"]
        return [*names, "ess", "log_evidence", "seconds"]


def asked_by_field(problem: Problem) -> list[str]:
    """The scores of single fields that the card names; a state of many fields would have too many of them."""
    card = problem.card
    named = {*card.scores.names, *(entry.score for entry in card.expected)}
    return [name for name in names_by_field(problem.space) if name in named]


def examine(analysis: xr.Dataset, examiners: Examiners, problem: Problem) -> xr.Dataset:
    """Statistics of an analysis at observations that it has not seen.

    The examiners are noisy: their error is in the RMSE, so its variance is added to that of the ensemble.
    """
    space, operator = problem.space, examiners.likelihood.operator
    gone = gone_of(analysis)
    if gone is not None:
        analysis = filled(analysis, space, gone)
    lead = ["experiment"] if "experiment" in analysis.dims else []
    times = analysis["time"]

    def seen(states: torch.Tensor, dims: list[str]) -> xr.DataArray:
        values = operator(states.double())
        return xr.DataArray(values.reshape(*values.shape[: len(dims)], 1, -1).numpy(), dims=[*dims, "channel", "value"])

    names = [f.name for f in space.fields]
    members = None
    if all(n in analysis for n in names):
        members = seen(space.to_tensor(analysis, dtype=torch.float64), [*lead, "member", "time"])
    mean, std = moment_space(space, "mean"), moment_space(space, "std")
    centre = seen(mean.to_tensor(analysis, dtype=torch.float64), [*lead, "time"])
    spread: Any = None
    if all(f.name in analysis for f in std.fields):
        noise = examiners.likelihood.noise.variance(operator.obs_size, dtype=torch.float64).numpy()
        spread = np.sqrt(seen(std.to_tensor(analysis, dtype=torch.float64), [*lead, "time"]) ** 2 + noise)
    values = examiners.observations.sel(time=times)
    array = values[next(iter(values.data_vars))]
    kept = [d for d in ("experiment", "time") if d in array.dims]
    flat = array.transpose(*kept, ...).values.reshape(*(array.sizes[d] for d in kept), 1, -1)
    target = xr.DataArray(flat.astype(float), dims=[*kept, "channel", "value"])
    weights = analysis.get("log_weights")
    estimate = Estimated(members, centre, spread, None if weights is None else weights.reset_coords(drop=True))
    return blanked(compare(estimate, target, 1.0, _without_events(problem)), gone)


def expectations(card: Card, found: dict[str, dict[str, float]]) -> list[dict[str, Any]]:
    """Expected scores of methods that have finished, in words and as found."""
    out = []
    for wanted in card.expected:
        value = found.get(wanted.method, {}).get(wanted.score)
        other = found.get(wanted.relative_to, {}).get(wanted.score) if wanted.relative_to else 1.0
        if value is None or not other:
            continue
        ratio = value / other
        low = wanted.min if wanted.min is not None else -math.inf
        high = wanted.max if wanted.max is not None else math.inf
        if wanted.value is not None and wanted.tolerance is not None:
            low, high = max(low, wanted.value - wanted.tolerance), min(high, wanted.value + wanted.tolerance)
        bound = (
            f"{low:g} to {high:g}"
            if low > -math.inf and high < math.inf
            else (f"at most {high:g}" if high < math.inf else f"at least {low:g}")
        )
        of = f" times that of {wanted.relative_to}" if wanted.relative_to else ""
        out.append(
            {
                "method": wanted.method,
                "score": wanted.score,
                "text": f"{wanted.score} {bound}{of}",
                "found": ratio,
                "passed": bool(low <= ratio <= high),
                "source": wanted.source,
            }
        )
    return out


def _joined(parts: list[xr.Dataset]) -> xr.Dataset:
    return parts[0] if len(parts) == 1 else xr.concat(parts, "time", data_vars="minimal", join="override")


def _without_events(problem: Problem) -> Any:
    from dataclasses import replace

    return replace(problem.scoring, thresholds=(), offset=(0.0,), scale=(1.0,), weights="equal")
