"""No setting takes a number that it cannot be: every registered class, every setting of kind int or float.

A class that is added to a registry is asked here by itself; it must refuse NaN, infinity, negative numbers, texts and
truth values, or stand in the tables of those that mean something by one of them.
"""

from __future__ import annotations

import dataclasses
import math
import re

import numpy as np
import pytest
import torch

from assimilate import registry, run
from assimilate.errors import UserError
from assimilate.experiment import Experiment
from assimilate.filters.score_filter import DampedLikelihood, LinearVariance
from assimilate.learning.consistency import ConsistencyFit
from assimilate.learning.fit import FitSettings
from assimilate.learning.networks import ARCHITECTURES
from assimilate.learning.pretrained import load_pretrained
from assimilate.learning.prior_fit import PriorFit
from assimilate.learning.recipes import RECIPES
from assimilate.learning.samples import Simulation
from assimilate.posterior.calibration import Calibration
from assimilate.posterior.paths import VE, VP, Interpolant
from assimilate.posterior.predictors import GaussianPredictor
from assimilate.posterior.transition import ExactTransition
from assimilate.posterior.windows import WindowPrior
from assimilate.quality import QualityControl
from assimilate.schedule import Schedule
from assimilate.variational.background import DenseBackground
from dynamics import Coordinate, Field, LinearGaussian, NavierStokes, Parameter, Space
from dynamics.settings import COUNT, POSITIVE, check_number, number, one_or_several, several, whole
from observations import Evolved, GaussianNoise, Identity, Likelihood, Mask
from tests.lorenz_run import LIKELIHOOD, MODEL, VALUES, observed, speaks

RING = LinearGaussian.ring(6)
CHAIN = LinearGaussian.scalar(0.8, 0.6)
FLOW = NavierStokes(size=16)
ON_RING = Likelihood(Mask(RING.space, [0, 2, 3]), GaussianNoise(0.5))
ON_CHAIN = Likelihood(Identity(CHAIN.space), GaussianNoise(0.5))
PLANE = {d: Coordinate(np.arange(4.0), (d,), "m") for d in "yx"}
WIND = Space((Field("u", "m/s", ("y", "x")), Field("v", "m/s", ("y", "x"))), PLANE)
NEEDED = {
    **{local: {"radius": 2.0} for local in ("LocalParticleFilter", "LETKF", "LocalEnKF", "LocalEAKF")},
    "CorrectedForecast": {"weight": 1.0},
    "OptimalInterpolation": {"mean": 0.0, "variance": 1.0, "length": 1.0},
    "DivergenceFreeInterpolation": {"mean": (0.0, 0.0), "variance": 1.0, "length": 1.0},
}


def method_of(name):
    """A method with settings that are right, observations (None: a run needs more than a ring) and arguments of run."""
    kind = registry.resolve("method", name)
    observations, more = observed(VALUES, np.arange(1.0, 5.0)), {"likelihood": ON_RING}
    if name == "GaugeFlowDAS":
        return kind(load_pretrained("rain-hourly")), None, {}
    if name == "DivergenceFreeInterpolation":
        return kind(WIND, **NEEDED[name]), None, {}
    if name == "SDA":
        lag = (torch.arange(3)[:, None] - torch.arange(3)[None]).abs().double()
        predictor = GaussianPredictor(0.8**lag, VE(), torch.zeros(3, 1, dtype=torch.float64))
        prior = WindowPrior(CHAIN.space, 1.0, 1, VE(), predictor, torch.zeros(1), torch.ones(1))
        known = torch.zeros(1, 1, 1)
        return (
            kind(prior, steps=4),
            observed(VALUES[:, :1], np.arange(5.0)[1:]),
            {"likelihood": ON_CHAIN, "initial": known},
        )
    if name == "FlowDAS":
        return kind(ExactTransition(RING, path=Interpolant(), steps=2)), observations.isel(time=[0]), more
    first = RING.space if dataclasses.fields(kind)[0].name == "space" else RING
    own = {"background": DenseBackground.prior(RING)} if name == "ThreeDVar" else NEEDED.get(name, {})
    return kind(first, **own), observations, more


ARGUMENTS = {
    "Truncated": (FLOW, 8),
    "Augmented": (MODEL, [Parameter("rho", 28.0, 1.0)]),
    "LinearGaussian": tuple(getattr(RING, f.name) for f in dataclasses.fields(RING)),
    "Identity": (RING.space,),
    "Select": (RING.space, ["x"]),
    "Mask": (RING.space, [0]),
    "Stations": (RING.space, [[1.0]]),
    "Matrix": (RING.space, torch.eye(6)),
    "BlockMean": (RING.space, 2),
    "ParticleVelocity": (FLOW.space, None, 4),
    "Arctan": (RING.space,),
    "Function": (RING.space, torch.sin),
    "GaussianNoise": (1.0,),
    "Laplace": (1.0,),
    "Poisson": (1.0,),
    "StudentT": (3.0, 1.0),
    "DiagonalBackground": (RING.space, 1.0),
    "SpectralBackground": (FLOW.space, 1.0, 1.0),
    "Hybrid": (DenseBackground.prior(RING),),
}
"""What the other registered classes cannot be made without."""


def example(kind, name):
    """An object of a registered class."""
    if kind == "method":
        return method_of(name)[0]
    if name == "DenseBackground":
        return DenseBackground.prior(RING)
    made = registry.resolve(kind, name)
    if name == "DiffusionBackground":
        return made(FLOW.space, 1.0, 1.0, draws=2)
    return made(*ARGUMENTS.get(name, ()))


