"""Training: AdamW with a cosine schedule, gradient clipping and an exponential moving average of the weights.

    lr_k = lr min(1, (k + 1) / warmup) (1 + cos(pi k / steps)) / 2
    ema <- d_k ema + (1 - d_k) weights,      d_k = min(ema, (1 + k) / (10 + k))

Everything that step k + 1 depends on (weights, average, optimiser moments, random state, losses) goes into a resume
file every so often, whole or not at all. A run that is killed and started again continues from there, and ends with
the very bits that an uninterrupted run ends with (same machine, same number of threads).

References:
    Loshchilov, Hutter (2019), Decoupled weight decay regularization, https://arxiv.org/abs/1711.05101
    Karras, Aittala, Lehtinen, Hellsten, Aila, Laine (2024), Analyzing and improving the training dynamics of diffusion
    models, https://arxiv.org/abs/2312.02696
"""

from __future__ import annotations

import copy
import math
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path as FilePath
from typing import Any, Generic, Literal, NamedTuple, TypeVar

import torch
from torch import Tensor, nn

from assimilate.learning.checkpoint import CheckpointError, read_tensors, write_tensors
from assimilate.learning.objectives import Batch, Objective
from dynamics.settings import COUNT, NOT_NEGATIVE, POSITIVE, SEED, check_settings, number, whole

Draw = Callable[[int, torch.Generator], Batch]
Model = TypeVar("Model", bound=nn.Module)


@dataclass(frozen=True)
class FitSettings:
    """Settings of a training run.

    Args:
        steps: optimiser steps.
        batch: samples in each.
        learning_rate: its largest value.
        weight_decay: AdamW's, per step and relative to the learning rate.
        warmup: steps over which the learning rate rises from 0.
        clip: largest norm of the gradient.
        ema: decay of the moving average of the weights.
        held_out_every: steps between evaluations of the held-out loss (0: never).
        held_out_batch: samples it is evaluated on, the same ones each time.
        resume_every: steps between resume files (if a file is given).
        seed: seed of the weights and of everything drawn.
        precision: of the forward pass; weights and optimiser stay float32. "bfloat16" halves the time of a U-Net where
            the processor has the instructions, on GPUs too.
        compile: whether networks are compiled by `torch.compile`: worth its minute on a GPU.

    Raises:
        ValueError: a number out of range, or an unknown precision.
    """

    steps: int = 8000
    batch: int = 2048
    learning_rate: float = 3e-3
    weight_decay: float = 0.0
    warmup: int = 100
    clip: float = 1.0
    ema: float = 0.999
    held_out_every: int = 500
    held_out_batch: int = 16384
    resume_every: int = 500
    seed: int = 0
    precision: Literal["float32", "bfloat16"] = "float32"
    compile: bool = False

    def __post_init__(self) -> None:
        """Check what would otherwise train nothing."""
        check_settings(self, steps=COUNT, batch=COUNT, warmup=COUNT, resume_every=COUNT, seed=SEED)
        check_settings(self, held_out_every=whole(0), held_out_batch=COUNT, ema=number(0, below=1))
        check_settings(self, learning_rate=POSITIVE, weight_decay=NOT_NEGATIVE, clip=number(above=0, infinite=True))
        if self.precision not in ("float32", "bfloat16"):
            raise ValueError(f"precision is {self.precision!r}; expected 'float32' or 'bfloat16'")


class Fitted(NamedTuple, Generic[Model]):
    """What training gives.

    Attributes:
        model: the model with the averaged weights, in evaluation mode, without gradients.
        record: steps, seconds, losses and settings, as JSON can hold them.
    """

    model: Model
    record: dict[str, Any]


