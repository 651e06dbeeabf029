"""The `assimilate` command: run cards, list what there is, train, make reports.

This module is the roof of the house: it alone may look at every package, inside functions, so that `--help` is quick.
Whatever a user can get wrong ends in one line on stderr and exit code 2.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

app = typer.Typer(
    add_completion=False,
    invoke_without_command=True,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Estimate the state of a system from a model and sparse, noisy observations.\n\n"
    "Examples:\n\n"
    "assimilate run quickstart  (a first run, in seconds)\n\n"
    "assimilate run florence  (the rain of a hurricane from sparse gauges)\n\n"
    "assimilate run my.toml --out result  (your own experiment)\n\n"
    "assimilate list methods  (what can be compared)",
)

STOPPED = 130
"""Exit code after Ctrl-C, as shells have it."""

SeedOption = Annotated[int | None, typer.Option(help="Seed of all random numbers; default: the card's.")]
DeviceOption = Annotated[str, typer.Option(help="Where to compute: cpu, cuda, cuda:1...")]
SetOption = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="PATH=VALUE", help="Change one value of the card; may be given several times."),
]
OutOption = Annotated[Path | None, typer.Option(help="Folder of the results; default: out/CARD.")]


def _version(value: bool) -> None:
    if value:
        from assimilate import __version__

        typer.echo(f"assimilate-da {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    context: typer.Context,
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and leave.")
    ] = False,
) -> None:
    if context.invoked_subcommand is None:
        typer.echo(context.get_help())


@app.command("run")
def run_command(
    card: Annotated[str, typer.Argument(help="Name of a card (`assimilate list cards`) or path of a TOML file.")],
    out: OutOption = None,
    seed: SeedOption = None,
    device: DeviceOption = "cpu",
    dtype: Annotated[str, typer.Option(help="Precision: float32 or float64.")] = "float32",
    changes: SetOption = None,
    report: Annotated[bool, typer.Option("--report/--no-report", help="Whether to draw the page.")] = True,
    check: Annotated[bool, typer.Option("--check", help="Exit with 1 unless every expected score comes out.")] = False,
) -> None:
    """Run all methods of a card on the same observations and compare them.

    Writes DIR/result.nc (netCDF, one group per method), DIR/scores.json, DIR/report.html and DIR/figures, method by
    method, and prints the table.

    Examples:
    assimilate run florence

    assimilate run lorenz63 --seed 7 --out out/seed7

    assimilate run florence --set observations.fraction=0.03

    assimilate run florence --set method.FlowDAS.members=32
    """
    from assimilate.card_files import find, load
    from assimilate.execution import execute
    from assimilate.report import render
    from assimilate.terminal import Progress, console, print_outcome

    pictures = _imaging_card(card)
    if pictures is not None:
        changed = [*(changes or []), *([f"seed={seed}"] if seed is not None else [])]
        return _compare(pictures, changed, out, device, report=report, check=check)
    path = find(card)
    loaded = load(card, [*(changes or []), *([f"seed={seed}"] if seed is not None else [])])
    name = path.stem
    folder = out or Path("out") / name
    _reach(path)
    with Progress() as listener:
        outcome = execute(
            loaded, folder, name=name, beside=path.parent, device=device, dtype=_dtype(dtype), listener=listener
        )
    page = None
    if outcome.scores and report:
        with console.status("drawing the report"):
            page = render(folder)
    print_outcome(loaded, outcome, page)
    if outcome.failures:
        raise typer.Exit(1)
    if check and not all(c["passed"] for c in outcome.checks):
        raise typer.Exit(1)


@app.command("list")
def list_command(
    what: Annotated[str, typer.Argument(help="cards, dynamics, operators, methods, guidance, solvers...")] = "cards",
    json_output: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
) -> None:
    """List cards, classes that a card can name, or pretrained weights.

    Examples:
    assimilate list

    assimilate list methods

    assimilate list pretrained --json
    """
    import json

    from imaging.listing import print_rows, rows_of

    rows = rows_of(what)
    if json_output:
        typer.echo(json.dumps(rows, indent=2, ensure_ascii=False))
    else:
        print_rows(what, rows)


@app.command("reconstruct")
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
    dtype: Annotated[str, typer.Option(help="Precision: float32 or float64.")] = "float32",
    report: Annotated[bool, typer.Option("--report/--no-report", help="Whether to draw the page.")] = True,
) -> None:
    """Reconstruct an image with error bars; writes DIR/result.nc, DIR/report.html and DIR/figures.

    Examples:
    assimilate reconstruct scan.png --operator gaussian-blur --noise 0.02 --solver diffpir

    assimilate reconstruct holes.png --operator inpainting --mask seen.png --noise 0.01 --set solver.steps=50
    """
    from imaging.command import execute, print_result

    _reach(file)
    result, page = execute(
        file, operator=operator, noise=noise, out=out, prior=prior, solver=solver, samples=samples, seed=seed,
        device=device, dtype=dtype, changes=changes or [], truth=truth, shape=shape, mask=mask, slice=slice,
        variable=variable, colour=colour, at_once=at_once, report=report,
    )  # fmt: skip
    print_result(result, out, page)


@app.command("fit")
def fit_command(
    card: Annotated[str, typer.Argument(help="Name of a card with a 'fit' table, or path of a TOML file.")],
    out: Annotated[Path | None, typer.Option(help="File of the checkpoint; default: out/CARD.safetensors.")] = None,
    device: DeviceOption = "cpu",
    changes: SetOption = None,
) -> None:
    """Train the transition that a card uses, from its simulator or its data.

    A run that was killed goes on where it was when it is called again. The checkpoint can be used at once:
    `transition = "FILE"` in a method of a card.

    Examples:
    assimilate fit lorenz63

    assimilate fit my.toml --out mine.safetensors --set fit.steps=12
    """
    from assimilate.card_files import find, load
    from assimilate.devices import find_device
    from assimilate.terminal import console
    from assimilate.training import train_card

    pictures = _imaging_card(card)
    if pictures is not None:
        from imaging.cards import load as load_imaging
        from imaging.training import train_prior

        learned = load_imaging(pictures, changes or [])
        file = out or Path(
            learned.fit.checkpoint if learned.fit and learned.fit.checkpoint else f"out/{pictures.stem}.safetensors"
        )
        written = train_prior(learned, file, device=find_device(device))
        console.print(f"[bold]wrote[/] {written}")
        return
    path = find(card)
    loaded = load(card, changes or [])
    file = out or Path(
        loaded.fit.checkpoint if loaded.fit and loaded.fit.checkpoint else f"out/{path.stem}.safetensors"
    )
    _reach(path)
    written = train_card(loaded, file, beside=path.parent, device=find_device(device))
    console.print(f"[bold]wrote[/] {written}")


@app.command("report")
def report_command(
    result: Annotated[Path, typer.Argument(help="A result.nc, or the folder that holds it.")],
    out: Annotated[Path | None, typer.Option(help="Folder to write to; default: that of the result.")] = None,
) -> None:
    """Make the HTML page and the pictures of a result again.

    Example:
    assimilate report out/florence
    """
    from imaging.report import render_any

    typer.echo(str(render_any(result, out)))


def _imaging_card(name: str) -> Path | None:
    """The file of an imaging card; None if the name is that of another card, or of none."""
    from assimilate.card_files import available
    from assimilate.errors import UnknownName
    from imaging.cards import is_imaging, shipped

    path = Path(name)
    if path.is_file():
        return path if is_imaging(path) else None
    own, others = shipped(), available()
    if name not in own and name not in others and path.suffix != ".toml" and len(path.parts) == 1:
        raise UnknownName("card", name, [*own, *others], "; or give the path of a TOML file")
    return own.get(name)


def _compare(path: Path, changes: list[str], out: Path | None, device: str, *, report: bool, check: bool) -> None:
    """Run an imaging card."""
    from assimilate.devices import find_device
    from imaging.cards import load
    from imaging.comparison import compare
    from imaging.gallery import render
    from imaging.terminal import print_comparison, print_scores

    card = load(path, changes)
    folder = out or Path("out") / path.stem
    _reach(path)
    outcome = compare(card, folder, name=path.stem, device=find_device(device), say=print_scores)
    page = render(folder / "result.nc") if report and outcome.scores else None
    print_comparison(card, outcome, folder, page)
    if outcome.failures or (check and not all(c["passed"] for c in outcome.checks)):
        raise typer.Exit(1)


@app.command("scorecard")
def scorecard_command(
    solvers: Annotated[
        list[str] | None, typer.Argument(help="Solvers, filters or 'module:Class' of your own; default: all.")
    ] = None,
    problem: Annotated[
        list[str] | None, typer.Option(help="Posterior to sample; may be given several times; default: all.")
    ] = None,
    samples: Annotated[int, typer.Option(help="Samples of each solver.")] = 2000,
    levels: Annotated[int, typer.Option(help="Noise levels of solvers that leave them open.")] = 400,
    seed: Annotated[int, typer.Option(help="Seed of all random numbers.")] = 0,
    out: Annotated[Path, typer.Option(help="File of the rows; new ones are put beside those in it.")] = Path(
        "out/scorecard.json"
    ),
    resume: Annotated[bool, typer.Option("--resume", help="Keep rows that the file has with these settings.")] = False,
    check: Annotated[bool, typer.Option("--check", help="Exit with 1 unless the expected values come out.")] = False,
    write: Annotated[
        bool, typer.Option("--write", help="Write to benchmarks/results, from which the README is made.")
    ] = False,
) -> None:
    """Measure solvers and filters on posteriors that are known exactly.

    Prints how wrong mean, variance, mode weights and intervals of their samples are, what they cost, and writes it row
    by row.

    Examples:
    assimilate scorecard

    assimilate scorecard mmps diffpir --problem mixture

    assimilate scorecard my_solver:MySolver --samples 500 --levels 100
    """
    from assimilate.terminal import errors
    from benchmarks.scorecard.expected import check as compare
    from benchmarks.scorecard.run import SHIPPED, Settings, run
    from benchmarks.scorecard.terminal import print_scorecard

    _reach(Path.cwd() / "solver")
    settings = Settings(samples, levels, seed)
    with errors.status("starting") as status:
        rows = run(
            solvers or (),
            problem or (),
            settings=settings,
            out=SHIPPED if write else out,
            resume=resume,
            started=lambda solver, name: status.update(f"{solver} on {name}"),
        )
    print_scorecard(rows)
    typer.echo(f"rows  {SHIPPED if write else out}")
    missed = []
    if check:
        missed = [c for c in compare(rows, widen=settings.widening) if not c.passed]
        for c in missed:
            typer.echo(f"not as expected: {c.text}", err=True)
    if missed or any(r["status"] == "failed" for r in rows):
        raise typer.Exit(1)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command; errors of the user are one line on stderr and exit code 2."""
    code = run_app(sys.argv[1:] if arguments is None else list(arguments))
    sys.exit(code)


