"""Names for classes: what a card or the command line says, and the class that it means.

Plain dicts `name -> "module:Class"`; nothing is imported before it is asked for. A class that is not listed is named
`module:Class` (a module that Python can import, or a file of the current directory), so nothing needs registering.
"""

from __future__ import annotations

import dataclasses
import importlib
import inspect
from collections.abc import Mapping
from typing import Any

from assimilate.errors import UnknownName, UserError, suggestion

DYNAMICS = {
    "LinearGaussian": "dynamics.linear:LinearGaussian",
    "Lorenz63": "dynamics.lorenz:Lorenz63",
    "Lorenz96": "dynamics.lorenz:Lorenz96",
    "DoubleWell": "dynamics.double_well:DoubleWell",
    "NavierStokes": "dynamics.navier_stokes:NavierStokes",
    "Truncated": "dynamics.truncated:Truncated",
    "Augmented": "dynamics.augmented:Augmented",
    "RainStorms": "dynamics.radar:RainStorms",
    "SimulatedVIL": "dynamics.vil:SimulatedVIL",
}
OPERATORS = {
    "Identity": "observations.sampling:Identity",
    "Select": "observations.sampling:Select",
    "Mask": "observations.sampling:Mask",
    "Stations": "observations.sampling:Stations",
    "Matrix": "observations.sampling:Matrix",
    "BlockMean": "observations.averaging:BlockMean",
    "ParticleVelocity": "observations.piv:ParticleVelocity",
    "Arctan": "observations.nonlinear:Arctan",
    "Function": "observations.nonlinear:Function",
}
NOISES = {
    "GaussianNoise": "observations.noise:GaussianNoise",
    "Laplace": "observations.heavy_tails:Laplace",
    "Poisson": "observations.poisson:Poisson",
    "StudentT": "observations.heavy_tails:StudentT",
}
METHODS = {
    "FlowDAS": "assimilate.filters.flowdas:FlowDAS",
    "GaugeFlowDAS": "assimilate.filters.gauge_flowdas:GaugeFlowDAS",
    "SDA": "assimilate.smoothers.sda:SDA",
    "BootstrapFilter": "assimilate.filters.particle:BootstrapFilter",
    "GuidedParticleFilter": "assimilate.filters.particle:GuidedParticleFilter",
    "AuxiliaryFilter": "assimilate.filters.auxiliary:AuxiliaryFilter",
    "RegularisedFilter": "assimilate.filters.regularised:RegularisedFilter",
    "LocalParticleFilter": "assimilate.filters.local_particle:LocalParticleFilter",
    "EnSF": "assimilate.filters.score_filter:EnSF",
    "EnKF": "assimilate.filters.ensemble:EnKF",
    "ETKF": "assimilate.filters.ensemble:ETKF",
    "LETKF": "assimilate.filters.local:LETKF",
    "DEnKF": "assimilate.filters.deterministic:DEnKF",
    "SerialEnSRF": "assimilate.filters.serial:SerialEnSRF",
    "EnKFN": "assimilate.filters.finite_size:EnKFN",
    "LocalEnKF": "assimilate.filters.local:LocalEnKF",
    "LocalEAKF": "assimilate.filters.serial:LocalEAKF",
    "ExtendedKalmanFilter": "assimilate.filters.extended_kalman:ExtendedKalmanFilter",
    "UnscentedKalmanFilter": "assimilate.filters.unscented_kalman:UnscentedKalmanFilter",
    "IEnKF": "assimilate.filters.iterative:IEnKF",
    "KalmanFilter": "assimilate.filters.kalman:KalmanFilter",
    "RTS": "assimilate.smoothers.rts:RTS",
    "EnKS": "assimilate.smoothers.ensemble_kalman:EnKS",
    "IEnKS": "assimilate.smoothers.iterative:IEnKS",
    "ESMDA": "assimilate.smoothers.multiple_data:ESMDA",
    "BackwardSimulation": "assimilate.smoothers.backward_simulation:BackwardSimulation",
    "ThreeDVar": "assimilate.variational.three_dimensional:ThreeDVar",
    "FourDVar": "assimilate.variational.four_dimensional:FourDVar",
    "CorrectedForecast": "assimilate.baselines.corrected_forecast:CorrectedForecast",
    "OptimalInterpolation": "assimilate.baselines.optimal_interpolation:OptimalInterpolation",
    "DivergenceFreeInterpolation": "assimilate.baselines.divergence_free:DivergenceFreeInterpolation",
    "LinearInterpolation": "assimilate.baselines.interpolation:LinearInterpolation",
    "NearestInterpolation": "assimilate.baselines.interpolation:NearestInterpolation",
    "PersistenceFilter": "assimilate.baselines.persistence:PersistenceFilter",
    "ClimatologyFilter": "assimilate.baselines.climatology:ClimatologyFilter",
}
GUIDANCE = {
    "DPS": "assimilate.posterior.guidance:DPS",
    "SDA": "assimilate.posterior.guidance:SDA",
    "PiGDM": "assimilate.posterior.guidance:PiGDM",
    "TMPD": "assimilate.posterior.guidance:TMPD",
    "MMPS": "assimilate.posterior.guidance:MMPS",
    "MonteCarlo": "assimilate.posterior.guidance:MonteCarlo",
    "JacobianFree": "assimilate.posterior.guidance:JacobianFree",
    "DAPS": "assimilate.posterior.corrections.daps:DAPS",
}
SAMPLERS = {
    "Ancestral": "assimilate.posterior.samplers:Ancestral",
    "EulerMaruyama": "assimilate.posterior.samplers:EulerMaruyama",
    "Heun": "assimilate.posterior.samplers:Heun",
    "PredictorCorrector": "assimilate.posterior.samplers:PredictorCorrector",
    "Renoise": "assimilate.posterior.samplers:Renoise",
}
BACKGROUNDS = {
    "DiagonalBackground": "assimilate.variational.background:DiagonalBackground",
    "DenseBackground": "assimilate.variational.background:DenseBackground",
    "SpectralBackground": "assimilate.variational.spectral:SpectralBackground",
    "DiffusionBackground": "assimilate.variational.diffusion:DiffusionBackground",
    "Hybrid": "assimilate.variational.hybrid:Hybrid",
}
MINIMISERS = {
    "GaussNewton": "assimilate.variational.minimise:GaussNewton",
    "LBFGS": "assimilate.variational.minimise:LBFGS",
}
KINDS: dict[str, dict[str, str]] = {
    "dynamics": DYNAMICS,
    "operator": OPERATORS,
    "noise": NOISES,
    "method": METHODS,
    "guidance": GUIDANCE,
    "sampler": SAMPLERS,
    "background": BACKGROUNDS,
    "minimiser": MINIMISERS,
}
"""Names of each kind; a table inside a card is of the kind that its key says, `guidance = {type = "MMPS"}`."""


