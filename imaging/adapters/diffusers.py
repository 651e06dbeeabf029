r"""A UNet of Hugging Face diffusers, with its scheduler, as a prior.

    x_k = sqrt(a_k) u + sqrt(1 - a_k) z,     a = scheduler.alphas_cumprod,     ratio_k = sqrt(1 / a_k - 1)

The network knows the levels `ratio_k` of its training, k = 0, 1... (k = 0 is the least noise). A noisy image `u + r z`
is scaled by sqrt(a) = 1 / sqrt(1 + r^2) and the network is asked at the step k whose level is r, with k interpolated
in log r between two of them (time embeddings are continuous). What it gives is turned into the clean mean:

    epsilon        u = sqrt(1 + r^2) x - r eps
    v_prediction   u = ( x - r v ) / sqrt(1 + r^2)
    sample         u itself

Images there are u in [-1, 1]; here they have the units of `bounds`, x = low + (high - low) (u + 1) / 2.

References:
    Ho, Jain, Abbeel (2020), Denoising diffusion probabilistic models, https://arxiv.org/abs/2006.11239 (epsilon)
    Salimans, Ho (2022), Progressive distillation for fast sampling of diffusion models,
    https://arxiv.org/abs/2202.00512 (v)
"""

from __future__ import annotations

import copy
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Literal

import torch
from torch import Tensor, nn

from assimilate.errors import UserError
from assimilate.posterior.predictors import Clean

Prediction = Literal["epsilon", "v_prediction", "sample"]


