"""DDRM: a measurement taken in direction by direction, in the basis of the singular vectors."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from assimilate.posterior.corrections.spectral import Restoration, Spectrum
from assimilate.posterior.samplers import Sampler
from imaging.solvers.base import Need, PathSolver, Task


@dataclass(frozen=True)
class DDRM(PathSolver):
    """Denoising diffusion restoration models: each singular direction steps by its own noise.

    One forward pass a level. Good means, too little spread.

    Args:
        steps: 20, as in the paper. In directions where the measurement is noisier than the level every level moves
            towards it anew, so that more of them are worse there.
        eta: share of new noise as a factor on the standard deviation (paper: 0.85).
        eta_measured: weight of the measurement where it is less noisy than the level (paper: 1).

    Raises:
        CapabilityError: values are missing that the singular vectors mix with others (inpainting's do not).

    Differs from the paper: see the correction.
    """

    name: ClassVar[str] = "DDRM"
    reference: ClassVar[str] = (
        "Kawar, Elad, Ermon, Song (2022), Denoising diffusion restoration models, https://arxiv.org/abs/2201.11793"
    )
    needs: ClassVar[tuple[Need, ...]] = ("svd", "white")

    steps: int = 20
    eta: float = 0.85
    eta_measured: float = 1.0

    def sampler(self, task: Task) -> Sampler:
        """See `Restoration`."""
        spectrum = Spectrum.of_measurement(task.linear, task.y.to(task.device, task.dtype))
        return Restoration(spectrum, task.noise_std, self.eta, self.eta_measured)
