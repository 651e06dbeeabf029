r"""A learned transition of fields: one denoiser in unit space, with the covariance of what it leaves open.

    D(x_1 + rho z, rho, x_{k-1}) -> m,    V_ij = s_i s_j r_rho(|i - j|)

m is the clean mean, s the root of the network's own variance in every cell, and r_rho the isotropic correlation of the
residual `x_1 - m`, measured on simulated fields at some noise levels and tabulated by lag. At a high level V is the
covariance of the field itself, so the Gaussian update with V is optimal interpolation; lower down the network knows
more than any covariance, and V shrinks to what is left.

The previous state enters as a condition of the network: the field and a channel of ones, or zeros in both where it is
not known. So the same network is the transition `p(x_k | x_{k-1})` and the prior `p(x_k)`, and it runs on any grid with
cells of the size that it was trained on. Along the path it starts from the previous state, as FlowDAS does.

Shapes: states `(*b, 1, rows, columns)`, conditions `(*b, 2, rows, columns)`.
"""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from assimilate.baselines.base import without_no_data
from assimilate.learning.checkpoint import Checkpoint
from assimilate.learning.denoiser import EDMDenoiser
from assimilate.learning.first_guess import FirstGuess
from assimilate.posterior.covariance import Isotropic, Modulated
from assimilate.posterior.paths import Interpolant
from assimilate.posterior.predictors import Clean, Context, OnPath
from assimilate.posterior.samplers import Renoise, Sampler
from assimilate.posterior.transition import draw
from dynamics import Rng, Space

LEVELS = (5.0, 3.0, 2.0, 1.4, *(0.2 ** (k / 11) for k in range(12)))
"""Noise levels for log(1 + mm) of rain, chosen on simulated storms: few where little is decided, then 1 to 0.2."""


@dataclass(frozen=True, eq=False)
class CorrelatedDenoiser:
    """An EDM denoiser whose belief has a correlated covariance; a `Denoiser`.

    Args:
        denoiser: with a variance output, one channel.
        ratios: noise levels of the table, increasing, `(levels,)`.
        correlation: residual correlation at whole lags, `(levels, lags)`, 1 at lag 0.
    """

    denoiser: EDMDenoiser
    ratios: Tensor
    correlation: Tensor

    def __call__(self, noisy: Tensor, ratio: Tensor, condition: Tensor | None = None) -> Clean:
        """The belief about the clean field; `ratio` is one level for all samples, `()`."""
        clean = self.denoiser(noisy, ratio, condition)
        if not isinstance(clean.covariance, Isotropic):
            raise ValueError("a correlated covariance needs a denoiser with a variance output (variance=True)")
        correlation = self.at(float(ratio)).to(noisy)
        return clean._replace(covariance=Modulated(clean.covariance.variance.sqrt(), correlation))

    def at(self, ratio: float) -> Tensor:
        """The correlation at a noise level, linear in its logarithm between those of the table, `(lags,)`."""
        logs = torch.log(self.ratios)
        place = min(max(math.log(ratio), float(logs[0])), float(logs[-1]))
        upper = int(torch.searchsorted(logs, torch.tensor(place, dtype=logs.dtype)).clamp(1, len(logs) - 1))
        share = (place - float(logs[upper - 1])) / float(logs[upper] - logs[upper - 1])
        return (1 - share) * self.correlation[upper - 1] + share * self.correlation[upper]


