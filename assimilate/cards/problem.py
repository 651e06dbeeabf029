"""From a card to what is computed: truth, observations, likelihood, initial law, methods.

Everything that can be wrong with a card or its files is found here, before the first analysis and before anything is
written. The random numbers of truth, observed cells, noise and methods come from different children of the seed.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import xarray as xr

from assimilate import registry
from assimilate.cards.card import Card
from assimilate.cards.instruments import entries_of, first_time, gathered, on_truth, open_instruments, quality_of
from assimilate.cards.sources import open_grid, open_stations, open_truth, places_of, transform_of
from assimilate.engine.clock import Clock
from assimilate.engine.network import Network
from assimilate.errors import CardError, DataError
from assimilate.experiment import child_seed
from assimilate.filters.base import Filter
from assimilate.quality import Quality, QualityControl
from assimilate.verification.statistics import Scoring
from dynamics.base import Dynamics, simulate
from dynamics.space import Space
from observations.base import ObservationOperator
from observations.likelihood import Likelihood
from observations.sampling import Identity, Mask, Stations, random_mask
from observations.synthetic import observe


@dataclass(frozen=True)
class Examiners:
    """Observations that no method sees.

    Args:
        observations: their values, (experiment, time, value).
        likelihood: what they see of a state.
    """

    observations: xr.Dataset
    likelihood: Likelihood


@dataclass(frozen=True)
class Problem:
    """What every method of a card is given.

    Args:
        card: the card.
        space: of the state.
        truth: states at all times, or None.
        observations: (experiment, time, value), Space units.
        likelihood: what they see of a state; of instruments, the rule for each time.
        dynamics: of the simulated truth, or None.
        start: time of the initial ensemble.
        examiners: withheld observations, or None.
        cells: flat indices of the observed cells on the grid, where observations are cells.
    """

    card: Card
    space: Space
    truth: xr.Dataset | None
    observations: xr.Dataset
    likelihood: Likelihood | Network
    dynamics: Dynamics | None
    start: Any
    examiners: Examiners | None
    cells: np.ndarray | None

    @property
    def experiments(self) -> int:
        """Number of truths that are assimilated as one batch."""
        return self.observations.sizes.get("experiment", 1)

    @property
    def divides_steps(self) -> bool:
        """Whether models take shorter steps where observations fall between theirs."""
        return self.card.observations.schedule == "substep"

    def quality(self, method: Any) -> Quality | None:
        """The checks of what a method assimilates; one that is no filter has no background check."""
        quality = quality_of(self.card)
        if quality is None or isinstance(method, Filter):
            return quality
        if isinstance(quality, QualityControl):
            return replace(quality, background=None)
        return {name: replace(control, background=None) for name, control in quality.items()}

    @property
    def values_at_a_time(self) -> int:
        """Number of observed values at a time, the largest where they differ."""
        if not isinstance(self.likelihood, Network):
            return self.likelihood.operator.obs_size
        arrays = self.observations.data_vars.values()
        return sum(a.size // a.sizes["time"] // a.sizes.get("experiment", 1) for a in arrays)

    @property
    def scoring(self) -> Scoring:
        """How results are scored."""
        scores = self.card.scores
        return Scoring(
            tuple(scores.offset),
            tuple(scores.scale),
            tuple(scores.csi.thresholds) if scores.csi else (),
            scores.csi.unit if scores.csi else "",
            scores.drop,
            scores.weights,
            scores.diverged,
        )

    def initial(self) -> tuple[xr.Dataset | None, float | tuple[float, ...] | None]:
        """The state and the noise from which ensembles start; (None, None) for the prior."""
        if self.card.initial.law == "prior":
            return None, None
        assert self.truth is not None
        std = self.card.initial.std
        known = self.truth.isel(time=slice(0, self.card.initial.frames))
        return known if known.sizes["time"] > 1 else known.isel(time=0), tuple(std) if isinstance(std, list) else std


def prepare(card: Card, *, draw: int = 0, folder: Path | None = None, dtype: torch.dtype = torch.float32) -> Problem:
    """Read or simulate the truth, make or read the observations.

    Args:
        card: a checked card.
        draw: which repetition of observed cells and noise.
        folder: of the card, for relative paths.
        dtype: of simulated states and observations.

    Raises:
        UserError: whatever is wrong with the card or its files, in one line.
    """
    quality_of(card)
    dynamics = None if card.truth.dynamics is None else _dynamics(card.truth.dynamics.spec(), "truth.dynamics")
    truth, space = _truth(card, dynamics, folder, dtype)
    seed = card.seed if card.observations.seed is None else card.observations.seed
    examiners = None
    if entries_of(card):
        space = space or _space_of_methods(card)
        made, examiners = _gathered(card, space, truth, dynamics, folder, child_seed(seed + draw, "withheld"))
    elif card.observations.data is not None:
        made = _measured(card, space, folder)
        space = made.space
    else:
        assert truth is not None and space is not None
        made = _synthetic(card, truth, space, child_seed(seed + draw, "observations"), dtype)
    if card.verification.withhold > 0 and examiners is None:
        made, examiners = _withheld(made, card.verification.withhold, child_seed(seed + draw, "withheld"))
    if truth is not None:
        missing = ~np.isin(made.observations["time"].values, truth["time"].values)
        if missing.any():
            hint = '; observations.schedule = "nearest" brings them to model steps' if entries_of(card) else ""
            raise DataError(
                f"observations at {made.observations['time'].values[missing][0]}: the truth has no such time{hint}"
            )
    start = _start(card, truth, made.observations) if made.start is None else made.start
    problem = Problem(
        card, made.space, truth, made.observations, made.likelihood, dynamics, start, examiners, made.cells
    )
    if truth is None and examiners is None and card.expected:
        raise CardError("expected scores need a truth, or stations withheld for verification")
    return problem


@dataclass(frozen=True)
class _Made:
    space: Space
    observations: xr.Dataset
    likelihood: Likelihood | Network
    cells: np.ndarray | None
    start: Any = None


def _dynamics(spec: dict[str, Any], where: str) -> Any:
    return registry.build("dynamics", spec, where)


def _truth(
    card: Card, dynamics: Any, folder: Path | None, dtype: torch.dtype
) -> tuple[xr.Dataset | None, Space | None]:
    truth = card.truth
    if truth.data is not None:
        return open_truth(truth, folder)
    if dynamics is None:
        return None, None
    assert truth.steps is not None
    try:
        states = simulate(
            dynamics,
            steps=truth.steps * truth.every,
            trajectories=truth.experiments,
            seed=child_seed(card.seed if truth.seed is None else truth.seed, "truth"),
            every=truth.every,
            spinup=truth.spinup,
            dtype=dtype,
        )
    except FloatingPointError as error:
        raise CardError(f"truth.dynamics: {error}") from error
    return states, dynamics.space


def _synthetic(card: Card, truth: xr.Dataset, space: Space, seed: int, dtype: torch.dtype) -> _Made:
    """Observations made from the truth."""
    wanted = card.observations
    cells = None
    if wanted.operator is not None:
        operator: ObservationOperator = registry.build(
            "operator", wanted.operator.spec(), "observations.operator", space=space
        )
    elif wanted.fraction is not None:
        if not space.grid:
            raise CardError("observations.fraction: the state has no grid; name an operator instead")
        operator = random_mask(space, wanted.fraction, child_seed(seed, "cells"))
        cells = np.unique(operator.index.numpy() % int(np.prod(space.grid_shape)))
    else:
        operator = Identity(space)
    likelihood = Likelihood(operator, _noise(wanted.noise))
    # The first state of a simulated (or known) truth is where ensembles start; it is not observed.
    skip = card.initial.frames if card.truth.dynamics is not None or card.initial.law != "prior" else 0
    seen = truth.isel(time=slice(skip, None)).isel(time=slice(wanted.every - 1 if skip else 0, None, wanted.every))
    if seen.sizes["time"] == 0:
        raise CardError("observations.every leaves no observation time")
    return _Made(space, observe(seen, space, likelihood, seed=seed, dtype=dtype), likelihood, cells)


def _measured(card: Card, space: Space | None, folder: Path | None) -> _Made:
    """Observations that were read from a file."""
    wanted = card.observations
    name = str(wanted.data)
    transform = transform_of(card.truth)
    if wanted.layout == "grid":
        values = open_grid(wanted, space, transform, folder)
        if space is None:
            fields = values.rename(observation=wanted.variable or "state")
            space = Space.from_dataset(fields, transforms={str(n): transform for n in fields}, mask=None)
        if space.event_shape[0] != 1:
            raise DataError(f"'{name}': gridded observations are of one field, the state has {space.channels}")
        operator: ObservationOperator = Identity(space)
        # Gridded values have no channel dim; the operator's values have.
        values = values.expand_dims("channel", values["observation"].dims.index("time") + 1)
    else:
        if space is None:
            space = _space_of_methods(card)
        values = open_stations(wanted, transform, folder)
        try:
            operator = Stations(space, places_of(values, space, name), wanted.interpolation)
        except ValueError as error:
            raise DataError(f"'{name}': {error}") from error
    if not bool(np.isfinite(values["observation"]).any()):
        raise DataError(f"'{name}': there is no finite value")
    return _Made(space, values, Likelihood(operator, _noise(wanted.noise)), None)


def _gathered(
    card: Card, space: Space, truth: xr.Dataset | None, dynamics: Any, folder: Path | None, seed: int
) -> tuple[_Made, Examiners | None]:
    """The instruments of a card on the times of analyses."""
    from assimilate.cards.methods import transition_of

    instruments = open_instruments(card, space, folder)
    start = _start(card, truth, xr.Dataset(coords={"time": [first_time(instruments)]}))
    if dynamics is None and card.observations.schedule == "nearest":
        moved_by = (transition_of(entry, f"method[{k}]", folder) for k, entry in enumerate(card.method))
        dynamics = next((m for m in moved_by if m is not None), None)
    dt = None if dynamics is None else float(dynamics.dt)
    if truth is not None and card.truth.data is not None and card.observations.schedule == "nearest":
        start, spacing = _on_axis(truth["time"], start, card.truth.time_unit)
        dt = spacing if dt is None else dt
    found = gathered(card, instruments, space, start=start, dt=dt, seed=seed)
    observations = on_truth(found.observations, truth)
    network = replace(found.network, times=observations["time"].values)
    made = _Made(space, observations, network, None, start)
    if found.withheld is None:
        return made, None
    return made, Examiners(on_truth(found.withheld[0], truth), found.withheld[1])


def _on_axis(times: xr.DataArray, start: Any, unit: str) -> tuple[Any, float]:
    """The time of the truth at or before the start, and the spacing of its times: analyses are made where it has them.

    Raises:
        DataError: times that are not evenly spaced.
    """
    numbers = Clock.of(times, unit).numbers(times)
    gaps = np.diff(numbers)
    if gaps.size == 0 or not np.allclose(gaps, gaps[0], rtol=1e-6):
        raise DataError(
            'observations.schedule = "nearest": the times of the truth are not evenly spaced; use "exact", or '
            '"window" with the analyses you want'
        )
    place = int(np.searchsorted(times.values, np.asarray(start), side="right")) - 1
    return times[max(place, 0)], float(gaps[0])


def _noise(noise: Any) -> Any:
    spec = {"type": "GaussianNoise", "std": float(noise)} if isinstance(noise, int | float) else noise.spec()
    return registry.build("noise", spec, "observations.noise")


def _withheld(made: _Made, share: float, seed: int) -> tuple[_Made, Examiners]:
    """Split the observed places: most for the methods, a share for verification."""
    assert isinstance(made.likelihood, Likelihood)
    operator = made.likelihood.operator
    shape = operator.obs_shape
    count = operator.obs_size
    if not isinstance(operator, Mask | Stations | Identity):
        raise CardError(f"verification.withhold: {type(operator).__name__} has no places that can be withheld")
    places = len(operator.points) if isinstance(operator, Stations) else count
    order = np.random.default_rng(seed).permutation(places)
    cut = max(1, round(share * places))
    if cut >= places:
        raise CardError(f"verification.withhold: {share} of {places} places leaves none to assimilate")
    hidden, kept = np.sort(order[:cut]), np.sort(order[cut:])
    if isinstance(operator, Identity):
        flat = np.zeros(count, dtype=bool)
        flat[hidden] = True
        mask = xr.DataArray(flat.reshape(shape), dims=made.observations["observation"].dims[-len(shape) :])
        values = made.observations["observation"]
        lead = [d for d in values.dims if d in ("experiment", "time")]
        seen = values.transpose(*lead, ...).values.reshape(*(values.sizes[d] for d in lead), -1)[..., hidden]
        examined = xr.Dataset({"observation": ((*lead, "value"), seen)}, {"time": values["time"]})
        judge = Likelihood(Mask(operator.space, torch.from_numpy(hidden)), made.likelihood.noise)
        return replace(made, observations=made.observations.where(~mask)), Examiners(examined, judge)
    last = str(made.observations["observation"].dims[-1])
    parts = [_part_of(operator, index) for index in (kept, hidden)]
    judge = Likelihood(parts[1], made.likelihood.noise)
    examined = made.observations.isel({last: hidden})
    cells = parts[0].index.numpy() if isinstance(parts[0], Mask) and made.cells is not None else None
    rest = _Made(made.space, made.observations.isel({last: kept}), Likelihood(parts[0], made.likelihood.noise), cells)
    return rest, Examiners(examined, judge)


def _part_of(operator: Mask | Stations, index: np.ndarray) -> Mask | Stations:
    if isinstance(operator, Mask):
        return Mask(operator.space, operator.index[torch.from_numpy(index)])
    return replace(operator, points=np.asarray(operator.points)[index], names=None)


def _start(card: Card, truth: xr.Dataset | None, observations: xr.Dataset) -> Any:
    """Time of the initial ensemble."""
    first = observations["time"][0]
    if card.initial.law != "prior":
        if truth is None:
            raise CardError(f'initial.law = "{card.initial.law}" needs a truth')
        if truth.sizes["time"] <= card.initial.frames:
            raise CardError(f"initial.frames: all {truth.sizes['time']} states of the truth are known; nothing is left")
        return truth["time"][card.initial.frames - 1]
    if card.truth.dynamics is not None:
        assert truth is not None
        return truth["time"][0]
    if card.initial.before == 0.0:
        return first
    if np.issubdtype(first.dtype, np.datetime64):
        return first - Clock.of(first, card.truth.time_unit).one * card.initial.before
    return first - card.initial.before


def _space_of_methods(card: Card) -> Space:
    """The grid of the first method that has one, for station data without a gridded truth."""
    from assimilate.cards.methods import transition_of

    for index, entry in enumerate(card.method):
        made = transition_of(entry, f"method[{index}]")
        if made is not None:
            return made.space
    raise CardError("stations without a gridded truth need a method with dynamics or a transition: it has the grid")
