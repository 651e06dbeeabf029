"""States of filters as trees: named tuples, tuples, lists, dicts and dataclasses with tensors at their ends.

A filter's state is its own affair, but whoever runs it must be able to do three things with any of them: take the
rows of some experiments, bring it into one form in memory, and write it to a file that holds no code. The one rule is
that tensors lead with the experiment; a tensor with another first size is shared by all.

    mapped(state, f)       the same state with f(tensor) for every tensor
    flattened(state)       what JSON can hold, and the tensors by name
    rebuilt(...)           the inverse
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields, is_dataclass, replace
from typing import Any

import torch
from torch import Tensor

from assimilate.errors import UserError


def mapped(state: Any, change: Callable[[Tensor], Tensor]) -> Any:
    """A state with every tensor changed; all else stays as it is."""
    if isinstance(state, Tensor):
        return change(state)
    if isinstance(state, tuple):
        values = [mapped(value, change) for value in state]
        return type(state)(*values) if hasattr(state, "_fields") else tuple(values)
    if isinstance(state, list):
        return [mapped(value, change) for value in state]
    if isinstance(state, dict):
        return {key: mapped(value, change) for key, value in state.items()}
    if is_dataclass(state) and not isinstance(state, type):
        return replace(state, **{f.name: mapped(getattr(state, f.name), change) for f in fields(state) if f.init})
    return state


def settled(state: Any) -> Any:
    """A state whose tensors own their memory and fill it without gaps, in whatever order of their dims.

    Kernels may round differently for another layout. A state that was read from a file has this one, so every state
    gets it, and a run that went on is the run that was never stopped. Views of larger tensors let go of them.
    """
    return mapped(state, lambda t: t if t.storage_offset() == 0 and _dense(t) else t.clone())


def _dense(tensor: Tensor) -> bool:
    return tensor.is_contiguous() or tensor.permute(_order(tensor)).is_contiguous()


def _order(tensor: Tensor) -> list[int]:
    """Dims from the slowest in memory to the fastest."""
    strides = tensor.stride()
    return sorted(range(tensor.ndim), key=lambda d: -strides[d])


def rows_of(state: Any, rows: Sequence[int], count: int) -> Any:
    """The state of some experiments.

    Args:
        state: of `count` experiments.
        rows: which ones, in the order wanted.
        count: tensors whose first size is this are taken apart, others are shared.
    """
    picks = list(rows)
    return mapped(state, lambda t: t[picks] if t.ndim and t.shape[0] == count else t)


def flattened(state: Any) -> tuple[Any, dict[str, Tensor]]:
    """A state as something that JSON can hold, and its tensors by name.

    Raises:
        UserError: the state holds an object that is none of those of the module, or of a class that cannot be found
            again by its name.
    """
    tensors: dict[str, Tensor] = {}

    def walk(value: Any) -> Any:
        if isinstance(value, Tensor):
            name, order = str(len(tensors)), _order(value)
            tensors[name] = value.permute(order)
            return {"tensor": name, "order": order, "device": value.device.type != "cpu"}
        if value is None or isinstance(value, bool | int | float | str):
            return value
        if isinstance(value, tuple) and hasattr(value, "_fields"):
            return {"class": _name_of(type(value)), "values": {n: walk(getattr(value, n)) for n in value._fields}}
        if isinstance(value, tuple | list):
            return {"tuple" if isinstance(value, tuple) else "list": [walk(v) for v in value]}
        if isinstance(value, dict):
            return {"dict": [[walk(k), walk(v)] for k, v in value.items()]}
        if is_dataclass(value) and not isinstance(value, type):
            values = {f.name: walk(getattr(value, f.name)) for f in fields(value) if f.init}
            return {"class": _name_of(type(value)), "values": values}
        raise UserError(
            f"a state with a {type(value).__name__} cannot be written to a file; expected tensors, numbers, text, "
            "None, and tuples, lists, dicts, named tuples or dataclasses of them"
        )

    return walk(state), tensors


def rebuilt(structure: Any, tensors: Mapping[str, Tensor], device: torch.device) -> Any:
    """The state that `flattened` took apart, in the same order in memory; what was not on the CPU goes to `device`.

    Raises:
        UserError: a class of the state is not there any more.
    """
    if not isinstance(structure, dict):
        return structure
    if "tensor" in structure:
        stored, order = tensors[structure["tensor"]], structure["order"]
        tensor = stored.permute([order.index(d) for d in range(len(order))])
        return tensor.to(device) if structure["device"] else tensor
    if "class" in structure:
        values = {name: rebuilt(value, tensors, device) for name, value in structure["values"].items()}
        return _class_of(structure["class"])(**values)
    if "dict" in structure:
        return {rebuilt(k, tensors, device): rebuilt(v, tensors, device) for k, v in structure["dict"]}
    ((kind, values),) = structure.items()
    made = [rebuilt(value, tensors, device) for value in values]
    return tuple(made) if kind == "tuple" else made


def _name_of(kind: type) -> str:
    name = f"{kind.__module__}:{kind.__qualname__}"
    if _found(name) is not kind:
        raise UserError(
            f"a state of class {kind.__qualname__} cannot be found again by its name: define the class at the top "
            "level of a module"
        )
    return name


def _class_of(name: str) -> type:
    kind = _found(name)
    if kind is None or not (is_dataclass(kind) or (issubclass(kind, tuple) and hasattr(kind, "_fields"))):
        raise UserError(f"the state was of class {name}, which is not there any more; start anew")
    return kind


def _found(name: str) -> type | None:
    """A class by its name, in modules that are loaded already: a file must not make anything run."""
    module, _, path = name.partition(":")
    found: Any = sys.modules.get(module)
    for part in path.split("."):
        found = getattr(found, part, None)
    return found if isinstance(found, type) else None
