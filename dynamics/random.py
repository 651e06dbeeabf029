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

import torch
from torch import Tensor

_MASK = 0xFFFFFFFF
_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
_WEYL = (0x9E3779B9, 0xBB67AE85)
_ROUNDS = 10
_NO_MEMBER = 0xFFFFFFFF


def _philox(counter: tuple[Tensor, Tensor, Tensor, Tensor], key: tuple[int, int]) -> tuple[Tensor, ...]:
    """Ten rounds of Philox4x32 on int64 tensors that hold unsigned 32-bit words."""
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(_ROUNDS):
        # Products of two 32-bit words fill all 64 bits; the masked shift reads the high word despite the sign bit.
        p0, p1 = c0 * _MULTIPLIERS[0], c2 * _MULTIPLIERS[1]
        c0, c1, c2, c3 = (
            ((p1 >> 32) & _MASK) ^ c1 ^ k0,
            p1 & _MASK,
            ((p0 >> 32) & _MASK) ^ c3 ^ k1,
            p0 & _MASK,
        )
        k0, k1 = (k0 + _WEYL[0]) & _MASK, (k1 + _WEYL[1]) & _MASK
    return c0, c1, c2, c3


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
        experiments: number of experiments E, or the tuple of their indices (a part of a larger batch).
        members: number of members N, or the tuple of their indices.
        step: the index of the assimilation step (or trajectory step) these numbers belong to; see `at`.
        antithetic: normal numbers come in mirrored pairs, member `n + N/2` has those of member `n` with the other
            sign; the mean over members of anything linear in them is then exact.
    """

    seed: int
    experiments: int | tuple[int, ...] = 1
    members: int | tuple[int, ...] = 1
    step: int = 0
    antithetic: bool = False
    position: Position = field(default_factory=Position, repr=False, compare=False)

    def __post_init__(self) -> None:
        """Check the seed; a silent wrap would make two seeds share their numbers."""
        if not 0 <= self.seed <= _MASK:
            raise ValueError(f"seed is {self.seed}; expected an integer from 0 to {_MASK}")
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

    def words(self, shape: tuple[int, ...], device: torch.device | str) -> Tensor:
        """Unsigned 32-bit words as int64, shape `shape`, whose leading dims are `(E, N)` or `(E,)`."""
        rows = self.rows
        shared = len(shape) == 1 and shape[0] == rows[0]
        if not shared and tuple(shape[:2]) != rows:
            raise ValueError(
                f"a draw of shape {tuple(shape)} was asked of streams with rows (experiment, member) = {rows}; "
                f"expected {rows} or ({rows[0]},) in front"
            )
        count = 1 if shared else math.prod(shape[2:])
        blocks = torch.arange((count + 3) // 4, device=device)
        experiments = _indices(self.experiments, device)[:, None, None]
        members = torch.full((1, 1, 1), _NO_MEMBER, device=device)
        if not shared:
            members = _indices(self.members, device)[None, :, None]
        zero = torch.zeros((), dtype=torch.int64, device=device)
        draw = zero + self.position.advance()
        words = _philox((blocks + zero, draw, members + zero, experiments + zero), (self.seed, self.step & _MASK))
        full = torch.broadcast_shapes(*(w.shape for w in words))
        return torch.stack([w.expand(full) for w in words], -1).flatten(-2)[..., :count].reshape(shape)


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
    rows = tuple(shape[:2])
    count = math.prod(shape[2:])
    pairs = (count + 1) // 2
    words = rng.words((*rows, 2 * pairs), device)
    unit = (words.to(dtype) + 0.5) * (1.0 / 2**32)
    radius = torch.sqrt(-2.0 * torch.log(unit[..., 0::2]))
    angle = (2.0 * math.pi) * unit[..., 1::2]
    both = torch.stack([radius * torch.cos(angle), radius * torch.sin(angle)], -1).flatten(-2)
    return both[..., :count].reshape(shape)


def _count(rows: int | tuple[int, ...]) -> int:
    return rows if isinstance(rows, int) else len(rows)


def _indices(rows: int | tuple[int, ...], device: torch.device | str) -> Tensor:
    return torch.arange(rows, device=device) if isinstance(rows, int) else torch.tensor(rows, device=device)
