"""Shorter steps: the law over a time stays what it was, exactly where that can be, else to the order of the step."""

import math
from dataclasses import dataclass

import pytest
import torch

from dynamics.base import advance
from dynamics.check import check_dynamics
from dynamics.double_well import DoubleWell
from dynamics.errors import CapabilityError
from dynamics.linear import LinearGaussian
from dynamics.lorenz import Lorenz63, Lorenz96
from dynamics.navier_stokes import NavierStokes
from dynamics.radar import RainStorms
from dynamics.random import Streams
from dynamics.substepping import divided_moments, step_that_reaches, with_dt

SPIRAL = torch.tensor([[0.9, 0.2], [-0.1, 0.8]], dtype=torch.float64)
NOISE = torch.tensor([[0.3, 0.05], [0.05, 0.2]], dtype=torch.float64)


@pytest.mark.parametrize("parts", [2, 3, 7])
@pytest.mark.parametrize("matrix", [SPIRAL, torch.eye(2, dtype=torch.float64), torch.diag(torch.tensor([0.5, 2.0]))])
def test_parts_of_a_linear_step_make_the_step(matrix, parts):
    root, noise = divided_moments(matrix, NOISE, 1 / parts)
    power, total = torch.eye(2, dtype=torch.float64), torch.zeros(2, 2, dtype=torch.float64)
    for _ in range(parts):
        power, total = root @ power, root @ total @ root.mT + noise
    torch.testing.assert_close(power, matrix.double(), atol=1e-12, rtol=0)
    torch.testing.assert_close(total, NOISE, atol=1e-12, rtol=0)


def test_a_scalar_part_is_the_ornstein_uhlenbeck_process():
    # dx = -theta x dt + s dW: A = e^(-theta h), Q = s^2 (1 - e^(-2 theta h)) / (2 theta).
    theta, s = 0.7, 1.3
    system = LinearGaussian.scalar(math.exp(-theta), s * math.sqrt((1 - math.exp(-2 * theta)) / (2 * theta)))
    part = with_dt(system, 0.3)
    assert part.dt == 0.3
    assert float(part.matrix) == pytest.approx(math.exp(-theta * 0.3), rel=1e-6)
    assert float(part.noise_covariance) == pytest.approx(s**2 * (1 - math.exp(-0.6 * theta)) / (2 * theta), rel=1e-6)


@pytest.mark.parametrize(
    ("matrix", "noise", "why"),
    [
        (torch.diag(torch.tensor([0.5, -0.5])), torch.eye(2), "negative eigenvalue"),
        (torch.tensor([[1.0, 1.0], [0.0, 1.0]]), torch.eye(2), "no full set of eigenvectors"),
        (torch.diag(torch.tensor([0.5, 0.0])), torch.eye(2), "singular"),
        # Fast decay in x0 with noise that only both together have: the law of half a step would need less than none.
        (torch.tensor([[0.01, 0.0], [0.5, 0.9]]), torch.diag(torch.tensor([1.0, 0.0])), "negative variance"),
    ],
)
def test_a_step_that_is_no_continuous_system_is_refused(matrix, noise, why):
    with pytest.raises(CapabilityError, match=why):
        divided_moments(matrix, noise, 0.5)


@pytest.mark.parametrize(
    "system",
    [Lorenz63(noise_std=0.2), Lorenz96(size=8, noise_std=0.2), DoubleWell(dt=1.0), NavierStokes(size=26, noise=0.5)],
)
def test_a_divided_system_is_a_system_and_a_whole_step_is_itself(system):
    check_dynamics(with_dt(system, 0.4 * system.dt))
    assert with_dt(system, system.dt) is system
    assert with_dt(system, 0.4 * system.dt).dt == pytest.approx(0.4 * system.dt)


@pytest.mark.parametrize("parts", [2, 4])
def test_the_noise_of_lorenz_gathers_to_the_same_variance(parts):
    # From the fixed point 0 of Lorenz-96 without forcing the flow is linear in the small noise, e^(-t) each: the exact
    # variances after dt differ by the factor of the decay only, 1 - O(dt).
    system = Lorenz96(size=40, forcing=0.0, dt=0.05, noise_std=0.01)
    x = torch.zeros(1, 4000, 1, 40, dtype=torch.float64)
    rng = Streams(3, 1, 4000)
    found = [
        advance(model, x, 0.0, 0.05, rng=rng.at(k)).var()
        for k, model in enumerate((system, with_dt(system, 0.05 / parts)))
    ]
    # Noise i of the parts decays for (parts - 1 - i) parts: the mean of e^(-2 t) over those times.
    decay = sum(math.exp(-2 * 0.05 * i / parts) for i in range(parts)) / parts
    # 160,000 numbers: a variance is known to sqrt(2 / 160,000) = 0.35 %; 4 of these, twice.
    assert float(found[1] / found[0]) == pytest.approx(decay, rel=0.02)


def test_the_double_well_keeps_its_law():
    system = DoubleWell(dt=0.4, substeps=40)
    half = with_dt(system, 0.2)
    assert half.substeps == 20 and half.noise == system.noise
    x, rng = torch.zeros(1, 20000, 1, dtype=torch.float64), Streams(5, 1, 20000)
    whole, halves = (advance(m, x, 0.0, 0.4, rng=rng.at(k)) for k, m in enumerate((system, half)))
    # The same chain of substeps: variances agree to 4 standard errors of two samples, sqrt(2 / n) each (no tails).
    assert float(halves.var() / whole.var()) == pytest.approx(1.0, abs=4 * math.sqrt(4 / 20000))


def test_a_deterministic_flow_converges_to_itself():
    # RK4: a step of dt and four of dt / 4 differ by the error of the larger step, O(dt^5): halving dt divides by 32.
    gaps = []
    x = torch.tensor([1.0, 2.0, 20.0], dtype=torch.float64)
    for dt in (0.04, 0.02):
        system = Lorenz63(dt=dt)
        part = with_dt(system, dt / 4)
        gaps.append(float((advance(part, x, 0.0, dt, rng=None) - system.step(x, 0.0, rng=None)).abs().max()))
    assert math.log2(gaps[0] / gaps[1]) == pytest.approx(5, abs=0.5)


def test_navier_stokes_runs_on_the_same_substeps():
    system = NavierStokes(size=16, dt=0.5, substeps=8)
    quarter = with_dt(system, 0.125)
    assert quarter.substeps == 2
    x = system.prior((2,), rng=torch.Generator().manual_seed(0), dtype=torch.float64)
    torch.testing.assert_close(advance(quarter, x, 0.0, 0.5, rng=None), system.step(x, 0.0, rng=None))


def test_the_longest_step_that_reaches():
    system = Lorenz63(dt=0.1)
    assert step_that_reaches(system, 0.0, 0.3) == 0.1
    assert step_that_reaches(system, 0.0, 0.25) == pytest.approx(0.25 / 3)
    assert step_that_reaches(system, 1.0, 1.03) == pytest.approx(0.03)


def test_a_system_that_cannot_be_divided_says_what_to_do_and_a_users_own_may():
    with pytest.raises(CapabilityError, match=r"RainStorms.*nearest step.*with_dt"):
        with_dt(RainStorms(8, 8), 0.5)
    with pytest.raises(ValueError, match="positive length"):
        with_dt(Lorenz63(), 0.0)

    @dataclass(frozen=True)
    class Own:
        dt: float = 1.0

        def with_dt(self, dt):
            return Own(dt)

    assert with_dt(Own(), 0.25) == Own(0.25)
