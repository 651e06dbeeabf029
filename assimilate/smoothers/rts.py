r"""The Rauch-Tung-Striebel smoother: the exact law of the trajectory of a linear Gaussian system.

Forward, the Kalman filter gives `m_k, P_k` (after y_k) and `m^f_k+1, P^f_k+1` (before y_k+1). Backward, with the gain
`G_k = P_k F^T (P^f_k+1)^-1`,

    mean          s_k = m_k + G_k (s_k+1 - m^f_k+1)
    covariance    V_k = P_k + G_k (V_k+1 - P^f_k+1) G_k^T
    a draw        x_k | x_k+1 ~ N(m_k + G_k (x_k+1 - m^f_k+1), P_k - G_k P^f_k+1 G_k^T)

The draws are trajectories: their joint law over all times is exact. All of it is float64.

References:
    Rauch, Tung, Striebel (1965), Maximum likelihood estimates of linear dynamic systems,
    https://doi.org/10.2514/3.3166
    Fruehwirth-Schnatter (1994), Data augmentation and dynamic linear models,
    https://doi.org/10.1111/j.1467-9892.1994.tb00184.x (the draws)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor

from assimilate.filters.base import Exactness
from assimilate.filters.kalman import (
    GaussianPrior,
    LinearStep,
    check_linear,
    draw,
    linear_step,
    predict,
    prior_law,
    symmetric,
    update,
)
from assimilate.smoothers.base import SmootherInfo, check_window, count_experiments
from dynamics.base import Dynamics, steps_between
from dynamics.errors import CapabilityError
from dynamics.random import Rng, normal
from observations.likelihood import Observation


class SmoothedMoments(NamedTuple):
    """The exact marginal laws of a window.

    Attributes:
        mean: `(E, K, d)`, float64, flattened events.
        covariance: `(E, K, d, d)`, float64.
        log_evidence: `(E,)`, log p of all observed values.
    """

    mean: Tensor
    covariance: Tensor
    log_evidence: Tensor


class _Forward(NamedTuple):
    """One time of the forward pass: the law after its observation, and the step to the next time."""

    mean: Tensor
    covariance: Tensor
    next_mean: Tensor
    next_covariance: Tensor
    gain: Tensor


@dataclass(frozen=True)
class RTS:
    """The exact smoother of linear dynamics with Gaussian noise, seen through linear operators with Gaussian noise.

    Args:
        dynamics: a `TransitionDensity` with affine mean and constant covariance, and with `prior_moments`.

    Raises:
        CapabilityError: the dynamics, an operator or a noise is not linear or not Gaussian.
    """

    dynamics: Dynamics
    name: ClassVar[str] = "RTS smoother"
    exactness: ClassVar[Exactness] = "exact"

    def __post_init__(self) -> None:
        """Check the dynamics."""
        check_linear(self.dynamics, method=self.name)
        if not isinstance(self.dynamics, GaussianPrior):
            raise CapabilityError(
                f"{self.name} needs the exact prior; {type(self.dynamics).__name__} has no prior_moments()"
            )

    def solve(
        self,
        observations: Sequence[Observation | None],
        times: Sequence[float],
        members: int,
        *,
        rng: Rng,
        initial: Tensor | None = None,
        dtype: torch.dtype = torch.float32,
    ) -> tuple[Tensor, SmootherInfo]:
        """Independent draws of the trajectory `(E, N, K, *event)` in `dtype`; see `Smoother.solve`."""
        experiments = count_experiments(observations, rng, initial)
        passes, evidence = self._forward(observations, times, experiments, initial)
        device = passes[-1].mean.device
        size = passes[-1].mean.shape[-1]
        shape = (experiments, members, size)
        x = draw(passes[-1].mean, passes[-1].covariance, normal(rng, shape, dtype=torch.float64, device=device))
        states = [x]
        for k in range(len(passes) - 2, -1, -1):
            at = passes[k]
            left = symmetric(at.covariance - at.gain @ at.next_covariance @ at.gain.mT)
            wander = draw(torch.zeros_like(at.mean), left, normal(rng, shape, dtype=torch.float64, device=device))
            x = at.mean.unsqueeze(1) + (x - at.next_mean.unsqueeze(1)) @ at.gain.mT + wander
            states.append(x)
        moments = _backward(passes, evidence)
        event = self.dynamics.space.event_shape
        trajectories = torch.stack(states[::-1], 2).reshape(experiments, members, len(passes), *event).to(dtype)
        variance = torch.diagonal(moments.covariance, dim1=-2, dim2=-1).clamp_min(0)
        marginal = (experiments, len(passes), *event)
        return trajectories, SmootherInfo(
            evidence.to(dtype),
            torch.full((experiments,), float(members), dtype=dtype, device=device),
            moments.mean.reshape(marginal).to(dtype),
            variance.sqrt().reshape(marginal).to(dtype),
        )

    def moments(
        self,
        observations: Sequence[Observation | None],
        times: Sequence[float],
        *,
        experiments: int = 1,
        initial: Tensor | None = None,
    ) -> SmoothedMoments:
        """The exact marginal means and covariances, without draws.

        Args:
            observations: one for each time (None: nothing observed).
            times: K increasing times.
            experiments: number of experiments E, where `initial` does not tell.
            initial: `(E, *event)`, the state at `times[0]` where it is known.
        """
        count = experiments if initial is None else initial.shape[0]
        return _backward(*self._forward(observations, times, count, initial))

    def _forward(
        self,
        observations: Sequence[Observation | None],
        times: Sequence[float],
        experiments: int,
        initial: Tensor | None,
    ) -> tuple[list[_Forward], Tensor]:
        check_window(observations, times)
        device = next((o.y.device for o in observations if o is not None), torch.device("cpu"))
        mean, covariance = self._start(experiments, initial, device)
        # Only its shape counts: one row an experiment.
        like = mean.reshape(experiments, 1, *self.dynamics.space.event_shape)
        evidence = mean.new_zeros(experiments)
        passes = []
        for k, observation in enumerate(observations):
            if observation is not None:
                mean, covariance, gained = update(mean, covariance, observation, like, method=self.name)
                evidence = evidence + gained
            last = k == len(times) - 1
            step = _identity(mean) if last else interval(self.dynamics, times[k], times[k + 1], device)
            next_mean, next_covariance = predict(mean, covariance, step)
            # The pseudo-inverse: where the forecast has no spread there is nothing to correct.
            gain = covariance @ step.matrix.mT @ torch.linalg.pinv(next_covariance, hermitian=True)
            passes.append(_Forward(mean, covariance, next_mean, next_covariance, gain))
            mean, covariance = next_mean, next_covariance
        return passes, evidence

    def _start(self, experiments: int, initial: Tensor | None, device: torch.device) -> tuple[Tensor, Tensor]:
        mean, covariance = prior_law(self.dynamics, device)
        covariance = covariance.expand(experiments, -1, -1)
        if initial is None:
            return mean.expand(experiments, -1), covariance
        return initial.to(device, torch.float64).flatten(1), torch.zeros_like(covariance)


def interval(dynamics: Dynamics, start: float, end: float, device: torch.device) -> LinearStep:
    """All steps from `start` to `end` as one."""
    size = dynamics.space.size
    total = _identity(torch.zeros(1, size, dtype=torch.float64, device=device))
    for k in range(steps_between(dynamics, start, end)):
        step = linear_step(dynamics, start + k * dynamics.dt, device)
        total = LinearStep(
            step.matrix @ total.matrix,
            step.matrix @ total.offset + step.offset,
            step.matrix @ total.noise @ step.matrix.mT + step.noise,
        )
    return total


def _identity(mean: Tensor) -> LinearStep:
    size = mean.shape[-1]
    eye = torch.eye(size, dtype=torch.float64, device=mean.device)
    return LinearStep(eye, torch.zeros_like(eye[0]), torch.zeros_like(eye))


def _backward(passes: list[_Forward], evidence: Tensor) -> SmoothedMoments:
    mean, covariance = passes[-1].mean, passes[-1].covariance
    means, covariances = [mean], [covariance]
    for at in reversed(passes[:-1]):
        mean = at.mean + (at.gain @ (mean - at.next_mean).unsqueeze(-1)).squeeze(-1)
        covariance = symmetric(at.covariance + at.gain @ (covariance - at.next_covariance) @ at.gain.mT)
        means.append(mean)
        covariances.append(covariance)
    return SmoothedMoments(torch.stack(means[::-1], 1), torch.stack(covariances[::-1], 1), evidence)
