"""Adapters of other libraries: exact answers of stand-ins that are called as theirs are."""

from types import SimpleNamespace

import pytest
import torch
from torch import nn

import imaging
from assimilate.errors import UserError
from dynamics.errors import SpaceMismatch
from imaging.measurement import check_prior
from observations.base import LinearOperator
from observations.check import check_operator

SHAPE = (1, 6, 8)


class Decimation(nn.Module):
    """A deepinv physics: every second pixel, with a gain; batches `(n, c, rows, columns)`."""

    def __init__(self):
        super().__init__()
        self.register_buffer("gain", torch.tensor(2.0))

    def A(self, x, **kwargs):
        assert x.ndim == 4
        return self.gain * x[..., ::2, ::2]

    def A_adjoint(self, y, **kwargs):
        x = y.new_zeros(*y.shape[:2], 2 * y.shape[2], 2 * y.shape[3])
        x[..., ::2, ::2] = self.gain * y
        return x


def test_a_physics_is_an_operator_with_its_adjoint():
    operator = imaging.from_deepinv_physics(Decimation(), SHAPE)
    assert isinstance(operator, LinearOperator) and operator.obs_shape == (1, 3, 4)
    check_operator(operator)
    x = torch.randn(2, 3, *SHAPE, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(operator(x), 2 * x[..., ::2, ::2])
    assert operator.physics.gain.dtype == torch.float32


def test_a_physics_may_be_nonlinear_or_wrong():
    square = SimpleNamespace(A=lambda x: x**2)
    operator = imaging.from_deepinv_physics(square, SHAPE)
    assert not isinstance(operator, LinearOperator) and operator.obs_shape == SHAPE
    with pytest.raises(UserError, match="A_adjoint"):
        imaging.from_deepinv_physics(square, SHAPE, linear=True)
    with pytest.raises(UserError, match="expected a deepinv Physics"):
        imaging.from_deepinv_physics(3, SHAPE)
    with pytest.raises(SpaceMismatch, match="cannot be called on images"):
        imaging.from_deepinv_physics(SimpleNamespace(A=lambda x: x @ torch.ones(3, 3)), SHAPE)
    with pytest.raises(SpaceMismatch, match="for 1 images"):
        imaging.from_deepinv_physics(SimpleNamespace(A=lambda x: x.reshape(2, -1)), SHAPE)


class Wiener(nn.Module):
    """The exact denoiser of N(0.5, 0.2^2) pixels, called as deepinv denoisers are."""

    def forward(self, x, sigma):
        level = torch.as_tensor(sigma, dtype=x.dtype)
        level = level.reshape(-1, 1, 1, 1) if level.ndim else level
        return 0.5 + (x - 0.5) * 0.04 / (0.04 + level**2)


@pytest.mark.parametrize("per_image", [True, False])
def test_a_denoiser_gets_one_level_for_each_image(per_image):
    model = Wiener().eval() if per_image else (lambda x, sigma: Wiener()(x, float(sigma)))
    prior = imaging.from_deepinv_denoiser(model, SHAPE, per_image=per_image)
    noisy = torch.randn(2, 3, *SHAPE, dtype=torch.float64)
    level = torch.tensor([[0.1, 0.2, 0.2], [0.3, 0.1, 0.6]], dtype=torch.float64)
    expected = 0.5 + (noisy - 0.5) * (0.04 / (0.04 + level**2))[..., None, None, None]
    torch.testing.assert_close(prior(noisy, level).mean, expected)
    torch.testing.assert_close(prior(noisy, torch.tensor(0.3)).mean, 0.5 + (noisy - 0.5) * 0.04 / 0.13)
    assert prior.to(dtype=torch.float32).event_shape == SHAPE


def test_a_denoiser_reconstructs():
    prior = imaging.from_deepinv_denoiser(Wiener().eval(), (1, 8, 8), spread=0.2, largest=10.0, bounds=None)
    y = 0.5 + 0.3 * torch.randn(8, 8, generator=torch.Generator().manual_seed(0))
    # Without a range, since guided means are kept within it.
    result = imaging.reconstruct(
        y, "identity", prior, "mmps", noise=0.2, samples=200, solver_settings={"steps": 60}, dtype="float64"
    )
    # Equal variances: the posterior mean is half-way, its standard deviation 0.2 / sqrt(2).
    halfway = (0.5 + y.numpy()) / 2
    assert abs(result["image_mean"].values - halfway).max() < 6 * 0.1414 / 200**0.5
    # A level grid of 60 steps leaves MMPS 8 % too narrow.
    assert float(result["image_std"].mean()) == pytest.approx(0.1414, rel=0.12)


def test_denoisers_that_do_not_fit_are_refused():
    with pytest.raises(UserError, match="training mode"):
        imaging.from_deepinv_denoiser(nn.Sequential(nn.Dropout()), SHAPE)
    with pytest.raises(UserError, match="levels"):
        imaging.from_deepinv_denoiser(Wiener().eval(), SHAPE, largest=0.0)
    prior = imaging.from_deepinv_denoiser(lambda x, sigma: x[..., :2], SHAPE)
    with pytest.raises(SpaceMismatch, match="gave shape"):
        prior(torch.zeros(1, *SHAPE), torch.tensor(0.1))
    operator = imaging.build_operator("identity", (1, 16, 16))
    assert "trained on" in check_prior(imaging.from_deepinv_denoiser(Wiener().eval(), SHAPE), operator)


class ExactUNet(nn.Module):
    """The exact network of N(0, s^2) pixels in [-1, 1] units, called as a diffusers UNet is."""

    def __init__(self, cumulative, prediction, form="object", s=0.5):
        super().__init__()
        self.cumulative, self.prediction, self.form, self.s = cumulative, prediction, form, s
        self.config = {"sample_size": (6, 8), "in_channels": 1}

    def forward(self, sample, timestep, return_dict=True):
        assert sample.ndim == 4 and timestep.shape == sample.shape[:1]
        logs = torch.log(1 / self.cumulative - 1)
        below = timestep.floor().long().clamp(max=len(logs) - 2)
        ratio2 = torch.exp(logs[below] + (timestep - below) * (logs[below + 1] - logs[below])).reshape(-1, 1, 1, 1)
        a = 1 / (1 + ratio2)
        clean = a.sqrt() * self.s**2 / (a * self.s**2 + 1 - a) * sample
        epsilon = (sample - a.sqrt() * clean) / (1 - a).sqrt()
        given = {"epsilon": epsilon, "sample": clean, "v_prediction": a.sqrt() * epsilon - (1 - a).sqrt() * clean}
        out = given[self.prediction]
        return {"object": SimpleNamespace(sample=out), "tuple": (out,), "tensor": torch.cat([out, out], 1)}[self.form]


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction", "sample"])
@pytest.mark.parametrize("form", ["object", "tuple", "tensor"])
def test_a_unet_gives_the_clean_mean_in_image_units(prediction, form):
    cumulative = torch.cumprod(1 - torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64), 0)
    scheduler = SimpleNamespace(alphas_cumprod=cumulative, config=SimpleNamespace(prediction_type=prediction))
    unet = ExactUNet(cumulative, prediction, form).eval()
    prior = imaging.from_diffusers_unet(unet, scheduler, bounds=(0.0, 200.0))
    assert prior.event_shape == SHAPE and prior.spread == 50.0
    assert prior.smallest == pytest.approx(100 * float((1 / cumulative[0] - 1).sqrt()))
    noisy = 100 + 60 * torch.randn(2, 3, *SHAPE, dtype=torch.float64)
    level = torch.tensor([[2.0, 20, 60], [100, 300, 1000]], dtype=torch.float64)
    expected = 100 + (noisy - 100) * (2500 / (2500 + level**2))[..., None, None, None]
    torch.testing.assert_close(prior(noisy, level).mean, expected, rtol=1e-9, atol=1e-7)


