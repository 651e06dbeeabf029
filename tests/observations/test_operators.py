"""Every operator against its definition; contract, adjoint, linearity and SVD of all of them by `check_operator`."""

from dataclasses import dataclass

import numpy as np
import pytest
import torch

from assimilate.registry import build
from dynamics import ContractError, Field, Lorenz63, Lorenz96, Space, SpaceMismatch, florence_space
from observations import (
    Arctan,
    BlockMean,
    Function,
    GaussianNoise,
    Identity,
    Likelihood,
    LinearOperator,
    Mask,
    Matrix,
    ObservationOperator,
    Select,
    Stations,
    check_operator,
    compose,
    random_mask,
    stack,
)

MASKED = np.zeros((6, 8), dtype=bool)
MASKED[:2, :2] = True
MASKED[4, 5] = True
GRID = {"y": np.arange(6.0), "x": np.arange(8.0)}
SEA = Space((Field("t", dims=("y", "x")), Field("s", dims=("y", "x"))), GRID, mask=MASKED)
LAND = Space((Field("t", dims=("y", "x")), Field("s", dims=("y", "x"))), GRID)
WEIGHTS = torch.randn(4, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)

OPERATORS = [
    Identity(SEA),
    Identity((3,)),
    Select(LAND, "s"),
    Select((4, 3, 2), [3, 1]),
    Mask(LAND, GRID["y"][:, None] > GRID["x"]),
    Mask((5,), [4, 0, 2]),
    Mask((5,), [1, 1]),
    random_mask(SEA, 0.3, 1),
    BlockMean(LAND, 2),
    BlockMean(SEA, (2, 4)),
    BlockMean((2, 12), 3),
    Stations(SEA, [[3.2, 4.4], [0.0, 7.4], [1.5, 1.5]], "bilinear"),
    Stations(Lorenz96().space, [0.3, 39.6], "bilinear"),
    Stations(florence_space(), {"lat": [34.1, 35.0], "lon": [-78.2, 282.0]}, "nearest"),
    Matrix((2, 3), WEIGHTS),
    Arctan(Lorenz63().space, "x", scale=8.0),
    Arctan(SEA, center=(1.0, 2.0), scale=3.0),
    Function((4,), torch.sin, pointwise=True),
    Function((4,), "torch:exp"),
    Mask((8,), [0, 5]) @ Function((8,), torch.tanh, pointwise=True),
    BlockMean((1, 6, 8), 2) @ Select(SEA, 0),
    stack(Identity((2, 3)), Matrix((2, 3), WEIGHTS)),
    stack(Arctan((2, 3), 0), Select((2, 3), 1)),
]


@pytest.mark.parametrize("operator", OPERATORS, ids=repr)
def test_contract(operator):
    check_operator(operator)


@pytest.mark.parametrize("operator", [op for op in OPERATORS if isinstance(op, LinearOperator)], ids=repr)
def test_matrix_and_adjoint(operator):
    matrix = operator.matrix()
    x = torch.randn(3, *operator.event_shape, dtype=torch.float64)
    y = torch.randn(3, *operator.obs_shape, dtype=torch.float64)
    assert torch.allclose(operator(x).flatten(1), x.flatten(1) @ matrix.T, atol=1e-12)
    assert torch.allclose(operator.adjoint(y).flatten(1), y.flatten(1) @ matrix, atol=1e-12)
    # The adjoint is differentiable too, as a solver inside a guidance needs.
    y.requires_grad_()
    (gradient,) = torch.autograd.grad((operator.adjoint(y) * x).sum(), y)
    assert torch.allclose(gradient, operator(x), atol=1e-12)
    svd = operator.svd()
    if svd is not None:
        values = torch.linalg.svdvals(matrix)
        positive = values[values > 1e-12 * values[0]]
        # Closed-form singular values are kept in float32.
        assert torch.allclose(svd.singular.double().sort(descending=True).values, positive, rtol=1e-6)


def test_linearity_of_compositions():
    assert isinstance(Select((2,), 0) @ Identity((2,)), LinearOperator)
    assert not isinstance(Arctan((1,)) @ Select((2,), 0), LinearOperator)
    assert isinstance(stack(Identity((2,)), Select((2,), 0)), LinearOperator)
    assert not isinstance(stack(Identity((2,)), Arctan((2,))), LinearOperator)
    assert Likelihood(Identity((2,)), GaussianNoise(1.0)).linear
    assert not Likelihood(Arctan((2,)), GaussianNoise(1.0)).linear


