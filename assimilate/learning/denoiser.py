r"""A network as a denoiser in unit space, with EDM's preconditioning.

For clean data of standard deviation s and `noisy = clean + rho z`,

    m = c_skip noisy + c_out F(c_in noisy, ln(rho) / 4, condition)
    c_skip = s^2 / (s^2 + rho^2),   c_out = rho s / sqrt(s^2 + rho^2),   c_in = 1 / sqrt(s^2 + rho^2)
    V = c_out^2 exp(v)              with an optional second output v of the network

`c_skip noisy` and `c_out^2` are the exact mean and variance for `clean ~ N(0, s^2 I)`, so F = 0, v = 0 is the Gaussian
answer and the network learns only what differs from it. V is the variance of each value of the clean state; samplers
and guidances that know it need fewer steps.

Where channels are strongly correlated (the states of a window are) all this happens along principal directions, one s
each: the noise is isotropic, so they are as good a frame as the channels, and F = 0 is then the exact answer for
`clean ~ N(0, Q diag(s^2) Q^T)`. On windows of Lorenz-63 states that is worth as much as three times the training.

Shapes: states `(*b, channel, *grid)`; rho `()` or `(*b,)`; condition `(*b, channel', *grid)`.

References:
    Karras, Aittala, Aila, Laine (2022), Elucidating the design space of diffusion-based generative models,
    https://arxiv.org/abs/2206.00364

Differs from the paper: principal directions.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from assimilate.posterior.covariance import Isotropic
from assimilate.posterior.predictors import Clean

_LOG_VARIANCE_RANGE = (-10.0, 4.0)


class Preconditioning(NamedTuple):
    """The four numbers of EDM at one noise level, broadcastable against the state."""

    skip: Tensor
    out: Tensor
    inside: Tensor
    noise: Tensor


class Unit(NamedTuple):
    """What training works on: everything in the frame and at the scale of the network.

    Attributes:
        raw: the network's output F.
        log_variance: its output v, or None.
        noisy: the noisy state in the network's frame, not scaled.
        scale: the preconditioning.
    """

    raw: Tensor
    log_variance: Tensor | None
    noisy: Tensor
    scale: Preconditioning


class EDMDenoiser(nn.Module):
    """A network with EDM's preconditioning; a `Denoiser` of `assimilate.posterior.predictors`.

    Args:
        network: `network(x (B, C, *grid), noise (B,), context (B, C', *grid) | None) -> (B, outputs, *grid)`.
        event_dims: dims of one event, 1 for a vector, 3 for a channel on a two-dimensional grid.
        sigma_data: standard deviation s of the clean data, one number or one a channel (or principal direction).
        variance: whether the network's second half of channels is v.
        basis: orthonormal principal directions of the channels, `(C, C)`, in columns; None = the channels themselves.

    Raises:
        ValueError: a variance along principal directions, which is no variance of single values.
    """

    sigma: Tensor
    basis: Tensor | None

    def __init__(
        self,
        network: nn.Module,
        *,
        event_dims: int,
        sigma_data: float | Tensor = 1.0,
        variance: bool = False,
        basis: Tensor | None = None,
    ) -> None:
        super().__init__()
        if variance and basis is not None:
            raise ValueError("a denoiser along principal directions cannot give a variance of single values")
        self.network = network
        self.event_dims = event_dims
        self.variance = variance
        self.register_buffer("sigma", torch.as_tensor(sigma_data, dtype=torch.float32))
        self.register_buffer("basis", basis)

    @property
    def sigma_data(self) -> float:
        """The standard deviation of the clean data, over all channels (or principal directions)."""
        return float(self.sigma.square().mean().sqrt())

    def precondition(self, noisy: Tensor, ratio: Tensor) -> Preconditioning:
        """EDM's numbers; `noise` is shaped `(*b,)`, the others broadcast against the state."""
        lead = noisy.shape[: noisy.ndim - self.event_dims]
        level = ratio.to(dtype=noisy.dtype, device=noisy.device).expand(lead)
        rho = level.reshape(*lead, *(1,) * self.event_dims)
        sigma = self.sigma.to(noisy)
        if sigma.ndim:
            sigma = sigma.reshape(-1, *(1,) * (self.event_dims - 1))
        total = torch.sqrt(rho**2 + sigma**2)
        # A level of exactly zero has no logarithm; what the network is told there does not matter, since c_out = 0.
        named = torch.log(level.clamp_min(1e-12)) / 4
        return Preconditioning((sigma / total) ** 2, rho * sigma / total, 1 / total, named)

    def turn(self, x: Tensor, *, back: bool = False) -> Tensor:
        """`x` in the network's frame, or back from it."""
        if self.basis is None:
            return x
        basis = self.basis.to(x)
        moved = x.movedim(-self.event_dims, -1) @ (basis.T if back else basis)
        return moved.movedim(-1, -self.event_dims)

    def unit(self, noisy: Tensor, ratio: Tensor, condition: Tensor | None = None) -> Unit:
        """The network's raw outputs and what they mean; what training works on."""
        turned = self.turn(noisy)
        c = self.precondition(turned, ratio)
        lead = noisy.shape[: noisy.ndim - self.event_dims]
        context = None if condition is None else condition.reshape(-1, *condition.shape[-self.event_dims :])
        # The network computes in its own precision, whatever that of the states.
        dtype = next(self.network.parameters()).dtype
        inner = (c.inside * turned).reshape(-1, *noisy.shape[len(lead) :]).to(dtype)
        raw = self.network(inner, c.noise.reshape(-1).to(dtype), None if context is None else context.to(dtype))
        raw = raw.to(noisy.dtype).reshape(*lead, *raw.shape[1:])
        if not self.variance:
            return Unit(raw, None, turned, c)
        mean, log_variance = raw.chunk(2, -self.event_dims)
        return Unit(mean, log_variance.clamp(*_LOG_VARIANCE_RANGE), turned, c)

    def error(self, unit: Unit, clean: Tensor) -> Tensor:
        """The error of F in units in which a new network's is of variance one for Gaussian data."""
        return unit.raw - (self.turn(clean) - unit.scale.skip * unit.noisy) / unit.scale.out

    def forward(self, noisy: Tensor, ratio: Tensor, condition: Tensor | None = None) -> Clean:
        """The belief about the clean state.

        Args:
            noisy: clean data plus `ratio` times noise, `(*b, *event)`.
            ratio: rho, `()` or `(*b,)`, in the units of the state.
            condition: what the network is conditioned on, `(*b, channel', *grid)`.
        """
        raw, log_variance, turned, c = self.unit(noisy, ratio, condition)
        mean = self.turn(c.skip * turned + c.out * raw, back=True)
        if log_variance is None:
            return Clean(mean)
        return Clean(mean, covariance=Isotropic(c.out**2 * torch.exp(log_variance)))
