r"""Range and null space of a linear operator: the measurement fixes one part of a state, the prior the other.

`A^+ A x` is the part of x that A sees, `x - A^+ A x` the part that it does not. `MeasuredPart` gives the first;
`NullSpace` (DDNM+) steps with both. With D the clean mean, sigma the noise of the next level, n_i = sigma_y / s_i the
noise of the measurement in direction i of the singular vectors, and

    lambda_i = min(1, sigma / n_i),      gamma_i^2 = sigma^2 - (lambda_i n_i)^2

a step is, in each direction (lambda_i n_i = 0 where A sees nothing),

    x_i' = D_i + lambda_i ((A^+ y)_i - D_i) + gamma_i ( sqrt(1 - eta^2) e_i + eta z_i ),      e = (x - D) / sigma_now

so that the noise of the measurement takes the place of as much noise of the level, and never exceeds it. Where the
singular values are not known, all are taken to be the operator's norm and `A^+` comes from conjugate gradients.

References:
    Wang, Yu, Zhang (2023), Zero-shot image restoration using denoising diffusion null-space model,
    https://arxiv.org/abs/2212.00490

Differs from the paper: missing values of y are left out; the step without singular values is ours. The paper's scalar
rule takes them to be 1 and applies gamma to unseen directions too, where no measurement replaces the noise that it
takes away: more than half of the remaining spread is lost by that.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from assimilate.posterior.corrections.least_squares import pseudo_inverse
from assimilate.posterior.corrections.spectral import Spectrum
from assimilate.posterior.paths import Path
from assimilate.posterior.predictors import Clean, Context
from assimilate.posterior.samplers.base import Sampler
from dynamics.random import Rng, normal
from dynamics.settings import COUNT, FRACTION, NOT_NEGATIVE, POSITIVE, check_settings, number
from observations.base import SVD, LinearOperator, SpaceOrShape


@dataclass(frozen=True, eq=False)
class Seen(LinearOperator):
    """An operator with the rows of missing values set to 0.

    Args:
        operator: the operator.
        observed: True where a value was observed, `(*b', *obs)`.
    """

    operator: LinearOperator
    observed: Tensor

    @property
    def space(self) -> SpaceOrShape:  # type: ignore[override]
        """The operator's."""
        return self.operator.space

    @property
    def obs_shape(self) -> tuple[int, ...]:  # type: ignore[override]
        """The operator's."""
        return self.operator.obs_shape

    def forward(self, x: Tensor) -> Tensor:
        """The observed values; 0 for the others."""
        return torch.where(self.observed, self.operator.forward(x), 0.0)

    def adjoint(self, y: Tensor) -> Tensor:
        """From the observed values."""
        return self.operator.adjoint(torch.where(self.observed, y, 0.0))


@dataclass(frozen=True, eq=False)
class MeasuredPart:
    """`A^+` for one measurement, in which values may be missing.

    Args:
        operator: A.
        y: `(*b', *obs)`, b' broadcasting with the states'; NaN = not observed.
        cutoff: singular values below this share of the largest count as 0. `A^+` enlarges the noise by their inverse.
        iterations: most conjugate-gradient iterations where there is no SVD (or values are missing); few regularise.
    """

    operator: LinearOperator
    y: Tensor
    cutoff: float = 0.0
    iterations: int = 20

    def __post_init__(self) -> None:
        """Check the settings."""
        check_settings(self, cutoff=number(0, below=1), iterations=COUNT)

    @cached_property
    def observed(self) -> Tensor:
        """Which values were."""
        return ~torch.isnan(self.y)

    def inverse(self, values: Tensor) -> Tensor:
        """`A^+` of `values`, `(*b, *obs)` to `(*b, *event)`; those at missing places do not matter."""
        values = torch.where(self.observed, values, 0.0)
        svd = self._svd
        if svd is None:
            return pseudo_inverse(self._seen, values, iterations=self.iterations)
        singular = svd.singular.to(values)
        kept = singular > self.cutoff * torch.amax(singular, -1, keepdim=True) if len(singular) else singular > 0
        return svd.expand(torch.where(kept, svd.project_observed(values) / singular, 0.0))

    def towards(self, target: Tensor, x: Tensor) -> Tensor:
        """`A^+ (target - A x)`: what brings the seen part of `x` `(*b, *event)` to `target` `(*b', *obs)`."""
        return self.inverse(target - self.operator(x))

    @cached_property
    def _svd(self) -> SVD | None:
        return self.operator.svd() if bool(self.observed.all()) else None

    @cached_property
    def _seen(self) -> LinearOperator:
        return self.operator if bool(self.observed.all()) else Seen(self.operator, self.observed)


