r"""The most probable window in the space of the members, by Gauss-Newton steps that run the model again.

With the mean u and anomalies A `(N, n)` of the controls (`controls.py`), `c = N - 1`, and weights w `(N,)`,

    cost        J(w) = c/2 |w|^2 + 1/2 |d(w)|^2,      d(w) = R^-1/2 (y - H(path of u + w A)), all observations
    slope       S(w) = T^-1 (H(path of u + w A + T A) - mean), whitened: one run of the model with all members
    step        w <- (S S^T + c I)^-1 S (d + S^T w),      T <- sqrt(c) (S S^T + c I)^-1/2

T, the symmetric root of the posterior found so far, keeps the members as far apart as they will be in the end, so that
the slope is taken where the posterior lies (the transform variant). The last step is not run again: states are moved
along the slopes of the last run, which for one iteration is the ETKF, and its smoother, to the letter. A run that does
not lower the cost is repeated half-way.

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

from assimilate.smoothers.controls import Controls, joint_departures, replay
from dynamics.base import Dynamics
from observations.likelihood import Observation


MIDDLE = True
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
    trial = path.new_zeros(experiments, 1, n, dtype=torch.float64)
    root = _Root(torch.zeros_like(trial.mT), torch.ones_like(trial[:, 0, :1]))
    active = torch.ones(experiments, dtype=torch.bool, device=path.device)
    lowest = torch.full_like(trial[:, 0, 0], torch.inf)
    best = trial
    result = Minimum(controls, path, ~active, torch.zeros_like(lowest), torch.zeros_like(active).long())
    for k in range(iterations):
        centred = mean + trial.to(flat.dtype) @ anomalies
        if k > 0:
            # The mean runs along as a member more: the cost is a function of the weights alone.
            again = controls.rebuilt(torch.cat([centred + root.shrink(anomalies), centred], 1))
            both = replay(dynamics, again, times, method=method)
            path, middle = both[:, :n], both[:, n:]
        elif iterations > 1:
            middle = replay(dynamics, controls.rebuilt(centred), times, method=method)
        found = joint_departures(observations, path, method=method)
        if found is None:
            return result
        observed = found.observed.any(-1)
        centre = path.mean(1, keepdim=True)
        spread, slopes = root.grow(found.spread.double()), root.grow((path - centre).flatten(2))
        departure, cost = found.departure.double(), lowest
        if iterations > 1:
            alone = joint_departures(observations, middle, method=method)
            assert alone is not None
            cost = (n - 1) * trial.square().sum((-2, -1)) + alone.departure.double().square().sum(-1)
            if k > 0 and MIDDLE:
                departure = alone.departure.double()
        departure = departure.unsqueeze(1) + trial @ spread
        goal, latest, gained = _posterior(spread, departure)
        step = goal - trial
        # Only what lowers the cost is believed; the first run has nothing to beat.
        lower = active & observed & (cost <= lowest)
        moved = centre + (step.to(path.dtype) @ slopes + latest.shrink(slopes)).reshape(path.shape)
        now = mean + goal.to(flat.dtype) @ anomalies + latest.shrink(anomalies)
        result = Minimum(
            result.controls.rebuilt(_where(lower, now, result.controls.flat())),
            _where(lower, moved, result.path),
            observed,
            _where(lower, found.log_normalizer.double() + gained, result.log_evidence),
            result.iterations + (active & observed),
        )
        # A run too far is repeated half-way, with the spread it had; experiments at rest run along unchanged.
        ahead = _where(lower, goal, best + (trial - best) / 2)
        best, lowest = _where(lower, trial, best), torch.where(lower, cost, lowest)
        root = _Root(*(_where(lower, new, old) for new, old in zip(latest, root, strict=True))) if k else latest
        length = (ahead - best).square().sum((-2, -1)).sqrt() * (n - 1) ** 0.5
        active = active & observed & (length > tolerance)
        trial = _where(active, ahead, best)
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


def _posterior(spread: Tensor, departure: Tensor) -> tuple[Tensor, _Root, Tensor]:
    """The posterior of the linearised problem.

    Args:
        spread: S, `(E, N, m)`.
        departure: d at weights 0, `(E, 1, m)`.

    Returns:
        Weights of the mean `(E, 1, N)`, the root, and the log evidence `(E,)` without the density of the noise at
        zero residual.
    """
    c = spread.shape[1] - 1
    u, s, vh = torch.linalg.svd(spread, full_matrices=False)
    seen = departure @ vh.mT
    share = c / (c + s.square())
    goal = (seen * (s * share / c).unsqueeze(-2)) @ u.mT
    beyond = (departure - seen @ vh).square().sum((-2, -1))
    misfit = (seen.square() * share.unsqueeze(-2)).sum((-2, -1)) + beyond
    return goal, _Root(u, share.sqrt()), -0.5 * (misfit - share.log().sum(-1))


def _where(chosen: Tensor, new: Tensor, old: Tensor) -> Tensor:
    """`new` for the chosen experiments `(E,)`, `old` for the others."""
    return torch.where(chosen.reshape(-1, *[1] * (new.ndim - 1)), new, old)
