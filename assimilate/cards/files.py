"""Card files: find, read and check them; messages that name file, key path and nearest valid key."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar, get_args

from pydantic import BaseModel, ValidationError

from assimilate.cards.card import Card
from assimilate.cards.changes import called, merged, set_value
from assimilate.errors import CardError, UnknownName, UserError, suggestion

AnyCard = TypeVar("AnyCard", bound=BaseModel)

CARDS_FOLDER = Path(__file__).resolve().parents[2] / "benchmarks" / "cards"


def available() -> dict[str, Path]:
    """Cards that ship with the package, by name."""
    return {path.stem: path for path in sorted(CARDS_FOLDER.glob("*.toml"))}


def find(name: str) -> Path:
    """The file of a card: the path of one's own TOML file, or the name of a shipped card.

    Raises:
        UnknownName: neither a file nor a shipped card.
        CardError: a path that does not exist.
    """
    path = Path(name)
    if path.is_file():
        return path
    if path.suffix == ".toml" or len(path.parts) > 1:
        raise CardError(f"there is no card file '{name}'")
    shipped = available()
    if name not in shipped:
        raise UnknownName("card", name, shipped, "; or give the path of a TOML file")
    return shipped[name]


def load(name: str, changes: Sequence[str] = ()) -> Card:
    """Read, change and check a card.

    Args:
        name: a shipped card or the path of a TOML file.
        changes: `path=value` with a dotted path, such as `method.FlowDAS.members=32` or `truth.steps=10`.

    Raises:
        UserError: unreadable, or not a valid card; one line with file, key path and what would be right.
    """
    path = find(name)
    return checked(read_table(path), changes, Card, path.name)


def read_table(path: Path) -> dict[str, Any]:
    """The table of a TOML file, unchecked.

    Raises:
        CardError: it is not TOML.
    """
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise CardError(f"{path.name}: not readable as TOML: {error}") from error


def checked(table: dict[str, Any], changes: Sequence[str], schema: type[AnyCard], file: str) -> AnyCard:
    """A table with its changes, checked against a schema; see `load`."""
    for change in changes:
        set_value(table, change, schema)
    return parse(table, file, schema)


def parse(table: Mapping[str, Any], file: str = "card", schema: type[AnyCard] = Card) -> AnyCard:  # type: ignore[assignment]
    """Check a card that was read or built; `file` is its name in messages."""
    try:
        card = schema.model_validate(table)
    except ValidationError as error:
        raise CardError(f"{file}: {_first(error, table, schema)}") from None
    if isinstance(card, Card):
        cards_of_tasks(card, file)
    return card


def cards_of_tasks(card: Card, file: str = "card") -> dict[str, Card]:
    """The card of each task, by its name: the card itself with the keys of the task.

    Args:
        card: a checked card; one without tasks has none of these.
        file: its name in messages.

    Raises:
        CardError: two tasks with one name, or a task that does not make a valid card.
    """
    table = card.model_dump(exclude_unset=True, exclude={"task", "expected"})
    names = [task.name for task in card.task]
    folders = [folder_of(name) for name in names]
    for wanted in card.expected:
        if wanted.task is not None and wanted.task not in names:
            raise CardError(f"{file}: expected.task: there is no task '{wanted.task}'{suggestion(wanted.task, names)}")
    cards: dict[str, Card] = {}
    for task, folder in zip(card.task, folders, strict=True):
        where = f"{file}: task[{task.name}]"
        if folders.count(folder) > 1:
            raise CardError(f"{where}: another task has the same name, or one that makes the same folder '{folder}'")
        changes = task.changes()
        for key in ("task", "expected", "fit"):
            if key in changes:
                raise CardError(f"{where}: '{key}' belongs to the whole card; an [[expected]] entry can name a 'task'")
        try:
            changed = merged(table, changes, where)
        except UserError as error:
            raise CardError(str(error)) from None
        changed["title"] = changes.get("title", f"{card.title}: {task.name}")
        own = [e.model_dump(exclude_unset=True, exclude={"task"}) for e in card.expected if e.task in (None, task.name)]
        cards[task.name] = parse(changed | {"expected": own}, where)
    return cards


def folder_of(task: str) -> str:
    """Name of the folder in which a task's results are."""
    from assimilate.storage import safe_name

    return safe_name(task)


def _first(error: ValidationError, table: Mapping[str, Any], schema: type[BaseModel]) -> str:
    """The first problem of a card as `key path: what is wrong`; unknown keys first, since they explain missing ones."""
    problems = sorted(error.errors(), key=lambda e: e["type"] != "extra_forbidden")
    problem = problems[0]
    place = [part for part in problem["loc"] if part not in ("float", "Component", "list[float]")]
    path = _path(place, table)
    if problem["type"] == "extra_forbidden":
        return f"unknown key '{path}'{suggestion(str(place[-1]), _valid_keys(place[:-1], schema))}"
    if problem["type"] == "missing":
        return f"'{path}' is missing"
    message = problem["msg"].removeprefix("Value error, ")
    given = problem["input"]
    shown = f" (got {given!r})" if isinstance(given, str | int | float | bool) else ""
    return f"{path}: {message}{shown}" if path else message


def _path(place: Sequence[str | int], table: Mapping[str, Any]) -> str:
    """Dotted path; entries of a list are shown by their label or type where they have one."""
    parts: list[str] = []
    here: Any = table
    for part in place:
        here = _inside(here, part)
        if isinstance(part, int):
            name = called(here) if isinstance(here, dict) else None
            parts[-1] += f"[{name or part}]"
        else:
            parts.append(part)
    return ".".join(parts)


def _inside(here: Any, part: str | int) -> Any:
    if isinstance(here, list) and isinstance(part, int):
        return here[part]
    return here.get(part) if isinstance(here, dict) else None


def _valid_keys(place: Sequence[str | int], schema: type[BaseModel]) -> list[str]:
    model: Any = schema
    for part in place:
        if isinstance(part, int) or not (isinstance(model, type) and issubclass(model, BaseModel)):
            continue
        annotation = model.model_fields[part].annotation if part in model.model_fields else None
        options = [annotation, *get_args(annotation)]
        model = next((o for o in options if isinstance(o, type) and issubclass(o, BaseModel)), None)
    return list(model.model_fields) if isinstance(model, type) and issubclass(model, BaseModel) else []
