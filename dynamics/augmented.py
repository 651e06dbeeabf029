r"""Unknown parameters as a part of the state: x = (model state, parameters), so that any method estimates both.

    (s, u)  ->  (one step of the system with the parameters T^-1(u),  u moved as `parameters.py` says)

Every member runs with its own values, all in one batched call (`parametrised.py`). What is observed is the model
state; an analysis changes parameters by what the ensemble knows of their covariance with it.

Each parameter is one more field of the Space: a scalar beside scalars (Lorenz-63 with rho: event `(4,)`), on a grid one
number in every cell (Lorenz-96 with its forcing: `(2, 40)`). So nothing else has to know of parameters:

* Datasets hold them in their own units, with `units` and `long_name`; a positive one is a logarithm in tensors and
  can never become negative;
* a local method (LETKF) updates each cell's copy with the observations near it. The next step of the model takes the
  mean over the grid, which is the estimate: spatial updating (Aksoy et al. 2006). It uses the observations of each
  neighbourhood one at a time, so its spread is wider than that of a global method; a parameter that is one number has
  no localisation of its own;
* where the parameter is a field (`Parameter.length`), cells keep their own values.

A constant parameter loses its spread with every analysis, and a particle filter its last different value. Three ways
to keep some: a `walk`, whose variance grows; a `memory`, with which it stays that of the prior; or, for parameters that
are constant, `RegularisedFilter(..., moved="all", shrinkage=True)`: kernels whose centres are drawn to the mean so that
mean and variance are kept (Liu and West 2001, there on the parameters alone).

References:
    Jazwinski (1970), Stochastic processes and filtering theory, Academic Press, section 8.4 (augmented state)
    Aksoy, Zhang, Nielsen-Gammon (2006), Ensemble-based simultaneous state and parameter estimation in a
    two-dimensional sea-breeze model, https://doi.org/10.1175/MWR3224.1
    Liu, West (2001), Combined parameter and state estimation in simulation-based filtering,
    https://doi.org/10.1007/978-1-4757-3437-9_10
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from dynamics.augmented_covariance import AugmentedCovariance
from dynamics.base import Dynamics
from dynamics.covariance import Covariance
from dynamics.errors import SpaceMismatch
from dynamics.labels import leading_dims, nearest_name
from dynamics.parameters import Parameter, ParameterLaw
from dynamics.parametrised import Family
from dynamics.random import Rng, Streams, normal
from dynamics.space import Space

if TYPE_CHECKING:
    import xarray as xr


@dataclass(frozen=True)
class Augmented:
    """A system whose unknown parameters are part of its state.

    Args:
        dynamics: the system; its own values of the parameters are not used. Its prior is drawn with them, though.
        parameters: what is unknown; in a card, tables of the settings of `Parameter`.

    Raises:
        ValueError: no parameter, one that the system has not, a name that the state has already, or a setting that is
            out of its range.

    It is a `TransitionDensity` if the system is one whose noise does not depend on the parameters, and it knows the
    moments of its prior if the system does. The extended and the unscented Kalman filter take the first, and the Kalman
    filter where the step is linear in state and parameters together. Variational methods need gradients only: give the
    background of the whole state.
    """

    dynamics: Dynamics
    parameters: tuple[Parameter, ...]

    def __post_init__(self) -> None:
        """Check the parameters, and take over what the system can do."""
        given = [self.parameters] if isinstance(self.parameters, Parameter | Mapping) else self.parameters
        object.__setattr__(self, "parameters", tuple(Parameter.of(one) for one in given))
        if not self.parameters:
            raise ValueError("an Augmented system needs at least one Parameter")
        names = [one.name for one in self.parameters]
        fields = [entry.name for entry in self.dynamics.space.fields]
        for name in names:
            if names.count(name) > 1 or name in fields:
                raise ValueError(f"two variables are called {name!r}: the state has {fields}, the parameters {names}")
        _ = self.laws, self.family
        # Capabilities are asked for by attribute, so they are there only where the system has them.
        if self.family.has_density:
            object.__setattr__(self, "moments", self._moments)
            object.__setattr__(self, "log_prob", self._log_prob)
        if hasattr(self.dynamics, "prior_moments"):
            object.__setattr__(self, "prior_moments", self._prior_moments)

    @property
    def dt(self) -> float:
        """The system's step."""
        return self.dynamics.dt

    @cached_property
    def space(self) -> Space:
        """The system's fields and one for each parameter, on the same grid."""
        inner = self.dynamics.space
        mask = None
        if inner.mask is not None:
            # Parameters have no value where nothing of the state has one.
            shared = np.broadcast_to(inner.mask.all(0), (len(self.parameters), *inner.grid_shape))
            mask = np.concatenate([inner.mask, shared])
        return replace(inner, fields=(*inner.fields, *(one.field(inner.grid) for one in self.parameters)), mask=mask)

    @cached_property
    def laws(self) -> tuple[ParameterLaw, ...]:
        """The laws of the parameters on the grid."""
        return tuple(ParameterLaw(one, self.dynamics.space, self.dt) for one in self.parameters)

    @cached_property
    def family(self) -> Family:
        """The system as a function of the parameters."""
        numbers = Streams(0, 2, 3)
        parts = []
        for law in self.laws:
            # Near the guess, where the system takes them; different in every row even if the parameter is known.
            std = law.std or 0.1 * (1 + abs(law.parameter.centre))
            z = law.coloured(normal(numbers, (2, 3, law.numbers), dtype=torch.float64))
            parts.append(law.parameter.centre + 0.1 * std * z)
        return Family(self.dynamics, self._values(torch.stack(parts, -2)))

    # ---------------------------------------------------------------------------------------------- states

    def state(self, x: Tensor) -> Tensor:
        """The model's part of states `(*b, *event)`, for its own Space."""
        return x.narrow(self._lead(x), 0, self._channels)

    def values(self, x: Tensor) -> dict[str, Tensor]:
        """The parameters of states `(*b, *event)` in their own units: `(*b,)`, or `(*b, *grid)` for a field."""
        found = self._values(self._numbers(x))
        lead = tuple(x.shape[: self._lead(x)])
        return {name: value.reshape(*lead, *value.shape[len(lead) + 1 :]) if value.shape[len(lead) :].numel() > 1
                else value.reshape(lead) for name, value in found.items()}  # fmt: skip

    def extend(self, state: Tensor, *, rng: Rng) -> Tensor:
        """States of the model `(*b, *event of the model)` with parameters drawn from their prior laws."""
        event = self.dynamics.space.event_shape
        lead = tuple(state.shape[: state.ndim - len(event)])
        if tuple(state.shape[len(lead) :]) != event:
            raise SpaceMismatch(f"states of shape {tuple(state.shape)} were given; expected (*b, *{event})")
        z = self._normal(rng, lead, state, self.laws)
        return self._joined(state, torch.stack([law.drawn(z[law.parameter.name]) for law in self.laws], -2))

    def labelled(self, states: xr.Dataset, **values: Any) -> xr.Dataset:
        """A Dataset of the model's states with parameters added, such as a truth with its true parameters.

        Args:
            states: the model's fields, with any leading dims.
            values: numbers or DataArrays over some of the dims, in the parameters' units; default: the guesses.

        Raises:
            SpaceMismatch: there is no such parameter, or a field is missing.
        """
        import xarray as xr

        names = [one.name for one in self.parameters]
        for name in values:
            if name not in names:
                raise SpaceMismatch(f"there is no parameter {name!r}; there are {names}{nearest_name(name, names)}")
        first = self.dynamics.space.fields[0].name
        if first not in states:
            raise SpaceMismatch(f"the Dataset has no variable {first!r}; it has {list(states.data_vars)}")
        whole = states[first]
        kept = {*leading_dims(whole).values(), *self.dynamics.space.grid}
        like = xr.zeros_like(whole.isel({dim: 0 for dim in whole.dims if dim not in kept}, drop=True))
        fields = self.space.fields[len(self.dynamics.space.fields) :]
        added = {}
        for one, entry in zip(self.parameters, fields, strict=True):
            added[one.name] = (like + values.get(one.name, one.guess)).transpose(*like.dims)
            added[one.name].attrs = entry.attributes
        return states.assign(added)

    # ---------------------------------------------------------------------------------------------- dynamics

    def with_dt(self, dt: float) -> Augmented:
        """The same system with steps of another length; walks keep their variance per time.

        Raises:
            CapabilityError: the step of the system cannot be divided.
        """
        from dynamics.substepping import with_dt

        share = math.sqrt(dt / self.dt)
        parameters = tuple(replace(one, walk=share * one.walk) for one in self.parameters)
        return replace(self, dynamics=with_dt(self.dynamics, dt), parameters=parameters)

    def prior(
        self,
        shape: tuple[int, ...],
        *,
        rng: Rng,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ) -> Tensor:
        """Draws of the system's prior and, independently, of the parameters'."""
        return self.extend(self.dynamics.prior(shape, rng=rng, dtype=dtype, device=device), rng=rng)

    def step(self, x: Tensor, time: float, *, rng: Rng | None) -> Tensor:
        """One step of the system, each row with its own parameters, and of the parameters."""
        numbers = self._numbers(x)
        moved = self.family.step(self.state(x), self._values(numbers), time, rng=rng)
        return self._joined(moved, self._changed(numbers, rng))

    def _moments(self, x: Tensor, time: float) -> tuple[Tensor, AugmentedCovariance]:
        """Mean and covariance of the next state."""
        numbers = self._numbers(x)
        mean, covariance = self.family.moments(self.state(x), self._values(numbers), time)
        return self._joined(mean, self._changed(numbers, None)), self._covariance(
            covariance, [law.shock for law in self.laws]
        )

    def _log_prob(self, x_next: Tensor, x: Tensor, time: float) -> Tensor:
        """Log transition density, `(*b,)`; a parameter that is one number counts once."""
        numbers = self._numbers(x)
        total = self.family.log_prob(self.state(x_next), self.state(x), self._values(numbers), time)
        residual = self._numbers(x_next) - self._changed(numbers, None)
        for index, law in enumerate(self.laws):
            total = total + law.log_density(residual[..., index, :], law.shock)
        return total

    def _prior_moments(
        self, *, dtype: torch.dtype = torch.float64, device: torch.device | str = "cpu"
    ) -> tuple[Tensor, AugmentedCovariance]:
        """Mean and covariance of the prior."""
        mean, covariance = self.dynamics.prior_moments(dtype=dtype, device=device)  # type: ignore[attr-defined]
        cells = math.prod(self.dynamics.space.grid_shape)
        centres = torch.tensor([one.centre for one in self.parameters], dtype=dtype, device=device)
        whole = self._joined(mean, centres.unsqueeze(-1).expand(-1, cells))
        return whole, self._covariance(covariance, [law.std for law in self.laws])

    def _covariance(self, covariance: Covariance, stds: list[float]) -> AugmentedCovariance:
        return AugmentedCovariance(covariance, self.laws, tuple(stds), self.space.event_shape)

    # ---------------------------------------------------------------------------------------------- inside

    @property
    def _channels(self) -> int:
        """Channels of the model's state."""
        return self.dynamics.space.event_shape[0]

    def _lead(self, x: Tensor) -> int:
        """The number of leading dims of states; a SpaceMismatch if they are no states."""
        event = self.space.event_shape
        lead = x.ndim - len(event)
        if lead < 0 or tuple(x.shape[lead:]) != event:
            raise SpaceMismatch(f"states of shape {tuple(x.shape)} were given; expected (*b, *{event})")
        return lead

    def _numbers(self, x: Tensor) -> Tensor:
        """Parameters in tensor units, `(*b, P, n)` for n cells; one number for the grid is the mean over its copies."""
        lead = self._lead(x)
        each = x.narrow(lead, self._channels, len(self.parameters))
        each = each.reshape(*each.shape[: lead + 1], -1)
        if each.shape[-1] == 1:
            return each
        cells = self._cells.to(x.device)
        parts = []
        for index, law in enumerate(self.laws):
            u = each[..., index, :]
            if law.single:
                # Departures from the first copy: equal copies stay what they are to the last bit.
                first = u[..., cells[:1]]
                u = (first + (u[..., cells] - first).mean(-1, keepdim=True)).expand_as(u)
            parts.append(u)
        return torch.stack(parts, -2)

    def _values(self, numbers: Tensor) -> dict[str, Tensor]:
        """Parameters in their own units, `(*b, 1, ..., 1)` or `(*b, 1, *grid)`, from `(*b, P, n)`."""
        grid = self.dynamics.space.grid_shape
        found = {}
        for index, law in enumerate(self.laws):
            u = numbers[..., index, :]
            shape = (1,) * (1 + len(grid)) if law.single else (1, *grid)
            u = u[..., self._cells[:1].to(u.device)] if law.single else u
            found[law.parameter.name] = law.parameter.working.inverse(u.reshape(*u.shape[:-1], *shape))
        return found

    def _changed(self, numbers: Tensor, rng: Rng | None) -> Tensor:
        """The parameters after a step, `(*b, P, n)`; None for no noise."""
        parts = [law.moved(numbers[..., index, :]) for index, law in enumerate(self.laws)]
        noisy = [law for law in self.laws if law.shock > 0]
        if rng is not None and noisy:
            z = self._normal(rng, tuple(numbers.shape[:-2]), numbers, noisy)
            parts = [
                part + law.shock * law.coloured(z[law.parameter.name]) if law.shock > 0 else part
                for part, law in zip(parts, self.laws, strict=True)
            ]
        return torch.stack(parts, -2)

    def _normal(self, rng: Rng, lead: tuple[int, ...], like: Tensor, laws: Any) -> dict[str, Tensor]:
        """Standard normal numbers for some parameters, `(*b, numbers)` each, in one draw."""
        sizes = [law.numbers for law in laws]
        z = normal(rng, (*lead, sum(sizes)), dtype=like.dtype, device=like.device)
        return dict(zip([law.parameter.name for law in laws], z.split(sizes, -1), strict=True))

    def _joined(self, state: Tensor, numbers: Tensor) -> Tensor:
        """States from the model's `(*b, C, *grid)` and the parameters' `(*b, P, n)`; 0 at no-data cells."""
        grid = self.dynamics.space.grid_shape
        each = numbers.to(state).reshape(*numbers.shape[:-1], *grid)
        if self.space.mask is not None:
            each = each.masked_fill(torch.from_numpy(self.space.mask[self._channels :].copy()).to(state.device), 0.0)
        return torch.cat([state, each], state.ndim - 1 - len(grid))

    @cached_property
    def _cells(self) -> Tensor:
        """Flat indices of the cells in which parameters have values."""
        mask = self.space.mask
        if mask is None:
            return torch.arange(math.prod(self.dynamics.space.grid_shape))
        return torch.from_numpy(np.flatnonzero(~mask[self._channels]))
