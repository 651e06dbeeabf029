r"""Solvers by guidance: the clean mean is shifted along an estimate of the gradient of `log p(y | x_t)`.

Each is a guidance of `assimilate.posterior.guidance` with a sampler and levels; what they estimate, and how, is said
there. All run on noise levels in image units (`PathSolver`), except `DPS`, whose published constant belongs to a path.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from torch import Tensor

from assimilate.posterior.condition import Guidance
from assimilate.posterior.guidance import DPS as DPSGuidance
from assimilate.posterior.guidance import MMPS as MMPSGuidance
from assimilate.posterior.guidance import SDA as SDAGuidance
from assimilate.posterior.guidance import TMPD as TMPDGuidance
from assimilate.posterior.guidance import JacobianFree, MonteCarlo
from assimilate.posterior.guidance import PiGDM as PiGDMGuidance
from assimilate.posterior.paths import VP, Path
from assimilate.posterior.samplers import Ancestral, Renoise, Sampler
from assimilate.posterior.time_grids import uniform_times
from imaging.solvers.base import Exactness, Need, PathSolver, Task


@dataclass(frozen=True)
class DPS(PathSolver):
    """Diffusion posterior sampling as published: a constant step along the gradient of the residual's norm.

    Runs DDPM on a VP path, and moves the state by `- zeta grad ||y - A(m)||` after each step. zeta belongs to that path
    and this number of steps, and to images in [-1, 1] of spread near 1/2; here it is multiplied by `spread / 0.5`.

    Args:
        steps: 1000 in the paper.
        zeta: 0.3 for deblurring and super-resolution, 0.5 for inpainting, 1 for phase retrieval (published code).
    """

    name: ClassVar[str] = "DPS"
    reference: ClassVar[str] = (
        "Chung, Kim, Mccann, Klasky, Ye (2023), Diffusion posterior sampling for general noisy inverse problems, "
        "https://arxiv.org/abs/2209.14687"
    )
    backpropagates: ClassVar[bool] = True

    steps: int = 1000
    zeta: float = 0.3

    def path(self, task: Task) -> Path:
        """VP, in image units: its noise at the start is 1."""
        return VP()

    def times(self, task: Task, path: Path) -> Tensor:
        """Equal steps in time, as the paper has them."""
        return uniform_times(self.steps, dtype=task.dtype).to(task.device)

    def guidance(self, task: Task) -> Guidance:
        """The norm form, constant gain."""
        return DPSGuidance(form="norm", gain="constant", strength=self.zeta * task.prior.spread / 0.5)


@dataclass(frozen=True)
class ScoreDPS(PathSolver):
    """DPS by the score itself: the likelihood of the clean mean, with the exact gain."""

    name: ClassVar[str] = "DPS, likelihood score"
    reference: ClassVar[str] = DPS.reference
    backpropagates: ClassVar[bool] = True

    def guidance(self, task: Task) -> Guidance:
        """The score form."""
        return DPSGuidance()


@dataclass(frozen=True)
class PiGDM(PathSolver):
    """Pseudo-inverse guidance: the clean state is taken as Gaussian with independent values."""

    name: ClassVar[str] = "PiGDM"
    reference: ClassVar[str] = (
        "Song, Vahdat, Mardani, Kautz (2023), Pseudoinverse-guided diffusion models for inverse problems, "
        "https://openreview.net/forum?id=9_gsMA8MRKQ"
    )
    needs: ClassVar[tuple[Need, ...]] = ("gaussian",)
    backpropagates: ClassVar[bool] = True

    def guidance(self, task: Task) -> Guidance:
        """With the prior's own spread."""
        return PiGDMGuidance(prior_std=task.prior.spread)


@dataclass(frozen=True)
class TMPD(PathSolver):
    """Tweedie moment projected diffusion: the row sums of the clean covariance seen by the operator."""

    name: ClassVar[str] = "TMPD"
    reference: ClassVar[str] = (
        "Boys, Girolami, Pidstrigach, Reich, Mosca, Akyildiz (2023), Tweedie moment projected diffusions for inverse "
        "problems, https://arxiv.org/abs/2310.06721"
    )
    needs: ClassVar[tuple[Need, ...]] = ("gaussian",)
    backpropagates: ClassVar[bool] = True

    def guidance(self, task: Task) -> Guidance:
        """See the guidance."""
        return TMPDGuidance()


