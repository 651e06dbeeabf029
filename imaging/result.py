r"""A reconstruction as a Dataset, and its file.

    image_mean, image_std             ([measurement], [channel], y, x)  moments of the samples
    image_lower, image_upper          the same                          central credible interval of each pixel
    image_sample                      ([measurement], sample, ...)
    measured, predicted, residual     values as given; A(mean); the mean's whitened residual R^-1/2 (y - A(mean))
    residual_chi_square               ([measurement])                mean over samples of |R^-1/2 (y - A x)|^2 / m
    evaluations, seconds, log_evidence
    truth, image_error, rmse, psnr, coverage                            where the truth is known

The interval runs between the order statistics (interpolated) that hold a further draw with its probability; with fewer
than 2 / (1 - probability) - 1 samples it is their range. An answer without a spread (a point estimate, or one sample)
has no `image_std` and no interval; the attribute `spread_note` says why. Complex images have complex variables; their
interval is that of the magnitude.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import xarray as xr
from torch import Tensor

from assimilate.errors import UserError
from assimilate.storage import replacing
from imaging.layout import Layout
from imaging.measurement import SEVERAL, Measured
from observations.likelihood import Likelihood

PARTS = ("real", "imaginary")
"""A complex variable is two real ones in a file, which every netCDF reader can read."""


class Outcome(NamedTuple):
    """What a solver left.

    Attributes:
        samples: `(E, N, *event)`.
        evaluations: network evaluations of one sample.
        seconds: wall time of all.
        point: whether the solver gives one answer without a spread.
        log_evidence: `(E,)` or None.
    """

    samples: Tensor
    evaluations: int
    seconds: float
    point: bool
    log_evidence: Tensor | None = None


def to_dataset(
    outcome: Outcome,
    measured: Measured,
    likelihood: Likelihood,
    image: Layout,
    observed: Layout,
    *,
    units: str,
    interval: float,
    attrs: Mapping[str, Any],
) -> xr.Dataset:
    """The Dataset of a reconstruction; see the module.

    Args:
        outcome: of the solver.
        measured: the measurement.
        likelihood: operator and noise.
        image: layout of the image.
        observed: layout of the measured values.
        units: of the image.
        interval: probability of the credible interval.
        attrs: of the Dataset.
    """
    y, samples = measured.y.to(outcome.samples), outcome.samples
    several, count = measured.several, samples.shape[1]
    lead = (SEVERAL,) if several else ()

    def each(values: np.ndarray) -> np.ndarray:
        return values if several else values[0]

    name = "image"
    drawn = image.show(samples)
    mean_tensor = samples.mean(1, keepdim=True)
    mean = drawn.mean(1)
    labels = {"units": units}
    variables: dict[str, Any] = {
        "image_mean": ((*lead, *image.dims), each(mean), {**labels, "long_name": _mean_name(outcome)}),
    }
    notes: dict[str, Any] = {}
    if not outcome.point:
        kept = drawn if several else drawn[0]
        dims = (*lead, "sample", *image.dims)
        variables["image_sample"] = (dims, kept, {**labels, "long_name": f"samples of the {name}"})
    if outcome.point or count < 2:
        notes["spread_note"] = (
            "the solver gives one answer without a spread" if outcome.point else "one sample has no spread"
        )
    else:
        # Of complex samples the variance is that of the distance from the mean.
        std = np.sqrt((np.abs(drawn - mean[:, None]) ** 2).sum(1) / (count - 1))
        sizes = np.abs(drawn) if np.iscomplexobj(drawn) else drawn
        tail = (1 - interval) / 2
        # At ranks p (N + 1) the interval holds a further draw with the stated probability, whatever N.
        ends = np.quantile(sizes, [tail, 1 - tail], 1, method="weibull")
        of = "magnitude of the image" if np.iscomplexobj(drawn) else "image"
        variables["image_std"] = ((*lead, *image.dims), each(std), {**labels, "long_name": "standard deviation"})
        for key, end in zip(("lower", "upper"), ends, strict=True):
            words = f"{key} end of the {100 * interval:g} % credible interval of the {of}"
            bound = {**labels, "long_name": words}
            variables[f"image_{key}"] = ((*lead, *image.dims), each(end.astype(std.dtype)), bound)
        notes["interval"] = interval
        if (count + 1) * tail < 1 - 1e-9:
            notes["spread_note"] = (
                f"the interval is the range of the {count} samples, which holds a further draw with probability "
                f"{(count - 1) / (count + 1):.2f} instead of {interval:g}"
            )
    seen = ~torch.isnan(y)
    with torch.no_grad():
        predicted = likelihood.operator(mean_tensor)
        white = likelihood.residual(y, mean_tensor).masked_fill(~seen, torch.nan)
        chi = torch.stack(
            [likelihood.residual(y, samples[:, n : n + 1]).double().square().flatten(1).sum(1) for n in range(count)], 1
        ).mean(1)
    chi = chi / seen.flatten(1).sum(1)
    data_labels = {k: v for k, v in measured.given.attrs.items() if isinstance(v, str | int | float)}
    for key, values, words, extra in (
        ("measured", y, "measurement as given", data_labels),
        ("predicted", predicted, "measurement of the mean image, without noise", _units(data_labels)),
        ("residual", white, "residual of the mean image, in standard deviations of the noise", {"units": "1"}),
    ):
        shown = each(observed.show(values[:, 0]))
        variables[key] = ((*lead, *observed.dims), shown, {**extra, "long_name": words})
    words = "mean square residual of the samples per measured value, in variances of the noise: 1 if all is as assumed"
    variables["residual_chi_square"] = (lead, each(chi.cpu().numpy()), {"units": "1", "long_name": words})
    if outcome.log_evidence is not None:
        evidence = each(outcome.log_evidence.cpu().numpy())
        variables["log_evidence"] = (lead, evidence, {"units": "1", "long_name": "log p(y)"})
    words = "network evaluations of one sample"
    variables["evaluations"] = ((), outcome.evaluations, {"units": "1", "long_name": words})
    variables["seconds"] = ((), outcome.seconds, {"units": "s", "long_name": "wall time of all samples"})
    coords = {**image.coords, **{k: v for k, v in observed.coords.items() if k not in image.coords}}
    if "image_sample" in variables:
        coords["sample"] = ("sample", np.arange(count), {"standard_name": "realization", "units": "1"})
    if several:
        given = measured.given.coords
        coords[SEVERAL] = given[SEVERAL].variable if SEVERAL in given else np.arange(y.shape[0])
    return xr.Dataset(variables, coords, {**attrs, **notes})


def compared(result: xr.Dataset, truth: np.ndarray, data_range: float) -> xr.Dataset:
    """The result with the truth beside it: error of the mean, RMSE, PSNR and coverage of the interval.

    Args:
        result: of `to_dataset`.
        truth: of the shape of `image_mean`.
        data_range: peak for the PSNR, units of the image.

    Raises:
        UserError: another shape.
    """
    mean = result["image_mean"]
    if tuple(truth.shape) != mean.shape:
        raise UserError(f"the truth has shape {tuple(truth.shape)}; the image has {mean.shape}")
    kept = mean.copy(data=truth.astype(mean.dtype)).assign_attrs(long_name="truth")
    error = (mean - kept).assign_attrs(units=mean.attrs["units"], long_name="mean minus truth")
    pixels = [d for d in mean.dims if d != SEVERAL]
    rmse = (abs(error) ** 2).mean(pixels) ** 0.5
    added = {
        "truth": kept,
        "image_error": error,
        "rmse": rmse.assign_attrs(units=mean.attrs["units"], long_name="root mean square error of the mean"),
        "psnr": xr.apply_ufunc(lambda e: 20 * np.log10(data_range / e), rmse).assign_attrs(
            units="dB", long_name=f"peak signal-to-noise ratio of the mean, peak {data_range:g}"
        ),
    }
    if "image_lower" in result:
        size = abs(kept) if np.iscomplexobj(kept.values) else kept
        inside = (size >= result["image_lower"]) & (size <= result["image_upper"])
        words = f"share of pixels whose truth lies in the {100 * result.attrs['interval']:g} % interval"
        added["coverage"] = inside.mean(pixels).assign_attrs(units="1", long_name=words)
    return result.assign(added)


def concerns(result: xr.Dataset) -> list[str]:
    """What a reader should know before trusting the picture: notes of the result, and residuals that do not fit."""
    found = [str(result.attrs[key]) for key in ("range_note", "grid_note", "spread_note") if key in result.attrs]
    chi = np.atleast_1d(result["residual_chi_square"].values)
    if bool((chi > 1.5).any()):
        found.append(
            f"the mean square residual is {float(chi.max()):.3g} times the variance of the noise: the noise is larger "
            "than stated, the operator is another one, or the solver did not reach the measurement (try more steps)"
        )
    if bool((chi < 0.5).any()):
        found.append(
            f"the mean square residual is {float(chi.min()):.3g} times the variance of the noise: the noise is smaller "
            "than stated, or the solver fits the noise"
        )
    return found


def write_result(result: xr.Dataset, path: str | os.PathLike[str]) -> Path:
    """Write a result as netCDF, whole or not at all; complex variables as `NAME_real` and `NAME_imaginary`."""
    target = Path(path)
    plain: dict[Any, Any] = {}
    for name, variable in result.data_vars.items():
        if np.iscomplexobj(variable.values):
            for part, values in zip(PARTS, (variable.real, variable.imag), strict=True):
                plain[f"{name}_{part}"] = values.assign_attrs({**variable.attrs, "part_of": str(name)})
        else:
            plain[name] = variable
    written = xr.Dataset(plain, result.coords, result.attrs)
    encoding = {
        str(n): {"zlib": True, "complevel": 1, "shuffle": True}
        for n, v in written.data_vars.items()
        if v.dtype.kind == "f" and v.size > 4096
    }
    with replacing(target) as draft:
        written.to_netcdf(draft, encoding=encoding)
    return target


def read_result(path: str | os.PathLike[str]) -> xr.Dataset:
    """Read what `write_result` wrote, complex variables put together again.

    Args:
        path: the file, or the folder that holds `result.nc`.

    Raises:
        UserError: no such file, or not a reconstruction.
    """
    file = Path(path) / "result.nc" if Path(path).is_dir() else Path(path)
    try:
        with xr.open_dataset(file) as opened:
            held = opened.load()
    except (OSError, ValueError) as error:
        raise UserError(f"there is no readable result at '{path}': {error}") from error
    if held.attrs.get("kind") != "reconstruction":
        raise UserError(f"'{file}' is no reconstruction (its attribute 'kind' is {held.attrs.get('kind')!r})")
    joined = {}
    for name in [str(n) for n in held.data_vars]:
        part_of = held[name].attrs.get("part_of")
        if part_of is None:
            joined[name] = held[name]
        elif name.endswith(PARTS[0]):
            real = held[name]
            both = real.copy(data=real.values + 1j * held[f"{part_of}_{PARTS[1]}"].values)
            both.attrs = {k: v for k, v in real.attrs.items() if k != "part_of"}
            joined[part_of] = both
    return xr.Dataset(joined, held.coords, held.attrs)


def _mean_name(outcome: Outcome) -> str:
    return "reconstruction" if outcome.point else f"mean of {outcome.samples.shape[1]} samples"


def _units(labels: Mapping[str, Any]) -> dict[str, Any]:
    return {k: v for k, v in labels.items() if k == "units"}