def resolve(kind: str, name: str) -> type:
    """The class behind a name.

    Args:
        kind: a key of `KINDS`.
        name: a key of that registry, or `module:Class`.

    Raises:
        UnknownName: the name is not listed; the message holds the nearest one.
        UserError: `module:Class` cannot be imported.
    """
    table = KINDS[kind]
    target = table.get(name, name)
    if ":" not in target:
        raise UnknownName(kind, name, table, "; a class of your own is named module:Class")
    module_name, _, attribute = target.partition(":")
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        raise UserError(f"{kind} '{name}': there is no module '{error.name}'") from error
    if not hasattr(module, attribute):
        valid = [n for n in dir(module) if not n.startswith("_")]
        raise UserError(f"{kind} '{name}': module '{module_name}' has no '{attribute}'{suggestion(attribute, valid)}")
    return getattr(module, attribute)


def settings_of(factory: Any) -> dict[str, inspect.Parameter]:
    """The keyword arguments that a class (or a class method used as a preset) accepts."""
    parameters = inspect.signature(factory).parameters
    return {n: p for n, p in parameters.items() if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)}


def build(kind: str, spec: Mapping[str, Any], where: str, **given: Any) -> Any:
    """Make an object from `{type = "Name", setting = value, ...}`.

    Args:
        kind: registry of `type`.
        spec: the class's name under `type`, an optional class method under `preset`, and settings. A table among the
            settings that has a `type` is made first, from whichever registry knows it; "none" stands for None.
        where: key path for messages, such as "observations.operator".
        given: arguments that the program knows (the dynamics of a filter...); used where the class accepts them and
            the card does not set them.

    Raises:
        UserError: an unknown setting (with the nearest valid one), a missing one, or one that the class refuses.
    """
    factory, settings = check(kind, spec, where, given=given)
    accepted = settings_of(factory)
    arguments = {k: v for k, v in given.items() if k in accepted and k not in settings}
    for key, value in settings.items():
        if isinstance(value, Mapping) and "type" in value:
            kind_inside = _kind_of(key, value["type"], where)
            arguments[key] = build(kind_inside, value, f"{where}.{key}", **given)
        else:
            arguments[key] = None if _is_none(accepted[key], value) else _frozen(value)
    try:
        return factory(**arguments)
    except (TypeError, ValueError, AssertionError) as error:
        raise UserError(f"{where}: {spec['type']} refuses its settings: {error}") from error


