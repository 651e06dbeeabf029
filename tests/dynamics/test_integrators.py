"""Every integrator has the order that its docstring says."""

import math

import pytest
import torch

from dynamics.integrators import (
    adaptive,
    etdrk4,
    etdrk4_coefficients,
    euler,
    euler_maruyama,
    heun,
    rk4,
    stochastic_heun,
)


def pendulum(x, time):
    return torch.stack([x[..., 1], -torch.sin(x[..., 0]) + 0.3 * math.cos(time)], -1)


def run(step, x, steps, end=2.0):
    dt = end / steps
    for k in range(steps):
        x = step(x, k * dt, dt)
    return x


def order(errors):
    return math.log2(errors[0] / errors[1])


@pytest.mark.parametrize(("scheme", "nominal", "steps"), [(euler, 1, 400), (heun, 2, 100), (rk4, 4, 40)])
def test_order_of_ode_schemes(scheme, nominal, steps):
    x = torch.tensor([0.7, -0.2], dtype=torch.float64)
    exact = run(lambda s, t, dt: rk4(pendulum, s, t, dt), x, 4000)
    errors = [
        float((run(lambda s, t, dt: scheme(pendulum, s, t, dt), x, n) - exact).norm()) for n in (steps, 2 * steps)
    ]
    # A time argument off by half a step, or a wrong weight, costs an order.
    assert abs(order(errors) - nominal) < 0.1


def test_order_of_etdrk4_on_a_stiff_system():
    # x' = L x + n(x, t) with a slow, a stiff and an oscillating mode, coupled by n.
    linear = torch.tensor([-0.1, -10.0, 3j], dtype=torch.complex128)

    def nonlinear(x, time):
        return 0.5 * torch.sin(torch.roll(x, 1, -1)) + 0.2 * math.cos(time)

    x = torch.tensor([1.0, 0.5, 0.2], dtype=torch.complex128)

    def solve(steps):
        coefficients = etdrk4_coefficients(linear, 2.0 / steps)
        return run(lambda s, t, dt: etdrk4(nonlinear, s, t, dt, coefficients), x, steps)

    exact = solve(1600)
    errors = [float((solve(n) - exact).abs().max()) for n in (100, 200)]
    assert abs(order(errors) - 4) < 0.2
    # The same fine solution from a scheme that shares no code.
    reference = run(lambda s, t, dt: rk4(lambda z, u: linear * z + nonlinear(z, u), s, t, dt), x, 1600)
    assert float((exact - reference).abs().max()) < 1e-10


def test_etdrk4_is_exact_without_nonlinear_part():
    linear = torch.tensor([-1.0, -1000.0, 0.0, 2.0], dtype=torch.float64)
    x = torch.ones(3, 4, dtype=torch.float64)
    out = etdrk4(lambda s, t: torch.zeros_like(s), x, 0.0, 0.5, etdrk4_coefficients(linear, 0.5))
    assert torch.allclose(out, x * torch.exp(0.5 * linear), rtol=1e-14, atol=0)


def brownian(paths, steps, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(steps, paths, 1, generator=generator, dtype=torch.float64)


def coarsen(noise, factor):
    # Increments of the same Wiener path on a coarser grid, back in units of standard normal numbers.
    return noise.reshape(-1, factor, *noise.shape[1:]).sum(1) / math.sqrt(factor)


def sde_errors(step, exact, x, noise, end=1.0):
    errors = []
    for factor in (8, 4, 2, 1):
        z = coarsen(noise, factor)
        dt = end / len(z)
        state = x
        for k, increment in enumerate(z):
            state = step(state, k * dt, dt, increment)
        errors.append(float((state - exact).abs().mean()))
    return errors


def slope(errors):
    # Least squares over three halvings.
    return (3 * (math.log2(errors[0]) - math.log2(errors[3])) + (math.log2(errors[1]) - math.log2(errors[2]))) / 10


def test_strong_order_on_geometric_brownian_motion():
    # dX = a X dt + b X dW: X = X_0 exp((a - b^2/2) t + b W) in Ito's sense, exp(a t + b W) in Stratonovich's.
    a, b, paths, steps = 0.5, 0.6, 4000, 512
    noise = brownian(paths, steps)
    wiener = noise.sum(0) / math.sqrt(steps)
    x = torch.ones(paths, 1, dtype=torch.float64)
    ito = torch.exp((a - b**2 / 2) + b * wiener)
    stratonovich = torch.exp(a + b * wiener)

    def drift(s, t):
        return a * s

    def diffusion(s, t):
        return b * s

    errors = sde_errors(lambda s, t, dt, z: euler_maruyama(drift, diffusion, s, t, dt, z), ito, x, noise)
    assert abs(slope(errors) - 0.5) < 0.1
    errors = sde_errors(lambda s, t, dt, z: stochastic_heun(drift, diffusion, s, t, dt, z), stratonovich, x, noise)
    assert abs(slope(errors) - 1.0) < 0.1
    # Each against the other's solution does not converge: the two senses are told apart.
    wrong = sde_errors(lambda s, t, dt, z: euler_maruyama(drift, diffusion, s, t, dt, z), stratonovich, x, noise)
    assert wrong[3] > 10 * errors[3]


@pytest.mark.parametrize(("scheme", "nominal"), [(euler_maruyama, 1), (stochastic_heun, 2)])
def test_weak_order_on_ornstein_uhlenbeck(scheme, nominal):
    # dX = -k X dt + s dW is linear, so its numerical mean and variance follow exactly from two probes of one step.
    k, s, end = 1.5, 0.7, 1.0
    exact_mean = math.exp(-k * end)
    exact_variance = s**2 / (2 * k) * (1 - math.exp(-2 * k * end))

    def moments(steps):
        dt = end / steps
        probe = torch.tensor([[1.0], [0.0]], dtype=torch.float64)
        noise = torch.tensor([[0.0], [1.0]], dtype=torch.float64)
        gain, kick = scheme(lambda x, t: -k * x, s, probe, 0.0, dt, noise)[:, 0].tolist()
        mean, variance = 1.0, 0.0
        for _ in range(steps):
            mean, variance = gain * mean, gain**2 * variance + kick**2
        return mean, variance

    for which, exact in ((0, exact_mean), (1, exact_variance)):
        errors = [abs(moments(n)[which] - exact) for n in (64, 128)]
        assert abs(order(errors) - nominal) < 0.1


def test_adaptive_meets_its_tolerance_in_every_row():
    # x' = rate x with rates from slow to fast: a norm over the whole batch would let the fast row's error through.
    rate = torch.cat([torch.full((99, 1), 0.01), torch.full((1, 1), 3.0)]).double()
    x = torch.ones(100, 1, dtype=torch.float64)
    for rtol in (1e-4, 1e-7):
        out = adaptive(lambda s, t: rate * s, x, 0.0, 2.0, rtol, 1e-12)
        # Local errors add up over some tens of steps.
        assert float((out / torch.exp(2.0 * rate) - 1).abs().max()) < 100 * rtol
    backward = adaptive(lambda s, t: rate * s, out, 2.0, 0.0, 1e-9, 1e-12)
    assert float((backward - 1).abs().max()) < 1e-5
