"""From the [[method]] tables of a card to objects that run: classes, settings, and the dynamics they move with."""

from __future__ import annotations

from dataclasses import dataclass, fields, is_dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import xarray as xr
from torch import Tensor

from assimilate import registry
from assimilate.cards.card import Card, Method
from assimilate.cards.instruments import quality_of
from assimilate.cards.problem import Problem
from assimilate.cards.sources import located
from assimilate.engine.cycle import values_of
from assimilate.engine.network import Network
from assimilate.errors import CardError, UserError, suggestion
from assimilate.experiment import child_seed
from assimilate.posterior.windows import WindowPrior
from assimilate.quality import Quality, controls_of
from dynamics.base import Dynamics
from dynamics.random import Rng, Streams
from dynamics.space import Space
from observations.likelihood import Observation


def transition_of(entry: Method, where: str, folder: Path | None = None, device: torch.device | str = "cpu") -> Any:
    """What a method moves with: a learned transition (or window prior), or a system; None for the truth's own."""
    if entry.transition is not None:
        from assimilate.learning.pretrained import load_pretrained

        return variant_of(load_pretrained(located(entry.transition, folder), device=device), entry.variant, where)
    if entry.dynamics is not None:
        return registry.build("dynamics", entry.dynamics.spec(), f"{where}.dynamics")
    return None


def variant_of(made: Any, variant: str, where: str) -> Any:
    """A learned transition in the form that the card asks for; see `Method.variant`."""
    from assimilate.learning.window import WindowDenoiser

    if isinstance(made, WindowDenoiser):
        made = made.prior()
    if variant == "learned":
        return made
    from assimilate.learning.transition import LearnedTransition

    if not isinstance(made, LearnedTransition):
        raise CardError(f'{where}: variant = "{variant}" needs a transition with a forecast, not {type(made).__name__}')
    if variant == "gaussian":
        return made.gaussian()
    from assimilate.learning.published import PublishedTransition

    # The paper's noise is 1 in units of the state's standard deviation.
    std = made.forecast.standardisation.std
    return PublishedTransition(made, noise=sum(std) / len(std))


def method_of(
    problem: Problem,
    entry: Method,
    where: str,
    *,
    folder: Path | None = None,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
) -> Any:
    """The method of a card, ready to run.

    The class is given what it accepts of: `dynamics` (or `prior`, for smoothers), the `space` of the state, and, for
    presets that fit themselves, the list of all `observations`.

    Raises:
        UserError: an unknown class or setting, or dynamics that do not fit the state.
    """
    spec = {"type": entry.type, **entry.settings()}
    moved = transition_of(entry, where, folder, device) or problem.dynamics
    if moved is not None:
        moved = on_grid(moved, problem.space, where)
        if dtype == torch.float64 and entry.transition is not None:
            if isinstance(moved, WindowPrior):
                raise CardError(f"{where}: a window prior runs in float32 only; leave out --dtype float64")
            moved = moved.to(dtype=dtype)
    factory, _ = registry.check("method", spec, where)
    accepted = registry.settings_of(factory)
    given: dict[str, Any] = {"space": problem.space}
    # The prior of a smoother is the dynamics of a filter; where a class has both, its prior is another setting.
    argument = "dynamics" if "dynamics" in accepted else "prior"
    if moved is not None:
        given[argument] = moved
    if "observations" in accepted:
        given["observations"] = observation_list(problem)
    if argument in accepted and argument not in given:
        raise CardError(f"{where}: {entry.type} needs 'transition' or 'dynamics'")
    registry.check("method", spec, where, given=given)
    return registry.build("method", spec, where, **given)


def observation_list(problem: Problem) -> list[Observation]:
    """All observations of a problem, for methods that fit their settings to them."""
    times = range(problem.observations.sizes["time"])
    seen = (problem.observations.isel(time=k).load() for k in times)
    if isinstance(problem.likelihood, Network):
        seen = (now for now in map(problem.likelihood.seen, seen) if now.data_vars)
    quality = quality_of(problem.card)
    return [_observation(problem, now, quality) for now in seen]


