r"""Magnetic resonance imaging: sampled k-space seen by one coil or several.

    y_c = M F (S_c x) + n_c,    F unitary

`F` is centred: the middle pixel (rows // 2, columns // 2) is the origin of the image and the same index the zero
frequency of k-space, `fftshift(fft2(ifftshift(x), norm="ortho"))`. M keeps the sampled points.

Tensors of the engine are real. A complex image is an event `(2, rows, columns)`, real and imaginary part; a real one is
`(1, rows, columns)`. Values are `(coils, 2, samples)`: the sampled points only, in C order, real and imaginary part. A
noise standard deviation is that of each of the two parts; complex noise of variance s^2 has s / sqrt(2) in each.

References:
    Pruessmann et al. (1999), SENSE: sensitivity encoding for fast MRI, https://pubmed.ncbi.nlm.nih.gov/10542355/
    Zbontar et al. (2018), fastMRI: an open dataset and benchmarks for accelerated MRI,
    https://arxiv.org/abs/1811.08839
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dynamics.errors import SpaceMismatch
from dynamics.space import Space
from imaging.operators.magnetic_resonance import masks
from imaging.operators.magnetic_resonance.coils import ring_coils
from imaging.operators.magnetic_resonance.decomposition import complex_svd, pairs_of, real_svd
from observations.base import SVD, LinearOperator, SpaceOrShape, space_name


@dataclass(frozen=True, eq=False)
class MagneticResonance(LinearOperator):
    """Sampled k-space of an image, `(*b, 1 or 2, rows, columns)` -> `(*b, coils, 2, samples)`.

    Its norm is at most max_r sqrt(sum_c |S_c(r)|^2): 1 without maps and with normalised ones.

    Args:
        space: Space of the image, or its event shape: one channel for a real image, two for a complex one.
        mask: True where k-space is sampled, zero frequency at index n // 2: `(rows, columns)`, or `(columns,)` for
            a Cartesian scan that reads whole columns.
        coils: complex sensitivity maps `(coils, rows, columns)`, or None for a single coil that sees everything alike.

    Raises:
        SpaceMismatch: an event that is no image of one or two channels.
        ValueError: a mask or maps of another shape, a mask that is not of booleans (or of 0 and 1) or samples
            nothing, or maps that are not complex.
    """

    space: SpaceOrShape
    mask: Any
    coils: Any = None

    def __post_init__(self) -> None:
        """Check the shapes; find the sampled points."""
        event = self.event_shape
        if len(event) != 3 or event[0] not in (1, 2):
            raise SpaceMismatch(f"an image has events (1, rows, columns), or (2, ...) if complex; given {event}")
        rows, columns = event[1:]
        given = torch.as_tensor(self.mask)
        if tuple(given.shape) not in ((columns,), (rows, columns)):
            raise ValueError(f"mask has shape {tuple(given.shape)}; expected {(columns,)} or {(rows, columns)}")
        if not bool(((given == 0) | (given == 1)).all()) or not bool(given.any()):
            raise ValueError("mask must hold True or False (or 1 and 0), and sample at least one point")
        mask = given.bool().expand(rows, columns).contiguous()
        object.__setattr__(self, "mask", mask)
        # Sampled points in C order of the centred k-space, as indices into the one that the FFT gives.
        order = torch.arange(rows * columns).reshape(rows, columns)
        object.__setattr__(self, "index", torch.fft.fftshift(order)[mask])
        if self.coils is None:
            return
        maps = torch.as_tensor(self.coils)
        if maps.ndim != 3 or tuple(maps.shape[1:]) != (rows, columns) or not maps.is_complex():
            raise ValueError(
                f"coils are {maps.dtype} of shape {tuple(maps.shape)}; expected complex (coils, {rows}, {columns})"
            )
        if not bool(torch.isfinite(torch.view_as_real(maps)).all()):
            raise ValueError("coils hold values that are not finite; set maps to 0 where they are unknown")
        object.__setattr__(self, "coils", maps.to(torch.complex128))
        object.__setattr__(self, "maps", torch.view_as_real(maps.to(torch.complex128).contiguous()))

    @property
    def samples(self) -> int:
        """Number of points of k-space that each coil samples."""
        return int(self.index.numel())  # type: ignore[attr-defined]

    @property
    def acceleration(self) -> float:
        """Points of the full k-space per point sampled."""
        return masks.achieved_acceleration(self.mask)

    def forward(self, x: Tensor) -> Tensor:
        """The sampled points of each coil."""
        image = to_complex(x).unsqueeze(-3)
        points = self._transform(image if self.coils is None else image * self._maps(x))
        points = points.index_select(-1, self._index(x))
        return torch.stack([points.real, points.imag], -2)

    def adjoint(self, y: Tensor) -> Tensor:
        """sum_c conj(S_c) F* M* y_c; its real part for real images."""
        self._check_values(y)
        images = self.coil_images(y)
        image = images if self.coils is None else images * self._maps(y).conj()
        return self._event(image.sum(-3))

    def coil_images(self, y: Tensor) -> Tensor:
        """The zero-filled image of each coil, complex `(*b, coils, rows, columns)`."""
        points = torch.complex(*y.unbind(-2))
        full = points.new_zeros(*points.shape[:-1], self.mask.numel()).index_copy(-1, self._index(y), points)
        return self._inverse(full)

    def zero_filled(self, y: Tensor, weights: Tensor | None = None) -> Tensor:
        """The zero-filled reconstruction, `(*b, coils, 2, samples)` -> `(*b, *event)`.

        Points that were not sampled count as 0; coil images are combined by their maps (over sum |S_c|^2).

        Args:
            y: values.
            weights: density compensation, `(samples,)`: one over the density with which points were sampled (None: 1,
                and then it is the adjoint for normalised maps).
        """
        image = self.adjoint(y if weights is None else y * weights.to(y))
        if self.coils is None:
            return image
        power = self.on("maps", y).square().sum((0, -1))
        return torch.where(power > 0, image / power.clamp_min(torch.finfo(y.dtype).tiny), 0.0)

    def svd(self) -> SVD | None:
        """Known for a single coil without map (see `decomposition`); None with maps.

        A map multiplies the image and a mask k-space; the two do not commute, and no fast basis serves both.
        """
        if self.coils is not None:
            return None
        rows, columns = self.event_shape[1:]
        size = rows * columns

        def transform(x: Tensor) -> Tensor:
            return self._transform(to_complex(x))

        def inverse(points: Tensor) -> Tensor:
            return self._event(self._inverse(points))

        if self.event_shape[0] == 2:
            return complex_svd(self.samples, size, transform, inverse, self._index)
        index: Tensor = self.index  # type: ignore[attr-defined]
        return real_svd(pairs_of(index, rows, columns), size, transform, inverse)

    def to_values(self, kspace: Tensor | np.ndarray) -> Tensor:
        """The sampled points of complex k-space arrays, `(*b, coils, rows, columns)` -> `(*b, coils, 2, samples)`.

        Raises:
            ValueError: the array is not complex or has another shape.
        """
        full = torch.as_tensor(kspace)
        shape = (self.obs_shape[0], *self.event_shape[1:])
        if not full.is_complex() or tuple(full.shape[-3:]) != shape:
            raise ValueError(
                f"k-space is {full.dtype} of shape {tuple(full.shape)}; expected complex (*b, *{shape}), coils first "
                "and the zero frequency in the middle"
            )
        points = full[..., self.mask.to(full.device)]
        return torch.stack([points.real, points.imag], -2)

    def to_kspace(self, values: Tensor) -> Tensor:
        """Complex k-space `(*b, coils, rows, columns)` of values, 0 where not sampled; undoes `to_values`."""
        self._check_values(values)
        points = torch.complex(*values.unbind(-2))
        places = torch.nonzero(self.mask.flatten())[:, 0].to(values.device)
        full = points.new_zeros(*points.shape[:-1], self.mask.numel()).index_copy(-1, places, points)
        return full.unflatten(-1, self.event_shape[1:])

    def _transform(self, image: Tensor) -> Tensor:
        """Complex images to flat k-space in the order of the FFT."""
        return torch.fft.fft2(torch.fft.ifftshift(image, dim=(-2, -1)), norm="ortho").flatten(-2)

    def _inverse(self, points: Tensor) -> Tensor:
        """The inverse of `_transform`."""
        image = torch.fft.ifft2(points.unflatten(-1, self.event_shape[1:]), norm="ortho")
        return torch.fft.fftshift(image, dim=(-2, -1))

    def _event(self, image: Tensor) -> Tensor:
        return from_complex(image) if self.event_shape[0] == 2 else image.real.unsqueeze(-3)

    def _maps(self, like: Tensor) -> Tensor:
        return torch.view_as_complex(self.on("maps", like))

    def _index(self, like: Tensor) -> Tensor:
        return self.on("index", like, cast=False)

    def _check_values(self, y: Tensor) -> None:
        if tuple(y.shape[-3:]) != self.obs_shape:
            raise SpaceMismatch(
                f"{self!r} was given values of shape {tuple(y.shape)}; expected (*b, *{self.obs_shape})"
            )

    def __repr__(self) -> str:
        coils = "" if self.coils is None else f", {self.coils.shape[0]} coils"
        return f"MagneticResonance({space_name(self.space)}, {self.samples} of {self.mask.numel()} points{coils})"


def to_complex(x: Tensor) -> Tensor:
    """Events `(*b, 1 or 2, rows, columns)` as complex images `(*b, rows, columns)`."""
    imaginary = x[..., 1, :, :] if x.shape[-3] == 2 else torch.zeros_like(x[..., 0, :, :])
    return torch.complex(x[..., 0, :, :], imaginary)


def from_complex(image: Tensor) -> Tensor:
    """Complex images `(*b, rows, columns)` as events `(*b, 2, rows, columns)`."""
    return torch.stack([image.real, image.imag], -3)


def simulated_scan(
    space: SpaceOrShape,
    sampling: str = "uniform-lines",
    acceleration: float = 4.0,
    coils: int = 1,
    centre_fraction: float | None = None,
    seed: int = 0,
) -> MagneticResonance:
    """A scan with a simulated mask and simulated coils.

    Args:
        space: Space of the image, or its event shape.
        sampling: "uniform-lines", "gaussian-lines", "gaussian-points" or "poisson-disc".
        acceleration: points of the full k-space per point sampled (4).
        coils: number of coils on a ring (1: a single coil without map).
        centre_fraction: share of each side that is fully sampled in the centre (None: 8 %, 4 % beyond 6-fold).
        seed: seed of the mask.

    Raises:
        SpaceMismatch: an event that is no image of one or two channels.
        ValueError: an unknown sampling, or settings that the mask refuses.
    """
    event = space.event_shape if isinstance(space, Space) else tuple(space)
    if len(event) != 3:
        raise SpaceMismatch(f"an image has events (1, rows, columns), or (2, ...) if complex; given {event}")
    rows, columns = event[1:]
    settings: dict[str, Any] = {"acceleration": acceleration, "centre_fraction": centre_fraction, "seed": seed}
    lines: dict[str, Any] = {"uniform-lines": masks.uniform_lines, "gaussian-lines": masks.gaussian_lines}
    points: dict[str, Any] = {"gaussian-points": masks.gaussian_points, "poisson-disc": masks.poisson_disc}
    if sampling not in lines and sampling not in points:
        raise ValueError(f"sampling={sampling!r}; expected one of {[*lines, *points]}")
    mask = lines[sampling](columns, **settings) if sampling in lines else points[sampling](rows, columns, **settings)
    return MagneticResonance(space, mask, ring_coils(rows, columns, coils) if coils > 1 else None)
