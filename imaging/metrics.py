r"""Scores of reconstructed images: against the truth, against the measurement, and of the error bars.

    psnr           10 log10(range^2 / <(x - truth)^2>)            dB, of magnitudes where the image is complex
    ssim           structural similarity, Gaussian window of 1.5 pixels      of magnitudes
    nrmse          |x - truth| / |truth|                          complex values as they are
    chi_square     <|R^-1/2 (y - A x)|^2>                         per observed value; 1 = as large as the noise
    coverage       share of pixels whose truth lies in the central interval of the samples
    spread_skill   sqrt(<v> (N + 1) / N) / rmse of the mean       v = variance of the samples; 1 = calibrated

Images are taken as they are: no rescaling to the truth's range, no clipping, no best of several. What counts as one
image: the last `event_dims` dims of a tensor, or all dims of a DataArray but those of `LEADING`; scores have the
leading dims, and are DataArrays when the images are.

References:
    Wang, Bovik, Sheikh, Simoncelli (2004), Image quality assessment: from error visibility to structural similarity,
    https://doi.org/10.1109/TIP.2003.819861
    Fortin, Abaza, Anctil, Turcotte (2014), Why should ensemble spread match the RMSE of the ensemble mean?,
    https://doi.org/10.1175/JHM-D-14-0008.1
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import xarray as xr
from torch import Tensor

from assimilate.errors import UserError
from observations.likelihood import Likelihood

LEADING = ("measurement", "experiment", "sample", "member")
"""Dims of a DataArray that count images."""
SAMPLES = ("sample", "member")
"""Dims of a DataArray that count samples of one image."""


def psnr(image: Any, truth: Any, *, data_range: float = 1.0, event_dims: int = 3) -> Any:
    """Peak signal-to-noise ratio in dB; infinite for equal images.

    Args:
        image: tensor `(*b, *event)` or DataArray.
        truth: the same kind, broadcasting against it.
        data_range: largest minus least value that an image can have, in its units (1: images from 0 to 1).
        event_dims: trailing dims of one image (tensors only).

    Raises:
        ValueError: a range that is not positive.
    """
    _check_range(data_range)

    def score(x: Tensor, t: Tensor) -> Tensor:
        error = (_magnitude(x) - _magnitude(t)).square().mean(-1)
        return 10 * torch.log10(data_range**2 / error)

    return _images(score, image, truth, event_dims)


def nrmse(image: Any, truth: Any, *, event_dims: int = 3) -> Any:
    """Norm of the error over the norm of the truth; arguments as for `psnr`."""

    def score(x: Tensor, t: Tensor) -> Tensor:
        return (x - t).abs().square().sum(-1).sqrt() / t.abs().square().sum(-1).sqrt()

    return _images(score, image, truth, event_dims)


def ssim(image: Any, truth: Any, *, data_range: float = 1.0, event_dims: int = 3) -> Any:
    """Structural similarity by scikit-image with the settings of Wang et al. (Gaussian window, mean over channels).

    Args:
        image: tensor `(*b, channel, rows, columns)` (or `(*b, rows, columns)` with `event_dims=2`), or DataArray whose
            last two image dims are rows and columns.
        truth: the same kind, broadcasting against it.
        data_range: as for `psnr`.
        event_dims: trailing dims of one image (tensors only).

    Raises:
        UserError: scikit-image is missing.
        ValueError: images smaller than the window of 11 pixels, or a range that is not positive.
    """
    _check_range(data_range)
    try:
        from skimage.metrics import structural_similarity
    except ImportError as error:
        raise UserError("SSIM needs scikit-image: pip install 'assimilate-da[imaging]'") from error

    def one(x: np.ndarray, t: np.ndarray) -> float:
        return float(
            np.mean(
                [
                    structural_similarity(
                        b, a, data_range=data_range, gaussian_weights=True, sigma=1.5, use_sample_covariance=False
                    )
                    for a, b in zip(x, t, strict=True)
                ]
            )
        )

    def score(x: Tensor, t: Tensor) -> Tensor:
        x, t = torch.broadcast_tensors(_magnitude(x), _magnitude(t))
        lead, grid = x.shape[: x.ndim - dims], x.shape[-2:]
        if min(grid) < 11:
            raise ValueError(f"SSIM looks through a window of 11 pixels; the images have {tuple(grid)}")
        planes = [v.reshape(-1, math.prod(v.shape[x.ndim - dims : -2]), *grid).cpu().double().numpy() for v in (x, t)]
        return torch.tensor([one(a, b) for a, b in zip(*planes, strict=True)], dtype=torch.float64).reshape(lead)

    if isinstance(image, xr.DataArray):
        dims = len(_image_dims(image))
        return _arrays(score, image, truth)
    dims = event_dims
    return score(torch.as_tensor(image), torch.as_tensor(truth))


def chi_square(likelihood: Likelihood, y: Tensor, image: Tensor) -> Tensor:
    """Mean square of the whitened residual of the observed values, `(*b,)`.

    About 1 (give or take `sqrt(2 / m)`) for the truth and for posterior samples of an uninformative prior's blind
    spots; well below 1 = fitted to the noise, above 1 = not fitted, or noise larger than said.

    Args:
        likelihood: operator and noise.
        y: measured values, broadcasting against those of the image; NaN = not observed.
        image: `(*b, *event)`.

    Returns:
        NaN where nothing was observed.
    """
    dims = len(likelihood.operator.obs_shape)
    white = likelihood.residual(y, image).flatten(-dims)
    observed = (~torch.isnan(y)).to(white).flatten(y.ndim - dims)
    return white.square().sum(-1) / observed.sum(-1)


def interval(samples: Any, *, level: float = 0.9, dim: int = 1) -> tuple[Any, Any]:
    """Ends of the central interval of the samples, by order statistics that are right on average.

    The end below which a share p of the law lies is taken at place `p (N + 1)` of the N sorted samples (the expected
    share below the k-th is `k / (N + 1)`), and at the outermost sample where there are too few.

    Args:
        samples: tensor with samples along `dim`, or DataArray with a dim "sample" or "member".
        level: share of the law within.
        dim: of the samples (tensors only).

    Raises:
        ValueError: a level outside (0, 1), fewer than 2 samples, or a DataArray without a dim of samples.
    """
    if not 0 < level < 1:
        raise ValueError(f"level={level}; expected a share between 0 and 1")
    if isinstance(samples, xr.DataArray):
        name = _sample_dim(samples)
        rest = [d for d in samples.dims if d != name]
        ordered = samples.transpose(name, *rest)
        low, high = interval(torch.as_tensor(ordered.to_numpy().copy()), level=level, dim=0)
        like = ordered.isel({name: 0}, drop=True)
        return like.copy(data=low.numpy()), like.copy(data=high.numpy())
    count = samples.shape[dim]
    if count < 2:
        raise ValueError(f"an interval needs at least 2 samples; given {count}")
    ordered = samples.sort(dim).values
    ends = []
    for share in ((1 - level) / 2, (1 + level) / 2):
        place = min(max(share * (count + 1) - 1, 0.0), count - 1.0)
        below = min(int(place), count - 2)
        first, second = ordered.select(dim, below), ordered.select(dim, below + 1)
        ends.append(first + (place - below) * (second - first))
    return ends[0], ends[1]


def expected_coverage(count: int, *, level: float = 0.9) -> float:
    """The coverage of a calibrated method with `count` samples: the level, or less where they are too few for it."""
    return min(level, (count - 1) / (count + 1))


def coverage(
    samples: Any, truth: Any, *, level: float = 0.9, margin: float = 0.0, event_dims: int = 3
) -> Any:
    """Share of values of the truth inside the central interval of the samples; compare with `expected_coverage`.

    Args:
        samples: tensor `(*b, sample, *event)` of real images, or DataArray with a dim "sample" or "member".
        truth: tensor `(*b, *event)`, or DataArray.
        level: of the interval.
        margin: widens the interval on both sides, units of the image: its resolution, where an image has values that
            are known exactly (an empty background) and would else count as missed by a rounding.
        event_dims: trailing dims of one image (tensors only).
    """
    if isinstance(samples, xr.DataArray):
        low, high = interval(samples, level=level)
        inside = ((truth >= low - margin) & (truth <= high + margin)).astype(float)
        return inside.mean(_image_dims(inside))
    low, high = interval(samples, level=level, dim=samples.ndim - event_dims - 1)
    return ((truth >= low - margin) & (truth <= high + margin)).double().flatten(-event_dims).mean(-1)


def spread_skill(samples: Any, truth: Any, *, event_dims: int = 3) -> Any:
    """Spread of the samples over the error of their mean, 1 when calibrated; arguments as for `coverage`."""
    if isinstance(samples, xr.DataArray):
        name = _sample_dim(samples)
        count, mean = samples.sizes[name], samples.mean(name)
        spread = (abs(samples - mean) ** 2).sum(name) / (count - 1)
        error = abs(mean - truth) ** 2
        over = _image_dims(error)
        return np.sqrt(spread.mean(over) * (count + 1) / count / error.mean(over))
    dim = samples.ndim - event_dims - 1
    count, mean = samples.shape[dim], samples.mean(dim, keepdim=True)
    spread = (samples - mean).abs().square().sum(dim) / (count - 1)
    error = (mean.squeeze(dim) - truth).abs().square()
    ratio = spread.flatten(-event_dims).mean(-1) * (count + 1) / count / error.flatten(-event_dims).mean(-1)
    return ratio.sqrt()


def _check_range(data_range: float) -> None:
    if not data_range > 0:
        raise ValueError(f"data_range={data_range}; expected the largest minus the least value of an image, above 0")


def _magnitude(x: Tensor) -> Tensor:
    return x.abs() if x.is_complex() else x


def _image_dims(array: xr.DataArray) -> list[Any]:
    return [d for d in array.dims if d not in LEADING]


def _sample_dim(samples: xr.DataArray) -> str:
    name = next((d for d in SAMPLES if d in samples.dims), None)
    if name is None:
        raise ValueError(f"the samples have dims {samples.dims}; expected one of {SAMPLES}")
    return name


def _images(score: Callable[[Tensor, Tensor], Tensor], image: Any, truth: Any, event_dims: int) -> Any:
    """A score of flattened images, for tensors or DataArrays."""

    def flat(x: Tensor, t: Tensor, dims: int) -> Tensor:
        x, t = torch.broadcast_tensors(x, t)
        return score(x.flatten(-dims), t.flatten(-dims))

    if isinstance(image, xr.DataArray):
        dims = len(_image_dims(image))
        return _arrays(lambda x, t: flat(x, t, dims), image, truth)
    return flat(torch.as_tensor(image), torch.as_tensor(truth), event_dims)


def _arrays(score: Callable[[Tensor, Tensor], Tensor], image: xr.DataArray, truth: xr.DataArray) -> xr.DataArray:
    """A score of tensors, for DataArrays whose image dims are the same."""
    over = _image_dims(image)
    if set(over) != set(_image_dims(truth)):
        raise ValueError(f"the images have dims {over}, the truth {_image_dims(truth)}; expected the same")
    image, truth = xr.align(image, truth, join="exact", exclude=LEADING)

    def plain(x: np.ndarray, t: np.ndarray) -> np.ndarray:
        return score(torch.from_numpy(np.ascontiguousarray(x)), torch.from_numpy(np.ascontiguousarray(t))).numpy()

    return xr.apply_ufunc(plain, image, truth, input_core_dims=[over, over])
