"""Recipes by name: what `assimilate fit` runs.

A recipe is a settings dataclass and a function `(source, settings, *, resume, progress, device) -> trained`, where
`trained.to_checkpoint()` is what is written.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import fields, is_dataclass, replace
from pathlib import Path as FilePath
from typing import TYPE_CHECKING, Any, get_type_hints

import torch

from assimilate.errors import UnknownName, UserError
from assimilate.learning.checkpoint import save_checkpoint
from assimilate.learning.diagnose import one_step_errors
from assimilate.learning.field_fit import FieldFit, fit_field
from assimilate.learning.forecast_fit import ForecastFit, fit_forecast
from assimilate.learning.samples import Trajectories
from assimilate.learning.transition_fit import TransitionFit, fit_transition
from assimilate.learning.window_fit import WindowFit, fit_window
from dynamics import Dynamics

if TYPE_CHECKING:
    import xarray as xr

RECIPES: dict[str, tuple[type, Callable[..., Any]]] = {
    "field": (FieldFit, fit_field),
    "forecast": (ForecastFit, fit_forecast),
    "transition": (TransitionFit, fit_transition),
    "window": (WindowFit, fit_window),
}
"""Name -> (settings class, function)."""


def train(
    recipe: str,
    source: Dynamics | xr.Dataset | Trajectories,
    settings: Mapping[str, Any] | None = None,
    *,
    file: str | os.PathLike[str],
    resume: str | os.PathLike[str] | None = None,
    progress: bool = False,
    device: torch.device | str = "cpu",
    half: bool = False,
) -> FilePath:
    """Train by a named recipe, measure the result and write its checkpoint.

    Args:
        recipe: key of `RECIPES`.
        source: a simulator, a Dataset of states over time, or trajectories.
        settings: settings of the recipe as a table, nested like its dataclass.
        file: the checkpoint to write.
        resume: folder for resume files; a killed run continues from there.
        progress: show progress bars.
        device: where to train.
        half: whether weights are stored in half precision.

    Returns:
        The checkpoint's path.

    Raises:
        UnknownName: no such recipe, or a setting that it does not have.
    """
    if recipe not in RECIPES:
        raise UnknownName("recipe", recipe, RECIPES)
    settings_class, function = RECIPES[recipe]
    chosen = build_settings(settings_class, settings or {}, f"recipe '{recipe}'")
    trained = function(source, chosen, resume=resume, progress=progress, device=device)
    # Two hundred thousand steps of a gridded system would take longer than its training.
    if recipe == "transition" and isinstance(source, Dynamics) and not source.space.grid:
        trained = replace(trained, record={**trained.record, "measured": measured(trained, source)})
    return save_checkpoint(trained.to_checkpoint(), file, half=half)


def measured(learned: Dynamics, true: Dynamics, *, states: int = 500, draws: int = 400, seed: int = 10**6) -> dict:
    """One-step errors on states of trajectories that training has not seen, as a record holds them."""
    data = Trajectories.simulated(true, trajectories=states, states=2, spinup=200, seed=seed)
    rng = torch.Generator().manual_seed(seed)
    errors = one_step_errors(learned, true, data.states[:, -1], draws=draws, rng=rng)
    rounded = {
        name: None if value is None else [round(v, 6) for v in value.flatten().tolist()]
        for name, value in errors._asdict().items()
    }
    return {**rounded, "states": states, "draws": draws, "seed": seed}


def build_settings(settings_class: type, table: Mapping[str, Any], where: str) -> Any:
    """A settings dataclass from a table such as a card's; nested tables become nested dataclasses.

    Raises:
        UnknownName: a key that the dataclass does not have.
        UserError: a value that it does not take.
    """
    known = {entry.name: entry for entry in fields(settings_class)}
    hints = get_type_hints(settings_class)
    values: dict[str, Any] = {}
    for key, value in table.items():
        if key not in known:
            raise UnknownName(f"setting of {where}:", key, known)
        if is_dataclass(hints[key]):
            if not isinstance(value, Mapping):
                raise UserError(f"{where}: {key} is a table of settings; {value!r} was given (set {key}.NAME = VALUE)")
            # A nested table changes some settings of the default and leaves the others.
            default = vars(known[key].default)
            value = build_settings(hints[key], {**default, **value}, f"{where}, {key}")
        values[key] = tuple(value) if isinstance(value, list) else value
    try:
        return settings_class(**values)
    except (TypeError, ValueError) as error:
        raise UserError(f"{where}: {error}") from error
