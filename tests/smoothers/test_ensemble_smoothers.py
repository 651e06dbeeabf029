"""Ensemble and particle smoothers on a linear Gaussian system: the law of the RTS smoother, at the promised rate."""

import math
from dataclasses import replace

import pytest
import torch

from assimilate.filters.ensemble import ETKF
from assimilate.smoothers.backward_simulation import BackwardSimulation
from assimilate.smoothers.base import Smoother
from assimilate.smoothers.ensemble_kalman import EnKS, first_within
from assimilate.smoothers.iterative import IEnKS
from assimilate.smoothers.multiple_data import ESMDA
from assimilate.smoothers.rts import RTS
from dynamics import CapabilityError, LinearGaussian, Lorenz63, Streams
from observations import GaussianNoise, Laplace, Likelihood, Mask, Observation

DOUBLE = torch.float64
CELLS, EXPERIMENTS = 5, 12
TIMES = (0.0, 1.0, 2.0, 4.0, 5.0)
RING = LinearGaussian.ring(CELLS)
METHODS = {
    "EnKS": EnKS(RING),
    "EnKS perturbed": EnKS(RING, analysis="perturbed"),
    "EnKS rotated": EnKS(RING, rotate=True),
    "IEnKS": IEnKS(RING),
    "IEnKS by steps": IEnKS(RING, lag=math.inf),
    "ES-MDA": ESMDA(RING),
    "ES-MDA factors": ESMDA(RING, factors=(9.333, 7.0, 4.0, 2.0)),
    "ensemble smoother": ESMDA(RING, assimilations=1),
    "backward simulation": BackwardSimulation(RING),
    "backward simulation, guided": BackwardSimulation(RING, guided=True),
}
EVERY = pytest.mark.parametrize("method", METHODS.values(), ids=METHODS.keys())


def window(experiments=EXPERIMENTS, system=RING, dtype=DOUBLE):
    """Every other cell seen at four of five times; a value missing, and a whole time in the second experiment."""
    rng = Streams(7, experiments, 1)
    x, found = system.prior((experiments, 1), rng=rng.at(0), dtype=dtype), []
    likelihood = Likelihood(Mask(system.space, torch.arange(0, system.space.size, 2)), GaussianNoise(std=0.5))
    for k in range(6):
        if k > 0:
            x = system.step(x, float(k - 1), rng=rng.at(2 * k))
        found.append(Observation(likelihood, likelihood.sample(x, rng=rng.at(2 * k + 1))))
    seen = [found[0], found[1], None, found[4], found[5]]
    seen[1].y[0, 0, 1], seen[4].y[1] = math.nan, math.nan
    return seen


SEEN = window()
EXACT = RTS(RING).moments(SEEN, TIMES, experiments=EXPERIMENTS)
STD = torch.diagonal(EXACT.covariance, dim1=-2, dim2=-1).sqrt()


def measured(method, n, seed=1):
    """Error of the mean in posterior standard deviations, mean ratio of spreads, error of the log evidence."""
    paths, info = method.solve(SEEN, TIMES, n, rng=Streams(seed, EXPERIMENTS, n))
    assert paths.shape == (EXPERIMENTS, n, 5, 1, CELLS) and paths.dtype == DOUBLE
    flat = paths.flatten(3)
    error = ((flat.mean(1) - EXACT.mean) / STD).square().mean().sqrt()
    gap = (info.log_evidence - EXACT.log_evidence).square().mean().sqrt()
    return float(error), float((flat.std(1) / STD).mean()), float(gap)


@EVERY
def test_law_of_the_trajectory_at_rate_one_over_root_n(method):
    assert isinstance(method, Smoother)
    # Rotations of 800 members cost more than all the rest.
    few, many = (20, 320) if getattr(method, "rotate", False) else (50, 800)
    small, large = measured(method, few), measured(method, many)
    # A draw of N members would give 1 / sqrt(N); four analyses add to at most twice that and estimated gains to a
    # little more. The weights of the particle filter leave about a tenth of the particles (guided: a fifth).
    limit = 8.0 if "simulation" in method.name else 3.0
    assert large[0] < limit / many**0.5
    # Sixteen times the members: a quarter of the error. 12 experiments of about 10 free values give it to 10 %.
    assert 2.5 < small[0] / large[0] < 6.0
    assert abs(large[1] - 1) < limit**2 / many**0.5 / 4
    # The evidence of 4 times 3 values, each estimated to about 1 / sqrt(N) of a few times itself.
    assert large[2] < 2.5 * limit / many**0.5
    assert large[2] < small[2]