@dataclass(frozen=True, eq=False)
class DiffusersPrior:
    """See the module and `from_diffusers_unet`.

    Args:
        network: called as `network(x, timestep)`, giving an object with `.sample` (or a tensor, or a tuple).
        ratios: noise levels of its steps in its own units, increasing, float64 `(steps,)`.
        prediction: what it gives.
        event_shape: of an image.
        bounds: what -1 and 1 mean in the units of the image.
        unit_spread: standard deviation of the images in [-1, 1].
    """

    network: Any
    ratios: Tensor
    prediction: Prediction
    event_shape: tuple[int, ...]
    bounds: tuple[float, float] = (0.0, 1.0)
    unit_spread: float = 0.5

    @property
    def scale(self) -> float:
        """Units of the image for one unit of the network."""
        return (self.bounds[1] - self.bounds[0]) / 2

    @property
    def spread(self) -> float:
        """See `Prior`."""
        return self.scale * self.unit_spread

    @property
    def smallest(self) -> float:
        """The level of the first step, units of the image."""
        return self.scale * float(self.ratios[0])

    @property
    def largest(self) -> float:
        """The level of the last step."""
        return self.scale * float(self.ratios[-1])

    @cached_property
    def _logs(self) -> Tensor:
        return self.ratios.log()

    def steps(self, ratio: Tensor) -> Tensor:
        """Steps, with fractions, at noise levels in the network's units; levels beyond its own meet the ends."""
        logs = self._logs.to(ratio.device)
        wanted = ratio.double().clamp(float(self.ratios[0]), float(self.ratios[-1])).log()
        above = torch.searchsorted(logs, wanted).clamp(1, logs.numel() - 1)
        low, high = logs[above - 1], logs[above]
        return (above - 1) + (wanted - low) / (high - low)

    def __call__(self, noisy: Tensor, ratio: Tensor, condition: Tensor | None = None) -> Clean:
        """See `Prior`."""
        lead = noisy.shape[:-3]
        centre = (self.bounds[0] + self.bounds[1]) / 2
        u = ((noisy - centre) / self.scale).reshape(-1, *noisy.shape[-3:])
        level = torch.as_tensor(ratio, dtype=noisy.dtype, device=noisy.device).expand(lead).reshape(-1) / self.scale
        r = level[:, None, None, None]
        root = torch.sqrt(1 + r * r)
        x = u / root
        raw = self.network(x, self.steps(level).to(noisy.dtype))
        raw = raw[0] if isinstance(raw, tuple) else getattr(raw, "sample", raw)
        # Networks that also give a variance have twice the channels.
        raw = raw[:, : u.shape[1]]
        if self.prediction == "epsilon":
            clean = root * x - r * raw
        elif self.prediction == "v_prediction":
            clean = (x - r * raw) / root
        else:
            clean = raw
        return Clean((centre + self.scale * clean).reshape(noisy.shape))

    def to(self, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> DiffusersPrior:
        """A copy on another device or in another precision."""
        if not isinstance(self.network, nn.Module):
            return self
        return replace(self, network=copy.deepcopy(self.network).to(device=device, dtype=dtype))

    def __repr__(self) -> str:
        return (
            f"DiffusersPrior({type(self.network).__name__}, {self.prediction}, {tuple(self.event_shape)}, "
            f"bounds={self.bounds})"
        )


def from_diffusers_unet(
    unet: Any,
    scheduler: Any,
    *,
    shape: tuple[int, ...] | None = None,
    bounds: tuple[float, float] = (0.0, 1.0),
    spread: float | None = None,
) -> DiffusersPrior:
    """A diffusers UNet and the scheduler that it was trained with, as a prior.

    Only the scheduler's noise levels (`alphas_cumprod`) and `config.prediction_type` are read; nothing is downloaded.

    Args:
        unet: such as `UNet2DModel`; in `eval` mode. Latent diffusion models are no priors of images.
        scheduler: such as `DDPMScheduler`.
        shape: of an image (default: `config.in_channels` and `config.sample_size`).
        bounds: what -1 and 1 mean in the units of the image (default [0, 1]).
        spread: standard deviation of the images, in those units (default: a quarter of the range).

    Raises:
        UserError: the scheduler has no `alphas_cumprod` or an unknown prediction type, the network is in training
            mode, or the shape is not known.
    """
    cumulative = getattr(scheduler, "alphas_cumprod", None)
    if cumulative is None:
        raise UserError(f"{type(scheduler).__name__} has no alphas_cumprod; expected a DDPM or DDIM scheduler")
    prediction: Any = _setting(scheduler, "prediction_type") or "epsilon"
    if prediction not in ("epsilon", "v_prediction", "sample"):
        raise UserError(f"prediction type '{prediction}'; expected epsilon, v_prediction or sample")
    if isinstance(unet, nn.Module) and any(part.training for part in unet.modules()):
        raise UserError("the network is in training mode; call unet.eval() first")
    if shape is None:
        side, channels = _setting(unet, "sample_size"), _setting(unet, "in_channels")
        if side is None or channels is None:
            raise UserError("the network does not say the shape of its images; pass shape=(channel, rows, columns)")
        shape = (int(channels), *((int(side),) * 2 if isinstance(side, int) else (int(s) for s in side)))
    if not bounds[0] < bounds[1]:
        raise UserError(f"bounds={bounds}; expected what -1 and 1 mean in the units of the image, low < high")
    kept = torch.as_tensor(cumulative).double().cpu()
    # Schedules scaled to end in pure noise have a last level of infinity, which no finite image reaches.
    kept = kept[:-1] if kept.numel() and float(kept[-1]) == 0 else kept
    ratios = torch.sqrt(1 / kept - 1)
    if ratios.numel() < 2 or not float(ratios[0]) > 0 or not bool((ratios.diff() > 0).all()):
        raise UserError("alphas_cumprod must lie between 1 and 0 and fall from step to step")
    network = copy.deepcopy(unet).requires_grad_(False) if isinstance(unet, nn.Module) else unet
    unit_spread = 0.5 if spread is None else spread * 2 / (bounds[1] - bounds[0])
    return DiffusersPrior(network, ratios, prediction, tuple(shape), bounds, unit_spread)


def _setting(owner: Any, name: str) -> Any:
    """A setting from `config`, which is a mapping with attributes in diffusers; or from the object itself."""
    config = getattr(owner, "config", None)
    if isinstance(config, dict) and name in config:
        return config[name]
    return getattr(config, name, getattr(owner, name, None))
