r"""A filter whose model takes shorter steps where an observation falls between its own.

    from t to t' = t + 2.4 dt:    3 steps of 0.8 dt,    the longest up to dt of which a whole number arrives

The filter is the same one with other dynamics for that stretch (`dynamics.substepping`), so that everything it does
with a step, its noise, its inflation by time, its guided transition, knows the length of the step. Where the
observations come at whole steps nothing is changed, to the last bit.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

from torch import Tensor

from assimilate.errors import UserError
from assimilate.filters.base import Exactness, Filter, Info
from assimilate.memo import Memo
from dynamics.base import Dynamics
from dynamics.random import Rng
from dynamics.substepping import step_that_reaches, with_dt
from observations.likelihood import Observation


@dataclass(frozen=True)
class Substepped:
    """A filter with a model that can be divided.

    Args:
        method: a filter that is a dataclass with a field `dynamics`, and whose state has a `time`.

    Raises:
        UserError: `method` is no such filter.
        CapabilityError: in `step`, the model cannot be divided, and would have to be.
    """

    method: Filter[Any]
    _memo: Memo = field(default_factory=lambda: Memo(8), init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        """Check the method."""
        if not isinstance(self.method, Filter) or "dynamics" not in getattr(self.method, "__dataclass_fields__", {}):
            raise UserError(
                f"{type(self.method).__name__} cannot take shorter steps: expected a filter that is a dataclass with "
                'dynamics; use the schedule "nearest"'
            )

    @property
    def name(self) -> str:  # type: ignore[override]
        """That of the filter."""
        return self.method.name

    @property
    def exactness(self) -> Exactness:  # type: ignore[override]
        """That of the filter."""
        return self.method.exactness

    @property
    def dynamics(self) -> Dynamics:
        """Those of the filter, with their own step."""
        return self.method.dynamics

    def init(self, members: Tensor, time: float = 0.0) -> Any:
        """See `Filter.init`."""
        return self.method.init(members, time)

    def step(self, state: Any, observation: Observation | None, time: float, *, rng: Rng) -> tuple[Any, Info]:
        """See `Filter.step`."""
        return self.between(float(state.time), time).step(state, observation, time, rng=rng)

    def ensemble(self, state: Any) -> tuple[Tensor, Tensor]:
        """See `Filter.ensemble`."""
        return self.method.ensemble(state)

    def between(self, start: float, end: float) -> Filter[Any]:
        """The filter for the stretch from `start` to `end`."""
        method: Any = self.method
        length = step_that_reaches(self.dynamics, start, end)
        if length == self.dynamics.dt:
            return self.method
        return self._memo.get(length, lambda: replace(method, dynamics=with_dt(method.dynamics, length)))
