"""Training what a card uses: the [fit] table, its data and the recipes of `assimilate.learning`."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import torch

from assimilate import registry
from assimilate.cards import Card, Truth
from assimilate.errors import CardError
from assimilate.sources import open_truth


def train_card(card: Card, file: Path, *, beside: Path | None = None, device: torch.device | str = "cpu") -> Path:
    """Train what the [fit] table of a card says, and write the checkpoint.

    Args:
        card: a checked card with a [fit] table.
        file: the checkpoint; a folder beside it holds what a killed run needs to go on.
        beside: folder of the card, for relative paths.
        device: where to train.

    Raises:
        UserError: the card has no [fit] table or no data for it, an unknown recipe or setting.
    """
    from assimilate.learning.recipes import train

    if card.fit is None:
        raise CardError("this card has no [fit] table, so there is nothing to train")
    resume = file.with_name(f"{file.name}.parts")
    source, settings = source_of(card, beside), card.fit.settings()
    written = train(card.fit.recipe, source, settings, file=file, resume=resume, progress=True, device=device)
    # What is only there to go on from must not outlive the training, or the next one would be none.
    shutil.rmtree(resume, ignore_errors=True)
    return Path(written)


def source_of(card: Card, beside: Path | None = None) -> Any:
    """The simulator or the states to train on.

    Raises:
        UserError: neither is named, or the data cannot be used.
    """
    wanted = card.fit
    assert wanted is not None
    if wanted.data is not None:
        from assimilate.learning.samples import Trajectories

        told = card.truth
        data, space = open_truth(
            Truth(data=wanted.data, variables=wanted.variables, transform=told.transform, scale=told.scale), beside
        )
        return Trajectories.from_dataset(data, space)
    simulator = wanted.dynamics or card.truth.dynamics
    if simulator is None:
        raise CardError("fit: name the 'dynamics' that simulate the training data, or the 'data' to train on")
    return registry.build("dynamics", simulator.spec(), "fit.dynamics")
