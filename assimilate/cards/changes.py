"""Changes of a card's table before it is checked: `--set path=value`, and the keys of a [[task]].

A path is dotted, `method.FlowDAS.members`; a part with a dot in it is quoted, `task."1.5 %".observations.noise`. An
entry of a list (methods, tasks) is found by its label, name or type, or by its number from 0.
"""

from __future__ import annotations

import copy
import re
import tomllib
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from assimilate.cards.card import Card
from assimilate.errors import UserError, suggestion

if TYPE_CHECKING:
    from pydantic import BaseModel

NAMES = ("label", "name", "type")
"""Keys by which an entry of a list is found, in this order."""


def set_value(table: dict[str, Any], change: str, schema: type[BaseModel] = Card) -> None:
    """Apply one `path=value` to a card's table.

    The value is read as TOML (`32`, `0.5`, `true`, `[1, 2]`, `"text"`), and as text when it is none of these.

    Raises:
        UserError: no `=` in it, or a path that leads through something that is not a table.
    """
    path, equals, text = change.partition("=")
    keys = [quoted or plain for quoted, plain in re.findall(r'"([^"]*)"|([^."]+)', path.strip()) if quoted or plain]
    if not equals or not keys:
        raise UserError(f"--set '{change}': expected path=value, for example method.FlowDAS.members=32")
    try:
        value = tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        value = text.strip()
    where = f"--set '{change}'"
    if keys[0] not in schema.model_fields and len(keys) > 1:
        raise UserError(f"{where}: there is no '{keys[0]}'{suggestion(keys[0], schema.model_fields)}")
    place: Any = table
    for depth, key in enumerate(keys[:-1]):
        if isinstance(place, list):
            place = place[position(place, key, where, ".".join(keys[:depth]))]
        elif isinstance(place, dict):
            place = place.setdefault(key, {})
        else:
            raise UserError(f"{where}: '{'.'.join(keys[:depth])}' is not a table")
    if not isinstance(place, dict):
        raise UserError(f"{where}: '{'.'.join(keys[:-1])}' is not a table")
    place[keys[-1]] = value


def merged(table: Mapping[str, Any], changes: Mapping[str, Any], where: str, path: str = "") -> dict[str, Any]:
    """A table with changes: tables are merged key by key, anything else is replaced.

    A table that names a class (`type`) replaces the one that was there, whose settings are those of another class. A
    table in the place of a list changes entries of that list.

    Args:
        table: a card's table; it is not changed.
        changes: keys to replace, as nested tables.
        where: for messages.
        path: of the table in the card.

    Raises:
        UserError: an entry of a list that is not there, or a table where the card has a plain value.
    """
    out = copy.deepcopy(dict(table))
    for key, value in changes.items():
        here = f"{path}.{key}" if path else key
        held = out.get(key)
        if isinstance(value, Mapping) and isinstance(held, list):
            for name, change in value.items():
                index = position(held, name, where, here)
                if not isinstance(change, Mapping):
                    raise UserError(f"{where}: {here}.{name} is a table; {change!r} was given")
                held[index] = merged(held[index], change, where, f"{here}.{name}")
        elif isinstance(value, Mapping) and isinstance(held, Mapping) and "type" not in value:
            out[key] = merged(held, value, where, here)
        else:
            out[key] = copy.deepcopy(value)
    return out


def position(entries: list[Any], key: str, where: str, path: str) -> int:
    """Which entry of a list is meant.

    Raises:
        UserError: none of them.
    """
    if key.isdigit() and int(key) < len(entries):
        return int(key)
    for field in NAMES:
        for index, entry in enumerate(entries):
            if str(entry.get(field, "")).casefold() == key.casefold():
                return index
    names = [called(entry) for entry in entries]
    raise UserError(f"{where}: no entry '{key}' in '{path}'{suggestion(key, names)}")


def called(entry: Mapping[str, Any]) -> str:
    """What an entry of a list is called: its label, name or type."""
    return str(next((entry[k] for k in NAMES if entry.get(k)), ""))
