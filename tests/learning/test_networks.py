"""The multilayer perceptron, and the table of architectures."""

from __future__ import annotations

from dataclasses import asdict

import pytest
import torch

from assimilate.errors import UnknownName
from assimilate.learning.fit import seeded
from assimilate.learning.networks import MLP, MLPSettings, architecture_name, build_network, sized_network

SETTINGS = MLPSettings(channels=3, outputs=2, context=4, noise_features=1, width=16, blocks=2, normalise=True)


def woken(settings: MLPSettings) -> MLP:
    """A network whose last layer is not zero."""
    network = seeded(0, lambda: MLP(settings))
    torch.nn.init.normal_(network.leave.weight, generator=torch.Generator().manual_seed(1))
    return network


def test_a_new_network_gives_zero():
    network = MLP(SETTINGS)
    assert torch.equal(network(torch.ones(5, 3), torch.ones(5), torch.ones(5, 4)), torch.zeros(5, 2))


def test_rows_are_independent_and_leading_dims_free():
    network = woken(SETTINGS).double()
    rng = torch.Generator().manual_seed(2)
    x, noise, context = (torch.randn(s, generator=rng, dtype=torch.float64) for s in ((2, 3, 3), (2, 3), (2, 3, 4)))
    whole = network(x, noise, context)
    one = network(x[1, 2], noise[1, 2], context[1, 2])
    assert whole.shape == (2, 3, 2)
    assert torch.allclose(whole[1, 2], one, atol=1e-12)


@pytest.mark.parametrize("part", ["state", "noise", "context"])
def test_the_output_depends_on_every_input(part):
    network = woken(SETTINGS)
    given = {"state": torch.zeros(1, 3), "noise": torch.zeros(1), "context": torch.zeros(1, 4)}
    before = network(*given.values())
    given[part] = given[part] + 0.3
    assert not torch.allclose(before, network(*given.values()), atol=1e-4)


@pytest.mark.parametrize(
    "inputs",
    [(torch.ones(1, 3), torch.ones(1), None), (torch.ones(1, 3), None, torch.ones(1, 4)),
     (torch.ones(1, 2), torch.ones(1), torch.ones(1, 4))],
)
def test_a_missing_input_is_named(inputs):
    with pytest.raises(ValueError, match="expects 3, 4 and 1"):
        MLP(SETTINGS)(*inputs)


def test_the_table_rebuilds_a_network_from_name_and_settings():
    network = woken(SETTINGS)
    again = build_network(architecture_name(network), asdict(network.settings))
    assert again.settings == SETTINGS
    again.load_state_dict(network.state_dict())
    with pytest.raises(UnknownName, match="did you mean 'unet'"):
        build_network("unett", {})
    with pytest.raises(ValueError, match="widht"):
        build_network("mlp", {"channels": 1, "outputs": 1, "widht": 3})
    assert sized_network("mlp", {"width": 8}, 3, 6, context=2, noise=True).settings.noise_features == 1
    assert sized_network("unet", {"widths": [4, 8]}, 1, 2, context=1).settings.widths == (4, 8)
