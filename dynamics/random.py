"""Random numbers that belong to a row: one independent stream for each experiment and member.

A filter draws noise for a tensor `(experiment, member, *event)`. With one sequential generator the numbers of row i
depend on how many rows stand before it, on the batch and on the history. `Streams` is counter-based instead: number
`j` of draw `d` of row `(e, n)` at step `k` is a pure function

    Philox4x32-10(counter = (j // 4, d, n, e), key = (seed, k))

so a row is unchanged when rows are added, a resumed run needs to remember only `k`, and every device gives the same
integers. Everything that draws takes `rng`, either a `Streams` or a plain `torch.Generator`.

References:
    Salmon, Moraes, Dror, Shaw (2011), Parallel random numbers: as easy as 1, 2, 3,
    https://doi.org/10.1145/2063384.2063405
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from numbers import Integral

import torch
from torch import Tensor

from dynamics.philox import MASK, Part, draw_words

Rows = int | tuple[int, ...] | range
"""How many rows there are, or which ones."""
_NO_MEMBER = 0xFFFFFFFF


@dataclass(frozen=True)
class Position:
    """How many draws a `Streams` has served; the only thing in it that changes."""

    draws: list[int] = field(default_factory=lambda: [0])

    def advance(self) -> int:
        """Return the index of this draw and count it."""
        self.draws[0] += 1
        return self.draws[0] - 1


@dataclass(frozen=True)
class Streams:
    """Independent random streams for the rows `(experiment, member)`.

    Args:
        seed: any integer from 0 to 2**32 - 1.
        experiments: number of experiments E, or the tuple or range of their indices (a part of a larger batch).
        members: number of members N, or the tuple or range of their indices.
        step: the index of the assimilation step (or trajectory step) these numbers belong to; see `at`.
        antithetic: normal numbers come in mirrored pairs, member `n + N/2` has those of member `n` with the other
            sign; the mean over members of anything linear in them is then exact.
    """

    seed: int
    experiments: Rows = 1
    members: Rows = 1
    step: int = 0
    antithetic: bool = False
    position: Position = field(default_factory=Position, repr=False, compare=False)

    def __post_init__(self) -> None:
        """Check the seed; a silent wrap would make two seeds share their numbers."""
        if not isinstance(self.seed, Integral) or not 0 <= self.seed <= MASK:
            raise ValueError(f"seed is {self.seed!r}; expected an integer from 0 to {MASK}")
        if self.antithetic and (not isinstance(self.members, int) or self.members % 2):
            raise ValueError(f"antithetic streams need an even number of members; members is {self.members}")

    @property
    def rows(self) -> tuple[int, int]:
        """The leading dims `(E, N)` of what is drawn."""
        return _count(self.experiments), _count(self.members)

    def at(self, step: int) -> Streams:
        """The fresh streams of another step: same rows, no draws served."""
        return replace(self, step=step, position=Position())

    def mirrored(self) -> Streams:
        """The same streams with normal numbers in mirrored pairs; draws are counted together."""
        return replace(self, antithetic=True)

    def part(self, start: int, stop: int) -> Streams:
        """The streams of the members from `start` to before `stop` among these; they count their own draws.

        Parts see the next draws of the whole, one part as the other; `follow` tells the whole what was drawn.

        Raises:
            ValueError: the streams are antithetic: a member's mirror image may lie in another part.
        """
        if self.antithetic:
            raise ValueError("antithetic streams come in pairs of members and cannot be cut into parts")
        members = range(self.members)[start:stop] if isinstance(self.members, int) else self.members[start:stop]
        return replace(self, members=members, position=Position([*self.position.draws]))

    def follow(self, part: Streams) -> None:
        """Count the draws that a part of these streams has served."""
        self.position.draws[0] = part.position.draws[0]

    def words(self, shape: tuple[int, ...], device: torch.device | str) -> Tensor:
        """Unsigned 32-bit words as int64, shape `shape`, whose leading dims are `(E, N)` or `(E,)`."""
        shared = len(shape) == 1 and shape[0] == self.rows[0]
        count = 1 if shared else math.prod(shape[2:])
        make = _words_compiled if torch.compiler.is_compiling() else _words
        place = torch.device(device)
        return make(*self._draw(shape, place, shared=shared), count, place).reshape(shape)

    def _draw(self, shape: tuple[int, ...], device: torch.device, *, shared: bool = False) -> tuple[Tensor, list[int]]:
        """The next draw: experiment and member of each row, `(2, R)`, and the draw's index, the seed and the step."""
        rows = self.rows
        if not shared and tuple(shape[:2]) != rows:
            raise ValueError(
                f"a draw of shape {tuple(shape)} was asked of streams with rows (experiment, member) = {rows}; "
                f"expected {rows} or ({rows[0]},) in front"
            )
        members = _indices((_NO_MEMBER,) if shared else self.members, device)
        experiments = _indices(self.experiments, device)
        size = (len(experiments), len(members))
        pairs = torch.stack([experiments[:, None].expand(size), members.expand(size)]).flatten(1)
        return pairs, [self.position.advance(), self.seed, self.step & MASK]


Rng = torch.Generator | Streams


