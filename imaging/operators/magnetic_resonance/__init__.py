"""Magnetic resonance imaging: masks of k-space, coils, and the operator of a scan."""

from imaging.operators.magnetic_resonance.coils import ring_coils, root_sum_of_squares
from imaging.operators.magnetic_resonance.masks import (
    achieved_acceleration,
    gaussian_lines,
    gaussian_points,
    poisson_disc,
    uniform_lines,
)
from imaging.operators.magnetic_resonance.scanner import (
    MagneticResonance,
    from_complex,
    simulated_scan,
    to_complex,
)

__all__ = [
    "MagneticResonance",
    "achieved_acceleration",
    "from_complex",
    "gaussian_lines",
    "gaussian_points",
    "poisson_disc",
    "ring_coils",
    "root_sum_of_squares",
    "simulated_scan",
    "to_complex",
    "uniform_lines",
]
