r"""Five inverse problems whose posteriors are known, each with its prior as an exact denoiser.

    gaussian     anisotropic Gaussian in 6 dimensions, 3 combinations observed
    isotropic    N(m, I) in 6 dimensions, an operator with orthonormal rows: where most guidances are exact
    mixture      four modes in 2 dimensions, one combination observed; two modes remain
    low-rank     four subspaces of rank 3 in 16 dimensions, 5 combinations observed: images lie near subspaces
    field        a Gaussian random field of 16 x 16 pixels with a power-law spectrum, blurred on a torus: the posterior
                 is the Wiener filter's

The denoiser is exact, so what is wrong with a sample is the method's doing. All numbers are fixed by seeds.

References:
    Qiu, Yang, Liu, Wang, Shen (2026), Beyond accuracy: evaluating posterior fidelity of diffusion inverse solvers,
    https://arxiv.org/abs/2602.04189 (solvers on analytic posteriors)
    Wang et al. (2024), Diffusion models learn low-dimensional distributions via subspace clustering,
    https://arxiv.org/abs/2409.02426 (mixtures of low-rank Gaussians)
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from assimilate.posterior.denoisers import GaussianDenoiser, MixtureDenoiser, Prior, StationaryDenoiser
from assimilate.posterior.paths import Path
from assimilate.posterior.predictors import GaussianPredictor, MixturePredictor, Predictor
from benchmarks.scorecard.laws import Mixture
from imaging.operators.blur import Blur
from imaging.operators.kernels import gaussian_kernel
from observations.base import LinearOperator
from observations.likelihood import Likelihood
from observations.noise import GaussianNoise
from observations.sampling import Matrix

FIELD = (1, 16, 16)
"""Event shape of the field."""


class Problem(NamedTuple):
    """A prior and a measurement whose posterior is known.

    Attributes:
        law: the prior on flattened states, float64.
        likelihood: a linear operator and white Gaussian noise.
        y: the measurement, `(*obs)`.
        denoiser: the prior as solvers want it; None = made from the law.
    """

    law: Mixture
    likelihood: Likelihood
    y: Tensor
    denoiser: StationaryDenoiser | None = None

    @property
    def weights(self) -> Tensor:
        """Of the prior's components."""
        return self.law.weights

    @property
    def means(self) -> Tensor:
        """Of the prior's components."""
        return self.law.means

    @property
    def covariances(self) -> Tensor:
        """Of the prior's components."""
        return self.law.covariances

    @property
    def prior(self) -> Prior:
        """The exact denoiser."""
        if self.denoiser is not None:
            return self.denoiser
        if len(self.law.weights) == 1:
            return GaussianDenoiser(self.law.means[0], self.law.covariances[0])
        return MixtureDenoiser(*self.law)

    @property
    def event_shape(self) -> tuple[int, ...]:
        """Shape of one state."""
        return self.likelihood.operator.event_shape

    @property
    def matrix(self) -> Tensor:
        """The operator on flattened states, `(m, d)`."""
        operator = self.likelihood.operator
        assert isinstance(operator, LinearOperator)
        return operator.matrix()

    @property
    def noise_covariance(self) -> Tensor:
        """Of the flattened measurement, `(m, m)`."""
        noise = self.likelihood.noise
        assert isinstance(noise, GaussianNoise)
        return noise.covariance_matrix(self.y.numel(), dtype=torch.float64)

    def predictor(self, path: Path) -> Predictor:
        """The exact clean mean of the law on a path, for vectors."""
        if len(self.law.weights) == 1:
            return GaussianPredictor(self.law.covariances[0], path, self.law.means[0])
        return MixturePredictor(*self.law, path)

    def posterior(self) -> Mixture:
        """The exact posterior of flattened states."""
        return self.law.observed(self.matrix, self.noise_covariance, self.y.flatten())


def gaussian_problem(isotropic: bool = False) -> Problem:
    """The Gaussian problems in 6 dimensions, 3 observed."""
    rng = torch.Generator().manual_seed(1)
    basis = torch.linalg.qr(torch.randn(6, 6, generator=rng, dtype=torch.float64))[0]
    spectrum = torch.ones(6) if isotropic else torch.tensor([2.0, 1.0, 0.5, 0.25, 0.1, 0.05])
    covariance = basis @ torch.diag(spectrum.double()) @ basis.T
    mean = 0.3 * torch.randn(6, generator=rng, dtype=torch.float64)
    matrix = torch.randn(3, 6, generator=rng, dtype=torch.float64) / 6**0.5
    if isotropic:
        matrix = torch.linalg.qr(matrix.T)[0].T.contiguous()
    truth = mean + torch.linalg.cholesky(covariance) @ torch.randn(6, generator=rng, dtype=torch.float64)
    y = matrix @ truth + 0.2 * torch.randn(3, generator=rng, dtype=torch.float64)
    law = Mixture(torch.ones(1, dtype=torch.float64), mean[None], covariance[None])
    return Problem(law, Likelihood(Matrix((6,), matrix), GaussianNoise(0.2)), y)


