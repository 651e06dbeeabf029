r"""A network as a denoiser in unit space, with EDM's preconditioning.

For clean data of standard deviation s and `noisy = clean + rho z`,

    m = c_skip noisy + c_out F(c_in noisy, ln(rho) / 4, condition)
    c_skip = s^2 / (s^2 + rho^2),   c_out = rho s / sqrt(s^2 + rho^2),   c_in = 1 / sqrt(s^2 + rho^2)
    V = c_out^2 exp(v)              with an optional second output v of the network

`c_skip noisy` and `c_out^2` are the exact mean and variance for `clean ~ N(0, s^2 I)`, so F = 0, v = 0 is the Gaussian
answer and the network learns only what differs from it. V is the variance of each value of the clean state; samplers
and guidances that know it need fewer steps.

Shapes: states `(*b, channel, *grid)`; rho `()` or `(*b,)`; condition `(*b, channel', *grid)`.

References:
    Karras, Aittala, Aila, Laine (2022), Elucidating the design space of diffusion-based generative models,
    https://arxiv.org/abs/2206.00364
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


class EDMDenoiser(nn.Module):
    """A network with EDM's preconditioning; a `Denoiser` of `assimilate.posterior.predictors`.

    Args:
        network: `network(x (B, C, *grid), noise (B,), context (B, C', *grid) | None) -> (B, outputs, *grid)`.
        event_dims: dims of one event, 1 for a vector, 3 for a channel on a two-dimensional grid.
        sigma_data: standard deviation s of the clean data.
        variance: whether the network's second half of channels is v.
    """

    def __init__(
        self, network: nn.Module, *, event_dims: int, sigma_data: float = 1.0, variance: bool = False
    ) -> None:
        super().__init__()
        self.network = network
        self.event_dims = event_dims
        self.sigma_data = sigma_data
        self.variance = variance

    def precondition(self, noisy: Tensor, ratio: Tensor) -> Preconditioning:
        """EDM's numbers; `noise` is shaped `(*b,)`, the others `(*b, 1, ...)`."""
        lead = noisy.shape[: noisy.ndim - self.event_dims]
        level = ratio.to(dtype=noisy.dtype, device=noisy.device).expand(lead)
        rho = level.reshape(*lead, *(1,) * self.event_dims)
        total = torch.sqrt(rho**2 + self.sigma_data**2)
        # A level of exactly zero has no logarithm; what the network is told there does not matter, since c_out = 0.
        named = torch.log(level.clamp_min(1e-12)) / 4
        return Preconditioning((self.sigma_data / total) ** 2, rho * self.sigma_data / total, 1 / total, named)

    def outputs(
        self, noisy: Tensor, ratio: Tensor, condition: Tensor | None = None
    ) -> tuple[Tensor, Tensor | None, Preconditioning]:
        """The network's raw outputs F and v (None without), and the preconditioning; what training works on."""
        c = self.precondition(noisy, ratio)
        event = noisy.shape[noisy.ndim - self.event_dims :]
        context = None if condition is None else condition.reshape(-1, *condition.shape[-self.event_dims :])
        # The network computes in its own precision, whatever that of the states.
        dtype = next(self.network.parameters()).dtype
        inner = (c.inside * noisy).reshape(-1, *event).to(dtype)
        raw = self.network(inner, c.noise.reshape(-1).to(dtype), None if context is None else context.to(dtype))
        raw = raw.to(noisy.dtype).reshape(*noisy.shape[: noisy.ndim - self.event_dims], *raw.shape[1:])
        if not self.variance:
            return raw, None, c
        mean, log_variance = raw.chunk(2, -self.event_dims)
        return mean, log_variance.clamp(*_LOG_VARIANCE_RANGE), c

    def forward(self, noisy: Tensor, ratio: Tensor, condition: Tensor | None = None) -> Clean:
        """The belief about the clean state.

        Args:
            noisy: clean data plus `ratio` times noise, `(*b, *event)`.
            ratio: rho, `()` or `(*b,)`, in the units of the state.
            condition: what the network is conditioned on, `(*b, channel', *grid)`.
        """
        raw, log_variance, c = self.outputs(noisy, ratio, condition)
        mean = c.skip * noisy + c.out * raw
        if log_variance is None:
            return Clean(mean)
        return Clean(mean, covariance=Isotropic(c.out**2 * torch.exp(log_variance)))
