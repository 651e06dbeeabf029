r"""One system with many values of its parameters: every row of a batch is moved with its own.

    x_i -> step of the system with the values p_i,     x (*b, *event),  p {name: (*b, 1, ..., 1) or (*b, 1, *grid)}

A system says how in one method,

    def with_parameters(self, values): return replace(self, **values)

if its formulas are elementwise, so that values with the dims of an event behind the rows broadcast against the states.
Systems without that method are tried once, in this order, against the system built with plain numbers:

    event   the attributes become tensors `(*b, 1, ..., 1)`: elementwise formulas (Lorenz-96, double well)
    rows    tensors `(*b,)`: formulas that take the state apart into components first (Lorenz-63)
    loop    one row after the other, each with a system of its own: what works for every class, one call a row
            (Navier-Stokes, whose weights are made from its viscosity)

The first that gives the same numbers is used. The checks that a class makes of its settings when it is built are made
for the first guess in the first two cases, for every row in the last.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping
from dataclasses import dataclass, fields, is_dataclass, replace
from functools import cached_property
from typing import Any, Literal, Protocol, runtime_checkable

import torch
from torch import Tensor

from dynamics.base import Dynamics, TransitionDensity
from dynamics.covariance import Covariance
from dynamics.errors import CapabilityError
from dynamics.labels import nearest_name
from dynamics.random import Position, Rng, Streams

Values = Mapping[str, Tensor]
"""Parameters by name, `(*b, 1, ..., 1)` for one number a row, `(*b, 1, *grid)` for a field."""
Layout = Literal["own", "event", "rows", "loop"]
_AGREEMENT = 1e-9
"""Largest relative difference of two ways of computing one step in float64; a wrong way misses by far more."""
_SOME = ((0, 1), (1, 2))
"""Rows of the trial that are computed alone."""
_WRONG = (RuntimeError, TypeError, ValueError, IndexError, AttributeError)
"""What a system raises that was given its parameters in a way that it does not take."""


@runtime_checkable
class Parametrised(Protocol):
    """A declared capability: every row of a batch can have its own parameters."""

    def with_parameters(self, values: Values) -> Dynamics:
        """The system that moves row i with the values of row i; see the module for their shapes."""
        ...


@dataclass(frozen=True, eq=False)
class Family:
    """A system as a function of some of its parameters.

    Args:
        dynamics: the system.
        trial: values of the parameters that the system takes, for two experiments of three members, all different,
            float64; the way they are given is chosen with them.

    Raises:
        ValueError: the system has no such parameter.
    """

    dynamics: Dynamics
    trial: Values

    def __post_init__(self) -> None:
        """Check the names."""
        if isinstance(self.dynamics, Parametrised):
            return
        known = parameter_names(self.dynamics)
        for name in self.trial:
            if name not in known:
                raise ValueError(
                    f"{type(self.dynamics).__name__} has no parameter {name!r}; it has {sorted(known)}"
                    f"{nearest_name(name, known)}"
                )

    @cached_property
    def layout(self) -> Layout:
        """How the system takes its parameters; see the module.

        Raises:
            CapabilityError: none of the ways gives the numbers of the system itself.
        """
        if isinstance(self.dynamics, Parametrised):
            return "own"
        streams = Streams(0, 2, 3)
        x = self.dynamics.prior((2, 3), rng=streams.at(0), dtype=torch.float64)
        with torch.no_grad():
            plain = [
                self._alone((e, n)).step(x[e, n][None, None], 0.0, rng=Streams(0, (e,), (n,), 1))[0, 0]
                for e, n in _SOME
            ]
        layouts: tuple[Layout, ...] = ("event", "rows", "loop")
        for layout in layouts:
            try:
                with torch.no_grad():
                    moved = self._call(layout, "step", (x,), self.trial, 0.0, rng=streams.at(1))
            except _WRONG:
                continue
            if tuple(moved.shape) == tuple(x.shape) and all(
                _close(moved[at], expected) for at, expected in zip(_SOME, plain, strict=True)
            ):
                return layout
        raise CapabilityError(
            f"{type(self.dynamics).__name__} does not take {sorted(self.trial)} as tensors: give it a method "
            "with_parameters(values) that returns the system in which row i has the values of row i"
        )

    @cached_property
    def has_density(self) -> bool:
        """Whether there is a transition density, with one covariance whatever the values."""
        if not isinstance(self.dynamics, TransitionDensity):
            return False
        x = self.dynamics.prior((2, 3), rng=Streams(0, 2, 3).at(0), dtype=torch.float64)
        first, second = (self._alone(at).moments(x[at][None, None], 0.0)[1].diagonal() for at in _SOME)
        return torch.equal(first, second)

    def step(self, x: Tensor, values: Values, time: float, *, rng: Rng | None) -> Tensor:
        """One step of rows `(*b, *event)`, each with its own values."""
        return self._call(self.layout, "step", (x,), values, time, rng=rng)

    def moments(self, x: Tensor, values: Values, time: float) -> tuple[Tensor, Covariance]:
        """Mean and covariance of the next state, of a system that `has_density`."""
        return self._call(self.layout, "moments", (x,), values, time)

    def log_prob(self, x_next: Tensor, x: Tensor, values: Values, time: float) -> Tensor:
        """Log transition density, `(*b,)`."""
        return self._call(self.layout, "log_prob", (x_next, x), values, time)

    # ---------------------------------------------------------------------------------------------- inside

    def _call(
        self, layout: Layout, method: str, states: tuple[Tensor, ...], values: Values, time: float, **rng: Any
    ) -> Any:
        if layout == "loop":
            return self._each(method, states, values, time, **rng)
        lead = tuple(states[0].shape[: states[0].ndim - len(self.dynamics.space.event_shape)])
        return getattr(self._system(layout, values, lead), method)(*states, time, **rng)

    def _system(self, layout: Layout, values: Values, lead: tuple[int, ...]) -> Any:
        """The system with these values; in a loop, of one row."""
        if isinstance(self.dynamics, Parametrised):
            return self.dynamics.with_parameters(values)
        if layout == "loop":
            return rebuilt(self.dynamics, {name: _single(value) for name, value in values.items()})
        if layout == "rows":
            values = {name: value.reshape(lead) for name, value in values.items()}
        return assigned(self.dynamics, values)

    def _each(self, method: str, states: tuple[Tensor, ...], values: Values, time: float, **rng: Any) -> Any:
        """One row after the other."""
        event = self.dynamics.space.event_shape
        lead = tuple(states[0].shape[: states[0].ndim - len(event)])
        flat = [x.reshape(-1, *event) for x in states]
        given = {name: value.reshape(math.prod(lead), *value.shape[len(lead) :]) for name, value in values.items()}
        whole = rng.get("rng")
        served = whole.position.draws[0] if isinstance(whole, Streams) else 0
        found = []
        for i in range(math.prod(lead)):
            system = self._system("loop", {name: value[i] for name, value in given.items()}, ())
            own = {"rng": _stream_of_row(whole, lead, i, served)} if "rng" in rng else {}
            found.append(getattr(system, method)(*(x[i][None, None] for x in flat), time, **own))
            drawn = own.get("rng")
        # The draws of a row are draws of all: the next one of all must not repeat their numbers.
        while isinstance(whole, Streams) and isinstance(drawn, Streams) and whole.position.draws < drawn.position.draws:
            whole.position.advance()
        if method != "moments":
            return torch.cat(found).reshape(*lead, *found[0].shape[2:])
        return torch.cat([mean for mean, _ in found]).reshape(*lead, *event), found[0][1]

    def _alone(self, place: tuple[int, int]) -> Any:
        """The system of one row of the trial, with plain numbers where it takes them."""
        values = {name: value[place] for name, value in self.trial.items()}
        if isinstance(self.dynamics, Parametrised):
            return self.dynamics.with_parameters({name: value[None, None] for name, value in values.items()})
        return rebuilt(self.dynamics, {k: float(v) if v.numel() == 1 else v for k, v in values.items()})


def parameter_names(dynamics: Any) -> set[str]:
    """The attributes of a system that could have other values."""
    if is_dataclass(dynamics):
        return {entry.name for entry in fields(dynamics) if entry.init}
    return {name for name in vars(dynamics) if not name.startswith("_")}


def assigned(dynamics: Any, values: Mapping[str, Any]) -> Any:
    """A copy of a system with other values of some attributes, without the checks made when it is built."""
    made = copy.copy(dynamics)
    if is_dataclass(dynamics):
        # Whatever was derived from the old values must be derived again; the Space has nothing to do with them.
        kept = {entry.name for entry in fields(dynamics)} | {"space"}
        for name in [name for name in vars(made) if name not in kept]:
            del made.__dict__[name]
    made.__dict__.update(values)
    return made


def rebuilt(dynamics: Any, values: Mapping[str, Any]) -> Any:
    """A system built anew with other values of some attributes."""
    if is_dataclass(dynamics) and not isinstance(dynamics, type):
        return replace(dynamics, **values)
    return assigned(dynamics, values)


def _single(value: Tensor) -> Tensor:
    """One number as a tensor without dims; a field `(1, *grid)` as it is."""
    return value.reshape(()) if value.numel() == 1 else value


def _close(a: Tensor, b: Tensor) -> bool:
    return bool(((a - b).abs() <= _AGREEMENT * (1 + b.abs().max())).all())


def _stream_of_row(rng: Rng | None, lead: tuple[int, ...], i: int, served: int) -> Rng | None:
    """The random numbers of row i: those that it has when all rows are moved at once.

    Args:
        rng: of all rows.
        lead: leading dims of the rows.
        i: number of the row.
        served: draws that `rng` has served before the step.
    """
    if not isinstance(rng, Streams):
        return rng
    if rng.antithetic:
        raise CapabilityError("mirrored random numbers belong to all members at once: give with_parameters(values)")
    if lead != rng.rows:
        raise ValueError(f"states have the rows {lead}; the random streams are of {rng.rows}")
    e, n = divmod(i, lead[1])
    experiment = e if isinstance(rng.experiments, int) else rng.experiments[e]
    member = n if isinstance(rng.members, int) else rng.members[n]
    return replace(rng, experiments=(experiment,), members=(member,), position=Position([served]))
