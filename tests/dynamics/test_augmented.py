"""Parameters in the state: each member with its own, laws of change, correlations, cells without data."""

import math
from dataclasses import replace

import pytest
import torch

from dynamics import (
    Lorenz63,
    Lorenz96,
    Streams,
    check_dynamics,
)
from dynamics.augmented import Augmented
from dynamics.parameters import Parameter
from tests.dynamics.augmented_cases import CASES, Decay, Growth


@pytest.fixture(params=CASES.values(), ids=CASES.keys())
def case(request):
    dynamics, parameters, layout = request.param
    return Augmented(dynamics, parameters), layout


def test_contract(case):
    augmented, layout = case
    assert augmented.family.layout == layout
    check_dynamics(augmented)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_members_move_as_systems_built_one_by_one(case, dtype):
    augmented, layout = case
    system, rng = augmented.dynamics, Streams(3, 2, 3)
    x = augmented.prior((2, 3), rng=rng.at(0), dtype=dtype)
    moved = augmented.state(augmented.step(x, 0.0, rng=rng.at(1)))
    values = augmented.values(x)
    for e in range(2):
        for n in range(3):
            own = {name: v[e, n] if v[e, n].ndim else float(v[e, n]) for name, v in values.items()}
            alone = Growth(own["rate"]) if layout == "own" else replace(system, **own)
            expected = alone.step(augmented.state(x)[e, n][None, None], 0.0, rng=Streams(3, (e,), (n,), 1))[0, 0]
            if dtype == torch.float32 and not isinstance(system, Lorenz96 | Growth) and layout != "rows":
                # A product of settings is rounded to float32 where they are tensors, and to float64 in Python.
                assert torch.allclose(moved[e, n], expected, rtol=1e-5, atol=1e-5)
            else:
                assert torch.equal(moved[e, n], expected), (e, n)


def test_the_systems_own_value_is_the_system_itself():
    system = Lorenz63.flowdas()
    augmented = Augmented(system, (Parameter("rho", 28.0, 0.0, walk=0.5),))
    x = augmented.prior((2, 5), rng=Streams(1, 2, 5), dtype=torch.float64)
    both = [d.step(s, 0.0, rng=Streams(2, 2, 5)) for d, s in ((augmented, x), (system, x[..., :3]))]
    # Parameters draw after the system, so that its numbers stay the same.
    assert torch.equal(both[0][..., :3], both[1])
    assert not torch.equal(both[0][..., 3], x[..., 3])


def test_gradients_reach_the_parameters():
    for dynamics, parameters, _ in (CASES["components"], CASES["flow"]):
        augmented = Augmented(dynamics, parameters)
        x = augmented.prior((1, 2), rng=Streams(0, 1, 2), dtype=torch.float64)
        direction = torch.zeros_like(x)
        direction.narrow(2, -len(parameters), len(parameters)).fill_(1.0)
        leaf = x.clone().requires_grad_()
        probe = torch.randn(x.shape, generator=torch.Generator().manual_seed(1), dtype=x.dtype)
        (augmented.step(leaf, 0.0, rng=None) * probe).sum().backward()
        h = 1e-6
        ends = [(augmented.step(x + s * h * direction, 0.0, rng=None) * probe).sum() for s in (1, -1)]
        slope = float((ends[0] - ends[1]) / (2 * h))
        assert float((leaf.grad * direction).sum()) == pytest.approx(slope, rel=1e-6)


# -------------------------------------------------------------------------------------------------- laws


def test_laws_of_change():
    parameters = (
        Parameter("sigma", 10.0, 1.0),
        Parameter("rho", 28.0, 2.0, walk=0.3),
        Parameter("beta", 2.5, 0.5, positive=True, memory=0.4),
    )
    augmented = Augmented(Lorenz63(dt=0.02), parameters)
    n, steps = 20_000, 10
    rng = torch.Generator().manual_seed(0)
    x = first = augmented.prior((n,), rng=rng, dtype=torch.float64)
    for _ in range(steps):
        x = augmented.step(x, 0.0, rng=rng)
    assert torch.equal(x[:, 3], first[:, 3])
    # Variances of samples have the relative standard error sqrt(2 / n).
    limit = 5 * math.sqrt(2 / n)
    assert float(x[:, 4].var()) == pytest.approx(4.0 + steps * 0.09, rel=limit)
    # The logarithm of a positive parameter: relative spread 0.5 / 2.5, kept by the memory.
    assert float(x[:, 5].var()) == pytest.approx(0.04, rel=limit)
    assert float(x[:, 5].mean()) == pytest.approx(math.log(2.5), abs=5 * 0.2 / math.sqrt(n))
    correlation = float(torch.corrcoef(torch.stack([first[:, 5], x[:, 5]]))[0, 1])
    assert correlation == pytest.approx(math.exp(-steps * 0.02 / 0.4), abs=5 / math.sqrt(n))
    assert float(augmented.values(x)["beta"].min()) > 0