def test_schedulers_that_do_not_fit_are_refused():
    cumulative = torch.linspace(0.99, 0.0, 10)
    unet = ExactUNet(cumulative, "epsilon").eval()
    ending = imaging.from_diffusers_unet(unet, SimpleNamespace(alphas_cumprod=cumulative, config={}))
    assert ending.ratios.numel() == 9 and ending.prediction == "epsilon"
    with pytest.raises(UserError, match="no alphas_cumprod"):
        imaging.from_diffusers_unet(unet, SimpleNamespace())
    with pytest.raises(UserError, match="prediction type 'flow'"):
        imaging.from_diffusers_unet(
            unet, SimpleNamespace(alphas_cumprod=cumulative, config={"prediction_type": "flow"})
        )
    with pytest.raises(UserError, match="fall from step to step"):
        imaging.from_diffusers_unet(unet, SimpleNamespace(alphas_cumprod=cumulative.flip(0), config={}))
    with pytest.raises(UserError, match="training mode"):
        imaging.from_diffusers_unet(unet.train(), SimpleNamespace(alphas_cumprod=cumulative, config={}))
    with pytest.raises(UserError, match="pass shape"):
        imaging.from_diffusers_unet(lambda x, t: x, SimpleNamespace(alphas_cumprod=cumulative, config={}))


def test_the_real_classes_where_they_are_installed():
    diffusers = pytest.importorskip("diffusers")
    unet = diffusers.UNet2DModel(
        sample_size=16, in_channels=1, out_channels=1, block_out_channels=(8, 8), layers_per_block=1, norm_num_groups=4,
        down_block_types=("DownBlock2D", "DownBlock2D"), up_block_types=("UpBlock2D", "UpBlock2D"),
    ).eval()  # fmt: skip
    prior = imaging.from_diffusers_unet(unet, diffusers.DDPMScheduler())
    assert prior(torch.zeros(2, 1, 1, 16, 16), torch.tensor(0.3)).mean.shape == (2, 1, 1, 16, 16)


def test_real_physics_where_it_is_installed():
    deepinv = pytest.importorskip("deepinv")
    physics = deepinv.physics.Inpainting(img_size=(1, 8, 8), mask=0.5)
    check_operator(imaging.from_deepinv_physics(physics, (1, 8, 8)))
