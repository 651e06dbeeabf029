"""Local EnKF and local EAKF: the tapered Kalman update, infinite radius, rings and spheres, missing values."""

import math

import numpy as np
import pytest
import torch

from assimilate.filters import local, serial
from assimilate.filters.check import check_filter
from assimilate.filters.ensemble import EnKF
from assimilate.filters.local import LETKF, LocalEnKF
from assimilate.filters.localization import gaspari_cohn, reaches
from assimilate.filters.serial import LocalEAKF, SerialEnSRF
from dynamics import CapabilityError, Coordinate, Field, Lorenz63, Space, Streams
from observations import GaussianNoise, Likelihood, Mask, Matrix, Observation
from tests.filters.at_rest import Still

N, M = 6, 15
PLANE = Space(
    (Field("a", "1", ("y", "x")), Field("b", "1", ("y", "x"))),
    {"y": Coordinate(np.arange(5.0), ("y",)), "x": Coordinate(np.arange(12.0), ("x",))},
    periodic=("x",),
)
GLOBE = Space(
    Field("t", "K", ("lat", "lon")),
    {
        "lat": Coordinate(np.linspace(-80, 80, 9), ("lat",), units="degrees_north", standard_name="latitude"),
        "lon": Coordinate(np.arange(0.0, 360.0, 30.0), ("lon",), units="degrees_east", standard_name="longitude"),
    },
    periodic=("lon",),
)


def problem(space=PLANE, seed=0, experiments=2):
    g = torch.Generator().manual_seed(seed)
    members = torch.randn(experiments, N, *space.event_shape, generator=g, dtype=torch.float64)
    chosen = torch.randperm(space.size, generator=g)[:M].sort().values
    std = 0.2 + torch.rand(M, generator=g, dtype=torch.float64)
    likelihood = Likelihood(Mask(space, chosen), GaussianNoise(std=std))
    y = torch.randn(experiments, 1, M, generator=g, dtype=torch.float64)
    y[0, 0, 3] = math.nan
    return members, Observation(likelihood, y)


def analyse(method, members, observation, seed=0):
    return method.step(method.init(members), observation, 0.0, rng=Streams(seed, *members.shape[:2]))


def tapers(space, operator, radius):
    """Between all state values (channels share places) and the observed ones, and among these."""
    channels = space.event_shape[0]
    places = operator.positions
    near = gaspari_cohn(space.distance(space.positions(), places), radius)
    return near.repeat(channels, 1), gaspari_cohn(space.distance(places, places), radius)


@pytest.mark.parametrize(("local_filter", "other"), [(LocalEnKF, EnKF), (LocalEAKF, SerialEnSRF)])
def test_infinite_radius_is_the_global_filter(local_filter, other):
    members, seen = problem()
    one, info = analyse(local_filter(Still(PLANE), math.inf), members, seen)
    torch.testing.assert_close(one.members, analyse(other(Still(PLANE)), members, seen)[0].members)
    assert torch.isnan(info.log_evidence).all()
    # Far beyond the plane the taper is 1 to second order in distance / radius.
    wide, _ = analyse(local_filter(Still(PLANE), 1e5), members, seen)
    torch.testing.assert_close(wide.members, one.members, atol=1e-7, rtol=0)


@pytest.mark.parametrize("factory", [lambda d: LocalEnKF(d, 1.5), lambda d: LocalEAKF(d, 1.5)], ids=["EnKF", "EAKF"])
def test_contract(factory):
    check_filter(factory)


@pytest.mark.parametrize(("space", "radius"), [(PLANE, 1.7), (GLOBE, 2500.0)], ids=["ring in x", "sphere"])
def test_local_enkf_is_the_kalman_update_with_tapered_covariances(space, radius):
    members, seen = problem(space)
    after, _ = analyse(LocalEnKF(Still(space), radius), members, seen)
    across, among = tapers(space, seen.likelihood.operator, radius)
    h = seen.likelihood.operator.matrix(dtype=torch.float64)
    for e in range(2):
        flat = members[e].flatten(1)
        p = torch.cov(flat.T)
        keep = ~torch.isnan(seen.y[e, 0])
        r = torch.diag(seen.likelihood.noise.std[keep] ** 2)
        inner = among[keep][:, keep] * (h[keep] @ p @ h[keep].T) + r
        k = (across[:, keep] * (p @ h[keep].T)) @ torch.linalg.inv(inner)
        mean = flat.mean(0)
        expected = mean + k @ (seen.y[e, 0, keep] - h[keep] @ mean)
        torch.testing.assert_close(after.members[e].mean(0).flatten(), expected)


@pytest.mark.parametrize(("space", "radius"), [(PLANE, 1.7), (GLOBE, 2500.0)], ids=["ring in x", "sphere"])
def test_local_eakf_one_value_after_another(space, radius):
    """Against a plain loop with dense tapers that keeps predictions and state in one vector."""
    members, seen = problem(space)
    after, _ = analyse(LocalEAKF(Still(space), radius), members, seen)
    across, among = tapers(space, seen.likelihood.operator, radius)
    index = seen.likelihood.operator.index
    for e in range(2):
        both = torch.cat([members[e].flatten(1), members[e].flatten(1)[:, index]], 1)
        taper = torch.cat([across, among])
        for j in range(M):
            if torch.isnan(seen.y[e, 0, j]):
                continue
            z = both[:, space.size + j]
            variance, noise = z.var(), seen.likelihood.noise.std[j] ** 2
            mean = z.mean() + variance / (variance + noise) * (seen.y[e, 0, j] - z.mean())
            moved = mean + torch.sqrt(noise / (variance + noise)) * (z - z.mean())
            slope = (both - both.mean(0)).T @ (z - z.mean()) / (N - 1) / variance
            both = both + torch.outer(moved - z, taper[:, j] * slope)
        torch.testing.assert_close(after.members[e].flatten(1), both[:, : space.size])


