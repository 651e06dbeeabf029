"""What is measured: operators from states to observed values, their noise and their likelihood."""

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
from observations.likelihood import Likelihood, Observation
from observations.noise import GaussianNoise, Noise
from observations.nonlinear import Arctan, Function
from observations.sampling import Identity, Mask, Matrix, Select, Stations, random_mask
from observations.synthetic import observe

DISTRIBUTION = "assimilate-da"

__all__ = [
    "DISTRIBUTION",
    "SVD",
    "Arctan",
    "BlockMean",
    "Compose",
    "Function",
    "GaussianNoise",
    "Identity",
    "Likelihood",
    "LinearCompose",
    "LinearOperator",
    "LinearStack",
    "Mask",
    "Matrix",
    "Noise",
    "Observation",
    "ObservationOperator",
    "Select",
    "Stack",
    "Stations",
    "check_operator",
    "compose",
    "observe",
    "random_mask",
    "stack",
]
