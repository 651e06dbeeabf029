"""`assimilate fit`: train what a card uses; `assimilate simulate`: write what it is trained or tested on."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from assimilate.commands.options import DeviceOption, DtypeOption, SeedOption, SetOption, dtype_of
from assimilate.commands.places import imaging_card, reach


def fit_command(
    card: Annotated[str, typer.Argument(help="Name of a card with a 'fit' table, or path of a TOML file.")],
    out: Annotated[Path | None, typer.Option(help="File of the checkpoint; default: out/CARD.safetensors.")] = None,
    device: DeviceOption = "cpu",
    changes: SetOption = None,
    only: Annotated[
        list[str] | None, typer.Option(help="Where a card trains several: the name of one; may be given several times.")
    ] = None,
) -> None:
    """Train what a card uses, from its simulator or its data.

    A run that was killed goes on where it was when it is called again. The checkpoint can be used at once:
    `transition = "FILE"` in a method of a card.

    Examples:
    assimilate fit lorenz63

    assimilate fit my.toml --out mine.safetensors --set fit.steps=12
    """
    from assimilate.cards.files import find, load
    from assimilate.cards.training import checkpoints, train_card
    from assimilate.devices import find_device
    from assimilate.terminal import console

    pictures = imaging_card(card)
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
    wanted = checkpoints(loaded, path.stem, out=out, only=only or ())
    reach(path)
    for file, fit in wanted.items():
        written = train_card(loaded, fit, file, beside=path.parent, device=find_device(device))
        console.print(f"[bold]wrote[/] {written}")


def simulate_command(
    card: Annotated[str, typer.Argument(help="Name of a card whose truth is simulated, or path of a TOML file.")],
    out: Annotated[Path, typer.Option(help="File to write: NAME.nc (netCDF) or NAME.zarr.")],
    training: Annotated[
        bool, typer.Option("--training", help="The training trajectories of the [fit] table, not the truth.")
    ] = False,
    seed: SeedOption = None,
    at_once: Annotated[int | None, typer.Option(min=1, help="Trajectories computed together.")] = None,
    device: DeviceOption = "cpu",
    dtype: DtypeOption = "float32",
    changes: SetOption = None,
) -> None:
    """Simulate the truth of a card, or what it trains on, and write it as a Dataset.

    A run that was killed goes on where it was when it is called again. Train on the file with `--set fit.data=FILE`,
    assimilate it with `--set truth.data=FILE`.

    Examples:
    assimilate simulate lorenz63 --out truth.nc

    assimilate simulate lorenz63 --training --out trajectories.nc --set fit.simulation.trajectories=64
    """
    from assimilate.cards.files import find, load
    from assimilate.cards.simulation import check_target, training_of, truth_of, write_simulation
    from assimilate.devices import find_device
    from assimilate.terminal import console, counting

    path = find(card)
    loaded = load(card, [*(changes or []), *([f"seed={seed}"] if seed is not None else [])])
    reach(path)
    check_target(out)
    wanted = training_of(loaded) if training else truth_of(loaded)
    place = find_device(device)
    with counting("trajectories", wanted.trajectories) as advance:
        write_simulation(wanted, out, at_once=at_once, dtype=dtype_of(dtype), device=place, progress=advance)
    console.print(f"[bold]wrote[/] {out}")
