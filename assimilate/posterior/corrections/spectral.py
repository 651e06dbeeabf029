r"""Steps in the basis of the singular vectors, where a linear observation is one number and one noise a direction.

With A = U S V^T, the directions V^T x of a state that A sees are observed as

    yb_i = (U^T y)_i / s_i = (V^T x)_i + n_i z,      n_i = sigma_y / s_i      (white noise of y stays white)

and `Restoration` (DDRM) steps from the clean mean D at the level sigma_now to the level sigma, direction by direction:

    not seen      D + sqrt(1 - eta^2) sigma e + eta sigma z,                       e = (x - D) / sigma_now
    sigma < n     D + sqrt(1 - eta^2) sigma (yb - D) / n + eta sigma z
    sigma >= n    (1 - eta_b) D + eta_b yb + sqrt(sigma^2 - eta_b^2 n^2) z

References:
    Kawar, Elad, Ermon, Song (2022), Denoising diffusion restoration models, https://arxiv.org/abs/2201.11793

Differs from the paper: it starts from pure noise and not from yb with noise added, which is the same thing once the
first level is well above n and the data.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from assimilate.posterior.paths import Path
from assimilate.posterior.predictors import Clean, Context
from assimilate.posterior.samplers.base import Sampler
from dynamics.errors import CapabilityError
from dynamics.random import Rng, normal
from dynamics.settings import FRACTION, NOT_NEGATIVE, check_settings
from observations.base import SVD, LinearOperator


@dataclass(frozen=True, eq=False)
class Spectrum:
    """A measurement in the basis of the singular vectors.

    Args:
        svd: of the operator.
        measured: `yb`, `(*b', r)`; NaN = not observed. `Spectrum.of_measurement` makes it.
    """

    svd: SVD
    measured: Tensor

    @classmethod
    def of_measurement(cls, operator: LinearOperator, y: Tensor) -> Spectrum:
        """From a measurement `(*b', *obs)`.

        Raises:
            CapabilityError: the operator has no SVD, or y has missing values that its basis mixes with others.
        """
        svd = operator.svd()
        if svd is None:
            raise CapabilityError(f"needs an SVD of the operator; {operator!r} has none")
        measured = svd.project_observed(y)
        missing = torch.isnan(y).flatten(y.ndim - len(operator.obs_shape)).sum(-1)
        # A basis that picks values passes a missing one on to one coefficient; any other spreads it over many.
        if bool(missing.any()) and not torch.equal(torch.isnan(measured).sum(-1), missing):
            raise CapabilityError(
                f"{int(missing.max())} values of the measurement are missing (NaN), and the singular vectors of "
                f"{operator!r} mix them with the others; fill them in, build the operator without them, or use a "
                "solver that needs no SVD"
            )
        return cls(svd, measured / svd.singular.to(y))

    def of(self, x: Tensor) -> Tensor:
        """`V^T x`, `(*b, *event)` to `(*b, r)`."""
        return self.svd.project(x)

    def expand(self, coefficients: Tensor) -> Tensor:
        """`V c`, `(*b, r)` to `(*b, *event)`, with 0 for the directions that were not observed."""
        return self.svd.expand(torch.where(self.observed, coefficients, 0.0))

    @property
    def observed(self) -> Tensor:
        """Which directions were, `(*b', r)`."""
        return ~torch.isnan(self.measured)

    def value(self, like: Tensor) -> Tensor:
        """`yb` with 0 where not observed, in the dtype of `like`."""
        return torch.nan_to_num(self.measured.to(like), nan=0.0)

    def errors(self, noise_std: float, like: Tensor) -> Tensor:
        """`n_i = noise_std / s_i`, `(r,)`."""
        return noise_std / self.svd.singular.to(like)


@dataclass(frozen=True, eq=False)
class Restoration(Sampler):
    """DDRM's step; a sampler, because what it takes from y depends on the level that is stepped to.

    Args:
        spectrum: the measurement.
        noise_std: sigma_y, in the units of y.
        eta: share of new noise as a factor on the standard deviation, 0 to 1 (published: 0.85).
        eta_measured: weight of the measurement where it is less noisy than the level, 0 to 1 (published: 1).

    Raises:
        ValueError: a factor out of range or a negative noise.
    """

    spectrum: Spectrum
    noise_std: float
    eta: float = 0.85
    eta_measured: float = 1.0

    def __post_init__(self) -> None:
        """Check the settings."""
        check_settings(self, noise_std=NOT_NEGATIVE, eta=FRACTION, eta_measured=FRACTION)

    def step(
        self, x: Tensor, t: Tensor, s: Tensor, clean: Clean, again: Callable[[Tensor, Tensor], Clean], path: Path,
        context: Context, rng: Rng, weighted: bool, event_dims: int,
    ) -> tuple[Tensor, Tensor | None]:
        """See `Sampler.step`."""
        if weighted:
            raise ValueError("a step in the spectral basis has no importance weight; ask for no weights")
        now, then = path.coefficients(t, x), path.coefficients(s, x)
        level = then.noise / then.beta
        carried = (1 - self.eta**2) ** 0.5
        old = (x - now.beta * clean.mean) / now.noise
        new = normal(rng, tuple(x.shape), dtype=x.dtype, device=x.device)
        plain = clean.mean + level * (carried * old + self.eta * new)
        # The same step everywhere, then other values in the observed directions: no basis of the null space is needed.
        spectrum, flat = self.spectrum, level.reshape(level.shape[: x.ndim - event_dims])[..., None]
        mean, z, error = spectrum.of(clean.mean), spectrum.of(new), spectrum.errors(self.noise_std, x)
        departure = spectrum.value(x) - mean
        noisier = error > flat
        behind = mean + flat * (carried * departure / torch.where(noisier, error, 1.0) + self.eta * z)
        rest = (flat**2 - (self.eta_measured * error) ** 2).clamp_min(0).sqrt()
        ahead = mean + self.eta_measured * departure + rest * z
        moved = torch.where(noisier, behind, ahead)
        return then.beta * (plain + spectrum.expand(moved - spectrum.of(plain))), None
