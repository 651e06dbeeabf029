"""The Transolver: slices are means over soft sets of places; any grid; gradients."""

from __future__ import annotations

from dataclasses import asdict

import pytest
import torch

from assimilate.learning.fit import seeded
from assimilate.learning.networks import Transolver, TransolverSettings, architecture_name, build_network, sized_network
from assimilate.learning.networks.transolver import SliceAttention, positions, slice_means, unsliced

DOUBLE = torch.float64


def woken(grad: bool = False, **settings) -> Transolver:
    """A network in float64 whose last layer and modulations are not zero."""
    small = {"width": 8, "heads": 2, "slices": 5, "layers": 2, "patch": 2, "fine": 4}

    def build() -> Transolver:
        network = Transolver(TransolverSettings(**{**small, **settings})).double()
        for name, parameter in network.named_parameters():
            if name.startswith("leave") or "modulation" in name:
                torch.nn.init.normal_(parameter, std=0.3)
        return network.requires_grad_(grad)

    return seeded(0, build)


def normals(*shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(7), dtype=DOUBLE)


def test_a_constant_field_comes_back_whatever_the_weights():
    weights = torch.softmax(3 * normals(2, 3, 50, 7), -1)
    constant = normals(2, 3, 1, 4).expand(2, 3, 50, 4)
    torch.testing.assert_close(unsliced(slice_means(constant, weights), weights), constant.contiguous())


def test_slices_are_means_over_sets_of_places():
    # Weights of 0 and 1 are a partition: each slice is the plain mean over its places.
    index = torch.tensor([0, 0, 1, 2, 1, 0])
    weights, values = torch.eye(3, dtype=DOUBLE)[index], normals(6, 2)
    expected = torch.stack([values[index == j].mean(0) for j in range(3)])
    torch.testing.assert_close(slice_means(values, weights), expected)
    torch.testing.assert_close(unsliced(expected, weights), expected[index])


def test_the_order_of_the_places_does_not_matter():
    weights, values = torch.softmax(normals(20, 6), -1), normals(20, 3)
    order = torch.randperm(20, generator=torch.Generator().manual_seed(0))
    means = slice_means(values, weights)
    torch.testing.assert_close(slice_means(values[order], weights[order]), means)
    torch.testing.assert_close(unsliced(means, weights[order]), unsliced(means, weights)[order])
    # Nor does it matter how often each is there: means do not see a finer grid.
    torch.testing.assert_close(slice_means(values.repeat(3, 1), weights.repeat(3, 1)), means)


def test_weights_of_a_place_sum_to_one():
    settings = TransolverSettings(width=8, heads=2, slices=5)
    attention = seeded(0, lambda: SliceAttention(settings)).double().requires_grad_(False)
    weights = attention.weights(normals(3, 8, 4, 6))
    assert weights.shape == (3, 2, 24, 5) and bool((weights > 0).all())
    torch.testing.assert_close(weights.sum(-1), torch.ones(3, 2, 24, dtype=DOUBLE))


def test_positions():
    wave = positions(8, 6, periodic=True, like=torch.zeros(1))
    # Periodic: cells on both sides of the edge are as near as any neighbours.
    step = (wave - wave.roll(1, -1)).square().sum(0)
    assert torch.allclose(step, step[0, 0].expand_as(step), atol=1e-5)
    line = positions(4, 2, periodic=False, like=torch.zeros(1))
    assert torch.allclose(line[0, :, 0], torch.tensor([-0.75, -0.25, 0.25, 0.75]))
    assert torch.allclose(line[1, 0], torch.tensor([-0.5, 0.5]))


@pytest.mark.parametrize("grid", [(1, 1), (5, 9), (32, 20)])
def test_any_grid(grid):
    network = Transolver(TransolverSettings(channels=2, outputs=3, context=1, width=8, heads=2, layers=1, patch=4))
    assert network(torch.zeros(2, 2, *grid), None, torch.zeros(2, 1, *grid)).shape == (2, 3, *grid)


def test_a_new_network_gives_zero():
    assert not Transolver(TransolverSettings(width=8, layers=1))(torch.ones(2, 1, 8, 8)).any()


@pytest.mark.parametrize("periodic", [True, False])
def test_rows_are_independent(periodic):
    network = woken(noise_features=1, periodic=periodic)
    x, noise = normals(3, 1, 10, 12), normals(3)
    alone = torch.cat([network(x[i : i + 1], noise[i : i + 1]) for i in range(3)])
    # float64 sums in another order.
    torch.testing.assert_close(network(x, noise), alone, atol=1e-12, rtol=1e-10)


def test_places_far_apart_see_each_other():
    network = woken(layers=1)
    x = normals(1, 1, 32, 32)
    moved = x.clone()
    moved[..., 0, 0] += 1.0
    # Convolutions reach 1 + 2 + 2 + 1 cells; beyond them only the slices do.
    assert float((network(moved) - network(x))[..., 20:, 20:].abs().max()) > 1e-8


def test_noise_level_and_context_are_used_where_the_settings_say_so():
    x, context = normals(1, 1, 8, 8), normals(1, 1, 8, 8)
    network = woken(context=1, noise_features=1)
    base = network(x, torch.tensor([0.1]), context)
    assert float((network(x, torch.tensor([0.5]), context) - base).abs().max()) > 1e-4
    assert float((network(x, torch.tensor([0.1]), 2 * context) - base).abs().max()) > 1e-4
    without = woken()
    assert torch.equal(without(x, torch.tensor([0.1])), without(x))


def test_gradient_reaches_every_parameter_and_the_input():
    network = woken(grad=True, context=1, noise_features=1)
    x = normals(1, 1, 16, 16).requires_grad_()
    network(x, torch.tensor([0.3]), normals(1, 1, 16, 16)).square().sum().backward()
    assert x.grad.abs().max() > 0
    assert all(p.grad is not None and p.grad.abs().max() > 0 for p in network.parameters())


def test_half_precision():
    network, x = woken().float(), normals(2, 1, 16, 16).float()
    full = network(x)
    with torch.autocast("cpu", torch.bfloat16):
        half = network(x)
    # bfloat16 has 8 bits: 2^-9 a rounding, some twenty roundings in a row.
    assert float((half.float() - full).std() / full.std()) < 0.05


def test_the_table_rebuilds_it():
    network = woken(periodic=True)
    again = build_network(architecture_name(network), asdict(network.settings))
    assert again.settings == network.settings
    sized = sized_network("transolver", {"width": 8}, 1, 2, context=1, noise=True)
    assert sized.settings == TransolverSettings(1, 2, 1, width=8, noise_features=1)
    assert eval(repr(sized.settings)) == sized.settings


def test_errors():
    with pytest.raises(ValueError, match="expects 1 and 2"):
        woken(context=2)(normals(1, 1, 8, 8))
    with pytest.raises(ValueError, match="does not fill patches of 2"):
        woken(periodic=True)(normals(1, 1, 9, 8))
    with pytest.raises(ValueError, match="noise_features=1"):
        woken(noise_features=1)(normals(1, 1, 8, 8))
    with pytest.raises(ValueError, match="multiple of heads"):
        TransolverSettings(width=10, heads=4)
    with pytest.raises(ValueError, match="expected a whole number of"):
        TransolverSettings(slices=0)
    with pytest.raises(ValueError, match="noise_features is 2"):
        TransolverSettings(noise_features=2)
