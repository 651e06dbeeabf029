"""The `assimilate` command: run cards, list what there is, train, make reports.

This module and the commands beside it (`assimilate.commands`) are the roof of the house: they alone may look at every
package, inside functions, so that `--help` is quick.
Whatever a user can get wrong ends in one line on stderr and exit code 2.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Annotated, Any

import typer

from assimilate.commands.fit import fit_command, simulate_command
from assimilate.commands.lists import list_command, report_command
from assimilate.commands.reconstruct import reconstruct_command
from assimilate.commands.run import run_command
from assimilate.commands.scorecard import scorecard_command

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


app.command("run")(run_command)
app.command("list")(list_command)
app.command("reconstruct")(reconstruct_command)
app.command("fit")(fit_command)
app.command("simulate")(simulate_command)
app.command("report")(report_command)
app.command("scorecard")(scorecard_command)


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


if __name__ == "__main__":
    main()
