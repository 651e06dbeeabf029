"""Data generation as a step of its own: the truth of a card, or what it trains on, simulated once and kept in a file.

Trajectories are simulated some at a time, and each part is written whole. A run that was killed goes on with the first
part that is missing. Every trajectory has its own stream of random numbers, so the file does not depend on how many
are computed together, and holds exactly the states that `assimilate run` or `assimilate fit` would simulate.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
import xarray as xr
from torch import Tensor

from assimilate import registry
from assimilate.cards.card import Card
from assimilate.errors import CardError, UserError
from assimilate.experiment import child_seed
from assimilate.storage import replacing, write_text
from dynamics.base import Dynamics, simulate
from dynamics.random import Rng, Streams
from dynamics.space import Space

PART_BYTES = 2**26
"""States of about this size are simulated together."""
SUFFIXES = (".nc", ".zarr")


@dataclass(frozen=True)
class Wanted:
    """What is to be simulated; see `dynamics.base.simulate`.

    Args:
        dynamics: the system.
        trajectories: how many.
        states: of each, the first included.
        every: model steps between two of them.
        spinup: model steps dropped beforehand.
        seed: of the streams.
    """

    dynamics: Dynamics
    trajectories: int
    states: int
    every: int
    spinup: int
    seed: int

    def part(self, first: int, count: int, dtype: torch.dtype, device: torch.device | str) -> xr.Dataset:
        """Trajectories `first` to `first + count - 1`."""
        made = simulate(
            _Rows(self.dynamics, first),
            steps=(self.states - 1) * self.every,
            trajectories=count,
            seed=self.seed,
            every=self.every,
            spinup=self.spinup,
            dtype=dtype,
            device=device,
        )
        return made.assign_attrs(dynamics=repr(self.dynamics), periodic=" ".join(self.dynamics.space.periodic))


def truth_of(card: Card) -> Wanted:
    """The simulated truth of a card.

    Raises:
        CardError: its truth is not simulated.
    """
    truth = card.truth
    if truth.dynamics is None or truth.steps is None:
        raise CardError("the truth of this card is not simulated: [truth] has no 'dynamics'")
    system = registry.build("dynamics", truth.dynamics.spec(), "truth.dynamics")
    seed = child_seed(card.seed if truth.seed is None else truth.seed, "truth")
    return Wanted(system, truth.experiments, truth.steps + 1, truth.every, truth.spinup, seed)


def training_of(card: Card) -> Wanted:
    """The trajectories that `assimilate fit` would simulate.

    Raises:
        CardError: the card has no [fit] table, or one whose recipe does not train on trajectories of a simulator.
    """
    from assimilate.errors import UnknownName
    from assimilate.learning.recipes import RECIPES, build_settings

    if not card.fit:
        raise CardError("this card has no [fit] table, so there are no training trajectories")
    # Where a card trains several networks, the first says what they are trained on.
    fit = card.fit[0]
    if fit.recipe not in RECIPES:
        raise UnknownName("recipe", fit.recipe, RECIPES)
    settings = build_settings(RECIPES[fit.recipe][0], fit.settings(), f"recipe '{fit.recipe}'")
    simulator = fit.dynamics or card.truth.dynamics
    if simulator is None or not hasattr(settings, "simulation"):
        raise CardError(f"fit: recipe '{fit.recipe}' of this card does not train on simulated trajectories")
    told = asdict(settings.simulation)
    return Wanted(registry.build("dynamics", simulator.spec(), "fit.dynamics"), **told)


def write_simulation(
    wanted: Wanted,
    file: Path,
    *,
    at_once: int | None = None,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
    progress: Callable[[int], None] | None = None,
) -> Path:
    """Simulate and write a Dataset with dims (experiment, time, *grid).

    Args:
        wanted: what to simulate.
        file: a `.nc` or `.zarr` path; `FILE.parts` beside it holds finished parts until the file is whole.
        at_once: trajectories computed together; default: about 64 MB of states.
        dtype: float32 or float64.
        device: where to compute.
        progress: called with 0 when all is well, then with the number of trajectories of each part that is there.

    Returns:
        The file.

    Raises:
        UserError: another suffix, a file that is already there, or parts of another simulation.
    """
    check_target(file)
    space = wanted.dynamics.space
    size = wanted.states * space.size * torch.finfo(dtype).bits // 8
    step = at_once or max(1, min(wanted.trajectories, PART_BYTES // size))
    folder = file.with_name(f"{file.name}.parts")
    step = _begin(folder, wanted, dtype, step)
    if progress is not None:
        progress(0)
    parts = []
    for first in range(0, wanted.trajectories, step):
        count = min(step, wanted.trajectories - first)
        parts.append(folder / f"{first:08d}.nc")
        if not parts[-1].exists():
            with replacing(parts[-1]) as draft:
                wanted.part(first, count, dtype, device).to_netcdf(draft)
        if progress is not None:
            progress(count)
    _join(parts, file)
    shutil.rmtree(folder)
    return file


def check_target(file: Path) -> None:
    """Raise a UserError for a file that cannot be written, before the work."""
    if file.suffix not in SUFFIXES:
        raise UserError(f"--out '{file}': expected a name that ends in .nc (netCDF) or .zarr")
    if file.exists():
        raise UserError(f"'{file}' is already there; remove it or give another --out")
    if file.suffix == ".zarr":
        try:
            import zarr  # noqa: F401
        except ImportError as error:
            raise UserError("writing Zarr needs the package 'zarr': pip install 'assimilate-da[zarr]'") from error


def states_on(space: Space, dataset: xr.Dataset) -> Space:
    """A Space with the periodic dimensions that a file of `write_simulation` names."""
    marked = tuple(str(dataset.attrs.get("periodic", "")).split())
    return replace(space, periodic=marked) if marked and set(marked) <= set(space.grid) else space


def _begin(folder: Path, wanted: Wanted, dtype: torch.dtype, step: int) -> int:
    """Make the folder of the parts, or go on with it; how many trajectories a part has."""
    about = {k: v for k, v in vars(wanted).items() if k != "dynamics"}
    about |= {"dynamics": repr(wanted.dynamics), "dtype": str(dtype)}
    file = folder / "about.json"
    if file.exists():
        held = json.loads(file.read_text(encoding="utf-8"))
        step = held.pop("at_once")
        if held != about:
            different = next(k for k in about if held.get(k) != about[k])
            raise UserError(
                f"'{folder}' holds parts of another simulation ({different} is {held.get(different)!r} there); "
                "remove it or give another --out"
            )
        return step
    try:
        write_text(file, json.dumps(about | {"at_once": step}, indent=2))
    except OSError as error:
        raise UserError(f"'{folder}' cannot be written to: {error.strerror or error}") from error
    return step


def _join(parts: list[Path], file: Path) -> None:
    """All parts as one file, read and written part by part."""
    whole = xr.open_mfdataset(
        parts, combine="nested", concat_dim="experiment", data_vars="minimal", coords="minimal", compat="override",
        combine_attrs="override", chunks={},
    )  # fmt: skip
    with whole:
        for variable in whole.variables.values():
            variable.encoding.clear()
        if file.suffix == ".zarr":
            draft = file.with_name(f".{file.name}.part")
            shutil.rmtree(draft, ignore_errors=True)
            whole.to_zarr(draft, mode="w")
            draft.rename(file)
        else:
            with replacing(file) as draft:
                whole.to_netcdf(draft)


@dataclass(frozen=True)
class _Rows:
    """Dynamics whose trajectories have the random streams of rows `first`, `first + 1`..."""

    dynamics: Dynamics
    first: int

    @property
    def space(self) -> Space:
        return self.dynamics.space

    @property
    def dt(self) -> float:
        return self.dynamics.dt

    def prior(self, shape: tuple[int, ...], *, rng: Rng, **place: Any) -> Tensor:
        return self.dynamics.prior(shape, rng=self._shifted(rng), **place)

    def step(self, x: Tensor, time: float, *, rng: Rng | None) -> Tensor:
        return self.dynamics.step(x, time, rng=self._shifted(rng))

    def _shifted(self, rng: Any) -> Any:
        if not isinstance(rng, Streams):
            return rng
        # The position is shared, so that several draws of a step stay several draws.
        return replace(rng, experiments=tuple(range(self.first, self.first + rng.rows[0])))
