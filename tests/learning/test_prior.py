"""Priors of single states and consistency models: units, files, training on laws whose answer is known."""

import pytest
import torch

from assimilate.learning.checkpoint import load_checkpoint, save_checkpoint
from assimilate.learning.consistency import ConsistencyDenoiser, ConsistencyFit, fit_consistency
from assimilate.learning.denoiser import EDMDenoiser
from assimilate.learning.fit import FitSettings
from assimilate.learning.networks.unet import UNet, UNetSettings
from assimilate.learning.prior import LearnedPrior, learned_prior
from assimilate.learning.prior_fit import PriorFit, fit_prior
from dynamics.random import normal
from dynamics.space import Field, Space

SPACE = Space((Field("image", dims=("y", "x")),), coords={"y": 8, "x": 8})
SMALL = {"widths": (8, 12), "blocks": 1}


def tiny(**changes):
    network = UNet(UNetSettings(outputs=2, **SMALL))
    denoiser = EDMDenoiser(network, event_dims=3, variance=True)
    return LearnedPrior(SPACE, denoiser, **{"offset": 3.0, "scale": 2.0, **changes})


def test_an_untrained_prior_is_the_gaussian_of_its_offset_and_scale():
    """F = 0 and v = 0: mean and variance of N(offset, scale^2), in the units of the Space."""
    prior = tiny()
    x, rho = torch.randn(2, 3, 1, 8, 8) + 3, torch.tensor(1.5)
    clean = prior(x, rho)
    gain = 4.0 / (4.0 + 1.5**2)
    assert torch.allclose(clean.mean, 3 + gain * (x - 3), atol=1e-5)
    assert torch.allclose(clean.covariance.variance, torch.full_like(x, gain * 1.5**2), atol=1e-5)
    assert prior.spread == pytest.approx(2.0)
    assert prior.gives == "mean"


def test_a_file_gives_the_same_prior(tmp_path):
    prior = tiny(bounds=(0.0, 1.0), smallest=0.01, largest=9.0)
    for parameter in prior.denoiser.network.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    again = learned_prior(load_checkpoint(save_checkpoint(prior.to_checkpoint(), tmp_path / "p.safetensors")))
    x = torch.randn(2, 1, 8, 8)
    assert torch.equal(again(x, torch.tensor(0.3)).mean, prior(x, torch.tensor(0.3)).mean)
    assert (again.offset, again.scale, again.smallest, again.largest, again.bounds) == (3.0, 2.0, 0.01, 9.0, (0.0, 1.0))


@pytest.fixture(scope="module")
def constants():
    """Pictures of one random grey each: the clean mean is the average of the picture, shrunk."""
    rng = torch.Generator().manual_seed(0)
    return (0.5 + 0.2 * torch.randn(400, 1, 1, 1, generator=rng)).expand(400, 1, 8, 8).contiguous()


@pytest.fixture(scope="module")
def trained(constants):
    settings = PriorFit(SMALL, FitSettings(steps=250, batch=32, learning_rate=5e-3, warmup=10, ema=0.95,
                                           held_out_every=0), smallest=0.05, largest=20.0, emphasis=(0.5, 5.0))
    return fit_prior(constants, SPACE, settings)


def test_training_finds_the_average_of_a_flat_picture(trained, constants):
    """At rho = 0.4 a pixel alone would leave an error of 0.18; the average over 64 pixels leaves 0.05."""
    rng = torch.Generator().manual_seed(9)
    noisy = constants[-64:] + 0.4 * normal(rng, (64, 1, 8, 8))
    error = (trained(noisy, torch.tensor(0.4)).mean - constants[-64:]).square().mean().sqrt()
    assert float(error) < 0.09
    assert trained.scale == pytest.approx(0.2, rel=0.2)
    columns = trained.record["measured"]["columns"]
    assert columns == ["noise", "rms error", "standardised variance"]


def test_bfloat16_training_learns_the_same(constants):
    training = FitSettings(steps=60, batch=32, learning_rate=5e-3, warmup=10, ema=0.9, held_out_every=0)
    from dataclasses import replace

    means = []
    for precision in ("float32", "bfloat16"):
        prior = fit_prior(constants, SPACE, PriorFit(SMALL, replace(training, precision=precision), largest=20.0))
        means.append(prior(constants[:8] + 0.1, torch.tensor(0.2)).mean)
    assert torch.allclose(*means, atol=0.05)
    with pytest.raises(ValueError, match="precision"):
        FitSettings(precision="half")


def test_a_consistency_model_leaves_the_smallest_level_alone_and_gives_draws(trained, constants):
    settings = ConsistencyFit(levels=8, largest=20.0, training=FitSettings(
        steps=60, batch=16, learning_rate=1e-3, warmup=10, ema=0.9, held_out_every=0))
    student = fit_consistency(trained, constants, settings)
    assert student.gives == "draw" and isinstance(student.denoiser, ConsistencyDenoiser)
    x = constants[:4]
    assert torch.allclose(student(x, torch.tensor(student.smallest)).mean, x, atol=1e-5)
    # From pure noise one call gives pictures of the data's own spread, not their mean.
    z = normal(torch.Generator().manual_seed(1), (256, 1, 8, 8))
    drawn = student(student.offset + student.largest * z, torch.tensor(student.largest)).mean
    assert float(drawn.mean()) == pytest.approx(0.5, abs=0.08)
    assert 0.08 < float(drawn.mean((1, 2, 3)).std()) < 0.32


def test_a_consistency_file_gives_the_same_model(trained, tmp_path):
    student = fit_consistency(trained, torch.rand(50, 1, 8, 8), ConsistencyFit(
        levels=4, training=FitSettings(steps=1, batch=4, held_out_every=0)))
    again = learned_prior(load_checkpoint(save_checkpoint(student.to_checkpoint(), tmp_path / "c.safetensors")))
    x = torch.randn(2, 1, 8, 8)
    assert again.gives == "draw"
    assert torch.equal(again(x, torch.tensor(0.3)).mean, student(x, torch.tensor(0.3)).mean)


def test_states_of_another_shape_are_refused():
    with pytest.raises(ValueError, match="expected"):
        fit_prior(torch.zeros(10, 1, 4, 4), SPACE)
