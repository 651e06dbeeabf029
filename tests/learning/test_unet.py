"""The U-Net: any grid, nothing depends on the grid's size, periodic domains, gradients."""

import pytest
import torch

from assimilate.learning.networks.unet import UNet, UNetSettings


def _network(seed=0, **settings):
    """A network with every weight away from its zero start, in float64."""
    torch.manual_seed(seed)
    net = UNet(UNetSettings(**settings)).double()
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.copy_(0.3 * torch.randn_like(parameter) / max(parameter[0].numel(), 1) ** 0.5)
    return net


@pytest.mark.parametrize("padding", ["zeros", "replicate"])
@pytest.mark.parametrize("grid", [(1, 1), (5, 9), (16, 16), (118, 87)])
def test_any_grid(grid, padding):
    net = UNet(UNetSettings(channels=2, outputs=3, context=1, padding=padding))
    x, context = torch.randn(2, 2, *grid), torch.randn(2, 1, *grid)
    assert net(x, torch.zeros(2), context).shape == (2, 3, *grid)


def test_starts_at_zero():
    net = UNet(UNetSettings())
    assert not net(torch.randn(2, 1, 16, 16), torch.zeros(2)).any()


def test_parameters():
    net = UNet(UNetSettings(channels=1, outputs=2, context=2, widths=(16, 40, 56, 64)))
    assert sum(p.numel() for p in net.parameters()) < 450_000


def test_noise_level_and_context_are_used():
    net = _network(context=1)
    x, context = torch.randn(1, 1, 16, 16).double(), torch.randn(1, 1, 16, 16).double()
    base = net(x, torch.tensor([0.1]), context)
    assert (net(x, torch.tensor([0.5]), context) - base).abs().max() > 1e-4
    assert (net(x, torch.tensor([0.1]), 2 * context) - base).abs().max() > 1e-4


def test_several_noise_features():
    net = _network(noise_features=3)
    x = torch.randn(2, 1, 8, 8).double()
    assert net(x, torch.randn(2, 3)).shape == x.shape


def test_rows_are_independent():
    net = _network()
    x, noise = torch.randn(3, 1, 17, 12).double(), torch.randn(3).double()
    together = net(x, noise)
    alone = torch.cat([net(x[i : i + 1], noise[i : i + 1]) for i in range(3)])
    # float64 sums in another order.
    torch.testing.assert_close(together, alone, atol=1e-12, rtol=1e-10)


def test_interior_of_a_patch_equals_the_grid():
    """Farther from the border than the receptive field, a patch's result is the grid's."""
    net = _network(widths=(4, 6))
    x, noise = torch.randn(1, 1, 64, 64).double(), torch.zeros(1).double()
    full, patch = net(x, noise), net(x[..., 8:56, 8:56], noise)
    # In fine cells: enter 1, fine blocks 2 + 2, halving 1, coarse blocks (2 + 2) * 2, doubling 1, leave 1: at most 16.
    torch.testing.assert_close(full[..., 24:40, 24:40], patch[..., 16:32, 16:32], atol=1e-12, rtol=1e-10)
    assert (full[..., 8:56, 8:56] - patch).abs().max() > 1e-6  # near the border it differs, as it should


def test_periodic_padding_commutes_with_shifts():
    net = _network(padding="circular")
    x, noise = torch.randn(1, 1, 32, 16).double(), torch.zeros(1).double()
    shift = (net.multiple, 2 * net.multiple)
    moved = net(x.roll(shift, (-2, -1)), noise)
    torch.testing.assert_close(moved, net(x, noise).roll(shift, (-2, -1)), atol=1e-12, rtol=1e-10)


def test_zero_padding_does_not():
    net = _network()
    x, noise = torch.randn(1, 1, 32, 16).double(), torch.zeros(1).double()
    assert (net(x.roll(8, -1), noise) - net(x, noise).roll(8, -1)).abs().max() > 1e-6


def test_gradient_reaches_every_parameter_and_the_input():
    net = _network(context=1)
    x = torch.randn(1, 1, 16, 16).double().requires_grad_()
    net(x, torch.tensor([0.3]), torch.randn(1, 1, 16, 16).double()).square().sum().backward()
    assert x.grad.abs().max() > 0
    assert all(p.grad is not None and p.grad.abs().max() > 0 for p in net.parameters())


def test_errors():
    net = UNet(UNetSettings(context=2))
    with pytest.raises(ValueError, match="expects 1 and 2"):
        net(torch.zeros(1, 1, 8, 8), torch.zeros(1))
    with pytest.raises(ValueError, match="periodic grid"):
        UNet(UNetSettings(padding="circular"))(torch.zeros(1, 1, 9, 8), torch.zeros(1))
    with pytest.raises(ValueError, match="padding is 'mirror'"):
        UNetSettings(padding="mirror")
    with pytest.raises(ValueError, match="widths is empty"):
        UNetSettings(widths=())


def test_repr_rebuilds():
    settings = UNetSettings(context=2, widths=[8, 16])
    assert eval(repr(settings)) == settings
