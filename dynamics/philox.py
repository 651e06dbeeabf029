"""Philox4x32-10: four random 32-bit words, a pure function of a counter (c0, c1, c2, c3) and a key (k0, k1).

    c <- (high(m1 c2) ^ c1 ^ k0,  low(m1 c2),  high(m0 c0) ^ c3 ^ k1,  low(m0 c0)),    ten rounds with moving keys

Of each pair of words one is the high and one the low half of a product. Held as 64-bit numbers a = (c0, c1) and
b = (c2, c3), the keys put on where a high half is used, a round is five operations a pair:

    a, b <- m1 (b >> 32 ^ k1) ^ (a << 32),   m0 (a >> 32 ^ k0) ^ (b << 32)

On the CPU numpy does this in place, in chunks that stay in the cache (torch has no shifts of unsigned numbers): 4 times
faster than the formula above on int64 tensors, which serves the other devices. The words are the same.

References:
    Salmon, Moraes, Dror, Shaw (2011), Parallel random numbers: as easy as 1, 2, 3,
    https://doi.org/10.1145/2063384.2063405
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Unsigned = NDArray[np.uint64]

MASK = 0xFFFFFFFF
CHUNK = 16_384
"""Blocks of four words that are made at a time: 0.5 MB of work space, a part of a core's cache."""
_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
_WEYL = (0x9E3779B9, 0xBB67AE85)
_ROUNDS = 10
_HALF = np.uint64(32)
_FACTORS = np.array(_MULTIPLIERS, np.uint64)[:, None]
_MOVED = np.arange(_ROUNDS, dtype=np.uint64)[:, None] * np.array(_WEYL, np.uint64)
"""How far the keys have moved in each round."""


class Part(NamedTuple):
    """Some of the words of a draw: k rows, b blocks of four words in each.

    Attributes:
        rows: where the rows are among all.
        blocks: where the blocks are among those of a row.
        first: words 0 and 2 of each block, `(2, k, b)`, uint32 or int64.
        second: words 1 and 3, the same.
    """

    rows: slice
    blocks: slice
    first: Tensor
    second: Tensor


def draw_words(rows: Tensor, blocks: int, draw: list[int], device: torch.device) -> Iterator[Part]:
    """The words of counters (block, draw, member, experiment), a part at a time.

    Args:
        rows: experiment and member of each row, `(2, R)` int64, on the device.
        blocks: how many blocks of four words each row has.
        draw: index of the draw, and the two words of the key.
        device: where the words live.
    """
    number, *key = draw
    count = rows.shape[1]
    if device.type != "cpu":
        experiment, member = rows[:, :, None]
        block = torch.arange(blocks, device=device)
        words = philox((block, torch.full_like(block, number), member, experiment), key)
        first, second = (torch.stack([w.expand(count, blocks) for w in words[k::2]]) for k in (0, 1))
        yield Part(slice(0, count), slice(0, blocks), first, second)
        return
    # The same memory: for a million rows a copy takes as long as half of their words.
    experiments, members = rows.numpy().view(np.uint64)
    rows_at_once, blocks_at_once = max(1, CHUNK // max(blocks, 1)), max(1, min(blocks, CHUNK))
    for row in range(0, count, rows_at_once):
        some = slice(row, min(row + rows_at_once, count))
        for begin in range(0, blocks, blocks_at_once):
            part = slice(begin, min(begin + blocks_at_once, blocks))
            c0 = np.arange(part.start, part.stop, dtype=np.uint64)
            words = philox_blocks(c0, number, members[some], experiments[some], key)
            halves = torch.from_numpy(words.view(np.uint32).reshape(*words.shape, 2))
            # The high half lies second on a little-endian machine.
            high, low = (1, 0) if sys.byteorder == "little" else (0, 1)
            yield Part(some, part, halves[..., high], halves[..., low])


def philox(counter: tuple[Tensor, Tensor, Tensor, Tensor], key: Sequence[int]) -> tuple[Tensor, ...]:
    """Ten rounds on int64 tensors that hold unsigned 32-bit words; they broadcast."""
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(_ROUNDS):
        # Products of two 32-bit words fill all 64 bits; the masked shift reads the high word despite the sign bit.
        p0, p1 = c0 * _MULTIPLIERS[0], c2 * _MULTIPLIERS[1]
        c0, c1, c2, c3 = (
            ((p1 >> 32) & MASK) ^ c1 ^ k0,
            p1 & MASK,
            ((p0 >> 32) & MASK) ^ c3 ^ k1,
            p0 & MASK,
        )
        k0, k1 = (k0 + _WEYL[0]) & MASK, (k1 + _WEYL[1]) & MASK
    return c0, c1, c2, c3


def philox_blocks(blocks: Unsigned, draw: int, members: Unsigned, experiments: Unsigned, key: Sequence[int]) -> Any:
    """Ten rounds on counters (block, draw, member, experiment) of every block and row.

    Args:
        blocks: c0, `(b,)`.
        draw: c1.
        members: c2, `(k,)`.
        experiments: c3, `(k,)`.
        key: two 32-bit words.

    Returns:
        `(2, k, b)` uint64: words 0 and 1 of each block as the high and the low half, then words 2 and 3.
    """
    keys = ((np.array(key, np.uint64) + _MOVED) & np.uint64(MASK))[:, :, None]
    state = np.empty((2, len(members), len(blocks)), np.uint64)
    # The first round, half of which is the same for all blocks of a row.
    state[0] = (members * _FACTORS[1] ^ np.uint64(draw << 32))[:, None]
    np.bitwise_xor((experiments << _HALF)[:, None], blocks * _FACTORS[0], out=state[1])
    pairs = state.reshape(2, -1)
    work = np.empty_like(pairs)
    other = work[::-1]
    for k in range(_ROUNDS - 1):
        np.right_shift(pairs, _HALF, out=work)
        np.bitwise_xor(work, keys[k], out=work)
        np.multiply(work, _FACTORS, out=work)
        np.left_shift(pairs, _HALF, out=pairs)
        np.bitwise_xor(pairs, other, out=pairs)
    pairs ^= keys[-1] << _HALF
    return state
