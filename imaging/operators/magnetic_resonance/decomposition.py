r"""The singular value decomposition of a masked Fourier transform on real tensors.

Complex image: the transform is unitary, so a sampled point keeps its real and its imaginary part: all values are 1.

Real image: k and -k hold the same two numbers, a = sqrt(2) Re z_k and b = sqrt(2) Im z_k, which are orthonormal
functions of the image. A pair with m = 1 or 2 of its points sampled has the singular value sqrt(m / 2) for both; a
frequency that is its own opposite has 1 for its real part, and its imaginary part is always 0.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from observations.base import SVD

Transform = Callable[[Tensor], Tensor]


class Pairs(NamedTuple):
    """The pairs {k, -k} that a mask touches, with k-space flat and in the order of the FFT.

    Args:
        first: one point of each proper pair, `(p,)`.
        second: its opposite, `(p,)`.
        alone: sampled points that are their own opposite, `(q,)`.
        points: how many points of each pair are sampled, `(p,)`.
        sample: the samples in pairs: indices into the samples, `(s,)`.
        owner: the pair of each of them, `(s,)`.
        sign: -1 where the sample is the pair's `second`, `(s,)`.
        alone_sample: the other samples, `(q,)`.
    """

    first: Tensor
    second: Tensor
    alone: Tensor
    points: Tensor
    sample: Tensor
    owner: Tensor
    sign: Tensor
    alone_sample: Tensor


def complex_svd(
    samples: int, size: int, transform: Transform, inverse: Transform, indices: Callable[[Tensor], Tensor]
) -> SVD:
    """The decomposition for complex images, events `(2, rows, columns)`, values `(1, 2, samples)`.

    Args:
        samples: number of sampled points.
        size: number of points of k-space.
        transform: the image's full k-space, flat: `(*b, 2, rows, columns)` -> complex `(*b, size)`.
        inverse: the image of a full k-space.
        indices: the sampled points on the device of a tensor.
    """

    def project(x: Tensor) -> Tensor:
        points = transform(x).index_select(-1, indices(x))
        return torch.cat([points.real, points.imag], -1)

    def expand(c: Tensor) -> Tensor:
        points = torch.complex(*c.unflatten(-1, (2, samples)).unbind(-2))
        return inverse(_scatter(points, indices(c), size))

    return SVD(
        torch.ones(2 * samples),
        project,
        expand,
        lambda y: y.flatten(-3),
        lambda c: c.unflatten(-1, (1, 2, samples)),
    )


def real_svd(pairs: Pairs, size: int, transform: Transform, inverse: Transform) -> SVD:
    """The decomposition for real images, events `(1, rows, columns)`, values `(1, 2, samples)`.

    Args:
        pairs: from `pairs_of`.
        size: number of points of k-space.
        transform: the image's full k-space, flat: `(*b, 1, rows, columns)` -> complex `(*b, size)`.
        inverse: the real part of the image of a full k-space.
    """
    p, root = pairs.first.numel(), math.sqrt(2)
    share = pairs.points.double().rsqrt()

    def project(x: Tensor) -> Tensor:
        spectrum = transform(x)
        pair = spectrum.index_select(-1, pairs.first.to(x.device)) * root
        single = spectrum.index_select(-1, pairs.alone.to(x.device))
        return torch.cat([pair.real, pair.imag, single.real], -1)

    def expand(c: Tensor) -> Tensor:
        a, b, single = c.split([p, p, c.shape[-1] - 2 * p], -1)
        pair = torch.complex(a, b) / root
        values = torch.cat([pair, pair.conj(), torch.complex(single, torch.zeros_like(single))], -1)
        places = torch.cat([pairs.first, pairs.second, pairs.alone]).to(c.device)
        return inverse(_scatter(values, places, size))

    def project_observed(y: Tensor) -> Tensor:
        real, imaginary = y[..., 0, 0, :], y[..., 0, 1, :]
        sample, owner = pairs.sample.to(y.device), pairs.owner.to(y.device)
        zeros = real.new_zeros(*real.shape[:-1], p)
        a = zeros.index_add(-1, owner, real.index_select(-1, sample))
        b = zeros.index_add(-1, owner, imaginary.index_select(-1, sample) * pairs.sign.to(y))
        single = real.index_select(-1, pairs.alone_sample.to(y.device))
        return torch.cat([a * share.to(y), b * share.to(y), single], -1)

    def expand_observed(c: Tensor) -> Tensor:
        a, b, single = c.split([p, p, c.shape[-1] - 2 * p], -1)
        owner = pairs.owner.to(c.device)
        places = torch.cat([pairs.sample, pairs.alone_sample]).to(c.device)
        real = torch.cat([(a * share.to(c)).index_select(-1, owner), single], -1)
        imaginary = (b * share.to(c)).index_select(-1, owner) * pairs.sign.to(c)
        imaginary = torch.cat([imaginary, torch.zeros_like(single)], -1)
        both = torch.stack([real, imaginary], -2)
        return torch.zeros_like(both).index_copy(-1, places, both).unsqueeze(-3)

    values = (pairs.points.double() / 2).sqrt()
    return SVD(
        torch.cat([values, values, torch.ones(pairs.alone.numel(), dtype=torch.float64)]),
        project,
        expand,
        project_observed,
        expand_observed,
    )


def pairs_of(points: Tensor, rows: int, columns: int) -> Pairs:
    """Sort sampled points into pairs.

    Args:
        points: flat indices of the samples in the order of the FFT, `(samples,)`.
        rows: rows of k-space.
        columns: columns of k-space.
    """
    row, column = points // columns, points % columns
    opposite = (-row % rows) * columns + (-column % columns)
    single = opposite == points
    least = torch.minimum(points, opposite)[~single]
    first, owner, count = torch.unique(least, return_inverse=True, return_counts=True)
    row, column = first // columns, first % columns
    second = (-row % rows) * columns + (-column % columns)
    sample = torch.nonzero(~single)[:, 0]
    sign = torch.where(points[sample] == least, 1.0, -1.0).double()
    return Pairs(first, second, points[single], count, sample, owner, sign, torch.nonzero(single)[:, 0])


def _scatter(values: Tensor, places: Tensor, size: int) -> Tensor:
    return values.new_zeros(*values.shape[:-1], size).index_copy(-1, places, values)