@EVERY
def test_a_row_does_not_look_at_the_others(method):
    n = 20
    both, info = method.solve(SEEN, TIMES, n, rng=Streams(3, EXPERIMENTS, n))
    for e in (0, 1, 7):
        part = [None if o is None else Observation(o.likelihood, o.y[e : e + 1]) for o in SEEN]
        alone, one = method.solve(part, TIMES, n, rng=Streams(3, (e,), n))
        torch.testing.assert_close(alone[0], both[e], atol=1e-9, rtol=1e-9)
        torch.testing.assert_close(one.log_evidence[0], info.log_evidence[e], atol=1e-9, rtol=1e-9)


@EVERY
def test_nothing_to_see_leaves_the_prior(method):
    blind = [None if o is None else Observation(o.likelihood, torch.full_like(o.y, torch.nan)) for o in SEEN]
    n = 200
    paths, info = method.solve(blind, TIMES, n, rng=Streams(4, EXPERIMENTS, n))
    assert info.log_evidence.abs().max() < 1e-9
    marginal = RING.marginal_moments(0)[1].diagonal().flatten().sqrt()
    flat = paths.flatten(3)
    # 300 means of standard error 1 / sqrt(N); backward simulation draws from draws, sqrt(2) of it.
    assert (flat.mean(1) / marginal).abs().max() < 5 * 2**0.5 / n**0.5
    assert abs(float((flat.std(1) / marginal).mean()) - 1) < 0.04


@EVERY
def test_a_known_first_state_stays(method):
    # The state from which the window was made.
    known = RING.prior((EXPERIMENTS, 1), rng=Streams(7, EXPERIMENTS, 1).at(0), dtype=DOUBLE)[:, 0]
    n = 200
    exact = RTS(RING).moments(SEEN, TIMES, initial=known)
    paths, _ = method.solve(SEEN, TIMES, n, rng=Streams(5, EXPERIMENTS, n), initial=known)
    torch.testing.assert_close(paths[:, :, 0], known.unsqueeze(1).expand_as(paths[:, :, 0]))
    std = torch.diagonal(exact.covariance, dim1=-2, dim2=-1)[:, 1:].sqrt()
    error = (paths.flatten(3).mean(1) - exact.mean)[:, 1:] / std
    assert error.square().mean().sqrt() < (8.0 if "simulation" in method.name else 3.0) / n**0.5


def test_the_same_problem_three_ways():
    """Root transforms of a linear system do not care whether the observations come one by one, or iterated."""
    n = 30
    first, info = EnKS(RING).solve(SEEN, TIMES, n, rng=Streams(6, EXPERIMENTS, n))
    for method in (IEnKS(RING, lag=math.inf), IEnKS(RING, lag=math.inf, iterations=1)):
        again, other = method.solve(SEEN, TIMES, n, rng=Streams(6, EXPERIMENTS, n))
        torch.testing.assert_close(again, first, atol=1e-9, rtol=0)
        torch.testing.assert_close(other.log_evidence, info.log_evidence, atol=1e-9, rtol=0)
    # All at once, the noise is drawn before anything is corrected: other draws of the same law, but with the same
    # members at the start the analysis of a deterministic system is one.
    still = replace(RING, noise_covariance=torch.zeros(CELLS, CELLS))
    a, b = (m.solve(SEEN, TIMES, n, rng=Streams(6, EXPERIMENTS, n))[0] for m in (EnKS(still), IEnKS(still)))
    torch.testing.assert_close(a.mean(1), b.mean(1), atol=1e-9, rtol=0)
    torch.testing.assert_close(a.var(1), b.var(1), atol=1e-9, rtol=0)


def test_a_lag_of_zero_is_the_filter_and_a_fixed_lag_looks_that_far():
    n = 800
    rng = Streams(8, EXPERIMENTS, n)
    paths, _ = EnKS(RING, lag=0.0, inflation=1.1).solve(SEEN, TIMES, n, rng=rng)
    again = Streams(8, EXPERIMENTS, n)
    filtering, x = ETKF(RING, inflation=1.1), RING.prior((EXPERIMENTS, n), rng=again, dtype=DOUBLE)
    state = filtering.init(x)
    for k, observation in enumerate(SEEN):
        state, _ = filtering.step(state, observation, TIMES[k], rng=again)
        torch.testing.assert_close(paths[:, :, k], state.members, atol=1e-12, rtol=0)
    for method in (EnKS(RING, lag=2.0), IEnKS(RING, lag=2.0)):
        paths, _ = method.solve(SEEN, TIMES, n, rng=Streams(8, EXPERIMENTS, n))
        # The state at time 2 has seen the observation at 4, not the one at 5.
        exact = RTS(RING).moments(SEEN[:4], TIMES[:4], experiments=EXPERIMENTS)
        std = torch.diagonal(exact.covariance, dim1=-2, dim2=-1).sqrt()
        error = ((paths.flatten(3).mean(1)[:, 2] - exact.mean[:, 2]) / std[:, 2]).square().mean().sqrt()
        assert error < 3.0 / n**0.5
        assert (EXACT.mean[:, 2] - exact.mean[:, 2]).abs().max() > 0.05


