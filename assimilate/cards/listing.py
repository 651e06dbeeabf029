"""What `assimilate list` shows."""

from __future__ import annotations

from typing import Any

from assimilate.errors import UnknownName

LISTS = ("cards", "dynamics", "operators", "methods", "guidance", "pretrained")


def rows_of(what: str) -> list[dict[str, Any]]:
    """One row per thing: at least its name and a line that says what it is.

    Raises:
        UnknownName: there is no such list.
    """
    if what not in LISTS:
        raise UnknownName("list", what, LISTS)
    if what == "cards":
        from assimilate.cards.files import available, load

        cards = {name: load(str(path)) for name, path in available().items()}
        return [
            {
                "name": n,
                "summary": c.title,
                "methods": [m.label or m.type for m in c.method],
                "file": str(available()[n]),
            }
            for n, c in cards.items()
        ]
    if what == "pretrained":
        from assimilate.learning.pretrained import list_pretrained

        return [
            {"name": name, "summary": f"{entry['kind']}, {entry['bytes'] / 1e6:.1f} MB", **entry}
            for name, entry in list_pretrained().items()
        ]
    from assimilate.registry import describe

    return describe({"operators": "operator", "methods": "method"}.get(what, what))
