"""`assimilate reconstruct`: an image from one measurement."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from assimilate.commands.options import DeviceOption, DtypeOption, ReportOption
from assimilate.commands.places import reach


def reconstruct_command(
    file: Annotated[Path, typer.Argument(help="Measurement: PNG, TIFF, NPY, netCDF, Zarr, DICOM, NIfTI.")],
    operator: Annotated[str, typer.Option(help="What was measured (`assimilate list operators`).")],
    noise: Annotated[float | None, typer.Option(help="Standard deviation, in the units of the measurement.")] = None,
    solver: Annotated[str, typer.Option(help="Solver (`assimilate list solvers`).")] = "mmps",
    prior: Annotated[str, typer.Option(help="Shipped weights, or the file of a checkpoint.")] = "phantom-64",
    out: Annotated[Path, typer.Option(help="Folder of the results.")] = Path("out/reconstruction"),
    samples: Annotated[int, typer.Option(min=1, help="How many images to draw.")] = 16,
    seed: Annotated[int, typer.Option(min=0, help="Seed of all random numbers.")] = 0,
    changes: Annotated[
        list[str] | None, typer.Option("--set", metavar="GROUP.NAME=VALUE", help="operator.std=2, solver.steps=50...")
    ] = None,
    truth: Annotated[Path | None, typer.Option(help="The image itself, to compare with.")] = None,
    shape: Annotated[str | None, typer.Option(help="Rows and columns of the image, such as 64,64.")] = None,
    mask: Annotated[Path | None, typer.Option(help="White where a pixel (or point of k-space) is seen.")] = None,
    slice: Annotated[str | None, typer.Option(help="Which picture of a stack or volume: 40, z=40.")] = None,
    variable: Annotated[str | None, typer.Option(help="Which one of a netCDF, Zarr or NPZ file.")] = None,
    colour: Annotated[bool, typer.Option("--colour", help="Keep red, green and blue.")] = False,
    at_once: Annotated[int | None, typer.Option(min=1, help="Samples computed together.")] = None,
    device: DeviceOption = "cpu",
    dtype: DtypeOption = "float32",
    report: ReportOption = True,
) -> None:
    """Reconstruct an image with error bars; writes DIR/result.nc, DIR/report.html and DIR/figures.

    Examples:
    assimilate reconstruct scan.png --operator gaussian-blur --noise 0.02 --solver diffpir

    assimilate reconstruct holes.png --operator inpainting --mask seen.png --noise 0.01 --set solver.steps=50
    """
    from imaging.command import execute, print_result

    reach(file)
    result, page = execute(
        file, operator=operator, noise=noise, out=out, prior=prior, solver=solver, samples=samples, seed=seed,
        device=device, dtype=dtype, changes=changes or [], truth=truth, shape=shape, mask=mask, slice=slice,
        variable=variable, colour=colour, at_once=at_once, report=report,
    )  # fmt: skip
    print_result(result, out, page)
