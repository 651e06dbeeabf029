r"""Poisson noise: counts of photons or other events, whose scatter grows with the signal.

    gain y ~ Poisson( mu ),    mu = gain H(x),    log p(y | x) = c log mu - mu - log c!,    c = gain y

The law depends on the clean observation, so `Poisson.at(H(x))` gives the law of the residual y - H(x), and `Likelihood`
asks for it. Below a small mean, `floor` counts, mu goes on as an exponential that meets it in value and slope,

    mu = floor exp( (gain H(x) - floor) / floor )    for gain H(x) < floor,

so log p stays finite, concave in H(x), and pulls a negative H(x) back where something was counted (a clamp would
leave it without a gradient). Above the floor the law is exact. Densities are those of the counts (of whole numbers).

Draws invert the distribution function, F(c) = Q(c + 1, mu) (the upper incomplete gamma function), at one uniform number
a value: a normal guess with its skewness, then steps to the exact quantile. A value's draw depends on its own number
and mean only, and is exact to the 2^-32 of a stream's numbers.

References:
    Temme (1979), The asymptotic expansion of the incomplete gamma functions, https://doi.org/10.1137/0510071
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from dynamics.errors import CapabilityError
from dynamics.random import Rng
from observations.noise import GaussianNoise, open_uniform, positive_numbers


@dataclass(frozen=True, eq=False)
class Poisson:
    """Counting noise, y = counts / gain; without read-out noise.

    Args:
        gain: counts for one unit of the observed values: a number, or a tensor with one for each value (an exposure).
            The variance of y is H(x) / gain.
        floor: mean count below which the law is continued (see the module), dimensionless. The default, 0.01, is
            below what a count can tell from 0.

    Raises:
        ValueError: a gain or a floor that is not positive.
    """

    gain: Any
    floor: float = 0.01

    def __post_init__(self) -> None:
        """Check and convert."""
        object.__setattr__(self, "gain", positive_numbers(self.gain, "Poisson(gain)"))
        object.__setattr__(self, "floor", positive_numbers(self.floor, "Poisson(floor)"))

    def at(self, expected: Tensor) -> Counting:
        """The law of y - H(x) where H(x) is `expected`, `(*b, m)`.

        Raises:
            ValueError: `expected` is not finite, or has another number of values than `gain`.
        """
        if not bool(torch.isfinite(expected).all()):
            raise ValueError("Poisson noise was given clean observations H(x) that are not finite")
        return Counting(expected, self._gain(expected), self.floor)

    def gaussian(self, y: Tensor) -> GaussianNoise:
        """Gaussian noise of nearly the same law, for methods that linearise.

        Its variances are estimated from the measurement, var = max(counts, 1) / gain^2. The approximation is good
        above some 20 counts; below, low counts get too much weight and results are biased low.

        Args:
            y: one measurement, `(*obs)`; NaN = not observed.

        Raises:
            ValueError: negative values.
        """
        flat = y.detach().flatten().double().cpu()
        _refuse_negative(flat)
        gain = self._gain(flat)
        return GaussianNoise((torch.nan_to_num(gain * flat, nan=1.0).clamp_min(1.0)).sqrt() / gain)

    def log_prob(self, residual: Tensor, observed: Tensor | None = None) -> Tensor:
        """Not defined without the signal: see `at`."""
        raise self._needs_signal("a density")

    def whiten(self, residual: Tensor, observed: Tensor | None = None) -> Tensor:
        """Not defined without the signal: see `at`."""
        raise self._needs_signal("whitened residuals")

    def sample(
        self,
        shape: tuple[int, ...],
        *,
        rng: Rng,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ) -> Tensor:
        """Not defined without the signal: see `at`."""
        raise self._needs_signal("draws")

    def variance(self, size: int, *, dtype: torch.dtype = torch.float32, device: torch.device | str = "cpu") -> Tensor:
        """Not defined without the signal: see `at` and `gaussian`."""
        raise self._needs_signal("variances")

    def _gain(self, like: Tensor) -> Tensor:
        gain = torch.as_tensor(self.gain, dtype=torch.float64)
        if gain.ndim and gain.numel() != like.shape[-1]:
            raise ValueError(f"the noise has gains for {gain.numel()} values; {like.shape[-1]} were observed")
        return gain.to(like.device, like.dtype)

    def _needs_signal(self, what: str) -> CapabilityError:
        return CapabilityError(
            f"Poisson noise has {what} only at a signal: use Likelihood or at(H(x)), or the approximation gaussian(y)"
        )

    def __repr__(self) -> str:
        gain = f"{self.gain.numel()} values" if isinstance(self.gain, Tensor) else self.gain
        return f"Poisson(gain={gain}, floor={self.floor})"


@dataclass(frozen=True, eq=False)
class Counting:
    """The law of y - H(x) for Poisson counts at one signal; `Poisson.at` makes it.

    Args:
        expected: H(x), `(*b, m)`.
        gain: counts for one unit, 0-dimensional or `(m,)`.
        floor: mean count below which the mean is continued.
    """

    expected: Tensor
    gain: Tensor
    floor: float

    def log_prob(self, residual: Tensor, observed: Tensor | None = None) -> Tensor:
        """Log probability of the observed counts, `(*b,)`, differentiable in H(x); y itself is data.

        Raises:
            ValueError: observed values are negative.
        """
        y = (residual + self.expected).detach()
        if observed is not None:
            y = torch.where(observed, y, 0.0)
        _refuse_negative(y)
        counts = self.gain * y
        upper, beyond, mean = self._mean()
        # Against the largest value, at mu = c: a million counts would cancel to whole units in float32.
        some = torch.where(counts > 0, counts, 1.0)
        gap = counts * (torch.log1p((upper - some) / some) + beyond) - (mean - counts)
        each = gap + _log_peak(counts)
        return (each if observed is None else torch.where(observed, each, 0.0)).sum(-1)

    def whiten(self, residual: Tensor, observed: Tensor | None = None) -> Tensor:
        """Residuals over their standard deviation sqrt(max(mu, floor)) / gain, 0 where not observed; `(*b, m)`."""
        if observed is not None:
            residual = torch.where(observed, residual, 0.0)
        return self.gain * residual / self._mean()[2].clamp_min(self.floor).sqrt()

    def sample(
        self,
        shape: tuple[int, ...],
        *,
        rng: Rng,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ) -> Tensor:
        """Draws of y - H(x), shape `(*b, *obs)`; with `Streams` the leading dims are its rows."""
        u = open_uniform(rng, tuple(shape), device)
        mean = self._mean()[2].detach().to(device, torch.float64)
        counts = poisson_quantile(u, mean.reshape(u.shape))
        flat = counts.reshape(mean.shape) / self.gain.to(device, torch.float64)
        return (flat - self.expected.detach().to(device, torch.float64)).reshape(shape).to(dtype)

    def variance(self, size: int, *, dtype: torch.dtype = torch.float32, device: torch.device | str = "cpu") -> Tensor:
        """Variances mu / gain^2 `(*b, size)`, those of each signal."""
        if self.expected.shape[-1] != size:
            raise ValueError(f"the signal has {self.expected.shape[-1]} values; {size} were asked for")
        return (self._mean()[2] / self.gain**2).to(device, dtype)

    def _mean(self) -> tuple[Tensor, Tensor, Tensor]:
        """Two parts of log mu = log(upper) + beyond, and mu."""
        linear = self.gain * self.expected
        below = linear < self.floor
        # Each branch sees only arguments of its own side, so that neither overflows into the other's gradient.
        upper = torch.where(below, self.floor, linear)
        beyond = torch.where(below, linear / self.floor - 1.0, 0.0)
        return upper, beyond, upper + self.floor * torch.expm1(beyond)


def poisson_quantile(u: Tensor, mean: Tensor) -> Tensor:
    """The smallest count c with F(c) >= u, for the Poisson law of each mean.

    Args:
        u: probabilities in (0, 1), float64.
        mean: means >= 0, of the shape of `u`.

    Returns:
        Whole numbers, float64.
    """
    z = torch.special.ndtri(u)
    guess = (mean + mean.sqrt() * z + (z * z - 1) / 6 - 0.5).round().clamp_min(0.0)
    counts, flat_u, flat_mean = guess.flatten(), u.flatten(), mean.flatten()
    # Only values that still move are looked at again; most are right at once.
    for step in (1.0, -1.0):
        moving = torch.arange(counts.numel(), device=counts.device)
        while moving.numel():
            trial = counts[moving]
            if step > 0:
                moves = _distribution(trial, flat_mean[moving]) < flat_u[moving]
            else:
                moves = (trial > 0) & (_distribution(trial - 1, flat_mean[moving]) >= flat_u[moving])
            moving = moving[moves]
            counts[moving] += step
    return counts.reshape(u.shape)


def _distribution(count: Tensor, mean: Tensor) -> Tensor:
    """F(count), the probability of at most `count` events; 0 below 0."""
    return torch.where(count < 0, 0.0, torch.special.gammaincc(count.clamp_min(0.0) + 1, mean))


def _log_peak(counts: Tensor) -> Tensor:
    """The value c log c - c - log c!, the largest log probability of a count, computed in float64."""
    c = counts.double()
    return (torch.xlogy(c, c) - c - torch.lgamma(c + 1)).to(counts.dtype)


def _refuse_negative(y: Tensor) -> None:
    if bool((y < 0).any()):
        raise ValueError(
            f"Poisson noise was given the observation {float(y[y < 0].min()):.4g}; counts are not negative: give "
            "them as measured (no background subtracted, no images scaled to [-1, 1])"
        )
