r"""Gaussian laws carried by a root: what the extended and the unscented Kalman filter have in common.

The covariance is never formed. Its root A, one row a direction, `P = A^T A`, is moved by orthogonal transformations:

    forecast    rows that went through the dynamics, and rows of Q^1/2, made triangular by one QR decomposition
    analysis    | I  0 |        | U  G |      U^T U = I + S^T S,       U^T G = S^T A,
                | S  A |  = Q * | 0  B |      B^T B = A^T A - G^T G,   increment of the mean  G^T U^-T d

with S the response of the whitened observations to the rows of A and `d` the whitened departure of the mean. B^T B
cannot lose its symmetry or become negative, and the error of A is half (in digits) that of P: with observations a
million times more precise than the forecast, the usual `P - K H P` is noise in float64, this is not. A root may be
singular (a known initial state). All of it is float64; only members are in the dtype of the ensemble.

References:
    Kaminski, Bryson, Schmidt (1971), Discrete square root filtering: a survey of current techniques,
    https://doi.org/10.1109/TAC.1971.1099816 (the array form)
"""

from __future__ import annotations

from typing import ClassVar, NamedTuple, get_args

import torch
from torch import Tensor

from assimilate.filters.base import Info, check_finite, check_members
from assimilate.filters.departures import gaussian_noise, observed_values
from assimilate.filters.kalman import GaussianPrior, Prior, draw, prior_law
from assimilate.posterior.weights import uniform_log_weights
from dynamics.base import Dynamics, TransitionDensity
from dynamics.covariance import Covariance, ScaledIdentity
from dynamics.errors import CapabilityError
from dynamics.random import Rng, normal
from dynamics.settings import check_settings, number
from observations.likelihood import Observation


class SquareRootState(NamedTuple):
    """A Gaussian law of the state, and draws from it.

    Attributes:
        mean: `(E, d)`, float64, flattened events.
        root: A, `(E, d, d)`, float64, `covariance = A^T A`.
        members: `(E, N, *event)`, independent draws from the law, new at every step.
        time: in the time unit of the dynamics.
    """

    mean: Tensor
    root: Tensor
    members: Tensor
    time: float

    @property
    def covariance(self) -> Tensor:
        """P, `(E, d, d)`."""
        return self.root.mT @ self.root


class Updated(NamedTuple):
    """An analysis in array form.

    Attributes:
        increment: of the mean, `(E, d)`.
        coefficients: the increment in terms of the rows of A before the analysis, `(E, r)`.
        root: after the analysis, `(E, d, d)`.
        log_evidence: `(E,)`, without the density of the noise at zero residual.
    """

    increment: Tensor
    coefficients: Tensor
    root: Tensor
    log_evidence: Tensor


class SquareRootFilter:
    """`init`, `step` and `ensemble` of filters that carry a mean and a root; a subclass moves and updates them."""

    dynamics: Dynamics
    prior: Prior
    covariance_inflation: float
    name: ClassVar[str]

    def _forecast(self, mean: Tensor, root: Tensor, start: float, end: float) -> tuple[Tensor, Tensor]:
        """Mean `(E, d)` and root `(E, d, d)` at `end`."""
        raise NotImplementedError

    def _analysis(self, mean: Tensor, root: Tensor, observation: Observation) -> tuple[Tensor, Tensor, Tensor]:
        """Mean, root and log evidence `(E,)`, the latter without the density of the noise at zero residual."""
        raise NotImplementedError

    def _check(self) -> None:
        """Check the settings that all have."""
        if self.prior not in get_args(Prior):
            raise ValueError(f"prior is {self.prior!r}; expected one of {', '.join(get_args(Prior))}")
        words = "a positive factor of the covariance per unit of time"
        check_settings(self, covariance_inflation=number(above=0, words=words))
        if not isinstance(self.dynamics, TransitionDensity):
            raise CapabilityError(
                f"{self.name} needs the covariance of the model noise from dynamics with moments() and log_prob(); "
                f"{type(self.dynamics).__name__} has none: use EnKF, ETKF or a particle filter"
            )
        if self.prior == "dynamics" and not isinstance(self.dynamics, GaussianPrior):
            raise CapabilityError(
                f"{type(self.dynamics).__name__} has no prior_moments(); start the {self.name} from an ensemble: "
                "prior='members'"
            )

    def init(self, members: Tensor, time: float = 0.0) -> SquareRootState:
        """The law at the start; `members` `(E, N, *event)` are the draws of the first ensemble."""
        check_members(members)
        experiments, n = members.shape[:2]
        if self.prior == "dynamics":
            mean, covariance = prior_law(self.dynamics, members.device)
            root = root_of(covariance).expand(experiments, -1, -1)
            return SquareRootState(mean.expand(experiments, -1), root, members, float(time))
        if n < 2:
            raise ValueError("a covariance needs at least 2 initial members; 1 was given")
        flat = members.flatten(2).double()
        mean = flat.mean(1)
        return SquareRootState(mean, triangular((flat - mean.unsqueeze(1)) / (n - 1) ** 0.5), members, float(time))

    def step(
        self, state: SquareRootState, observation: Observation | None, time: float, *, rng: Rng
    ) -> tuple[SquareRootState, Info]:
        """Forecast to `time`, then assimilate; see `Filter.step`."""
        like = state.members
        mean, root = self._forecast(state.mean, state.root, state.time, time)
        # Before anything is decomposed: LAPACK's own words for NaN say nothing of the time.
        check_finite(torch.cat([mean.unsqueeze(1), root], 1), self.name, time, state.time, "moments after the forecast")
        normals = normal(rng, tuple(like.flatten(2).shape), dtype=like.dtype, device=like.device)
        background = draw(mean, root.mT @ root, normals).reshape(like.shape)
        members, evidence = background, like.new_zeros(like.shape[0])
        if observation is not None:
            noise = gaussian_noise(observation, method=self.name)
            observed = observed_values(observation, like)
            after, smaller, gained = self._analysis(mean, root, observation)
            check_finite(
                torch.cat([after.unsqueeze(1), smaller], 1), self.name, time, state.time, "moments after the analysis"
            )
            # Without a single observed value the forecast stays, to the last bit.
            any_observed = observed.any(-1)
            mean = torch.where(any_observed[:, None], after, mean)
            root = torch.where(any_observed[:, None, None], smaller, root)
            zeros = torch.zeros_like(observed, dtype=torch.float64)
            evidence = torch.where(any_observed, gained + noise.log_prob(zeros, observed), 0.0).to(like.dtype)
            members = draw(mean, root.mT @ root, normals).reshape(like.shape)
            members = torch.where(any_observed.reshape(-1, *[1] * (like.ndim - 1)), members, background)
        ess = like.new_full((like.shape[0],), float(like.shape[1]))
        return SquareRootState(mean, root, members, float(time)), Info(background, evidence, ess)

    def ensemble(self, state: SquareRootState) -> tuple[Tensor, Tensor]:
        """Draws `(E, N, *event)` from the law and their equal log weights."""
        return state.members, uniform_log_weights(state.members)


