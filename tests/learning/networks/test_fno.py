"""The Fourier neural operator: a multiplier of Fourier modes, shifts, grids of any size, gradients."""

from __future__ import annotations

from dataclasses import asdict

import pytest
import torch

from assimilate.learning.fit import seeded
from assimilate.learning.networks import FNO, FNOSettings, architecture_name, build_network, sized_network
from assimilate.learning.networks.fno import SpectralConvolution, transforms

DOUBLE = torch.float64


def woken(**settings) -> FNO:
    """A network in float64 whose last layer and modulations are not zero."""

    def build() -> FNO:
        network = FNO(FNOSettings(**{"width": 6, "modes": 5, "layers": 2, **settings})).double()
        for name, parameter in network.named_parameters():
            if name.startswith("leave") or "modulation" in name:
                torch.nn.init.normal_(parameter, std=0.3)
        return network

    return seeded(0, build)


def normals(*shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(7), dtype=DOUBLE)


def smooth(size: int) -> torch.Tensor:
    """A field of three waves on a grid of `size` cells a side."""
    a = torch.arange(size, dtype=DOUBLE) * (2 * torch.pi / size)
    x, y = a[:, None], a[None]
    return ((x + 2 * y).sin() + (2 * x - y).cos() + 0.5 * y.sin())[None, None]


@pytest.mark.parametrize("grid", [(16, 12), (9, 11), (7, 5), (1, 4)])
def test_the_layer_multiplies_fourier_modes(grid):
    modes, width = 5, 3
    layer = seeded(0, lambda: SpectralConvolution(width, modes)).double().requires_grad_(False)
    h = normals(2, *grid, width)
    out = layer(h, transforms(grid, modes, dtype=DOUBLE, device=h.device))
    weight = torch.complex(layer.weight[..., :width], layer.weight[..., width:])
    multiplier = torch.zeros(*grid, width, width, dtype=torch.complex128)
    for k in range(1 - modes, modes):
        for m in range(modes):
            if 2 * abs(k) >= grid[0] or 2 * m >= grid[1]:
                continue
            # A real field has conjugate mirror images; with k_y = 0 both are stored and count as their mean.
            mirror = weight[modes - 1 - k, 0].conj()
            value = weight[modes - 1 + k, m] if m else (weight[modes - 1 + k, 0] + mirror) / 2
            multiplier[k, m] = value
            if m:
                multiplier[-k, -m] = value.conj()
    expected = torch.fft.ifft2(torch.einsum("bxyc,xycd->bxyd", torch.fft.fft2(h, dim=(1, 2)), multiplier), dim=(1, 2))
    assert float(expected.imag.abs().max()) < 1e-12
    torch.testing.assert_close(out, expected.real, atol=1e-12, rtol=0)


def test_white_features_keep_their_variance_in_the_modes_kept():
    layer = seeded(1, lambda: SpectralConvolution(64, 4)).double().requires_grad_(False)
    h = normals(8, 7, 7, 64)  # 7 cells: all modes are kept
    out = layer(h, transforms((7, 7), 4, dtype=DOUBLE, device=h.device))
    # The mode 0 is real: half its matrix does nothing. 49 modes x 64 features x 8 samples: a sampling error of 1 %.
    assert float(out.var() / h.var()) == pytest.approx(1.0, abs=0.1)


def test_shifts_commute_on_a_periodic_grid_and_not_with_padding():
    x = normals(2, 1, 15, 12)
    for padding in (0, 3):
        network = woken(padding=padding)
        difference = (network(x.roll((4, -5), (-2, -1))) - network(x).roll((4, -5), (-2, -1))).abs().max()
        assert (float(difference.detach()) < 1e-12) == (padding == 0)


