"""Solvers by name. A solver is one class in one file; add yours here, or name it `module:Class`.

`find_solver("mmps")` gives a ready recipe, `find_solver("dps", zeta=0.5)` one with other settings.
"""

from __future__ import annotations

from typing import Any

SOLVERS: dict[str, str] = {
    "dps": "imaging.solvers.guided:DPS",
    "dps-score": "imaging.solvers.guided:ScoreDPS",
    "mcg": "imaging.solvers.constrained:MCG",
    "pigdm": "imaging.solvers.guided:PiGDM",
    "tmpd": "imaging.solvers.guided:TMPD",
    "mmps": "imaging.solvers.guided:MMPS",
    "lgd": "imaging.solvers.guided:LGD",
    "sda": "imaging.solvers.guided:SDA",
    "flowdas": "imaging.solvers.guided:FlowDASGuided",
    "flowchef": "imaging.solvers.guided:FlowChef",
    "clean-covariance": "imaging.solvers.guided:CleanCovariance",
    "zero-order": "imaging.solvers.zero_order:ZeroOrder",
    "ddnm": "imaging.solvers.null_space:DDNM",
    "ddrm": "imaging.solvers.spectral:DDRM",
    "ilvr": "imaging.solvers.constrained:ILVR",
    "score-mri": "imaging.solvers.constrained:ScoreMRI",
    "ccdf": "imaging.solvers.constrained:CCDF",
    "smld": "imaging.solvers.langevin:SMLD",
    "noised-measurements": "imaging.solvers.langevin:NoisedMeasurements",
    "diffpir": "imaging.solvers.proximal:DiffPIR",
    "diffpir-calibrated": "imaging.solvers.proximal:DiffPIR.calibrated",
    "dds": "imaging.solvers.krylov:DDS",
    "dcdp": "imaging.solvers.purification:DCDP",
    "dcdp-tweedie": "imaging.solvers.purification:DCDP.tweedie",
    "dcdp-consistency": "imaging.solvers.purification:DCDP.consistency",
    "sitcom": "imaging.solvers.sitcom:SITCOM",
    "daps": "imaging.solvers.daps:DAPS",
    "daps-published": "imaging.solvers.daps:DAPS.published",
    "daps-short": "imaging.solvers.daps:DAPS.short",
    "pnp-dm": "imaging.solvers.gibbs:PnPDM",
    "red-diff": "imaging.solvers.red_diff:REDDiff",
    "tds": "imaging.solvers.twisted:TDS",
    "enkg": "imaging.solvers.ensemble_guidance:EnKG",
    "enkg-published": "imaging.solvers.ensemble_guidance:EnKG.published",
    "diffusion-mbir": "imaging.volumes:DiffusionMBIR",
    "fbp": "imaging.baselines.direct:FilteredBackProjection",
    "pseudo-inverse": "imaging.baselines.direct:PseudoInverse",
    "fista-tv": "imaging.baselines.total_variation:FISTA",
    "admm-tv": "imaging.baselines.total_variation:ADMM",
    "pnp-admm": "imaging.baselines.plug_and_play:PnPADMM",
    "pnp-red": "imaging.baselines.plug_and_play:PnPRED",
    "wavelet": "imaging.baselines.wavelets:WaveletCS",
}
"""Name -> "module:Class" or "module:Class.preset"."""


def find_solver(name: str, **settings: Any) -> Any:
    """The solver of a name, with settings.

    Args:
        name: key of `SOLVERS`, or "module:Class".
        settings: fields of the class.

    Raises:
        UnknownName: no such solver.
        UserError: a setting that it does not have, or a value that it does not take.
    """
    from assimilate.errors import UserError

    try:
        return solver_class(name)(**settings)
    except (TypeError, ValueError) as error:
        raise UserError(f"solver '{name}': {error}") from error


def solver_class(name: str) -> Any:
    """The class (or preset) behind a name.

    Raises:
        UnknownName: no such solver.
        UserError: the module or the class is not there.
    """
    from functools import reduce
    from importlib import import_module

    from assimilate.errors import UnknownName, UserError

    if name not in SOLVERS and ":" not in name:
        raise UnknownName("solver", name, SOLVERS)

    module, _, path = SOLVERS.get(name, name).partition(":")
    try:
        return reduce(getattr, path.split("."), import_module(module))
    except (ImportError, AttributeError) as error:
        raise UserError(f"solver '{name}': {error}") from error
