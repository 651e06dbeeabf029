import math

import numpy as np
import pytest
import torch

from assimilate.filters import local
from assimilate.filters.ensemble import ETKF
from assimilate.filters.local import LETKF
from assimilate.filters.localization import gaspari_cohn
from assimilate.filters.transforms import square_root_analysis
from dynamics import CapabilityError, Coordinate, Field, LinearGaussian, Lorenz63, Space, Streams
from observations import GaussianNoise, Identity, Likelihood, Mask, Matrix, Observation

N = 6


class Still:
    """Two fields on a plane that is periodic in x, at rest."""

    dt = 1.0
    space = Space(
        (Field("a", "1", ("y", "x")), Field("b", "1", ("y", "x"))),
        {"y": Coordinate(np.arange(5.0), ("y",)), "x": Coordinate(np.arange(8.0), ("x",))},
        periodic=("x",),
    )

    def prior(self, shape, *, rng, dtype=torch.float32, device="cpu"):
        raise NotImplementedError

    def step(self, x, time, *, rng):
        return x


def problem(seed=0, experiments=2):
    g = torch.Generator().manual_seed(seed)
    space = Still.space
    members = torch.randn(experiments, N, *space.event_shape, generator=g, dtype=torch.float64)
    chosen = torch.randperm(space.size, generator=g)[:20].sort().values
    std = 0.2 + torch.rand(20, generator=g, dtype=torch.float64)
    likelihood = Likelihood(Mask(space, chosen), GaussianNoise(std=std))
    y = torch.randn(experiments, 1, 20, generator=g, dtype=torch.float64)
    y[0, 0, 3] = math.nan
    return members, Observation(likelihood, y)


def analyse(method, members, observation):
    rng = Streams(0, *members.shape[:2])
    return method.step(method.init(members), observation, 0.0, rng=rng)


def test_infinite_radius_is_the_global_filter():
    members, seen = problem()
    one, _ = analyse(LETKF(Still(), radius=math.inf), members, seen)
    other, _ = analyse(ETKF(Still()), members, seen)
    torch.testing.assert_close(one.members, other.members)


def test_each_cell_is_its_own_etkf_with_tapered_errors():
    members, seen = problem()
    radius = 1.3
    state, info = analyse(LETKF(Still(), radius=radius), members, seen)
    space, operator = Still.space, seen.likelihood.operator
    taper = gaspari_cohn(space.distance(space.positions(), operator.positions), radius)
    predicted = operator(members)
    std = seen.likelihood.noise.std
    for e in range(2):
        observed = ~torch.isnan(seen.y[e, 0])
        for cell in range(40):
            near = observed & (taper[cell] > 0)
            weight = taper[cell, near].sqrt() / std[near]
            mean = predicted[e].mean(0)[near]
            spread = (predicted[e][:, near] - mean) * weight
            departure = (seen.y[e, 0][near] - mean) * weight
            local_members = members[e].flatten(2)[:, :, cell]
            centre = local_members.mean(0)
            shift, after = square_root_analysis((local_members - centre)[None], spread[None], departure[None])
            expected = centre + shift[0] + after[0]
            torch.testing.assert_close(state.members[e].flatten(2)[:, :, cell], expected)
    assert torch.isnan(info.log_evidence).all()


def test_chunks_do_not_matter(monkeypatch):
    members, seen = problem()
    whole, _ = analyse(LETKF(Still(), radius=2.0), members, seen)
    for numbers in (1, 1000):
        monkeypatch.setattr(local, "CHUNK_NUMBERS", numbers)
        parts, _ = analyse(LETKF(Still(), radius=2.0), members, seen)
        torch.testing.assert_close(parts.members, whole.members)
    monkeypatch.setattr(local, "REMEMBERED_NUMBERS", 0)
    fresh, _ = analyse(LETKF(Still(), radius=2.0), members, seen)
    torch.testing.assert_close(fresh.members, whole.members)


def test_the_memory_follows_the_observations():
    members, seen = problem()
    method = LETKF(Still(), radius=1.0)
    first, _ = analyse(method, members, seen)
    moved = Likelihood(Mask(Still.space, (seen.likelihood.operator.index + 1) % 80), seen.likelihood.noise)
    other, _ = analyse(method, members, Observation(moved, seen.y))
    fresh, _ = analyse(LETKF(Still(), radius=1.0), members, Observation(moved, seen.y))
    assert torch.equal(other.members, fresh.members) and not torch.equal(other.members, first.members)
    back, _ = analyse(method, members, seen)
    assert torch.equal(back.members, first.members)