def test_shorter_steps_change_parameters_as_much():
    parameters = (Parameter("sigma", 10.0, 1.0, walk=0.2), Parameter("beta", 2.5, 0.5, memory=0.4))
    augmented = Augmented(Lorenz63(dt=0.02, noise_std=0.1), parameters)
    short = augmented.with_dt(0.005)
    assert short.dt == 0.005 and short.dynamics == Lorenz63(dt=0.005, noise_std=0.05)
    (long_walk, long_memory), (walk, memory) = augmented.laws, short.laws
    assert 4 * walk.shock**2 == pytest.approx(long_walk.shock**2)
    assert memory.keep**4 == pytest.approx(long_memory.keep)
    # Four short steps of noise, each forgetting those before it.
    assert memory.shock**2 * sum(memory.keep ** (2 * k) for k in range(4)) == pytest.approx(long_memory.shock**2)


def test_a_field_of_parameters_has_its_correlations():
    augmented = Augmented(Lorenz96(size=8), (Parameter("forcing", 8.0, 0.5, length=2.0),))
    n = 20_000
    x = augmented.prior((n,), rng=torch.Generator().manual_seed(0), dtype=torch.float64)[:, 1]
    cells = augmented.space.positions()
    expected = 0.25 * torch.exp(-augmented.space.distance(cells, cells) / 2.0)
    error = torch.sqrt((expected**2 + 0.0625) / n)
    assert bool(((torch.cov(x.mT) - expected).abs() < 5 * error).all())


def test_one_number_on_a_grid_is_the_mean_of_its_copies():
    augmented = Augmented(Lorenz96(size=5), (Parameter("forcing", 8.0, 1.0),))
    x = augmented.prior((1, 2), rng=Streams(0, 1, 2), dtype=torch.float32)
    assert torch.equal(x[..., 1, :], x[..., 1, :1].expand(1, 2, 5)) and x[0, 0, 1, 0] != x[0, 1, 1, 0]
    even = Augmented(Lorenz96(size=5), (Parameter("forcing", 8.0, 0.0),)).prior((1, 2), rng=Streams(0, 1, 2))
    spread = even.clone()
    spread[..., 1, :] += torch.tensor([-2.0, 1.0, 0.0, 0.0, 1.0])
    assert torch.equal(augmented.step(spread, 0.0, rng=None), augmented.step(even, 0.0, rng=None))
    assert torch.equal(augmented.values(spread)["forcing"], augmented.values(even)["forcing"])
    for _ in range(200):
        moved = augmented.step(x, 0.0, rng=None)
        assert torch.equal(moved[..., 1, :], x[..., 1, :])
        x = moved


def test_cells_without_data_have_no_say():
    augmented = Augmented(Decay(), (Parameter("rate", 0.5, 0.1, positive=True),))
    check_dynamics(augmented)
    x = augmented.prior((1, 4), rng=Streams(0, 1, 4), dtype=torch.float64)
    assert bool((x[..., 1, 0, 1] == 0).all()) and augmented.space.mask.sum() == 2
    x[..., 1, 0, 0] += 0.2
    expected = 0.5 * (x[..., 1, 0, 0] + x[..., 1, 0, 2])
    assert torch.allclose(augmented.values(x)["rate"], expected.exp(), rtol=1e-14)
    ds = augmented.space.to_dataset(x, ("experiment", "member"))
    assert bool(ds["rate"].isnull().isel(x=1).all()) and int(ds["rate"].isnull().sum()) == 4
    assert torch.allclose(augmented.space.to_tensor(ds, dtype=torch.float64), x, rtol=1e-12, atol=1e-14)
