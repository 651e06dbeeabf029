"""The wheel: exactly five packages with their cards, data and weights; quiet and quick to import; no name shared."""

import importlib.metadata
import subprocess
import sys
import textwrap
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGES = {"assimilate", "dynamics", "observations", "imaging", "benchmarks"}


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(folder), str(ROOT)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return next(folder.glob("*.whl"))


def test_the_wheel_holds_five_packages_and_nothing_else(wheel):
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
    top = {name.partition("/")[0] for name in names}
    assert {t for t in top if not t.endswith(".dist-info")} == PACKAGES
    assert not [n for n in names if "test" in Path(n).name.lower() and n.endswith(".py")]


def test_the_wheel_holds_cards_data_weights_and_markers(wheel):
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        sizes = {info.filename: info.file_size for info in archive.infolist()}
    for folder, suffix in (("benchmarks/cards", ".toml"), ("assimilate/learning/weights", ".safetensors")):
        expected = {f"{folder}/{p.name}" for p in (ROOT / folder).glob(f"*{suffix}")}
        assert expected and expected <= names
    assert {"dynamics/data/stage4_florence_2018.nc", "dynamics/data/ATTRIBUTION.txt"} <= names
    assert {f"{package}/py.typed" for package in PACKAGES} <= names
    assert any(n.endswith("licenses/LICENSE") or n.endswith("LICENSE") for n in names)
    # Shipped priors are small: the whole wheel stays a quick download.
    assert sum(sizes.values()) < 60e6


def test_every_import_name_has_one_owner():
    owners = importlib.metadata.packages_distributions()
    for name in PACKAGES:
        assert sorted(set(owners.get(name, ["assimilate-da"]))) == ["assimilate-da"], owners[name]


def test_every_package_carries_the_marker():
    for name in PACKAGES:
        assert 'DISTRIBUTION = "assimilate-da"' in (ROOT / name / "__init__.py").read_text()


def test_a_foreign_package_of_the_same_name_is_refused(tmp_path):
    foreign = tmp_path / "observations"
    foreign.mkdir()
    (foreign / "__init__.py").write_text("'''somebody else's'''")
    code = f"import sys; sys.path.insert(0, {str(tmp_path)!r}); import assimilate"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode != 0
    assert "ImportError: another package named 'observations' shadows" in done.stderr
    assert str(foreign) in done.stderr and "fresh environment" in done.stderr


def test_import_is_silent_and_quick(tmp_path):
    code = textwrap.dedent(
        """
        import time, torch
        began = time.perf_counter()
        import assimilate
        print(time.perf_counter() - began)
        import sys
        print(sorted({"matplotlib", "scores", "xarray", "pydantic", "typer"} & set(sys.modules)))
        """
    )
    # An empty working directory: whatever is written on import would show.
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path)
    seconds, heavy = done.stdout.splitlines()
    assert done.stderr == "" and float(seconds) < 2.0 and heavy == "[]"
    assert not list(tmp_path.iterdir())


def test_public_names_are_there():
    import assimilate

    for name in assimilate.__all__:
        assert getattr(assimilate, name) is not None
    assert set(assimilate.__all__) <= set(dir(assimilate))
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = assimilate.nothing


def test_constraints_are_plain_pins():
    lines = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if not line.startswith("#")]
    assert all(line.count("==") == 1 and not {"/", "@", "+"} & set(line) for line in lines), lines
    assert "torch==2.13.0" in lines
    assert not [line for line in lines if line.startswith(("assimilate", "nvidia", "torchvision"))]


def test_nothing_heavy_came_in():
    installed = {d.metadata["Name"].lower() for d in importlib.metadata.distributions()}
    assert "torchvision" not in installed
