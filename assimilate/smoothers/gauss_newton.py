r"""The most probable window in the space of the members, by Gauss-Newton steps that run the model again.

With the mean u and anomalies A `(N, n)` of the controls (`controls.py`), `c = N - 1`, and weights w `(N,)`,

    cost        J(w) = c |w|^2 + |d(w)|^2,      d(w) = R^-1/2 (y - H(path of u + w A)), all observations
    slope       S(w) = B^-1 (H(path of u + w A + B A) - mean), whitened: one run of the model with all members
    step        w <- (S S^T + c I)^-1 S (d + S^T w)
    posterior   mean u + w A, anomalies T A with T = sqrt(c) (S S^T + c I)^-1/2; the members run once more with these

Slopes are those of members that lie B A around the mean:

    "tangent"   B = eps I: the derivative. A step that does not lower the cost is halved until it does, so that J comes
                to rest in a minimum.
    "members"   B = T of the step before (I at first): the mean slope over the posterior of the moment. Steps are
                taken as they are; only one to more than twice the cost of the start is halved. Where the model folds
                the cost into many valleys this sees past the small ones. With more members than the controls have
                values, T also narrows what is no difference of states, and slopes are wrong where the model bends.
    "auto"      "members" where `N - 1` is at most the number of values of a control, otherwise "tangent".

One iteration alone is a linear step with the prior members themselves as slope (B = I) and no other run: the ETKF and
its smoother, to the letter.

With a `certainty` the covariance of the members is not trusted, as in the EnKF-N (`filters/finite_size.py` has the law
with its coefficients e and k; they come from the prior members):

    cost        J(w) = c k log(1 + |w|^2 / e) + |d(w)|^2
    step        w <- (S S^T + z I)^-1 S (d + S^T w),    z = c / l^2,    l^2 = (e + |w|^2) / k
    posterior   T = sqrt(c) (S S^T + z I)^-1/2

References:
    Bocquet, Sakov (2014), An iterative ensemble Kalman smoother, https://doi.org/10.1002/qj.2236 (both variants)
    Sakov, Oliver, Bertino (2012), An iterative EnKF for strongly nonlinear systems,
    https://doi.org/10.1175/MWR-D-11-00176.1
    Bocquet, Sakov (2012), Combining inflation-free and iterative ensemble Kalman filters for strongly nonlinear
    systems, https://doi.org/10.5194/npg-19-383-2012 (certainty)

Differs from the papers: the noise of the model is moved with the same weights as the initial state (they assume a
perfect model), and steps are halved. With a certainty T leaves out the last term of the Hessian of J, as the EnKF-N
here does, and a single iteration finds l and w together.

Slopes measured, mean error of 16 runs (DAPPER's table in brackets). Lorenz-96 seen every 0.6, 25 members (0.46):
"members" 0.47; "tangent" 0.55, with runs that lose the truth for a while. Half of it seen every 0.4, lag 2, 40 members
(0.52): "members" 0.45 without two runs that are lost; "tangent" 1.2. With 60 or 100 members there (0.47, 0.43) a third
of the runs is lost with either; the others have 0.4 to 0.6.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple, get_args

import torch
from torch import Tensor

from assimilate.filters.finite_size import prior_factor, size_law
from assimilate.smoothers.controls import Controls, joint_departures, replay
from dynamics.base import Dynamics
from dynamics.settings import COUNT, check_number, number
from observations.likelihood import Observation


class Minimum(NamedTuple):
    """The posterior ensemble of a window.

    Attributes:
        controls: of the members.
        path: `(E, N, K, *event)`.
        observed: `(E,)` bool; the other experiments are as they were, to the last bit.
        log_evidence: `(E,)`, float64, of the problem linearised at the minimum.
        iterations: `(E,)`, runs of the model until the weights came to rest.
    """

    controls: Controls
    path: Tensor
    observed: Tensor
    log_evidence: Tensor
    iterations: Tensor


Slopes = Literal["auto", "members", "tangent"]
Law = tuple[Tensor, Tensor]
"""Coefficients e and k of the law of the inflation, `(E,)` each."""


TOO_FAR = 2.0
"""A step along the members' slopes is halved where the cost is more than this many times that of the start."""


