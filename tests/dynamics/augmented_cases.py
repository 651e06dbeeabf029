"""Systems whose parameters are put into the state by several tests."""

from dataclasses import dataclass

import numpy as np
import torch

from dynamics import (
    Coordinate,
    DoubleWell,
    Field,
    FullCovariance,
    Lorenz63,
    Lorenz96,
    NavierStokes,
    ScaledIdentity,
    Space,
    Streams,
    normal,
)
from dynamics.parameters import Parameter

RHO = Parameter("rho", 28.0, 3.0, long_name="Rayleigh number over its critical value")
FLOW = NavierStokes(size=12, noise=1.0, dt=0.1, substeps=2, noise_wavevectors=((3, 0),))


@dataclass(frozen=True)
class Biased:
    """x' = a x + bias + noise: linear in state and bias together."""

    bias: float = 0.0
    coefficient: float = 0.8
    noise_std: float = 0.3
    dt: float = 1.0

    @property
    def space(self):
        return Space.scalars("x", units="K")

    def prior(self, shape, *, rng, dtype=torch.float32, device="cpu"):
        return 1.0 + 0.5 * normal(rng, (*shape, 1), dtype=dtype, device=device)

    def prior_moments(self, *, dtype=torch.float64, device="cpu"):
        variance = torch.tensor([[0.25]], dtype=dtype, device=device)
        return torch.ones(1, dtype=dtype, device=device), FullCovariance(variance, (1,))

    def step(self, x, time, *, rng):
        mean = self.coefficient * x + self.bias
        if rng is None or self.noise_std == 0:
            return mean
        return mean + self.noise_std * normal(rng, tuple(x.shape), dtype=x.dtype, device=x.device)

    def moments(self, x, time):
        variance = torch.tensor(self.noise_std**2, dtype=x.dtype, device=x.device)
        return self.step(x, time, rng=None), ScaledIdentity(variance, (1,))

    def log_prob(self, x_next, x, time):
        mean, covariance = self.moments(x, time)
        return covariance.log_prob(x_next - mean)


@dataclass(frozen=True)
class Decay:
    """x' = rate x on a grid with a no-data cell."""

    rate: float = 0.5
    dt: float = 1.0

    @property
    def space(self):
        mask = np.array([[False, True, False]])
        return Space((Field("t", "K", ("y", "x")),), {"y": Coordinate.count("y", 1), "x": 3}, mask=mask)

    def prior(self, shape, *, rng, dtype=torch.float32, device="cpu"):
        x = 1 + normal(rng, (*shape, 1, 1, 3), dtype=dtype, device=device)
        return x * torch.tensor([1.0, 0.0, 1.0], dtype=dtype, device=device)

    def step(self, x, time, *, rng):
        return self.rate * x


class Growth:
    """A user's class without dataclass: its own way to take parameters, which enter through a table."""

    dt = 0.5

    def __init__(self, rate=0.3):
        self.table = {"rate": rate}
        self.space = Space.scalars("n", "m")

    def prior(self, shape, *, rng, dtype=torch.float32, device="cpu"):
        return 1 + 0.1 * normal(rng, (*shape, 2), dtype=dtype, device=device)

    def step(self, x, time, *, rng):
        return x + self.dt * self.table["rate"] * x * (1 - x.flip(-1))

    def with_parameters(self, values):
        return Growth(values["rate"])


CASES = {
    "components": (Lorenz63.flowdas(), (RHO, Parameter("beta", 8 / 3, 0.2, positive=True)), "rows"),
    "elementwise": (Lorenz96(size=6, noise_std=0.1), (Parameter("forcing", 8.0, 1.0, walk=0.1),), "event"),
    "field": (Lorenz96(size=6), (Parameter("forcing", 8.0, 1.0, length=3.0, memory=2.0),), "event"),
    "noise": (DoubleWell(substeps=50, dt=1.0), (Parameter("noise", 0.8, 0.1, positive=True),), "event"),
    "noise, in a loop": (Lorenz63.flowdas(), (Parameter("noise_std", 0.2, 0.02, positive=True),), "loop"),
    "flow": (FLOW, (Parameter("viscosity", 0.02, 0.004, positive=True), Parameter("drag", 0.1, 0.02)), "loop"),
    "own": (Growth(), (Parameter("rate", 0.3, 0.1),), "own"),
}


def filtered(method, observations, experiments, members, dt=1.0, dtype=torch.float64):
    streams = Streams(9, experiments, members)
    prior = method.dynamics.prior((experiments, members), rng=streams.at(2**32 - 1), dtype=dtype)
    state = method.init(prior, 0.0)
    with torch.no_grad():
        for k, observation in enumerate(observations):
            state, _ = method.step(state, observation, (k + 1) * dt, rng=streams.at(k))
    return state
