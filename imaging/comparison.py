"""`assimilate run` on an imaging card: every solver on the same measurements, scored against the true pictures.

Pictures are experiments: `y` is `(E, 1, *obs)` and a solver draws `(E, N, *event)` in one batch. Settings with
candidates are chosen on validation pictures. Results are written solver by solver: `result.nc` (a group each) and
`scores.json`. Scores are those of the posterior mean, or of one sample (`psnr_sample`); nothing is rescaled and no
iterate but the last is looked at.
"""

from __future__ import annotations

import importlib.util
import json
import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
import xarray as xr
from torch import Tensor

from assimilate import __version__, registry
from assimilate.cards.card import Component
from assimilate.cards.judging import expectations
from assimilate.devices import device_in_words
from assimilate.storage import add_group, safe_name, write_groups, write_rows
from dynamics.errors import CapabilityError
from dynamics.random import Streams
from imaging import metrics
from imaging.cards import Images, ImagingCard, SolverEntry
from imaging.operators import build_operator
from imaging.phantoms import volume
from imaging.pictures import Pictures
from imaging.priors import load_prior
from imaging.slices import PerSlice, SlicedPrior
from imaging.solvers import find_solver
from imaging.solvers.base import Solution, Solver, Task
from imaging.tuning import tune
from observations.likelihood import Likelihood
from observations.noise import GaussianNoise

GREY_LEVEL = 1 / 255
"""The resolution of an 8-bit picture, to half of which `coverage` is counted."""


@dataclass
class Outcome:
    """What a run found: scores by label, failures by name, checks of expected scores."""

    labels: list[str] = field(default_factory=list)
    scores: dict[str, dict[str, float]] = field(default_factory=dict)
    chosen: dict[str, str] = field(default_factory=dict)
    failures: list[dict[str, str]] = field(default_factory=list)
    checks: list[dict[str, Any]] = field(default_factory=list)


def pictures_of(images: Images, **changes: Any) -> Pictures:
    """The pictures that an [images] table asks for."""
    names = tuple(images.names)
    settings = images.model_dump(exclude={"slices", "names"}) | changes
    return Pictures(**settings, names=names)


@dataclass(frozen=True)
class Comparison:
    """A card's pictures, measurements and prior.

    Args:
        card: the card.
        truth: `(E, *event)`.
        likelihood: operator and noise.
        y: `(E, 1, *obs)`.
        device: where to compute.
    """

    card: ImagingCard
    truth: Tensor
    likelihood: Likelihood
    y: Tensor
    device: torch.device | str

    @classmethod
    def of(cls, card: ImagingCard, device: torch.device | str = "cpu", *, validation: bool = False) -> Comparison:
        """Draw or read the pictures and measure them.

        Args:
            card: a checked card.
            device: where to compute.
            validation: the pictures of [tuning] instead, with noise of their own.
        """
        images = card.images
        if validation:
            style = card.tuning.style or (images.style if images.source == "phantoms" else "mixed")
            truth = Pictures("phantoms", card.tuning.count, images.size, style, seed=card.tuning.seed).load()
        elif images.source == "phantom-volume":
            rng = torch.Generator().manual_seed(images.seed)
            truth = volume(images.slices, images.size, rng, style=images.style)[None]
        else:
            truth = pictures_of(images).load()
        truth = truth.to(device)
        assert card.operator is not None
        settings = {k: v for k, v in card.operator.spec().items() if k != "type"}
        shape = tuple(truth.shape[1:])
        if images.source == "phantom-volume" and not validation:
            one: Any = build_operator(card.operator.type, (1, *shape[1:]), **settings)
            operator: Any = PerSlice(one, shape[0])
        else:
            operator = build_operator(card.operator.type, shape, **settings)
        noise = registry.build("noise", card.noise.spec(), "noise") if isinstance(card.noise, Component) else None
        likelihood = Likelihood(operator, noise or GaussianNoise(card.noise))
        # Validation noise is drawn from a seed of its own.
        rows = Streams((card.seed + 1_000_003 * validation) % 2**32, len(truth), 1)
        return cls(card, truth, likelihood, likelihood.sample(truth[:, None], rng=rows), device)

    def task(self, prior: Any) -> Task:
        """The task for a prior."""
        if self.card.images.source == "phantom-volume" and len(self.truth.shape) == 4 and self.truth.shape[1] > 1:
            prior = SlicedPrior(prior)
        return Task(prior, self.likelihood, self.y, torch.float32, self.device)


