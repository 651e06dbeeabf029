"""Imports point one way: dynamics <- observations <- assimilate <- imaging <- benchmarks; the commands are the roof."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
LAYERS = ("dynamics", "observations", "assimilate", "imaging", "benchmarks")
ROOF = (ROOT / "assimilate" / "cli.py", *(ROOT / "assimilate" / "commands").glob("*.py"))
HEAVY = (
    "matplotlib",
    "scores",
    "netCDF4",
    "pydantic",
    "dask",
    "typer",
    "rich",
    "torchdiffeq",
    "scipy",
    "pandas",
    "PIL",
)
EDGE = {
    "assimilate/cards/card.py",
    "assimilate/cards/files.py",
    "assimilate/cards/observations.py",
    "assimilate/terminal.py",
    "imaging/cards.py",
    "imaging/terminal.py",
}


def files():
    return [path for layer in LAYERS for path in sorted((ROOT / layer).rglob("*.py"))]


def imports(tree):
    """Top-level package names of all imports, with the line, and whether they run when the module is imported."""
    inside = set()
    for node in ast.walk(tree):
        typing_only = isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)
        if typing_only or isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            inside |= {id(child) for child in ast.walk(node)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [node.module or "."] if node.level == 0 else ["."]
        else:
            continue
        for name in names:
            yield name.partition(".")[0], node.lineno, id(node) not in inside


@pytest.mark.parametrize("path", files(), ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_point_one_way(path):
    own = LAYERS.index(path.relative_to(ROOT).parts[0])
    for name, line, at_import in imports(ast.parse(path.read_text())):
        assert name != "", f"{path.name}:{line} imports relative to its package; name the package"
        if name not in LAYERS or LAYERS.index(name) <= own:
            continue
        assert path in ROOF and not at_import, f"{path.relative_to(ROOT)}:{line} imports {name}, which stands above it"


@pytest.mark.parametrize("path", files(), ids=lambda p: str(p.relative_to(ROOT)))
def test_heavy_libraries_are_imported_where_they_are_used(path):
    if str(path.relative_to(ROOT)) in EDGE or path in ROOF:
        return
    for name, line, at_import in imports(ast.parse(path.read_text())):
        assert not (at_import and name in HEAVY), f"{path.relative_to(ROOT)}:{line} imports {name} at module level"


def test_relative_imports_are_not_used():
    for path in files():
        for node in ast.walk(ast.parse(path.read_text())):
            assert not (isinstance(node, ast.ImportFrom) and node.level), f"{path}:{node.lineno}"


@pytest.mark.parametrize("path", files(), ids=lambda p: str(p.relative_to(ROOT)))
def test_files_stay_small_and_say_what_they_are(path):
    text = path.read_text()
    assert len(text.splitlines()) <= 400, "one idea per file: split it before 400 lines"
    assert ast.get_docstring(ast.parse(text)), "a module opens with what it is"


@pytest.mark.parametrize("path", [p for p in files() if p.name == "__init__.py"], ids=lambda p: p.parent.name)
def test_no_package_exports_a_name_that_hides_a_module_of_it(path):
    exported = set()
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.ImportFrom):
            exported |= {alias.asname or alias.name for alias in node.names}
        elif isinstance(node, ast.FunctionDef | ast.ClassDef):
            exported.add(node.name)
    modules = {p.stem for p in path.parent.iterdir() if p.suffix == ".py" or (p / "__init__.py").exists()}
    assert not exported & modules, (
        f"{path.relative_to(ROOT)}: {exported & modules} are both a module and something else"
    )


def test_the_test_itself_sees_a_wrong_import():
    found = list(imports(ast.parse("import dynamics\ndef f():\n    from benchmarks.x import y")))
    assert found == [("dynamics", 1, True), ("benchmarks", 3, False)]
