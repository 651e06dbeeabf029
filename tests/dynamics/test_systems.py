"""The systems: contracts, invariants, exact moments, published settings."""

import math

import pytest
import torch

from dynamics import (
    FLOWDAS_CENTER,
    FLOWDAS_SCALE,
    CapabilityError,
    DoubleWell,
    FullCovariance,
    LinearGaussian,
    Lorenz63,
    Lorenz96,
    ScaledIdentity,
    Streams,
    check_dynamics,
    simulate,
)

SYSTEMS = [
    Lorenz63(),
    Lorenz63.flowdas(),
    Lorenz96(noise_std=0.1),
    LinearGaussian.scalar(),
    LinearGaussian.ring(12),
    DoubleWell(),
    DoubleWell(dimension=3),
]


@pytest.mark.parametrize("system", SYSTEMS, ids=lambda s: type(s).__name__)
def test_contract(system):
    check_dynamics(system)


@pytest.mark.parametrize("system", [Lorenz63.flowdas(), Lorenz96(), DoubleWell()], ids=lambda s: type(s).__name__)
def test_repr_rebuilds(system):
    names = {"Lorenz63": Lorenz63, "Lorenz96": Lorenz96, "DoubleWell": DoubleWell}
    assert eval(repr(system), names) == system


def test_lorenz63_fixed_points_and_volume():
    system = Lorenz63()
    root = math.sqrt(system.beta * (system.rho - 1))
    fixed = torch.tensor([[0, 0, 0], [root, root, 27], [-root, -root, 27]], dtype=torch.float64)
    assert float(system.tendency(fixed, 0.0).abs().max()) < 1e-12
    # The flow shrinks volumes at the constant rate -(sigma + 1 + beta).
    x = torch.tensor([1.0, 2.0, 20.0], dtype=torch.float64)
    jacobian = torch.func.jacrev(lambda s: system.tendency(s, 0.0))(x)
    assert float(jacobian.trace()) == pytest.approx(-(10 + 1 + 8 / 3), rel=1e-14)
    step = torch.func.jacrev(lambda s: system.step(s, 0.0, rng=None))(x)
    # RK4 keeps the volume to its local order: (13.7 * 0.025)^5 / 120 = 4e-5.
    assert float(torch.log(torch.linalg.det(step))) == pytest.approx(-(11 + 8 / 3) * 0.025, abs=2e-4)


def test_lorenz63_does_not_depend_on_the_order_in_memory():
    system = Lorenz63()
    x = system.prior((2, 9), rng=Streams(0, 2, 9))
    by_component = x.movedim(-1, 0).contiguous().movedim(0, -1)
    moved = system.step(by_component, 0.0, rng=None)
    assert torch.equal(moved, system.step(x, 0.0, rng=None)) and moved.stride() == by_component.stride()


def test_lorenz63_flowdas_setting():
    system = Lorenz63.flowdas()
    assert system.dt == 0.025 and system.noise_std == math.sqrt(0.025)
    assert FLOWDAS_CENTER == (0, 0, 25) and FLOWDAS_SCALE == (8, 9, 8.6)
    ds = simulate(system, steps=1000, trajectories=32, seed=1, spinup=500)
    x = (system.space.to_tensor(ds) - torch.tensor(FLOWDAS_CENTER)) / torch.tensor(FLOWDAS_SCALE)
    # The normalised climate has mean about 0 and standard deviation about 1 in each component.
    assert float(x.flatten(0, 1).mean(0).abs().max()) < 0.25
    assert float((x.flatten(0, 1).std(0) - 1).abs().max()) < 0.1
    # The log prior of a true transition is 0.427 nats per scalar: -1/2 (1 + log(2 pi dt)).
    states = system.space.to_tensor(ds, dtype=torch.float64)
    per_scalar = float(system.log_prob(states[:, 1:], states[:, :-1], 0.0).mean()) / 3
    expected = -0.5 * (1 + math.log(2 * math.pi * 0.025))
    assert expected == pytest.approx(0.427, abs=2e-3)  # as quoted, rounded
    assert per_scalar == pytest.approx(expected, abs=5 * math.sqrt(0.5 / (3 * 32 * 1000)))


