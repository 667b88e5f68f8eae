from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import accuracy_score, f1_score, precision_recall_fscore_support

from lsml_cli.metrics import classification

NAMES = ["ant", "bee", "cat", "dog"]
SINGLE = st.lists(st.tuples(st.sampled_from(NAMES), st.sampled_from(NAMES)), min_size=1, max_size=30)
LABELS = st.sets(st.sampled_from(NAMES))
MULTI = st.lists(st.tuples(LABELS, LABELS), min_size=1, max_size=30)


@given(SINGLE)
def test_single_choices_agree_with_sklearn(pairs: list[tuple[str, str]]) -> None:

    truth, guess = zip(*pairs, strict=True)
    found = classification(({true}, {guessed}) for true, guessed in pairs)
    assert found.count == len(pairs)
    assert found.accuracy == pytest.approx(accuracy_score(truth, guess))
    assert found.macro_f1 == pytest.approx(f1_score(truth, guess, average="macro", zero_division=0))
    names = [each.name for each in found.classes]
    expected = precision_recall_fscore_support(truth, guess, labels=names, zero_division=0)
    for each, *numbers in zip(found.classes, *expected, strict=True):
        assert [each.precision, each.recall, each.f1, each.support] == pytest.approx(numbers)


@given(MULTI)
def test_multiple_choices_agree_with_sklearn(pairs: list[tuple[set[str], set[str]]]) -> None:

    found = classification(pairs)
    truth, guess = ([[name in names for name in NAMES] for names in side] for side in zip(*pairs, strict=True))
    assert found.accuracy == pytest.approx(accuracy_score(truth, guess))
    numbers = precision_recall_fscore_support(truth, guess, zero_division=0)
    expected = dict(zip(NAMES, zip(*numbers, strict=True), strict=True))
    for each in found.classes:
        assert [each.precision, each.recall, each.f1, each.support] == pytest.approx(expected[each.name])
    occurring = [each.f1 for each in found.classes]
    assert found.macro_f1 == (pytest.approx(sum(occurring) / len(occurring)) if occurring else None)


def test_a_task_without_prediction_is_wrong_and_no_class_of_its_own() -> None:
    found = classification([(["spam"], []), (["spam"], ["spam"])])
    assert found.accuracy == 0.5
    assert [(each.name, each.precision, each.recall) for each in found.classes] == [("spam", 1.0, 0.5)]


def test_no_task_has_no_numbers() -> None:
    found = classification([])
    assert (found.count, found.accuracy, found.macro_f1, found.classes) == (0, None, None, ())


def test_to_json_is_json() -> None:
    found = json.loads(json.dumps(classification([(["a"], ["b"])]).to_json()))
    assert found["classes"][0] == {
        "name": "a",
        "precision": 0.0,
        "recall": 0.0,
        "f1": 0.0,
        "support": 1,
        "predicted": 0,
    }
