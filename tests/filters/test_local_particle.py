"""The local particle filter: the transport in one dimension, the Kalman filter cell by cell, tracking Lorenz-96."""

import math

import pytest
import torch

from assimilate.filters.check import check_filter
from assimilate.filters.local_particle import LocalParticleFilter, log_densities, tempered, transported
from assimilate.posterior.weights import effective_sample_size
from dynamics import CapabilityError, LinearGaussian, Lorenz63, Lorenz96, Streams
from observations import Arctan, GaussianNoise, Identity, Laplace, Likelihood, Mask, Matrix, Observation, StudentT

RING = LinearGaussian.ring(6)
WAVES = Lorenz96()


def draws(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_contract():
    check_filter(lambda d: LocalParticleFilter(d, radius=2.0, inflation=1.02, additive=0.01))


def test_equal_weights_move_nothing_and_order_and_range_are_kept():
    x = draws(3, 5, 40)
    torch.testing.assert_close(transported(x, torch.zeros_like(x)), x)
    new = transported(x, 3 * draws(3, 5, 40, seed=1))
    assert (new.gather(-1, x.argsort(-1)).diff(dim=-1) >= 0).all()
    assert (new >= x.amin(-1, keepdim=True)).all() and (new <= x.amax(-1, keepdim=True)).all()
    order = torch.randperm(40, generator=torch.Generator().manual_seed(2))
    weights = draws(3, 5, 40, seed=1)
    torch.testing.assert_close(transported(x[..., order], weights[..., order]), transported(x, weights)[..., order])
    assert torch.equal(transported(x[..., :1], weights[..., :1]), x[..., :1])


def test_transport_of_a_gaussian_to_its_posterior():
    n, y, r = 20_000, 1.2, 0.5
    x = draws(1, n)
    new = transported(x, -0.5 * (y - x).square() / r)
    mean, variance = y / (1 + r), r / (1 + r)
    size = float(effective_sample_size(-0.5 * (y - x).square() / r))
    assert abs(new.mean() - mean) < 5 * (variance / size) ** 0.5
    assert abs(new.var() / variance - 1) < 5 * (2 / size) ** 0.5
    # The map itself is affine where both laws are Gaussian: mean + sqrt(variance) x.
    inner = x.abs() < 1.5
    assert (new - mean - variance**0.5 * x)[inner].abs().max() < 0.1


def test_tempering_stops_at_the_floor():
    weights = 4 * draws(3, 7, 50)
    assert torch.equal(tempered(weights, 0.0), weights)
    free = effective_sample_size(weights)
    floor = 0.3
    sizes = effective_sample_size(tempered(weights, floor))
    low = free < floor * 50
    assert low.any()
    torch.testing.assert_close(sizes[low], torch.full_like(sizes[low], floor * 50), rtol=2e-3, atol=0)
    torch.testing.assert_close(sizes[~low], free[~low])


@pytest.mark.parametrize("noise", [GaussianNoise(std=0.7), Laplace(scale=0.5), StudentT(scale=0.5, degrees=4.0)])
def test_densities_of_single_values_sum_to_the_likelihood(noise):
    x = draws(2, 5, 1, 6)
    y = draws(2, 1, 3, seed=1)
    y[1, 0, 2] = math.nan
    likelihood = Likelihood(Mask(RING.space, torch.tensor([0, 2, 5])), noise)
    each = log_densities(Observation(likelihood, y), x, method="test")
    total = likelihood.log_prob(y, x)
    torch.testing.assert_close(each.sum(-1) - each.sum(-1)[:, :1], total - total[:, :1])
    assert (each[1, :, 2] == 0).all()


def test_cells_alone_are_scalar_kalman_filters():
    """A radius below the distance of two cells, and a floor that is not reached."""
    n, r = 4000, 0.5
    system = LinearGaussian(0 * torch.eye(6), torch.eye(6), torch.zeros(6), torch.eye(6), space=RING.space)
    y = torch.linspace(-1, 1, 6, dtype=torch.float64).reshape(1, 6)
    y[0, 2] = math.nan
    method = LocalParticleFilter(system, radius=0.4, least_ess=0.0)
    members = draws(1, n, 1, 6)
    likelihood = Likelihood(Identity(system.space), GaussianNoise(std=r**0.5))
    state, info = method.step(method.init(members), Observation(likelihood, y), 0.0, rng=Streams(0, 1, n))
    gain = 1 / (1 + r)
    seen = ~torch.isnan(y[0])
    size = 0.5 * n
    error = state.members.mean((0, 1, 2)) - gain * y[0]
    assert (error[seen].abs() < 5 * (r * gain / size) ** 0.5).all()
    assert ((state.members.var(1)[0, 0] / (r * gain) - 1)[seen].abs() < 5 * (2 / size) ** 0.5).all()
    assert torch.equal(state.members[..., 2], members[..., 2])
    assert 0.3 * n < float(info.ess) < n and torch.isnan(info.log_evidence).all() and info.weighting == "local"


def test_far_cells_stay_to_the_last_bit():
    method = LocalParticleFilter(WAVES, radius=3.0, inflation=1.1, additive=0.1, relaxation=0.2)
    members = draws(2, 20, 1, 40)
    likelihood = Likelihood(Mask(WAVES.space, torch.tensor([10])), GaussianNoise(std=0.5))
    state, _ = method.step(method.init(members), Observation(likelihood, torch.ones(1)), 0.0, rng=Streams(0, 2, 20))
    changed = (state.members != members).any(0).any(0).any(0)
    assert changed.nonzero().flatten().tolist() == list(range(5, 16))


@pytest.mark.parametrize("kind", ["linear", "arctan", "outliers"])
def test_it_tracks_lorenz_96(kind):
    """40 members, 40 variables: a global filter would keep one member of them."""
    model = {
        "linear": Likelihood(Identity(WAVES.space), GaussianNoise(std=1.0)),
        "arctan": Likelihood(Arctan(WAVES.space, scale=4.0), GaussianNoise(std=0.2)),
        "outliers": Likelihood(Identity(WAVES.space), StudentT(scale=0.8, degrees=3.0)),
    }[kind]
    method = LocalParticleFilter(WAVES, radius=5.0, inflation=1.03, additive=0.05)
    rng = Streams(1, 2, 40)
    truth = WAVES.prior((2, 1), rng=Streams(2, 2, 1))
    for _ in range(100):
        truth = WAVES.step(truth, 0.0, rng=None)
    state = method.init(truth + WAVES.prior((2, 40), rng=rng) / 3.6 - 2.3 / 3.6)
    errors = []
    for k in range(1, 41):
        truth = WAVES.step(truth, 0.0, rng=None)
        seen = Observation(model, model.sample(truth, rng=Streams(3, 2, 1, step=k)))
        state, info = method.step(state, seen, k * WAVES.dt, rng=rng.at(k))
        errors.append((state.members.mean(1, keepdim=True) - truth).square().mean((1, 2, 3)).sqrt())
        assert (info.ess > 0.49 * 40).all()
    # The climate's error is 3.6, that of the observations 1; long runs give 0.26, 0.30 and 0.3.
    assert torch.stack(errors[20:]).mean() < 0.45


def test_what_it_cannot_do_is_said():
    with pytest.raises(CapabilityError, match="grid"):
        LocalParticleFilter(Lorenz63(), radius=1.0)
    for wrong in ({"radius": 0.0}, {"radius": 1.0, "least_ess": 2.0}, {"radius": 1.0, "inflation": -1.0}):
        with pytest.raises(ValueError, match=list(wrong)[-1]):
            LocalParticleFilter(WAVES, **wrong)
    method = LocalParticleFilter(RING, radius=2.0)
    state = method.init(draws(1, 10, 1, 6))
    full = Likelihood(Identity(RING.space), GaussianNoise(covariance=torch.eye(6)))
    nowhere = Likelihood(Matrix(RING.space, torch.eye(6)), GaussianNoise(std=1.0))
    for likelihood, word in ((full, "independent"), (nowhere, "places|positions")):
        shape = likelihood.operator.obs_shape
        with pytest.raises(CapabilityError, match=word):
            method.step(state, Observation(likelihood, torch.zeros(shape)), 0.0, rng=Streams(0, 1, 10))
