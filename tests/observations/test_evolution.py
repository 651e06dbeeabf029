"""Operators that look later: the model's matrix, derivatives with and without recomputing, places and errors."""

import pytest
import torch

from dynamics import LinearGaussian, Lorenz63, Lorenz96, SpaceMismatch
from dynamics.navier_stokes import NavierStokes
from observations import Arctan, BlockMean, Mask, check_operator, compose
from observations.evolution import Evolved

FLOW = NavierStokes(size=16, viscosity=0.01, dt=0.2, substeps=2, prior_waves=3.0)
OPERATORS = [
    Evolved(Lorenz63.flowdas(), 3),
    Evolved(Lorenz96(), 2, Arctan(Lorenz96().space, scale=5.0), recompute=True),
    Evolved(FLOW, 2, BlockMean(FLOW.space, 4)),
    Evolved(FLOW, 2, recompute=True),
    Evolved(Lorenz63(), 0),
]


@pytest.mark.parametrize("operator", OPERATORS, ids=repr)
def test_contract(operator):
    check_operator(operator)


def test_a_linear_model_is_a_power_of_its_matrix():
    system = LinearGaussian.ring(7)
    seen = Mask(system.space, [0, 3, 4])
    operator = Evolved(system, 3, seen)
    x = torch.randn(2, 5, 1, 7, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    expected = x[..., 0, :] @ torch.linalg.matrix_power(system.matrix, 3).mT
    assert torch.allclose(operator(x), expected[..., [0, 3, 4]], atol=1e-14)
    assert torch.equal(operator.positions, seen.positions)
    assert compose(Mask(operator.obs_shape, [1]), operator).obs_shape == (1,)


def test_the_model_is_told_the_time():
    class Clock(Lorenz63):
        def step(self, x, time, *, rng):
            return x + time

    operator = Evolved(Clock(dt=0.5), 3, start=2.0)
    assert torch.equal(operator(torch.zeros(3)), torch.full((3,), 2.0 + 2.5 + 3.0))


@pytest.mark.parametrize("system", [Lorenz63(), FLOW], ids=["lorenz", "flow"])
def test_recomputing_changes_no_derivative(system):
    kept, again = Evolved(system, 3), Evolved(system, 3, recompute=True)
    generator = torch.Generator().manual_seed(0)
    x = system.prior((2,), rng=generator, dtype=torch.float64)
    v = torch.randn(x.shape, generator=generator, dtype=torch.float64)
    values, tangents, gradients, vmapped, curvatures = [], [], [], [], []
    for operator in (kept, again):
        values.append(operator(x))
        tangents.append(torch.func.jvp(operator.forward, (x,), (v,))[1])
        leaf = x.clone().requires_grad_()
        (first,) = torch.autograd.grad(operator(leaf), leaf, v, create_graph=True)
        gradients.append(first.detach())
        curvatures.append(torch.autograd.grad(first, leaf, v)[0])
        _, pullback = torch.func.vjp(operator.forward, x)
        vmapped.append(torch.func.vmap(pullback)(torch.stack([v, 2 * v]))[0])
    for pair in (values, tangents, gradients, curvatures, vmapped):
        assert torch.allclose(pair[0], pair[1], rtol=1e-10, atol=1e-10)
    assert torch.allclose(vmapped[1], torch.stack([gradients[1], 2 * gradients[1]]), rtol=1e-10, atol=1e-10)
    # Both against finite differences.
    step = 1e-6
    slope = (kept(x + step * v) - kept(x - step * v)) / (2 * step)
    assert torch.allclose(tangents[0], slope, rtol=1e-6, atol=1e-6)
    left, right = (tangents[1] * v).sum(), (gradients[1] * v).sum()
    assert float(left) == pytest.approx(float(right), rel=1e-10)


def test_recomputing_keeps_only_the_states_between_steps():
    x = torch.zeros(1, 1, 16, 16, dtype=torch.float64).requires_grad_()
    sizes = {}
    for recompute in (False, True):
        bytes_kept = []

        def keep(tensor, bytes_kept=bytes_kept):
            bytes_kept.append(tensor.numel() * tensor.element_size())
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            Evolved(FLOW, 4, recompute=recompute)(x)
        sizes[recompute] = sum(bytes_kept)
    # One state for each of the four steps, and perhaps once more for forward mode.
    assert sizes[True] <= 2 * 4 * x.numel() * 8 < sizes[False] / 20


def test_what_does_not_fit_is_refused():
    with pytest.raises(ValueError, match="steps is -1"):
        Evolved(Lorenz63(), -1)
    with pytest.raises(SpaceMismatch, match=r"the model has \(3,\)"):
        Evolved(Lorenz63(), 1, Arctan((4,)))