def compare(
    card: ImagingCard, folder: Path, *, name: str, device: torch.device | str = "cpu",
    say: Callable[[str, dict[str, float]], None] | None = None,
) -> Outcome:
    """Run every solver of a card and write its results to `folder`.

    Args:
        card: a checked card with solvers.
        folder: where `result.nc`, `scores.json` and the report go.
        name: of the card.
        device: where to compute.
        say: called with a label and its scores as each solver finishes.

    Raises:
        UserError: the card asks for something that is not there.
    """
    # Everything that can be wrong is found before the first file is written.
    names = {entry.prior or str(card.prior) for entry in card.solver}
    priors = {name: load_prior(name, device=device) for name in sorted(names)}
    comparison = Comparison.of(card, device)
    tuned = any(entry.tune for entry in card.solver)
    validation = Comparison.of(card, device, validation=True) if tuned else None
    solvers = [(entry, *_tuned(entry, priors[entry.prior or str(card.prior)], validation)) for entry in card.solver]
    file = folder / "result.nc"
    write_groups(file, {"truth": _pictures(comparison.truth), "measurements": _measured(comparison.y)}, {
        "kind": "comparison", "title": card.title, "description": card.description, "source": card.source, "card": name,
        "settings": card.model_dump_json(indent=2, exclude_defaults=True), "seed": card.seed,
    })  # fmt: skip
    outcome = Outcome()
    for entry, solver, told in solvers:
        label = entry.title
        task = comparison.task(priors[entry.prior or str(card.prior)])
        try:
            begin = time.perf_counter()
            solution = solver(task, rng=Streams(card.seed, len(comparison.truth), entry.samples))
            seconds = (time.perf_counter() - begin) / len(comparison.truth)
        except (CapabilityError, FloatingPointError, RuntimeError, ValueError) as error:
            outcome.failures.append({"method": label, "error": " ".join(str(error).split())})
            continue
        solution = _picked(solution, entry, task)
        outcome.labels.append(label)
        outcome.chosen[label] = told or repr(solver)
        outcome.scores[label] = score(solution, comparison, task, solver, seconds, aligned=card.align)
        add_group(file, safe_name(label), _drawn(solution, label, solver))
        write_rows(folder / "scores.json", rows_of(outcome))
        if say is not None:
            say(label, outcome.scores[label])
    outcome.checks = expectations(card, outcome.scores)  # type: ignore[arg-type]
    add_group(file, "scores", _table(outcome), attrs={
        "labels": json.dumps(outcome.labels), "columns": json.dumps(card.scores),
        "failures": json.dumps(outcome.failures), "expected": json.dumps(outcome.checks),
        "version": f"assimilate-da {__version__}, torch {torch.__version__}",
        "device": device_in_words(torch.device(device)), "likelihood": f"{comparison.likelihood.operator!r}, "
        f"{comparison.likelihood.noise!r}", "prior": str(card.prior),
    })  # fmt: skip
    return outcome


def score(
    solution: Solution, comparison: Comparison, task: Task, solver: Solver, seconds: float, *, aligned: bool = False
) -> dict[str, float]:
    """All scores of one solver, means over the pictures.

    Left out: what a method does not have, and SSIM where scikit-image (extra `imaging`) is not installed.
    """
    truth, samples = comparison.truth, solution.samples
    if aligned:
        samples = align(samples, truth)
    mean, first = samples.mean(1), samples[:, 0]
    similar = importlib.util.find_spec("skimage") is not None
    found = {
        "psnr": metrics.psnr(mean, truth),
        "nrmse": metrics.nrmse(mean, truth),
        "chi_square": metrics.chi_square(task.likelihood, task.y, solution.samples),
    }
    if similar:
        found["ssim"] = metrics.ssim(mean, truth)
    if solver.exactness != "point":
        found["psnr_sample"] = metrics.psnr(first, truth)
        if similar:
            found["ssim_sample"] = metrics.ssim(first, truth)
        if samples.shape[1] > 1:
            found["spread_skill"] = metrics.spread_skill(samples, truth)
            found["coverage"] = metrics.coverage(samples, truth, margin=GREY_LEVEL / 2)
    scores = {key: float(torch.as_tensor(value, dtype=torch.float64).mean()) for key, value in found.items()}
    return scores | {"evaluations": float(solution.evaluations), "seconds": seconds}


