"""How many samples are computed together: as many as a memory budget holds.

    bytes of one sample  ~  kept * (bytes that the network's layers put out for one image)  +  40 images

One forward pass with one image counts what the layers put out. A solver that differentiates through the network keeps
all of it, with what the functions between the layers keep and what the backward pass makes: `kept = 3`. Otherwise
layers are freed as they are done: `kept = 0.5`. The 40 images are the states and work arrays of a solver.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from assimilate.posterior.denoisers import Prior

BUDGET = 4e9
"""Bytes for samples computed together; with the rest of the program this stays under 8 GB."""
_WORK = 40


def samples_at_once(
    prior: Prior,
    event_shape: tuple[int, ...],
    *,
    backpropagates: bool,
    dtype: torch.dtype,
    device: torch.device | str = "cpu",
    budget: float = BUDGET,
) -> int:
    """The number of samples that the budget holds, at least 1.

    Args:
        prior: whose network is counted; an exact prior has none.
        event_shape: of the image.
        backpropagates: whether the solver differentiates through the network.
        dtype: of the images.
        device: where the prior lives.
        budget: bytes.
    """
    image = math.prod(event_shape) * torch.finfo(dtype).bits // 8
    shape = event_shape if len(event_shape) == len(prior.event_shape) else (event_shape[0], *event_shape[-2:])
    slices = math.prod(event_shape) // math.prod(shape)
    layers = slices * layer_bytes(prior, shape, dtype=dtype, device=device)
    one = (3.0 if backpropagates else 0.5) * layers + _WORK * image
    return max(1, int(budget // one))


def layer_bytes(
    prior: Prior, event_shape: tuple[int, ...], *, dtype: torch.dtype, device: torch.device | str = "cpu"
) -> int:
    """Bytes that the innermost layers of a prior's networks put out for one image; 0 without a network."""
    total = 0

    def count(_module: nn.Module, _inputs: Any, output: Any) -> None:
        nonlocal total
        total += sum(t.numel() * t.element_size() for t in _tensors(output))

    networks = list(_networks(prior, set()))
    if not networks:
        return 0
    leaves = [part for network in networks for part in network.modules() if not any(True for _ in part.children())]
    hooks = [leaf.register_forward_hook(count) for leaf in leaves]
    try:
        with torch.no_grad():
            noisy = torch.zeros(1, 1, *event_shape, dtype=dtype, device=device)
            prior(noisy, torch.as_tensor(float(prior.spread), dtype=dtype, device=device))
    finally:
        for hook in hooks:
            hook.remove()
    return total


def _networks(owner: Any, seen: set[int]) -> Iterator[nn.Module]:
    """The modules that a prior or its wrapper holds."""
    if id(owner) in seen:
        return
    seen.add(id(owner))
    if isinstance(owner, nn.Module):
        yield owner
        return
    for held in vars(owner).values() if hasattr(owner, "__dict__") else ():
        if isinstance(held, nn.Module) or (callable(held) and hasattr(held, "event_shape")):
            yield from _networks(held, seen)


def _tensors(output: Any) -> Iterator[Tensor]:
    if isinstance(output, Tensor):
        yield output
    elif isinstance(output, tuple | list):
        for part in output:
            yield from _tensors(part)
