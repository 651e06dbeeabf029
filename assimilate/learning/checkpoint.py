"""Checkpoints: safetensors with a JSON header, never pickle.

A file holds named networks, named tensors and a header that says everything else:

    format, kind ("transition", "window", "denoiser"...), networks {name: architecture, settings}, space, path,
    constants (standardisation, dt, sampler...), data (what it was trained on), record (how), digest

so that loading runs no code from the file. A file is written beside its place and moved there when it is complete: it
is there whole or not at all. The digest is over all tensors; one flipped bit is an error.

References:
    safetensors, https://huggingface.co/docs/safetensors
"""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path as FilePath
from typing import Any

import torch
from torch import Tensor, nn

from assimilate.errors import DataError, UserError
from assimilate.learning.networks import Architectures, architecture_name, build_network
from assimilate.posterior.paths import VE, VP, FlowMatching, Interpolant, Path
from dynamics import Space

FORMAT = 1
_KEY = "assimilate"
_PATHS: dict[str, type[Path]] = {cls.__name__: cls for cls in (VP, VE, FlowMatching, Interpolant)}


class CheckpointError(UserError):
    """A checkpoint is missing, damaged, or not one of ours."""


@dataclass(frozen=True, eq=False)
class Checkpoint:
    """What a file holds.

    Attributes:
        kind: which class it belongs to, e.g. "transition".
        networks: named networks; each has `.settings`.
        tensors: further named tensors, e.g. stored states.
        space: what a state is.
        path: the Gaussian path it was trained on.
        constants: everything else that the class needs, as JSON can hold it.
        data: what it was trained on.
        record: how it was trained and what was measured.
    """

    kind: str
    networks: dict[str, nn.Module]
    tensors: dict[str, Tensor] = field(default_factory=dict)
    space: Space | None = None
    path: Path | None = None
    constants: dict[str, Any] = field(default_factory=dict)
    data: dict[str, Any] = field(default_factory=dict)
    record: dict[str, Any] = field(default_factory=dict)


def save_checkpoint(
    checkpoint: Checkpoint,
    file: str | os.PathLike[str],
    *,
    architectures: Architectures | None = None,
    half: bool = False,
) -> FilePath:
    """Write a checkpoint, whole or not at all.

    Args:
        checkpoint: what to write.
        file: where; the folder is made if need be.
        architectures: networks beyond the built-in ones, by name.
        half: whether weights of networks are stored in float16, in half the space; they are float32 when loaded.

    Returns:
        The path written.
    """
    tensors = {f"tensor.{name}": value for name, value in checkpoint.tensors.items()}
    networks = {}
    for name, network in checkpoint.networks.items():
        kind = architecture_name(network, architectures)
        settings: Any = network.settings
        networks[name] = {"architecture": kind, "settings": asdict(settings)}
        for key, value in network.state_dict().items():
            small = half and value.dtype == torch.float32 and value.ndim > 1
            tensors[f"network.{name}.{key}"] = value.half() if small else value
    header = {
        "kind": checkpoint.kind,
        "networks": networks,
        "space": None if checkpoint.space is None else json.loads(checkpoint.space.to_json()),
        "path": None if checkpoint.path is None else path_to_dict(checkpoint.path),
        "constants": checkpoint.constants,
        "data": checkpoint.data,
        "record": checkpoint.record,
    }
    return write_tensors(tensors, header, file)


def load_checkpoint(
    file: str | os.PathLike[str],
    *,
    device: torch.device | str = "cpu",
    architectures: Architectures | None = None,
    transforms: dict[str, type] | None = None,
) -> Checkpoint:
    """Read a checkpoint; its networks are in evaluation mode and ask for no gradients of their weights.

    Args:
        file: the file.
        device: where tensors go.
        architectures: networks beyond the built-in ones, by name.
        transforms: field transforms beyond the built-in ones, by name.

    Raises:
        CheckpointError: the file is missing, damaged, of a newer format, or its tensors do not fit its architecture.
    """
    tensors, header = read_tensors(file, device=device)
    networks = {}
    for name, entry in header["networks"].items():
        prefix = f"network.{name}."
        state = {key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)}
        try:
            network = build_network(entry["architecture"], entry["settings"], architectures)
            network.load_state_dict(state)
        except (ValueError, RuntimeError, KeyError) as error:
            raise CheckpointError(f"checkpoint {file}: network {name!r} cannot be rebuilt: {error}") from error
        networks[name] = network.to(device).requires_grad_(False).eval()
    space, path = header["space"], header["path"]
    return Checkpoint(
        kind=header["kind"],
        networks=networks,
        tensors={key.removeprefix("tensor."): value for key, value in tensors.items() if key.startswith("tensor.")},
        space=None if space is None else Space.from_json(json.dumps(space), transforms=transforms),
        path=None if path is None else path_from_dict(path),
        constants=header["constants"],
        data=header["data"],
        record=header["record"],
    )


