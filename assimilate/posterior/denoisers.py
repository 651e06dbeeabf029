r"""Exact priors as denoisers: Gaussian, Gaussian mixture, stationary Gaussian field.

Each knows `E[x_1 | x_1 + rho z]` and its covariance in closed form: what is wrong with a posterior sample is then the
method's doing and not a network's. They bear the attributes that a solver asks of a prior: `event_shape`, `spread`,
`smallest`, `largest`, `bounds`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

import torch
from torch import Tensor

from assimilate.posterior.covariance import Dense
from assimilate.posterior.paths import VE, Coefficients, Path
from assimilate.posterior.predictors import Clean, Context, GaussianPredictor, MixturePredictor
from dynamics.random import Rng, normal


class Prior(Protocol):
    """A denoiser and what a solver must know of it; lengths are in the units of the state.

    Attributes:
        event_shape: shape of one state.
        spread: standard deviation of the data.
        smallest: noise level below which nothing is left to do.
        largest: noise level at which nothing of the state is seen any more.
        bounds: least and largest value that a state can have; None = any.
    """

    @property
    def event_shape(self) -> tuple[int, ...]:
        """Shape of one state."""
        ...

    @property
    def spread(self) -> float:
        """Standard deviation of the data."""
        ...

    @property
    def smallest(self) -> float:
        """Smallest useful noise level."""
        ...

    @property
    def largest(self) -> float:
        """Largest useful noise level."""
        ...

    @property
    def bounds(self) -> tuple[float, float] | None:
        """Range of the values."""
        ...

    def __call__(self, noisy: Tensor, ratio: Tensor, condition: Tensor | None = None) -> Clean:
        """The belief about the state given `state + ratio z`."""
        ...


@dataclass(frozen=True)
class _Plain(VE):
    """Unit space itself as a path: the time is the noise level."""

    def coefficients(self, t: Tensor, x: Tensor) -> Coefficients:
        """`beta = 1`, `noise = t`; nothing else is asked for."""
        noise = t.to(x).reshape(*t.shape, *(1,) * (x.ndim - t.ndim))
        one, zero = torch.ones_like(noise), torch.zeros_like(noise)
        return Coefficients(zero, one, noise, zero, zero, one, zero, zero, noise**-2, noise**-2, zero, zero)


_PLAIN: Path = _Plain()


@dataclass(frozen=True, eq=False)
class GaussianDenoiser:
    """The prior `N(mean, covariance)` over vectors.

    Args:
        mean: `(d,)`.
        covariance: `(d, d)`.
        smallest: see `Prior`.
        largest: see `Prior`.
    """

    mean: Tensor
    covariance: Tensor
    smallest: float = 0.002
    largest: float = 40.0
    bounds: tuple[float, float] | None = None

    @property
    def event_shape(self) -> tuple[int, ...]:
        """`(d,)`."""
        return tuple(self.mean.shape)

    @property
    def spread(self) -> float:
        """Root of the mean variance."""
        return math.sqrt(float(self.covariance.diagonal().mean()))

    def __call__(self, noisy: Tensor, ratio: Tensor, condition: Tensor | None = None) -> Clean:
        """See `Prior`."""
        predictor = GaussianPredictor(self.covariance.to(noisy), _PLAIN, self.mean.to(noisy))
        return predictor(noisy, torch.as_tensor(ratio, dtype=noisy.dtype), Context())

    def draw(self, shape: tuple[int, ...], *, rng: Rng, dtype: torch.dtype = torch.float64) -> Tensor:
        """Draws, `(*shape, d)`."""
        noise = Dense(self.covariance.to(dtype), 1).draw(rng, (*shape, *self.event_shape), dtype=dtype, device="cpu")
        return self.mean.to(dtype) + noise


@dataclass(frozen=True, eq=False)
class MixtureDenoiser:
    """The prior `sum_j w_j N(mu_j, C_j)` over vectors.

    Args:
        weights: `(k,)`, summing to 1.
        means: `(k, d)`.
        covariances: `(k, d, d)`; may be singular.
        smallest: see `Prior`.
        largest: see `Prior`.
    """

    weights: Tensor
    means: Tensor
    covariances: Tensor
    smallest: float = 0.002
    largest: float = 40.0
    bounds: tuple[float, float] | None = None

    @property
    def event_shape(self) -> tuple[int, ...]:
        """`(d,)`."""
        return (self.means.shape[1],)

    @property
    def spread(self) -> float:
        """Root of the mean variance."""
        mean = self.weights @ self.means
        within = self.covariances.diagonal(dim1=-2, dim2=-1)
        return math.sqrt(float((self.weights @ (within + (self.means - mean) ** 2)).mean()))

    def __call__(self, noisy: Tensor, ratio: Tensor, condition: Tensor | None = None) -> Clean:
        """See `Prior`; `ratio` is zero-dimensional."""
        weights, means, covariances = (part.to(noisy) for part in (self.weights, self.means, self.covariances))
        predictor = MixturePredictor(weights, means, covariances, _PLAIN)
        return predictor(noisy, torch.as_tensor(ratio, dtype=noisy.dtype), Context())

    def draw(self, shape: tuple[int, ...], *, rng: Rng, dtype: torch.dtype = torch.float64) -> Tensor:
        """Draws, `(*shape, d)`; with `Streams`, two numbers of its rows a draw."""
        from dynamics.random import uniform

        pick = torch.searchsorted(self.weights.cumsum(0).to(dtype), uniform(rng, (*shape, 1), dtype=dtype))
        pick = pick.squeeze(-1).clamp_max(len(self.weights) - 1)
        values, vectors = torch.linalg.eigh(self.covariances.to(dtype))
        roots = vectors * values.clamp_min(0).sqrt()[:, None, :]
        z = normal(rng, (*shape, *self.event_shape), dtype=dtype)
        return self.means.to(dtype)[pick] + (roots[pick] @ z[..., None]).squeeze(-1)


@dataclass(frozen=True, eq=False)
class StationaryCovariance:
    """The covariance of a stationary field on a torus, diagonal in its Fourier basis.

    Args:
        spectrum: eigenvalues in the order of `torch.fft.rfft2`, broadcast to `(*b, channel, rows, columns // 2 + 1)`.
    """

    spectrum: Tensor

    def _filter(self, v: Tensor, response: Tensor) -> Tensor:
        return torch.fft.irfft2(torch.fft.rfft2(v) * response.to(v), s=v.shape[-2:])

    def apply(self, v: Tensor) -> Tensor:
        """See `Covariance`."""
        return self._filter(v, self.spectrum)

    def draw(self, rng: Rng, shape: tuple[int, ...], *, dtype: torch.dtype, device: torch.device | str) -> Tensor:
        """See `Covariance`."""
        return self._filter(normal(rng, shape, dtype=dtype, device=device), self.spectrum.clamp_min(0).sqrt())

    def block(self, index: Tensor) -> None:
        """See `Covariance`; products are cheap."""
        return None


@dataclass(frozen=True, eq=False)
class StationaryDenoiser:
    """The prior of a stationary Gaussian field on a torus, `C = F* diag(spectrum) F`.

    Args:
        spectrum: variances of the orthonormal Fourier coefficients, `(channel, rows, columns // 2 + 1)`, symmetric.
        columns: columns of the grid (`rfft2` cannot tell even from odd).
        mean: a number.
        smallest: see `Prior`.
        largest: see `Prior`.
    """

    spectrum: Tensor
    columns: int
    mean: float = 0.0
    smallest: float = 0.002
    largest: float = 40.0
    bounds: tuple[float, float] | None = None

    @property
    def event_shape(self) -> tuple[int, ...]:
        """`(channel, rows, columns)`."""
        return (*self.spectrum.shape[:-1], self.columns)

    @cached_property
    def spread(self) -> float:
        """Standard deviation of a value."""
        full = torch.zeros(self.event_shape, dtype=self.spectrum.dtype)
        full[..., 0, 0] = 1.0
        return math.sqrt(float(StationaryCovariance(self.spectrum).apply(full)[..., 0, 0].mean()))

    def __call__(self, noisy: Tensor, ratio: Tensor, condition: Tensor | None = None) -> Clean:
        """See `Prior`."""
        ratio = torch.as_tensor(ratio, dtype=noisy.dtype, device=noisy.device)
        noise = ratio.reshape(*ratio.shape, *(1,) * (noisy.ndim - ratio.ndim)) ** 2
        spectrum = self.spectrum.to(noisy)
        gain = spectrum / (spectrum + noise)
        centred = torch.fft.rfft2(noisy - self.mean)
        mean = self.mean + torch.fft.irfft2(gain * centred, s=noisy.shape[-2:])
        return Clean(mean, covariance=StationaryCovariance(gain * noise))

    def draw(self, shape: tuple[int, ...], *, rng: Rng, dtype: torch.dtype = torch.float64) -> Tensor:
        """Draws, `(*shape, channel, rows, columns)`."""
        covariance = StationaryCovariance(self.spectrum.to(dtype))
        return self.mean + covariance.draw(rng, (*shape, *self.event_shape), dtype=dtype, device="cpu")
