"""SDA: a whole window of observations at once, from a prior over short stretches of the trajectory.

The trajectory `(K, *event)` is one sample of a diffusion prior composed from windows of `2k + 1` states
(`assimilate.posterior.windows`); all observations enter through one guidance, and Langevin corrections repair what the
guidance and the composition leave.

References:
    Rozet, Louppe (2023), Score-based data assimilation, https://arxiv.org/abs/2306.10574

Differs from the paper: any guidance of the core can be used (the paper's is `guidance.SDA(gamma)`), and a known first
state is an observation of all its values.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from assimilate.filters.base import Exactness, check_finite
from assimilate.posterior.condition import Guidance, condition
from assimilate.posterior.guidance import MMPS
from assimilate.posterior.samplers import Ancestral, PredictorCorrector, Sampler
from assimilate.posterior.time_grids import ratio_times
from assimilate.posterior.windows import WindowPrior
from assimilate.smoothers.base import SmootherInfo
from dynamics.random import Rng, normal
from dynamics.settings import COUNT, POSITIVE, check_settings
from observations.base import ObservationOperator
from observations.likelihood import Likelihood, Observation
from observations.noise import GaussianNoise


@dataclass(frozen=True)
class SDA:
    """Score-based data assimilation.

    Args:
        prior: over windows; `load_pretrained("lorenz63-window")` for one.
        guidance: how the observations enter.
        sampler: one step of the reverse process; the paper steps deterministically and corrects by Langevin moves.
        steps: noise levels.
        largest: first ratio of noise to signal, model coordinates.
        smallest: last one.
        known_std: standard deviation given to a known first state, model coordinates.

    Exactness: biased (composition and guidance); measured against the RTS smoother on a linear-Gaussian chain.
    """

    name: ClassVar[str] = "SDA"
    exactness: ClassVar[Exactness] = "biased"

    prior: WindowPrior
    guidance: Guidance = MMPS(iterations=3, trust=2.0)
    sampler: Sampler = PredictorCorrector(Ancestral(eta=0.0), corrections=1, tau=0.25)
    steps: int = 64
    largest: float = 50.0
    smallest: float = 0.005
    known_std: float = 0.01

    def __post_init__(self) -> None:
        """Check the settings."""
        check_settings(self, steps=COUNT, largest=POSITIVE, smallest=POSITIVE, known_std=POSITIVE)
        if not self.largest > self.smallest:
            raise ValueError(f"largest is {self.largest}; expected more than smallest, {self.smallest}")

    def solve(
        self,
        observations: Sequence[Observation | None],
        times: Sequence[float],
        members: int,
        *,
        rng: Rng,
        initial: Tensor | None = None,
    ) -> tuple[Tensor, SmootherInfo]:
        """Draw `members` trajectories a experiment from the posterior; see `Smoother.solve`.

        Raises:
            ValueError: if the times are not `prior.dt` apart or a noise has correlated errors.
        """
        prior = self.prior
        for before, after in zip(times[:-1], times[1:], strict=True):
            if abs(after - before - prior.dt) > 1e-6 * max(1.0, abs(after)):
                raise ValueError(f"times {before} and {after} are {after - before:g} apart; the prior's windows hold "
                                 f"states every {prior.dt:g}")
        likelihood, y = joint_likelihood(prior, observations, initial, self.known_std)
        experiments = y.shape[0]
        shape = (experiments, members, len(times), *prior.space.event_shape)
        path, dims = prior.path, prior.event_dims + 1
        grid = ratio_times(path, self.steps, largest=self.largest, smallest=self.smallest, start=False).to(y.dtype)
        z = normal(rng, shape, dtype=y.dtype, device=y.device)
        start = path.coefficients(grid[0].to(y.device), z).noise * z
        predictor = prior.trajectories()
        guided = condition(predictor, path, likelihood, y[:, None], self.guidance, event_dims=dims, rng=rng)
        drawn = self.sampler(guided, path, start, times=grid.to(y.device), event_dims=dims, rng=rng).x
        trajectories = check_finite(prior.decode(drawn), self.name, float(times[-1]), float(times[0]))
        info = SmootherInfo(y.new_full((experiments,), torch.nan), y.new_full((experiments,), float(members)))
        return trajectories, info


class TrajectoryOperator(ObservationOperator):
    """All observations of a trajectory in model coordinates, as one vector.

    Args:
        prior: gives the coordinates.
        length: K.
        operators: `(time index, operator)` for every observed time; None observes the whole state, model coordinates.
    """

    def __init__(
        self, prior: WindowPrior, length: int, operators: Sequence[tuple[int, ObservationOperator | None]]
    ) -> None:
        self.prior = prior
        self.operators = operators
        self.space = (length, *prior.space.event_shape)

    def forward(self, x: Tensor) -> Tensor:
        """`(*b, K, *event) -> (*b, m)`."""
        axis = x.ndim - self.prior.event_dims - 1
        lead = x.shape[:axis]
        values = []
        for index, operator in self.operators:
            state = x.select(axis, index)
            seen = state if operator is None else operator(self.prior.decode(state))
            values.append(seen.reshape(*lead, -1))
        return torch.cat(values, -1)


def joint_likelihood(
    prior: WindowPrior, observations: Sequence[Observation | None], initial: Tensor | None, known_std: float
) -> tuple[Likelihood, Tensor]:
    """One likelihood and one vector `y (E, m)` for all observations and a known first state.

    Args:
        prior: gives the coordinates.
        observations: one for each time; y is `(*obs)` or `(E, 1, *obs)`.
        initial: `(E, *event)` in Space units, or None.
        known_std: its standard deviation, model coordinates.
    """
    operators: list[tuple[int, ObservationOperator | None]] = []
    values: list[Tensor] = []
    variances: list[Tensor] = []
    if initial is not None:
        operators.append((0, None))
        values.append(prior.encode(initial).flatten(1))
        variances.append(torch.full((values[-1].shape[-1],), known_std**2, dtype=torch.float64))
    for index, observation in enumerate(observations):
        if observation is None or bool(torch.isnan(observation.y).all()):
            continue
        operator, noise = observation.likelihood.operator, observation.likelihood.noise
        if not isinstance(noise, GaussianNoise) or not noise.diagonal:
            raise ValueError(f"SDA takes Gaussian noise with independent errors; {noise!r} was given at index {index}")
        operators.append((index, operator))
        dims = len(operator.obs_shape)
        lead = observation.y.shape[: observation.y.ndim - dims]
        values.append(observation.y.reshape(lead[0] if lead else 1, -1))
        variances.append(noise.variance(operator.obs_size, dtype=torch.float64))
    if not operators:
        raise ValueError("nothing is observed in this window; sample the prior instead")
    experiments = max(v.shape[0] for v in values)
    y = torch.cat([v.expand(experiments, -1) for v in values], -1)
    likelihood = Likelihood(
        TrajectoryOperator(prior, len(observations), operators), GaussianNoise(torch.cat(variances).sqrt())
    )
    return likelihood, y
