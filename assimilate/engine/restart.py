"""Runs that survive a kill: finished parts and checkpoints beside the result, until it is whole.

    analysis.nc.unfinished/
        part-000000.safetensors ...     analyses of consecutive times, about `BLOCK_BYTES` each
        checkpoint.safetensors          state and weights after analysis k, analyses since the last part, marks
        earlier.safetensors             the checkpoint before
    analysis.nc                         appears when everything is there, in one step

A reader never sees half a result, and nothing is ever changed in place: HDF5 files that are killed while they grow can
be lost. Every file is written beside its place, flushed to the disk and moved there; a checkpoint follows the parts it
counts. So whenever the process is killed, the newest checkpoint and its parts are whole. If it is damaged all the same
the one before serves. Random numbers need no state: analysis k draws from `Streams(seed, E, N).at(k)`.

Parts end where their analyses reach `BLOCK_BYTES`, whenever checkpoints are made, and a checkpoint holds the analyses
of the part that is not full: a run that was resumed makes the same parts from the same tensors.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
import xarray as xr
from torch import Tensor

from assimilate.engine.divergence import Running
from assimilate.engine.fingerprints import differences, from_text, hash_of, marks_of_all
from assimilate.engine.results import Slice
from assimilate.engine.states import flattened, rebuilt
from assimilate.errors import UserError
from assimilate.storage import flush, put_in_place

SUFFIXES = (".nc", ".zarr")
PARTS = "members in parts"
"""Mark of what the parts hold."""
CHECKPOINT, EARLIER = "checkpoint.safetensors", "earlier.safetensors"


class Reached(NamedTuple):
    """How far a run is.

    Attributes:
        running: what the next analysis needs.
        held: analyses since the last part.
        done: number of analyses made.
        parts: number of parts written.
        weighted: whether any stored analysis had unequal weights.
        seconds: spent in the method.
        seen: hash of the observations so far, see `assimilate.engine.fingerprints`.
    """

    running: Running
    held: tuple[Slice, ...] = ()
    done: int = 0
    parts: int = 0
    weighted: bool = False
    seconds: float = 0.0
    seen: str = ""


class Journal:
    """The folder beside a result in which an unfinished run is kept.

    Args:
        out: the result, `.nc` or `.zarr`.

    Raises:
        UserError: another suffix, or Zarr is not installed.
    """

    def __init__(self, out: str | Path) -> None:
        self.out = Path(out)
        if self.out.suffix not in SUFFIXES:
            raise UserError(f"out = '{out}': expected a name that ends in .nc or .zarr")
        self.folder = self.out.with_name(f"{self.out.name}.unfinished")
        self.replaces = False
        if self.out.suffix == ".zarr":
            try:
                import zarr  # noqa: F401
            except ImportError:
                raise UserError(
                    f"out = '{self.out}' needs zarr: pip install 'assimilate-da[zarr]', or take a name that ends in .nc"
                ) from None

    def begin(self, *, resume: bool, overwrite: bool) -> None:
        """Make room for a run, or find that there is something; what is overwritten stays until the new one is whole.

        Raises:
            UserError: a result or an unfinished run is there and is neither to be resumed nor overwritten; something
                else is there; or the folder cannot be made.
        """
        if resume and overwrite:
            raise UserError("resume=True goes on with what is there, overwrite=True starts anew: give one of them")
        self.replaces = overwrite
        try:
            known = self.out.exists()
        except OSError as error:
            raise UserError(f"out = '{self.out}' cannot be a file: {error.strerror or error}") from error
        if known and self.out.is_dir() != (self.out.suffix == ".zarr"):
            kind = "folder and no netCDF file" if self.out.is_dir() else "file and no Zarr store"
            raise UserError(f"'{self.out}' is there already and is a {kind}; give another name")
        if overwrite:
            shutil.rmtree(self.folder, ignore_errors=True)
        there = self.out if known else self.folder
        if there.exists() and not (resume or overwrite):
            raise UserError(f"'{there}' is there already: resume=True goes on with it, overwrite=True starts anew")
        if overwrite or not known:
            try:
                self.folder.mkdir(parents=True, exist_ok=True)
                for draft in self.folder.glob(".*"):
                    draft.unlink()  # what a killed run was writing
            except (OSError, ValueError) as error:
                raise UserError(f"'{self.folder}' cannot be made: {getattr(error, 'strerror', error)}") from error

    def finished(self, marks: Mapping[str, str], observations: xr.Dataset) -> bool:
        """Whether the result is there, of this run.

        Raises:
            UserError: what is there is of other settings or observations, or no result of a run.
        """
        # Beside a result, a checkpoint is that of a run that was to overwrite it: that run goes on.
        if self.replaces or not self.out.exists() or (self.folder / CHECKPOINT).exists():
            return False
        try:
            with self.opened() as held:
                begun = from_text(held.attrs.get("fingerprint"))
        except (OSError, ValueError) as error:
            raise UserError(f"'{self.out}' cannot be read ({error}): overwrite=True starts anew") from error
        if begun is None:
            raise UserError(f"'{self.out}' is no result of a run with out=...: give another name or overwrite=True")
        # What its parts held does not matter any more.
        own = {name: value for name, value in marks.items() if name != PARTS}
        now = own | marks_of_all(observations, hash_of(observations))
        self._check({name: value for name, value in begun.items() if name != PARTS}, now)
        return True

    def reached(self, marks: Mapping[str, str], observations: xr.Dataset, device: torch.device) -> Reached | None:
        """The newest checkpoint that is whole; None where there is none.

        Args:
            marks: of the run that is to go on.
            observations: of that run; those that are assimilated already must be the same.
            device: where tensors go that were not on the CPU.

        Raises:
            UserError: it is of other settings or observations, or no checkpoint can be read.
        """
        from assimilate.learning.checkpoint import CheckpointError, read_tensors

        broken = None
        for name in (CHECKPOINT, EARLIER):
            if not (self.folder / name).exists():
                continue
            try:
                tensors, header = read_tensors(self.folder / name)
            except (CheckpointError, ValueError, KeyError) as error:
                broken = error
                continue
            self._check(header["marks"], marks)
            slices = unpacked(header["held"], _named("held.", tensors))
            running = rebuilt(header["state"], _named("state.", tensors), device)
            found = Reached(running, tuple(slices), **{n: header[n] for n in Reached._fields[2:]})
            self._check_observations(found, observations)
            return found
        if broken is not None:
            raise UserError(f"no checkpoint in '{self.folder}' can be read ({broken}): overwrite=True starts anew")
        return None

    def write(self, reached: Reached, marks: Mapping[str, str]) -> None:
        """Write a checkpoint; the one before is kept.

        Raises:
            UserError: the state cannot be written.
        """
        structure, tensors = flattened(reached.running)
        layout, held = packed(reached.held)
        named = {f"state.{n}": t for n, t in tensors.items()} | {f"held.{n}": t for n, t in held.items()}
        header = {n: getattr(reached, n) for n in Reached._fields[2:]}
        if (self.folder / CHECKPOINT).exists():
            os.replace(self.folder / CHECKPOINT, self.folder / EARLIER)
        self._write(CHECKPOINT, named, header | {"marks": dict(marks), "state": structure, "held": layout})

    def write_part(self, index: int, slices: Sequence[Slice]) -> None:
        """Write a part; one of that number that no checkpoint counts is replaced."""
        layout, tensors = packed(slices)
        self._write(self._part(index).name, tensors, {"held": layout})

    def part(self, index: int) -> list[Slice]:
        """The analyses of a part.

        Raises:
            UserError: it cannot be read.
        """
        from assimilate.learning.checkpoint import CheckpointError, read_tensors

        try:
            tensors, header = read_tensors(self._part(index))
        except (CheckpointError, ValueError, KeyError) as error:
            raise UserError(f"'{self._part(index)}' cannot be read ({error}): overwrite=True starts anew") from error
        return unpacked(header["held"], tensors)

    def finish(self, draft: Path) -> None:
        """Put the whole result in its place; the folder is no longer needed."""
        put_in_place(draft, self.out)
        self.clear()

    def clear(self) -> None:
        """Remove the folder, first of all what says that there is a run to go on with."""
        for name in (EARLIER, CHECKPOINT):
            (self.folder / name).unlink(missing_ok=True)
        shutil.rmtree(self.folder, ignore_errors=True)

    @property
    def draft(self) -> Path:
        """Where the result is written before it is whole; nothing is there."""
        path = self.folder / f"whole{self.out.suffix}"
        shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
        return path

    def opened(self, chunks: Mapping[str, int] | None = None) -> xr.Dataset:
        """The result, read when it is used."""
        if self.out.suffix == ".zarr":
            return xr.open_zarr(self.out, chunks=dict(chunks) if chunks else None, consolidated=False)
        return xr.open_dataset(self.out, chunks=dict(chunks) if chunks else None)

    def _part(self, index: int) -> Path:
        return self.folder / f"part-{index:06d}.safetensors"

    def _write(self, name: str, tensors: Mapping[str, Tensor], header: Mapping[str, Any]) -> None:
        from assimilate.learning.checkpoint import write_tensors

        write_tensors(tensors, header, self.folder / name)
        flush(self.folder)

    def _check_observations(self, found: Reached, observations: xr.Dataset) -> None:
        count = observations.sizes["time"]
        if count < found.done:
            raise UserError(f"'{self.folder}' has analyses of {found.done} times, the observations have {count}")
        if hash_of(observations, found.done) != found.seen:
            raise UserError(
                f"the first {found.done} observations are not those that '{self.folder}' has assimilated; give the "
                "same, or overwrite=True to start anew"
            )

    def _check(self, begun: Mapping[str, str], now: Mapping[str, str]) -> None:
        differ = differences(begun, now)
        if differ:
            raise UserError(
                f"'{self.out}' was begun with other settings: {differ}; give the same, or overwrite=True to start anew"
            )


def _named(lead: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix(lead): tensor for name, tensor in tensors.items() if name.startswith(lead)}


def packed(slices: Sequence[Slice]) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Analyses as one tensor for each of their fields, and which analyses have it (null: all of them)."""
    layout: dict[str, Any] = {"count": len(slices), "fields": {}}
    tensors: dict[str, Tensor] = {}
    for name in Slice._fields:
        have = [k for k, one in enumerate(slices) if getattr(one, name) is not None]
        if have:
            layout["fields"][name] = None if len(have) == len(slices) else have
            tensors[name] = torch.stack([getattr(slices[k], name) for k in have])
    return layout, tensors


def unpacked(layout: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> list[Slice]:
    """The inverse of `packed`."""
    made: list[dict[str, Tensor]] = [{} for _ in range(layout["count"])]
    for name, have in layout["fields"].items():
        for row, k in enumerate(range(layout["count"]) if have is None else have):
            made[k][name] = tensors[name][row]
    return [Slice(**one) for one in made]
