"""Weights by name: those that ship with the package, and checkpoints of one's own.

A checkpoint says what kind it is; `load_pretrained` gives something ready to use. Nothing is downloaded.
"""

from __future__ import annotations

import os
from importlib import import_module
from pathlib import Path as FilePath
from typing import Any

import torch

from assimilate.errors import UnknownName, UserError
from assimilate.learning.checkpoint import CheckpointError, load_checkpoint, read_header

WEIGHTS = FilePath(__file__).parent / "weights"
"""Folder of the shipped weights."""

KINDS = {
    "field": "assimilate.learning.field:field_transition",
    "forecast": "assimilate.learning.forecast:regression_forecast",
    "prior": "assimilate.learning.prior:learned_prior",
    "transition": "assimilate.learning.transition:learned_transition",
    "window": "assimilate.learning.window:window_prior",
}
"""Kind of a checkpoint -> the function that makes something usable of it, imported when it is needed."""


def list_pretrained() -> dict[str, dict[str, Any]]:
    """The shipped weights: name -> kind, bytes, data and training record; no tensor is read.

    A file that cannot be read is listed with kind "unreadable" and the reason.
    """
    found: dict[str, dict[str, Any]] = {}
    for file in sorted(WEIGHTS.glob("*.safetensors")):
        try:
            header = read_header(file)
        except CheckpointError as error:
            found[file.stem] = {"kind": "unreadable", "bytes": file.stat().st_size, "error": str(error)}
            continue
        found[file.stem] = {
            "kind": header["kind"],
            "bytes": file.stat().st_size,
            "data": header["data"],
            "record": header["record"],
        }
    return found


def find_pretrained(name: str | os.PathLike[str]) -> FilePath:
    """The file of shipped weights, or of one's own checkpoint.

    Raises:
        UnknownName: neither a shipped name nor an existing file.
        UserError: a path where there is no file.
    """
    given = FilePath(name)
    if given.is_file():
        return given
    shipped = WEIGHTS / f"{name}.safetensors"
    if shipped.is_file():
        return shipped
    if given.suffix == ".safetensors" or len(given.parts) > 1:
        raise UserError(f"there is no checkpoint '{name}'; `assimilate fit CARD` trains what a card uses and writes it")
    names = [file.stem for file in WEIGHTS.glob("*.safetensors")]
    raise UnknownName("pretrained weights", str(name), names, "; or give the path of a checkpoint file")


def load_pretrained(name: str | os.PathLike[str], *, device: torch.device | str = "cpu") -> Any:
    """What a checkpoint holds, ready to use: a `LearnedTransition`, a `WindowPrior`...

    Args:
        name: name of shipped weights (`list_pretrained`), or the path of a checkpoint.
        device: where it goes.

    Raises:
        UnknownName: neither a shipped name nor an existing file.
        CheckpointError: the file is damaged, or of a kind that this version does not know.
    """
    file = find_pretrained(name)
    checkpoint = load_checkpoint(file, device=device)
    if checkpoint.kind not in KINDS:
        raise CheckpointError(f"{file} holds a {checkpoint.kind!r}; this version knows {', '.join(KINDS)}")
    module, _, attribute = KINDS[checkpoint.kind].partition(":")
    return getattr(import_module(module), attribute)(checkpoint)
