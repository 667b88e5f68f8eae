from __future__ import annotations

import pytest

from lsml_cli.errors import UsageError
from lsml_cli.evaluation.gates import Gate, evaluate_gates, parse_gates
from lsml_cli.evaluation.metrics import classification_metrics

KNOWN = {"category": ["Billing", "Odd=one", "3.5"], "a.b": ["Billing", "x:y"], "free": None}


@pytest.mark.parametrize(
    ("text", "gates"),
    [
        ("category.accuracy=0.9", [Gate("category", "accuracy", None, 0.9)]),
        ("accuracy=1", [Gate(name, "accuracy", None, 1.0) for name in KNOWN]),
        ("macro-f1=0", [Gate(name, "macro-f1", None, 0.0) for name in KNOWN]),
        ("category.f1:Billing=0.5", [Gate("category", "f1", "Billing", 0.5)]),
        ("f1:Billing=.5", [Gate(name, "f1", "Billing", 0.5) for name in KNOWN]),
        ("a.b.recall:x:y=0.5", [Gate("a.b", "recall", "x:y", 0.5)]),
        ("category.precision:Odd=one=0.5", [Gate("category", "precision", "Odd=one", 0.5)]),
        ("category.f1:3.5=0.5", [Gate("category", "f1", "3.5", 0.5)]),
        ("f1:any=0.5", [Gate("free", "f1", "any", 0.5)]),
    ],
)
def test_parse_gates(text: str, gates: list[Gate]) -> None:
    assert parse_gates([text], KNOWN) == gates


@pytest.mark.parametrize(
    ("text", "sentence", "hint"),
    [
        ("accuracy", "is not METRIC=VALUE", "accuracy=0.98"),
        ("=0.9", "is not METRIC=VALUE", "accuracy=0.98"),
        ("accuracy=high", "a number from 0 to 1, not 'high'", ""),
        ("accuracy=98", "a number from 0 to 1, not '98'", ""),
        ("accuracy=nan", "a number from 0 to 1", ""),
        ("acuracy=0.9", "no metric 'acuracy'", "Did you mean 'accuracy'? Known metrics: accuracy, "),
        ("F1:Billing=0.9", "no metric 'F1:Billing'", "Did you mean 'f1:CLASS'? Known metrics: f1:CLASS, "),
        ("accuracy:Billing=0.9", "no metric 'accuracy:Billing'", "Known metrics: accuracy, "),
        ("f1=0.9", "no metric 'f1' (it needs a class)", "f1:CLASS"),
        ("f1:=0.9", "(it needs a class)", "f1:CLASS"),
        ("category.f1:Biling=0.9", "no class 'Biling'", "Did you mean 'Billing'? Known classes: Billing, "),
        ("category.f1:billing=0.9", "no class 'billing'", "Did you mean 'Billing'? Known classes: Billing, "),
        ("categorie.f1:Billing=0.9", "no control 'categorie'", "Known controls: category, "),
        ("categorie.accuracy=0.9", "no control 'categorie'", "Known controls: category, "),
    ],
)
def test_unknown_name_lists_known_names(text: str, sentence: str, hint: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse_gates(["accuracy=0.1", text], KNOWN)
    assert sentence in caught.value.message
    assert repr(text) in caught.value.message
    assert hint in (caught.value.hint or "")


def test_config_without_metrics_has_no_gates() -> None:
    with pytest.raises(UsageError, match="nothing of this label config can be measured"):
        parse_gates(["accuracy=0.9"], {})


METRICS = {
    "kind": classification_metrics([(["a"], ["a"]), (["a"], ["a"]), (["b"], ["a"]), (["b"], ["b"]), (["a"], ["c"])])
}


@pytest.mark.parametrize(
    ("text", "passed", "sentence"),
    [
        ("accuracy=0.6", True, "kind.accuracy is 0.6000, at 0.6"),
        ("accuracy=0.65", False, "kind.accuracy is 0.6000, 0.0500 below 0.65"),
        ("accuracy=0.600001", False, "kind.accuracy is 0.60000000, 0.00000100 below 0.600001"),
        ("precision:b=0.9", True, "kind.precision:b is 1.0000, 0.1000 above 0.9"),
        ("recall:b=0.9", False, "kind.recall:b is 0.5000, 0.4000 below 0.9"),
        ("f1:c=0", False, 'kind.f1:c could not be measured, because no held-out task has the class "c"'),
    ],
)
def test_evaluate_gates(text: str, passed: bool, sentence: str) -> None:
    [result] = evaluate_gates(parse_gates([text], {"kind": ["a", "b", "c"]}), METRICS)
    assert (result.passed, str(result)) == (passed, sentence)
    assert result.to_json()["passed"] is passed


def test_control_without_metrics_fails_its_gate() -> None:
    [result] = evaluate_gates([Gate("other", "accuracy", None, 0.0)], METRICS)
    assert not result.passed
    assert "could not be measured" in str(result)


def test_json_keeps_the_key_at_least() -> None:
    [result] = evaluate_gates([Gate("kind", "accuracy", None, 0.5)], METRICS)
    assert result.to_json() == {
        "control": "kind",
        "metric": "accuracy",
        "label": None,
        "at_least": 0.5,
        "name": "kind.accuracy",
        "measured": 0.6,
        "passed": True,
    }