def run_app(arguments: Sequence[str]) -> int:
    """Run the command with these arguments and return its exit code."""
    # Typer brings its own copy of click in new versions and the package in old ones: ask Typer for the class.
    usage_error: type[Exception] = next(c for c in typer.BadParameter.__mro__ if c.__name__ == "ClickException")
    command: Any = typer.main.get_command(app)
    try:
        result = command.main(args=list(arguments), prog_name="assimilate", standalone_mode=False)
    except usage_error as error:
        return _complain(" ".join(error.format_message().split()))  # type: ignore[attr-defined]
    except (typer.Abort, KeyboardInterrupt):
        result = STOPPED
    except Exception as error:
        message = _of_the_user(error)
        if message is None:
            raise
        return _complain(message)
    code = int(result) if isinstance(result, int) else 0
    if code == STOPPED:
        typer.echo("stopped; what was finished has been written", err=True)
    return code


def _of_the_user(error: Exception) -> str | None:
    """One line for errors that a user can act on; None for those that are ours."""
    from assimilate.errors import UserError
    from dynamics.errors import CapabilityError, DataError, SpaceMismatch

    if isinstance(error, UserError | DataError | SpaceMismatch | CapabilityError):
        return " ".join(str(error).split())
    return None


def _complain(message: str) -> int:
    typer.echo(f"error: {message}", err=True)
    return 2


def _dtype(name: str) -> Any:
    import torch

    from assimilate.errors import UserError

    known = {"float32": torch.float32, "float64": torch.float64}
    if name not in known:
        raise UserError(f"--dtype '{name}'; expected float32 or float64")
    return known[name]


def _reach(card: Path) -> None:
    """Let `module:Class` find files beside the card and in the working directory."""
    for folder in (str(card.resolve().parent), str(Path.cwd())):
        if folder not in sys.path:
            sys.path.append(folder)


if __name__ == "__main__":
    main()
