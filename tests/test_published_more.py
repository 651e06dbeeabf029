"""Published tables beyond the two standard ones: the cards say all of it, and some rows are run (slow)."""

import pytest

from assimilate import registry
from assimilate.cards.execution import execute
from assimilate.cards.files import cards_of_tasks, load
from assimilate.cards.methods import check_labels

CARDS = ("published-lorenz63-more", "published-lorenz96-more")


@pytest.mark.parametrize("name", CARDS)
def test_every_row_of_every_task_is_valid_and_has_its_figure(name):
    for task, card in cards_of_tasks(load(name)).items():
        labels = check_labels(card)
        for entry, label in zip(card.method, labels, strict=True):
            registry.check("method", {"type": entry.type, **entry.settings()}, label)
            usual = registry.resolve("method", entry.type).name
            assert label.startswith((usual, "particle filter")), f"{task}: '{label}' is a {usual}"
        assert [e.method for e in card.expected if e.score == "rmse_time"] == labels, task
        assert card.truth.experiments >= 8


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "task"),
    [
        ("published-lorenz63-more", "every 0.25, variance 1"),
        ("published-lorenz96-more", "10 variables, every second one"),
        ("published-lorenz96-more", "40 variables, every 0.6"),
    ],
)
def test_rows_come_out(name, task, tmp_path):
    outcome = execute(cards_of_tasks(load(name))[task], tmp_path)
    assert not outcome.failures
    assert outcome.checks and all(check["passed"] for check in outcome.checks), outcome.checks