class _Run(Generic[Model]):
    """The state of a training run; the only mutable thing here."""

    def __init__(self, model: Model, settings: FitSettings, device: torch.device | str) -> None:
        self.settings = settings
        self.model = model.to(device).train()
        self.average = copy.deepcopy(self.model).requires_grad_(False).eval()
        for part in self.model.modules() if settings.compile else ():
            # What is named in `networks` keeps its settings; what wraps it is not called as a module by objectives.
            if hasattr(part, "settings"):
                part.compile()
        parameters = [p for p in model.parameters() if p.requires_grad]
        self.optimiser = torch.optim.AdamW(
            parameters, lr=settings.learning_rate, weight_decay=settings.weight_decay, betas=(0.9, 0.99), fused=True
        )
        self.device = device
        # One generator on the CPU: the same numbers wherever the network trains.
        self.rng = torch.Generator().manual_seed(settings.seed)
        self.step, self.seconds, self.processor = 0, 0.0, 0.0
        self.smoothed = math.nan
        self.held_out: list[list[float]] = []

    def advance(self, objective: Objective, draw: Draw) -> None:
        """One optimiser step."""
        s, k = self.settings, self.step
        rate = s.learning_rate * min(1.0, (k + 1) / s.warmup) * 0.5 * (1 + math.cos(math.pi * k / s.steps))
        for group in self.optimiser.param_groups:
            group["lr"] = rate
        half = torch.autocast(torch.device(self.device).type, torch.bfloat16, enabled=s.precision == "bfloat16")
        with half:
            loss = objective(self.model, _to(draw(s.batch, self.rng), self.device), self.rng)
        value = float(loss.detach())
        if not math.isfinite(value):
            raise FloatingPointError(f"the training loss is {value} at step {k}; lower learning_rate or check the data")
        self.optimiser.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(self.model.parameters(), s.clip)
        self.optimiser.step()
        decay = min(s.ema, (1 + k) / (10 + k))
        with torch.no_grad():
            for mean, now in zip(self.average.parameters(), self.model.parameters(), strict=True):
                mean.lerp_(now, 1 - decay)
            for held, current in zip(self.average.buffers(), self.model.buffers(), strict=True):
                held.copy_(current)
        self.smoothed = value if math.isnan(self.smoothed) else 0.98 * self.smoothed + 0.02 * value
        self.step += 1

    def clock(self, since: tuple[float, float] | None = None) -> tuple[float, float]:
        """The time by the clock and of the processor; what has passed `since` is added to the run's."""
        now = time.perf_counter(), time.process_time()
        if since is not None:
            self.seconds += now[0] - since[0]
            self.processor += now[1] - since[1]
        return now

    def evaluate(self, objective: Objective, draw: Draw) -> None:
        """The averaged model's loss on held-out samples, with the same random numbers each time."""
        rng = torch.Generator().manual_seed(self.settings.seed + 1)
        with torch.no_grad():
            loss = float(objective(self.average, _to(draw(self.settings.held_out_batch, rng), self.device), rng))
        self.held_out.append([self.step, self.smoothed, loss])

    def save(self, file: FilePath) -> None:
        """Write everything that the next step depends on."""
        tensors: dict[str, Tensor] = {f"model.{k}": v for k, v in self.model.state_dict().items()}
        tensors |= {f"average.{k}": v for k, v in self.average.state_dict().items()}
        for index, entry in self.optimiser.state_dict()["state"].items():
            tensors |= {f"optimiser.{index}.{name}": value for name, value in entry.items()}
        tensors["rng"] = self.rng.get_state()
        tensors["smoothed"] = torch.tensor(self.smoothed, dtype=torch.float64)
        header = {
            "kind": "resume",
            "settings": asdict(self.settings),
            "step": self.step,
            "seconds": self.seconds,
            "processor": self.processor,
            "held_out": self.held_out,
        }
        write_tensors(tensors, header, file)

    def load(self, file: FilePath) -> None:
        """Continue from a resume file.

        Raises:
            CheckpointError: the file belongs to another run.
        """
        tensors, header = read_tensors(file)
        if header.get("kind") != "resume" or header["settings"] != asdict(self.settings):
            raise CheckpointError(
                f"{file} was written by a run with other settings; train with those, or remove the file to start again"
            )
        groups: dict[str, dict[str, Tensor]] = {"model": {}, "average": {}}
        moments: dict[int, dict[str, Tensor]] = {}
        for key, value in tensors.items():
            part, _, name = key.partition(".")
            if part in groups:
                groups[part][name] = value
            elif part == "optimiser":
                index, _, moment = name.partition(".")
                moments.setdefault(int(index), {})[moment] = value
        try:
            self.model.load_state_dict(groups["model"])
            self.average.load_state_dict(groups["average"])
        except RuntimeError as error:
            raise CheckpointError(f"{file} was written by a run of another network; remove it to restart") from error
        state = self.optimiser.state_dict()
        self.optimiser.load_state_dict({**state, "state": moments})
        self.rng.set_state(tensors["rng"])
        self.smoothed = float(tensors["smoothed"])
        self.step, self.held_out = header["step"], header["held_out"]
        self.seconds, self.processor = header["seconds"], header["processor"]


