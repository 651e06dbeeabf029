"""Objectives: their minimiser is the clean mean in every parameterisation; weights of zero silence a value."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from assimilate.learning.denoiser import EDMDenoiser
from assimilate.learning.networks import MLP, MLPSettings
from assimilate.learning.objectives import Batch, Denoising, LogUniform, MeanRegression, OfPath, PathRegression
from assimilate.posterior.paths import VP, FlowMatching, Interpolant


class Exact(nn.Module):
    """The exact regression for x_1 | x_0 ~ N(x_0 / 2, 1/4), plus an error."""

    def __init__(self, path, kind, error):
        super().__init__()
        self.path, self.kind, self.error = path, kind, error

    def forward(self, x, t, base):
        c = self.path.coefficients(t, x)
        residual = x - c.alpha * base - c.beta * 0.5 * base
        mean = 0.5 * base + 0.25 * c.beta / (0.25 * c.beta**2 + c.noise**2) * residual
        return self.path.from_mean(x, t, mean, self.kind, base) + self.error


@pytest.mark.parametrize("kind", ["clean", "noise", "velocity", "drift"])
@pytest.mark.parametrize("path", [Interpolant(power=1, scale=0.5), Interpolant(power=2), FlowMatching(), VP()])
def test_the_exact_regression_is_a_stationary_point(path, kind):
    # The loss of F + e is loss(F) + e^2 for every e exactly when F = E[target | x_t, x_0]; tested with common numbers.
    rng = torch.Generator().manual_seed(0)
    base = torch.randn(60_000, 1, generator=rng)
    clean = 0.5 * base + 0.5 * torch.randn(60_000, 1, generator=rng)
    batch = Batch(clean, base, base)
    objective = PathRegression(path, kind, margin=0.05)
    losses = [
        float(objective(Exact(path, kind, e), batch, torch.Generator().manual_seed(1))) for e in (-0.3, 0.0, 0.3)
    ]
    slope = (losses[2] - losses[0]) / 0.6
    # The slope is twice the mean error of the target, whose standard error is its own spread over sqrt(n).
    assert abs(slope) < 4 * 2 * losses[1] ** 0.5 / 60_000**0.5
    assert losses[2] - losses[1] == pytest.approx(0.09 + 0.3 * slope, abs=1e-3)


@pytest.mark.parametrize(
    ("objective", "model"),
    [
        (Denoising(LogUniform(0.1, 1.0)), None),
        (MeanRegression(), nn.Identity()),
        (PathRegression(FlowMatching(), "clean"), lambda x, t, c: 0 * x),
    ],
)
def test_values_of_weight_zero_contribute_nothing(objective, model):
    if isinstance(objective, Denoising):
        model = EDMDenoiser(MLP(MLPSettings(channels=3, outputs=6, noise_features=1)), event_dims=1, variance=True)
        condition = None
    else:
        condition = torch.zeros(50, 3)
    clean = torch.randn(50, 3, generator=torch.Generator().manual_seed(0))
    spoiled = clean.clone()
    spoiled[:, 1] = 7.0
    losses = []
    for values, weight in ((clean, [1.0, 0.0, 1.0]), (spoiled, [1.0, 0.0, 1.0]), (spoiled, [1.0, 1.0, 1.0])):
        batch = Batch(values, condition=condition, weight=torch.tensor(weight))
        with torch.no_grad():
            losses.append(float(objective(model, batch, torch.Generator().manual_seed(1))))
    assert losses[0] == pytest.approx(losses[1], abs=1e-6)
    assert losses[2] > losses[1] + 0.1


def test_the_levels_of_a_path_are_its_ratios():
    path = Interpolant(power=1)
    levels = OfPath(path)(20_000, torch.Generator().manual_seed(0))
    times = torch.rand(20_000, generator=torch.Generator().manual_seed(0))
    expected = ((1 - times) / times.sqrt()).clamp(max=80)
    assert torch.allclose(levels.sort().values, expected.sort().values, rtol=1e-3, atol=1e-5)
    some = LogUniform(0.01, 10.0, (0.1, 0.2), share=0.5)(20_000, torch.Generator().manual_seed(0))
    # Half of the levels, and a tenth of the others (log 2 of log 1000), lie in the narrower range.
    share = float(((some > 0.1) & (some < 0.2)).float().mean())
    assert abs(share - (0.5 + 0.5 * 0.1003)) < 4 * (0.25 / 20_000) ** 0.5
