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
    """

    experiments: Tensor
    positions: Tensor
    values: Tensor
    variance: Tensor | None


def check_single_channel(space: Space, *, method: str) -> None:
    """Raise a CapabilityError unless the Space is one field on a grid."""
    if not space.grid or len(space.channels) != 1:
        raise CapabilityError(f"{method} works on one field on a grid; given {space!r}")


def patterns(observation: Observation, *, method: str, errors: bool = False) -> Iterator[Pattern]:
    """The values of an observation, by groups of experiments that observe at the same places.

    Args:
        observation: values with places.
        method: name for the messages.
        errors: whether error variances are wanted.

    Raises:
        CapabilityError: the operator does not know the places of its values, or their errors are not independent.
    """
    likelihood, y = observation
    places = likelihood.operator.positions
    if places is None:
        raise CapabilityError(
            f"{method} needs to know where each observed value is; {likelihood.operator!r} has no positions: observe "
            "with Mask, Stations or another operator on a Space with coordinates"
        )
    variance = None
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
        yield Pattern(rows, places[kind], values[rows][:, kind], part)


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