def _observation(problem: Problem, now: xr.Dataset, quality: Quality | None) -> Observation:
    """What is seen at one time, without values outside the card's gross limits: no fit should follow those."""
    rule = problem.likelihood
    likelihood = rule(now) if isinstance(rule, Network) else rule
    y = values_of(now, likelihood, problem.experiments).float()
    if quality is None:
        return Observation(likelihood, y)
    size = likelihood.operator.obs_size
    names = rule.rows(now).instrument if isinstance(rule, Network) else np.full(size, "")
    flat = y.reshape(-1, size).clone()
    for here, control in controls_of(quality, names):
        if control.gross is not None:
            wrong = torch.from_numpy(here) & ((flat < control.gross[0]) | (flat > control.gross[1]))
            flat.masked_fill_(wrong, torch.nan)
    return Observation(likelihood, flat.reshape(y.shape))


def on_grid(dynamics: Any, space: Space, where: str) -> Any:
    """Dynamics whose Space is that of the problem; a learned one that runs on any grid is moved there.

    Raises:
        UserError: the variables, units or grid differ.
    """
    own = dynamics.space
    if own == space:
        return dynamics
    kinds = [[(f.units, repr(f.transform), len(s.grid)) for f in s.fields] for s in (own, space)]
    if kinds[0] != kinds[1]:
        raise UserError(f"{where}: the dynamics are of {own!r}, the state is {space!r}")
    if is_dataclass(dynamics) and not isinstance(dynamics, type) and "space" in {f.name for f in fields(dynamics)}:
        return replace(dynamics, space=space)
    if own.event_shape != space.event_shape:
        raise UserError(
            f"{where}: the dynamics have a grid of {own.grid_shape} cells, the state one of {space.grid_shape}"
        )
    return Relabelled(dynamics, space)


@dataclass(frozen=True)
class Relabelled:
    """Dynamics on the same number of cells as the data, with the data's coordinates.

    Args:
        dynamics: the system.
        space: the labels of its states.
    """

    dynamics: Dynamics
    space: Space

    @property
    def dt(self) -> float:
        """Length of a step."""
        return self.dynamics.dt

    def prior(self, shape: tuple[int, ...], *, rng: Rng, **place: Any) -> Tensor:
        """See `Dynamics.prior`."""
        return self.dynamics.prior(shape, rng=rng, **place)

    def step(self, x: Tensor, time: float, *, rng: Rng | None) -> Tensor:
        """See `Dynamics.step`."""
        return self.dynamics.step(x, time, rng=rng)


def initial_prior(problem: Problem, members: int, seed: int, dtype: torch.dtype) -> Tensor | None:
    """Members from the prior that the card names, of a system or a learned transition; None for the method's own."""
    initial = problem.card.initial
    if initial.transition is not None:
        from assimilate.learning.pretrained import load_pretrained

        where, system = "initial.transition", load_pretrained(initial.transition)
    elif initial.dynamics is not None:
        where = "initial.dynamics"
        system = registry.build("dynamics", initial.dynamics.spec(), where)
    else:
        return None
    system = on_grid(system, problem.space, where)
    rng = Streams(child_seed(seed, "prior"), problem.experiments, members).at(0)
    return system.prior((problem.experiments, members), rng=rng, dtype=dtype)


def check_labels(card: Card) -> list[str]:
    """Labels of the methods, each different; the class's usual name is the default.

    Raises:
        CardError: two methods have the same label, or an expected score names none of them.
    """
    labels: list[str] = []
    for entry in card.method:
        label = entry.label or str(getattr(registry.resolve("method", entry.type), "name", entry.type))
        if label in labels:
            raise CardError(f"two methods are called '{label}'; give them different labels")
        labels.append(label)
    for k, wanted in enumerate(card.expected):
        for name in (wanted.method, wanted.relative_to):
            # Scores of one task are checked with the card of that task: it may have methods of its own.
            if wanted.task is None and name is not None and name not in labels:
                raise CardError(f"expected[{k}]: there is no method '{name}'{suggestion(name, labels)}")
    return labels
