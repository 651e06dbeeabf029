import math

import pytest
import torch

from assimilate.filters import particle
from assimilate.filters.particle import BootstrapFilter, GuidedParticleFilter, move, propose
from assimilate.posterior.weights import log_normalize, weighted_mean, weighted_variance
from dynamics import CapabilityError, LinearGaussian, Lorenz63, Streams
from observations import Arctan, GaussianNoise, Likelihood, Mask, Matrix, Observation


def test_optimal_proposal_of_a_linear_operator():
    """Weights are the predictive density, whatever was drawn; the draws have the Kalman update's law."""
    d, n = 3, 40_000
    g = torch.Generator().manual_seed(0)
    root = torch.randn(d, 2, generator=g, dtype=torch.float64)
    noise = root @ root.T  # singular
    eye = torch.eye(d, dtype=torch.float64)
    system = LinearGaussian(0.8 * eye, noise, torch.zeros(d), eye)
    h = torch.randn(2, d, generator=g, dtype=torch.float64)
    r = torch.tensor([[0.5, 0.2], [0.2, 0.3]], dtype=torch.float64)
    likelihood = Likelihood(Matrix(system.space, h), GaussianNoise(covariance=r))
    y = torch.tensor([1.0, -1.0], dtype=torch.float64)
    before = torch.tensor([0.5, -1.0, 2.0], dtype=torch.float64).expand(1, n, d)
    mean, covariance = system.moments(before, 0.0)
    found = propose(mean, covariance, Observation(likelihood, y), rng=g)
    predicted = torch.distributions.MultivariateNormal(mean[0, 0] @ h.T, h @ noise @ h.T + r).log_prob(y)
    torch.testing.assert_close(found.log_weights, predicted.expand(1, n))
    gain = noise @ h.T @ torch.linalg.inv(h @ noise @ h.T + r)
    law = noise - gain @ h @ noise
    scale = torch.diagonal(law).sqrt()
    shift = found.members[0].mean(0) - mean[0, 0] - gain @ (y - h @ mean[0, 0])
    assert (shift.abs() < 5 * scale / n**0.5).all()
    assert ((torch.cov(found.members[0].T) - law).abs() / torch.outer(scale, scale) < 5 * (2 / n) ** 0.5).all()
    assert ((torch.cov(found.background[0].T) - noise).abs() < 5 * (2 / n) ** 0.5 * noise.abs().max()).all()


def test_chunks_move_members_as_at_once(monkeypatch):
    """Bit for bit, with the numbers of `Streams` too; as many are counted as drawn."""
    system = Lorenz63.flowdas()
    x = system.prior((2, 23), rng=Streams(1, 2, 23))
    whole, cut = Streams(4, 2, 23), Streams(4, 2, 23)
    at_once = move(system, x, 0.0, 3 * system.dt, rng=whole, method="test")
    still = move(system, x, 0.0, system.dt, rng=None, method="test")
    monkeypatch.setattr(particle, "CHUNK_NUMBERS", 30)
    assert torch.equal(move(system, x, 0.0, 3 * system.dt, rng=cut, method="test"), at_once)
    assert whole.position == cut.position and whole.position.draws == [3]
    assert torch.equal(move(system, x, 0.0, system.dt, rng=None, method="test"), still)
    # Mirrored members may lie in different chunks: they go at once.
    mirrored = move(system, x[:, :22], 0.0, system.dt, rng=Streams(4, 2, 22).mirrored(), method="test")
    assert torch.equal(mirrored, system.step(x[:, :22], 0.0, rng=Streams(4, 2, 22).mirrored()))


