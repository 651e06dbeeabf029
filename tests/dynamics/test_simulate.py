"""Running a system: times, seeds, restarts; and the contract check itself."""

from dataclasses import dataclass

import numpy as np
import pytest
import torch

from dynamics import ContractError, Lorenz63, Lorenz96, Streams, advance, check_dynamics, simulate, steps_between

SYSTEM = Lorenz63.flowdas()


def test_times_dims_and_attributes():
    ds = simulate(SYSTEM, steps=20, trajectories=3, seed=5, every=4, start=10.0)
    assert dict(ds.sizes) == {"experiment": 3, "time": 6}
    assert np.allclose(ds.time, 10 + 0.1 * np.arange(6))
    assert ds.attrs["seed"] == 5 and "Lorenz63" in ds.attrs["dynamics"]


def test_first_trajectories_do_not_depend_on_their_number():
    few = simulate(SYSTEM, steps=8, trajectories=2, seed=5)
    many = simulate(SYSTEM, steps=8, trajectories=6, seed=5)
    assert few.identical(many.isel(experiment=slice(0, 2)).assign_attrs(few.attrs))
    assert not few.equals(simulate(SYSTEM, steps=8, trajectories=2, seed=6))


def test_every_and_spinup_only_choose_states():
    every = simulate(SYSTEM, steps=12, trajectories=2, seed=1)
    some = simulate(SYSTEM, steps=12, trajectories=2, seed=1, every=3)
    assert np.array_equal(some.x, every.x[:, ::3])
    late = simulate(SYSTEM, steps=8, trajectories=2, seed=1, spinup=4)
    assert np.array_equal(late.x, every.x[:, 4:])
    assert float(late.time[0]) == 0


def test_initial_states_are_kept():
    x = torch.tensor([[1.0, 2.0, 20.0], [0.0, 1.0, 15.0]])
    ds = simulate(Lorenz63(), steps=2, trajectories=2, seed=0, initial=x)
    states = SYSTEM.space.to_tensor(ds)
    assert torch.equal(states[:, 0], x)
    assert torch.equal(states[:, 2], advance(Lorenz63(), x, 0.0, 0.05, rng=None))
    with pytest.raises(ValueError, match=r"expected \(3, 3\)"):
        simulate(Lorenz63(), steps=2, trajectories=3, seed=0, initial=x)


def test_steps_between():
    assert steps_between(SYSTEM, 0.0, 10.0) == 400
    assert steps_between(SYSTEM, 0.3, 0.1 + 0.2) == 0
    with pytest.raises(ValueError, match=r"are 1\.6 steps"):
        steps_between(SYSTEM, 0.0, 0.04)
    with pytest.raises(ValueError, match="whole number >= 0"):
        steps_between(SYSTEM, 1.0, 0.0)


def test_divergence_is_named():
    with pytest.raises(FloatingPointError, match="not finite after"):
        simulate(Lorenz63(dt=1.0), steps=20, trajectories=1, seed=0)


@dataclass(frozen=True)
class Broken(Lorenz96):
    """A system with one fault."""

    fault: str = ""

    def step(self, x, time, *, rng):
        out = super().step(x, time, rng=rng)
        if self.fault == "batch":
            return out / x.norm()
        if self.fault == "shape":
            return out.squeeze(-2)
        if self.fault == "dtype":
            return out.float()
        if self.fault == "global":
            return out + torch.rand(())
        if self.fault == "order":
            return out if rng is None else out + torch.randn(x.shape, generator=torch.Generator().manual_seed(0))
        if self.fault == "inplace":
            x += 1
        return out


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ("batch", "row changed when rows were added"),
        ("shape", "has shape"),
        ("dtype", "has dtype torch.float32"),
        ("global", "one seed gave two results"),
        ("order", "row changed when rows were added"),
        ("inplace", "changed its input in place"),
    ],
)
def test_check_dynamics_finds(fault, message):
    with pytest.raises(ContractError, match=message):
        check_dynamics(Broken(size=8, fault=fault))


def test_check_dynamics_names_what_is_lacking():
    with pytest.raises(ContractError, match="lacks one of: space, dt, prior, step"):
        check_dynamics(object())


def test_streams_rows_are_used_by_step():
    x = torch.zeros(2, 4, 3)
    whole = SYSTEM.step(x, 0.0, rng=Streams(0, 2, 4))
    part = SYSTEM.step(x[1:, 2:], 0.0, rng=Streams(0, (1,), (2, 3)))
    assert torch.allclose(whole[1:, 2:], part)