def mixture_problem() -> Problem:
    """Four modes in two dimensions, one observed combination; the posterior keeps two of them."""
    means = torch.tensor([[2.0, 2.0], [2.2, -2.0], [-2.0, 2.0], [-2.0, -2.0]], dtype=torch.float64)
    covariances = 0.15 * torch.eye(2, dtype=torch.float64).repeat(4, 1, 1)
    likelihood = Likelihood(Matrix((2,), torch.tensor([[1.0, 0.15]], dtype=torch.float64)), GaussianNoise(0.3))
    law = Mixture(torch.full((4,), 0.25, dtype=torch.float64), means, covariances)
    return Problem(law, likelihood, torch.tensor([2.18], dtype=torch.float64))


def low_rank_problem(d: int = 16, rank: int = 3, components: int = 4, observed: int = 5, floor: float = 0.1) -> Problem:
    """Subspaces through the origin, few observed combinations; several subspaces can explain them.

    Args:
        d: dimension of the space.
        rank: of each subspace, in which the state is N(0, I).
        components: number of subspaces, equally probable.
        observed: number of observed combinations, noise 0.2.
        floor: standard deviation across a subspace; without it the posterior would have no density.
    """
    rng = torch.Generator().manual_seed(2)
    bases = torch.linalg.qr(torch.randn(components, d, rank, generator=rng, dtype=torch.float64))[0]
    covariances = bases @ bases.mT + floor**2 * torch.eye(d, dtype=torch.float64)
    matrix = torch.randn(observed, d, generator=rng, dtype=torch.float64) / observed**0.5
    law = Mixture(
        torch.full((components,), 1 / components, dtype=torch.float64),
        torch.zeros(components, d, dtype=torch.float64),
        covariances,
    )
    truth = law.draw(1, rng=rng)[0]
    y = matrix @ truth + 0.2 * torch.randn(observed, generator=rng, dtype=torch.float64)
    return Problem(law, Likelihood(Matrix((d,), matrix), GaussianNoise(0.2)), y)


def field_problem(exponent: float = 3.0, blur: float = 1.0, noise: float = 0.1) -> Problem:
    """A stationary field with variances `(1 + k^2)^(-exponent / 2)` of its Fourier modes, and its blurred picture.

    Args:
        exponent: of the power law; k counts waves across the picture.
        blur: standard deviation of the Gaussian kernel of 7 x 7 pixels, in pixels.
        noise: standard deviation of the noise; that of the field is 1.
    """
    _, rows, columns = FIELD
    waves = [torch.fft.fftfreq(rows, 1 / rows).double(), torch.fft.rfftfreq(columns, 1 / columns).double()]
    spectrum = (1 + waves[0][:, None] ** 2 + waves[1][None] ** 2) ** (-exponent / 2)
    full = (1 + waves[0][:, None] ** 2 + torch.fft.fftfreq(columns, 1 / columns).double()[None] ** 2) ** (-exponent / 2)
    denoiser = StationaryDenoiser((spectrum / full.mean())[None], columns)
    cells = torch.eye(math.prod(FIELD), dtype=torch.float64).reshape(-1, *FIELD)
    covariance = torch.fft.irfft2(torch.fft.rfft2(cells) * denoiser.spectrum, s=(rows, columns)).flatten(1)
    law = Mixture(
        torch.ones(1, dtype=torch.float64),
        torch.zeros(1, len(cells), dtype=torch.float64),
        ((covariance + covariance.mT) / 2)[None],
    )
    rng = torch.Generator().manual_seed(4)
    operator = Blur(FIELD, gaussian_kernel(7, blur))
    truth = denoiser.draw((1,), rng=rng)[0]
    y = operator(truth) + noise * torch.randn(FIELD, generator=rng, dtype=torch.float64)
    return Problem(law, Likelihood(operator, GaussianNoise(noise)), y, denoiser)


PROBLEMS: dict[str, Callable[[], Problem]] = {
    "gaussian": gaussian_problem,
    "isotropic": lambda: gaussian_problem(isotropic=True),
    "mixture": mixture_problem,
    "low-rank": low_rank_problem,
    "field": field_problem,
}
"""Name -> problem."""
