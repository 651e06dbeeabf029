"""Where commands find cards and the classes that a card names."""

from __future__ import annotations

import sys
from pathlib import Path


def imaging_card(name: str) -> Path | None:
    """The file of an imaging card; None if the name is that of another card, or of none."""
    from assimilate.cards.files import available
    from assimilate.errors import UnknownName
    from imaging.cards import is_imaging, shipped

    path = Path(name)
    if path.is_file():
        return path if is_imaging(path) else None
    own, others = shipped(), available()
    if name not in own and name not in others and path.suffix != ".toml" and len(path.parts) == 1:
        raise UnknownName("card", name, [*own, *others], "; or give the path of a TOML file")
    return own.get(name)


def reach(card: Path) -> None:
    """Let `module:Class` find files beside the card and in the working directory."""
    for folder in (str(card.resolve().parent), str(Path.cwd())):
        if folder not in sys.path:
            sys.path.append(folder)
