r"""The Kalman filter: the exact posterior of a linear Gaussian system, and its exact evidence.

    forecast    m <- F m + f,        P <- F P F^T + Q
    analysis    m <- m + K d,        P <- P - K H P,        K = P H^T (H P H^T + I)^-1
    evidence    log p(y_k | y_1..k-1) = log N(y_k; H m, H P H^T + R)

with H and `d = y - H m` whitened by the noise, so that R is the identity and unobserved values are rows of zeros.
F, f and Q are read off the dynamics' `moments`, H off the operator, step by step: both may change with time. All of it
is float64; only members are in the dtype of the ensemble.

References:
    Kalman (1960), A new approach to linear filtering and prediction problems, https://doi.org/10.1115/1.3662552
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, Literal, NamedTuple, Protocol, get_args, runtime_checkable

import torch
from torch import Tensor

from assimilate.filters.base import Exactness, Info, check_finite, check_members
from assimilate.filters.departures import gaussian_noise, observed_values
from assimilate.posterior.weights import uniform_log_weights
from dynamics.base import Dynamics, TransitionDensity, steps_between
from dynamics.covariance import Covariance
from dynamics.errors import CapabilityError
from dynamics.random import Rng, normal
from observations.base import LinearOperator
from observations.likelihood import Observation

Prior = Literal["dynamics", "members"]


@runtime_checkable
class GaussianPrior(Protocol):
    """A declared capability of dynamics: mean and covariance of a Gaussian prior are known."""

    def prior_moments(self, *, dtype: torch.dtype, device: torch.device | str) -> tuple[Tensor, Covariance]:
        """Mean `(*event)` and covariance."""
        ...


class KalmanState(NamedTuple):
    """The exact law of the state, and draws from it.

    Attributes:
        mean: `(E, d)`, float64, flattened events.
        covariance: `(E, d, d)`, float64.
        members: `(E, N, *event)`, independent draws from N(mean, covariance), new at every step.
        time: in the time unit of the dynamics.
    """

    mean: Tensor
    covariance: Tensor
    members: Tensor
    time: float


class LinearStep(NamedTuple):
    """`x_next = matrix x + offset + N(0, noise)` on flattened events, float64."""

    matrix: Tensor
    offset: Tensor
    noise: Tensor


@dataclass(frozen=True)
class KalmanFilter:
    """The exact filter of linear dynamics with Gaussian noise, seen through linear operators with Gaussian noise.

    Args:
        dynamics: a `TransitionDensity` whose mean is affine and whose covariance does not depend on the state.
        prior: where the law at the start comes from. "dynamics": exact, from `dynamics.prior_moments` (default).
            "members": mean and sample covariance of the initial members.

    Raises:
        CapabilityError: the dynamics, the operator or the noise is not linear or not Gaussian, or the dynamics does
            not know its prior.
    """

    dynamics: Dynamics
    prior: Prior = "dynamics"
    name: ClassVar[str] = "Kalman filter"
    exactness: ClassVar[Exactness] = "exact"

    def __post_init__(self) -> None:
        """Check the settings."""
        if self.prior not in get_args(Prior):
            raise ValueError(f"prior is {self.prior!r}; expected one of {', '.join(get_args(Prior))}")
        check_linear(self.dynamics, method=self.name)
        if self.prior == "dynamics" and not isinstance(self.dynamics, GaussianPrior):
            raise CapabilityError(
                f"{type(self.dynamics).__name__} has no prior_moments(); start the Kalman filter from an ensemble: "
                "KalmanFilter(dynamics, prior='members')"
            )

    def init(self, members: Tensor, time: float = 0.0) -> KalmanState:
        """The law at the start; `members` `(E, N, *event)` are the draws of the first ensemble."""
        check_members(members)
        experiments, n = members.shape[:2]
        if self.prior == "dynamics":
            mean, covariance = prior_law(self.dynamics, members.device)
            return KalmanState(
                mean.expand(experiments, -1), covariance.expand(experiments, -1, -1), members, float(time)
            )
        if n < 2:
            raise ValueError("a covariance needs at least 2 initial members; 1 was given")
        flat = members.flatten(2).double()
        mean = flat.mean(1)
        anomalies = flat - mean.unsqueeze(1)
        return KalmanState(mean, anomalies.mT @ anomalies / (n - 1), members, float(time))

    def step(
        self, state: KalmanState, observation: Observation | None, time: float, *, rng: Rng
    ) -> tuple[KalmanState, Info]:
        """Forecast to `time`, then assimilate; see `Filter.step`."""
        mean, covariance = state.mean, state.covariance
        for k in range(steps_between(self.dynamics, state.time, time)):
            step = linear_step(self.dynamics, state.time + k * self.dynamics.dt, mean.device)
            mean, covariance = predict(mean, covariance, step)
        like = state.members
        normals = normal(rng, tuple(like.flatten(2).shape), dtype=like.dtype, device=like.device)
        background = draw(mean, covariance, normals).reshape(like.shape)
        evidence = mean.new_zeros(mean.shape[0])
        members = background
        if observation is not None:
            mean, covariance, evidence = update(mean, covariance, observation, like, method=self.name)
            members = draw(mean, covariance, normals).reshape(like.shape)
        check_finite(members, self.name, time, state.time)
        ess = like.new_full((like.shape[0],), float(like.shape[1]))
        return KalmanState(mean, covariance, members, float(time)), Info(background, evidence.to(like.dtype), ess)

    def ensemble(self, state: KalmanState) -> tuple[Tensor, Tensor]:
        """Draws `(E, N, *event)` from the exact law and their equal log weights."""
        return state.members, uniform_log_weights(state.members)


def predict(mean: Tensor, covariance: Tensor, step: LinearStep) -> tuple[Tensor, Tensor]:
    """Mean `(E, d)` and covariance `(E, d, d)` after a step."""
    return mean @ step.matrix.mT + step.offset, symmetric(step.matrix @ covariance @ step.matrix.mT + step.noise)


def update(
    mean: Tensor, covariance: Tensor, observation: Observation, like: Tensor, *, method: str
) -> tuple[Tensor, Tensor, Tensor]:
    """Mean, covariance and log evidence `(E,)` after an observation.

    Args:
        mean: `(E, d)`.
        covariance: `(E, d, d)`.
        observation: with a linear operator and Gaussian noise.
        like: `(E, N, *event)`, for its shape.
        method: name for the messages.
    """
    operator = observation.likelihood.operator
    if not isinstance(operator, LinearOperator):
        raise CapabilityError(f"{method} needs a linear operator; {operator!r} is none: use EnKF or a particle filter")
    noise = gaussian_noise(observation, method=method)
    observed = observed_values(observation, like)
    # (E, d, m): column i of H, whitened, is what the noise makes of the response to the i-th basis vector.
    rows = operator.matrix(dtype=torch.float64, device=mean.device).mT.expand(mean.shape[0], -1, -1)
    whitened = noise.whiten(rows, observed.unsqueeze(1))
    y = observation.y.to(mean.device, torch.float64).reshape(-1, rows.shape[-1])
    residual = torch.where(observed, torch.nan_to_num(y, nan=0.0), 0.0) - torch.einsum("ed,edm->em", mean, rows)
    departure = noise.whiten(torch.where(observed, residual, 0.0), observed)
    gain = whitened.mT @ covariance
    m = rows.shape[-1]
    root = torch.linalg.cholesky(gain @ whitened + torch.eye(m, dtype=mean.dtype, device=mean.device))
    explained = torch.linalg.solve_triangular(root, gain, upper=False)
    score = torch.linalg.solve_triangular(root, departure.unsqueeze(-1), upper=False)
    log_det = 2 * torch.log(torch.diagonal(root, dim1=-2, dim2=-1)).sum(-1)
    evidence = noise.log_prob(torch.zeros_like(departure), observed) - 0.5 * (log_det + score.square().sum((-2, -1)))
    mean = mean + (explained.mT @ score).squeeze(-1)
    return mean, symmetric(covariance - explained.mT @ explained), evidence


def linear_step(dynamics: Dynamics, time: float, device: torch.device | str = "cpu") -> LinearStep:
    """F, f and Q of the step from `time`, read off `moments` at zero and at the basis vectors."""
    assert isinstance(dynamics, TransitionDensity)
    event = dynamics.space.event_shape
    size = math.prod(event)
    points = torch.cat(
        [torch.zeros(1, size, dtype=torch.float64, device=device), torch.eye(size, dtype=torch.float64, device=device)]
    )
    mean, covariance = dynamics.moments(points.reshape(-1, *event), time)
    mean = mean.reshape(size + 1, size)
    return LinearStep((mean[1:] - mean[0]).mT, mean[0], covariance.dense().to(device, torch.float64))


def check_linear(dynamics: Dynamics, *, method: str) -> None:
    """Raise a CapabilityError unless the dynamics is a `TransitionDensity` with an affine mean and a constant Q."""
    if not isinstance(dynamics, TransitionDensity):
        raise CapabilityError(
            f"{method} needs dynamics with moments() and log_prob(); {type(dynamics).__name__} has none"
        )
    step = linear_step(dynamics, 0.0)
    size = step.offset.numel()
    # Two probes that are no basis vectors: a quadratic map is not affine there.
    probes = torch.stack(
        [torch.linspace(-2.0, 3.0, size, dtype=torch.float64), torch.full((size,), -1.5, dtype=torch.float64)]
    )
    mean, covariance = dynamics.moments(probes.reshape(-1, *dynamics.space.event_shape), 0.0)
    expected = probes @ step.matrix.mT + step.offset
    scale = 1e-6 * (1 + expected.abs().max())
    noise = covariance.dense().to(torch.float64)
    if (
        bool(((mean.reshape(2, size) - expected).abs() > scale).any())
        or noise.shape != step.noise.shape
        or bool(((noise - step.noise).abs() > 1e-6 * (1 + step.noise.abs().max())).any())
    ):
        raise CapabilityError(
            f"{method} is exact for linear Gaussian dynamics only; the mean of {type(dynamics).__name__} is not affine "
            "or its noise depends on the state: use EnKF, ETKF or a particle filter"
        )


def prior_law(dynamics: Dynamics, device: torch.device | str) -> tuple[Tensor, Tensor]:
    """Prior mean `(d,)` and covariance `(d, d)`, float64."""
    assert isinstance(dynamics, GaussianPrior)
    mean, covariance = dynamics.prior_moments(dtype=torch.float64, device=device)
    return mean.flatten(), covariance.dense()


def draw(mean: Tensor, covariance: Tensor, normals: Tensor) -> Tensor:
    """`mean + covariance^1/2 normals`: `(E, d)`, `(E, d, d)`, `(E, N, d)` to `(E, N, d)` in the dtype of `normals`.

    The symmetric root is taken from the eigenvectors: laws may be singular, such as a known initial state.
    """
    values, vectors = torch.linalg.eigh(covariance)
    root = (vectors * values.clamp_min(0).sqrt().unsqueeze(-2)) @ vectors.mT
    return (mean.unsqueeze(1) + normals.double() @ root).to(normals.dtype)


def symmetric(matrix: Tensor) -> Tensor:
    """The symmetric part, which round-off leaves."""
    return (matrix + matrix.mT) / 2