def check(kind: str, spec: Mapping[str, Any], where: str, given: Mapping[str, Any] | None = None) -> tuple[Any, dict]:
    """Find the factory of a spec and check the names of its settings, without making anything.

    Returns:
        The class or preset, and the settings without `type` and `preset`.
    """
    factory: Any = resolve(kind, str(spec["type"]))
    settings = {k: v for k, v in spec.items() if k not in ("type", "preset")}
    if "preset" in spec:
        preset = str(spec["preset"])
        presets = [n for n, m in inspect.getmembers(factory, inspect.ismethod) if not n.startswith("_")]
        if preset not in presets:
            raise UserError(f"{where}.preset: {spec['type']} has no preset '{preset}'{suggestion(preset, presets)}")
        factory = getattr(factory, preset)
    accepted = settings_of(factory)
    for key, value in settings.items():
        if key not in accepted:
            raise UserError(f"{where}.{key}: {spec['type']} has no such setting{suggestion(key, accepted)}")
        if isinstance(value, Mapping) and "type" in value:
            check(_kind_of(key, value["type"], where), value, f"{where}.{key}")
        elif not _is_none(accepted[key], value):
            _check_type(accepted[key], value, f"{where}.{key}")
    missing = [n for n, p in accepted.items() if p.default is p.empty and n not in settings and n not in (given or {})]
    if missing and given is not None:
        raise UserError(f"{where}: {spec['type']} needs '{missing[0]}'")
    return factory, settings


def _kind_of(key: str, name: str, where: str) -> str:
    """The registry of a table inside a card: that of its key, else the first that knows the name."""
    if key in KINDS:
        return key
    for kind, table in KINDS.items():
        if name in table:
            return kind
    if ":" in str(name):
        return "operator"
    raise UserError(f"{where}.{key}: unknown type '{name}'{suggestion(name, [n for t in KINDS.values() for n in t])}")


def _is_none(parameter: inspect.Parameter, value: Any) -> bool:
    """Whether "none" is meant as None, for which TOML has no word: where the class takes None but not text."""
    text = str(parameter.annotation)
    return (
        value == "none"
        and ("None" in text or parameter.default is None)
        and "Literal" not in text
        and "str" not in text
    )


def _check_type(parameter: inspect.Parameter, value: Any, where: str) -> None:
    """Compare a plain value with a plain annotation; anything richer is left to the class."""
    plain = {"int": (int,), "float": (int, float), "str": (str,), "bool": (bool,)}
    annotation = parameter.annotation
    text = annotation if isinstance(annotation, str) else getattr(annotation, "__name__", "")
    words = [w.strip() for w in text.split("|")]
    known = [w for w in words if w in plain]
    if not known or any(w not in plain and w != "None" for w in words):
        return
    accepted = tuple(t for w in known for t in plain[w])
    wrong_bool = isinstance(value, bool) and "bool" not in known
    if wrong_bool or not isinstance(value, accepted):
        raise UserError(f"{where}: got {value!r}, expected {' or '.join(known)}")


def _frozen(value: Any) -> Any:
    """Lists of a TOML file as tuples, since settings are frozen dataclasses."""
    return tuple(_frozen(v) for v in value) if isinstance(value, list) else value


def describe(kind: str) -> list[dict[str, Any]]:
    """Name, one line (the first of the docstring), settings with their defaults and class of a whole registry."""
    rows = []
    for name, target in KINDS[kind].items():
        cls = resolve(kind, name)
        summary = (inspect.getdoc(cls) or "").partition("\n")[0]
        settings: dict[str, str] = {}
        if dataclasses.is_dataclass(cls):
            for f in dataclasses.fields(cls):
                if f.init and f.repr:
                    settings[f.name] = "required" if f.default is dataclasses.MISSING else repr(f.default)
        rows.append({"name": name, "summary": summary, "settings": settings, "class": target})
    return rows
