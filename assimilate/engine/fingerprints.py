"""Fingerprints: whether a run that goes on is the run that was begun.

A run is known by a few named marks: method, likelihood, seed, members and whatever else decides its numbers. Marks are
compared one by one, so that an error can name what differs. The observations have a chain of hashes, one for each time,

    h_k = sha256(h_{k-1}, time_k, observed values of time k)

which can stop at any time, go on from there, and does not depend on how the times were cut into chunks. The code of a
class of your own is not in the marks: after changing it, start anew.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import fields, is_dataclass
from functools import partial
from types import MethodType
from typing import Any

import numpy as np
import torch
import xarray as xr
from torch import Tensor, nn

from assimilate.engine.cycle import blocks

LONGEST = 48
"""Characters of a mark that are shown in an error."""


def digest(thing: Any) -> str:
    """Hash of settings, tensors and all that they hold, 16 hexadecimal digits; the same in another process."""
    total = hashlib.sha256()
    for piece in _pieces(thing):
        total.update(piece)
    return total.hexdigest()[:16]


def words_of(thing: Any) -> str:
    """`repr` without addresses in memory; a function by its name."""
    if isinstance(thing, type) or (callable(thing) and hasattr(thing, "__qualname__")):
        return f"{thing.__module__}.{thing.__qualname__}"
    return re.sub(r" at 0x[0-9a-fA-F]+", "", repr(thing))


def mark(thing: Any) -> str:
    """A thing in words and, since words leave out the numbers of large tensors, its digest."""
    words = words_of(thing)
    return f"{words if len(words) <= 400 else words[:400] + '...'} #{digest(thing)}"


def differences(begun: Mapping[str, str], now: Mapping[str, str]) -> str:
    """What differs between two sets of marks, in words; empty where nothing does."""
    said = []
    for name in dict.fromkeys([*begun, *now]):
        one, other = begun.get(name, "none"), now.get(name, "none")
        if one == other:
            continue
        short = max(len(one), len(other)) <= LONGEST
        said.append(f"{name} ({one} then, {other} now)" if short else name)
    return ", ".join(said)


def to_text(marks: Mapping[str, str]) -> str:
    """Marks as the attribute of a result."""
    return json.dumps(dict(marks), sort_keys=True)


def from_text(text: Any) -> dict[str, str] | None:
    """The inverse of `to_text`; None for text that is something else."""
    try:
        found = json.loads(text)
    except (TypeError, ValueError):
        return None
    return found if isinstance(found, dict) else None


def fixed_part(observations: xr.Dataset) -> str:
    """Hash of what the observations have for all times: places, instruments, names of variables and dims."""
    held: dict[str, Any] = {}
    for name, variable in observations.variables.items():
        moves = "time" in variable.dims
        sizes = {str(d): n for d, n in variable.sizes.items() if d != "time"}
        held[str(name)] = [str(variable.dtype), sizes] if moves else [sizes, variable.values]
    return digest({name: held[name] for name in sorted(held)})


def chained(observations: xr.Dataset, before: str) -> Iterator[str]:
    """The hashes of the times of a block, after `before`.

    Args:
        observations: with a `time` dim; read into memory.
        before: hash of the time before, "" at the start.
    """
    values = {
        str(name): np.ascontiguousarray(variable.transpose("time", ...).values)
        for name, variable in observations.variables.items()
        if "time" in variable.dims
    }
    for k in range(observations.sizes["time"]):
        total = hashlib.sha256(before.encode())
        for name in sorted(values):
            total.update(name.encode())
            total.update(_bytes(values[name][k]))
        before = total.hexdigest()
        yield before


def hash_of(observations: xr.Dataset, count: int | None = None) -> str:
    """Hash of the first `count` observations (default: all), read chunk by chunk."""
    some = observations.isel(time=slice(0, count))
    reached = ""
    for indices in blocks(some) if some.sizes["time"] else []:
        *_, reached = chained(some.isel(time=indices), reached)
    return reached


def marks_of_all(observations: xr.Dataset, seen: str) -> dict[str, str]:
    """The marks that a finished result has of its observations.

    Args:
        observations: all of them.
        seen: their hash.
    """
    return {"observations": seen, "times": str(observations.sizes["time"])}


def _pieces(thing: Any) -> Iterator[bytes]:
    """What a thing is made of, each piece led by its kind."""
    if isinstance(thing, Tensor):
        plain = thing.detach().cpu().contiguous()
        yield f"tensor {plain.dtype} {tuple(plain.shape)}".encode()
        yield plain.reshape(-1).view(torch.uint8).numpy().tobytes()
    elif isinstance(thing, np.ndarray | np.generic):
        array = np.asarray(thing)
        yield f"array {array.dtype} {array.shape}".encode()
        yield _bytes(np.ascontiguousarray(array))
    elif isinstance(thing, xr.Dataset):
        for name in sorted(map(str, thing.variables)):
            yield name.encode()
            yield from _pieces([list(map(str, thing[name].dims)), thing[name].values])
    elif isinstance(thing, xr.DataArray):
        yield from _pieces([list(map(str, thing.dims)), thing.values])
    elif isinstance(thing, nn.Module):
        yield words_of(thing).encode()
        yield from _pieces(thing.state_dict())
    elif isinstance(thing, MethodType):
        yield from _pieces([thing.__func__, thing.__self__])
    elif isinstance(thing, partial):
        yield from _pieces([thing.func, thing.args, thing.keywords])
    elif is_dataclass(thing) and not isinstance(thing, type):
        yield words_of(type(thing)).encode()
        for field in fields(thing):
            yield field.name.encode()
            yield from _pieces(getattr(thing, field.name))
    elif isinstance(thing, Mapping):
        yield f"mapping {len(thing)}".encode()
        for key, value in thing.items():
            yield from _pieces(key)
            yield from _pieces(value)
    elif isinstance(thing, list | tuple):
        yield f"{type(thing).__name__} {len(thing)}".encode()
        for value in thing:
            yield from _pieces(value)
    else:
        yield words_of(thing).encode()


def _bytes(array: np.ndarray) -> bytes:
    # Arrays of objects hold addresses; text says what they are.
    return repr(array.tolist()).encode() if array.dtype.kind == "O" else array.tobytes()
