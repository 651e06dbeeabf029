"""What a smoother is: an immutable set of settings that turns a whole window of observations into trajectories.

    trajectories, info = smoother.solve(observations, times, members, rng=rng)

`times` has K entries; trajectories are `(experiment, member, time, *event)`, one state for each. The state at
`times[0]` has the law of the dynamics' prior unless it is known; it may be observed like any other.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, NamedTuple, Protocol, runtime_checkable

from torch import Tensor

from assimilate.filters.base import Exactness
from dynamics.random import Rng, Streams
from observations.likelihood import Observation


class SmootherInfo(NamedTuple):
    """What a solution tells besides its trajectories.

    Attributes:
        log_evidence: `(E,)`, log p of all observed values in their own units; NaN where the method has no estimate.
        ess: `(E,)`, effective number of trajectories.
        mean: `(E, K, *event)`, the marginal means where the method knows them better than its members do; else None.
        std: `(E, K, *event)`, their standard deviations; else None.
    """

    log_evidence: Tensor
    ess: Tensor
    mean: Tensor | None = None
    std: Tensor | None = None


@runtime_checkable
class Smoother(Protocol):
    """The contract of a smoother. `name` is the usual name of the method, `exactness` as for a filter."""

    name: ClassVar[str]
    exactness: ClassVar[Exactness]

    def solve(
        self,
        observations: Sequence[Observation | None],
        times: Sequence[float],
        members: int,
        *,
        rng: Rng,
        initial: Tensor | None = None,
    ) -> tuple[Tensor, SmootherInfo]:
        """Draws from the law of the trajectory given all observations.

        Args:
            observations: one for each time (None: nothing observed); y is `(*obs)` or `(E, 1, *obs)`.
            times: K increasing times, in the time unit of the dynamics.
            members: number N of trajectories.
            rng: `Streams` with rows `(E, N)`, or a generator.
            initial: `(E, *event)`, the state at `times[0]` where it is known.

        Returns:
            Trajectories `(E, N, K, *event)` and what is known about them.
        """
        ...


def check_window(observations: Sequence[Observation | None], times: Sequence[float]) -> None:
    """Raise a ValueError unless there is one observation (or None) for each of the increasing times."""
    if len(observations) != len(times) or not times:
        raise ValueError(
            f"{len(observations)} observations were given for {len(times)} times; expected one (or None) for each"
        )
    if any(after <= before for before, after in zip(times[:-1], times[1:], strict=True)):
        raise ValueError("times do not increase")


def count_experiments(observations: Sequence[Observation | None], rng: Rng, initial: Tensor | None) -> int:
    """The number of experiments that a window speaks of: of `initial`, else of the streams, else of the values."""
    if initial is not None:
        return initial.shape[0]
    if isinstance(rng, Streams):
        return rng.rows[0]
    leads = [o.y.shape[0] for o in observations if o is not None and o.y.ndim > len(o.likelihood.operator.obs_shape)]
    return max(leads, default=1)
