"""Assimilate: the state of a system from a model and sparse, noisy observations.

Classical and generative filters on one posterior core: PyTorch tensors inside, xarray Datasets outside. The names
below are imported when they are first used, so that `import assimilate` is quick and silent.
"""

from __future__ import annotations

import importlib
import importlib.util
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

DISTRIBUTION = "assimilate-da"
"""The distribution that all of these packages belong to; each of them carries this line."""

_PUBLIC = {
    "Experiment": "assimilate.experiment",
    "run": "assimilate.runner",
    "stream": "assimilate.runner",
    "evaluate": "assimilate.verification.statistics",
    "Scoring": "assimilate.verification.statistics",
    "forecast": "assimilate.forecasts",
    "forecast_scores": "assimilate.forecasts",
    "Schedule": "assimilate.schedule",
    "QualityControl": "assimilate.quality",
    "Feedback": "assimilate.feedback",
    "to_ioda": "assimilate.feedback",
    "innovation_statistics": "assimilate.diagnosis",
    "desroziers": "assimilate.diagnosis",
    "Substepped": "assimilate.filters.substepped",
    "EnKF": "assimilate.filters.ensemble",
    "ETKF": "assimilate.filters.ensemble",
    "LETKF": "assimilate.filters.local",
    "KalmanFilter": "assimilate.filters.kalman",
    "BootstrapFilter": "assimilate.filters.particle",
    "GuidedParticleFilter": "assimilate.filters.particle",
    "AuxiliaryFilter": "assimilate.filters.auxiliary",
    "RegularisedFilter": "assimilate.filters.regularised",
    "LocalParticleFilter": "assimilate.filters.local_particle",
    "EnSF": "assimilate.filters.score_filter",
    "FlowDAS": "assimilate.filters.flowdas",
    "DEnKF": "assimilate.filters.deterministic",
    "SerialEnSRF": "assimilate.filters.serial",
    "LocalEAKF": "assimilate.filters.serial",
    "LocalEnKF": "assimilate.filters.local",
    "EnKFN": "assimilate.filters.finite_size",
    "ExtendedKalmanFilter": "assimilate.filters.extended_kalman",
    "UnscentedKalmanFilter": "assimilate.filters.unscented_kalman",
    "IEnKF": "assimilate.filters.iterative",
    "EnKS": "assimilate.smoothers.ensemble_kalman",
    "IEnKS": "assimilate.smoothers.iterative",
    "ESMDA": "assimilate.smoothers.multiple_data",
    "BackwardSimulation": "assimilate.smoothers.backward_simulation",
    "ThreeDVar": "assimilate.variational.three_dimensional",
    "FourDVar": "assimilate.variational.four_dimensional",
    "SDA": "assimilate.smoothers.sda",
    "RTS": "assimilate.smoothers.rts",
    "LinearInterpolation": "assimilate.baselines.interpolation",
    "NearestInterpolation": "assimilate.baselines.interpolation",
    "OptimalInterpolation": "assimilate.baselines.optimal_interpolation",
    "DivergenceFreeInterpolation": "assimilate.baselines.divergence_free",
    "CorrectedForecast": "assimilate.baselines.corrected_forecast",
    "condition": "assimilate.posterior.condition",
    "load_pretrained": "assimilate.learning.pretrained",
    "list_pretrained": "assimilate.learning.pretrained",
    "fit_transition": "assimilate.learning.recipes",
    "render": "assimilate.report",
    "UserError": "assimilate.errors",
}
"""Public names and the modules that define them."""

__all__ = [*_PUBLIC, "DISTRIBUTION", "__version__"]