def test_lorenz96_conserves_energy_but_for_forcing_and_friction():
    system = Lorenz96()
    x = torch.randn(5, 1, 40, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    tendency = system.tendency(x, 0.0)
    # d/dt sum x^2/2 = -sum x^2 + F sum x: the advection does no work. A wrong shift breaks it.
    assert torch.allclose((x * tendency).sum(-1), (-(x**2) + 8 * x).sum(-1), rtol=0, atol=1e-11)
    # The equations look the same from every place of the ring.
    assert torch.allclose(system.tendency(torch.roll(x, 7, -1), 0.0), torch.roll(tendency, 7, -1), atol=1e-13)
    # Lorenz and Emanuel write the term out for one place.
    expected = (x[0, 0, 4] - x[0, 0, 1]) * x[0, 0, 2] - x[0, 0, 3] + 8
    assert float(tendency[0, 0, 3]) == pytest.approx(float(expected), rel=1e-12)


def test_lorenz96_prior_is_the_climate():
    ds = simulate(Lorenz96(), steps=2000, trajectories=4, seed=0, spinup=400, every=10)
    assert float(ds.x.mean()) == pytest.approx(Lorenz96().prior_mean, abs=0.15)
    assert float(ds.x.std()) == pytest.approx(Lorenz96().prior_std, abs=0.15)


def test_linear_gaussian_moments():
    a = torch.tensor([[0.9, 0.3], [-0.2, 0.7]], dtype=torch.float64)
    q = torch.tensor([[0.5, 0.2], [0.2, 0.3]], dtype=torch.float64)
    p = torch.tensor([[1.0, -0.4], [-0.4, 0.8]], dtype=torch.float64)
    system = LinearGaussian(a, q, torch.tensor([1.0, -2.0]), p)
    n = 200_000
    generator = torch.Generator().manual_seed(3)
    x = system.prior((n,), rng=generator, dtype=torch.float64)
    for _ in range(3):
        x = system.step(x, 0.0, rng=generator)
    mean, covariance = system.marginal_moments(3)
    dense = covariance.dense()
    # Three steps by hand.
    expected = a @ (a @ (a @ p @ a.T + q) @ a.T + q) @ a.T + q
    assert torch.allclose(dense, expected, atol=1e-14)
    spread = dense.diagonal().sqrt()
    assert bool(((x.mean(0) - mean).abs() < 5 * spread / math.sqrt(n)).all())
    sample = torch.cov(x.T)
    error = torch.sqrt((dense**2 + torch.outer(dense.diagonal(), dense.diagonal())) / n)
    assert bool(((sample - dense).abs() < 5 * error).all())


def test_linear_gaussian_density():
    system = LinearGaussian.ring(6)
    x = system.prior((2, 3), rng=Streams(0, 2, 3), dtype=torch.float64)
    x_next = system.step(x, 0.0, rng=Streams(1, 2, 3))
    flat, flat_next = x.flatten(2), x_next.flatten(2)
    reference = torch.distributions.MultivariateNormal(flat @ system.matrix.T, system.noise_covariance)
    assert torch.allclose(system.log_prob(x_next, x, 0.0), reference.log_prob(flat_next), rtol=1e-10)


def test_ring_is_stationary_and_moves():
    system = LinearGaussian.ring(20, shift=3)
    _, first = system.marginal_moments(0)
    _, later = system.marginal_moments(50)
    assert torch.allclose(first.dense(), later.dense(), atol=1e-12)
    bump = torch.zeros(1, 20, dtype=torch.float64)
    bump[0, 5] = 1.0
    assert int(system.step(bump, 0.0, rng=None).argmax()) == 8


def test_degenerate_noise_is_allowed_but_has_no_density():
    system = LinearGaussian(torch.eye(2), torch.diag(torch.tensor([1.0, 0.0])), torch.zeros(2), torch.eye(2))
    x = system.step(torch.zeros(1, 50, 2), 0.0, rng=Streams(0, 1, 50))
    assert float(x[..., 1].abs().max()) == 0 and float(x[..., 0].abs().min()) > 0
    with pytest.raises(CapabilityError, match="singular"):
        system.log_prob(x, x, 0.0)
    with pytest.raises(CapabilityError, match="noise is 0"):
        Lorenz63().log_prob(torch.zeros(3), torch.zeros(3), 0.0)


def test_bad_covariances_are_refused():
    with pytest.raises(ValueError, match="negative eigenvalue"):
        FullCovariance(torch.tensor([[1.0, 2.0], [2.0, 1.0]]), (2,))
    with pytest.raises(ValueError, match="not symmetric"):
        FullCovariance(torch.tensor([[1.0, 0.5], [0.0, 1.0]]), (2,))
    with pytest.raises(ValueError, match=r"expected \(2, 2\)"):
        FullCovariance(torch.eye(3), (2,))


def test_covariances_agree():
    residual = torch.randn(4, 2, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    small = ScaledIdentity(torch.tensor(0.3, dtype=torch.float64), (2, 3))
    full = FullCovariance(small.dense(), (2, 3))
    assert torch.allclose(small.log_prob(residual), full.log_prob(residual), rtol=1e-13)
    assert torch.allclose(small.colour(residual), full.colour(residual), rtol=1e-13)
    assert torch.equal(small.diagonal(), full.diagonal())


def test_double_well_transition_is_bimodal():
    system = DoubleWell()
    points = torch.linspace(-2.5, 2.5, 201, dtype=torch.float64)
    kernel = system.transition_matrix(points)
    spacing = 0.025
    assert torch.allclose(kernel.sum(1) * spacing, torch.ones(201, dtype=torch.float64), atol=1e-9)
    density = kernel[140]  # from x = 1, the bottom of a well
    left, right = float(density[:100].max()), float(density[101:].max())
    dip = float(density[80:121].min())
    # Two modes, the smaller one over four times the dip: no Gaussian has any dip.
    assert dip < left / 4 < right / 4
    other = float(density[:100].sum()) * spacing
    rate = math.sqrt(8 * 4) / (2 * math.pi) * math.exp(-2 / 0.8**2)
    # Kramers' rate is the leading term for a high barrier; here it is good to a quarter.
    assert other == pytest.approx((1 - math.exp(-2 * rate * system.dt)) / 2, rel=0.25)
    # The sampler draws from this density: masses of both wells and the ridge, five standard errors.
    n = 20_000
    x = system.step(torch.ones(1, n, 1, dtype=torch.float64), 0.0, rng=Streams(2, 1, n))[0, :, 0]
    for low, high in [(-2.5, -0.5), (-0.5, 0.5), (0.5, 1.0), (1.0, 2.5)]:
        ends = torch.isclose(points, points.new_tensor(low)) | torch.isclose(points, points.new_tensor(high))
        weights = torch.where(ends, 0.5, 1.0)  # trapezium rule
        inside = (points >= low - 1e-9) & (points <= high + 1e-9)
        mass = float((density * weights * inside).sum()) * spacing
        share = float(((x > low) & (x <= high)).double().mean())
        assert abs(share - mass) < 5 * math.sqrt(mass * (1 - mass) / n) + 1e-3


def test_double_well_refuses_long_substeps():
    with pytest.raises(ValueError, match="take at least 40"):
        DoubleWell(substeps=10)