def triangular(rows: Tensor) -> Tensor:
    """A triangular root of `rows^T rows`: `(E, r, d)` to `(E, d, d)`; rows of zeros where r < d."""
    factor = torch.linalg.qr(rows, mode="r").R
    missing = rows.shape[-1] - factor.shape[-2]
    return torch.nn.functional.pad(factor, (0, 0, 0, missing)) if missing else factor


def root_of(covariance: Tensor) -> Tensor:
    """The symmetric root of a covariance `(*b, d, d)`, which may be singular."""
    values, vectors = torch.linalg.eigh(covariance)
    return (vectors * values.clamp_min(0).sqrt().unsqueeze(-2)) @ vectors.mT


def noise_root(covariance: Covariance, like: Tensor) -> Tensor | None:
    """A root of the model noise `(d, d)` in the dtype of `like`; None where there is no noise at all."""
    if isinstance(covariance, ScaledIdentity):
        if not bool(covariance.variance > 0):
            return None
        eye = torch.eye(like.shape[-1], dtype=like.dtype, device=like.device)
        return covariance.variance.to(like).sqrt() * eye
    dense = covariance.dense().to(like)
    return root_of(dense) if bool((dense != 0).any()) else None


def with_noise(rows: Tensor, noise: Tensor | None) -> Tensor:
    """A root `(E, d, d)` of `rows^T rows + Q` from rows `(E, r, d)` and a root of Q."""
    if noise is None:
        return triangular(rows)
    return triangular(torch.cat([rows, noise.expand(rows.shape[0], -1, -1)], 1))


def array_update(root: Tensor, spread: Tensor, departure: Tensor) -> Updated:
    """The analysis by one QR decomposition.

    Args:
        root: A, `(E, r, d)`.
        spread: S, response of the whitened observations to each row, `(E, r, m)`; zero where not observed.
        departure: d of the mean, whitened, `(E, m)`; zero where not observed.
    """
    experiments, rows, size = root.shape
    m = spread.shape[-1]
    unit = torch.eye(m, m + size, dtype=root.dtype, device=root.device).expand(experiments, -1, -1)
    factor = torch.linalg.qr(torch.cat([unit, torch.cat([spread, root], -1)], -2), mode="r").R
    scale, gain, left = factor[:, :m, :m], factor[:, :m, m:], factor[:, m:, m:]
    score = torch.linalg.solve_triangular(scale.mT, departure.unsqueeze(-1), upper=False)
    log_det = 2 * torch.log(torch.diagonal(scale, dim1=-2, dim2=-1).abs()).sum(-1)
    coefficients = spread @ torch.linalg.solve_triangular(scale, score, upper=True)
    if rows < size:
        left = torch.nn.functional.pad(left, (0, 0, 0, size - left.shape[-2]))
    return Updated(
        (gain.mT @ score).squeeze(-1),
        coefficients.squeeze(-1),
        left,
        -0.5 * (log_det + score.square().sum((-2, -1))),
    )
