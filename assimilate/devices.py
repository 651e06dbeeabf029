"""Where tensors live, and what a reader is told of it."""

from __future__ import annotations

import os

import torch

from assimilate.errors import UserError


def find_device(name: str | torch.device) -> torch.device:
    """The device of a name.

    Raises:
        UserError: it is not there.
    """
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        there = ["cpu", *(f"cuda:{k}" for k in range(torch.cuda.device_count()))]
        raise UserError(f"device '{name}' is not there; this machine has {', '.join(there)}") from error
    return device


def device_in_words(device: torch.device) -> str:
    """What a reader wants to know of where the computation ran; no machine's name."""
    if device.type == "cuda":
        return f"GPU: {torch.cuda.get_device_name(device)}"
    return f"CPU, {torch.get_num_threads()} of {os.cpu_count()} threads"
