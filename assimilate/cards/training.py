"""Training what a card uses: the [fit] table, its data and the recipes of `assimilate.learning`."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from assimilate import registry
from assimilate.cards.card import Card, Fit, Truth
from assimilate.cards.sources import open_truth
from assimilate.errors import CardError, UnknownName, UserError


def checkpoints(card: Card, name: str, *, out: Path | None = None, only: Sequence[str] = ()) -> dict[Path, Fit]:
    """The files that `assimilate fit` writes for a card, and what is trained for each.

    Args:
        card: a checked card.
        name: of the card.
        out: file to write, where one thing is trained.
        only: names of the [[fit]] tables to train; none: all of them.

    Raises:
        UserError: the card trains nothing, has no [[fit]] of such a name, or `out` is given for several.
    """
    if not card.fit:
        raise CardError("this card has no [fit] table, so there is nothing to train")
    named = {fit.name or name: fit for fit in card.fit}
    for wanted in only:
        if wanted not in named:
            raise UnknownName("fit", wanted, named)
    chosen = [fit for key, fit in named.items() if key in (only or named)]
    if out is not None and len(chosen) > 1:
        raise UserError(f"--out names one file, and this card trains {', '.join(named)}; choose with --only NAME")
    return {
        out or Path(fit.checkpoint or f"out/{name}{'' if fit.name is None else f'-{fit.name}'}.safetensors"): fit
        for fit in chosen
    }


def train_card(
    card: Card, fit: Fit, file: Path, *, beside: Path | None = None, device: torch.device | str = "cpu"
) -> Path:
    """Train what a [fit] table of a card says, and write the checkpoint.

    Args:
        card: a checked card.
        fit: one of its [fit] tables.
        file: the checkpoint; a folder beside it holds what a killed run needs to go on.
        beside: folder of the card, for relative paths.
        device: where to train.

    Raises:
        UserError: no data for it, an unknown recipe or setting.
    """
    from assimilate.learning.recipes import train

    resume = file.with_name(f"{file.name}.parts")
    source, settings = source_of(card, fit, beside), fit.settings()
    written = train(
        fit.recipe, source, settings, file=file, resume=resume, progress=True, device=device, half=fit.half
    )
    # What is only there to go on from must not outlive the training, or the next one would be none.
    shutil.rmtree(resume, ignore_errors=True)
    return Path(written)


def source_of(card: Card, wanted: Fit, beside: Path | None = None) -> Any:
    """The simulator or the states to train on.

    Raises:
        UserError: neither is named, or the data cannot be used.
    """
    if wanted.data is not None:
        from assimilate.cards.simulation import states_on
        from assimilate.learning.samples import Trajectories

        told = card.truth
        data, space = open_truth(
            Truth(data=wanted.data, variables=wanted.variables, transform=told.transform, scale=told.scale), beside
        )
        return Trajectories.opened(data, states_on(space, data))
    simulator = wanted.dynamics or card.truth.dynamics
    if simulator is None:
        raise CardError("fit: name the 'dynamics' that simulate the training data, or the 'data' to train on")
    return registry.build("dynamics", simulator.spec(), "fit.dynamics")
