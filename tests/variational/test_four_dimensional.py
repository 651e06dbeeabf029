"""4D-Var against the RTS smoother on linear Gaussian systems, and against the model on Lorenz-63."""

import math

import pytest
import torch

from assimilate.smoothers.base import Smoother
from assimilate.smoothers.rts import RTS
from assimilate.variational.background import DenseBackground
from assimilate.variational.four_dimensional import FourDVar
from assimilate.variational.hybrid import Hybrid
from assimilate.variational.minimise import LBFGS, GaussNewton
from assimilate.variational.spectral import SpectralBackground
from assimilate.variational.trajectory import Stretch
from dynamics import CapabilityError, DoubleWell, LinearGaussian, Lorenz63, Lorenz96, Streams, advance
from observations import GaussianNoise, Identity, Likelihood, Matrix, Observation, Poisson

TIMES = (0.0, 1.0, 3.0, 4.0)
SHARP = GaussNewton(accuracy=1e-10, tolerance=1e-9)
KNOWN = torch.tensor([[0.3, -0.7], [1.0, 0.2]], dtype=torch.float64)


def chain(noise=0.4):
    matrix = torch.tensor([[0.9, 0.3], [-0.2, 0.8]], dtype=torch.float64)
    return LinearGaussian(
        matrix,
        torch.diag(torch.tensor([noise, 0.0])),
        torch.tensor([1.0, -1.0]),
        torch.tensor([[1.0, 0.4], [0.4, 0.8]]),
    )


