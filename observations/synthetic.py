"""Synthetic observations of a known truth: a Dataset in, a Dataset out.

    y_k = H(x_k) + noise,    one random stream per experiment and time

The numbers at a time do not depend on the other times or experiments, nor on how the truth is chunked.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from dynamics.labels import leading_dims
from dynamics.random import Streams
from dynamics.space import Space, SpaceMismatch
from observations.base import ObservationOperator
from observations.likelihood import Likelihood

if TYPE_CHECKING:
    import xarray as xr


def observe(
    truth: xr.Dataset,
    space: Space,
    likelihood: Likelihood | Mapping[str, Likelihood],
    *,
    seed: int,
    every: int = 1,
    times: Sequence[Any] | np.ndarray | None = None,
    dtype: torch.dtype = torch.float32,
) -> xr.Dataset:
    """Observations of a truth.

    Args:
        truth: states with dims `time` and perhaps `experiment`; may be dask-backed, time then goes through chunk by
            chunk.
        space: Space of the states.
        likelihood: operator and noise; or one for each instrument, `{name: likelihood}`.
        seed: seed of the noise.
        every: observe at the times of the truth number 0, every, 2 every, ...
        times: times at which to observe, instead of `every`; each must be a time of the truth.
        dtype: float32 or float64.

    Returns:
        Dataset with a variable for each instrument (a single one is called "observation"), dims `(experiment, time,
        <instrument>_value)`, or `<instrument>_0, ...` for values of several dims; NaN = not observed. Places of the
        values are coordinates; operator and noise are in the attributes.

    Raises:
        SpaceMismatch: the truth does not fit the Space, has an ensemble or no time, or lacks one of `times`.
    """
    import xarray as xr

    instruments = {"observation": likelihood} if isinstance(likelihood, Likelihood) else dict(likelihood)
    roles = leading_dims(truth, exclude={dim for entry in space.fields for dim in entry.dims})
    if "member" in roles or "time" not in roles:
        raise SpaceMismatch(f"truth has the leading dims {list(roles.values())}; expected (time) or (experiment, time)")
    time = roles["time"]
    chosen = _chosen_times(truth, time, every, times)
    experiments = truth.sizes[roles["experiment"]] if "experiment" in roles else 1
    streams = Streams(seed, experiments=experiments, members=1)
    values: dict[str, list[torch.Tensor]] = {name: [] for name in instruments}
    for block in _blocks(truth, time, chosen):
        states = space.to_tensor(truth.isel({time: block}), dtype=dtype)
        states = states if "experiment" in roles else states.unsqueeze(0)
        for place, index in enumerate(block):
            rng = streams.at(int(index))
            for name, instrument in instruments.items():
                values[name].append(instrument.sample(states[:, place].unsqueeze(1), rng=rng)[:, 0])
    lead = (*(["experiment"] if "experiment" in roles else []), "time")
    coords: dict[str, Any] = {"time": _coordinate(truth, time, chosen, {"standard_name": "time"})}
    if "experiment" in roles:
        coords["experiment"] = _coordinate(truth, roles["experiment"], np.arange(experiments), {})
    variables = {}
    for name, instrument in instruments.items():
        array = torch.stack(values[name], 1)
        array = array if "experiment" in roles else array[0]
        dims = value_dims(name, instrument.operator)
        attrs = {"operator": repr(instrument.operator), "noise": repr(instrument.noise), **_units(space, instrument)}
        variables[name] = xr.Variable((*lead, *dims), array.numpy(), attrs)
        coords.update(_places(space, name, instrument.operator, dims))
    return xr.Dataset(variables, coords, {"seed": seed})


def value_dims(name: str, operator: ObservationOperator) -> tuple[str, ...]:
    """Names of the dimensions of an instrument's values in a Dataset."""
    count = len(operator.obs_shape)
    return (f"{name}_value",) if count == 1 else tuple(f"{name}_{axis}" for axis in range(count))


def _chosen_times(truth: xr.Dataset, time: str, every: int, times: Any) -> np.ndarray:
    if times is None:
        if every < 1:
            raise ValueError(f"every={every}; expected 1 or more")
        return np.arange(0, truth.sizes[time], every)
    axis = truth[time].values
    wanted = np.asarray(times)
    index = np.abs(axis[None] - wanted[:, None]).argmin(1) if wanted.size else np.zeros(0, dtype=np.int64)
    # Model times are multiples of dt summed in floating point: a millionth of the spacing is not another time.
    spacing = np.abs(np.diff(axis)).min() if axis.size > 1 else np.abs(axis[0] - axis[0])
    apart = np.abs(axis[index] - wanted) > spacing * 1e-6
    if apart.any():
        raise SpaceMismatch(f"time {wanted[int(np.argmax(apart))]} is not a time of the truth, {axis[0]} to {axis[-1]}")
    return np.asarray(index)


def _blocks(truth: xr.Dataset, time: str, chosen: np.ndarray) -> list[np.ndarray]:
    """The chosen times, split where the dask chunks of the truth end."""
    lengths = truth.chunksizes.get(time)
    if lengths is None:
        return [chosen] if chosen.size else []
    chunk = np.searchsorted(np.cumsum(lengths), chosen, side="right")
    edges = np.flatnonzero(np.diff(chunk)) + 1
    return [block for block in np.split(chosen, edges) if block.size]


def _coordinate(truth: xr.Dataset, dim: str, index: np.ndarray, labels: dict[str, str]) -> xr.Variable:
    import xarray as xr

    name = {"trajectory": "experiment"}.get(dim, dim)
    values = truth[dim].values[index] if dim in truth.coords else index
    attrs = dict(truth[dim].attrs) if dim in truth.coords else {}
    return xr.Variable(("time" if "standard_name" in labels else name,), values, {**labels, **attrs})


def _units(space: Space, likelihood: Likelihood) -> dict[str, str]:
    """The units of the values, where the operator is linear and all fields share theirs."""
    fields = {(entry.units, repr(entry.transform)) for entry in space.fields}
    if not likelihood.linear or len(fields) > 1:
        return {}
    units, transform = next(iter(fields))
    return {"units": units} if transform == "Identity()" else {"units": f"{transform} of {units}"}


def _places(space: Space, name: str, operator: ObservationOperator, dims: tuple[str, ...]) -> dict[str, Any]:
    import xarray as xr

    positions = operator.positions
    if positions is None:
        return {}
    out = {}
    for axis, label in enumerate(space.position_names):
        values = positions[:, axis].reshape(operator.obs_shape).numpy()
        out[f"{name}_{label}"] = xr.Variable(dims, values, space.coords[label].attributes)
    return out