def test_cells_out_of_reach_stay_and_are_not_inflated():
    members, _ = problem()
    alone = Likelihood(Mask(Still.space, torch.tensor([0])), GaussianNoise(std=0.5))
    seen = Observation(alone, torch.zeros(1))
    state, _ = analyse(LETKF(Still(), radius=1.0, inflation=1.3, relaxation=0.5), members, seen)
    # Support 2: cells at a distance of exactly 2 are out. The ring closes in x: column 7 is one cell away from 0.
    changed = (state.members != members).any((0, 1, 2))
    y, x = torch.meshgrid(torch.arange(5), torch.tensor([0, 1, 2, 3, 4, 3, 2, 1]), indexing="ij")
    assert torch.equal(changed, y**2 + x**2 < 4)


def test_what_it_cannot_do():
    members, seen = problem()
    with pytest.raises(CapabilityError, match="grid"):
        LETKF(Lorenz63(), radius=1.0)
    with pytest.raises(ValueError, match="positive length"):
        LETKF(Still(), radius=0.0)
    with pytest.raises(ValueError, match="relaxation"):
        LETKF(Still(), radius=1.0, relaxation=2.0)
    nowhere = Likelihood(Matrix(Still.space, torch.ones(1, 80)), GaussianNoise(std=1.0))
    with pytest.raises(CapabilityError, match="positions"):
        analyse(LETKF(Still(), radius=1.0), members, Observation(nowhere, torch.zeros(1)))
    full = Likelihood(seen.likelihood.operator, GaussianNoise(covariance=torch.eye(20)))
    with pytest.raises(CapabilityError, match="independent"):
        analyse(LETKF(Still(), radius=1.0), members, Observation(full, seen.y))


def test_repr_rebuilds_the_settings():
    ring = LinearGaussian.ring(4)
    said = repr(LETKF(ring, 2.0, inflation=1.1))
    assert "inflation=1.1, prior_inflation=1.0, relaxation=0.0" in said
    assert said.endswith("rotate=False, radius=2.0, interpolation=1)")
    assert Identity(ring.space).positions is not None


def test_float32_and_threads_give_the_same_analysis(monkeypatch):
    """float32 takes the iterated root; tiles on two threads are the tiles on one."""
    members, seen = problem()
    exact, _ = analyse(LETKF(Still(), radius=2.0), members, seen)
    # Tiles of a few cells, so that there is something to share.
    monkeypatch.setattr(local, "CHUNK_NUMBERS", 5000)
    single = Likelihood(seen.likelihood.operator, GaussianNoise(std=seen.likelihood.noise.std.float()))
    low, _ = analyse(LETKF(Still(), radius=2.0), members.float(), Observation(single, seen.y.float()))
    assert low.members.dtype == torch.float32
    increments = exact.members - members
    assert (low.members - exact.members).norm() < 2e-6 * members.norm()
    assert (low.members - members - increments).norm() < 1e-5 * increments.norm()
    before = torch.get_num_threads()
    try:
        results = []
        for threads in (1, 2):
            torch.set_num_threads(threads)
            results.append(analyse(LETKF(Still(), radius=2.0), members, seen)[0].members)
    finally:
        torch.set_num_threads(before)
    torch.testing.assert_close(results[0], results[1], rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(results[0], exact.members, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("interpolation", [1, 2])
def test_gradients_go_through_the_analysis(interpolation):
    """By the members, in float32 and in float64, of which one iterates and the other decomposes."""
    # More values in reach of each cell than members: eigenvalues that coincide have no gradient in float64.
    members, seen = problem(experiments=1)
    weights = torch.randn(members.shape, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    y = torch.nan_to_num(seen.y)
    found = []
    for dtype in (torch.float32, torch.float64):
        x = members.to(dtype).requires_grad_()
        noise = GaussianNoise(std=seen.likelihood.noise.std.to(dtype))
        observation = Observation(Likelihood(seen.likelihood.operator, noise), y.to(dtype))
        state, _ = analyse(LETKF(Still(), radius=4.0, interpolation=interpolation), x, observation)
        (gradient,) = torch.autograd.grad((state.members * weights.to(dtype)).sum(), x)
        found.append(gradient.double())
    assert (found[0] - found[1]).norm() < 1e-4 * found[1].norm()
