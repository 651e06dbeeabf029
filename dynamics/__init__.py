"""Dynamical systems and their states; knows nothing of observations."""

from dynamics.augmented import Augmented
from dynamics.base import Dynamics, TransitionDensity, advance, simulate, steps_between
from dynamics.check import check_dynamics
from dynamics.covariance import Covariance, FullCovariance, ScaledIdentity
from dynamics.datasets import florence, florence_space, open_dataset, soap_film
from dynamics.double_well import DoubleWell
from dynamics.errors import CapabilityError, ContractError, DataError, SpaceMismatch
from dynamics.linear import LinearGaussian
from dynamics.lorenz import FLOWDAS_CENTER, FLOWDAS_SCALE, Lorenz63, Lorenz96
from dynamics.navier_stokes import NavierStokes
from dynamics.parameters import Parameter
from dynamics.random import Rng, Streams, normal, uniform
from dynamics.sevir import open_sevir
from dynamics.space import Coordinate, Field, Identity, LogOnePlus, Space
from dynamics.substepping import with_dt
from dynamics.transforms import Log
from dynamics.truncated import Truncated
from dynamics.vil import SimulatedVIL, simulated_sevir

DISTRIBUTION = "assimilate-da"

__all__ = [
    "DISTRIBUTION",
    "FLOWDAS_CENTER",
    "FLOWDAS_SCALE",
    "Augmented",
    "CapabilityError",
    "ContractError",
    "Coordinate",
    "Covariance",
    "DataError",
    "DoubleWell",
    "Dynamics",
    "Field",
    "FullCovariance",
    "Identity",
    "LinearGaussian",
    "Log",
    "LogOnePlus",
    "Lorenz63",
    "Lorenz96",
    "NavierStokes",
    "Parameter",
    "Rng",
    "ScaledIdentity",
    "SimulatedVIL",
    "Space",
    "SpaceMismatch",
    "Streams",
    "TransitionDensity",
    "Truncated",
    "advance",
    "check_dynamics",
    "florence",
    "florence_space",
    "normal",
    "open_dataset",
    "open_sevir",
    "simulate",
    "simulated_sevir",
    "soap_film",
    "steps_between",
    "uniform",
    "with_dt",
]
