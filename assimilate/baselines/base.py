"""What a baseline is: an estimate of a field from the observations of one time, or from none.

    estimate = baseline.estimate(observation, time)        mean (E, *event), std (E, *event) or None

There is no forecast and no ensemble. A baseline with a `std` claims a Gaussian of that spread in every cell; one
without claims nothing, and its CRPS is its absolute error. Baselines that move members (`PersistenceFilter`,
`ClimatologyFilter`) are filters.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import ClassVar, NamedTuple, Protocol, runtime_checkable

import torch
from torch import Tensor

from assimilate.filters.base import Exactness
from assimilate.filters.departures import observed_values
from dynamics.errors import CapabilityError
from dynamics.space import Space
from observations.base import ObservationOperator
from observations.likelihood import Observation


class Estimate(NamedTuple):
    """A field and its uncertainty, in Space units.

    Attributes:
        mean: `(E, *event)`; NaN where the method has no estimate, 0 at no-data cells.
        std: `(E, *event)`, standard deviation of a Gaussian in each cell; None for a deterministic method.
    """

    mean: Tensor
    std: Tensor | None


@runtime_checkable
class Baseline(Protocol):
    """The contract of a baseline: a frozen dataclass. `name` is the usual name, `exactness` as for a filter."""

    name: ClassVar[str]
    exactness: ClassVar[Exactness]

    @property
    def space(self) -> Space:
        """What an estimate is."""
        ...

    def estimate(self, observation: Observation | None, time: float) -> Estimate:
        """The field at `time`.

        Args:
            observation: what was seen, y `(*obs)` or `(E, 1, *obs)`; None: nothing.
            time: in the time unit of the experiment.
        """
        ...


class Pattern(NamedTuple):
    """Experiments that observe at the same places.

    Attributes:
        experiments: `(k,)` int64, their indices.
        positions: `(m, n_dims)` float64, places of the values they observe.
        values: `(k, m)`, what they observe.
        variance: `(m,)` float64, error variances of these values; None where it was not asked for.
        channels: `(m,)` int64, the channel of the state that each value belongs to.
    """

    experiments: Tensor
    positions: Tensor
    values: Tensor
    variance: Tensor | None
    channels: Tensor

    def of(self, channel: int) -> Pattern:
        """The values of one channel."""
        kept = self.channels == channel
        variance = None if self.variance is None else self.variance[kept]
        return Pattern(self.experiments, self.positions[kept], self.values[:, kept], variance, self.channels[kept])


def check_grid(space: Space, *, method: str) -> None:
    """Raise a CapabilityError unless the fields of the Space are on a grid."""
    if not space.grid:
        raise CapabilityError(f"{method} works on fields on a grid; given {space!r}")


def channels_of(operator: ObservationOperator) -> Tensor:
    """The channel that each observed value belongs to, `(m,)` int64.

    It is the one whose indicator (1 in this channel, 0 in the others) is observed as 1 there, and all others' as 0.

    Raises:
        CapabilityError: a value mixes channels, or is no mean of values of the state.
    """
    event = operator.event_shape
    if event[0] == 1:
        return torch.zeros(operator.obs_size, dtype=torch.int64)
    indicator = torch.eye(event[0], dtype=torch.float64).reshape(event[0], event[0], *[1] * (len(event) - 1))
    seen = operator(indicator.expand(event[0], *event)).reshape(event[0], -1)
    channels = seen.argmax(0)
    error = (seen - torch.nn.functional.one_hot(channels, event[0]).mT).abs().amax(0)
    if operator.available is not None:
        error = error[operator.available.flatten()]
    if bool((error > 1e-6).any()):
        raise CapabilityError(
            f"{operator!r} has values that are of no single channel of the state; observe with Mask, Stations or "
            "another operator that reads each field by itself"
        )
    return channels


def patterns(observation: Observation, *, method: str, errors: bool = False) -> Iterator[Pattern]:
    """The values of an observation, by groups of experiments that observe at the same places.

    Args:
        observation: values with places.
        method: name for the messages.
        errors: whether error variances are wanted.

    Raises:
        CapabilityError: the operator does not know the places of its values, their errors are not independent, or a
            value belongs to no single channel.
    """
    likelihood, y = observation
    places = likelihood.operator.positions
    if places is None:
        raise CapabilityError(
            f"{method} needs to know where each observed value is; {likelihood.operator!r} has no positions: observe "
            "with Mask, Stations or another operator on a Space with coordinates"
        )
    variance = None
    channels = channels_of(likelihood.operator).to(y.device)
    if errors:
        if not getattr(likelihood.noise, "diagonal", True):
            raise CapabilityError(f"{method} needs errors that are independent; the noise has a full covariance")
        variance = likelihood.noise.variance(places.shape[0], dtype=torch.float64, device=y.device)
    count = experiments_of(observation)
    values = y.reshape(count, -1)
    observed = observed_values(observation, values)
    kinds, members = torch.unique(observed, dim=0, return_inverse=True)
    places = places.to(y.device)
    for index, kind in enumerate(kinds):
        rows = (members == index).nonzero().squeeze(-1)
        part = None if variance is None else variance[kind]
        yield Pattern(rows, places[kind], values[rows][:, kind], part, channels[kind])


def experiments_of(observation: Observation | None) -> int:
    """The number of experiments that an observation speaks of; 1 for y of shape `(*obs)` or none."""
    if observation is None:
        return 1
    lead = observation.y.ndim - len(observation.likelihood.operator.obs_shape)
    return observation.y.shape[0] if lead else 1


def without_no_data(field: Tensor, space: Space) -> Tensor:
    """`field` `(E, *event)` with 0 at the no-data cells of the Space."""
    if space.mask is None:
        return field
    return field.masked_fill(torch.from_numpy(space.mask.copy()).to(field.device), 0.0)
