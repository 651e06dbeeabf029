"""`reconstruct`: a measurement, an operator, a prior and a solver give images with error bars.

    result = reconstruct(measurement, "gaussian-blur", noise=0.02)        # an xarray Dataset

Everything that a Dataset carries is kept: coordinates and units of the measurement go to the image where the grid is
the same. Nothing is rescaled and nothing assumed in silence: what was assumed stands in the attributes of the result.
"""

from __future__ import annotations

import os
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
import xarray as xr
from torch import Tensor

from assimilate.devices import device_in_words, find_device
from assimilate.errors import UserError
from assimilate.posterior.denoisers import Prior
from dynamics.random import Streams
from imaging.instrument import find_operator
from imaging.layout import image_layout, observed_layout
from imaging.measurement import Measured, check_prior, check_range, check_units, fitted, is_complex_image, labelled
from imaging.memory import samples_at_once
from imaging.operators.magnetic_resonance.scanner import from_complex
from imaging.priors import Channels, Complex, load_prior, moved, prior_name, training_summary
from imaging.result import Outcome, compared, to_dataset
from imaging.solvers import find_solver
from imaging.solvers.base import Solution, Solver, Task
from observations.base import ObservationOperator
from observations.likelihood import Likelihood
from observations.noise import GaussianNoise, Noise, SignalNoise

Progress = Callable[[int, int], None]
"""Called with the number of samples that are done, and of all."""


def reconstruct(
    measurement: Any,
    operator: ObservationOperator | str,
    prior: Prior | str | os.PathLike[str] = "phantom-64",
    solver: Solver | str = "mmps",
    *,
    noise: float | Noise | SignalNoise | None = None,
    samples: int = 16,
    seed: int = 0,
    device: str | torch.device = "cpu",
    dtype: str | torch.dtype = "float32",
    at_once: int | None = None,
    shape: Sequence[int] | None = None,
    mask: Any = None,
    operator_settings: Mapping[str, Any] | None = None,
    solver_settings: Mapping[str, Any] | None = None,
    interval: float = 0.9,
    truth: Any = None,
    progress: Progress | None = None,
) -> xr.Dataset:
    """Draw images from p(image | measurement).

    Args:
        measurement: values in the units in which they were measured: array, tensor, DataArray, or Dataset of one
            variable; `(rows, columns)`, `(channel, rows, columns)`, a sinogram `(views, detectors)`, complex k-space
            `(coils, rows, columns)`..., or several of those along one more dim in front (`measurement`). NaN = not
            measured. For inpainting, a picture of which the operator sees a part, or the flat values.
        operator: what was measured: an operator, or a name (`assimilate list operators`), then built for the image
            (see `imaging.instrument`).
        prior: name of shipped weights, path of a checkpoint, or a prior. A named one of one channel is used on each
            channel of a colour or complex image; one that is given must fit.
        solver: name (`assimilate list solvers`), or a solver.
        noise: standard deviation of Gaussian noise, in the units of the measurement as given (for complex values that
            of the real and of the imaginary part), or a law of `observations`.
        samples: how many images; a solver that gives one answer gives one.
        seed: of all random numbers. Sample k is the same however many there are.
        device: where to compute.
        dtype: float32 or float64.
        at_once: samples computed together (default: as many as some 4 GB hold, see `imaging.memory`). The result does
            not depend on it, but for solvers that couple their samples, which are always computed together.
        shape: of the image, for a named operator from which it does not follow.
        mask: seen pixels, or sampled points of k-space, for a named operator.
        operator_settings: for a named operator, such as `{"std": 2.0}`.
        solver_settings: for a named solver, such as `{"steps": 50}`.
        interval: probability of the credible interval of each pixel (default 90 %).
        truth: the image itself, where it is known; it is compared with the result and nothing else.
        progress: called after each part.

    Returns:
        See `imaging.result`.

    Raises:
        UserError: no noise, a shape, unit or range that does not fit, wrong names or settings.
        CapabilityError: the operator, the noise or the prior lacks what the solver needs.
        SpaceMismatch: the prior's images are not those of the operator.
        FloatingPointError: a sample diverged.
    """
    place, precision = find_device(device), _precision(dtype)
    if samples < 1 or not 0 < interval < 1 or (at_once is not None and at_once < 1):
        raise UserError(f"samples={samples}, interval={interval}, at_once={at_once}; expected >= 1, in (0, 1), >= 1")
    law = _noise(noise)
    chosen = _solver(solver, solver_settings)
    named = isinstance(prior, str | os.PathLike)
    array = labelled(measurement)
    belief = load_prior(prior, device=place)
    built = _operator(operator, array, belief, shape, mask, operator_settings)
    if named:
        belief = _for_channels(belief, built)
    grid_note = check_prior(belief, built)
    measured = fitted(array, built, dtype=precision)
    units = check_units(array, built, belief)
    range_note = check_range(measured, built, belief, law)
    if range_note and belief.bounds is not None:
        warnings.warn(range_note, UserWarning, stacklevel=2)
    likelihood = Likelihood(built, law)
    belief = moved(belief, place, precision)
    task = Task(belief, likelihood, measured.y.to(place), precision, place)
    chosen.check(task)
    reference = None if truth is None else _image(truth, built, measured)
    outcome = _solve(chosen, task, samples, seed, at_once, progress)
    image = image_layout(built, measured)
    noted = {"range_note": range_note, "grid_note": grid_note, "image_units_note": _units_note(array, units)}
    attrs = {
        **_provenance(chosen, belief, prior if named else None, built, law, seed, precision, place),
        **{key: note for key, note in noted.items() if note},
    }
    result = to_dataset(
        outcome, measured, likelihood, image, observed_layout(built, measured, image),
        units=units, interval=interval, attrs=attrs,
    )  # fmt: skip
    if reference is None:
        return result
    shown = image.show(reference)[:, 0]
    low, high = belief.bounds or (float(np.abs(shown).min()), float(np.abs(shown).max()))
    return compared(result, shown if measured.several else shown[0], high - low)


