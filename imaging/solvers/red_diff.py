r"""RED-diff: one image is optimised; the network's error in guessing the noise put on it is the regulariser.

    gradient = A'(mu)^T W (A(mu) - y) / m + lam sigma (e(mu + sigma z) - z) / n,        mu <- Adam(gradient)

with `e = (x - D(x, sigma)) / sigma` the network's guess, sigma falling along the DDPM schedule, m and n the numbers of
observed values and of pixels, and W the inverse noise covariance times its mean variance (1 for white noise).
Variational inference with a Gaussian whose variance is sent to 0: it seeks a mode, and the scatter of its results over
seeds is no posterior spread.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from assimilate.posterior.corrections.data_term import flat_values, slope
from assimilate.posterior.corrections.least_squares import pseudo_inverse
from assimilate.posterior.linearize import gaussian_noise
from assimilate.posterior.paths import VE
from assimilate.posterior.predictors import Context, OnPath
from dynamics.random import Streams, normal
from imaging.solvers.base import Counted, Exactness, Need, Solution, Solver, Task
from imaging.solvers.ddpm_levels import ddpm_level
from observations.base import LinearOperator


@dataclass(frozen=True)
class REDDiff(Solver):
    """Regularisation by denoising with a diffusion prior.

    Published weights belong to images in [-1, 1], of spread near 1/2, and to losses that are means; gradients, weights
    and steps are taken in those units whatever the units of the image.

    Args:
        steps: noise levels, one network evaluation and one Adam step each (100 to 1000).
        rate: Adam's learning rate (0.1), for images in [-1, 1].
        weight: lam (0.25); the regulariser counts `lam sigma`, which does not know the noise of the measurement.
    """

    name: ClassVar[str] = "RED-diff"
    reference: ClassVar[str] = (
        "Mardani, Song, Kautz, Vahdat (2024), A variational perspective on solving inverse problems with diffusion "
        "models, https://arxiv.org/abs/2305.04391"
    )
    needs: ClassVar[tuple[Need, ...]] = ("gaussian", "mean")
    exactness: ClassVar[Exactness] = "point"

    steps: int = 1000
    rate: float = 0.1
    weight: float = 0.25

    def __post_init__(self) -> None:
        """Check the settings."""
        if self.steps < 1 or not self.rate > 0 or self.weight < 0:
            raise ValueError(f"{self!r}: expected at least one step, a positive rate and a weight from 0")

    def solve(self, task: Task, rng: Streams) -> Solution:
        """See `Solver.solve`."""
        prior, likelihood = task.prior, task.likelihood
        y = task.y.to(task.device, task.dtype)
        path = VE(smallest=0.0, largest=prior.largest)
        counted = Counted(OnPath(prior, path, largest=prior.largest))
        shape = (*rng.rows, *task.event_shape)
        unit, pixels = 2 * prior.spread, torch.Size(task.event_shape).numel()
        mu = prior.spread * normal(rng, shape, dtype=task.dtype, device=task.device)
        if isinstance(likelihood.operator, LinearOperator):
            mu = pseudo_inverse(task.linear, y, iterations=20, cutoff=0.1).expand(shape).clone()
        size = likelihood.operator.obs_size
        variance = gaussian_noise(likelihood).variance(size, dtype=task.dtype, device=task.device).mean()
        seen = (~torch.isnan(flat_values(likelihood, y, mu))).sum(-1).clamp_min(1)
        seen = seen.reshape(*seen.shape, *(1,) * task.event_dims)
        first, second = torch.zeros_like(mu), torch.zeros_like(mu)
        for count in range(1, self.steps + 1):
            level = min(ddpm_level(1 - (count - 1) / self.steps, prior.spread), prior.largest)
            time = torch.tensor(path.time(level), dtype=task.dtype, device=task.device)
            z = normal(rng, shape, dtype=task.dtype, device=task.device)
            x = mu + level * z
            with torch.no_grad():
                guess = (x - counted(x, time, Context()).mean) / level
            data = variance * slope(likelihood, y, mu) / (seen * unit)
            gradient = self.weight * level / unit * (guess - z) / pixels - data
            first, second = 0.9 * first + 0.1 * gradient, 0.99 * second + 0.01 * gradient**2
            length = torch.sqrt(second / (1 - 0.99**count)) + 1e-8
            mu = mu - self.rate * unit * first / (1 - 0.9**count) / length
        return Solution(mu, counted.calls[0])
