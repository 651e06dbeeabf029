"""Parameters in the state: each member with its own, closed forms, recovery within the spread, labels and errors."""

import math
from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch
import xarray as xr

from assimilate.filters.ensemble import ETKF, EnKF
from assimilate.filters.extended_kalman import ExtendedKalmanFilter
from assimilate.filters.finite_size import EnKFN
from assimilate.filters.kalman import KalmanFilter
from assimilate.filters.local import LETKF
from assimilate.filters.particle import BootstrapFilter
from assimilate.filters.regularised import RegularisedFilter
from assimilate.posterior.weights import weighted_mean, weighted_variance
from assimilate.smoothers.iterative import IEnKS
from assimilate.smoothers.multiple_data import ESMDA
from assimilate.variational.background import DenseBackground, DiagonalBackground
from assimilate.variational.four_dimensional import FourDVar
from dynamics import (
    CapabilityError,
    Coordinate,
    DoubleWell,
    Field,
    FullCovariance,
    Lorenz63,
    Lorenz96,
    NavierStokes,
    ScaledIdentity,
    Space,
    SpaceMismatch,
    Streams,
    TransitionDensity,
    check_dynamics,
    normal,
    simulate,
)
from dynamics.augmented import Augmented
from dynamics.parameters import Parameter
from observations import Arctan, GaussianNoise, Identity, Likelihood, Mask, check_operator
from observations.augmented import LinearOfState, observing
from observations.likelihood import Observation

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


# -------------------------------------------------------------------------------------------------- closed forms


