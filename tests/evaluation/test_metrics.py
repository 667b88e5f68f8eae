from __future__ import annotations

import json
import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.calibration import calibration_curve
from sklearn.metrics import accuracy_score, confusion_matrix, f1_score, precision_recall_fscore_support

from lsml_cli.evaluation.metrics import bootstrap, classification_metrics
from lsml_cli.evaluation.metrics.agreement import NominalAgreement
from lsml_cli.evaluation.metrics.calibration import compute_calibration
from lsml_cli.evaluation.metrics.choices import MAX_RESAMPLED_CLASSES, ChoiceCounts

NAMES = ["ant", "bee", "cat", "dog"]
SINGLE = st.lists(st.tuples(st.sampled_from(NAMES), st.sampled_from(NAMES)), min_size=1, max_size=30)
LABELS = st.sets(st.sampled_from(NAMES))
MULTI = st.lists(st.tuples(LABELS, LABELS), min_size=1, max_size=30)


@settings(deadline=None)  # the first call imports scikit-learn
@given(SINGLE)
def test_single_choices_agree_with_sklearn(pairs: list[tuple[str, str]]) -> None:
    truth, guess = zip(*pairs, strict=True)
    found = classification_metrics(({true}, {guessed}) for true, guessed in pairs)
    assert found.count == len(pairs)
    assert found.accuracy == pytest.approx(accuracy_score(truth, guess))
    assert found.macro_f1 == pytest.approx(f1_score(truth, guess, average="macro", zero_division=0))
    assert found.micro_f1 == pytest.approx(f1_score(truth, guess, average="micro", zero_division=0))
    names = [each.name for each in found.classes]
    expected = precision_recall_fscore_support(truth, guess, labels=names, zero_division=0)
    for each, *numbers in zip(found.classes, *expected, strict=True):
        assert [each.precision, each.recall, each.f1, each.support] == pytest.approx(numbers)


@settings(deadline=None)  # the first call imports scikit-learn
@given(MULTI)
def test_multiple_choices_agree_with_sklearn(pairs: list[tuple[set[str], set[str]]]) -> None:
    found = classification_metrics(pairs)
    truth, guess = ([[name in names for name in NAMES] for names in side] for side in zip(*pairs, strict=True))
    assert found.accuracy == pytest.approx(accuracy_score(truth, guess))
    numbers = precision_recall_fscore_support(truth, guess, zero_division=0)
    expected = dict(zip(NAMES, zip(*numbers, strict=True), strict=True))
    for each in found.classes:
        assert [each.precision, each.recall, each.f1, each.support] == pytest.approx(expected[each.name])
    if found.classes:
        assert found.micro_f1 == pytest.approx(f1_score(truth, guess, average="micro", zero_division=0))
    occurring = [each.f1 for each in found.classes]
    assert found.macro_f1 == (pytest.approx(sum(occurring) / len(occurring)) if occurring else None)


def test_missing_prediction_is_wrong_but_no_class() -> None:
    found = classification_metrics([(["spam"], []), (["spam"], ["spam"])])
    assert found.accuracy == 0.5
    assert [(each.name, each.precision, each.recall) for each in found.classes] == [("spam", 1.0, 0.5)]


def test_without_tasks_metrics_are_none() -> None:
    found = classification_metrics([])
    assert (found.count, found.accuracy, found.macro_f1, found.classes) == (0, None, None, ())


def test_to_json_is_json() -> None:
    found = json.loads(json.dumps(classification_metrics([(["a"], ["b"])]).to_json()))
    assert found["classes"][0] == {
        "name": "a",
        "precision": 0.0,
        "recall": 0.0,
        "f1": 0.0,
        "support": 1,
        "predicted": 0,
    }


def count_pairs(pairs: list[tuple[set[str], set[str]]]) -> ChoiceCounts:
    found = ChoiceCounts()
    for truth, guess in pairs:
        found.add([(frozenset(truth), frozenset(guess))], 0.5)
    return found


@given(MULTI, st.integers(0, 2**32 - 1))
def test_weights_equal_repetition(pairs: list[tuple[set[str], set[str]]], seed: int) -> None:
    weights = np.random.default_rng(seed).integers(0, 4, (3, len(pairs))).astype(np.int32)
    values = count_pairs(pairs).weighted_values(weights)
    for i, row in enumerate(weights):
        again = classification_metrics([pair for pair, times in zip(pairs, row, strict=True) for _ in range(times)])
        expected = dict(again.values()) | {
            f"{name}:{each.name}": value for each in again.classes for name, value in each.values().items()
        }
        for name, value in expected.items():
            assert values[name][i] == (
                pytest.approx(value) if value is not None else pytest.approx(np.nan, nan_ok=True)
            )