def test_a_single_value_is_the_taper_times_the_global_increment():
    members, _ = problem(GLOBE)
    alone = Likelihood(Mask(GLOBE, torch.tensor([50])), GaussianNoise(std=0.5))
    seen = Observation(alone, torch.ones(1, dtype=torch.float64))
    everywhere, _ = analyse(SerialEnSRF(Still(GLOBE)), members, seen)
    taper = gaspari_cohn(GLOBE.distance(GLOBE.positions(), alone.operator.positions), 3000.0)[:, 0]
    for method in (LocalEAKF(Still(GLOBE), 3000.0), LocalEnKF(Still(GLOBE), 3000.0)):
        after, _ = analyse(method, members, seen)
        change = (after.members - members).mean(1).flatten(1)
        torch.testing.assert_close(change, taper * (everywhere.members - members).mean(1).flatten(1))
        # Cells out of reach stay to the last bit, the observed one changes.
        assert torch.equal((after.members != members).any(0).any(0).flatten(), taper > 0)
    assert 0 < (taper > 0).sum() < len(taper)


@pytest.mark.parametrize("factory", [lambda s: LocalEnKF(s, 1.7), lambda s: LocalEAKF(s, 1.7)], ids=["EnKF", "EAKF"])
def test_missing_values_batches_and_memory(factory, monkeypatch):
    members, seen = problem()
    method = factory(Still(PLANE))
    together, _ = analyse(method, members, seen)
    for e in range(2):
        alone, _ = method.step(
            method.init(members[e : e + 1]), seen._replace(y=seen.y[e : e + 1]), 0.0, rng=Streams(0, (e,), N)
        )
        torch.testing.assert_close(alone.members[0], together.members[e])
    blind, _ = analyse(method, members, seen._replace(y=torch.full((M,), math.nan)))
    assert torch.equal(blind.members, members)
    # What is remembered, and the size of the chunks, do not matter.
    again, _ = analyse(method, members, seen)
    assert torch.equal(again.members, together.members)
    for module in (local, serial):
        monkeypatch.setattr(module, "REMEMBERED_NUMBERS", 0)
        monkeypatch.setattr(module, "CHUNK_NUMBERS", 200)
    parts, _ = analyse(factory(Still(PLANE)), members, seen)
    torch.testing.assert_close(parts.members, together.members)


def test_what_a_value_acts_on():
    _, seen = problem()
    operator = seen.likelihood.operator
    found = reaches(PLANE, operator.positions, 1.7, 4, torch.zeros(1, dtype=torch.float64))
    across, among = tapers(PLANE, operator, 1.7)
    for j, reach in enumerate(found):
        assert torch.equal(reach.cells, across[:60, j].nonzero().squeeze(-1))
        torch.testing.assert_close(reach.cell_taper, across[reach.cells, j])
        torch.testing.assert_close(reach.value_taper, among[reach.values, j])
        assert torch.equal(reach.values, among[:, j].nonzero().squeeze(-1))


def test_members_may_be_permuted():
    members, seen = problem()
    order = torch.randperm(N, generator=torch.Generator().manual_seed(0))
    method = LocalEAKF(Still(PLANE), 1.7)
    one, _ = analyse(method, members, seen)
    other, _ = analyse(method, members[:, order], seen)
    torch.testing.assert_close(one.members[:, order], other.members)


@pytest.mark.parametrize("factory", [LETKF, LocalEnKF, LocalEAKF])
def test_what_they_cannot_do(factory):
    members, seen = problem()
    with pytest.raises(CapabilityError, match=f"{factory.name} needs a grid"):
        factory(Lorenz63(), 1.0)
    with pytest.raises(ValueError, match="positive length"):
        factory(Still(PLANE), 0.0)
    nowhere = Likelihood(Matrix(PLANE, torch.ones(1, PLANE.size)), GaussianNoise(std=1.0))
    with pytest.raises(CapabilityError, match=f"{factory.name} needs to know where"):
        analyse(factory(Still(PLANE), 1.0), members, Observation(nowhere, torch.zeros(1)))
    full = Likelihood(seen.likelihood.operator, GaussianNoise(covariance=torch.eye(M)))
    with pytest.raises(CapabilityError, match=f"{factory.name} weighs .* independent"):
        analyse(factory(Still(PLANE), 1.0), members, Observation(full, seen.y))


def test_a_taper_that_is_no_correlation_is_named():
    """On a ring shorter than the support, tapered covariances can be indefinite; nothing is repaired."""
    from assimilate.filters.transforms import tapered_coefficients

    spread = 100 * torch.ones(1, 2, 3, dtype=torch.float64) * torch.tensor([1.0, -1.0]).reshape(1, 2, 1)
    taper = torch.tensor([[1.0, 0.9, 0.0], [0.9, 1.0, 0.9], [0.0, 0.9, 1.0]])
    with pytest.raises(ValueError, match="no correlation function; use a smaller radius"):
        tapered_coefficients(spread, torch.zeros(1, 1, 3), taper)
