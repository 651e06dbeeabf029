r"""What a run is given, brought into the one form that the cycle takes: a Dataset along the times of analyses.

Instruments and tables are gathered (`assimilate.engine.network`), times that are not those of model steps are scheduled
(`assimilate.schedule`), and a model that has to take shorter steps is told so. A single Dataset with the schedule
"exact" is left as it is, lazy or not. Arguments that cannot be are refused before anything is read or written.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, NamedTuple, cast

import numpy as np
import xarray as xr
from torch import Tensor

from assimilate.baselines.base import Baseline
from assimilate.engine.cycle import INITIAL_STEP, Cycle, LikelihoodOrRule, Method, check_values, space_of, with_time
from assimilate.engine.inspection import Inspection
from assimilate.engine.network import Network, gather
from assimilate.errors import UserError
from assimilate.feedback import Feedback
from assimilate.filters.base import Filter
from assimilate.filters.substepped import Substepped
from assimilate.quality import Quality, check_names, controls_by_name, looks_at_background
from assimilate.schedule import Schedule
from assimilate.smoothers.base import Smoother
from dynamics.settings import whole
from observations.base import ObservationOperator
from observations.instruments import Instrument
from observations.likelihood import Likelihood
from observations.noise import Noise

Given = xr.Dataset | Instrument | Sequence[Instrument]
"""What may be assimilated: values with a `time` dim and a likelihood, or instruments."""


class Taken(NamedTuple):
    """The form that the cycle takes.

    Attributes:
        method: perhaps with a model that takes shorter steps.
        observations: with a `time` dim, the times of the analyses.
        likelihood: of them.
        start: time of the initial ensemble, or None.
        inspection: checks and feedback, or None.
    """

    method: Method
    observations: xr.Dataset
    likelihood: LikelihoodOrRule | None
    start: Any
    inspection: Inspection | None


def take_in(
    method: Method,
    observations: Given,
    likelihood: LikelihoodOrRule | Literal["own"] | None,
    *,
    schedule: Schedule | str = "exact",
    quality: Quality | None = None,
    feedback: Feedback | None = None,
    initial: xr.Dataset | Tensor | None = None,
    start: Any = None,
    time_unit: str = "h",
) -> Taken:
    """Bring what `run` is given into one form; see there for the arguments.

    Raises:
        UserError: instruments and a likelihood, or neither; a schedule, check or feedback that the method cannot have;
            values that are no numbers, or not as many as the operator has.
    """
    _check_kinds(observations, likelihood, start)
    try:
        wanted = Schedule.of(schedule)
    except ValueError as error:
        raise UserError(str(error)) from None
    if start is None and isinstance(initial, xr.Dataset) and "time" in initial.coords:
        start = initial["time"] if initial["time"].ndim == 0 else initial["time"][-1]
    if isinstance(observations, xr.Dataset):
        if "location" in observations.dims:
            observations = [Instrument("observations", observations)]
        elif isinstance(likelihood, str) and observations.data_vars:
            raise UserError("values with a time need likelihood=..., operator and noise; None assimilates nothing")
        elif wanted.rule != "exact" and not (likelihood is None or isinstance(likelihood, str | Network)):
            observations = [Instrument("observations", with_time(observations), likelihood)]
            likelihood = "own"
    if not isinstance(observations, xr.Dataset):
        if not (likelihood is None or isinstance(likelihood, str)):
            raise UserError("instruments bring their own likelihoods; leave out likelihood=...")
        listed = [observations] if isinstance(observations, Instrument) else list(observations)
        moved_by = next((h for n in ("dynamics", "prior") if (h := getattr(method, n, None)) is not None), None)
        step = getattr(moved_by, "dt", None)
        observations, network = gather(
            listed,
            space_of(method),
            schedule=wanted,
            start=start,
            dt=None if step is None else float(step),
            time_unit=time_unit,
        )
        likelihood = None if likelihood is None else network
    observations = with_time(observations)
    if not (likelihood is None or isinstance(likelihood, str)):
        check_values(observations, likelihood)
    if wanted.divides_steps:
        if isinstance(method, Smoother):
            raise UserError(f'{method.name} has a grid of its own steps; use the schedule "nearest"')
        method = cast(Method, Substepped(method)) if isinstance(method, Filter) else method
    if isinstance(likelihood, str):
        likelihood = None
    if quality is None and feedback is None:
        return Taken(method, observations, likelihood, start, None)
    return _looked_at(method, observations, likelihood, start, quality, feedback)


def _check_kinds(observations: Any, likelihood: Any, start: Any) -> None:
    """What is given must be of the kinds that `run` names; a class in the place of another fails far from here."""
    listed = observations if isinstance(observations, Sequence) else [observations]
    for one in listed:
        if not isinstance(one, Instrument | xr.Dataset) or (one is not observations and isinstance(one, xr.Dataset)):
            raise UserError(
                f"the observations are or hold a {type(one).__name__}; expected a Dataset with a 'time' dim, a table "
                "with a 'location' dim, an Instrument or a list of those"
            )
    if isinstance(likelihood, str) and likelihood != "own":
        raise UserError(f"likelihood={likelihood!r}; expected a Likelihood, a function that gives one, None or 'own'")
    known = likelihood is None or isinstance(likelihood, str | Likelihood)
    if not known and (isinstance(likelihood, ObservationOperator | Noise | type) or not callable(likelihood)):
        raise UserError(
            f"likelihood is a {type(likelihood).__name__}; expected Likelihood(operator, noise), or a function that "
            "gives one for the observations of a time"
        )
    if start is not None and np.size(start) != 1:
        raise UserError(f"start holds {np.size(start)} times; expected the one time of the initial ensemble")


def _looked_at(
    method: Method,
    observations: xr.Dataset,
    likelihood: LikelihoodOrRule | None,
    start: Any,
    quality: Quality | None,
    feedback: Feedback | None,
) -> Taken:
    """With checks and feedback; a method that is no filter has only what needs no forecast."""
    if likelihood is None:
        raise UserError("quality and feedback look at observed values; this run assimilates none")
    if isinstance(likelihood, Network):
        names = [part.instrument.name for part in likelihood.parts]
    else:
        names = [str(n) for n in observations.data_vars]
    if quality is not None:
        check_names(quality, names)
    if isinstance(method, Filter):
        return Taken(method, observations, likelihood, start, Inspection(quality, feedback))
    if feedback is not None or (quality is not None and looks_at_background(quality)):
        kind = "baseline" if isinstance(method, Baseline) else "smoother"
        raise UserError(f"{method.name} is a {kind}: it has no forecast; feedback and background checks need a filter")
    assert quality is not None
    checked = {}
    for name, array in observations.data_vars.items():
        for control in controls_by_name(quality, owner(name, likelihood)):
            if control.gross is not None:
                array = array.where((array >= control.gross[0]) & (array <= control.gross[1]))
        checked[name] = array
    return Taken(method, observations.assign(checked), likelihood, start, None)


def begin_feedback(cycle: Cycle, many: bool) -> None:
    """Empty the feedback of a run that begins, and tell it what no analysis will have."""
    if cycle.inspection is not None and cycle.inspection.feedback is not None:
        outside = cycle.likelihood.outside() if isinstance(cycle.likelihood, Network) else []
        cycle.inspection.feedback.begin(cycle.space, many, outside)


def owner(variable: Any, likelihood: LikelihoodOrRule) -> str:
    """Name of the instrument whose values a variable holds."""
    if isinstance(likelihood, Network):
        return next(part.instrument.name for part in likelihood.parts if variable in part.names)
    return str(variable)


def check_arguments(
    on_divergence: str,
    first: int,
    *,
    out: Any = None,
    resume: bool = False,
    overwrite: bool = False,
    checkpoint_every: int | None = None,
    feedback: Feedback | None = None,
) -> None:
    """Raise a UserError if arguments of a run are not what they can be, or do not go together; see `run`."""
    if on_divergence not in ("record", "raise"):
        raise UserError(f"on_divergence is {on_divergence!r}; expected 'record' or 'raise'")
    # Random numbers belong to the index of an analysis, and the largest one to the initial ensemble.
    if not whole(0, INITIAL_STEP - 1).hold(first):
        raise UserError(f"first is {first!r}; expected the index of the first analysis, 0 or more")
    if out is None and (resume or overwrite or checkpoint_every is not None):
        raise UserError("resume, overwrite and checkpoint_every are about a result in a file: give out='analysis.nc'")
    if not whole(1, none=True).hold(checkpoint_every):
        raise UserError(f"checkpoint_every is {checkpoint_every!r}; expected 1 analysis or more")
    if feedback is not None and resume:
        raise UserError("feedback is held in memory, that of an earlier part is gone: leave out feedback or resume")