@dataclass(frozen=True, eq=False)
class FieldTransition:
    """The learned transition as a `Dynamics` and a `GenerativeTransition`.

    Args:
        space: what a state is; one field on a two-dimensional grid. Another grid: `replace(transition, space=...)`.
        dt: time between states, in the units of the time axis.
        denoiser: see the module docstring.
        path: from the previous state to the next.
        sampler: how a state is drawn.
        levels: noise levels of a draw, decreasing, units of the state; one predictor call each.
        memory: whether the previous state is told to the network. Without it the transition is the prior of a single
            state, which is right where states so far apart in time say little of each other.
        floor: least value that a state can have (0 for rain); draws below it are set to it. None: any value.
        guess: what is made of gauges before anything is drawn (`GaugeFlowDAS`); None: nothing.
        data: what it was trained on.
        record: how it was trained and what was measured.
    """

    space: Space
    dt: float
    denoiser: CorrelatedDenoiser = field(repr=False)
    path: Interpolant = Interpolant()
    sampler: Sampler = Renoise()
    levels: tuple[float, ...] = LEVELS
    memory: bool = True
    floor: float | None = None
    guess: FirstGuess | None = None
    data: dict[str, Any] = field(default_factory=dict, repr=False)
    record: dict[str, Any] = field(default_factory=dict, repr=False)

    @property
    def predictor(self) -> OnPath:
        """The denoiser on the path."""
        return OnPath(self.denoiser, self.path, largest=float(self.denoiser.ratios[-1]))

    @property
    def times(self) -> Tensor:
        """The time grid of a draw, `(levels + 1,)`."""
        return torch.tensor([*(self.path.time(level) for level in self.levels), 1.0]).double()

    def context(self, x: Tensor, time: float) -> Context:
        """The previous state as base and condition."""
        if not self.memory:
            return self.prior_context(x)
        return Context(x, torch.cat([x, torch.ones_like(x)], -3))

    def prior_context(self, x: Tensor) -> Context:
        """No previous state: with it the transition is the prior of a single state."""
        return Context(torch.zeros_like(x), torch.cat([torch.zeros_like(x)] * 2, -3))

    def admissible(self, x: Tensor) -> Tensor:
        """`x` with values below the floor set to it and 0 at the no-data cells."""
        return without_no_data(x if self.floor is None else x.clamp_min(self.floor), self.space)

    def prior(
        self,
        shape: tuple[int, ...],
        *,
        rng: Rng,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ) -> Tensor:
        """States without a past, drawn by the sampler."""
        x = torch.zeros(*shape, *self.space.event_shape, dtype=dtype, device=device)
        return self.admissible(draw(self, x, 0.0, event_dims=3, rng=rng, context=self.prior_context(x)).x)

    def step(self, x: Tensor, time: float, *, rng: Rng | None) -> Tensor:
        """A draw of the next state; with `rng=None` the network's mean without any noisy state."""
        if rng is None:
            start = torch.zeros((), dtype=x.dtype, device=x.device)
            with torch.no_grad():
                return self.admissible(self.predictor(x, start, self.context(x, time)).mean)
        return self.admissible(draw(self, x, time, event_dims=3, rng=rng).x)

    def to(self, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> FieldTransition:
        """A copy on another device or in another precision."""
        inner = self.denoiser
        moved = CorrelatedDenoiser(
            copy.deepcopy(inner.denoiser).to(device=device, dtype=dtype),
            inner.ratios.to(device=device),
            inner.correlation.to(device=device, dtype=dtype),
        )
        guess = self.guess
        if guess is not None and guess.network is not None:
            guess = replace(guess, network=copy.deepcopy(guess.network).to(device=device, dtype=dtype))
        return replace(self, denoiser=moved, guess=guess)

    def to_checkpoint(self) -> Checkpoint:
        """What a file holds of it."""
        inner = self.denoiser
        networks = {"denoiser": inner.denoiser.network}
        if self.guess is not None and self.guess.network is not None:
            networks["guess"] = self.guess.network
        return Checkpoint(
            kind="field",
            networks=networks,
            tensors={"ratios": inner.ratios, "correlation": inner.correlation},
            space=self.space,
            path=self.path,
            constants={
                "dt": self.dt,
                "sigma_data": inner.denoiser.sigma_data,
                "levels": list(self.levels),
                "memory": self.memory,
                "floor": self.floor,
                "guess": None if self.guess is None else self.guess.settings,
            },
            data=self.data,
            record=self.record,
        )


def field_transition(checkpoint: Checkpoint) -> FieldTransition:
    """The transition that a checkpoint of kind "field" holds."""
    constants, space, path = dict(checkpoint.constants), checkpoint.space, checkpoint.path
    assert space is not None and isinstance(path, Interpolant)
    # Files written before there were first guesses say nothing of them.
    settings = constants.pop("guess", None)
    guess = None if settings is None else FirstGuess(checkpoint.networks.get("guess"), **settings)
    denoiser = EDMDenoiser(
        checkpoint.networks["denoiser"], event_dims=3, sigma_data=constants.pop("sigma_data"), variance=True
    )
    return FieldTransition(
        space=space,
        denoiser=CorrelatedDenoiser(
            denoiser.eval(), checkpoint.tensors["ratios"], checkpoint.tensors["correlation"]
        ),
        path=path,
        levels=tuple(constants.pop("levels")),
        guess=guess,
        data=checkpoint.data,
        record=checkpoint.record,
        **constants,
    )