class _Posterior(NamedTuple):
    """The posterior of a linearised problem; T = factor (I + U diag(ratio - 1) U^T).

    Attributes:
        goal: weights of its mean, `(E, 1, N)`.
        vectors: U, `(E, N, r)`, r the number of members or of values, whichever is less.
        ratio: eigenvalues of T / factor that belong to U, in (0, 1], `(E, r)`.
        factor: l, of the prior anomalies, `(E, 1, 1)`; 1 where the members' covariance is trusted.
        log_evidence: `(E,)`, without the density of the noise at zero residual.
    """

    goal: Tensor
    vectors: Tensor
    ratio: Tensor
    factor: Tensor
    log_evidence: Tensor

    def shrink(self, rows: Tensor) -> Tensor:
        """T rows, for `(E, N, n)`."""
        inside = self.vectors.mT.to(rows.dtype) @ rows
        shrunk = rows + (self.vectors * (self.ratio - 1).unsqueeze(-2)).to(rows.dtype) @ inside
        return self.factor.to(rows.dtype) * shrunk

    def widen(self, rows: Tensor) -> Tensor:
        """T^-1 rows, for `(E, N, n)`."""
        inside = self.vectors.mT.to(rows.dtype) @ rows
        wide = rows + (self.vectors * (1 / self.ratio - 1).unsqueeze(-2)).to(rows.dtype) @ inside
        return wide / self.factor.to(rows.dtype)


def check_iterations(iterations: int, tolerance: float, slopes: str = "tangent") -> None:
    """Raise a ValueError unless there is an iteration, the tolerance is positive and the slopes are of a known kind."""
    if slopes not in get_args(Slopes):
        raise ValueError(f"slopes is {slopes!r}; expected one of {', '.join(get_args(Slopes))}")
    check_number("iterations", iterations, COUNT)
    words = "a positive number of prior standard deviations"
    check_number("tolerance", tolerance, number(above=0, infinite=True, words=words))


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
    certainty: float | None = None,
    slopes: Slopes = "tangent",
) -> Minimum:
    """The posterior of a window in the space of the members.

    Args:
        dynamics: the system; only `step` without noise is used.
        controls: of the prior members.
        path: their path `(E, N, K, *event)`.
        times: K times.
        observations: one for each time.
        iterations: most runs of the model in search of the minimum; 1 is a linear step along the prior members.
        tolerance: an experiment is at rest when its step is shorter than this, in prior standard deviations; it then
            no longer changes, whatever the others do.
        method: name for the errors.
        certainty: factor of the law of the inflation (1: the Jeffreys prior); None: the covariance of the members is
            trusted.
        slopes: see the module.

    Raises:
        CapabilityError: the noise of an observation is not Gaussian.
        Diverged: the members of the posterior do not stay finite.
    """
    prior = joint_departures(observations, path, method=method)
    resting = torch.zeros(path.shape[0], dtype=torch.bool, device=path.device)
    if prior is None or not bool(prior.observed.any()):
        return Minimum(controls, path, resting, torch.zeros_like(resting, dtype=torch.float64), resting.long())
    observed = prior.observed.any(-1)
    flat = controls.flat()
    mean = flat.mean(1, keepdim=True)
    anomalies = flat - mean
    if slopes == "auto":
        slopes = "members" if anomalies.shape[1] - 1 <= anomalies.shape[2] else "tangent"
    law = None if certainty is None else _law(prior.spread.double(), certainty)
    if iterations == 1:
        found = _posterior(prior.spread.double(), prior.departure.double().unsqueeze(1), law)
        weights, count = found.goal, observed.long()
    else:
        weights, found, count = _search(
            dynamics,
            controls,
            mean,
            anomalies,
            times,
            observations,
            observed,
            iterations,
            tolerance,
            method,
            law,
            slopes,
        )
    moved = mean + weights.to(flat.dtype) @ anomalies + found.shrink(anomalies)
    after = controls.rebuilt(_where(observed, moved, flat))
    if iterations == 1:
        centre = path.mean(1, keepdim=True)
        deviations = (path - centre).flatten(2)
        there = centre + (weights.to(path.dtype) @ deviations + found.shrink(deviations)).reshape(path.shape)
    else:
        there = replay(dynamics, after, times, method=method)
    evidence = torch.where(observed, prior.log_normalizer.double() + found.log_evidence, 0.0)
    return Minimum(after, _where(observed, there, path), observed, evidence, count)


