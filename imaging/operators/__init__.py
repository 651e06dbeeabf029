"""Image instruments by name: `build_operator("gaussian-blur", space, std=2.0)`.

A name stands for "module:Class" or for a function that makes an operator; nothing is imported before it is asked for.
An operator of your own is named `module:Class`, so nothing needs registering.
"""

from __future__ import annotations

import inspect
from typing import Any

from assimilate.errors import UnknownName, UserError
from observations.base import ObservationOperator, SpaceOrShape
from observations.nonlinear import load_object

OPERATORS: dict[str, str] = {
    "identity": "observations.sampling:Identity",
    "inpainting": "imaging.operators.inpainting:random_inpainting",
    "box-inpainting": "imaging.operators.inpainting:box_inpainting",
    "super-resolution": "imaging.operators.resolution:block_mean",
    "bicubic": "imaging.operators.resolution:Bicubic",
    "gaussian-blur": "imaging.operators.blur:gaussian_blur",
    "motion-blur": "imaging.operators.blur:motion_blur",
    "nonlinear-blur": "imaging.operators.nonlinear_blur:NonlinearBlur",
    "phase-retrieval": "imaging.operators.phase_retrieval:PhaseRetrieval",
    "hdr": "imaging.operators.dynamic_range:HighDynamicRange",
    "quantise": "imaging.operators.quantisation:Quantise",
    "parallel-beam": "imaging.operators.tomography:ParallelBeam",
    "fan-beam": "imaging.operators.tomography:FanBeam",
    "mri": "imaging.operators.magnetic_resonance:simulated_scan",
    "navier-stokes": "imaging.operators.navier_stokes:initial_vorticity",
}
"""Name -> "module:Class" or "module:function"; the first argument is the Space (or event shape) of the image."""


def operator_settings(name: str) -> dict[str, inspect.Parameter]:
    """The settings of an operator, without its first argument, the space.

    Args:
        name: a key of `OPERATORS`, or "module:Class".

    Raises:
        UnknownName: the name is not listed; the message holds the nearest one.
        UserError: "module:Class" cannot be imported, or is no class or function.
    """
    factory = _factory(name)
    try:
        parameters = inspect.signature(factory).parameters
    except (TypeError, ValueError) as error:
        raise UserError(f"operator '{name}' is no class or function whose settings can be read: {error}") from error
    return dict(list(parameters.items())[1:])


def build_operator(name: str, space: SpaceOrShape, **settings: Any) -> ObservationOperator:
    """Make an operator from its name and plain settings.

    Args:
        name: a key of `OPERATORS`, or "module:Class" (or "module:function") of your own.
        space: Space of the image, or its event shape `(channel, rows, columns)`.
        settings: arguments of the class or function behind the name.

    Raises:
        UnknownName: the name is not listed; the message holds the nearest one.
        UserError: "module:Class" cannot be imported, a setting that the operator does not have (the valid ones are
            named), one that is missing, or one that it refuses.
    """
    factory = _factory(name)
    accepted = operator_settings(name)
    for key in settings:
        if key not in accepted:
            valid = ", ".join(accepted) or "it has none"
            raise UserError(f"operator '{name}' has no setting '{key}'; valid: {valid}")
    missing = [n for n, p in accepted.items() if p.default is p.empty and n not in settings]
    if missing:
        raise UserError(f"operator '{name}' needs '{missing[0]}'; its settings: {', '.join(accepted)}")
    try:
        operator = factory(space, **settings)
    except (TypeError, ValueError) as error:
        raise UserError(f"operator '{name}' refuses its settings: {error}") from error
    if not isinstance(operator, ObservationOperator):
        raise UserError(f"operator '{name}' made a {type(operator).__name__}; expected an ObservationOperator")
    return operator


def _factory(name: str) -> Any:
    target = OPERATORS.get(name, name)
    if ":" not in target:
        raise UnknownName("operator", name, OPERATORS, "; one of your own is named module:Class")
    try:
        return load_object(target)
    except ValueError as error:
        raise UserError(f"operator {error}") from error