def test_first_within():
    assert first_within(TIMES, 4, None) == 0
    assert first_within(TIMES, 4, math.inf) == 0
    assert first_within(TIMES, 4, 3.0) == 2
    assert first_within(TIMES, 3, 1.9) == 3


def test_trajectories_of_backward_simulation_are_trajectories():
    """Their covariance between neighbouring times is that of the posterior, E x_4 x_5 from the last two times."""
    n = 800
    method = BackwardSimulation(RING, guided=True)
    paths, _ = method.solve(SEEN, TIMES, n, rng=Streams(9, EXPERIMENTS, n))
    wanted, _ = RTS(RING).solve(SEEN, TIMES, n, rng=Streams(10, EXPERIMENTS, n), dtype=DOUBLE)

    def between(x):
        now, after = (x[:, :, k].flatten(2) - x[:, :, k].flatten(2).mean(1, keepdim=True) for k in (3, 4))
        return (now.mT @ after) / (n - 1)

    scale = STD[:, 3, :, None] * STD[:, 4, None, :]
    error = ((between(paths) - between(wanted)) / scale).square().mean().sqrt()
    # Two samples of a covariance, the one of effectively 800 / 5 particles.
    assert error < 2 / 160**0.5
    # Without the past joining the future, neighbours would be independent: what is measured is far from 0.
    assert (between(wanted) / scale).abs().max() > 0.5
    distinct = [len(torch.unique(paths[e, :, 0, 0, 0])) for e in range(3)]
    # All of 800 trajectories have a common ancestor in few lines of the filter; these begin in many places.
    assert min(distinct) > 50


def test_iterations_follow_a_nonlinear_model():
    """Lorenz-63 for 0.4, well seen in the end: from the smoothed start the model leads to what was seen."""
    system = Lorenz63(dt=0.05, prior_mean=(1.5, -1.5, 25.5), prior_covariance=((2.0, 0, 0), (0, 2.0, 0), (0, 0, 2.0)))
    rng, steps = Streams(7, 32, 1), 8
    truth = system.prior((32, 1), rng=rng.at(0), dtype=DOUBLE)
    for _ in range(steps):
        truth = system.step(truth, 0.0, rng=None)
    likelihood = Likelihood(Mask(system.space, torch.arange(3)), GaussianNoise(std=0.3))
    seen = [None, Observation(likelihood, likelihood.sample(truth, rng=rng.at(1)))]
    misfit = {}
    for name, method in (
        ("EnKS", EnKS(system)),
        ("IEnKS", IEnKS(system, iterations=30)),
        ("ES-MDA", ESMDA(system, assimilations=8)),
    ):
        paths, _ = method.solve(seen, (0.0, 0.4), 20, rng=Streams(2, 32, 20))
        x = paths[:, :, 0].mean(1, keepdim=True)
        for _ in range(steps):
            x = system.step(x, 0.0, rng=None)
        misfit[name] = likelihood.residual(seen[1].y, x).square().sum((-2, -1))
    # Three values of misfit about 1 each, less what the start takes up; chi-square of 3 is above 16 once in a thousand.
    assert misfit["IEnKS"].max() < 16 and misfit["ES-MDA"].max() < 16
    assert misfit["IEnKS"].median() < 3 and misfit["EnKS"].median() > 6


def test_what_they_refuse():
    rng = Streams(0, EXPERIMENTS, 4)
    with pytest.raises(ValueError, match="lag is -1"):
        EnKS(RING, lag=-1.0)
    with pytest.raises(ValueError, match="analysis is 'both'"):
        EnKS(RING, analysis="both")
    with pytest.raises(ValueError, match=r"sums to 1\.5"):
        ESMDA(RING, factors=(1.0, 2.0))
    with pytest.raises(ValueError, match="iterations is 0"):
        IEnKS(RING, iterations=0)
    with pytest.raises(CapabilityError, match="noise is 0"):
        BackwardSimulation(Lorenz63()).solve([None, None], (0.0, 0.05), 4, rng=rng)
    with pytest.raises(ValueError, match="at least 2 members"):
        EnKS(RING).solve(SEEN, TIMES, 1, rng=Streams(0, EXPERIMENTS, 1))
    with pytest.raises(ValueError, match="initial has shape"):
        IEnKS(RING).solve(SEEN, TIMES, 4, rng=rng, initial=torch.zeros(EXPERIMENTS, CELLS))
    likelihood = Likelihood(SEEN[0].likelihood.operator, Laplace(scale=1.0))
    for method in (EnKS(RING), IEnKS(RING), ESMDA(RING)):
        with pytest.raises(CapabilityError, match="Gaussian"):
            method.solve([Observation(likelihood, SEEN[0].y)], (0.0,), 4, rng=rng)