def uniform(
    rng: Rng, shape: tuple[int, ...], *, dtype: torch.dtype = torch.float32, device: torch.device | str = "cpu"
) -> Tensor:
    """Uniform numbers in (0, 1), shape `shape`.

    Args:
        rng: `Streams` (leading dims of `shape` are its rows, or `(E,)` for one number an experiment) or a generator.
        shape: shape of the result.
        dtype: float32 or float64.
        device: where the result lives.
    """
    if isinstance(rng, torch.Generator):
        return torch.rand(shape, generator=rng, dtype=dtype, device=rng.device).to(device)
    words = rng.words(tuple(shape), device).to(torch.float64)
    # The largest word rounds to 1 in float32, where a resampler's search would run past its end.
    limit = 1.0 - torch.finfo(dtype).eps / 2
    return ((words + 0.5) / 2**32).to(dtype).clamp_max(limit)


def normal(
    rng: Rng, shape: tuple[int, ...], *, dtype: torch.dtype = torch.float32, device: torch.device | str = "cpu"
) -> Tensor:
    """Standard normal numbers, shape `shape` (Box-Muller on the counter-based words).

    Args:
        rng: `Streams` (leading dims of `shape` are its rows) or a generator.
        shape: shape of the result.
        dtype: float32 or float64.
        device: where the result lives.
    """
    if isinstance(rng, torch.Generator):
        return torch.randn(shape, generator=rng, dtype=dtype, device=rng.device).to(device)
    if rng.antithetic:
        half = rng.rows[1] // 2
        one = replace(rng, members=half, antithetic=False)
        z = normal(one, (shape[0], half, *shape[2:]), dtype=dtype, device=device)
        return torch.cat([z, -z], 1)
    count = math.prod(shape[2:])
    make = _normals_compiled if torch.compiler.is_compiling() else _normals
    place = torch.device(device)
    return make(*rng._draw(tuple(shape), place), count, dtype, place).reshape(shape)


def _words(rows: Tensor, draw: list[int], count: int, device: torch.device) -> Tensor:
    """`(R, count)` int64."""
    out = torch.empty(rows.shape[1], count, dtype=torch.int64, device=device)
    for part in draw_words(rows, (count + 3) // 4, draw, device):
        _place(out, part, part.first, part.second)
    return out


def _normals(rows: Tensor, draw: list[int], count: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """`(R, count)` normal numbers."""
    out = torch.empty(rows.shape[1], count, dtype=dtype, device=device)
    for part in draw_words(rows, (count + 3) // 4, draw, device):
        radius, angle = _units(part, dtype)
        radius.log_().mul_(-2.0).sqrt_()
        angle.mul_(2.0 * math.pi)
        if count % 4:
            _place(out, part, torch.cos(angle).mul_(radius), angle.sin_().mul_(radius))
            continue
        # Words 0 and 2 of a block give its numbers 0 and 2 by the cosine, 1 and 3 by the sine.
        columns = out[part.rows, 4 * part.blocks.start : 4 * part.blocks.stop].unflatten(1, (-1, 2, 2))
        cosines, sines = columns.permute(3, 2, 0, 1)
        torch.mul(radius, torch.cos(angle), out=cosines)
        torch.mul(radius, angle.sin_(), out=sines)
    return out


# torch.compile must not look inside: the 64-bit products of its CPU code are not exact. So it sees operators.
_words_compiled = torch.library.custom_op(
    "assimilate::words", _words, mutates_args=(), schema="(Tensor rows, int[] draw, int count, Device device) -> Tensor"
)
_normals_compiled = torch.library.custom_op(
    "assimilate::normals",
    _normals,
    mutates_args=(),
    schema="(Tensor rows, int[] draw, int count, ScalarType dtype, Device device) -> Tensor",
)


@_words_compiled.register_fake
def _(rows: Tensor, draw: list[int], count: int, device: torch.device) -> Tensor:
    return torch.empty(rows.shape[1], count, dtype=torch.int64, device=device)


@_normals_compiled.register_fake
def _(rows: Tensor, draw: list[int], count: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    return torch.empty(rows.shape[1], count, dtype=dtype, device=device)


def _units(part: Part, dtype: torch.dtype) -> Tensor:
    """The words of a part as numbers from 0 to 1, the first ones and the second ones, `(2, 2, k, b)`."""
    # One tensor for all: where few are drawn the calls cost more than the arithmetic.
    made = torch.empty(2, *part.first.shape, dtype=dtype, device=part.first.device)
    made[0].copy_(part.first)
    made[1].copy_(part.second)
    return made.add_(0.5).mul_(1.0 / 2**32)


def _place(out: Tensor, part: Part, first: Tensor, second: Tensor) -> None:
    """Write to rows and columns of `out` what was made of the words of a part, `(2, k, b)` both."""
    end = min(4 * part.blocks.stop, out.shape[1])
    for k, values in enumerate((first[0], second[0], first[1], second[1])):
        columns = out[part.rows, 4 * part.blocks.start + k : end : 4]
        columns.copy_(values[:, : columns.shape[1]])


def _count(rows: Rows) -> int:
    return rows if isinstance(rows, int) else len(rows)


def _indices(rows: Rows, device: torch.device) -> Tensor:
    if isinstance(rows, range):
        return torch.arange(rows.start, rows.stop, rows.step, device=device)
    return torch.arange(rows, device=device) if isinstance(rows, int) else torch.tensor(rows, device=device)
