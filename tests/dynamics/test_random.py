"""Counter-based random numbers: published answers, independence of rows, moments."""

import math

import numpy as np
import pytest
import torch

from dynamics.philox import CHUNK, philox, philox_blocks
from dynamics.random import Streams, normal, uniform


def by_formula(counter, key):
    words = philox(tuple(torch.tensor([word]) for word in counter), key)
    return [int(word) for word in words]


def by_halves(counter, key):
    block, member, experiment = (np.array([counter[k]], np.uint64) for k in (0, 2, 3))
    pairs = philox_blocks(block, counter[1], member, experiment, key)
    return [int(word) for pair in pairs.flatten() for word in (pair >> np.uint64(32), pair & np.uint64(0xFFFFFFFF))]


@pytest.mark.parametrize(
    ("counter", "key", "answer"),
    [
        ((0,) * 4, (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
        ((0xFFFFFFFF,) * 4, (0xFFFFFFFF,) * 2, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
        (
            (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
            (0xA4093822, 0x299F31D0),
            (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
        ),
    ],
)
def test_philox_known_answers(counter, key, answer):
    # kat_vectors of Random123 (Salmon et al. 2011), philox4x32 with 10 rounds.
    assert by_formula(counter, key) == list(answer)
    assert by_halves(counter, key) == list(answer)


@pytest.mark.parametrize(
    ("experiments", "members", "count"), [((3, 0), 5, 7), (1, CHUNK + 3, 5), (2, 2, 4 * CHUNK + 9)]
)
def test_words_of_chunks_are_those_of_the_formula(experiments, members, count):
    # Few rows, rows and blocks beyond one chunk; 32-bit seeds and steps at the end of their range.
    seed, step, draw = 2**32 - 1, 2**32 - 2, 1
    streams = Streams(seed, experiments, members, step=step)
    shape = (*streams.rows, count)
    streams.words(shape, "cpu")
    e = torch.tensor(experiments if isinstance(experiments, tuple) else range(experiments))
    words = philox(
        (
            torch.arange((count + 3) // 4),
            torch.tensor([draw]),
            torch.arange(members)[:, None],
            e[:, None, None],
        ),
        (seed, step),
    )
    full = (*shape[:2], (count + 3) // 4)
    expected = torch.stack([word.expand(full) for word in words], -1).flatten(2)[..., :count]
    assert torch.equal(streams.words(shape, "cpu"), expected)


@pytest.mark.parametrize("draw", [normal, uniform])
def test_parts_have_the_numbers_of_the_whole(draw):
    whole = Streams(8, 3, 11, step=2)
    draw(whole, (3, 11, 2))
    parts = [whole.part(k, min(k + 4, 11)) for k in (0, 4, 8)]
    first, second = (torch.cat([draw(part, (*part.rows, 6)) for part in parts], 1) for _ in range(2))
    again = Streams(8, 3, 11, step=2)
    draw(again, (3, 11, 2))
    assert torch.equal(draw(again, (3, 11, 6)), first) and torch.equal(draw(again, (3, 11, 6)), second)
    whole.follow(parts[-1])
    assert torch.equal(draw(whole, (3, 11)), draw(again, (3, 11)))
    some = Streams(8, 3, (5, 2, 9, 4), step=2).part(1, 3)
    assert torch.equal(draw(some, (3, 2, 4)), draw(Streams(8, 3, 11, step=2), (3, 11, 4))[:, [2, 9]])
    with pytest.raises(ValueError, match="cannot be cut"):
        Streams(8, 3, 10).mirrored().part(0, 5)


def test_ranges_are_rows():
    few = normal(Streams(7, range(1, 4, 2), range(2, 6)), (2, 4, 5))
    assert torch.equal(few, normal(Streams(7, 4, 6), (4, 6, 5))[1::2, 2:])


@pytest.mark.parametrize("draw", [normal, uniform])
def test_rows_do_not_depend_on_other_rows(draw):
    few = draw(Streams(7, 2, 3, step=4), (2, 3, 5))
    many = draw(Streams(7, 6, 9, step=4), (6, 9, 5))
    assert torch.equal(many[:2, :3], few)
    part = draw(Streams(7, (1, 4), (2, 0), step=4), (2, 2, 5))
    assert torch.equal(part, many[[1, 4]][:, [2, 0]])


@pytest.mark.parametrize("draw", [normal, uniform])
def test_values_do_not_depend_on_how_many_are_drawn(draw):
    assert torch.equal(draw(Streams(1, 2, 2), (2, 2, 9))[..., :4], draw(Streams(1, 2, 2), (2, 2, 4)))


def test_steps_draws_and_seeds_differ():
    base = Streams(3, 1, 4)
    first, second = normal(base, (1, 4, 6)), normal(base, (1, 4, 6))
    later, other = normal(base.at(1), (1, 4, 6)), normal(Streams(4, 1, 4), (1, 4, 6))
    for a, b in [(first, second), (first, later), (first, other), (second, later)]:
        assert not torch.equal(a, b)
    assert torch.equal(normal(base.at(0), (1, 4, 6)), first)


def test_moments_and_correlations():
    rows, count = 400, 250
    z = normal(Streams(11, 1, rows), (1, rows, count), dtype=torch.float64)[0]
    n = z.numel()
    # Five standard errors each: a wrong variance, a shift or a skew fails.
    assert abs(float(z.mean())) < 5 / math.sqrt(n)
    assert abs(float(z.var()) - 1) < 5 * math.sqrt(2 / n)
    assert abs(float((z**3).mean())) < 5 * math.sqrt(15 / n)
    assert abs(float((z**4).mean()) - 3) < 5 * math.sqrt(96 / n)
    # Neighbouring rows and neighbouring values (the two of one Box-Muller pair among them) are uncorrelated.
    assert abs(float((z[1:] * z[:-1]).mean())) < 5 / math.sqrt(n)
    assert abs(float((z[:, 1:] * z[:, :-1]).mean())) < 5 / math.sqrt(n)
    u = uniform(Streams(11, 1, rows), (1, rows, count), dtype=torch.float64)[0]
    assert abs(float(u.mean()) - 0.5) < 5 / math.sqrt(12 * n)
    assert float(u.min()) > 0 and float(u.max()) < 1


def test_one_number_per_experiment():
    one = uniform(Streams(5, 3, 8), (3,))
    assert one.shape == (3,) and one.unique().numel() == 3
    assert torch.equal(uniform(Streams(5, 3, 2), (3,)), one)


def test_wrong_rows_and_seed_are_refused():
    with pytest.raises(ValueError, match=r"rows \(experiment, member\) = \(2, 3\)"):
        normal(Streams(0, 2, 3), (3, 2, 1))
    with pytest.raises(ValueError, match="seed is -1"):
        Streams(-1)


def test_mirrored_streams_come_in_pairs_and_count_their_draws():
    streams = Streams(3, 2, 6)
    mirrored = streams.at(4).mirrored()
    first, second = normal(mirrored, (2, 6, 5)), normal(mirrored, (2, 6, 5))
    assert torch.equal(first[:, :3], -first[:, 3:]) and not torch.equal(first, second)
    assert torch.equal(first[:, :3], normal(Streams(3, 2, 3).at(4), (2, 3, 5)))
    with pytest.raises(ValueError, match="even number"):
        Streams(3, 2, 5).mirrored()


@pytest.mark.slow
def test_traced_numbers_are_the_same():
    """torch.compile sees operators, because its own 64-bit products are not exact on the CPU; no code is generated."""
    traced = torch.compile(_two_draws, backend="aot_eager", fullgraph=True)
    for step in (1, 2, 3):
        found, expected = traced(Streams(3, 2, 5, step=step)), _two_draws(Streams(3, 2, 5, step=step))
        assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


def _two_draws(rows):
    return normal(rows, (2, 5, 3)), uniform(rows, (2,))
