"""Samplers: from the start of a path to clean data, one way of stepping a file."""

from assimilate.posterior.samplers.ancestral import Ancestral
from assimilate.posterior.samplers.base import GaussianSampler, Kernel, Sample, Sampler, Trace
from assimilate.posterior.samplers.corrector import PredictorCorrector
from assimilate.posterior.samplers.euler_maruyama import EulerMaruyama
from assimilate.posterior.samplers.heun import Heun
from assimilate.posterior.samplers.projected import Projected, Projection
from assimilate.posterior.samplers.renoise import Renoise

__all__ = [
    "Ancestral",
    "EulerMaruyama",
    "GaussianSampler",
    "Heun",
    "Kernel",
    "PredictorCorrector",
    "Projected",
    "Projection",
    "Renoise",
    "Sample",
    "Sampler",
    "Trace",
]