def fit(
    model: Model,
    objective: Objective,
    draw: Draw,
    settings: FitSettings,
    *,
    held_out: Draw | None = None,
    resume: str | os.PathLike[str] | None = None,
    progress: bool = False,
    name: str = "training",
    device: torch.device | str = "cpu",
) -> Fitted[Model]:
    """Train a model.

    Args:
        model: initialised by the caller (see `seeded`); left as it is: a copy is trained.
        objective: `(model, batch, rng) -> loss`.
        draw: `(n, rng) -> Batch` of training samples.
        settings: steps, batch and so on.
        held_out: `(n, rng) -> Batch` of samples that training does not see.
        resume: file to continue from if it exists, and to write as training goes on. A finished run's file gives its
            result at once.
        progress: show a progress bar.
        name: what the bar is called.
        device: where to train.

    Raises:
        CheckpointError: `resume` belongs to a run with other settings or another network, or is damaged.
        FloatingPointError: the loss is not finite.
    """
    run = _Run(copy.deepcopy(model), settings, device)
    file = None if resume is None else FilePath(resume)
    if file is not None and file.exists():
        run.load(file)
    with _bar(progress, name, settings.steps) as show:
        clock = run.clock()
        while run.step < settings.steps:
            run.advance(objective, draw)
            last = run.step == settings.steps
            if held_out is not None and settings.held_out_every and (last or run.step % settings.held_out_every == 0):
                run.evaluate(objective, held_out)
            if file is not None and (last or run.step % settings.resume_every == 0):
                clock = run.clock(clock)
                run.save(file)
            if run.step % 20 == 0 or last:
                show(run.step, run.smoothed, run.held_out[-1][2] if run.held_out else None)
        run.clock(clock)
    record = {
        "settings": asdict(settings),
        "parameters": sum(p.numel() for p in run.average.parameters()),
        "seconds": round(run.seconds, 1),
        "processor_seconds": round(run.processor, 1),
        "threads": torch.get_num_threads(),
        "losses": {
            "columns": ["step", "training", "held out"],
            "rows": [[row[0], *(round(value, 6) for value in row[1:])] for row in run.held_out],
        },
    }
    return Fitted(run.average, record)


def seeded(seed: int, build: Callable[[], Model]) -> Model:
    """A new model whose initial weights depend on `seed` alone; the global random state is left as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return build()


def _to(batch: Batch, device: torch.device | str) -> Batch:
    """The batch on another device."""
    clean, *others = (None if part is None else part.to(device) for part in batch)
    assert clean is not None
    return Batch(clean, *others)


@contextmanager
def _bar(shown: bool, name: str, steps: int) -> Iterator[Callable[[int, float, float | None], None]]:
    """A progress bar, or nothing."""
    if not shown:
        yield lambda step, loss, held_out: None
        return
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (
        TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(),
        TextColumn("loss {task.fields[loss]}"),
    )
    with Progress(*columns) as bar:
        task = bar.add_task(name, total=steps, loss="")

        def show(step: int, loss: float, held_out: float | None) -> None:
            text = f"{loss:.4f}" if held_out is None else f"{loss:.4f}, held out {held_out:.4f}"
            bar.update(task, completed=step, loss=text)

        yield show
