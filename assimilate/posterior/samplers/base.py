r"""Samplers: from the start of a path to clean data, over any time grid, with any predictor.

A sampler never sees an observation: a conditioned predictor gives a shifted clean mean, and the path rebuilds the
step from it. The stochastic samplers are Gaussian kernels

    x_s = mu(x_t, m) + std z,

affine in the clean mean m, so a guided step differs from the prior's by `d = mu(x_t, m_y) - mu(x_t, m)` alone, and
its importance ratio on the same grid is

    log p(x_s | x_t) - log q(x_s | x_t) = - sum over std > 0 of [ d.z / std + |d|^2 / (2 std^2) ].
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from assimilate.posterior.covariance import Covariance
from assimilate.posterior.paths import Path
from assimilate.posterior.predictors import Clean, Context, Predictor
from dynamics.random import Rng, normal


class Sample(NamedTuple):
    """What a sampler returns.

    Attributes:
        x: the state at the last time of the grid, `(*b, *event)`.
        log_ratio: log of prior density over guided density of the noise path, `(*b,)`; None unless asked for.
        evaluations: predictor calls.
    """

    x: Tensor
    log_ratio: Tensor | None
    evaluations: int


Trace = Callable[[float, Tensor, Clean], None]


class Sampler(ABC):
    """A loop over a time grid; subclasses say what one step is."""

    @abstractmethod
    def step(
        self, x: Tensor, t: Tensor, s: Tensor, clean: Clean, again: Callable[[Tensor, Tensor], Clean], path: Path,
        context: Context, rng: Rng, weighted: bool, event_dims: int,
    ) -> tuple[Tensor, Tensor | None]:
        """One step from time t to time s: the new state and the log ratio of the step (None: it has none).

        Args:
            x: state at t.
            t: this time, `()`.
            s: next time, `()`.
            clean: belief at `(x, t)`.
            again: the predictor at another state and time, for samplers that need it.
            path: the path.
            context: base and condition.
            rng: random numbers.
            weighted: whether the log ratio is wanted.
            event_dims: trailing dims of one event.
        """

    def __call__(
        self,
        predictor: Predictor,
        path: Path,
        x: Tensor,
        *,
        times: Tensor,
        event_dims: int,
        rng: Rng,
        context: Context | None = None,
        weighted: bool = False,
        trace: Trace | None = None,
    ) -> Sample:
        """Carry `x` along the grid.

        Args:
            predictor: unconditioned or conditioned.
            path: the path.
            x: state at `times[0]`, `(*b, *event)`.
            times: increasing, `(K,)`, in [0, 1].
            event_dims: trailing dims of one event.
            rng: random numbers.
            context: base and condition.
            weighted: return the importance ratio of the guided steps.
            trace: called with `(time, x, clean)` before every step.

        Raises:
            ValueError: if a ratio is asked of a sampler or a gain that has none.
        """
        context = context or Context()
        total = x.new_zeros(x.shape[: x.ndim - event_dims]) if weighted else None
        calls = 0

        def ask(state: Tensor, time: Tensor) -> Clean:
            nonlocal calls
            calls += 1
            with torch.no_grad():
                return predictor(state, time, context)

        for t, s in zip(times[:-1], times[1:], strict=True):
            clean = ask(x, t)
            if trace is not None:
                trace(float(t), x, clean)
            if weighted and clean.kick is not None:
                raise ValueError("a constant-gain guidance moves states outside the path's step and has no importance "
                                 "weight; use gain='exact' or ask for no weights")
            x, ratio = self.step(x, t, s, clean, ask, path, context, rng, weighted, event_dims)
            if clean.kick is not None:
                x = x + clean.kick
            if total is not None and ratio is not None:
                total = total + ratio
        return Sample(x, total, calls)


class Kernel(NamedTuple):
    """The Gaussian law of one step.

    Attributes:
        mean: `(*b, *event)`.
        std: of the independent noise, broadcastable against the mean.
        extra: `(factor, covariance)` of correlated noise drawn on top, or None.
    """

    mean: Tensor
    std: Tensor
    extra: tuple[Tensor, Covariance] | None


class GaussianSampler(Sampler):
    """A sampler whose step is a Gaussian kernel, affine in the clean mean."""

    @abstractmethod
    def kernel(
        self, x: Tensor, t: Tensor, s: Tensor, mean: Tensor, covariance: Covariance | None, path: Path, context: Context
    ) -> Kernel:
        """The law of `x_s` given `x_t = x` when the clean state has this mean and covariance."""

    def step(
        self, x: Tensor, t: Tensor, s: Tensor, clean: Clean, again: Callable[[Tensor, Tensor], Clean], path: Path,
        context: Context, rng: Rng, weighted: bool, event_dims: int,
    ) -> tuple[Tensor, Tensor | None]:
        """See `Sampler.step`. A noiseless step has no density; with weights it stays unguided."""
        prior = clean.unguided if weighted else None
        # The ratio of two laws with one covariance needs the mean's shift alone: weighted steps keep the prior's.
        covariance = clean.covariance if prior is None else prior.covariance
        centre, std, extra = self.kernel(x, t, s, clean.mean, covariance, path, context)
        noiseless = std <= 0
        if bool(noiseless.all()) and extra is None:
            if prior is not None:
                centre = self.kernel(x, t, s, prior.mean, covariance, path, context).mean
            return centre, None
        z = normal(rng, tuple(x.shape), dtype=x.dtype, device=x.device)
        moved = centre + std * z
        if extra is not None:
            if weighted:
                raise ValueError("steps with correlated noise have no importance weight here; use variance='upper' or "
                                 "'lower', or ask for no weights")
            factor, correlated = extra
            moved = moved + factor * correlated.draw(rng, tuple(x.shape), dtype=x.dtype, device=x.device)
        if prior is None:
            return moved, None
        unguided = self.kernel(x, t, s, prior.mean, covariance, path, context).mean
        shift = torch.where(noiseless, 0.0, (centre - unguided) / torch.where(noiseless, 1.0, std))
        events = tuple(range(-event_dims, 0))
        return moved, -(shift * z + 0.5 * shift.square()).sum(events)
