"""Nonlinear blur: a network that turns a sharp image into a blurred one is the operator.

    y = network(x)

The published task uses the network of Tran et al. (2021); no weights are shipped. Any callable on images serves.

References:
    Tran, Tran, Phung, Hoai (2021), Explore image deblurring via encoded blur kernel space,
    https://arxiv.org/abs/2104.00317
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor, nn

from dynamics.space import SpaceMismatch
from imaging.operators.images import image_shape
from observations.base import ObservationOperator, SpaceOrShape, space_name
from observations.nonlinear import load_object


@dataclass(frozen=True, eq=False)
class NonlinearBlur(ObservationOperator):
    """A network on images as an operator.

    The network is called on `(n, channel, rows, columns)`, values in the units of the Space, and must treat every image
    alone. A module is copied for each device and dtype that is asked for and its copy frozen; the one given stays as it
    was, and later changes of it are not seen.

    Args:
        space: Space of the image, or `(channel, rows, columns)`.
        network: a callable `(n, channel, rows, columns)` -> `(n, *obs)`, such as a module, or its name
            "module:object".

    Raises:
        ValueError: a module in training mode (there, batch norms mix the images of a batch), or a name that cannot be
            imported.
    """

    space: SpaceOrShape
    network: Callable[[Tensor], Tensor] | str

    def __post_init__(self) -> None:
        """Import a network given by name; check its mode."""
        image_shape(self.space)
        call = load_object(self.network) if isinstance(self.network, str) else self.network
        if not callable(call):
            raise ValueError(f"network is a {type(call).__name__}; expected a callable on images")
        if isinstance(call, nn.Module) and any(part.training for part in call.modules()):
            raise ValueError("the network is in training mode; call network.eval() first")
        object.__setattr__(self, "call", call)

    def forward(self, x: Tensor) -> Tensor:
        """network(x)."""
        lead = x.shape[:-3]
        images = x.reshape(-1, *x.shape[-3:])
        result = self._network(x)(images)
        if result.ndim < 2 or result.shape[0] != images.shape[0]:
            raise SpaceMismatch(f"the network gave shape {tuple(result.shape)} for {images.shape[0]} images")
        return result.reshape(*lead, *result.shape[1:])

    def _network(self, like: Tensor) -> Callable[[Tensor], Tensor]:
        call = self.call  # type: ignore[attr-defined]
        if not isinstance(call, nn.Module):
            return call
        key = (like.device, like.dtype)
        if key not in self._copies:
            self._copies[key] = copy.deepcopy(call).to(like.device, like.dtype).requires_grad_(False)
        return self._copies[key]

    @cached_property
    def _copies(self) -> dict[tuple[torch.device, torch.dtype], nn.Module]:
        return {}

    def __repr__(self) -> str:
        name = self.network if isinstance(self.network, str) else type(self.network).__name__
        return f"NonlinearBlur({space_name(self.space)}, {name})"
