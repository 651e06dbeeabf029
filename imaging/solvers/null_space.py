"""DDNM: the range of the operator from the measurement, its null space from the prior."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from assimilate.posterior.corrections.null_space import NullSpace
from assimilate.posterior.corrections.spectral import Spectrum
from assimilate.posterior.samplers import Sampler
from imaging.operators.norm import operator_norm
from imaging.solvers.base import Need, PathSolver, Task


@dataclass(frozen=True)
class DDNM(PathSolver):
    """DDNM+: the clean mean's seen part is replaced by the measurement, as far as its noise allows.

    One forward pass a level. With an SVD every singular value has its own share; without one (or with missing values)
    all are taken to be the operator's norm and the pseudo-inverse comes from conjugate gradients. Good means, and far
    too little spread.

    Args:
        steps: 100 in the paper. In directions where the measurement is noisier than the level every level moves towards
            it anew, so that more of them are worse there.
        eta: share of new noise, as a factor on the standard deviation (paper: 0.85).
        iterations: of the pseudo-inverse without an SVD; they regularise it.

    Differs from the paper: one pass, without the time travel of its hardest cases; see the correction.
    """

    name: ClassVar[str] = "DDNM+"
    reference: ClassVar[str] = (
        "Wang, Yu, Zhang (2023), Zero-shot image restoration using denoising diffusion null-space model, "
        "https://arxiv.org/abs/2212.00490"
    )
    needs: ClassVar[tuple[Need, ...]] = ("linear", "white")

    eta: float = 0.85
    iterations: int = 20

    def sampler(self, task: Task) -> Sampler:
        """See `NullSpace`."""
        operator, y = task.linear, task.y.to(task.device, task.dtype)
        complete = not bool(torch.isnan(y).any())
        if complete and operator.svd() is not None:
            spectrum, norm = Spectrum.of_measurement(operator, y), 1.0
        else:
            # An operator that sees nothing has norm 0; its pseudo-inverse gives 0 whatever the share.
            spectrum, norm = None, operator_norm(operator, dtype=task.dtype, device=task.device) or 1.0
        return NullSpace(operator, y, task.noise_std, self.eta, norm, self.iterations, spectrum)
