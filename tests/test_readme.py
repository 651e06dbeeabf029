"""The README: its Python blocks run in one go, and what it prints is what it says."""

import contextlib
import io
import re
import tomllib
from pathlib import Path

import pytest

from assimilate.cards.files import parse
from assimilate.registry import METHODS
from benchmarks.tables import written

README = (Path(__file__).parent.parent / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```(\w+)\n(.*?)```", README, flags=re.DOTALL)
NUMBER = re.compile(r"-?\d+\.\d+")
PYTHON = [k for k, (language, _) in enumerate(BLOCKS) if language == "python"]


@pytest.mark.parametrize("index", PYTHON, ids=[f"block {n}" for n in range(len(PYTHON))])
def test_python_blocks_run_and_print_what_the_readme_says(index):
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(compile(BLOCKS[index][1], f"README block {index}", "exec"), {"__name__": "readme"})
    said = BLOCKS[index + 1][1] if index + 1 < len(BLOCKS) and BLOCKS[index + 1][0] == "text" else ""
    assert NUMBER.sub("#", printed.getvalue()).split() == NUMBER.sub("#", said).split()
    # The system is chaotic: another build of PyTorch rounds otherwise, which moves scores by a percent.
    shown, found = (list(map(float, NUMBER.findall(text))) for text in (said, printed.getvalue()))
    assert found == pytest.approx(shown, rel=0.03, abs=0.02)


def test_the_example_is_twelve_lines():
    assert len(BLOCKS[0][1].strip().splitlines()) <= 13


def test_the_card_in_the_readme_is_valid():
    cards = [text for language, text in BLOCKS if language == "toml"]
    assert cards and all(parse(tomllib.loads(text)) for text in cards)


def test_every_method_is_named():
    listed = README.partition("## Methods")[2].partition("## Adding")[0]
    unnamed = [name for name in METHODS if f"`{name}`" not in listed and not name.endswith("Filter")]
    assert not unnamed


def test_links_lead_to_files():
    for target in re.findall(r"\]\((?!http)([^)#]+)\)", README):
        assert (Path(__file__).parent.parent / target).exists() or target == "benchmarks/results/florence.png", target


def test_the_table_of_results_comes_from_the_result_files():
    assert written(README) == README, "run python -m benchmarks.tables --write"
