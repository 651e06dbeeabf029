"""DeepInverse: its physics as operators and its denoisers as priors.

    physics.A(x) -> y,    physics.A_adjoint(y) -> x,    denoiser(x, sigma) -> clean image

Tensors there are `(batch, channel, rows, columns)`; here any leading dims become the batch. Only the clean operator A
is taken: the noise of a physics is not, since it is a matter of the likelihood here. Images are in [0, 1] by the
library's convention, with sigma in the same units.

References:
    Tachella et al. (2025), DeepInverse: a Python package for solving imaging inverse problems with deep learning,
    https://arxiv.org/abs/2505.20160
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from assimilate.errors import UserError
from assimilate.posterior.predictors import Clean
from dynamics.space import Space, SpaceMismatch
from observations.base import LinearOperator, ObservationOperator, SpaceOrShape, space_name


@dataclass(frozen=True, eq=False)
class Physics(ObservationOperator):
    """A forward model of DeepInverse as an operator, `(*b, *event)` -> `(*b, *obs)`; see `from_deepinv_physics`.

    Args:
        space: Space of the image, or `(channel, rows, columns)`.
        physics: an object with `A(x)`, on batches.
    """

    space: SpaceOrShape
    physics: Any

    @cached_property
    def obs_shape(self) -> tuple[int, ...]:
        """Shape of the measurement of one image; asked of the physics in its own precision and on its own device."""
        like = _placement(self.physics)
        with torch.no_grad():
            return tuple(self.forward(torch.zeros(self.event_shape).to(like)).shape)

    def forward(self, x: Tensor) -> Tensor:
        """A(x)."""
        event = len(self.event_shape)
        lead = x.shape[: x.ndim - event]
        y = self._at(x).A(x.reshape(-1, *self.event_shape))
        if not isinstance(y, Tensor) or y.ndim < 2 or y.shape[0] != math.prod(lead):
            raise SpaceMismatch(f"{type(self.physics).__name__}.A gave {_what(y)} for {math.prod(lead)} images")
        return y.reshape(*lead, *y.shape[1:])

    def _at(self, like: Tensor) -> Any:
        """The physics where the tensor is; a module is copied once for each device and precision."""
        if not isinstance(self.physics, nn.Module):
            return self.physics
        key = (like.device, like.dtype)
        if key not in self._copies:
            self._copies[key] = copy.deepcopy(self.physics).to(like.device, like.dtype).requires_grad_(False)
        return self._copies[key]

    @cached_property
    def _copies(self) -> dict[tuple[torch.device, torch.dtype], Any]:
        return {}

    def __repr__(self) -> str:
        return f"{type(self).__name__}({space_name(self.space)}, {type(self.physics).__name__})"


class LinearPhysics(Physics, LinearOperator):
    """A linear one; its adjoint is `A_adjoint` of the physics."""

    def adjoint(self, y: Tensor) -> Tensor:
        """A* y."""
        obs = len(self.obs_shape)
        lead = y.shape[: y.ndim - obs]
        x = self._at(y).A_adjoint(y.reshape(-1, *self.obs_shape))
        return x.reshape(*lead, *self.event_shape)


def from_deepinv_physics(physics: Any, shape: tuple[int, ...] | Space, linear: bool | None = None) -> Physics:
    """A DeepInverse physics as an operator.

    The noise is not taken: give it to `reconstruct(noise=...)` in the units of the measurement. Whether `A_adjoint` is
    the adjoint of A is for `observations.check.check_operator` to say.

    Args:
        physics: an object with `A(x)` and, if linear, `A_adjoint(y)`.
        shape: of an image, `(channel, rows, columns)`, or its Space.
        linear: whether it is linear (None: it is if it has `A_adjoint`).

    Raises:
        UserError: the object has no `A`, or is called linear and has no `A_adjoint`.
        SpaceMismatch: it cannot be called on images of that shape.
    """
    has_adjoint = callable(getattr(physics, "A_adjoint", None))
    linear = has_adjoint if linear is None else linear
    if not callable(getattr(physics, "A", None)) or (linear and not has_adjoint):
        raise UserError(f"{type(physics).__name__} has no A{'_adjoint' if linear else ''}; expected a deepinv Physics")
    operator = (LinearPhysics if linear else Physics)(shape, physics)
    try:
        _ = operator.obs_shape
    except (RuntimeError, TypeError) as error:
        raise SpaceMismatch(f"{operator!r} cannot be called on images {operator.event_shape}: {error}") from error
    return operator


@dataclass(frozen=True, eq=False)
class DenoiserPrior:
    """A denoiser called as `model(x, sigma)` as a prior.

    Args:
        model: takes images `(n, channel, rows, columns)` and their noise levels; gives clean means. In `eval` mode.
        event_shape: of one image; fully convolutional models take other grids.
        spread: standard deviation of the images.
        smallest: smallest noise level that the model knows.
        largest: largest one.
        bounds: least and largest value of an image.
        per_image: whether sigma may be a tensor with one level for each image; else images of one level are called
            together with a number.
    """

    model: Callable[..., Tensor]
    event_shape: tuple[int, ...]
    spread: float = 0.25
    smallest: float = 0.002
    largest: float = 1.0
    bounds: tuple[float, float] | None = (0.0, 1.0)
    per_image: bool = True

    def __call__(self, noisy: Tensor, ratio: Tensor, condition: Tensor | None = None) -> Clean:
        """See `Prior`."""
        lead = noisy.shape[:-3]
        images = noisy.reshape(-1, *noisy.shape[-3:])
        level = torch.as_tensor(ratio, dtype=noisy.dtype, device=noisy.device).expand(lead).reshape(-1)
        if self.per_image:
            mean = self.model(images, level)
        else:
            mean = torch.empty_like(images)
            for value in level.unique():
                mean = torch.where((level == value)[:, None, None, None], self.model(images, float(value)), mean)
        if tuple(mean.shape) != tuple(images.shape):
            raise SpaceMismatch(f"the denoiser gave shape {tuple(mean.shape)} for images {tuple(images.shape)}")
        return Clean(mean.reshape(noisy.shape))

    def to(self, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> DenoiserPrior:
        """A copy on another device or in another precision; a plain function stays as it is."""
        if not isinstance(self.model, nn.Module):
            return self
        return replace(self, model=copy.deepcopy(self.model).to(device=device, dtype=dtype))

    def __repr__(self) -> str:
        return f"DenoiserPrior({type(self.model).__name__}, {tuple(self.event_shape)}, largest={self.largest:g})"


def from_deepinv_denoiser(
    model: Callable[..., Tensor],
    shape: tuple[int, ...],
    *,
    spread: float = 0.25,
    smallest: float = 0.002,
    largest: float = 1.0,
    bounds: tuple[float, float] | None = (0.0, 1.0),
    per_image: bool = True,
) -> DenoiserPrior:
    """A DeepInverse denoiser as a prior of images in [0, 1].

    Denoisers for plug-and-play are trained up to a small noise (DRUNet: 50/255). Above it their answer is no clean
    mean: raise `largest` only for networks that were trained there (diffusion UNets), since solvers that start from
    pure noise need levels of several spreads.

    Args:
        model: called as `model(x, sigma)`.
        shape: of an image, `(channel, rows, columns)`.
        spread: standard deviation of the images (0.25: natural ones in [0, 1]).
        smallest: smallest noise level.
        largest: largest noise level that the network was trained for.
        bounds: range of an image.
        per_image: whether the model takes one level for each image.

    Raises:
        UserError: the model is in training mode, or is not called on images.
    """
    if isinstance(model, nn.Module) and any(part.training for part in model.modules()):
        raise UserError("the denoiser is in training mode; call model.eval() first")
    if len(shape) != 3 or not 0 < smallest < largest:
        raise UserError(f"shape={shape}, levels {smallest}, {largest}; expected (channel, rows, columns), 0 < smallest")
    if isinstance(model, nn.Module):
        model = copy.deepcopy(model).requires_grad_(False)
    return DenoiserPrior(model, tuple(shape), spread, smallest, largest, bounds, per_image)


def _placement(physics: Any) -> Tensor:
    """A tensor with the device and the precision of a physics."""
    held = [] if not isinstance(physics, nn.Module) else [*physics.parameters(), *physics.buffers()]
    real = [one for one in held if one.is_floating_point()]
    return torch.zeros((), dtype=real[0].dtype, device=real[0].device) if real else torch.zeros(())


def _what(y: Any) -> str:
    return f"shape {tuple(y.shape)}" if isinstance(y, Tensor) else f"a {type(y).__name__}"
