r"""The most probable window in the space of the members, by Gauss-Newton steps that run the model again.

With the mean u and anomalies A `(N, n)` of the controls (`controls.py`), `c = N - 1`, and weights w `(N,)`,

    cost        J(w) = c/2 |w|^2 + 1/2 |d(w)|^2,      d(w) = R^-1/2 (y - H(path of u + w A)), all observations
    slope       S(w) = T^-1 (H(path of u + w A + T A) - mean), whitened: one run of the model with all members
    step        w <- (S S^T + c I)^-1 S (d + S^T w),      T <- sqrt(c) (S S^T + c I)^-1/2

T, the symmetric root of the posterior found so far, keeps the members as far apart as they will be in the end, so that
the slope is taken where the posterior lies (the transform variant). The last step is not run again: states are moved
along the slopes of the last run, which for one iteration is the ETKF, and its smoother, to the letter.

References:
    Bocquet, Sakov (2014), An iterative ensemble Kalman smoother, https://doi.org/10.1002/qj.2236
    Sakov, Oliver, Bertino (2012), An iterative EnKF for strongly nonlinear systems,
    https://doi.org/10.1175/MWR-D-11-00176.1

Differs from the papers: the noise of the model is moved with the same weights as the initial state (they assume a
perfect model), and the analysis at the end of the window is a linear step from the last run.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from assimilate.filters.transforms import innovation_log_likelihood
from assimilate.smoothers.controls import Controls, joint_departures, replay
from dynamics.base import Dynamics
from observations.likelihood import Observation


class Minimum(NamedTuple):
    """The posterior ensemble of a window.

    Attributes:
        controls: of the members.
        path: `(E, N, K, *event)`.
        observed: `(E,)` bool; the other experiments are as they were, to the last bit.
        log_evidence: `(E,)`, float64, of the problem linearised at the last run.
        iterations: `(E,)`, runs of the model until the weights came to rest.
    """

    controls: Controls
    path: Tensor
    observed: Tensor
    log_evidence: Tensor
    iterations: Tensor


def check_iterations(iterations: int, tolerance: float) -> None:
    """Raise a ValueError unless there is an iteration and the tolerance is positive."""
    if iterations < 1 or not tolerance > 0:
        raise ValueError(
            f"iterations is {iterations} and tolerance {tolerance}; expected 1 or more, and a positive number of "
            "prior standard deviations"
        )


def minimise(
    dynamics: Dynamics,
    controls: Controls,
    path: Tensor,
    times: Sequence[float],
    observations: Sequence[Observation | None],
    *,
    iterations: int,
    tolerance: float,
    method: str,
) -> Minimum:
    """The posterior of a window by Gauss-Newton steps in the space of the members.

    Args:
        dynamics: the system; only `step` without noise is used.
        controls: of the prior members.
        path: their path `(E, N, K, *event)`.
        times: K times.
        observations: one for each time.
        iterations: most runs of the model that are looked at, the one of the prior included.
        tolerance: an experiment is at rest when a step is shorter than this, in prior standard deviations; it then no
            longer changes, whatever the others do.
        method: name for the errors.
    """
    experiments, n = path.shape[:2]
    flat = controls.flat()
    mean = flat.mean(1, keepdim=True)
    anomalies = flat - mean
    weights = path.new_zeros(experiments, 1, n, dtype=torch.float64)
    root = _Root(torch.zeros_like(weights.mT), torch.ones_like(weights[:, 0, :1]))
    active = torch.ones(experiments, dtype=torch.bool, device=path.device)
    result = Minimum(controls, path, ~active, torch.zeros_like(weights[:, 0, 0]), torch.zeros_like(active).long())
    for k in range(iterations):
        if k > 0:
            again = controls.rebuilt(mean + weights.to(flat.dtype) @ anomalies + root.shrink(anomalies))
            path = replay(dynamics, again, times, method=method)
        found = joint_departures(observations, path, method=method)
        if found is None:
            return result
        centre = path.mean(1, keepdim=True)
        spread, slopes = found.spread.double(), (path - centre).flatten(2)
        spread, slopes = root.grow(spread), root.grow(slopes)
        departure = found.departure.double().unsqueeze(1) + weights @ spread
        latest, goal = _root(spread, departure)
        step = goal - weights
        here = active & found.observed.any(-1)
        controls_now = controls.rebuilt(mean + goal.to(flat.dtype) @ anomalies + latest.shrink(anomalies))
        moved = step.to(path.dtype) @ slopes + latest.shrink(slopes)
        gained = innovation_log_likelihood(spread, departure.squeeze(1), found.log_normalizer)
        result = Minimum(
            result.controls.rebuilt(_where(here, controls_now.flat(), result.controls.flat())),
            _where(here, centre + moved.reshape(path.shape), result.path),
            found.observed.any(-1),
            _where(here, gained, result.log_evidence),
            result.iterations + here,
        )
        # Experiments at rest run along with what they have; nothing is taken from their later runs.
        weights, root = _where(here, goal, weights), latest
        active = here & (step.square().sum((-2, -1)) * (n - 1) > tolerance**2)
        if not bool(active.any()):
            break
    return result


class _Root(NamedTuple):
    """T = I + U diag(f) U^T, with as many columns of U as there are members or values, whichever is less.

    Attributes:
        vectors: U, `(E, N, r)`.
        ratio: the eigenvalues of T that belong to U, in (0, 1], `(E, r)`.
    """

    vectors: Tensor
    ratio: Tensor

    def shrink(self, rows: Tensor) -> Tensor:
        """T rows, for `(E, N, n)`."""
        return self._times(self.ratio - 1, rows)

    def grow(self, rows: Tensor) -> Tensor:
        """T^-1 rows."""
        return self._times(1 / self.ratio - 1, rows)

    def _times(self, factor: Tensor, rows: Tensor) -> Tensor:
        inside = self.vectors.mT.to(rows.dtype) @ rows
        return rows + (self.vectors * factor.unsqueeze(-2)).to(rows.dtype) @ inside


def _root(spread: Tensor, departure: Tensor) -> tuple[_Root, Tensor]:
    """The square root of the posterior and its mean `(E, 1, N)`, from S `(E, N, m)` and d at weights 0 `(E, 1, m)`."""
    c = spread.shape[1] - 1
    u, s, vh = torch.linalg.svd(spread, full_matrices=False)
    goal = ((departure @ vh.mT) * (s / (s.square() + c)).unsqueeze(-2)) @ u.mT
    return _Root(u, torch.sqrt(c / (c + s.square()))), goal


def _where(chosen: Tensor, new: Tensor, old: Tensor) -> Tensor:
    """`new` for the chosen experiments `(E,)`, `old` for the others."""
    return torch.where(chosen.reshape(-1, *[1] * (new.ndim - 1)), new, old)