def test_memory_does_not_grow_with_the_square_of_the_classes() -> None:
    count = 4000
    counts = count_pairs([({f"{i}"}, {f"{i if i % 2 else i + 1}"}) for i in range(count)] + [({"7"}, {"7"})])
    weights = np.ones((25, count + 1), np.int32)
    tracemalloc.start()
    values = counts.weighted_values(weights)
    assert counts.confusion() is None
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 60_000_000  # bytes; a table of tasks and classes has 400 MB
    metrics = counts.metrics()
    assert values["accuracy"][24] == pytest.approx(metrics.accuracy)
    assert values["macro-f1"][24] == pytest.approx(metrics.macro_f1)
    classes = [name for name in values if name.startswith("f1:")]
    assert len(classes) == MAX_RESAMPLED_CLASSES
    assert "f1:7" in classes  # the most frequent ones


@pytest.mark.filterwarnings("ignore:A single label was found")
@given(SINGLE)
def test_confusion_agrees_with_sklearn(pairs: list[tuple[str, str]]) -> None:
    found = count_pairs([({truth}, {guess}) for truth, guess in pairs]).confusion()
    assert found
    expected = confusion_matrix(*zip(*pairs, strict=True), labels=list(found.rows))
    assert found.columns == found.rows
    assert [list(row) for row in found.counts] == expected.tolist()


def test_missing_prediction_has_its_own_column() -> None:
    found = count_pairs([({"a"}, {"a"}), ({"a"}, set()), ({"b"}, set())]).confusion()
    assert found
    assert (found.rows, found.columns) == (("a", "b"), ("a", "b", ""))
    assert found.counts == ((1, 0, 1), (0, 0, 1))


@given(st.lists(st.tuples(st.floats(0, 1, width=16), st.booleans()), min_size=1, max_size=50))
def test_reliability_agrees_with_sklearn(answers: list[tuple[float, bool]]) -> None:
    scores, right = (np.array(each, np.float32) for each in zip(*answers, strict=True))
    found = compute_calibration(scores, right)
    assert found is not None
    share, mean = calibration_curve(right, scores, n_bins=10)
    assert [each.right for each in found.bins] == pytest.approx(list(share))
    assert [each.score for each in found.bins] == pytest.approx(list(mean))
    weights = [each.count / len(answers) for each in found.bins]
    assert found.ece == pytest.approx(float(np.dot(np.abs(share - mean), weights)), abs=1e-6)
    assert sum(found.right) + sum(found.wrong) == len(answers)


def test_interval_has_nominal_coverage() -> None:
    """Of many samples of 100 tasks of which 80 % are right, about 95 % of the intervals hold 0.8."""
    held = 0
    for seed in range(200):
        right = np.random.default_rng(seed).random(100) < 0.8
        counts = count_pairs([({"a"}, {"a" if each else "b"}) for each in right])
        found = bootstrap.percentile_interval(bootstrap.resample_metrics({"": counts}, 100, seed)[""]["accuracy"])
        assert found is not None
        held += found.low <= 0.8 <= found.high
    assert 0.88 <= held / 200 <= 0.99


def test_resampling_uses_equal_samples_for_both_models() -> None:
    mine = count_pairs([({"a"}, {"a"})] * 50 + [({"b"}, {"a"})] * 50)
    other = count_pairs([({"a"}, {"a"})] * 40 + [({"a"}, {"b"})] * 10 + [({"b"}, {"a"})] * 50)
    found = bootstrap.resample_metrics({"mine": mine, "other": other}, 100, 0)
    difference = found["mine"]["accuracy"] - found["other"]["accuracy"]
    assert (difference >= 0).all()  # mine is right wherever the other one is
    assert bootstrap.resample_count(100) == len(difference) == 1000
    assert bootstrap.resample_count(10**6) == 200


def test_krippendorff_alpha_matches_literature() -> None:
    """Krippendorff (2011), example C: four observers, twelve units, nominal data: 0.743."""
    observers = [
        "1 2 3 3 2 1 4 1 2 * * *",
        "1 2 3 3 2 2 4 1 2 5 * 3",
        "* 3 3 3 2 3 4 2 2 5 1 *",
        "1 2 3 3 2 4 4 1 2 5 1 *",
    ]
    found = NominalAgreement()
    for unit in zip(*(each.split() for each in observers), strict=True):
        found.add([value for value in unit if value != "*"])
    agreement = found.compute()
    assert agreement is not None
    assert agreement.tasks == 11
    assert agreement.alpha == pytest.approx(0.743, abs=5e-4)
