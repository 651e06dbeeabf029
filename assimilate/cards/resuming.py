"""Going on where a killed evaluation stopped: which methods of a result are those that the card asks for now.

Each method's group has a `fingerprint`, a hash of all that decides its numbers: the tables of the card that make the
problem, its own table, seed and precision, the version of the package, and the checkpoints and data that the card
names. Code of your own (`module:Class`) is not in it: after changing that, run without `--resume`.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
import xarray as xr

from assimilate.cards.card import Card, Method
from assimilate.cards.sources import located
from assimilate.verification.reference import DISTANCES

PROBLEM = ("seed", "draws", "truth", "observations", "verification", "initial", "scores")
"""Tables of a card that every method depends on."""


class Finished(NamedTuple):
    """What a result file holds of a method.

    Attributes:
        analysis: of the first draw.
        scores: means over the draws.
        spreads: their standard deviations; empty with one draw.
        units: of the scores.
    """

    analysis: xr.Dataset
    scores: dict[str, float]
    spreads: dict[str, float]
    units: dict[str, str]


def fingerprint(card: Card, entry: Method, label: str, *, beside: Path | None, dtype: torch.dtype) -> str:
    """The hash of what a method's numbers depend on, 64 hexadecimal digits.

    Args:
        card: without tasks, or that of one task.
        entry: the method's table.
        label: what it is called.
        beside: folder of the card's file, for relative paths.
        dtype: float32 or float64.
    """
    from assimilate import __version__

    tables = card.model_dump(mode="json", include=set(PROBLEM))
    # Which scores are printed, and what they are compared with, changes no number of the method's own.
    for key in ("names", "reference"):
        tables["scores"].pop(key)
    about = {
        **tables,
        "method": entry.model_dump(mode="json") | {"label": label},
        "dtype": str(dtype),
        "version": __version__,
        "data": [_stamp(name, beside) for name in (card.truth.data, card.observations.data)],
        "checkpoints": [
            _digest(name, beside) for table in (entry, card.initial) for name in _checkpoints(table.model_dump())
        ],
    }
    return hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()


def finished_methods(
    card: Card, labels: Sequence[str], path: Path, *, beside: Path | None, dtype: torch.dtype
) -> dict[str, Finished]:
    """Methods of a card that a result file already holds, by label.

    Args:
        card: without tasks, or that of one task.
        labels: of its methods.
        path: the result file; it need not exist.
        beside: folder of the card's file, for relative paths.
        dtype: float32 or float64.

    Raises:
        UserError: the file cannot be read as a result.
    """
    from assimilate.report.contents import read

    if not path.is_file():
        return {}
    held = read(path)
    table = held.scores
    if table is None:
        return {}
    units = dict(zip(table["score"].values.tolist(), table["units"].values.tolist(), strict=True))
    # Distances from another reference are those of another comparison.
    same = held.decoded("settings", {}).get("scores", {}).get("reference") == card.scores.reference
    prints = {
        label: fingerprint(card, entry, label, beside=beside, dtype=dtype)
        for entry, label in zip(card.method, labels, strict=True)
    }
    found = {}
    for entry in held.entries:
        if entry.label not in table["label"] or entry.analysis.attrs.get("fingerprint") != prints.get(entry.label):
            continue
        scores = {k: v for k, v in _row(table["value"].sel(label=entry.label)).items() if same or k not in DISTANCES}
        spreads = _row(table["spread_over_draws"].sel(label=entry.label)) if "spread_over_draws" in table else {}
        found[entry.label] = Finished(entry.analysis, scores, spreads, {k: units[k] for k in scores})
    return {label: found[label] for label in labels if label in found}


def _row(values: xr.DataArray) -> dict[str, float]:
    pairs = zip(values["score"].values.tolist(), values.values.tolist(), strict=True)
    return {str(name): float(value) for name, value in pairs if math.isfinite(value)}


def _stamp(name: str | None, beside: Path | None) -> list[Any] | None:
    """Size and time of a data file; its content would take long to read."""
    path = None if name is None else Path(located(name, beside))
    if path is None or not path.exists():
        return None
    found = path.stat()
    return [found.st_size, found.st_mtime_ns]


def _checkpoints(table: Mapping[str, Any]) -> Iterator[str]:
    """Names under `transition` and `checkpoint`, at any depth of a method's table."""
    for key, value in table.items():
        if isinstance(value, Mapping):
            yield from _checkpoints(value)
        elif key in ("transition", "checkpoint") and isinstance(value, str):
            yield value


def _digest(name: str, beside: Path | None) -> str:
    """Hash of a checkpoint's content: training writes a new one under the old name."""
    from assimilate.errors import UnknownName
    from assimilate.learning.pretrained import find_pretrained

    try:
        return hashlib.sha256(find_pretrained(located(name, beside)).read_bytes()).hexdigest()
    except UnknownName:
        # Not a file: a setting of a class that happens to have this name.
        return name
