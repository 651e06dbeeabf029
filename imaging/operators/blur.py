r"""Blur: each channel of an image is convolved with a kernel.

    y_i = sum_j k_j x_{i - j},     j counted from the kernel's middle pixel

With periodic edges this is y = F^H diag(h) F x, F the orthonormal Fourier transform. Its real singular value
decomposition: V = T, the Hartley transform T x = Re(F x) - Im(F x), which is orthonormal and its own inverse; singular
values |h|; and U = P T, P the filter of unit gain and the phase of h. With reflecting edges (the picture is mirrored
about the centres of its edge pixels, as the published deblurring does) the picture is padded first; that operator has
no such decomposition, and its adjoint is not a blur with the flipped kernel: the margins are folded back.

References:
    Bracewell (1983), Discrete Hartley transform, https://doi.org/10.1364/JOSA.73.001832
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import torch
from torch import Tensor

from dynamics.random import Streams
from imaging.operators.images import image_shape
from imaging.operators.kernels import gaussian_kernel, motion_kernel
from observations.base import SVD, LinearOperator, SpaceOrShape, space_name

Boundary = Literal["periodic", "reflect"]
_PLANE = (-2, -1)


@dataclass(frozen=True, eq=False)
class Blur(LinearOperator):
    """Convolution of each channel with a kernel, obs shape = event shape.

    Args:
        space: Space of the image, or `(channel, rows, columns)`.
        kernel: `(r, c)`, in pixels; its middle is `(r // 2, c // 2)`. It is used as given: a sum of 1 keeps the mean.
        boundary: "periodic" (has an SVD) or "reflect" (as published, has none).

    Raises:
        ValueError: a kernel that is larger than the image or not finite, or another boundary.
    """

    space: SpaceOrShape
    kernel: Any
    boundary: Boundary = "periodic"

    def __post_init__(self) -> None:
        """Transform the kernel."""
        _, rows, columns = image_shape(self.space)
        kernel = torch.as_tensor(self.kernel, dtype=torch.float64).cpu()
        if kernel.ndim != 2 or not bool(torch.isfinite(kernel).all()):
            raise ValueError(f"the kernel has shape {tuple(kernel.shape)}; expected finite numbers (rows, columns)")
        if kernel.shape[0] > rows or kernel.shape[1] > columns:
            raise ValueError(f"a kernel of {tuple(kernel.shape)} pixels is larger than the image, {rows} x {columns}")
        if self.boundary not in ("periodic", "reflect"):
            raise ValueError(f"boundary={self.boundary!r}; expected 'periodic' or 'reflect'")
        object.__setattr__(self, "kernel", kernel)
        lines = [_padded_line(n, k, self.boundary) for n, k in zip((rows, columns), kernel.shape, strict=True)]
        frame = torch.zeros(lines[0].numel(), lines[1].numel(), dtype=torch.float64)
        frame[: kernel.shape[0], : kernel.shape[1]] = kernel
        frame = frame.roll((-(kernel.shape[0] // 2), -(kernel.shape[1] // 2)), _PLANE)
        object.__setattr__(self, "row_source", lines[0])
        object.__setattr__(self, "column_source", lines[1])
        # Real and imaginary part in a last dimension: `on` casts real tensors.
        object.__setattr__(self, "transfer", torch.view_as_real(torch.fft.rfft2(frame)))

    def forward(self, x: Tensor) -> Tensor:
        """The blurred image."""
        transfer = self._transfer(x)
        if self.boundary == "periodic":
            return _filter(x, transfer)
        across = x.index_select(-1, self.on("column_source", x, cast=False))
        padded = across.index_select(-2, self.on("row_source", x, cast=False))
        return self._crop(_filter(padded, transfer))

    def adjoint(self, y: Tensor) -> Tensor:
        """The correlation with the kernel; reflected margins are added to the pixels that they came from."""
        transfer = self._transfer(y).conj()
        if self.boundary == "periodic":
            return _filter(y, transfer)
        (top, bottom), (left, right) = self._margins
        spread = _filter(torch.nn.functional.pad(y, (left, right, top, bottom)), transfer)
        lead, (rows, columns) = y.shape[:-2], self.event_shape[1:]
        folded = spread.new_zeros(*lead, rows, spread.shape[-1])
        folded = folded.index_add(-2, self.on("row_source", y, cast=False), spread)
        empty = spread.new_zeros(*lead, rows, columns)
        return empty.index_add(-1, self.on("column_source", y, cast=False), folded)

    def carry(self, positions: Tensor) -> Tensor:
        """The same places."""
        return positions

    def svd(self) -> SVD | None:
        """Singular values |h|, those at round-off dropped; None with reflecting edges."""
        if self.boundary != "periodic":
            return None
        event, singular, index = self.event_shape, *self._spectrum
        size = math.prod(event)

        def pick(x: Tensor) -> Tensor:
            return hartley(x).flatten(x.ndim - 3).index_select(-1, index.to(x.device))

        def place(c: Tensor) -> Tensor:
            zeros = torch.zeros(*c.shape[:-1], size, dtype=c.dtype, device=c.device)
            return hartley(zeros.index_copy(-1, index.to(c.device), c).reshape(*c.shape[:-1], *event))

        return SVD(
            singular,
            pick,
            place,
            lambda y: pick(_filter(y, self._phase(y).conj())),
            lambda c: _filter(place(c), self._phase(c)),
        )

    @cached_property
    def phase(self) -> Tensor:
        """The phases h / |h| (1 where h is 0), real and imaginary part in a last dimension."""
        transfer = torch.view_as_complex(self.transfer)  # type: ignore[attr-defined]
        size = transfer.abs()
        return torch.view_as_real(torch.where(size > 0, transfer / size.clamp_min(1e-300), 1.0))

    @cached_property
    def _spectrum(self) -> tuple[Tensor, Tensor]:
        """Singular values above the round-off, and their places in the flattened Hartley transform."""
        frame = torch.fft.irfft2(torch.view_as_complex(self.transfer), s=self.event_shape[1:])  # type: ignore[attr-defined]
        sizes = torch.fft.fft2(frame).abs().flatten().repeat(self.event_shape[0])
        limit = sizes.max() * math.prod(self.event_shape[1:]) * torch.finfo(sizes.dtype).eps
        index = (sizes > limit).nonzero()[:, 0]
        return sizes[index], index

    @property
    def _margins(self) -> tuple[tuple[int, int], tuple[int, int]]:
        rows, columns = (_margin(k) for k in self.kernel.shape)
        return rows, columns

    def _crop(self, padded: Tensor) -> Tensor:
        (top, _), (left, _) = self._margins
        _, rows, columns = self.event_shape
        return padded[..., top : top + rows, left : left + columns]

    def _transfer(self, like: Tensor) -> Tensor:
        return torch.view_as_complex(self.on("transfer", like))

    def _phase(self, like: Tensor) -> Tensor:
        return torch.view_as_complex(self.on("phase", like))

    def __repr__(self) -> str:
        return f"Blur({space_name(self.space)}, kernel {tuple(self.kernel.shape)}, boundary={self.boundary!r})"


def gaussian_blur(
    space: SpaceOrShape, std: float = 3.0, size: int | None = None, boundary: Boundary = "periodic"
) -> Blur:
    """Blur with a Gaussian.

    Args:
        space: Space of the image, or `(channel, rows, columns)`.
        std: standard deviation in pixels (default 3, published for images of 256 x 256).
        size: side of the kernel in pixels, odd (default: 61, or the largest that fits into the image).
        boundary: "periodic" or "reflect" (as published).

    Raises:
        ValueError: see `Blur` and `gaussian_kernel`.
    """
    _, rows, columns = image_shape(space)
    return Blur(space, gaussian_kernel(_odd(min(61, rows, columns)) if size is None else size, std), boundary)


def motion_blur(
    space: SpaceOrShape,
    intensity: float = 0.5,
    size: int | None = None,
    boundary: Boundary = "periodic",
    seed: int = 0,
) -> Blur:
    """Blur by a random motion of the camera.

    Args:
        space: Space of the image, or `(channel, rows, columns)`.
        intensity: how erratic the motion is, 0 (a straight line) to 1 (default 0.5, as published).
        size: side of the kernel in pixels, odd (default: 61 for 256 pixels, as published, and in proportion).
        boundary: "periodic" or "reflect" (as published).
        seed: seed of the motion.

    Raises:
        ValueError: see `Blur` and `motion_kernel`.
    """
    _, rows, columns = image_shape(space)
    side = max(3, _odd(math.ceil(min(rows, columns) * 61 / 256))) if size is None else size
    return Blur(space, motion_kernel(side, intensity, rng=Streams(seed)), boundary)


def hartley(x: Tensor) -> Tensor:
    """Re(F x) - Im(F x) over the last two dimensions, F orthonormal: real, orthonormal, its own inverse."""
    transformed = torch.fft.fft2(x, norm="ortho")
    return transformed.real - transformed.imag


def _filter(x: Tensor, transfer: Tensor) -> Tensor:
    """Periodic convolution by the half spectrum of its kernel."""
    return torch.fft.irfft2(torch.fft.rfft2(x) * transfer, s=x.shape[-2:])


def _margin(kernel: int) -> tuple[int, int]:
    """Pixels that a kernel needs before the first and after the last one of a line."""
    return kernel - 1 - kernel // 2, kernel // 2


def _padded_line(size: int, kernel: int, boundary: str) -> Tensor:
    """Which pixel each one of a padded line copies."""
    if boundary == "periodic":
        return torch.arange(size)
    before, after = _margin(kernel)
    if max(before, after) >= size:
        raise ValueError(f"a kernel of {kernel} pixels reaches beyond the reflection of {size} pixels")
    line = torch.arange(-before, size + after).abs()
    return torch.where(line < size, line, 2 * (size - 1) - line)


def _odd(size: int) -> int:
    """The largest odd number up to `size`."""
    return size - 1 + size % 2
