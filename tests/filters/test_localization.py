import math

import pytest
import torch

from assimilate.filters.localization import gaspari_cohn


def published(z):
    """Gaspari and Cohn (1999), equation 4.10, as printed."""
    near = -(z**5) / 4 + z**4 / 2 + 5 * z**3 / 8 - 5 * z**2 / 3 + 1
    if z <= 1:
        return near
    return z**5 / 12 - z**4 / 2 + 5 * z**3 / 8 + 5 * z**2 / 3 - 5 * z + 4 - 2 / (3 * z) if z <= 2 else 0.0


def test_values_of_the_paper():
    z = torch.linspace(0, 2.5, 101, dtype=torch.float64)
    expected = torch.tensor([published(float(v)) for v in z], dtype=torch.float64)
    torch.testing.assert_close(gaspari_cohn(3 * z, 3.0), expected, atol=1e-13, rtol=0)


def test_length_convention():
    taper = gaspari_cohn(torch.tensor([0.0, 7.0, 14.0, 20.0], dtype=torch.float64), 7.0)
    torch.testing.assert_close(taper, torch.tensor([1.0, 5 / 24, 0.0, 0.0], dtype=torch.float64))
    # The curvature at zero is that of a Gaussian of standard deviation sqrt(3/10) radius: 1 - d^2 / (2 * 0.3 c^2).
    near = torch.tensor(1e-3, dtype=torch.float64)
    assert abs((1 - gaspari_cohn(near, 1.0)) / near**2 - 1 / 0.6) < 1e-3


def test_a_correlation_function():
    place = torch.linspace(0, 10, 80, dtype=torch.float64)
    matrix = gaspari_cohn((place[:, None] - place[None]).abs(), 1.7)
    assert torch.linalg.eigvalsh(matrix)[0] > -1e-12


def test_infinite_and_bad_radius():
    assert (gaspari_cohn(torch.tensor([0.0, 1e9]), math.inf) == 1).all()
    for radius in (0.0, -1.0, math.nan):
        with pytest.raises(ValueError, match="positive length"):
            gaspari_cohn(torch.zeros(1), radius)
