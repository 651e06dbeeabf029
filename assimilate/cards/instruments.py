"""Measured values of a card that come as instruments: tables and grids from files, gathered into one stream.

    [[instrument]]                        [observations]
    name = "gauges"                       layout = "table"        one table is an instrument too
    data = "gauges.csv"                   data = "gauges.csv"
    noise = 0.5                           schedule = "nearest"

Values are brought into Space units by the transform of the truth; errors of tables are given in them.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr

from assimilate import registry
from assimilate.cards.card import Card
from assimilate.cards.observations import Instrument as Entry
from assimilate.cards.observations import Observations, Quality
from assimilate.cards.sources import located, open_grid, transform_of, transformed
from assimilate.engine.clock import places_in
from assimilate.engine.flags import WITHHELD
from assimilate.engine.network import Network, gather
from assimilate.errors import CardError, DataError, UserError
from assimilate.quality import QualityControl
from assimilate.schedule import Schedule
from dynamics.errors import DataError as FileError
from dynamics.space import Space
from observations.blocks import joined
from observations.instruments import Instrument
from observations.likelihood import Likelihood
from observations.noise import GaussianNoise
from observations.sampling import Identity
from observations.tables import LOCATION, channels_of, places_of, read_table


@dataclass(frozen=True)
class Gathered:
    """The instruments of a card, on the times of analyses.

    Args:
        observations: `(experiment, time, ...)`.
        network: their likelihood.
        withheld: observations that no method sees, `(experiment, time, value)`, and what they see; or None.
    """

    observations: xr.Dataset
    network: Network
    withheld: tuple[xr.Dataset, Likelihood] | None


def entries_of(card: Card) -> list[Entry]:
    """The instruments of a card; [observations] with layout = "table" is one of its own."""
    if card.instrument:
        return card.instrument
    seen = card.observations
    if seen.layout != "table" or seen.data is None:
        return []
    noise = seen.noise if isinstance(seen.noise, float) and seen.noise > 0 else None
    return [
        Entry(
            name="observations", data=seen.data, variable=seen.variable, noise=noise, interpolation=seen.interpolation
        )
    ]


def schedule_of(wanted: Observations) -> Schedule:
    """The schedule of [observations]."""
    if wanted.window is None:
        return Schedule(wanted.schedule)
    return Schedule("window", every=wanted.window.every, length=wanted.window.length, ending=wanted.window.ending)


def quality_of(card: Card) -> QualityControl | dict[str, QualityControl] | None:
    """The checks of a card, for all values or by instrument."""
    own = {entry.name: entry.quality for entry in entries_of(card)}
    try:
        if any(quality is not None for quality in own.values()):
            chosen = {name: quality or card.quality for name, quality in own.items()}
            return {name: _control(quality) for name, quality in chosen.items() if quality is not None}
        return None if card.quality is None else _control(card.quality)
    except ValueError as error:
        raise CardError(f"quality: {error}") from None


def open_instruments(card: Card, space: Space, folder: Path | None) -> list[Instrument]:
    """The instruments of a card, read from their files.

    Raises:
        UserError: a file that cannot serve.
    """
    return [_opened(card, entry, space, folder) for entry in entries_of(card)]


def first_time(instruments: list[Instrument]) -> Any:
    """When the first value was made."""
    return min(i.observations["time"].values.min() for i in instruments if i.observations["time"].size)


def gathered(
    card: Card,
    instruments: list[Instrument],
    space: Space,
    *,
    start: Any,
    dt: float | None,
    seed: int,
) -> Gathered:
    """The instruments on the times of analyses, a share of their places withheld.

    Args:
        card: gives the schedule and the share.
        instruments: of the card.
        space: of the state.
        start: time of the initial ensemble.
        dt: length of a model step, or None.
        seed: draws the places that are withheld.
    """
    share = card.verification.withhold
    if share > 0:
        instruments = _withholding(instruments, space, share, seed)
    observations, network = gather(
        instruments, space, schedule=schedule_of(card.observations), start=start, dt=dt, time_unit=card.truth.time_unit
    )
    return Gathered(observations, network, _examined(network, observations) if share > 0 else None)


def on_truth(observations: xr.Dataset, truth: xr.Dataset | None) -> xr.Dataset:
    """Observations whose times, where they differ from those of the truth by rounding, are those of the truth."""
    if truth is None:
        return observations
    nearest, same = places_in(observations["time"].values, truth["time"].values)
    return observations.assign_coords(time=np.where(same, truth["time"].values[nearest], observations["time"].values))


def _control(quality: Quality) -> QualityControl:
    gross = None if quality.gross is None else (quality.gross[0], quality.gross[1])
    return QualityControl(gross=gross, background=quality.background)


def _opened(card: Card, entry: Entry, space: Space, folder: Path | None) -> Instrument:
    transform = transform_of(card.truth)
    if entry.layout == "grid":
        wanted = Observations(data=entry.data, variable=entry.variable, noise=entry.noise or 0.0)
        values = open_grid(wanted, space, transform, folder)
        spec = None if entry.operator is None else entry.operator.spec()
        where = f"instrument[{entry.name}]"
        if spec is None:
            if space.event_shape[0] != 1:
                raise DataError(f"'{entry.data}': gridded values are of one field; the state has {space.channels}")
            operator: Any = Identity(space)
            values = values.expand_dims("channel", values["observation"].dims.index("time") + 1)
        else:
            operator = registry.build("operator", spec, f"{where}.operator", space=space)
        noise = {"type": "GaussianNoise", "std": entry.noise} if isinstance(entry.noise, float) else entry.noise.spec()  # type: ignore[union-attr]
        return Instrument(entry.name, values, Likelihood(operator, registry.build("noise", noise, f"{where}.noise")))
    error = entry.noise if isinstance(entry.noise, float) else None
    try:
        table = read_table(located(entry.data, folder), value=entry.variable, error=error)
        table = table.assign(value=transformed(table["value"].astype(np.float64), transform))
        made = Instrument(entry.name, table, interpolation=entry.interpolation, error=error)
        made.errors()
    except (FileError, ValueError) as problem:
        raise DataError(f"'{entry.data}': {problem}") from problem
    if not bool(np.isfinite(table["value"]).any()):
        raise DataError(f"'{entry.data}': there is no finite value")
    return made


def _withholding(instruments: list[Instrument], space: Space, share: float, seed: int) -> list[Instrument]:
    """Tables in which the rows of some places are marked as withheld."""
    rng = np.random.default_rng(seed)
    out, found = [], False
    for instrument in instruments:
        if not instrument.tabular:
            out.append(instrument)
            continue
        try:
            places, place = np.unique(places_of(instrument.observations, space), axis=0, return_inverse=True)
        except (FileError, ValueError) as problem:
            raise DataError(str(problem)) from problem
        cut = max(1, round(share * len(places)))
        if cut >= len(places):
            raise CardError(f"verification.withhold: {share} of {len(places)} places leaves none to assimilate")
        hidden = np.isin(place.reshape(-1), rng.permutation(len(places))[:cut])
        table = instrument.observations.assign(withheld=(LOCATION, hidden))
        out.append(replace(instrument, observations=table))
        found = True
    if not found:
        raise CardError("verification.withhold: no instrument is a table with places that can be withheld")
    return out


def _examined(network: Network, observations: xr.Dataset) -> tuple[xr.Dataset, Likelihood]:
    """The withheld rows as fixed places and a value for each time, the mean where there are several."""
    pieces, likelihoods = [], []
    for part in network.parts:
        if part.rows is None:
            continue
        packed = observations[part.row].values
        time, slot = np.nonzero(packed >= 0)
        row = packed[time, slot]
        kept = part.rows.flags[row] == WITHHELD
        time, row = time[kept], row[kept]
        if not row.size:
            continue
        table = part.instrument.observations
        columns = [channels_of(table, network.space)[row, None], places_of(table, network.space)[row]]
        _, first, place = np.unique(np.concatenate(columns, 1), axis=0, return_index=True, return_inverse=True)
        place = place.reshape(-1)
        values = table["value"].values.astype(np.float64).reshape(-1, table.sizes[LOCATION])[:, row]
        total = np.zeros((len(values), observations.sizes["time"], len(first)))
        count = np.zeros_like(total)
        known = np.isfinite(values)
        for e in range(len(values)):
            np.add.at(total[e], (time, place), np.where(known[e], values[e], 0.0))
            np.add.at(count[e], (time, place), known[e])
        pieces.append(np.where(count > 0, total / np.maximum(count, 1), np.nan))
        errors = np.nan_to_num(part.rows.errors, nan=float(np.nanmean(part.rows.errors)))
        rows = table.isel({LOCATION: row[first]})
        likelihoods.append(part.instrument.row_likelihood(network.space, rows, errors[row[first]]))
    if not pieces:
        raise CardError("verification.withhold: no withheld value falls to an analysis")
    many = max(len(p) for p in pieces)
    values = np.concatenate([np.broadcast_to(p, (many, *p.shape[1:])) for p in pieces], -1)
    dims = ("experiment", "time", "value") if many > 1 else ("time", "value")
    examined = xr.Dataset({"observation": (dims, values if many > 1 else values[0])}, {"time": observations["time"]})
    if not all(isinstance(likelihood.noise, GaussianNoise) for likelihood in likelihoods):
        raise UserError("withheld values need errors with a variance")
    return examined, joined(likelihoods)
