"""A card with a slip anywhere is a plan or one line that names the place."""

from __future__ import annotations

import copy

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from assimilate.cards.execution import plan
from assimilate.cards.files import find, parse, read_table
from assimilate.errors import CardError, UserError
from tests.lorenz_run import few, speaks


def small_card():
    card = read_table(find("quickstart"))
    card["truth"].update(steps=4, experiments=2, spinup=2)
    card["scores"]["drop"] = 0
    card["quality"] = {"gross": [-100.0, 100.0], "background": 5.0}
    card["initial"] = {"law": "perturbed", "std": 1.0}
    for entry in card["method"]:
        entry["members"] = 4
    return card


def places(table, lead=()):
    for key, value in table.items() if isinstance(table, dict) else enumerate(table):
        yield (*lead, key)
        if isinstance(value, dict | list):
            yield from places(value, (*lead, key))


def put(table, place, value):
    table = copy.deepcopy(table)
    here = table
    for key in place[:-1]:
        here = here[key]
    if value is None:
        del here[place[-1]]
    else:
        here[place[-1]] = value
    return table


CARD = small_card()
OTHERS = [None, "text", "", -1, 0, 2, 3.7, True, [], {}, [1, "a"], [[1.0]], "none", {"type": "x"}, {"a": 1}]


@given(place=st.sampled_from(list(places(CARD))), value=st.sampled_from(OTHERS))
@settings(max_examples=150)
def test_a_card_with_another_value_anywhere_is_a_plan_or_one_line(place, value):
    changed = put(CARD, place, value)
    try:
        made = plan(parse(changed, "small.toml"))
    except UserError as error:
        assert speaks(error)
        named = [str(key) for key in place if isinstance(key, str)]
        # A card error names the file; every message names a part of the path, or what is left without it.
        assert "small.toml" in str(error) or not isinstance(error, CardError) or any(n in str(error) for n in named)
        return
    assert made.methods


@given(place=st.sampled_from([p for p in places(CARD) if isinstance(p[-1], str)]), letter=st.sampled_from("xq_ä"))
@few
def test_a_key_with_a_slip_is_named(place, letter):
    value = CARD
    for key in place:
        value = value[key]
    changed = put(put(CARD, place, None), (*place[:-1], place[-1] + letter), value)
    with pytest.raises(UserError) as caught:
        plan(parse(changed, "small.toml"))
    assert speaks(caught.value) and place[-1] in str(caught.value)