def test_selection_picks_the_right_values():
    x = torch.arange(96.0).reshape(1, 2, 6, 8)
    assert torch.equal(Select(LAND, "s")(x), x[:, 1:])
    mask = torch.rand(6, 8, generator=torch.Generator().manual_seed(0)) < 0.3
    assert torch.equal(Mask(LAND, mask)(x)[0], torch.cat([x[0, 0][mask], x[0, 1][mask]]))
    assert torch.equal(Mask(LAND, torch.stack([mask, ~mask]))(x)[0], torch.cat([x[0, 0][mask], x[0, 1][~mask]]))
    assert torch.equal(Mask(LAND, [95, 3])(x)[0], torch.tensor([95.0, 3.0]))
    assert stack(Select(LAND, 0), Mask(LAND, [1]))(x).shape == (1, 49)


def test_arctan_in_the_units_of_flowdas():
    system = Lorenz63.flowdas()
    x = torch.tensor([[8.0, 1.0, 2.0], [-16.0, 0.0, 0.0]], dtype=torch.float64)
    y = Arctan(system.space, "x", center=0.0, scale=8.0)(x)
    assert y.tolist() == [[pytest.approx(np.pi / 4)], [pytest.approx(np.arctan(-2.0))]]


def test_block_means():
    x = torch.arange(96.0, dtype=torch.float64).reshape(1, 2, 6, 8)
    assert float(BlockMean(LAND, (3, 4))(x)[0, 1, 1, 0]) == float(x[0, 1, 3:, :4].mean())
    masked = BlockMean(SEA, 2)
    # A block of no-data cells is not available; one with a hole is the mean of the others.
    assert not bool(masked.available[0, 0, 0]) and int((~masked.available).sum()) == 2
    cells = [float(x[0, 0, 4, 4]), float(x[0, 0, 5, 4]), float(x[0, 0, 5, 5])]
    assert float(masked(x)[0, 0, 2, 2]) == pytest.approx(sum(cells) / 3)
    composed = Mask((2, 3, 4), [0, 1]) @ masked
    assert composed.available.tolist() == [False, True]
    with pytest.raises(ValueError, match=r"do not divide the grid \(6, 8\)"):
        BlockMean(LAND, 4)


def test_positions_follow_the_values():
    cells = LAND.positions()
    assert torch.equal(Identity(LAND).positions, cells.repeat(2, 1))
    assert torch.equal(Mask(LAND, [3, 48 + 9]).positions, cells[[3, 9]])
    assert torch.equal(Select(LAND, 1).positions, cells)
    assert torch.equal(Arctan(LAND, 0).positions, cells)
    blocks = BlockMean(LAND, (2, 4))
    assert blocks.positions[:3].tolist() == [[0.5, 1.5], [0.5, 5.5], [2.5, 1.5]]
    assert (Mask(blocks.obs_shape, [2]) @ blocks).positions.tolist() == [[2.5, 1.5]]
    assert (Arctan((2,)) @ Mask(LAND, [3, 9])).positions.tolist() == cells[[3, 9]].tolist()
    assert (Matrix((2,), [[1.0, 1.0]]) @ Mask(LAND, [3, 9])).positions is None
    assert torch.equal(stack(Mask(LAND, [3]), Mask(LAND, [9])).positions, cells[[3, 9]])
    assert stack(Mask(LAND, [3]), Function(LAND, torch.sin)).positions is None
    assert Identity((3,)).positions is None


def test_block_positions_on_the_sphere():
    space = florence_space()
    part = Space(
        Field("r", dims=("y", "x")),
        {
            "y": space.coords["y"].values[:116],
            "x": space.coords["x"].values[:84],
            "lat": _part(space.coords["lat"]),
            "lon": _part(space.coords["lon"]),
        },
    )
    blocks = BlockMean(part, 4)
    centres = part.positions().reshape(116, 84, 2)
    gaps = part.distance(blocks.positions, centres[1:3, 1:3].reshape(-1, 2))[0]
    # The centre of the first block lies half a diagonal (2.8 km) from its four middle cells.
    assert bool(((gaps > 2.7) & (gaps < 3.0)).all())
    # A grid that counts longitudes to 360 keeps them.
    globe = Space(
        Field("r", dims=("lat", "lon")),
        {"lat": _axis("lat", [-1.0, 1.0], "degrees_north"), "lon": _axis("lon", [200.0, 202.0], "degrees_east")},
    )
    assert BlockMean(globe, 2).positions[0].tolist() == pytest.approx([0.0, 201.0], abs=1e-9)


def _part(coordinate):
    from dynamics import Coordinate

    return Coordinate(coordinate.values[:116, :84], coordinate.dims, coordinate.units, coordinate.standard_name)


def _axis(name, values, units):
    from dynamics import Coordinate

    return Coordinate(np.array(values), (name,), units)