def window():
    """Two experiments; nothing at the second time, one value missing at the last."""
    likelihood = Likelihood(Matrix(chain().space, torch.tensor([[1.0, 0.5], [0.0, 1.0]])), GaussianNoise(std=0.6))
    y = torch.randn(3, 2, 1, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    y[2, 1, 0, 1] = math.nan
    first, third, last = (Observation(likelihood, values) for values in y)
    return [first, None, third, last]


CASES = {
    "strong": (chain(0.0), FourDVar(chain(0.0), minimiser=SHARP, evidence=True)),
    "weak": (chain(), FourDVar(chain(), constraint="weak", minimiser=SHARP, evidence=True)),
    "weak, lbfgs": (
        chain(),
        FourDVar(chain(), constraint="weak", minimiser=LBFGS(300, tolerance=1e-9), evidence=True),
    ),
    "model error given": (
        chain(),
        FourDVar(
            chain(0.0),
            constraint="weak",
            model_error=DenseBackground(chain().space, chain().noise_covariance),
            minimiser=SHARP,
            evidence=True,
        ),
    ),
}


@pytest.mark.parametrize("known", [None, KNOWN], ids=["prior", "known"])
@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
def test_most_probable_trajectory_and_evidence_are_those_of_the_smoother(case, known):
    system, method = case
    assert isinstance(method, Smoother)
    exact = RTS(system).moments(window(), TIMES, experiments=2, initial=known)
    paths, info = method.solve(window(), TIMES, 3, rng=Streams(0, 2, 3), initial=known)
    assert paths.shape == (2, 3, 4, 2)
    torch.testing.assert_close(info.mean, exact.mean, atol=1e-7, rtol=0)
    torch.testing.assert_close(info.log_evidence, exact.log_evidence)


@pytest.mark.parametrize("spread", ["draws", "perturbed"])
@pytest.mark.parametrize("constraint", ["strong", "weak"])
def test_trajectories_have_the_law_of_the_smoother(constraint, spread):
    n = 10_000
    system = chain(0.4 if constraint == "weak" else 0.0)
    method = FourDVar(system, constraint=constraint, spread=spread, minimiser=SHARP)
    paths, info = method.solve(window(), TIMES, n, rng=Streams(1, 2, n))
    assert (info.mean is None) == (spread == "perturbed")
    exact = RTS(system).moments(window(), TIMES, experiments=2)
    drawn, _ = RTS(system).solve(window(), TIMES, 10 * n, rng=Streams(2, 2, 10 * n), dtype=torch.float64)
    for e in range(2):
        joint = torch.cov(drawn[e].flatten(1).mT)
        scale = joint.diagonal().sqrt()
        assert ((paths[e].mean(0) - exact.mean[e]).abs().flatten() < 5 * scale / n**0.5).all()
        error = (torch.cov(paths[e].flatten(1).mT) - joint).abs() / torch.outer(scale, scale)
        assert (error < 5 * (2 / n + 0.2 / n) ** 0.5).all()


def test_trajectories_obey_the_model():
    system = Lorenz63()
    likelihood = Likelihood(Identity(system.space), GaussianNoise(std=1.0))
    truth = torch.tensor([[1.5, -1.5, 25.0]], dtype=torch.float64)
    times, observations = [0.0], [None]
    g = torch.Generator().manual_seed(3)
    for k in range(1, 5):
        times.append(0.1 * k)
        clean = advance(system, truth, 0.0, times[-1], rng=None)
        observations.append(Observation(likelihood, clean[0] + torch.randn(3, generator=g, dtype=torch.float64)))
    background = DenseBackground(system.space, torch.eye(3), mean=truth[0] + 0.8)
    paths, info = FourDVar(system, background).solve(observations, times, 3, rng=Streams(0, 1, 3))
    last = advance(system, paths[:, :, 0], 0.0, times[-1], rng=None)
    torch.testing.assert_close(paths[:, :, -1], last, atol=1e-9, rtol=0)
    # The analysis is nearer to the truth than the background; four times three observations of error 1.
    end = advance(system, truth, 0.0, times[-1], rng=None)
    start_error = (info.mean[0, 0] - truth[0]).norm()
    assert start_error < 0.5 * 0.8 * 3**0.5
    assert (info.mean[0, -1] - end[0]).norm() < 2.0


def stretch():
    system = Lorenz96(size=6)
    likelihood = Likelihood(Identity(system.space), GaussianNoise(std=0.5))
    y = 2 + torch.randn(2, 1, 1, 6, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
    guess = torch.randn(2, 1, 1, 6, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    error = SpectralBackground(system.space, 0.1, 1.0)
    made = Stretch(system, guess, SpectralBackground(system.space, 1.0, 1.0), (0.0, 0.1, 0.2), True, error)
    return made, [None, Observation(likelihood, y), Observation(likelihood, -y)]


def test_gradient_through_the_model_against_finite_differences():
    made, observations = stretch()
    cost = made.cost(observations)
    assert made.size == 6 * 5
    v = 0.3 * torch.randn(2, 1, made.size, generator=torch.Generator().manual_seed(6), dtype=torch.float64)
    _, gradient = cost.slope(v)
    h = 1e-5
    for j in range(0, made.size, 4):
        move = torch.zeros(made.size, dtype=torch.float64)
        move[j] = h
        slope = (cost(v + move) - cost(v - move)) / (2 * h)
        torch.testing.assert_close(slope, gradient[..., j], rtol=1e-6, atol=1e-6)


def test_experiments_do_not_depend_on_each_other():
    method = FourDVar(chain(), constraint="weak")
    both, _ = method.solve(window(), TIMES, 4, rng=Streams(7, 2, 4))
    part = [None if o is None else Observation(o.likelihood, o.y[1:]) for o in window()]
    alone, _ = method.solve(part, TIMES, 4, rng=Streams(7, (1,), 4))
    torch.testing.assert_close(alone[0], both[1], atol=1e-5, rtol=0)


def test_windows_follow_each_other():
    """A strong constraint without B in the second window: it runs on from the end of the first."""
    system = chain(0.0)
    exact = FourDVar(system, minimiser=SHARP).solve(window()[:3], TIMES[:3], 2, rng=Streams(8, 2, 2))[1].mean
    two, info = FourDVar(system, minimiser=SHARP, window=3.0).solve(window(), TIMES, 2, rng=Streams(8, 2, 2))
    assert two.shape == (2, 2, 4, 2) and info.mean.shape == (2, 4, 2)
    torch.testing.assert_close(info.mean[:, :2], exact[:, :2], atol=1e-8, rtol=0)
    # The second window is one analysis at time 4 with the background of time 3: Kalman's, with B = prior covariance.
    b, a = system.prior_covariance, system.matrix
    observation = window()[3]
    h, y = observation.likelihood.operator.matrix() @ a, observation.y[0, 0]
    gain = b @ h.mT @ torch.linalg.inv(h @ b @ h.mT + 0.36 * torch.eye(2, dtype=torch.float64))
    start = exact[0, 2]
    torch.testing.assert_close(info.mean[0, 2], start + gain @ (y - h @ start), atol=1e-8, rtol=0)
    torch.testing.assert_close(info.mean[0, 3], a @ info.mean[0, 2], atol=1e-8, rtol=0)


def test_nothing_observed_gives_the_prior():
    system = chain()
    n = 5000
    paths, info = FourDVar(system, constraint="weak", evidence=True).solve(
        [None, None], (0.0, 2.0), n, rng=Streams(9, 1, n)
    )
    mean, covariance = system.marginal_moments(2)
    torch.testing.assert_close(info.mean[0, 1].double(), mean, atol=1e-5, rtol=0)
    error = torch.cov(paths[0, :, 1].double().mT) - covariance.dense()
    assert (error.abs() < 5 * (2 / n) ** 0.5 * covariance.dense().diagonal().max()).all()
    assert float(info.log_evidence) == 0.0
    # A known start and a perfect model leave nothing to estimate.
    run, _ = FourDVar(system).solve([None, None], (0.0, 2.0), 2, rng=Streams(9, 2, 2), initial=KNOWN)
    expected = KNOWN @ system.matrix.mT @ system.matrix.mT
    torch.testing.assert_close(run[:, 1, 1], expected)


def test_counts_through_lbfgs():
    """Poisson counts: the mode of one step against a grid."""
    scalar = LinearGaussian.scalar(1.0, 0.0, prior_mean=5.0, prior_std=2.0)
    likelihood = Likelihood(Identity(scalar.space), Poisson(1.0))
    y = torch.tensor([9.0], dtype=torch.float64)
    method = FourDVar(scalar, minimiser=LBFGS(tolerance=1e-7))
    _, info = method.solve([Observation(likelihood, y)], (0.0,), 2, rng=Streams(0, 1, 2))
    grid = torch.linspace(0.5, 15, 145_001, dtype=torch.float64)
    log_density = likelihood.log_prob(y, grid[:, None]) - (grid - 5) ** 2 / 8
    assert abs(float(info.mean) - float(grid[log_density.argmax()])) < 2e-4


def test_what_it_refuses():
    with pytest.raises(CapabilityError, match=r"DenseBackground.prior"):
        FourDVar(Lorenz63())
    background = DenseBackground.prior(Lorenz63(), draws=10)
    with pytest.raises(CapabilityError, match="model_error"):
        FourDVar(DoubleWell(), DenseBackground.prior(DoubleWell(), draws=10), constraint="weak")
    with pytest.raises(ValueError, match="strong, weak"):
        FourDVar(chain(), constraint="firm")
    with pytest.raises(ValueError, match="weak constraint"):
        FourDVar(Lorenz63(), background, model_error=background)
    with pytest.raises(ValueError, match="positive time"):
        FourDVar(chain(), window=0.0)
    with pytest.raises(ValueError, match="Hybrid"):
        FourDVar(Lorenz63(), Hybrid(background))
    bare = DenseBackground(Lorenz63().space, torch.eye(3))
    with pytest.raises(ValueError, match="mean"):
        FourDVar(Lorenz63(), bare).solve([None], (0.0,), 2, rng=Streams(0, 1, 2))
