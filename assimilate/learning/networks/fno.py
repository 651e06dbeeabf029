r"""A Fourier neural operator: layers that act on the Fourier modes of a field, and so on any grid.

    h <- h + second(gelu((1 + a) (K h + first(h)) + b)),        (K h)^(k) = R_k h^(k)  for |k_x|, |k_y| < modes, else 0

first and second are pointwise linear maps, R_k a complex matrix for each mode, and (a, b) come from the noise level. A
pointwise layer lifts [x, context] to `width` features and two project them to the result.

Shapes: x (B, C, H, W), noise (B,) or None, context (B, C', H, W) or None, result (B, C_out, H, W).

On a periodic grid the network commutes with shifts by whole cells. It is a map of functions: the same field on a finer
grid gives the same result, up to the modes that gelu creates beyond what the coarser grid can hold.

Only the modes kept are transformed, as products with matrices of cosines and sines, so that everything stays real:
`torch.compile`, half precision and safetensors take it as it is. The transforms and R_k compute in the precision of the
weights, under autocast too.

References:
    Li, Kovachki, Azizzadenesheli, Liu, Bhattacharya, Stuart, Anandkumar (2021), Fourier neural operator for parametric
    partial differential equations, https://arxiv.org/abs/2010.08895
    Tran, Mathews, Xie, Ong (2023), Factorized Fourier neural operators, https://arxiv.org/abs/2111.13802 (the residual
    around a layer)

Differs from Li et al.: each layer is a residual with a second pointwise map, no coordinates are given to the network
(they would break the equivariance), and the result starts at zero.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from assimilate.learning.networks.noise_level import Modulation, NoiseLevel
from dynamics.settings import COUNT, check_settings, whole


@dataclass(frozen=True)
class FNOSettings:
    """Architecture of an `FNO`.

    Args:
        channels: channels of the state, C.
        outputs: channels of the result.
        context: channels of the conditioning fields; 0 for none.
        width: features at each place.
        modes: wavenumbers kept on each axis are -(modes - 1) ... modes - 1. A grid with fewer cells uses those it has.
            A layer has about 4 (modes width)^2 numbers.
        layers: spectral layers.
        noise_features: 1 when a noise level is given, 0 for a network that ignores it.
        embedding: width of the embedding of the noise level.
        padding: cells of zeros behind the last row and column, for a field that is not periodic; 0 for a periodic one.

    Raises:
        ValueError: a size that is not positive, or another number of noise features.
    """

    channels: int = 1
    outputs: int = 1
    context: int = 0
    width: int = 32
    modes: int = 16
    layers: int = 4
    noise_features: int = 0
    embedding: int = 64
    padding: int = 0

    def __post_init__(self) -> None:
        """Check the sizes, which torch would only report as a matrix of another shape."""
        check_settings(self, channels=COUNT, outputs=COUNT, context=whole(0), width=COUNT, modes=COUNT, layers=COUNT)
        check_settings(self, noise_features=whole(0, 1), embedding=COUNT, padding=whole(0))


class Transforms(NamedTuple):
    """Matrices of the truncated Fourier transform of one grid, real and imaginary parts side by side.

    K = 2 modes - 1 wavenumbers on the first axis, M = modes on the second; fewer on a small grid.

    Attributes:
        second: `(2 M, W)`, along the second axis.
        first: `(2 K, 2 H)`, along the first axis, of complex values.
        back_first: `(2 H, 2 K)`.
        back_second: `(W, 2 M)`.
        kept: half the wavenumbers of each axis that this grid has, `(modes on H, modes on W)`.
    """

    second: Tensor
    first: Tensor
    back_first: Tensor
    back_second: Tensor
    kept: tuple[int, int]


def transforms(grid: tuple[int, int], modes: int, *, dtype: torch.dtype, device: torch.device) -> Transforms:
    """The transforms of a grid.

    Args:
        grid: (H, W).
        modes: wavenumbers below this are kept, but none at or above the grid's Nyquist wavenumber.
        dtype: float32 or float64.
        device: where they are needed.
    """
    (height, width), kept = grid, (min(modes, (grid[0] + 1) // 2), min(modes, (grid[1] + 1) // 2))
    place: dict[str, Any] = {"dtype": torch.float64, "device": device}
    across = torch.outer(torch.arange(kept[1], **place), torch.arange(width, **place)) * (2 * math.pi / width)
    along = torch.outer(torch.arange(1 - kept[0], kept[0], **place), torch.arange(height, **place))
    along = along * (2 * math.pi / height)
    second = torch.cat([across.cos(), -across.sin()]) / width
    # A mode and its mirror image are conjugate: the half that is kept counts twice, but for k_y = 0.
    twice = torch.cat([torch.ones(1, 1, **place), torch.full((kept[1] - 1, 1), 2.0, **place)])
    back_second = torch.cat([twice * across.cos(), -twice * across.sin()]).T
    cosine, sine = along.cos(), along.sin()
    # Rows (part, wavenumber), columns (place, part): what the second axis leaves behind.
    forward = torch.stack([torch.stack([cosine, sine], -1), torch.stack([-sine, cosine], -1)]) / height
    # Rows (place, part), columns (wavenumber, part).
    backward = torch.stack([torch.stack([cosine.T, -sine.T], -1), torch.stack([sine.T, cosine.T], -1)], 1)
    return Transforms(
        second.to(dtype),
        forward.flatten(0, 1).flatten(1).to(dtype),
        backward.flatten(0, 1).flatten(1).to(dtype),
        back_second.contiguous().to(dtype),
        kept,
    )


class SpectralConvolution(nn.Module):
    """The operator K: a complex matrix for each Fourier mode.

    Args:
        width: features in and out.
        modes: wavenumbers kept on each axis.
    """

    def __init__(self, width: int, modes: int) -> None:
        super().__init__()
        self.modes = modes
        # (k_x, k_y, in, [real | imaginary] out). White features keep their variance: E|R|^2 = 1 / width.
        size = (2 * modes - 1, modes, width, 2 * width)
        self.weight = nn.Parameter(torch.randn(size) * (0.5 / width) ** 0.5)

    def forward(self, h: Tensor, t: Transforms) -> Tensor:
        """Features (B, H, W, width) -> features of the same shape."""
        batch, height, width, features = h.shape
        rows, columns = t.kept
        weight: Tensor = self.weight
        if (rows, columns) != (self.modes, self.modes):
            weight = weight[self.modes - rows : self.modes + rows - 1, :columns]
        # Each reshape is a view: the parts stay where the next product wants them.
        z = t.second @ h.reshape(batch * height, width, features)
        z = t.first @ z.reshape(batch, 2 * height, columns * features)
        z = z.reshape(2 * batch, -1, features).transpose(0, 1)
        z = torch.bmm(z, weight.flatten(0, 1)).unflatten(1, (batch, 2))
        real, imaginary = z.chunk(2, -1)
        z = torch.stack([real[:, :, 0] - imaginary[:, :, 1], real[:, :, 1] + imaginary[:, :, 0]], 1)
        # (k_x, k_y, part, B, width) -> (B, k_x, part, k_y, width)
        z = z.unflatten(0, (-1, columns)).permute(3, 0, 2, 1, 4).reshape(batch, -1, columns * features)
        z = t.back_first @ z
        return (t.back_second @ z.reshape(batch * height, 2 * columns, features)).reshape(h.shape)


class Layer(nn.Module):
    """One residual layer; see the module docstring."""

    def __init__(self, settings: FNOSettings) -> None:
        super().__init__()
        width = settings.width
        self.spectral = SpectralConvolution(width, settings.modes)
        self.first = nn.Linear(width, width)
        self.second = nn.Linear(width, width)
        self.modulation = Modulation(settings.embedding, width) if settings.noise_features else None

    def forward(self, h: Tensor, t: Transforms, embedding: Tensor | None) -> Tensor:
        """Features (B, H, W, width) -> features of the same shape."""
        with torch.autocast(h.device.type, enabled=False):
            inner = self.spectral(h.to(t.first.dtype), t)
        inner = inner + self.first(h)
        if self.modulation is not None and embedding is not None:
            inner = self.modulation(inner, embedding)
        return h + self.second(functional.gelu(inner))


class FNO(nn.Module):
    """Fourier neural operator for any grid; see the module docstring.

    Args:
        settings: the architecture.
    """

    def __init__(self, settings: FNOSettings) -> None:
        super().__init__()
        self.settings = settings
        width = settings.width
        self.embed = NoiseLevel(settings.noise_features, settings.embedding) if settings.noise_features else None
        self.enter = nn.Linear(settings.channels + settings.context, width)
        self.layers = nn.ModuleList(Layer(settings) for _ in range(settings.layers))
        self.widen = nn.Linear(width, 2 * width)
        self.leave = nn.Linear(2 * width, settings.outputs)
        nn.init.zeros_(self.leave.weight)
        nn.init.zeros_(self.leave.bias)

    def forward(self, x: Tensor, noise: Tensor | None = None, context: Tensor | None = None) -> Tensor:
        """The network's output on the grid of `x`.

        Args:
            x: state, (B, C, H, W).
            noise: number that describes the noise level, (B,), of order one; not looked at where the settings say
                `noise_features=0`.
            context: conditioning fields, (B, C', H, W), or None where the settings say `context=0`.

        Returns:
            (B, C_out, H, W).

        Raises:
            ValueError: missing or unexpected context, wrong channels, or no noise level where one is needed.
        """
        h = entering(x, context, self.settings.channels, self.settings.context)
        embedding = None
        if self.embed is not None:
            if noise is None:
                raise ValueError("this network was built with noise_features=1; pass the noise level")
            embedding = self.embed(noise.to(x.dtype))
        height, width = x.shape[-2:]
        h = self.enter(h.permute(0, 2, 3, 1))
        padding = self.settings.padding
        if padding:
            h = functional.pad(h, (0, 0, 0, padding, 0, padding))
        exact = cast(Tensor, self.enter.weight).dtype
        t = transforms((height + padding, width + padding), self.settings.modes, dtype=exact, device=h.device)
        for layer in self.layers:
            h = layer(h, t, embedding)
        h = functional.gelu(self.widen(h[:, :height, :width]))
        return self.leave(h).permute(0, 3, 1, 2).contiguous()


def entering(x: Tensor, context: Tensor | None, channels: int, extra: int) -> Tensor:
    """State and context in one tensor, (B, C + C', H, W).

    Args:
        x: state, (B, C, H, W).
        context: (B, C', H, W) or None.
        channels: C that the network expects.
        extra: C' that it expects.

    Raises:
        ValueError: other channels were given.
    """
    given = 0 if context is None else context.shape[1]
    if given != extra or x.shape[1] != channels:
        raise ValueError(
            f"the state has {x.shape[1]} and the context {given} channels; this network expects {channels} and {extra}"
        )
    return x if context is None else torch.cat([x, context.to(x.dtype)], 1)
