"""Computed tomography: parallel and fan beams with an exact adjoint, and filtered back-projection."""

from imaging.operators.tomography.back_projection import filtered_back_projection
from imaging.operators.tomography.fan import FanBeam
from imaging.operators.tomography.parallel import ParallelBeam

__all__ = ["FanBeam", "ParallelBeam", "filtered_back_projection"]
