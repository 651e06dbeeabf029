"""One small run that the tests of bad input change: Lorenz-63, four times, a few members."""

from __future__ import annotations

import numpy as np
import xarray as xr
from hypothesis import settings

from assimilate import run
from assimilate.filters.ensemble import ETKF
from dynamics import CapabilityError, Lorenz63
from observations import GaussianNoise, Identity, Likelihood

MODEL = Lorenz63(noise_std=0.1)
LIKELIHOOD = Likelihood(Identity(MODEL.space), GaussianNoise(1.0))
TIMES = MODEL.dt * np.arange(4)
VALUES = np.random.default_rng(0).normal(0.0, 5.0, (4, 3))
DATES = np.arange("2024-01-01", "2024-01-05", dtype="datetime64[D]").astype("datetime64[ns]")
few = settings(max_examples=12)


def observed(values=VALUES, times=TIMES, dims=("time", "value")):
    return xr.Dataset({"y": (dims, values)}, {"time": times})


def analysed(method=None, observations=None, **more):
    given = {"likelihood": LIKELIHOOD, "members": 4, "seed": 1} | more
    return run(method or ETKF(MODEL), observed() if observations is None else observations, **given)


def speaks(error):
    """Whether an error is one of those that tell a user what to do, in one line."""
    text = str(error)
    return isinstance(error, ValueError | CapabilityError) and len(text) > 15 and "\n" not in text


def finite(result):
    return bool(np.isfinite(result[next(iter(result.data_vars))].values).all())