def align(samples: Tensor, truth: Tensor) -> Tensor:
    """Samples turned by half a turn and shifted to fit the truth best: what amplitudes of a transform leave open."""
    target = truth[:, None].expand_as(samples)
    best, score_of = samples, torch.full(samples.shape[:2], -math.inf)
    for turned in (samples, samples.flip((-2, -1))):
        product = torch.fft.fft2(target) * torch.fft.fft2(turned).conj()
        correlation = torch.fft.ifft2(product).real.sum(2).flatten(-2)
        peak, place = correlation.max(-1)
        columns = samples.shape[-1]
        moved = torch.stack(
            [
                torch.stack(
                    [
                        torch.roll(turned[e, n], (int(place[e, n]) // columns, int(place[e, n]) % columns), (-2, -1))
                        for n in range(samples.shape[1])
                    ]
                )
                for e in range(samples.shape[0])
            ]
        )
        better = peak.cpu() > score_of
        best = torch.where(better[:, :, None, None, None].to(samples.device), moved, best)
        score_of = torch.where(better, peak.cpu(), score_of)
    return best


def rows_of(outcome: Outcome) -> list[dict[str, Any]]:
    """The score file: one row for each solver and score."""
    return [
        {"method": label, "score": key, "value": value, "settings": outcome.chosen[label]}
        for label, scores in outcome.scores.items()
        for key, value in scores.items()
    ]


def _tuned(entry: SolverEntry, prior: Any, validation: Comparison | None) -> tuple[Solver, str]:
    """The solver with its settings, chosen on the validation pictures where it has candidates."""
    settings = entry.settings()
    if not entry.tune or validation is None:
        return find_solver(entry.type, **settings), ""
    tuned = tune(
        lambda **candidate: find_solver(entry.type, **settings | candidate),
        entry.tune, [validation.task(prior)], [validation.truth],
        seed=validation.card.seed + 1, samples=entry.samples,
    )  # fmt: skip
    edge = tuned.table.attrs.get("at_edge")
    told = f"{tuned.solver!r}; chosen on {len(validation.truth)} validation pictures"
    return tuned.solver, told + (f", {edge} at the edge of what was tried" if edge else "")


def _picked(solution: Solution, entry: SolverEntry, task: Task) -> Solution:
    """All samples, or the one that fits the measurement best."""
    if entry.pick is None:
        return solution
    fit = task.likelihood.log_prob(task.y.to(solution.samples), solution.samples)
    rows = torch.arange(len(fit), device=fit.device)
    return solution._replace(samples=solution.samples[rows, fit.argmax(1)][:, None])


def _pictures(truth: Tensor) -> xr.Dataset:
    return xr.Dataset({"image": (("picture", "channel", "y", "x"), truth.cpu().numpy(), {"units": "1"})})


def _measured(y: Tensor) -> xr.Dataset:
    dims = ("picture", *(f"observed_{k}" for k in range(y.ndim - 2)))
    return xr.Dataset({"measured": (dims, y[:, 0].cpu().numpy())})


def _drawn(solution: Solution, label: str, solver: Solver) -> xr.Dataset:
    samples = solution.samples.cpu().numpy()
    dims = ("picture", "channel", "y", "x")
    variables = {"image_mean": (dims, samples.mean(1)), "image_sample": (dims, samples[:, 0])}
    if samples.shape[1] > 1 and solver.exactness != "point":
        variables["image_std"] = (dims, samples.std(1, ddof=1).astype(np.float32))
    return xr.Dataset(variables, attrs={"label": label, "solver": repr(solver), "reference": solver.reference})


def _table(outcome: Outcome) -> xr.Dataset:
    names = list(dict.fromkeys(key for scores in outcome.scores.values() for key in scores))
    values = [[outcome.scores[label].get(key, math.nan) for key in names] for label in outcome.labels]
    coords = {"label": np.array(outcome.labels, dtype=object), "score": np.array(names, dtype=object)}
    return xr.Dataset({"value": (("label", "score"), np.array(values).reshape(len(outcome.labels), -1))}, coords)