def test_every_third_cell_of_each_dim():
    space = florence_space()
    rows, columns = space.grid_shape
    operator = Mask.every(space, 3, first=1)
    x = torch.arange(rows * columns, dtype=torch.float64).reshape(space.event_shape)
    seen = x[0, 1::3, 1::3] if space.mask is None else x[0, 1::3, 1::3][torch.from_numpy(~space.mask[0, 1::3, 1::3])]
    assert torch.equal(operator(x), seen.flatten())
    cells = [[0, 2, 4], [10, 12, 14], [20, 22, 24], [30, 32, 34]]
    assert torch.equal(Mask.every((2, 4, 5), 2).index, torch.tensor(cells).flatten())
    assert Mask.every((3,), 2).index.tolist() == [0, 2] and Mask.every((1, 3), 1).index.tolist() == [0, 1, 2]
    for wrong in (0, 1.5, True):
        with pytest.raises(ValueError, match="stride is"):
            Mask.every((1, 9), wrong)
    with pytest.raises(ValueError, match="observes nothing"):
        Mask.every((1, 9), 2, first=9)


def test_a_card_names_every_third_cell():
    spec = {"type": "Mask", "preset": "every", "stride": 3}
    assert build("operator", spec, "observations.operator", space=Lorenz96(size=7).space).index.tolist() == [0, 3, 6]


def test_random_masks():
    small, large = random_mask(LAND, 0.1, 7), random_mask(LAND, 0.5, 7)
    assert small.obs_size == 2 * 5 and large.obs_size == 2 * 24
    # Nested networks: the gauges of the smaller are among those of the larger.
    assert set(small.index.tolist()) <= set(large.index.tolist())
    assert torch.equal(random_mask(LAND, 0.1, 7).index, small.index)
    assert not torch.equal(random_mask(LAND, 0.1, 8).index, small.index)
    full = random_mask(SEA, 1.0, 0)
    assert full.obs_size == 2 * (48 - 5)
    # Every cell is drawn equally often: 400 networks of a quarter, five standard errors.
    share = torch.zeros(48)
    for seed in range(400):
        share[random_mask((1, 6, 8), count=12, seed=seed).index] += 1 / 400
    assert float((share - 0.25).abs().max()) < 5 * (0.25 * 0.75 / 400) ** 0.5
    with pytest.raises(ValueError, match="expected above 0"):
        random_mask(LAND, 1.5)


def test_errors_speak():
    with pytest.raises(SpaceMismatch, match=r"expected \(\*b, \*\(2, 6, 8\)\)"):
        Identity(LAND)(torch.zeros(2, 8, 6))
    with pytest.raises(SpaceMismatch, match=r"gives shape \(1,\); Arctan\(\(2,\).* expects \(2,\)"):
        compose(Arctan((2,)), Select((2,), 0))
    with pytest.raises(ValueError, match="observes a no-data cell"):
        Mask(SEA, [0])
    with pytest.raises(ValueError, match="observes nothing"):
        Mask(LAND, np.zeros((6, 8), bool))
    with pytest.raises(SpaceMismatch, match=r"no channel 'u'; there are \['t', 's'\]"):
        Select(LAND, "u")
    with pytest.raises(ValueError, match="module 'no_such_module' cannot be imported"):
        Function((2,), "no_such_module:f")
    with pytest.raises(ValueError, match="expected 'module:function'"):
        Function((2,), "sin")


@dataclass(frozen=True, eq=False)
class Broken(LinearOperator):
    """A linear operator with one fault."""

    space: tuple[int, ...]
    fault: str

    def forward(self, x):
        if self.fault == "batch":
            return x - x.mean(0) if x.ndim == 3 else x
        if self.fault == "nonlinear":
            return x + 1
        if self.fault == "numpy":
            return torch.from_numpy(x.detach().numpy() * 2)
        if self.fault == "shape":
            return x.flatten()
        return 2 * x

    def adjoint(self, y):
        return 3 * y if self.fault == "adjoint" else super().adjoint(y)


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ("batch", "changed the result"),
        ("nonlinear", "not linear"),
        ("numpy", "has no gradient"),
        ("shape", r"H\(x\) has shape"),
        ("adjoint", "is not <x, adjoint"),
    ],
)
def test_check_operator_finds(fault, message):
    with pytest.raises(ContractError, match=message):
        check_operator(Broken((4,), fault))


def test_a_users_operator_needs_only_a_space_and_forward():
    @dataclass(frozen=True, eq=False)
    class Sum(LinearOperator):
        space: tuple[int, ...]

        def forward(self, x):
            return x.sum(-1, keepdim=True)

    check_operator(Sum((5,)), (5,))
    assert torch.equal(Sum((5,)).adjoint(torch.tensor([2.0])), torch.full((5,), 2.0))
    with pytest.raises(ContractError, match=r"observes events \(5,\); expected \(6,\)"):
        check_operator(Sum((5,)), (6,))
    with pytest.raises(ContractError, match="does not derive"):
        check_operator(torch.sin)
    assert issubclass(Sum, ObservationOperator)