def _check_neighbours() -> None:
    """Refuse to work with packages of other distributions that bear the names of ours.

    `dynamics` and `observations` are taken names on the package index. Their source is looked at, not imported.
    """
    for name in ("dynamics", "observations"):
        spec = importlib.util.find_spec(name)
        if spec is None:
            raise ImportError(f"the package '{name}' of {DISTRIBUTION} is missing; install {DISTRIBUTION} again")
        get_source = getattr(spec.loader, "get_source", None)
        source = get_source(name) if get_source is not None else None
        if source is not None and f'DISTRIBUTION = "{DISTRIBUTION}"' not in source:
            raise ImportError(
                f"another package named '{name}' shadows the one of {DISTRIBUTION} at {spec.origin}; "
                f"install {DISTRIBUTION} in a fresh environment of its own"
            )


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used."""
    if name not in _PUBLIC:
        raise AttributeError(f"module 'assimilate' has no attribute '{name}'")
    value = getattr(importlib.import_module(_PUBLIC[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)


_check_neighbours()

if TYPE_CHECKING:
    from assimilate.baselines.corrected_forecast import CorrectedForecast as CorrectedForecast
    from assimilate.baselines.divergence_free import DivergenceFreeInterpolation as DivergenceFreeInterpolation
    from assimilate.baselines.interpolation import LinearInterpolation as LinearInterpolation
    from assimilate.baselines.interpolation import NearestInterpolation as NearestInterpolation
    from assimilate.baselines.optimal_interpolation import OptimalInterpolation as OptimalInterpolation
    from assimilate.diagnosis import desroziers as desroziers
    from assimilate.diagnosis import innovation_statistics as innovation_statistics
    from assimilate.errors import UserError as UserError
    from assimilate.experiment import Experiment as Experiment
    from assimilate.feedback import Feedback as Feedback
    from assimilate.feedback import to_ioda as to_ioda
    from assimilate.filters.auxiliary import AuxiliaryFilter as AuxiliaryFilter
    from assimilate.filters.deterministic import DEnKF as DEnKF
    from assimilate.filters.ensemble import ETKF as ETKF
    from assimilate.filters.ensemble import EnKF as EnKF
    from assimilate.filters.extended_kalman import ExtendedKalmanFilter as ExtendedKalmanFilter
    from assimilate.filters.finite_size import EnKFN as EnKFN
    from assimilate.filters.flowdas import FlowDAS as FlowDAS
    from assimilate.filters.iterative import IEnKF as IEnKF
    from assimilate.filters.kalman import KalmanFilter as KalmanFilter
    from assimilate.filters.local import LETKF as LETKF
    from assimilate.filters.local import LocalEnKF as LocalEnKF
    from assimilate.filters.local_particle import LocalParticleFilter as LocalParticleFilter
    from assimilate.filters.particle import BootstrapFilter as BootstrapFilter
    from assimilate.filters.particle import GuidedParticleFilter as GuidedParticleFilter
    from assimilate.filters.regularised import RegularisedFilter as RegularisedFilter
    from assimilate.filters.score_filter import EnSF as EnSF
    from assimilate.filters.serial import LocalEAKF as LocalEAKF
    from assimilate.filters.serial import SerialEnSRF as SerialEnSRF
    from assimilate.filters.substepped import Substepped as Substepped
    from assimilate.filters.unscented_kalman import UnscentedKalmanFilter as UnscentedKalmanFilter
    from assimilate.forecasts import forecast as forecast
    from assimilate.forecasts import forecast_scores as forecast_scores
    from assimilate.learning.pretrained import list_pretrained as list_pretrained
    from assimilate.learning.pretrained import load_pretrained as load_pretrained
    from assimilate.learning.recipes import fit_transition as fit_transition
    from assimilate.posterior.condition import condition as condition
    from assimilate.quality import QualityControl as QualityControl
    from assimilate.report import render as render
    from assimilate.runner import run as run
    from assimilate.runner import stream as stream
    from assimilate.schedule import Schedule as Schedule
    from assimilate.smoothers.backward_simulation import BackwardSimulation as BackwardSimulation
    from assimilate.smoothers.ensemble_kalman import EnKS as EnKS
    from assimilate.smoothers.iterative import IEnKS as IEnKS
    from assimilate.smoothers.multiple_data import ESMDA as ESMDA
    from assimilate.smoothers.rts import RTS as RTS
    from assimilate.smoothers.sda import SDA as SDA
    from assimilate.variational.four_dimensional import FourDVar as FourDVar
    from assimilate.variational.three_dimensional import ThreeDVar as ThreeDVar
    from assimilate.verification.statistics import Scoring as Scoring
    from assimilate.verification.statistics import evaluate as evaluate
