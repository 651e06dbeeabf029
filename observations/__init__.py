"""What is measured: operators from states to observed values, their noise and their likelihood."""

from observations.augmented import observing
from observations.averaging import BlockMean
from observations.base import (
    SVD,
    Compose,
    LinearCompose,
    LinearOperator,
    LinearStack,
    ObservationOperator,
    Stack,
    compose,
    stack,
)
from observations.check import check_operator
from observations.evolution import Evolved
from observations.heavy_tails import Laplace, StudentT
from observations.instruments import Instrument
from observations.likelihood import Likelihood, Observation
from observations.noise import GaussianNoise, Noise, SignalNoise
from observations.nonlinear import Arctan, Function
from observations.piv import ParticleVelocity
from observations.poisson import Poisson
from observations.sampling import Identity, Mask, Matrix, Select, Stations, random_mask
from observations.synthetic import observe
from observations.tables import read_table

DISTRIBUTION = "assimilate-da"

__all__ = [
    "DISTRIBUTION",
    "SVD",
    "Arctan",
    "BlockMean",
    "Compose",
    "Evolved",
    "Function",
    "GaussianNoise",
    "Identity",
    "Instrument",
    "Laplace",
    "Likelihood",
    "LinearCompose",
    "LinearOperator",
    "LinearStack",
    "Mask",
    "Matrix",
    "Noise",
    "Observation",
    "ObservationOperator",
    "ParticleVelocity",
    "Poisson",
    "Select",
    "SignalNoise",
    "Stack",
    "Stations",
    "StudentT",
    "check_operator",
    "compose",
    "observe",
    "observing",
    "random_mask",
    "read_table",
    "stack",
]
