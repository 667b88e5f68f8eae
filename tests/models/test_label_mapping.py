"""Map classes of a model to labels, and suggest the label map where only the spelling differs."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from lsml_cli.errors import LabelMismatch
from lsml_cli.models.choices.heads import ChoicesBinding, Head, bind_trained_heads
from lsml_cli.models.label_mapping import describe_unmapped, map_label, map_labels, suggest_label_map
from lsml_cli.schema.label_config import LabelConfig
from tests.helpers.cli import run_in_process


def config_of(*choices: str, attrs: str = "") -> LabelConfig:
    inner = "".join(choice if choice.startswith("<") else f'<Choice value="{choice}"/>' for choice in choices)
    return LabelConfig.parse(
        f'<View><Text name="t" value="$t"/><Choices name="c" toName="t" {attrs}>{inner}</Choices></View>'
    )


def test_first_rule_that_matches_any_label_decides() -> None:
    control = config_of(
        '<Choice value="a" alias="first"/>',
        '<Choice value="b" predicted_values="a, x"/>',
        '<Choice value="first" alias="third"/>',
        '<Choice value="d" predicted_values="x"/>',
    ).only("Choices")
    classes = ["first", "a", "x", "third", "y", "z"]
    assert map_labels(classes, control, {"y": "d", "a": "d", "z": "nothing"}) == {
        "first": "first",
        "a": "first",
        "x": "b",
        "third": "third",
        "y": "d",
    }
    assert map_label("y", control, {"y": "first"}) == "first"
    assert map_label("z", control, {}) is None


def test_control_with_labels_from_tasks_takes_every_class() -> None:
    control = config_of(attrs='value="$options"').only("Choices")
    assert map_labels(["a", "b"], control, {"b": "B"}) == {"a": "a", "b": "B"}


@pytest.mark.parametrize(
    ("classes", "label_map"),
    [
        (["good"], '{"good": "Good"}'),
        (["Good ", "very  bad"], '{"Good ": "Good", "very  bad": "Very-Bad"}'),
        (["order_status", "unknown"], '{"order_status": "o"}'),  # the alias is what predictions use
    ],
)
def test_label_map_is_suggested_for_another_spelling(classes: list[str], label_map: str) -> None:
    control = config_of("Good", "Very-Bad", '<Choice value="Order Status" alias="o"/>').only("Choices")
    hint = suggest_label_map(classes, [control])
    assert hint
    assert f"save {label_map} as labels.json, and add --label-map labels.json" in hint
    suggested = json.loads(label_map)
    assert map_labels(classes, control, suggested) == suggested


def test_nothing_is_suggested_for_other_names() -> None:
    control = config_of("Good", "-").only("Choices")
    assert suggest_label_map(["well", "", "_", "goods"], [control]) is None
    assert "--label-map" not in " ".join(describe_unmapped(["well"], control, {}))


def test_dropped_classes_and_no_match_at_all_suggest_the_label_map() -> None:
    config = config_of("Good", "bad")
    pairs = [(config.only("Choices"), config.objects["t"])]
    head = Head("c", "t", 0, 0, ("bad", "good"), False)
    dropped, unknown = bind_trained_heads(ChoicesBinding(config), pairs, [head]).notes
    assert dropped.startswith("Dropped 1 of the model's 2 classes")
    assert dropped.endswith('save {"good": "Good"} as labels.json, and add --label-map labels.json.')
    assert unknown.endswith(": Good.")
    with pytest.raises(LabelMismatch, match="no label in common") as caught:
        bind_trained_heads(ChoicesBinding(config), pairs, [Head("c", "t", 0, 0, ("BAD", "GOOD"), False)])
    assert 'save {"BAD": "bad", "GOOD": "Good"} as labels.json' in (caught.value.hint or "")


def test_unknown_class_in_a_label_map_gets_a_suggestion(tmp_path: Path) -> None:
    (tmp_path / "map.json").write_text('{"Good": "bad"}')
    (tmp_path / "config.xml").write_text(config_of("bad", "good").xml)
    (tmp_path / "tasks.json").write_text('[{"t": "x"}]')
    options = ["-m", "text-classifier", "-c", "config.xml", "--label-map", "map.json"]
    run = run_in_process("predict", "tasks.json", *options, cwd=tmp_path)
    assert "no class Good, which the label map names. Did you mean 'good'? It has: good, bad." in run.stderr


def test_unknown_label_in_a_label_map_gets_a_suggestion(tmp_path: Path) -> None:
    (tmp_path / "map.json").write_text('{"x": "godo"}')
    (tmp_path / "config.xml").write_text(config_of("bad", *(f"label {i}" for i in range(200)), "good").xml)
    (tmp_path / "tasks.json").write_text('[{"t": "x"}]')
    options = ["-m", "text-classifier", "-c", "config.xml", "--label-map", "map.json"]
    run = run_in_process("predict", "tasks.json", *options, cwd=tmp_path)
    assert run.returncode == 2
    assert "names 'godo'" in run.stderr
    assert "Did you mean 'good'?" in run.stderr
    assert "label 199" not in run.stderr
