"""`assimilate fit` on an imaging card: train a prior on the card's pictures, or distil one into a consistency model."""

from __future__ import annotations

import shutil
from pathlib import Path

import torch

from assimilate.errors import CardError
from assimilate.learning.checkpoint import save_checkpoint
from assimilate.learning.consistency import ConsistencyFit, fit_consistency
from assimilate.learning.prior import LearnedPrior
from assimilate.learning.prior_fit import PriorFit, fit_prior
from assimilate.learning.recipes import build_settings
from dynamics.fields import Coordinate
from dynamics.space import Field, Space
from imaging.cards import ImagingCard
from imaging.comparison import pictures_of
from imaging.priors import load_prior


def image_space(shape: tuple[int, ...], units: str = "1") -> Space:
    """The Space of grey pictures `(1, rows, columns)`, coordinates in pixels."""
    coords = {name: Coordinate.count(name, size) for name, size in zip(("y", "x"), shape[-2:], strict=True)}
    return Space((Field("image", units, dims=("y", "x")),), coords=coords)


def train_prior(card: ImagingCard, file: Path, *, device: torch.device | str = "cpu") -> Path:
    """Train what the [fit] table of an imaging card says and write the checkpoint.

    Args:
        card: a card with a [fit] table; its [images] are what is trained on.
        file: the checkpoint; a folder beside it holds what a killed run needs to go on.
        device: where to train.

    Raises:
        UserError: no [fit] table, an unknown setting, or pictures that cannot be read.
    """
    if card.fit is None:
        raise CardError("this card has no [fit] table, so there is nothing to train")
    resume = file.with_name(f"{file.name}.parts")
    pictures = pictures_of(card.images)
    states = pictures.load().half()
    told = {"pictures": repr(pictures)}
    prior: LearnedPrior
    if card.fit.recipe == "consistency":
        if card.fit.teacher is None:
            raise CardError("fit: recipe 'consistency' needs 'teacher', the prior that it is distilled from")
        settings = build_settings(ConsistencyFit, card.fit.settings(), "recipe 'consistency'")
        teacher = _learned(card.fit.teacher)
        prior = fit_consistency(teacher, states, settings, data=told, resume=resume, progress=True, device=device)
    else:
        settings = build_settings(PriorFit, card.fit.settings(), "recipe 'prior'")
        start = None if card.fit.start is None else _learned(card.fit.start)
        space = image_space(tuple(states.shape[1:]))
        prior = fit_prior(
            states, space, settings, start=start, data=told, resume=resume, progress=True, device=device
        )
    written = save_checkpoint(prior.to_checkpoint(), file)
    shutil.rmtree(resume, ignore_errors=True)
    return Path(written)


def _learned(name: str) -> LearnedPrior:
    prior = load_prior(name)
    if not isinstance(prior, LearnedPrior):
        raise CardError(f"'{name}' is a {type(prior).__name__}; training goes on from a trained prior")
    return prior