def linear_problem(noise_std=0.3, steps=12, walk=0.0):
    augmented = Augmented(Biased(noise_std=noise_std), (Parameter("bias", 0.2, 0.4, walk=walk, units="K"),))
    likelihood = Likelihood(observing(Identity(augmented.dynamics.space), augmented), GaussianNoise(std=0.5))
    y = 2.0 + 0.6 * torch.randn(steps, 1, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
    return augmented, [Observation(likelihood, value) for value in y], y


def kalman_by_hand(y, noise_std, walk):
    """The two-dimensional Kalman filter of (x, bias), written out."""
    matrix = torch.tensor([[0.8, 1.0], [0.0, 1.0]], dtype=torch.float64)
    mean, covariance = torch.tensor([1.0, 0.2]).double(), torch.diag(torch.tensor([0.25, 0.16])).double()
    noise = torch.diag(torch.tensor([noise_std**2, walk**2])).double()
    for value in y:
        mean, covariance = matrix @ mean, matrix @ covariance @ matrix.T + noise
        gain = covariance[:, 0] / (covariance[0, 0] + 0.25)
        mean = mean + gain * (value - mean[0])
        covariance = covariance - torch.outer(gain, covariance[0])
    return mean, covariance


def filtered(method, observations, experiments, members, dt=1.0, dtype=torch.float64):
    streams = Streams(9, experiments, members)
    prior = method.dynamics.prior((experiments, members), rng=streams.at(2**32 - 1), dtype=dtype)
    state = method.init(prior, 0.0)
    with torch.no_grad():
        for k, observation in enumerate(observations):
            state, _ = method.step(state, observation, (k + 1) * dt, rng=streams.at(k))
    return state


@pytest.mark.parametrize("walk", [0.0, 0.05])
def test_kalman_filters_are_exact(walk):
    augmented, observations, y = linear_problem(walk=walk)
    assert isinstance(augmented, TransitionDensity)
    mean, covariance = kalman_by_hand(y, 0.3, walk)
    for method in (KalmanFilter(augmented), ExtendedKalmanFilter(augmented, prior="dynamics")):
        state = filtered(method, observations, 1, 4)
        assert torch.allclose(state.mean[0], mean, atol=1e-10)
        if isinstance(method, KalmanFilter):
            assert torch.allclose(state.covariance[0], covariance, atol=1e-10)


def test_the_ensemble_filter_converges_to_it():
    augmented, observations, y = linear_problem()
    mean, covariance = kalman_by_hand(y, 0.3, 0.0)
    errors, spreads = [], []
    counts, experiments = (40, 640), 100
    for members in counts:
        found = filtered(EnKF(augmented), observations, experiments, members).members
        error = found.mean(1) - mean
        errors.append(error.square().mean(0).sqrt())
        spreads.append(found.var(1).mean(0))
    # Error goes with N^-1/2: a factor of 4, each known to 1 / sqrt(2 E) = 7 %, the ratio to 10 %.
    assert bool(((errors[0] / errors[1] / 4).log().abs() < 0.4).all())
    limit = 5 * covariance.diagonal().sqrt() / math.sqrt(counts[1] * experiments)
    # Beside the error of the sample there is a bias of order 1 / N.
    assert bool((error.mean(0).abs() < limit + 4 * covariance.diagonal().sqrt() / counts[1]).all())
    assert torch.allclose(spreads[1], covariance.diagonal(), rtol=0.02)


def test_variational_and_smoothers_find_the_exact_bias():
    augmented, observations, y = linear_problem(noise_std=0.0)
    window, times = [None, *observations], [float(k) for k in range(len(y) + 1)]
    mean, covariance = kalman_by_hand(y, 0.0, 0.0)
    # With a perfect model the last state of the smoother is that of the filter.
    drawn, info = FourDVar(augmented).solve(window, times, 4000, rng=Streams(0, 1, 4000))
    assert torch.allclose(info.mean[0, -1], mean, atol=1e-6)
    error = torch.sqrt((covariance**2 + torch.outer(covariance.diagonal(), covariance.diagonal())) / 4000)
    assert bool(((torch.cov(drawn[0, :, -1].mT) - covariance).abs() < 5 * error).all())
    for smoother in (IEnKS(augmented), ESMDA(augmented)):
        drawn, _ = smoother.solve(window, times, 4000, rng=Streams(1, 1, 4000))
        last = drawn[0, :, -1]
        assert bool(((last.mean(0) - mean).abs() < 6 * covariance.diagonal().sqrt() / math.sqrt(4000)).all())
        assert torch.allclose(last.var(0), covariance.diagonal(), rtol=6 * math.sqrt(2 / 4000))


def test_densities_are_the_products_of_both_parts():
    parameters = (Parameter("sigma", 10.0, 1.0, walk=0.2), Parameter("rho", 28.0, 1.0, memory=0.5))
    augmented = Augmented(Lorenz63.flowdas(), parameters)
    x = augmented.prior((2, 3), rng=Streams(0, 2, 3), dtype=torch.float64)
    x_next = augmented.step(x, 0.0, rng=Streams(1, 2, 3))
    mean, covariance = augmented.moments(x, 0.0)
    dense = covariance.dense()
    expected = torch.distributions.MultivariateNormal(mean, dense).log_prob(x_next)
    assert torch.allclose(augmented.log_prob(x_next, x, 0.0), expected, rtol=1e-10)
    assert torch.allclose(covariance.log_prob(x_next - mean), expected, rtol=1e-10)
    assert torch.allclose(dense.diagonal(), covariance.diagonal())
    z = torch.randn(50_000, 5, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    error = torch.sqrt((dense**2 + torch.outer(dense.diagonal(), dense.diagonal())) / 50_000)
    assert bool(((torch.cov(covariance.colour(z).mT) - dense).abs() < 5 * error + 1e-12).all())
    ring = Augmented(Lorenz96(size=6, noise_std=0.1), (Parameter("forcing", 8.0, 1.0, walk=0.2),))
    _, covariance = ring.moments(ring.prior((1, 1), rng=Streams(0), dtype=torch.float64), 0.0)
    z = torch.randn(50_000, 2, 6, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    assert torch.allclose(torch.cov(covariance.colour(z).flatten(1).mT), covariance.dense(), atol=2e-3)
    assert not isinstance(Augmented(*CASES["flow"][:2]), TransitionDensity)
    assert not isinstance(Augmented(*CASES["noise, in a loop"][:2]), TransitionDensity)
    constant = Augmented(Lorenz63.flowdas(), (RHO,))
    with pytest.raises(CapabilityError, match="'rho' does not change"):
        constant.log_prob(x[..., :4], x[..., :4], 0.0)


# -------------------------------------------------------------------------------------------------- recovery


def twin(augmented, operator, *, experiments, cycles, every, std, spinup=0):
    """Truths whose parameters are draws of the prior, and their observations."""
    likelihood = Likelihood(observing(operator, augmented), GaussianNoise(std=std))
    streams = Streams(5, experiments, 1)
    x = augmented.prior((experiments, 1), rng=streams.at(0), dtype=torch.float64)
    for k in range(spinup):
        x = augmented.step(x, 0.0, rng=streams.at(k + 1))
    observations = []
    for k in range(cycles):
        for j in range(every):
            x = augmented.step(x, 0.0, rng=streams.at(10_000 + k * every + j))
        observations.append(Observation(likelihood, likelihood.sample(x, rng=streams.at(20_000 + k))))
    return x[:, 0], observations


def departures(method, state, truth):
    """Error over spread `(E, P)`, and the error of the parameters in tensor units."""
    members, log_weights = method.ensemble(state)
    error = (weighted_mean(members, log_weights) - truth)[:, 3:]
    return error / weighted_variance(members, log_weights).sqrt()[:, 3:], error


LORENZ = Augmented(
    Lorenz63(dt=0.02),
    (Parameter("sigma", 10.0, 1.0, positive=True), RHO, Parameter("beta", 8 / 3, 0.3, positive=True)),
)


@pytest.mark.parametrize(
    ("method", "members"),
    [(ETKF(LORENZ), 20), (EnKFN(LORENZ), 20), (EnKF(LORENZ), 80)],
    ids=lambda v: getattr(v, "name", str(v)),
)
def test_lorenz63_parameters_are_found_within_their_spread(method, members):
    truth, observations = twin(LORENZ, Identity(LORENZ.dynamics.space), experiments=32, cycles=40, every=5, std=1.0)
    white, error = departures(method, filtered(method, observations, 32, members, dt=0.1), truth)
    # 96 squares of standard normals have the mean 1 with a standard error of 0.14; N = 20 adds its own.
    assert 0.4 < float(white.square().mean()) < 1.6
    assert float(white.abs().max()) < 4.5
    prior = torch.tensor([0.1, 3.0, 0.1125])
    assert bool((error.square().mean(0).sqrt() < prior * torch.tensor([0.6, 0.1, 0.2])).all())


def test_particles_find_a_parameter_and_jitter_keeps_them_apart():
    augmented = Augmented(Lorenz63.flowdas(), (RHO,))
    truth, observations = twin(
        augmented, Identity(augmented.dynamics.space), experiments=8, cycles=20, every=4, std=2.0
    )
    distinct = {}
    for method in (BootstrapFilter(augmented), RegularisedFilter(augmented, moved="all", shrinkage=True)):
        state = filtered(method, observations, 8, 1000, dt=0.1)
        distinct[method.name] = min(len(row.unique()) for row in state.members[..., 3])
    # A constant parameter can only lose values to resampling; kernels make new ones without more variance.
    assert distinct["bootstrap filter"] < 100 and distinct["regularised particle filter"] == 1000
    white, error = departures(method, state, truth)
    assert 0.3 < float(white.square().mean()) < 2.5
    assert float(error.square().mean().sqrt()) < 0.2 * 3.0


def test_no_member_is_ever_negative():
    # Half of the draws of a Gaussian of this spread would be below a third of the guess, a sixth below 0.
    augmented = Augmented(Lorenz63(dt=0.02), (Parameter("beta", 8 / 3, 8 / 3, positive=True),))
    _, observations = twin(augmented, Identity((3,)), experiments=8, cycles=20, every=5, std=1.0)
    state = filtered(ETKF(augmented, inflation=1.1), observations, 8, 20, dt=0.1)
    assert float(augmented.values(state.members)["beta"].min()) > 0


def test_a_local_filter_finds_one_number_for_the_grid():
    augmented = Augmented(Lorenz96(), (Parameter("forcing", 8.0, 1.0),))
    space = augmented.dynamics.space
    truth, observations = twin(augmented, Identity(space), experiments=8, cycles=60, every=1, std=1.0, spinup=50)
    true = augmented.values(truth)["forcing"]
    found = augmented.values(filtered(LETKF(augmented, radius=4.0, inflation=1.04), observations, 8, 10, 0.05).members)
    error = (found["forcing"].mean(1) - true).square().mean().sqrt()
    assert float(error) < 0.25 and float(error) < 2 * float(found["forcing"].std(1).mean())
    # Without localisation every cell's copy gets the same analysis: that of the global filter.
    some = observations[:3]
    wide = filtered(LETKF(augmented, radius=math.inf), some, 8, 10, 0.05).members
    assert torch.allclose(wide, filtered(ETKF(augmented), some, 8, 10, 0.05).members, atol=1e-8)


def test_variational_assimilation_finds_rho():
    augmented = Augmented(Lorenz63(dt=0.02), (RHO,))
    truth, observations = twin(augmented, Identity((3,)), experiments=4, cycles=4, every=5, std=0.5)
    background = DiagonalBackground(augmented.space, (8.0, 9.0, 8.6, 3.0), mean=torch.tensor([0.0, 0.0, 25.0, 28.0]))
    method = FourDVar(augmented, background)
    drawn, info = method.solve([None, *observations], [0.1 * k for k in range(5)], 32, rng=Streams(0, 4, 32))
    white = (info.mean[:, -1, 3] - truth[:, 3]) / drawn[:, :, -1, 3].std(1)
    assert float((info.mean[:, -1, 3] - truth[:, 3]).square().mean().sqrt()) < 0.2 * 3.0
    assert float(white.square().mean()) < 4.0  # four squares: 1 with a standard error of 0.7


# -------------------------------------------------------------------------------------------------- labels


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


# -------------------------------------------------------------------------------------------------- errors


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
