"""Imaging inverse problems on the posterior core of `assimilate`: image instruments, priors and solvers.

    import imaging

    picture = imaging.open_image("scan.png")
    result = imaging.reconstruct(picture, "gaussian-blur", noise=0.02, solver="diffpir")

The names below are imported when they are first used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

DISTRIBUTION = "assimilate-da"

_PUBLIC = {
    "reconstruct": "imaging.reconstruction",
    "open_image": "imaging.reading",
    "write_result": "imaging.result",
    "read_result": "imaging.result",
    "render": "imaging.report",
    "find_solver": "imaging.solvers",
    "SOLVERS": "imaging.solvers",
    "build_operator": "imaging.operators",
    "OPERATORS": "imaging.operators",
    "load_prior": "imaging.priors",
    "Channels": "imaging.priors",
    "Complex": "imaging.priors",
    "from_deepinv_physics": "imaging.adapters.deepinv",
    "from_deepinv_denoiser": "imaging.adapters.deepinv",
    "from_diffusers_unet": "imaging.adapters.diffusers",
}
"""Public names and the modules that define them."""

__all__ = [*_PUBLIC, "DISTRIBUTION"]


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used."""
    if name not in _PUBLIC:
        raise AttributeError(f"module 'imaging' has no attribute '{name}'")
    value = getattr(importlib.import_module(_PUBLIC[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)


if TYPE_CHECKING:
    from imaging.adapters.deepinv import from_deepinv_denoiser as from_deepinv_denoiser
    from imaging.adapters.deepinv import from_deepinv_physics as from_deepinv_physics
    from imaging.adapters.diffusers import from_diffusers_unet as from_diffusers_unet
    from imaging.operators import OPERATORS as OPERATORS
    from imaging.operators import build_operator as build_operator
    from imaging.priors import Channels as Channels
    from imaging.priors import Complex as Complex
    from imaging.priors import load_prior as load_prior
    from imaging.reading import open_image as open_image
    from imaging.reconstruction import reconstruct as reconstruct
    from imaging.report import render as render
    from imaging.result import read_result as read_result
    from imaging.result import write_result as write_result
    from imaging.solvers import SOLVERS as SOLVERS
    from imaging.solvers import find_solver as find_solver