@dataclass(frozen=True)
class MMPS(PathSolver):
    """Moment matching posterior sampling: the clean covariance from the network's Jacobian, by GMRES.

    Args:
        iterations: of the linear solve; each costs a product with the Jacobian and one with its transpose.
    """

    name: ClassVar[str] = "MMPS"
    reference: ClassVar[str] = (
        "Rozet, Andry, Lanusse, Louppe (2024), Learning diffusion priors from observations by expectation "
        "maximization, https://arxiv.org/abs/2405.13712"
    )
    needs: ClassVar[tuple[Need, ...]] = ("gaussian",)
    backpropagates: ClassVar[bool] = True
    exactness: ClassVar[Exactness] = "exact"

    iterations: int = 3

    def guidance(self, task: Task) -> Guidance:
        """See the guidance."""
        return MMPSGuidance(iterations=self.iterations)


@dataclass(frozen=True)
class LGD(PathSolver):
    """Loss-guided diffusion: the likelihood averaged over draws around the clean mean.

    Args:
        draws: Monte Carlo draws.
    """

    name: ClassVar[str] = "LGD"
    reference: ClassVar[str] = (
        "Song et al. (2023), Loss-guided diffusion models for plug-and-play controllable generation, "
        "https://proceedings.mlr.press/v202/song23k.html"
    )
    backpropagates: ClassVar[bool] = True

    draws: int = 10

    def guidance(self, task: Task) -> Guidance:
        """Draws from an isotropic Gaussian of the clean state."""
        return MonteCarlo(draws=self.draws, spread="isotropic", prior_std=task.prior.spread)


@dataclass(frozen=True)
class SDA(PathSolver):
    """Score-based data assimilation's guidance: the noise widened by `gamma rho^2` in every observed value.

    Args:
        gamma: widening, units of the observed values squared over those of the state squared.
    """

    name: ClassVar[str] = "SDA"
    reference: ClassVar[str] = (
        "Rozet, Louppe (2023), Score-based data assimilation, https://arxiv.org/abs/2306.10574"
    )
    needs: ClassVar[tuple[Need, ...]] = ("gaussian",)
    backpropagates: ClassVar[bool] = True

    gamma: float = 1e-2

    def guidance(self, task: Task) -> Guidance:
        """See the guidance."""
        return SDAGuidance(gamma=self.gamma)


@dataclass(frozen=True)
class FlowDASGuided(PathSolver):
    """FlowDAS's Monte Carlo rule on an image prior: residual norms weighted by their likelihood.

    Args:
        draws: Monte Carlo draws J (the paper's code: 21 to 25).
    """

    name: ClassVar[str] = "FlowDAS rule"
    reference: ClassVar[str] = (
        "Chen et al. (2024), FlowDAS: a stochastic interpolant-based framework for data assimilation, "
        "https://arxiv.org/abs/2501.16642"
    )
    backpropagates: ClassVar[bool] = True

    draws: int = 21

    def guidance(self, task: Task) -> Guidance:
        """The exact endpoint with the likelihood averaged over draws."""
        return MonteCarlo(draws=self.draws)


@dataclass(frozen=True)
class FlowChef(PathSolver):
    """Guidance with the network's Jacobian replaced by the identity: no backward pass through the network.

    Args:
        strength: length of the step, relative to the exact isotropic update.
    """

    name: ClassVar[str] = "FlowChef"
    reference: ClassVar[str] = (
        "Patel, Wen, Metaxas, Yang (2024), Steering rectified flow models in the vector field for controlled image "
        "generation, https://arxiv.org/abs/2412.00100"
    )
    needs: ClassVar[tuple[Need, ...]] = ("gaussian",)

    strength: float = 1.0

    def guidance(self, task: Task) -> Guidance:
        """A Gaussian update with independent clean values."""
        return JacobianFree(strength=self.strength, prior_std=task.prior.spread)


@dataclass(frozen=True)
class CleanCovariance(PathSolver):
    """The Gaussian update with the network's own variance of the clean image, drawn and noised again at every level.

    Not published elsewhere; the FlowDAS of gauges in this package does the same with fields. Exact for a Gaussian prior
    that knows its covariance. One forward pass a level, no backward pass.

    Args:
        iterations: most conjugate-gradient iterations of the update.
        sampler_kind: "renoise" forgets the noise of each level, "ancestral" carries it along.
    """

    name: ClassVar[str] = "clean covariance"
    reference: ClassVar[str] = "Assimilate; see assimilate.posterior.guidance.jacobian_free"
    needs: ClassVar[tuple[Need, ...]] = ("gaussian", "mean")
    exactness: ClassVar[Exactness] = "exact"

    iterations: int = 50
    sampler_kind: Literal["renoise", "ancestral"] = "renoise"

    def guidance(self, task: Task) -> Guidance:
        """A Gaussian update with the predictor's covariance."""
        return JacobianFree(covariance="clean", iterations=self.iterations)

    def sampler(self, task: Task) -> Sampler:
        """See the settings."""
        return Renoise() if self.sampler_kind == "renoise" else Ancestral(variance="clean")


