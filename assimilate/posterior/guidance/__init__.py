"""Guidances: estimators of `g = grad log p(y | x_t)`, one a file. Each works with every path, predictor and sampler."""

from assimilate.posterior.guidance.dps import DPS
from assimilate.posterior.guidance.jacobian_free import JacobianFree
from assimilate.posterior.guidance.mmps import MMPS
from assimilate.posterior.guidance.monte_carlo import MonteCarlo
from assimilate.posterior.guidance.pigdm import PiGDM
from assimilate.posterior.guidance.sda import SDA
from assimilate.posterior.guidance.tmpd import TMPD
from assimilate.posterior.guidance.zero_order import ZeroOrder

__all__ = ["DPS", "MMPS", "SDA", "TMPD", "JacobianFree", "MonteCarlo", "PiGDM", "ZeroOrder"]
