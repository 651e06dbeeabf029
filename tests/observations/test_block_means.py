"""Block means over the middle of a block: the published super-resolution observation."""

import pytest
import torch
from torch.nn import functional

from observations.averaging import BlockMean
from observations.check import check_operator


@pytest.mark.parametrize(("factor", "window"), [(4, 2), (8, 2), (8, 4), (5, 1), (5, 3), (4, None)])
def test_operator_contract_and_singular_values(factor: int, window: int | None) -> None:
    operator = BlockMean((2, 40, 40), factor, window)
    check_operator(operator)
    svd = operator.svd()
    assert svd is not None
    assert torch.allclose(svd.singular, torch.full((2 * (40 // factor) ** 2,), 1 / (window or factor)))


@pytest.mark.parametrize("factor", [4, 8])
def test_a_window_of_two_is_bilinear_interpolation_without_a_filter(factor: int) -> None:
    x = torch.randn(3, 1, 64, 64, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    expected = functional.interpolate(x, scale_factor=1 / factor, mode="bilinear", align_corners=False)
    assert torch.allclose(BlockMean((1, 64, 64), factor, 2)(x), expected, atol=1e-12)


def test_a_window_of_no_cell_is_refused() -> None:
    with pytest.raises(ValueError, match="window is 0; expected a whole number of 1 or more"):
        BlockMean((1, 40, 40), 4, 0)


@pytest.mark.parametrize(("factor", "window"), [(4, 3), (4, 5), (5, 2)])
def test_a_window_without_a_middle_is_named(factor: int, window: int) -> None:
    with pytest.raises(ValueError, match=f"window={window} is not in the middle"):
        BlockMean((1, 40, 40), factor, window)