@dataclass(frozen=True, eq=False)
class NullSpace(Sampler):
    """DDNM+: clean mean and measurement joined in the range and null space of A, then noised to the next level.

    A sampler and not a guidance, because what is taken from y depends on the level that is stepped to. The last step,
    to a level of 0, leaves the clean mean as it is.

    Args:
        operator: A.
        y: measurement, `(*b', *obs)`; NaN = not observed.
        noise_std: sigma_y, in the units of y; 0 gives DDNM.
        eta: share of new noise, as a factor on the standard deviation, 0 to 1 (published: 0.85).
        norm: largest singular value of A, for operators without an SVD.
        iterations: most conjugate-gradient iterations for those.
        spectrum: y in the basis of the SVD; None = there is none.

    Raises:
        ValueError: eta out of range, a negative noise or a norm that is not positive.
    """

    operator: LinearOperator
    y: Tensor
    noise_std: float
    eta: float = 0.85
    norm: float = 1.0
    iterations: int = 20
    spectrum: Spectrum | None = None

    def __post_init__(self) -> None:
        """Check the settings."""
        check_settings(self, noise_std=NOT_NEGATIVE, eta=FRACTION, norm=POSITIVE, iterations=COUNT)

    def step(
        self, x: Tensor, t: Tensor, s: Tensor, clean: Clean, again: Callable[[Tensor, Tensor], Clean], path: Path,
        context: Context, rng: Rng, weighted: bool, event_dims: int,
    ) -> tuple[Tensor, Tensor | None]:
        """See `Sampler.step`."""
        if weighted:
            raise ValueError("a step through the null space has no importance weight; ask for no weights")
        now, then = path.coefficients(t, x), path.coefficients(s, x)
        level = then.noise / then.beta
        old = (x - now.beta * clean.mean) / now.noise
        new = normal(rng, tuple(x.shape), dtype=x.dtype, device=x.device)
        noise = (1 - self.eta**2) ** 0.5 * old + self.eta * new
        if self.spectrum is not None:
            pull = self._by_direction(clean.mean, noise, level.reshape(level.shape[: x.ndim - event_dims]))
        else:
            pull = self._at_once(clean.mean, noise, level)
        return then.beta * (clean.mean + level * noise + pull), None

    def _by_direction(self, mean: Tensor, noise: Tensor, level: Tensor) -> Tensor:
        """What the measurement changes, with lambda and gamma for each singular value."""
        spectrum = self.spectrum
        assert spectrum is not None
        level = level[..., None]
        error = spectrum.errors(self.noise_std, mean)
        share = torch.where(error > 0, level / torch.where(error > 0, error, 1.0), 1.0).clamp_max(1.0)
        gamma = (level**2 - (share * error) ** 2).clamp_min(0).sqrt()
        departure = share * (spectrum.value(mean) - spectrum.of(mean)) + (gamma - level) * spectrum.of(noise)
        return spectrum.expand(departure)

    def _at_once(self, mean: Tensor, noise: Tensor, level: Tensor) -> Tensor:
        """The same with one singular value for all."""
        event = len(self.operator.event_shape)
        # The level is one number, or one for each sample; events and observed values may differ in their dims.
        level = level.reshape(*level.shape[: max(level.ndim - event, 0)], *(1,) * len(self.operator.obs_shape))
        error = self.noise_std / self.norm
        share = (level / error).clamp_max(1.0) if error > 0 else torch.ones_like(level)
        gamma = (level**2 - (share * error) ** 2).clamp_min(0).sqrt()
        part = MeasuredPart(self.operator, self.y, iterations=self.iterations)
        return part.inverse(share * (self.y - self.operator(mean)) + (gamma - level) * self.operator(noise))