def read_header(file: str | os.PathLike[str]) -> dict[str, Any]:
    """The JSON header alone; no tensor is read.

    Raises:
        CheckpointError: the file is missing, damaged, or not one of ours.
    """
    from safetensors import SafetensorError, safe_open

    if not FilePath(file).is_file():
        raise CheckpointError(f"no checkpoint at {file}")
    try:
        with safe_open(file, "pt") as opened:
            metadata = opened.metadata() or {}
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{file} is damaged or no safetensors file ({error}); fetch or train it again") from error
    if _KEY not in metadata:
        raise CheckpointError(f"{file} is a safetensors file of something else: it has no Assimilate header")
    header = json.loads(metadata[_KEY])
    if header["format"] > FORMAT:
        raise CheckpointError(
            f"{file} has format {header['format']}, this version reads up to {FORMAT}; update assimilate-da"
        )
    return header


def read_tensors(
    file: str | os.PathLike[str], *, device: torch.device | str = "cpu"
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """All tensors and the header, checked against the digest.

    Raises:
        CheckpointError: see `read_header`; also if the tensors are not those that were written.
    """
    from safetensors.torch import load_file

    header = read_header(file)
    tensors = load_file(file)
    if _digest(tensors) != header["digest"]:
        raise CheckpointError(f"{file} is damaged: its tensors are not those that were written; get it again")
    return {name: value.to(device) for name, value in tensors.items()}, header


def write_tensors(
    tensors: Mapping[str, Tensor], header: Mapping[str, Any], file: str | os.PathLike[str]
) -> FilePath:
    """Write tensors and a header: beside the place first, then moved there in one step."""
    from safetensors.torch import save

    file = FilePath(file)
    file.parent.mkdir(parents=True, exist_ok=True)
    # Clones: safetensors refuses tensors that share memory, and views would be written whole.
    plain = {name: value.detach().cpu().clone().contiguous() for name, value in tensors.items()}
    text = json.dumps({"format": FORMAT, "digest": _digest(plain), **header})
    content = save(plain, {_KEY: text})
    handle, temporary = tempfile.mkstemp(dir=file.parent, prefix=f".{file.name}.")
    try:
        with os.fdopen(handle, "wb") as out:
            out.write(content)
            out.flush()
            os.fsync(out.fileno())
        # mkstemp makes files that only the owner may read; shipped weights are for everyone.
        os.chmod(temporary, 0o644)
        os.replace(temporary, file)
    except OSError as error:
        FilePath(temporary).unlink(missing_ok=True)
        raise DataError(f"cannot write {file}: {error}") from error
    except BaseException:
        FilePath(temporary).unlink(missing_ok=True)
        raise
    return file


def path_to_dict(path: Path) -> dict[str, Any]:
    """A path's class name and settings."""
    settings: Any = path
    return {"name": type(path).__name__, "settings": asdict(settings)}


def path_from_dict(entry: Mapping[str, Any]) -> Path:
    """The inverse of `path_to_dict`.

    Raises:
        CheckpointError: a path that this version does not know.
    """
    if entry["name"] not in _PATHS:
        raise CheckpointError(f"the checkpoint was trained on the path {entry['name']!r}; known: {', '.join(_PATHS)}")
    settings = {key: tuple(value) if isinstance(value, list) else value for key, value in entry["settings"].items()}
    return _PATHS[entry["name"]](**settings)


def _digest(tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 over names, types, shapes and bytes, in the order of the names."""
    total = hashlib.sha256()
    for name in sorted(tensors):
        value = tensors[name].contiguous().cpu()
        total.update(f"{name}:{value.dtype}:{tuple(value.shape)};".encode())
        total.update(value.reshape(-1).view(torch.uint8).numpy().tobytes())
    return total.hexdigest()
