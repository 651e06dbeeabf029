r"""4D-Var: the most probable trajectory of a window, with the model as a strong or a weak constraint.

    J = 1/2 |v_0|^2 + 1/2 sum_k |w_k|^2 - sum_k log p(y_k | x_k)          (`trajectory.py`; no w: strong constraint)

Gradients come by automatic differentiation through the dynamics, any that has them. Trajectories are

    "draws"      the model run from draws of the Gauss-Newton posterior of the control (`laplace.py`)
    "perturbed"  the minima for perturbed backgrounds, model errors and observations (an ensemble of 4D-Vars)

For linear dynamics and operators with Gaussian noise both are exact draws, and the weak constraint is the RTS smoother.
On chaotic systems J has ever more local minima as the window grows: choose `window` below a few e-folding times of
small errors. Windows then follow each other; each starts from the end of the one before it, with the same B.

References:
    Le Dimet, Talagrand (1986), Variational algorithms for analysis and assimilation of meteorological observations,
    https://doi.org/10.1111/j.1600-0870.1986.tb00459.x
    Courtier, Thepaut, Hollingsworth (1994), A strategy for operational implementation of 4D-Var, using an incremental
    approach, https://doi.org/10.1002/qj.49712051912
    Tremolet (2006), Accounting for an imperfect model in 4D-Var, https://doi.org/10.1256/qj.05.224
    Pires, Vautard, Talagrand (1996), On extending the limits of variational assimilation in nonlinear chaotic systems,
    https://doi.org/10.1034/j.1600-0870.1996.00006.x
    Bardsley, Solonen, Haario, Laine (2014), Randomize-then-optimize, https://doi.org/10.1137/140964023

Differs from the papers: the inner loops run the full model, not one of lower resolution.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from assimilate.filters.base import Exactness, check_finite
from assimilate.filters.kalman import GaussianPrior
from assimilate.smoothers.base import SmootherInfo, check_window, count_experiments
from assimilate.variational.background import Background, DenseBackground, state_mean
from assimilate.variational.hybrid import Hybrid
from assimilate.variational.laplace import half_log_determinant, posterior_draws
from assimilate.variational.minimise import Cost, GaussNewton, Minimiser, Minimum, tangent
from assimilate.variational.three_dimensional import Spread, check_choice
from assimilate.variational.trajectory import Stretch, observed_flags
from dynamics.base import Dynamics, TransitionDensity
from dynamics.errors import CapabilityError
from dynamics.random import Rng, normal
from dynamics.settings import check_settings, number
from observations.likelihood import Observation

Constraint = Literal["strong", "weak"]


@dataclass(frozen=True)
class FourDVar:
    """4D-Var as a smoother.

    Args:
        dynamics: the system; `step` without noise must be differentiable.
        background: B of the state at the start of every window, with the mean of the first one (`background.mean`).
            None (default): the dynamics' exact prior. For B made of members give `Hybrid(...).at(members)`.
        constraint: "strong" (default), or "weak": the model errs at every step.
        model_error: Q of one step for the weak constraint; None (default): that of the dynamics' transition density.
        spread: where trajectories come from, "draws" (default) or "perturbed".
        minimiser: `GaussNewton()` (default) for Gaussian noise, `LBFGS()` for any that is differentiable.
        window: longest window, in the time unit of the dynamics; None (default): one window.
        evidence: whether to compute log p of the observed values (Laplace's approximation; exact on linear Gaussian
            systems with one window). It costs as many runs of the tangent model as there are observed values; otherwise
            it is NaN.

    Raises:
        CapabilityError: there is no background or no model error, the residual has no gradient, or the minimiser or
            "perturbed" cannot take the noise.
        ValueError: a setting that does not exist or is out of its range.

    `SmootherInfo.mean` is the most probable trajectory with "draws", and left to the members with "perturbed".
    """

    dynamics: Dynamics
    background: Background | None = None
    constraint: Constraint = "strong"
    model_error: Background | None = None
    spread: Spread = "draws"
    minimiser: Minimiser = GaussNewton()
    window: float | None = None
    evidence: bool = False
    name: ClassVar[str] = "4D-Var"
    exactness: ClassVar[Exactness] = "biased"

    def __post_init__(self) -> None:
        """Check the settings."""
        check_choice("constraint", self.constraint, Constraint)
        check_choice("spread", self.spread, Spread)
        check_settings(self, window=number(above=0, infinite=True, none=True, words="a positive time, or None"))
        if self.evidence and self.spread == "perturbed":
            raise ValueError('the evidence is that of one minimum: set spread = "draws"')
        if isinstance(self.background, Hybrid):
            raise ValueError("a Hybrid needs members, and a smoother has none yet: give Hybrid(...).at(members)")
        if self.background is None and not isinstance(self.dynamics, GaussianPrior):
            raise CapabilityError(
                f"{type(self.dynamics).__name__} has no prior_moments(): give a background, such as "
                "DenseBackground.prior(dynamics) or SpectralBackground(space, std, length, mean=...)"
            )
        weak = self.constraint == "weak"
        if weak and self.model_error is None and not isinstance(self.dynamics, TransitionDensity):
            raise CapabilityError(
                f"{type(self.dynamics).__name__} has no transition density to take Q from: give model_error"
            )
        if self.model_error is not None and not weak:
            raise ValueError('a model_error is for the weak constraint: set constraint = "weak"')

    def solve(
        self,
        observations: Sequence[Observation | None],
        times: Sequence[float],
        members: int,
        *,
        rng: Rng,
        initial: Tensor | None = None,
    ) -> tuple[Tensor, SmootherInfo]:
        """Trajectories `(E, N, K, *event)` in the dtype of the observations; see `Smoother.solve`.

        A known first state with the strong constraint leaves nothing to estimate in the first window: it is the run of
        the model from there.
        """
        check_window(observations, times)
        experiments = count_experiments(observations, rng, initial)
        guess, background = self._start(observations, experiments, initial)
        parts, best_parts = [], []
        evidence = guess.new_zeros(experiments, dtype=torch.float64)
        for first, last in self._windows(times):
            known = initial is not None and first == 0
            stretch = Stretch(
                self.dynamics,
                guess,
                None if known else background,
                times[first : last + 1],
                self.constraint == "weak",
                self.model_error,
            )
            # What is seen where two windows meet belongs to the first of them.
            seen = [o if k or first == 0 else None for k, o in enumerate(observations[first : last + 1])]
            best = self.minimise(stretch, seen)
            trajectory = stretch.states(best.control)
            check_finite(trajectory[:, 0], self.name, times[last], times[first], "the analysis")
            drawn = self._spread(stretch, seen, best, members, rng)
            check_finite(drawn.flatten(2), self.name, times[last], times[first], "trajectories")
            if self.evidence:
                evidence = evidence + self._evidence(stretch, seen, best)
            keep = slice(0, None if last == len(times) - 1 else -1)
            parts.append(drawn[:, :, keep])
            best_parts.append(trajectory[:, 0, keep])
            guess = trajectory[:, :, -1]
        info = SmootherInfo(
            evidence.to(guess.dtype) if self.evidence else guess.new_full((experiments,), torch.nan),
            guess.new_full((experiments,), float(members)),
            torch.cat(best_parts, 1) if self.spread == "draws" else None,
        )
        return torch.cat(parts, 2), info

    def minimise(self, stretch: Stretch, observations: Sequence[Observation | None]) -> Minimum:
        """The most probable control `(E, 1, size)` of a stretch; `gradient_norm` tells how well it is known."""
        experiments = stretch.guess.shape[0]
        start = stretch.guess.new_zeros(experiments, 1, stretch.size)
        return self._minimise(stretch.cost(observations), start)

    def _minimise(self, cost: Cost, start: Tensor) -> Minimum:
        if start.shape[-1] == 0:
            return Minimum(start, start.new_zeros(start.shape[:2]), start.new_zeros(start.shape[:2]))
        return self.minimiser(cost, start)

    def _spread(
        self, stretch: Stretch, observations: Sequence[Observation | None], best: Minimum, members: int, rng: Rng
    ) -> Tensor:
        around = best.control.expand(-1, members, -1)
        if stretch.size == 0:
            return stretch.states(around).detach()
        place: dict[str, Any] = {"dtype": around.dtype, "device": around.device}
        cost = stretch.cost(observations)
        flags = observed_flags(observations, stretch.guess)
        prior = normal(rng, tuple(around.shape), **place)
        noise = prior.new_zeros(*around.shape[:2], flags.shape[-1])
        if flags.shape[-1]:
            noise = normal(rng, tuple(noise.shape), **place) * flags
        if self.spread == "draws":
            control = around + posterior_draws(tangent(cost.residual, around), prior, noise)
        elif cost.misfit is None:
            shaken = Cost(lambda v: cost.residual(v) + noise, prior)
            control = self._minimise(shaken, around).control
        else:
            raise CapabilityError('perturbed observations need Gaussian noise: set spread = "draws"')
        return stretch.states(control)

    def _evidence(self, stretch: Stretch, observations: Sequence[Observation | None], best: Minimum) -> Tensor:
        fit = stretch.log_likelihood(observations, best.control)[:, 0].double()
        if stretch.size == 0:
            return fit
        near = tangent(stretch.cost(observations).residual, best.control)
        penalty = 0.5 * best.control.double().square().sum(-1) + half_log_determinant(near, stretch.size)
        return fit - penalty[:, 0]

    def _start(
        self, observations: Sequence[Observation | None], experiments: int, initial: Tensor | None
    ) -> tuple[Tensor, Background]:
        """The first guess `(E, 1, *event)` and B."""
        like = next((o.y for o in observations if o is not None), initial)
        like = torch.zeros(()) if like is None else like
        event = self.dynamics.space.event_shape
        background = self.background
        if background is None:
            background = DenseBackground.prior(self.dynamics)
        if initial is not None:
            return initial.to(like.device, like.dtype).unsqueeze(1), background
        if background.mean is None:
            raise ValueError(
                "the background has no mean and the first state is not known: give the background a mean=..."
            )
        return state_mean(background.mean, event, like).expand(experiments, 1, *event), background

    def _windows(self, times: Sequence[float]) -> list[tuple[int, int]]:
        """First and last index of every window; one ends where the next begins."""
        last = len(times) - 1
        if self.window is None or last == 0:
            return [(0, last)]
        found, first = [], 0
        while first < last:
            reach = times[first] + self.window * (1 + 1e-9)
            end = max((k for k in range(first + 1, last + 1) if times[k] <= reach), default=first + 1)
            found.append((first, end))
            first = end
        return found
