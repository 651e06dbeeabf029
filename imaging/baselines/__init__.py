"""Reconstruction without a diffusion: direct inversion, total variation, wavelets, plug-and-play; one answer each."""

from imaging.baselines.direct import FilteredBackProjection, PseudoInverse
from imaging.baselines.plug_and_play import PnPADMM, PnPRED
from imaging.baselines.total_variation import ADMM, FISTA
from imaging.baselines.wavelets import WaveletCS

__all__ = ["ADMM", "FISTA", "FilteredBackProjection", "PnPADMM", "PnPRED", "PseudoInverse", "WaveletCS"]