def test_a_finer_grid_gives_the_same_function():
    network = woken().requires_grad_(False)
    results = {size: network(smooth(size)) for size in (16, 32, 64, 128)}
    differences = [
        float((results[size][..., :: size // 16, :: size // 16] - results[128][..., ::8, ::8]).abs().max())
        for size in (16, 32, 64)
    ]
    # gelu is analytic on the real line: what it creates beyond the grid falls faster than any power of the cell.
    scale = float(results[128].std())
    assert differences[0] < 0.05 * scale and differences[1] < 1e-3 * scale and differences[2] < 1e-6 * scale


@pytest.mark.parametrize("grid", [(1, 1), (5, 9), (33, 20)])
def test_any_grid(grid):
    network = FNO(FNOSettings(channels=2, outputs=3, context=1, width=4, modes=6, layers=1, padding=2))
    assert network(torch.zeros(2, 2, *grid), None, torch.zeros(2, 1, *grid)).shape == (2, 3, *grid)


def test_a_new_network_gives_zero():
    assert not FNO(FNOSettings(width=4, modes=3))(torch.ones(2, 1, 8, 8)).any()


def test_rows_are_independent():
    network = woken(noise_features=1)
    x, noise = normals(3, 1, 10, 12), normals(3)
    alone = torch.cat([network(x[i : i + 1], noise[i : i + 1]) for i in range(3)])
    # float64 sums in another order.
    torch.testing.assert_close(network(x, noise), alone, atol=1e-12, rtol=1e-10)


def test_noise_level_and_context_are_used_where_the_settings_say_so():
    x, context = normals(1, 1, 8, 8), normals(1, 1, 8, 8)
    network = woken(context=1, noise_features=1)
    base = network(x, torch.tensor([0.1]), context)
    assert float((network(x, torch.tensor([0.5]), context) - base).abs().max()) > 1e-4
    assert float((network(x, torch.tensor([0.1]), 2 * context) - base).abs().max()) > 1e-4
    without = woken()
    assert torch.equal(without(x, torch.tensor([0.1])), without(x))


def test_gradient_reaches_every_parameter_and_the_input():
    network = woken(context=1, noise_features=1)
    x = normals(1, 1, 16, 16).requires_grad_()
    network(x, torch.tensor([0.3]), normals(1, 1, 16, 16)).square().sum().backward()
    assert x.grad.abs().max() > 0
    assert all(p.grad is not None and p.grad.abs().max() > 0 for p in network.parameters())


def test_half_precision_leaves_the_modes_in_full():
    network = woken().float()
    x = normals(2, 1, 16, 16).float()
    full = network(x)
    with torch.autocast("cpu", torch.bfloat16):
        half = network(x)
    # bfloat16 has 8 bits: 2^-9 a rounding, a dozen roundings in a row.
    assert float((half.float() - full).std() / full.std()) < 0.03
    layer, t = network.layers[0].spectral, transforms((16, 16), 5, dtype=torch.float32, device=x.device)
    seen = []
    layer.register_forward_hook(lambda module, given, result: seen.append(result.dtype))
    with torch.autocast("cpu", torch.bfloat16):
        network(x)
    assert seen == [torch.float32] and layer(normals(1, 16, 16, 6).float(), t).dtype == torch.float32


def test_it_learns_a_spectral_map():
    """The solution of (1 - laplacian) u = x, which one layer can represent on every grid."""
    k = torch.fft.fftfreq(16, 1 / 16)
    multiplier = 1 / (1 + k[:, None] ** 2 + k[None] ** 2)
    rng = torch.Generator().manual_seed(0)
    network = seeded(0, lambda: FNO(FNOSettings(width=8, modes=8, layers=1)))
    optimiser = torch.optim.Adam(network.parameters(), lr=1e-2)
    for step in range(120):
        optimiser.param_groups[0]["lr"] = 1e-2 * (1 - step / 120)
        x = torch.randn(16, 1, 16, 16, generator=rng)
        target = torch.fft.ifft2(multiplier * torch.fft.fft2(x)).real
        loss = (network(x) - target).square().mean() / target.square().mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    # A new network is at 1, and no pointwise map comes below 0.79.
    assert float(loss.detach()) < 0.1


def test_the_table_rebuilds_it():
    network = woken(modes=3)
    again = build_network(architecture_name(network), asdict(network.settings))
    assert again.settings == network.settings
    assert all(not value.is_complex() for value in network.state_dict().values())
    sized = sized_network("fno", {"width": 4, "modes": 3}, 1, 2, context=1, noise=True)
    assert sized.settings == FNOSettings(1, 2, 1, width=4, modes=3, noise_features=1)
    assert eval(repr(sized.settings)) == sized.settings


def test_errors():
    with pytest.raises(ValueError, match="expects 1 and 2"):
        FNO(FNOSettings(context=2, width=4, modes=2))(torch.zeros(1, 1, 8, 8))
    with pytest.raises(ValueError, match="noise_features=1"):
        FNO(FNOSettings(noise_features=1, width=4, modes=2))(torch.zeros(1, 1, 8, 8))
    with pytest.raises(ValueError, match="expected a whole number of"):
        FNOSettings(modes=0)
    with pytest.raises(ValueError, match="noise_features is 3"):
        FNOSettings(noise_features=3)
