"""The initial vorticity as an inverse problem: the exact laminar answer, the pixels, a recovery."""

import math

import pytest
import torch

from dynamics import Field, Space, SpaceMismatch
from imaging.operators.navier_stokes import EveryPixel, initial_vorticity
from observations import check_operator


@pytest.mark.parametrize("recompute", [True, False])
def test_contract(recompute):
    check_operator(initial_vorticity((1, 16, 16), steps=2, recompute=recompute))
    check_operator(EveryPixel((2, 8, 12), 4))


def test_from_rest_the_force_builds_its_laminar_flow():
    operator = initial_vorticity((1, 32, 32), every=4, reynolds=200.0, time=1.0, steps=4)
    y = 2 * math.pi * torch.arange(32, dtype=torch.float64) / 32
    rate = 16 / 200
    laminar = -4 * torch.cos(4 * y) * (1 - math.exp(-rate)) / rate
    seen = operator(torch.zeros(1, 32, 32, dtype=torch.float64))
    assert seen.shape == (1, 8, 8)
    assert torch.allclose(seen, laminar[::4, None].expand(1, 8, 8), rtol=0, atol=1e-12)


def test_pixels_and_their_places():
    space = Space((Field("w", "1", ("y", "x")),), {"y": torch.arange(6).numpy() * 0.5, "x": torch.arange(9).numpy()})
    operator = EveryPixel(space, 3)
    x = torch.arange(54.0).reshape(1, 6, 9)
    assert torch.equal(operator(x), torch.tensor([[[0.0, 3, 6], [27, 30, 33]]]))
    assert operator.positions.tolist() == [[0, 0], [0, 3], [0, 6], [1.5, 0], [1.5, 3], [1.5, 6]]


def test_a_vorticity_is_found_from_what_it_became():
    operator = initial_vorticity((1, 16, 16), every=1, time=0.5, steps=2)
    truth = operator.dynamics.prior((), rng=torch.Generator().manual_seed(0), dtype=torch.float64)
    y = operator(truth)
    guess = torch.zeros_like(truth).requires_grad_()
    optimiser = torch.optim.LBFGS([guess], max_iter=80, tolerance_change=1e-14, line_search_fn="strong_wolfe")

    def misfit():
        optimiser.zero_grad()
        value = (operator(guess) - y).square().sum()
        value.backward()
        return value

    optimiser.step(misfit)
    assert float((y - truth).norm()) > 0.3 * float(truth.norm())  # the flow has moved it far
    assert float((guess.detach() - truth).norm()) < 1e-4 * float(truth.norm())


def test_what_does_not_fit_is_refused():
    with pytest.raises(SpaceMismatch, match="square"):
        initial_vorticity((1, 16, 24))
    with pytest.raises(ValueError, match="does not divide"):
        initial_vorticity((1, 16, 16), every=3)
    with pytest.raises(ValueError, match="must be positive"):
        initial_vorticity((1, 16, 16), reynolds=0.0)
