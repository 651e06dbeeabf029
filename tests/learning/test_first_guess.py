"""First guesses: kriging is exact, blocks fit, errors are those of kriging, draws have the first guess as their mean,
and a short training helps."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from assimilate.baselines.field_law import LawFit, at_distance, stretched
from assimilate.baselines.motion import field_scale
from assimilate.learning.first_guess import DRIEST, Draws, FirstGuess, Gauges, censored, draws, turned, turned_law
from assimilate.learning.first_guess_fit import (
    FirstGuessFit,
    fit_first_guess,
    guess_pool,
    random_gauges,
)  # fmt: skip
from assimilate.learning.fit import FitSettings
from dynamics.radar import RainStorms
from dynamics.random import Streams

GRID = (40, 32)


def gauges(count: int = 60, depth: float = 0.0, seed: int = 0) -> Gauges:
    rng = torch.Generator().manual_seed(seed)
    index = torch.randperm(GRID[0] * GRID[1], generator=rng)[:count]
    places = torch.stack([index // GRID[1], index % GRID[1]], 1).float()
    now = count if depth == 0 else count // 2
    depths = torch.zeros(count)
    depths[now:] = depth
    return Gauges(places, depths, now)


def test_kriging_weights_are_those_of_the_textbook_system():
    guess, g = FirstGuess(length=20.0, noise=0.1), gauges(12, depth=5.0)
    weights = guess.kriging(g, GRID).weights
    at = torch.cat([g.places, g.depth[:, None]], 1).double()
    matrix = torch.zeros(13, 13, dtype=torch.float64)
    matrix[:12, :12] = torch.exp(-torch.cdist(at, at) / 20) + 0.01 * torch.eye(12)
    matrix[12, :12] = matrix[:12, 12] = 1
    cell = torch.tensor([[7.0, 9.0, 0.0]], dtype=torch.float64)
    right = torch.cat([torch.exp(-torch.cdist(at, cell) / 20), torch.ones(1, 1)])
    exact = torch.linalg.solve(matrix, right)[:12, 0]
    torch.testing.assert_close(weights[:, 7 * 32 + 9].double(), exact, rtol=0, atol=1e-5)


def test_leaving_a_gauge_out_is_kriging_of_the_others():
    guess, g = FirstGuess(length=20.0, noise=0.1), gauges(14, depth=5.0)
    g = g._replace(law=torch.tensor([2.5, 0.5, 0.3, 1.1]))
    values = torch.randn(14, generator=torch.Generator().manual_seed(2))
    off = values @ guess.kriging(g, GRID).left_out
    assert off.shape == (7,)
    for k in range(7):
        others = torch.arange(14) != k
        rest = Gauges(g.places[others], g.depth[others], 6, g.law)
        made = values[others] @ guess.kriging_at(rest, g.places[k : k + 1]).weights[:, 0]
        assert float(off[k]) == pytest.approx(float(values[k] - made), abs=1e-4)


def test_kriging_under_a_stretched_law_is_that_on_a_stretched_map():
    guess, g = FirstGuess(length=20.0), gauges(30)
    law = torch.tensor([torch.tensor(20.0).log(), 1.4, 0.0, 1.0])
    under = guess.kriging(g._replace(law=law), GRID)
    # Rows are pulled apart by exp(s / 4), columns pushed together by as much.
    size = torch.tensor([0.35, -0.35], dtype=torch.float64).exp()
    places, cell = g.places.double() * size, torch.tensor([[7.0, 9.0]]) * size
    matrix = torch.exp(-torch.cdist(places, places) / 20) + 0.05**2 * torch.eye(30)
    full = torch.ones(31, 31, dtype=torch.float64)
    full[:30, :30], full[30, 30] = matrix, 0
    right = torch.cat([torch.exp(-torch.cdist(places, cell) / 20), torch.ones(1, 1)])
    exact = torch.linalg.solve(full, right)[:30, 0]
    torch.testing.assert_close(under.weights[:, 7 * 32 + 9].double(), exact, rtol=0, atol=1e-5)


def test_censored_draws_have_the_mean_that_was_asked_for():
    mean, std = torch.tensor([-1.0, 0.0, 0.1, 0.5, 2.0, 10.0]), torch.tensor([1.0, 0.5, 1.0, 0.5, 1.0, 0.5])
    # Quantiles of the normal law at 20,000 levels: a sum over them is an integral to 1e-3 of a standard deviation.
    z = torch.special.ndtri((torch.arange(20_000, dtype=torch.float64) + 0.5) / 20_000)
    drawn = censored(mean.double(), std.double(), z[:, None] * std)
    wanted = torch.maximum(mean, DRIEST * std).double()
    torch.testing.assert_close(drawn.mean(0), wanted, rtol=0, atol=1e-3)
    assert float(drawn.min()) == 0.0
    # Far above the floor it is a normal variable.
    torch.testing.assert_close(drawn[:, 5], 10.0 + 0.5 * z, rtol=0, atol=1e-5)


def test_bases_scatter_about_the_first_guess_and_stay_above_the_floor():
    members, g = 400, gauges(60, seed=3)
    guess, rng = FirstGuess(), torch.Generator().manual_seed(1)
    values = torch.rand(60, generator=rng) ** 3
    white = draws(Streams(1, 1, members).mirrored(), (1, members), GRID, 60, torch.zeros(()))
    white = Draws(white.field[0], white.gauges[0])
    mean, std = guess.mean(g, values[None], GRID), guess.kriging(g, GRID).std.reshape(1, 1, *GRID)
    free = guess.bases(g, values, GRID, white)
    # Mirrored pairs cancel.
    torch.testing.assert_close(free.mean(0, keepdim=True), mean, rtol=0, atol=1e-4)
    floored = guess.bases(g, values, GRID, white, 0.0)
    assert float(floored.min()) == 0.0
    # What a floor alone does to the mean, and what is left of it with 400 draws.
    error = guess.size(g, values) * std
    raised = (free.clamp_min(0.0).mean(0) - mean).mean() / error.mean()
    left = (floored.mean(0) - mean).mean() / error.mean()
    assert float(raised) > 0.02 and abs(float(left)) < 0.3 * float(raised)


def test_errors_are_those_of_kriging():
    grid, members, count = (80, 72), 200, 150
    guess, rng = FirstGuess(), torch.Generator().manual_seed(0)
    index = torch.randperm(80 * 72, generator=rng)[:count]
    places = torch.stack([index // 72, index % 72], 1).float()
    g = Gauges(places, torch.zeros(count), count)
    kriging = guess.kriging(g, grid)
    white = draws(Streams(1, 1, members), (1, members), grid, count, torch.zeros(()))
    values = 2.0 * torch.randn(count, generator=rng)
    errors = guess.errors(g, values, grid, Draws(white.field[0], white.gauges[0]), kriging)
    scale = float(field_scale(places, values[None], guess.length, guess.noise)[0])
    # 200 draws know a variance to 10 % in a cell, and to 1 % over the grid; that of the unknown mean, not in `std`,
    # and the clipped spectrum add some per cent.
    ratio = errors.square().mean() / (scale * kriging.std).square().mean()
    assert float(ratio) == pytest.approx(1.04, abs=0.05)
    # Members err by noise alone at the gauges.
    at = errors.flatten(1)[:, index]
    assert float(at.std()) < 3 * scale * guess.noise


def test_the_network_sees_blocks_and_its_zeros_change_nothing():
    from assimilate.learning.networks import sized_network

    network = sized_network("unet", {"widths": (8, 16)}, 1, 1, context=8, noise=True)
    guess, g = FirstGuess(network), gauges(50)
    values = torch.randn(2, 50, generator=torch.Generator().manual_seed(1))
    plain = FirstGuess().mean(g, values, GRID)
    # The last convolution of a new network is zero.
    torch.testing.assert_close(guess.mean(g, values, GRID), plain)
    law = torch.tensor([3.0, 0.2, -0.1, 1.1])
    g = g._replace(law=law)
    kriging, centres = guess.kriging(g, GRID), guess.centres(GRID)
    blocks = plain[centres]
    assert torch.equal(blocks, plain[..., 1:39:3, 1:30:3])
    told = guess.told(g, values, blocks, kriging.std.reshape(GRID)[centres], kriging.left_out)
    assert told.shape == (2, 8, 13, 10)
    assert float(told[0, 1].sum()) == len({(int(y) // 3, min(int(x) // 3, 9)) for y, x in g.places.clamp_max(38)})
    ramp = torch.arange(13.0)[:, None].expand(13, 10)[None, None]
    alone = [k for k in range(50) if int((g.places.div(3).long() == g.places[k].div(3).long()).all(1).sum()) == 1]
    row, column = (int(n) // 3 for n in g.places[alone[0]])
    errors = [values[:, alone[0]] - blocks[:, 0, row, column], (values @ kriging.left_out)[:, alone[0]]]
    torch.testing.assert_close(told[:, 2:4, row, column], torch.stack(errors, 1))
    constants = torch.stack([(law[0] - torch.tensor(30.0).log()) / 0.5, law[1], law[2], (law[3] - 1) / 0.25])
    torch.testing.assert_close(told[1, 4:], constants[:, None, None].expand(4, 13, 10))
    torch.nn.init.constant_(network.leave.bias, 0.5)
    added = guess.mean(g, values, GRID) - FirstGuess().mean(g, values, GRID)
    torch.testing.assert_close(added, torch.full_like(added, 0.5), rtol=0, atol=1e-5)
    fine = guess.spread(ramp, GRID)
    assert fine.shape == (1, 1, *GRID)
    torch.testing.assert_close(fine[..., 1:39:3, 1:30:3], ramp, rtol=0, atol=1e-5)
    assert torch.equal(fine[..., 39:, :], fine[..., 38:39, :])


def test_gauges_of_the_hour_before_come_along_or_are_left_out():
    guess = FirstGuess()
    fields = torch.full((2, *GRID), torch.nan)
    fields[:, 10, 10], fields[:, 39, 31] = torch.tensor([1.0, 2.0]), torch.tensor([3.0, 4.0])
    motion = torch.tensor([6.0, 0.0, 20.0, 16.0, 0.0, 2.0, 1.0])
    found, values = guess.gauges(fields, motion)
    assert values.tolist() == [1.0, 3.0, 2.0] and found.now == 2
    assert found.places[2].tolist() == [16.0, 10.0]
    assert float(found.depth[2]) == pytest.approx(math.hypot(math.e, guess.memory))
    motion[6] = 5.0
    assert guess.gauges(fields, motion)[1].tolist() == [1.0, 3.0]
    assert guess.moved(fields, None) is None


def test_the_correction_turns_with_the_field():
    from assimilate.learning.networks import sized_network

    network = sized_network("unet", {"widths": (8, 16)}, 1, 1, context=8, noise=True)
    rng = torch.Generator().manual_seed(0)
    for parameter in network.parameters():
        parameter.data = 0.2 * torch.randn(parameter.shape, generator=rng)
    guess, told = FirstGuess(network), torch.randn(2, 9, 14, 10, generator=rng)
    made = guess.corrected(told)
    for turns in (1, 6):
        other = torch.cat([turned(told[:, :5], turns), turned(turned_law(told[:, 5:], turns), turns)], 1)
        torch.testing.assert_close(guess.corrected(other), turned(made, turns), rtol=1e-4, atol=1e-4)
    alone = network(told[:, :1], told.new_zeros(2), told[:, 1:]).detach()
    assert float((made - alone).abs().max()) > 0.01


@pytest.mark.parametrize("turns", range(8))
def test_a_law_turns_with_its_field(turns):
    axis = torch.arange(-3.0, 4.0)
    y, x = torch.meshgrid(axis, axis, indexing="ij")
    law = torch.tensor([[2.0, 0.6, -0.8, 1.2]])
    other = turned_law(law, turns)
    before, after = (at_distance(of, stretched(of, y, x)) for of in (law, other))
    torch.testing.assert_close(after, turned(before, turns))


def test_the_pool_holds_what_is_seen_in_use():
    law = LawFit(lengths=(6.0, 25.0), stretches=(0.7,), angles=4, powers=(1.0,), hours=3)
    guess, rng = FirstGuess(law=law), torch.Generator().manual_seed(0)
    storms = RainStorms(*GRID).storms((1,), 3, rng=rng)
    settings = FirstGuessFit(sparse=(0.1, 0.1), middle=(0.1, 0.1), dense=(0.1, 0.1), old=0.0, alike=3, noise=0.0)
    pool = guess_pool(storms, 4, settings, guess, torch.Generator().manual_seed(3))
    assert len(pool.rest) == 6 and pool.told.shape == (6, 5, 13, 10)
    # The first random numbers are those of the gauges, then of the storms, then of the hours.
    again = torch.Generator().manual_seed(3)
    g, _ = random_gauges(GRID, settings, again)
    torch.randint(1, (3,), generator=again)
    last = torch.randint(1, 3, (3,), generator=again)
    seen = torch.full((3, *GRID), torch.nan)
    rows, columns = g.places.long().unbind(1)
    seen[:, rows, columns] = storms[0, :, 0][:, rows, columns]
    for k in range(3):
        found, values = guess.gauges(seen[: int(last[k]) + 1].flip(0), None)
        kriging = guess.kriging(found, GRID)
        blocks = (values @ kriging.weights).reshape(1, 1, *GRID)[guess.centres(GRID)]
        told = guess.told(found, values[None], blocks, kriging.std.reshape(GRID)[guess.centres(GRID)], kriging.left_out)
        # Half precision, and laws from values in single precision.
        torch.testing.assert_close(pool.told[k].float(), torch.cat([blocks, told[:, :4]], 1)[0], rtol=0, atol=0.02)
        torch.testing.assert_close(pool.law[k].float(), told[0, 4:, 0, 0], rtol=0, atol=0.02)
        means = torch.nn.functional.avg_pool2d(storms[0, last[k]], 3)
        torch.testing.assert_close(pool.rest[k].float(), means - pool.told[k, :1].float(), rtol=0, atol=0.01)


def test_a_short_training_learns_what_kriging_cannot_know():
    # Cells that know nothing of each other: a long correlation is wrong about them, and the network can tell.
    fields = torch.randn(96, 1, 1, *GRID, generator=torch.Generator().manual_seed(0))
    settings = FirstGuessFit(
        samples=512, alike=32, sparse=(0.1, 0.12), middle=(0.1, 0.12), dense=(0.1, 0.12), network={"widths": (16,)},
        training=FitSettings(steps=120, batch=16, learning_rate=3e-3, warmup=10, ema=0.95, held_out_batch=16,
            precision="bfloat16",
        ),
    )  # fmt: skip
    plain = FirstGuess(law=None)
    guess, record = fit_first_guess(fields[:64], fields[64:], settings, guess=plain)
    assert guess.law is None
    fields = fields[:, 0]
    g, _ = random_gauges(GRID, replace(settings, old=0.0), torch.Generator().manual_seed(12))
    values = fields[64:, 0][:, g.places[:, 0].long(), g.places[:, 1].long()]
    errors = [(m.mean(g, values, GRID) - fields[64:]).square().mean() for m in (guess, plain)]
    # The mean of the field, 0, errs by 1; kriging of white noise errs by more.
    assert float(errors[1]) > 1.15
    assert float(errors[0]) - 1 < 0.6 * (float(errors[1]) - 1)
    assert guess.network is not None and record["losses"]["rows"]
