r"""A trained predictor and a sampler as a `Dynamics`: the learned transition p(x_k | x_{k-1}, past).

    base  = f(x_{k-1}, past)              a forecast: the regressed mean of the next state
    x_k   = base + s r                    r: the residual in units of its standard deviation s, one number a channel
    path  = Interpolant(scale=s)          from base to x_k
    m     = base + s D(r + rho z, rho, x_{k-1}, past)     D: an EDM denoiser of unit data, rho = noise / (beta s)

The past are the `frames - 1` states before x_{k-1}; there is none by default. Forecast and denoiser see it as
`assimilate.learning.forecast` says, each state with a flag, so that a step can start from one state alone.

States, bases and clean means are in Space units, so likelihoods and guidance need no change of units; the networks
see standardised states and unit residuals. A transition that is Gaussian with the forecast's mean and spread s needs
nothing from D; what D learns is the rest: skewness, two modes, a spread that depends on the state.

Shapes: states `(*b, *event)`, event `(channel, *grid)`; the past `(*b, h, *event)`, newest first.

References:
    Chen, Goldstein, Hua, Albergo, Boffi, Vanden-Eijnden (2024), Probabilistic forecasting with stochastic interpolants
    and Foellmer processes, https://arxiv.org/abs/2403.13724
    Chen et al. (2024), FlowDAS: a stochastic interpolant-based framework for data assimilation,
    https://arxiv.org/abs/2501.16642

Differs from the papers: the interpolant starts from a forecast, not from the previous state, and its noise has the
scale of the residual, not 1.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from assimilate.baselines.base import without_no_data
from assimilate.learning.checkpoint import Checkpoint
from assimilate.learning.correlation import Correlation, stored_correlation
from assimilate.learning.denoiser import EDMDenoiser
from assimilate.learning.forecast import MeanForecast, context_channels
from assimilate.learning.samples import Standardisation, redrawn
from assimilate.posterior.covariance import Covariance, Isotropic
from assimilate.posterior.paths import Interpolant, Path
from assimilate.posterior.predictors import Clean, Context
from assimilate.posterior.samplers import Ancestral, Sampler
from assimilate.posterior.time_grids import ratio_times, uniform_times
from assimilate.posterior.transition import draw
from dynamics import Rng, Space

if TYPE_CHECKING:
    from assimilate.learning.gaussian import GaussianForecast

_LARGEST_RATIO = 80.0
"""Told to a denoiser where noise hides everything, unless it was trained on less."""


@dataclass(frozen=True)
class ResidualPredictor:
    """A denoiser of unit residuals as the predictor of the next state along an interpolant.

    Args:
        denoiser: EDM denoiser of `(x_1 - base) / scale`.
        path: the interpolant; its scale is the residual's.
        correlation: of the denoiser's errors; None: its variance alone says what is left open.
        largest: ratio of noise to signal that the denoiser is told at most.
    """

    denoiser: EDMDenoiser
    path: Interpolant
    correlation: Correlation | None = None
    largest: float = _LARGEST_RATIO

    def __call__(self, x: Tensor, t: Tensor, context: Context) -> Clean:
        """See `Predictor`; the context holds the forecast and what `told` gives."""
        if context.base is None:
            raise ValueError("a learned transition starts from a forecast; pass context=transition.context(x, time)")
        spread, base = self.path.spread(x), context.base
        return residual_belief(
            self.denoiser, self.path, spread, x, t, base, base, context.condition, self.correlation, self.largest
        )


def residual_belief(
    denoiser: EDMDenoiser,
    path: Path,
    spread: Tensor,
    x: Tensor,
    t: Tensor,
    base: Tensor,
    centre: Tensor,
    condition: Tensor | None,
    correlation: Correlation | None = None,
    largest: float = _LARGEST_RATIO,
) -> Clean:
    """The belief about `x_1 = centre + spread r` from a denoiser of unit residuals r, on a path that starts at `base`.

    Args:
        denoiser: of r.
        path: its noise must have the proportions of `spread` in the channels.
        spread: standard deviation of the residual, broadcastable against `x`.
        x: state at time t, `(*b, *event)`.
        t: time.
        base: `x_0`.
        centre: the forecast.
        condition: what the denoiser is conditioned on.
        correlation: of its errors; one noise level for all samples then.
        largest: ratio of noise to signal that the denoiser is told at most.
    """
    c = path.coefficients(t, x)
    noise = c.noise / spread
    # At the start nothing is known and both vanish; the largest ratio says so.
    signal = torch.maximum(c.beta, noise / largest)
    at_start = signal <= 0
    safe = torch.where(at_start, 1.0, signal)
    noisy = torch.where(at_start, 0.0, (x - c.alpha * base - c.beta * centre) / (spread * safe))
    ratio = torch.where(at_start, largest, noise / safe)
    # The ratio is the same in every channel once the spread is divided out.
    level = ratio.flatten(t.ndim)[..., 0] if ratio.ndim > t.ndim else ratio
    clean = denoiser(noisy, level, condition)
    covariance: Covariance | None = None
    if isinstance(clean.covariance, Isotropic):
        covariance = Isotropic(spread**2 * clean.covariance.variance)
        if correlation is not None:
            covariance = correlation.covariance(covariance.variance.sqrt(), float(level.flatten()[0]))
    return Clean(centre + spread * clean.mean, covariance=covariance)


def told(
    forecast: MeanForecast,
    x: Tensor,
    past: Tensor | None,
    known: Tensor | None = None,
    ahead: Tensor | None = None,
) -> Tensor:
    """What the denoiser is conditioned on, `(*b, channel', *grid)`; see `told_channels` for their number.

    Args:
        forecast: standardises states and flags those that are known.
        x: newest states, `(*b, *event)`.
        past: states before them, newest first, `(*b, h, *event)`; None where nothing is known.
        known: `(*b, h)`, which of the past are known; None: all that are given.
        ahead: the forecast, for a denoiser that is informed of it.
    """
    parts = [part for part in forecast.encoded(x, past, known) if part is not None]
    if ahead is not None:
        parts.append(forecast.standardisation.encode(ahead))
    return torch.cat(parts, -forecast.event_dims)


def told_channels(frames: int, channels: int, informed: bool) -> int:
    """Channels of what a denoiser is told: the newest state, the past with its flags and perhaps the forecast."""
    return channels + context_channels(frames, channels) + (channels if informed else 0)


@dataclass(frozen=True, eq=False)
class LearnedTransition:
    """A learned transition as a `Dynamics`; see the module docstring.

    Args:
        space: what a state is.
        dt: time between states, in the units of the time axis.
        forecast: the regressed mean; it says how many states are looked at.
        denoiser: of the unit residual, conditioned on the standardised states (`told`).
        path: the interpolant from the forecast to the next state, in Space units.
        states: stored states `(n, *event)` from which `prior` draws.
        sampler: how `step` samples. The denoiser knows the variance of the clean state, so that few steps give the
            right spread: 8 for Lorenz-63 (Gaussian transitions), 16 for the double well (two modes).
        steps: predictor calls of one `step`.
        ratios: largest and smallest noise level of a step, in units of the residual, spaced as by `ratio_times`; None:
            equal steps of time. A field needs a large first level: a residual of few wide patterns is known from noise
            that hides every single cell.
        informed: whether the denoiser is told the standardised forecast besides the states: noise that the flow has
            carried along lies where the flow ends, not where it began.
        correlation: how what the denoiser leaves open goes together in space; without it value by value. With it a
            field needs a handful of steps, and guidance without a backward pass knows the wide patterns.
        data: what it was trained on.
        record: how it was trained and what was measured.
    """

    space: Space
    dt: float
    forecast: MeanForecast = field(repr=False)
    denoiser: EDMDenoiser = field(repr=False)
    path: Interpolant
    states: Tensor = field(repr=False)
    sampler: Sampler = Ancestral(variance="clean")
    steps: int = 8
    ratios: tuple[float, float] | None = None
    informed: bool = False
    correlation: Correlation | None = field(default=None, repr=False)
    data: dict[str, Any] = field(default_factory=dict, repr=False)
    record: dict[str, Any] = field(default_factory=dict, repr=False)

    @property
    def event_dims(self) -> int:
        """Dims of one event."""
        return len(self.space.event_shape)

    @property
    def frames(self) -> int:
        """States that a step looks at, the newest included."""
        return self.forecast.frames

    @property
    def predictor(self) -> ResidualPredictor:
        """`(x_t, t, context) -> Clean`: the belief about the next state, Space units."""
        largest = _LARGEST_RATIO if self.ratios is None else min(self.ratios[0], _LARGEST_RATIO)
        return ResidualPredictor(self.denoiser, self.path, self.correlation, largest)

    @property
    def times(self) -> Tensor:
        """The time grid of `step`, `(steps + 1,)`."""
        if self.ratios is None:
            return uniform_times(self.steps, dtype=torch.float64)
        unit = replace(self.path, scale=1.0)
        return ratio_times(unit, self.steps, largest=self.ratios[0], smallest=self.ratios[1], dtype=torch.float64)

    def context(self, x: Tensor, time: float = 0.0, past: Tensor | None = None) -> Context:
        """What the predictor needs of the states so far: the forecast, and them standardised.

        Args:
            x: newest states `(*b, *event)`, Space units.
            time: their time; a learned transition does not depend on it.
            past: states before them, newest first, `(*b, h, *event)`; any h, what is missing is unknown.
        """
        base = self.next_state(x, time, past)
        with torch.no_grad():
            return Context(base, told(self.forecast, x, past, ahead=base if self.informed else None))

    def to_model(self, x: Tensor) -> Tensor:
        """Space units -> the standardised coordinates that the networks see; affine, one pair of numbers a channel."""
        return self.forecast.standardisation.encode(x)

    def from_model(self, u: Tensor) -> Tensor:
        """The inverse of `to_model`."""
        return self.forecast.standardisation.decode(u)

    def prior(
        self,
        shape: tuple[int, ...],
        *,
        rng: Rng,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ) -> Tensor:
        """Stored states drawn with replacement, `(*shape, *event)`."""
        return redrawn(self.states, shape, rng=rng, dtype=dtype, device=device)

    def step(self, x: Tensor, time: float, *, rng: Rng | None) -> Tensor:
        """A draw of the next state from one whose past is unknown; with `rng=None` the forecast."""
        if rng is None:
            return self.next_state(x, time)
        return self.mask(draw(self, x, time, event_dims=self.event_dims, rng=rng).x)

    def next_state(self, x: Tensor, time: float, past: Tensor | None = None) -> Tensor:
        """The forecast from `x` and the states before it, see `context`; nothing is drawn."""
        with torch.no_grad():
            return self.mask(self.forecast(x, past))

    def mask(self, x: Tensor) -> Tensor:
        """`x` with 0 at the no-data cells."""
        return without_no_data(x, self.space)

    admissible = mask

    def gaussian(self) -> GaussianForecast:
        """The same forecast with a Gaussian residual of the same spread: what most learned models would do.

        Raises:
            UserError: a transition that looks at several states.
        """
        from assimilate.learning.gaussian import GaussianForecast

        scale = self.path.scale if isinstance(self.path.scale, tuple) else (self.path.scale,) * len(self.space.channels)
        return GaussianForecast(self, tuple(scale))

    def to(self, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> LearnedTransition:
        """A copy on another device or in another precision; states given to it must match."""
        return replace(
            self,
            forecast=copy.deepcopy(self.forecast).to(device=device, dtype=dtype),
            denoiser=copy.deepcopy(self.denoiser).to(device=device, dtype=dtype),
            states=self.states.to(device=device, dtype=dtype),
            correlation=None if self.correlation is None else self.correlation.to(device, dtype),
        )

    def to_checkpoint(self) -> Checkpoint:
        """What a file holds of it; the sampler is written by its number of steps."""
        constants = {
            "dt": self.dt,
            "frames": self.frames,
            "steps": self.steps,
            "state": _affine(self.forecast.standardisation),
            "increment": _affine(self.forecast.increments),
            "sigma_data": self.denoiser.sigma_data,
            "variance": self.denoiser.variance,
            "informed": self.informed,
            "ratios": None if self.ratios is None else list(self.ratios),
        }
        tensors = {"states": self.states}
        if self.correlation is not None:
            tensors |= self.correlation.tensors()
        return Checkpoint(
            kind="transition",
            networks={"forecast": self.forecast.network, "denoiser": self.denoiser.network},
            tensors=tensors,
            space=self.space,
            path=self.path,
            constants=constants,
            data=self.data,
            record=self.record,
        )

    @classmethod
    def from_checkpoint(cls, checkpoint: Checkpoint) -> LearnedTransition:
        """The transition that a file holds."""
        c, space = checkpoint.constants, checkpoint.space
        assert space is not None and isinstance(checkpoint.path, Interpolant)
        dims = len(space.event_shape)
        grid_dims = dims - 1
        forecast = MeanForecast(
            checkpoint.networks["forecast"],
            Standardisation(**c["state"], grid_dims=grid_dims),
            Standardisation(**c["increment"], grid_dims=grid_dims),
            dims,
            # Files written before there was a choice say nothing of it.
            c.get("frames", 1),
        )
        denoiser = EDMDenoiser(
            checkpoint.networks["denoiser"], event_dims=dims, sigma_data=c["sigma_data"], variance=c["variance"]
        )
        return cls(
            space=space,
            dt=c["dt"],
            forecast=forecast.eval(),
            denoiser=denoiser.eval(),
            path=checkpoint.path,
            states=checkpoint.tensors["states"],
            sampler=Ancestral(variance="clean" if c["variance"] else "upper"),
            steps=c["steps"],
            informed=c.get("informed", False),
            ratios=None if c.get("ratios") is None else tuple(c["ratios"]),
            correlation=stored_correlation(checkpoint.tensors),
            data=checkpoint.data,
            record=checkpoint.record,
        )


def learned_transition(checkpoint: Checkpoint) -> LearnedTransition:
    """The transition that a file holds."""
    return LearnedTransition.from_checkpoint(checkpoint)


def _affine(standardisation: Standardisation) -> dict[str, Any]:
    return {"mean": list(standardisation.mean), "std": list(standardisation.std)}