def test_weights_correct_the_linearisation():
    """A curved operator: the weighted proposal has the moments and evidence found by quadrature."""
    system = LinearGaussian.scalar(0.5, 1.0)
    likelihood = Likelihood(Arctan(system.space), GaussianNoise(std=0.5))
    y, start, n = torch.tensor([0.8], dtype=torch.float64), 1.0, 50_000
    x = torch.linspace(-8, 20, 200_001, dtype=torch.float64)
    log_density = system.log_prob(x[:, None], torch.full((len(x), 1), start, dtype=torch.float64), 0.0)
    log_density = log_density + likelihood.log_prob(y, x[:, None])
    density = log_density.exp()
    evidence = torch.trapezoid(density, x)
    mean = torch.trapezoid(x * density, x) / evidence
    variance = torch.trapezoid((x - mean) ** 2 * density, x) / evidence
    method = GuidedParticleFilter(system)
    members = torch.full((1, n, 1), start, dtype=torch.float64)
    state, info = method.step(method.init(members), Observation(likelihood, y), 1.0, rng=Streams(0, 1, n))
    size = float(info.ess)
    assert 0.2 * n < size < 0.6 * n
    assert abs(weighted_mean(*method.ensemble(state))[0, 0] - mean) < 5 * (variance / size) ** 0.5
    assert abs(weighted_variance(*method.ensemble(state))[0, 0] / variance - 1) < 5 * (3 / size) ** 0.5
    assert abs(info.log_evidence[0] - evidence.log()) < 5 * (1 / size - 1 / n) ** 0.5 + 1e-3


def test_guided_and_bootstrap_agree_on_a_nonlinear_system():
    system = Lorenz63(noise_std=0.8)
    likelihood = Likelihood(Arctan(system.space, channels=0, scale=8.0), GaussianNoise(std=0.25))
    y, n = torch.full((1,), 0.3, dtype=torch.float64), 20_000
    results = []
    for method, seed in ((BootstrapFilter(system), 0), (GuidedParticleFilter(system), 1)):
        rng = Streams(seed, 1, n)
        state = method.init(system.prior((1, n), rng=rng, dtype=torch.float64))
        evidence = 0.0
        for k in range(3):
            time = (k + 1) * 4 * system.dt
            state, info = method.step(state, Observation(likelihood, y), time, rng=rng.at(k + 1))
            evidence = evidence + info.log_evidence
        members, log_weights = method.ensemble(state)
        results.append((weighted_mean(members, log_weights), weighted_variance(members, log_weights), evidence))
    (mean, variance, evidence), (other, other_variance, other_evidence) = results
    # Effective sizes are above n / 4 in every step; two estimates, three steps: 5 * sqrt(6 / (n / 4)) = 0.17 std.
    limit = 5 * (6 * 4 / n) ** 0.5
    assert ((mean - other).abs() < limit * variance.sqrt()).all()
    assert ((variance / other_variance - 1).abs() < 2 * limit).all()
    assert (evidence - other_evidence).abs() < limit


def test_resampling_waits_for_the_next_step():
    system = LinearGaussian.scalar()
    method = BootstrapFilter(system, threshold=1.0)
    likelihood = Likelihood(Mask(system.space, torch.tensor([0])), GaussianNoise(std=0.2))
    rng = Streams(0, 2, 50)
    state = method.init(system.prior((2, 50), rng=rng))
    state, info = method.step(state, Observation(likelihood, torch.tensor([0.5])), 1.0, rng=rng.at(1))
    assert (info.ess < 45).all() and torch.isfinite(state.log_weights).all()
    torch.testing.assert_close(log_normalize(state.log_weights)[1], torch.zeros(2), atol=1e-5, rtol=0)
    after, info = method.step(state, None, 2.0, rng=rng.at(2))
    torch.testing.assert_close(after.log_weights, torch.full((2, 50), -math.log(50)))
    assert info.ancestors is not None and len(set(info.ancestors[0].tolist())) < 50


def test_settings_and_capabilities():
    with pytest.raises(ValueError, match="threshold"):
        BootstrapFilter(Lorenz63(), threshold=2.0)
    with pytest.raises(ValueError, match="scheme"):
        GuidedParticleFilter(LinearGaussian.scalar(), resampling="best")

    class NoDensity:
        space, dt = LinearGaussian.scalar().space, 1.0

        def step(self, x, time, *, rng):
            return x

    with pytest.raises(CapabilityError, match="BootstrapFilter"):
        GuidedParticleFilter(NoDensity())