def _search(
    dynamics: Dynamics,
    controls: Controls,
    mean: Tensor,
    anomalies: Tensor,
    times: Sequence[float],
    observations: Sequence[Observation | None],
    observed: Tensor,
    iterations: int,
    tolerance: float,
    method: str,
    law: Law | None,
    slopes: Slopes,
) -> tuple[Tensor, _Posterior, Tensor]:
    """Weights of the minimum `(E, 1, N)`, the posterior linearised there, and runs of the model `(E,)`."""
    experiments, n = anomalies.shape[:2]
    tangent = slopes == "tangent"
    # Far above rounding, far below what bends the model: half of the digits of float64, a third of those of float32.
    eps = (1e-4 if anomalies.dtype == torch.float64 else 1e-2) if tangent else 1.0
    best = trial = anomalies.new_zeros(experiments, 1, n, dtype=torch.float64)
    limit = torch.full_like(best[:, 0, 0], torch.inf)
    kept, active, count = None, observed, torch.zeros_like(observed).long()
    for _ in range(iterations):
        around = anomalies if tangent or kept is None else kept.shrink(anomalies)
        bundle = controls.rebuilt(mean + trial.to(mean.dtype) @ anomalies + eps * around)
        path = replay(dynamics, bundle, times, method=None)
        found = joint_departures(observations, path, method=method)
        assert found is not None
        departure = found.departure.double().unsqueeze(1)
        cost = _prior_cost(trial, law) + departure.square().sum((-2, -1))
        # False for a cost of NaN too: a run that left the finite numbers is a step too far.
        lower = active & (cost <= limit)
        spread = _where(lower, found.spread.double() / eps, torch.zeros_like(found.spread, dtype=torch.float64))
        if not tangent and kept is not None:
            spread = kept.widen(spread)
        departure = _where(lower, departure, torch.zeros_like(departure))
        here = _posterior(spread, departure + trial @ spread, law, trial)
        kept = here if kept is None else _Posterior(*(_where(lower, a, b) for a, b in zip(here, kept, strict=True)))
        best, count = _where(lower, trial, best), count + active
        if tangent:
            limit = torch.where(lower, cost, limit)
        elif bool(limit.isinf().any()):
            limit = torch.where(limit.isinf() & lower, TOO_FAR * cost, limit)
        ahead = _where(lower, kept.goal, best + (trial - best) / 2)
        active = active & (_length(ahead - best) > tolerance)
        trial = _where(active, ahead, best)
        if not bool(active.any()):
            break
    assert kept is not None
    # The last step is short, or was never tried.
    return _where(_length(kept.goal - best) <= tolerance, kept.goal, best), kept, count


def _posterior(spread: Tensor, departure: Tensor, law: Law | None, weights: Tensor | None = None) -> _Posterior:
    """The posterior of the linear problem with S `(E, N, m)` and d at weights 0 `(E, 1, m)`.

    With a law, l belongs to the weights `(E, 1, N)` where the slopes were taken; without any it is found with the goal.
    """
    c = spread.shape[1] - 1
    u, s, vh = torch.linalg.svd(spread, full_matrices=False)
    seen = departure @ vh.mT
    factor = torch.ones_like(s[:, :1])
    if law is not None and weights is not None:
        factor = ((law[0] + weights.square().sum((-2, -1))) / law[1]).sqrt().unsqueeze(-1)
    elif law is not None:
        padding = (0, spread.shape[1] - s.shape[-1])
        squares = torch.nn.functional.pad((s * seen.squeeze(1)).square(), padding)
        factor = prior_factor(torch.nn.functional.pad(s.square(), padding), squares, *law).unsqueeze(-1)
    # Weights w of anomalies A at a cost of z |w|^2 are weights w / l of anomalies l A at a cost of c |w / l|^2.
    z = c / factor.square()
    share = z / (z + s.square())
    goal = (seen * (s * share / z).unsqueeze(-2)) @ u.mT
    beyond = (departure - seen @ vh).square().sum((-2, -1))
    misfit = (seen.square() * share.unsqueeze(-2)).sum((-2, -1)) + beyond
    evidence = -0.5 * (misfit - share.log().sum(-1))
    return _Posterior(goal, u, share.sqrt(), factor.unsqueeze(-1), evidence)


def _law(spread: Tensor, certainty: float) -> Law:
    """Coefficients of the law of the inflation, from S of the prior members `(E, N, m)`."""
    values = torch.linalg.svdvals(spread).square()
    return size_law(torch.nn.functional.pad(values, (0, spread.shape[1] - values.shape[-1])), certainty)


def _prior_cost(weights: Tensor, law: Law | None) -> Tensor:
    """What weights `(E, 1, N)` cost without any observation, `(E,)`; 0 for the prior mean."""
    c, length = weights.shape[-1] - 1, weights.square().sum((-2, -1))
    return c * length if law is None else c * law[1] * torch.log1p(length / law[0])


def _length(step: Tensor) -> Tensor:
    """Length of a step of weights `(E, 1, N)` in prior standard deviations, `(E,)`."""
    return step.square().sum((-2, -1)).sqrt() * (step.shape[-1] - 1) ** 0.5


def _where(chosen: Tensor, new: Tensor, old: Tensor) -> Tensor:
    """`new` for the chosen experiments `(E,)`, `old` for the others."""
    return torch.where(chosen.reshape(-1, *[1] * (new.ndim - 1)), new, old)