OTHERS = {
    **{f"path {kind.__name__}": kind for kind in (VP, VE, Interpolant, LinearVariance)},
    **{f"recipe {name}": kind for name, (kind, _) in RECIPES.items() if name != "field"},
    **{f"network {name}": lambda kind=kind: kind(channels=1, outputs=1) for name, (kind, _) in ARCHITECTURES.items()},
    "recipe consistency": ConsistencyFit,
    "recipe prior": PriorFit,
    "training": FitSettings,
    "simulation": Simulation,
    "damped likelihood": DampedLikelihood,
    "calibration": Calibration,
    "quality": QualityControl,
    "schedule": lambda: Schedule("window", every=1.0, length=1.0),
    "parameter": lambda: Parameter("rho", 28.0, 1.0),
    "exact transition": lambda: ExactTransition(RING, path=Interpolant(), steps=2),
    "evolved": lambda: Evolved(MODEL, 2),
    "experiment": lambda: Experiment(MODEL, LIKELIHOOD, 3),
}
REGISTERED = [(kind, name) for kind, table in registry.KINDS.items() for name in table]

SIGNED = {
    "mean", "center", "prior_mean", "prior_covariance", "sigma", "rho", "beta", "forcing", "noise_wavevectors",
    "body_force", "prior_decay", "bounds", "guess", "Evolved.start", "gross",
}  # fmt: skip
"""Settings that may be negative."""
ENDLESS = {
    "radius", "tolerance", "EnKS.lag", "IEnKS.lag", "window", "trust", "smoothness", "Parameter.memory",
    "Parameter.length", "QualityControl.background", "gross", "clip",
}  # fmt: skip
"""Settings of which infinity is a value: a limit that is none."""
ELSEWHERE = {"CorrectedForecast.tuning", "GaugeFlowDAS.start"}
"""What a fit has recorded; what is compared with levels only."""


def filled(like, value):
    """`value` in the place of every number of a setting."""
    return tuple(filled(entry, value) for entry in like) if isinstance(like, tuple) and like else value


def refuses_wrong_numbers(made):
    """How many settings of an object take numbers; fails if one of them takes what is none."""
    asked = 0
    for field in dataclasses.fields(made):
        full, words = f"{type(made).__name__}.{field.name}", set(re.findall(r"\w+", str(field.type)))
        if not field.init or not words & {"int", "float"} or "Literal" in words or full in ELSEWHERE:
            continue
        asked += 1
        now = getattr(made, field.name)
        if now is None and "tuple" in words:
            now = (1, 1)
        wrong = {"nan": math.nan, "text": "3", "truth": True}
        wrong |= {} if {field.name, full} & SIGNED else {"negative": -1}
        wrong |= {} if {field.name, full} & ENDLESS else {"infinite": math.inf}
        wrong |= {} if "float" in words else {"fraction": 1.5}
        for what, value in wrong.items():
            try:
                dataclasses.replace(made, **{field.name: filled(now, value)})
            except ValueError as error:
                assert speaks(error) and field.name in str(error), f"{full}: {error}"
            else:
                raise AssertionError(f"{full} takes {value!r} ({what})")
    return asked


@pytest.mark.parametrize(("kind", "name"), REGISTERED, ids=[" ".join(entry) for entry in REGISTERED])
def test_settings_of_registered_classes(kind, name):
    refuses_wrong_numbers(example(kind, name))


@pytest.mark.parametrize("name", OTHERS)
def test_settings_of_other_classes(name):
    assert refuses_wrong_numbers(OTHERS[name]()) > 0


@pytest.mark.parametrize(
    ("expected", "right", "wrong", "words"),
    [
        (COUNT, [1, np.int64(3)], [0, 1.0, True, "1", None, (1,)], "a whole number of 1 or more"),
        (POSITIVE, [1, 1e-9, np.float32(2), torch.tensor(2.0)], [0, math.inf, torch.tensor([1.0, -1.0])], "above 0"),
        (number(0, below=1), [0, 0.99], [1, -1e-9], "a number of 0 or more below 1"),
        (number(above=0, infinite=True, none=True), [math.inf, None], [math.nan, 0], "above 0, or infinity, or None"),
        (several(POSITIVE, 2), [(1, 2), [1.0, 2.0]], [(1,), 1, None, (1, math.nan)], "2 numbers above 0"),
        (several(whole(), none=True), [None, (), ((1, -2), (3, 4))], [((1, 2.0),), 3], "whole numbers, or None"),
        (one_or_several(POSITIVE), [1.0, (1, 2), np.ones(3)], [(0,), np.array(["1"])], "several, each above 0"),
    ],
)
def test_what_a_setting_can_be(expected, right, wrong, words):
    for value in right:
        check_number("it", value, expected)
    for value in wrong:
        with pytest.raises(ValueError, match=r"^it is .*; expected ") as caught:
            check_number("it", value, expected)
        assert words in str(caught.value)


@pytest.mark.parametrize("name", registry.METHODS)
def test_every_method_refuses_an_ensemble_of_nobody(name):
    method, observations, more = method_of(name)
    if observations is None:
        observations, more = observed(times=np.arange(1.0, 5.0)), {"likelihood": None}
    with pytest.raises(UserError, match="members is 0"):
        run(method, observations, **more, members=0)
