"""The factored spread: what an analysis and its evidence share is what each would find alone."""

import pytest
import torch

from assimilate.filters.gram import Decomposed, Factored
from assimilate.filters.transforms import log_likelihood
from dynamics.covariance import FullCovariance

SIZES = [(5, 12), (12, 5), (7, 7)]


def drawn(members, values, lost=0):
    """Centred spread and departures of two experiments, the first `lost` values not observed."""
    generator = torch.Generator().manual_seed(members + values)
    spread = torch.randn(2, members, values, generator=generator, dtype=torch.float64)
    spread = spread - spread.mean(1, keepdim=True)
    departure = torch.randn(2, values, generator=generator, dtype=torch.float64)
    return spread * (torch.arange(values) >= lost), departure * (torch.arange(values) >= lost)


@pytest.mark.parametrize("kind", [Factored, Decomposed])
@pytest.mark.parametrize("sizes", SIZES)
def test_the_evidence_is_that_of_the_sample_covariance(kind, sizes):
    spread, departure = drawn(*sizes)
    covariance = spread.mT @ spread / (sizes[0] - 1) + torch.eye(sizes[1], dtype=torch.float64)
    expected = [FullCovariance(c, (sizes[1],)).log_prob(d) for c, d in zip(covariance, departure, strict=True)]
    normalizer = -0.5 * sizes[1] * torch.log(torch.tensor(2 * torch.pi, dtype=torch.float64))
    torch.testing.assert_close(log_likelihood(kind.of(spread), departure, normalizer), torch.stack(expected))


@pytest.mark.parametrize("sizes", SIZES)
def test_a_scaled_decomposition_is_that_of_the_scaled_spread(sizes):
    spread, departure = drawn(*sizes)
    factor = torch.tensor([1.3, 0.7], dtype=torch.float64)
    scaled, expected = Decomposed.of(spread).scaled(factor), Decomposed.of(factor[:, None, None] * spread)
    anomalies = spread[..., :3]
    for one, other in zip(scaled.analysis(anomalies, departure), expected.analysis(anomalies, departure), strict=True):
        torch.testing.assert_close(one, other)
    for one, other in zip(scaled.statistics(departure), expected.statistics(departure), strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize("sizes", SIZES)
def test_the_evidence_has_a_derivative_where_several_values_are_not_observed(sizes):
    spread, departure = drawn(*sizes, lost=2)
    slopes = []
    for kind in (Factored, Decomposed):
        leaf = spread.clone().requires_grad_()
        log_likelihood(kind.of(leaf), departure, torch.zeros(())).sum().backward()
        slopes.append(leaf.grad)
    assert bool(torch.isfinite(slopes[0]).all())
    torch.testing.assert_close(slopes[0], slopes[1])
