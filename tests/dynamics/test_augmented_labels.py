"""Parameters in the state as a user meets them: labels and units, operators, errors, cards."""

import math
from dataclasses import dataclass

import numpy as np
import pytest
import torch
import xarray as xr

from assimilate.variational.background import DenseBackground
from dynamics import (
    CapabilityError,
    Lorenz63,
    Lorenz96,
    Space,
    SpaceMismatch,
    Streams,
    simulate,
)
from dynamics.augmented import Augmented
from dynamics.parameters import Parameter
from observations import Arctan, Identity, Mask, check_operator
from observations.augmented import LinearOfState, observing
from tests.dynamics.augmented_cases import RHO, Biased, Decay


def test_datasets_hold_parameters_in_their_units():
    beta = Parameter("beta", 2.5, 0.2, positive=True, units="m s-1", long_name="a speed")
    augmented = Augmented(Lorenz63(), (RHO, beta))
    ds = simulate(augmented, steps=4, trajectories=3, seed=1, dtype=torch.float64)
    assert ds["rho"].dims == ("experiment", "time") and ds["beta"].attrs == {"units": "m s-1", "long_name": "a speed"}
    x = augmented.space.to_tensor(ds, dtype=torch.float64)
    assert np.allclose(ds["beta"].values, np.exp(x[..., 4].numpy()))
    assert np.ptp(ds["rho"].values, axis=1).max() == 0 and ds["rho"].std() > 0
    again = Space.from_json(augmented.space.to_json())
    assert again == augmented.space and torch.equal(again.to_tensor(ds, dtype=torch.float64), x)
    names = {"Augmented": Augmented, "Parameter": Parameter, "Lorenz63": Lorenz63, "inf": math.inf}
    assert eval(repr(augmented), names) == augmented


def test_a_truth_is_given_its_parameters():
    augmented = Augmented(Lorenz96(size=6), (Parameter("forcing", 8.0, 1.0, positive=True, units="m"),))
    states = simulate(augmented.dynamics, steps=2, trajectories=3, seed=1, dtype=torch.float64)
    per_truth = xr.DataArray([7.0, 8.0, 9.0], dims="experiment")
    for given, expected in (({}, [8.0] * 3), ({"forcing": 9.5}, [9.5] * 3), ({"forcing": per_truth}, [7.0, 8.0, 9.0])):
        whole = augmented.labelled(states, **given)
        assert whole["forcing"].dims == states["x"].dims and whole["forcing"].attrs == {"units": "m"}
        values = augmented.values(augmented.space.to_tensor(whole, dtype=torch.float64))["forcing"]
        assert torch.allclose(values, torch.tensor(expected).double().unsqueeze(-1), rtol=1e-14)
    with pytest.raises(SpaceMismatch, match="did you mean 'forcing'"):
        augmented.labelled(states, forcin=1.0)


def test_operators_on_the_model_see_no_parameter():
    augmented = Augmented(Lorenz96(size=6), (Parameter("forcing", 8.0, 1.0),))
    space = augmented.dynamics.space
    linear = observing(Mask(space, torch.tensor([0, 3])), augmented)
    curved = observing(Arctan(space, scale=3.0), augmented)
    assert isinstance(linear, LinearOfState) and not isinstance(curved, LinearOfState)
    for operator in (linear, curved):
        check_operator(operator, augmented.space)
        assert torch.equal(operator.positions, operator.operator.positions)
    assert observing(linear, augmented) is linear
    with pytest.raises(SpaceMismatch, match="those of the model are"):
        observing(Identity((3,)), augmented)


def test_the_prior_of_the_whole_state_is_a_background():
    augmented = Augmented(Biased(), (Parameter("bias", 0.2, 0.4),))
    background = DenseBackground.prior(augmented)
    assert torch.allclose(background.matrix, torch.diag(torch.tensor([0.25, 0.16])).double())
    assert torch.allclose(background.mean, torch.tensor([1.0, 0.2]).double())


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ((), "at least one Parameter"),
        ([{"name": "roh", "guess": 28.0, "std": 1.0}], "no parameter 'roh'.*did you mean 'rho'"),
        ([{"name": "rho", "guess": 28.0, "spread": 1.0}], "no Parameter.*spread"),
        ((RHO, RHO), "called 'rho'"),
        ([{"name": "rho", "guess": 28.0, "std": 1.0, "walk": 0.1, "memory": 3.0}], "leave out the walk"),
        ([{"name": "rho", "guess": 28.0, "std": -1.0}], "std is -1.0"),
        ([{"name": "rho", "guess": -1.0, "std": 1.0, "positive": True}], "not in the range"),
        ([{"name": "rho", "guess": 28.0, "std": 1.0, "length": 3.0}], "no grid"),
    ],
)
def test_wrong_parameters_are_named(parameters, message):
    with pytest.raises(ValueError, match=message):
        Augmented(Lorenz63(), parameters)


@dataclass(frozen=True)
class Stubborn(Decay):
    """Takes plain numbers only."""

    def __post_init__(self):
        if not isinstance(self.rate, float):
            raise TypeError("a float, please")

    def step(self, x, time, *, rng):
        return math.fabs(self.rate) * x


def test_a_system_that_takes_no_tensors_is_told_what_to_do():
    augmented = Augmented(Stubborn(), (Parameter("rate", 0.5, 0.1),))
    with pytest.raises(CapabilityError, match=r"with_parameters\(values\)"):
        augmented.step(augmented.prior((1, 2), rng=Streams(0, 1, 2)), 0.0, rng=None)


def test_a_card_estimates_parameters(tmp_path):
    from assimilate.cards.execution import execute
    from assimilate.cards.files import parse

    parameters = [
        {"name": "rho", "guess": 28.0, "std": 2.0},
        {"name": "beta", "guess": 2.7, "std": 0.2, "positive": True},
    ]
    system = {"type": "Lorenz63", "dt": 0.02}
    kind = "dynamics.augmented:Augmented"
    known = [{**one, "std": 0.0} for one in parameters]
    card = parse(
        {
            "title": "parameters",
            "truth": {
                "dynamics": {"type": kind, "dynamics": system, "parameters": parameters},
                "steps": 20,
                "every": 5,
                "experiments": 4,
            },
            "observations": {"operator": {"type": "Select", "channels": ["x", "y", "z"]}, "noise": 1.0},
            "method": [
                {"type": "ETKF", "members": 20},
                {
                    "type": "ETKF",
                    "label": "ETKF, parameters as guessed",
                    "members": 20,
                    "dynamics": {"type": kind, "dynamics": system, "parameters": known},
                },
            ],
            # Of the parameters alone, in units of their prior spread.
            "scores": {
                "names": ["rmse", "nrmse"],
                "drop": 15,
                "offset": [0.0, 0.0, 0.0, 28.0, math.log(2.7)],
                "scale": [1e6, 1e6, 1e6, 2.0, 0.2 / 2.7],
            },
        }
    )
    outcome = execute(card, tmp_path, name="parameters")
    assert not outcome.failures, outcome.failures
    found = outcome.scores["ETKF"]
    assert found["nrmse"] < 0.3 and outcome.scores["ETKF, parameters as guessed"]["nrmse"] == pytest.approx(1.0)
    assert found["rmse"] < 0.5 * outcome.scores["ETKF, parameters as guessed"]["rmse"]
