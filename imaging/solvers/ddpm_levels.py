r"""Noise levels of the linear DDPM schedule, in which several papers state their settings.

    rho(u) = 2 p sqrt( exp(0.1 u + 9.95 u^2) - 1 ),     u = step / 1000

is the noise-to-signal ratio after a share u of its thousand steps (beta from 1e-4 to 0.02, in continuous time), for
images of spread p; the published networks see images in [-1, 1], of spread near 1/2.

References:
    Ho, Jain, Abbeel (2020), Denoising diffusion probabilistic models, https://arxiv.org/abs/2006.11239
"""

from __future__ import annotations

import math


def ddpm_level(share: float, spread: float) -> float:
    """The noise level after a share of the noising steps, units of the image.

    Args:
        share: u, above 0 and at most 1.
        spread: p, standard deviation of the images.
    """
    if not 0 < share <= 1:
        raise ValueError(f"share is {share}; expected a share of the noising steps, above 0 and at most 1")
    return 2 * spread * math.sqrt(math.expm1(0.1 * share + 9.95 * share**2))