def _solve(
    solver: Solver, task: Task, samples: int, seed: int, at_once: int | None, progress: Progress | None
) -> Outcome:
    """Run the solver in parts that fit the memory; each row has its own stream, so parts do not change it."""
    point = solver.exactness == "point"
    experiments, count = task.y.shape[0], 1 if point else samples
    together = at_once or samples_at_once(
        task.prior, task.event_shape, backpropagates=solver.backpropagates, dtype=task.dtype, device=task.device
    )
    whole = solver.couples
    began = time.perf_counter()
    parts: list[list[Tensor]] = []
    evaluations, evidence, done = 0, [], 0
    for rows in _ranges(experiments, max(1, together // count)):
        parts.append([])
        for members in _ranges(count, count if whole else min(count, together)):
            rng = Streams(seed, experiments=tuple(rows), members=tuple(members))
            solution: Solution = solver(task._replace(y=task.y[rows.start : rows.stop]), rng=rng)
            parts[-1].append(solution.samples.detach())
            evaluations = max(evaluations, solution.evaluations)
            if solution.log_evidence is not None and len(members) == count:
                evidence.append(solution.log_evidence)
            done += len(rows) * len(members)
            if progress is not None:
                progress(done, experiments * count)
    drawn = torch.cat([torch.cat(row, 1) for row in parts], 0)
    return Outcome(
        drawn, evaluations, time.perf_counter() - began, point, torch.cat(evidence) if evidence else None
    )


def _ranges(count: int, step: int) -> Iterator[range]:
    for first in range(0, count, step):
        yield range(first, min(first + step, count))


def _noise(noise: Any) -> Any:
    if noise is None:
        raise UserError(
            "the noise is missing: give noise=..., its standard deviation in the units of the measurement as given, or "
            "a law of `observations` (GaussianNoise, Poisson...)"
        )
    if isinstance(noise, bool) or not isinstance(noise, int | float | np.floating | np.integer):
        if not isinstance(noise, Noise):
            raise UserError(f"noise={noise!r}; expected a positive number or a law of `observations`")
        return noise
    if not (noise > 0 and np.isfinite(noise)):
        raise UserError(f"noise={noise}; expected a positive standard deviation, in the units of the measurement")
    return GaussianNoise(float(noise))


def _solver(solver: Any, settings: Mapping[str, Any] | None) -> Solver:
    if isinstance(solver, str):
        return find_solver(solver, **dict(settings or {}))
    if settings:
        raise UserError(f"solver_settings go with a solver's name; {solver!r} has its own")
    if not callable(solver) or not hasattr(solver, "check"):
        raise UserError(f"solver={solver!r}; expected a name or a Solver")
    return solver


def _operator(
    operator: Any,
    array: xr.DataArray,
    prior: Prior,
    shape: Sequence[int] | None,
    mask: Any,
    settings: Mapping[str, Any] | None,
) -> ObservationOperator:
    if isinstance(operator, str):
        space = getattr(prior, "space", None)
        return find_operator(
            operator, array, prior_shape=tuple(prior.event_shape), shape=shape, mask=mask, settings=settings,
            prior_units="" if space is None else space.fields[0].units,
        )  # fmt: skip
    if settings or mask is not None or shape is not None:
        raise UserError(f"operator_settings, mask and shape go with an operator's name; {operator!r} has its own")
    if not isinstance(operator, ObservationOperator):
        raise UserError(f"operator={operator!r}; expected a name or an ObservationOperator")
    return operator


def _for_channels(prior: Prior, operator: ObservationOperator) -> Prior:
    """A prior of one channel for images of several, which the result then says."""
    event = operator.event_shape
    if len(event) != 3 or event[0] == prior.event_shape[0] or prior.event_shape[0] != 1:
        return prior
    return Complex(prior) if is_complex_image(operator) else Channels(prior, event[0])


def _image(truth: Any, operator: ObservationOperator, measured: Measured) -> Tensor:
    """The truth as events, `(E, 1, *event)`."""
    values = torch.from_numpy(np.ascontiguousarray(labelled(truth).values))
    event, experiments = operator.event_shape, measured.y.shape[0]
    if values.is_complex():
        values = from_complex(values)
    elif is_complex_image(operator) and tuple(values.shape[-2:]) == event[1:] and values.shape[-3:] != event:
        values = from_complex(torch.complex(values.double(), torch.zeros_like(values.double())))
    for wanted in ((experiments, *event), event, (experiments, *event[1:]), event[1:]):
        size_fits = int(np.prod(wanted)) in (int(np.prod(event)), experiments * int(np.prod(event)))
        if tuple(values.shape) == tuple(wanted) and size_fits:
            return values.to(measured.y.dtype).reshape(-1, 1, *event).expand(experiments, 1, *event)
    raise UserError(f"the truth has shape {tuple(values.shape)}; the image has {event}")


def _units_note(array: xr.DataArray, units: str) -> str:
    return "" if array.attrs.get("units") else f"the measurement states no units; the image is given in {units!r}"


def _precision(dtype: str | torch.dtype) -> torch.dtype:
    known = {"float32": torch.float32, "float64": torch.float64}
    if isinstance(dtype, torch.dtype) and dtype in known.values():
        return dtype
    if dtype not in known:
        raise UserError(f"dtype '{dtype}'; expected float32 or float64")
    return known[str(dtype)]


def _provenance(
    solver: Solver,
    prior: Prior,
    name: Any,
    operator: ObservationOperator,
    noise: Any,
    seed: int,
    dtype: torch.dtype,
    device: torch.device,
) -> dict[str, Any]:
    """What was computed, with what, in words."""
    from assimilate import __version__

    bounds = "" if prior.bounds is None else f"{prior.bounds[0]:g} to {prior.bounds[1]:g}"
    about = {
        "kind": "reconstruction",
        "title": f"Reconstruction by {solver.name}",
        "Conventions": "CF-1.11",
        "solver": repr(solver),
        "solver_name": solver.name,
        "solver_reference": solver.reference,
        "exactness": solver.exactness,
        "backpropagates": str(solver.backpropagates),
        "prior": prior_name(prior) if name is None else f"{os.fspath(name)}: {prior_name(prior)}",
        "prior_record": training_summary(prior),
        "prior_range": bounds,
        "operator": repr(operator),
        "noise": repr(noise),
        "seed": seed,
        "dtype": str(dtype).removeprefix("torch."),
        "device": device_in_words(device),
        "version": f"assimilate-da {__version__}, torch {torch.__version__}, xarray {xr.__version__}",
    }
    return {key: value for key, value in about.items() if value != ""}
