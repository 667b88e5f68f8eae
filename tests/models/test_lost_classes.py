"""A label config that lost a class of the model: every command says the same about the same tasks."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.helpers.cli import Lsml, run_in_process
from tests.helpers.serve_process import ServerFactory

CONFIG = """<View><Text name="ticket" value="$text"/><Choices name="category" toName="ticket" choice="single">
<Choice value="Billing"/><Choice value="Delivery"/><Choice value="Returns"/><Choice value="Technical"/>
<Choice value="Account"/></Choices></View>"""  # Shipping was renamed


@pytest.fixture
def serve(tmp_path: Path) -> Iterator[ServerFactory]:
    factory = ServerFactory(tmp_path)
    yield factory
    factory.close()


def choices(prediction: dict[str, Any]) -> list[str]:
    return [label for region in prediction["result"] for label in region["value"]["choices"]]


def test_predict_evaluate_and_serve_force_no_answer(
    lsml: Lsml, serve: ServerFactory, ticket_model: Path, tmp_path: Path
) -> None:
    tasks = [
        {"id": n, "data": {"text": text}}
        for n, text in enumerate(["where is my parcel", "I was charged twice", " \n", "reset my password"])
    ]
    annotated = [
        task | {"annotations": [{"id": task["id"], "result": [choice(label)]}]}
        for task, label in zip(tasks, ["Delivery", "Billing", "Billing", "Account"], strict=True)
    ]
    (tmp_path / "config.xml").write_text(CONFIG, "utf-8")
    (tmp_path / "tasks.json").write_text(json.dumps(annotated), "utf-8")
    common: tuple[str | Path, ...] = (tmp_path / "tasks.json", "--model", ticket_model, "-c", tmp_path / "config.xml")

    run = lsml("predict", *common, "--workers", "1")
    assert run.returncode == 0, run.stderr
    predicted = [json.loads(line)["predictions"][0] for line in run.stdout.splitlines()]
    assert [choices(prediction) for prediction in predicted] == [[], ["Billing"], [], ["Account"]]
    assert [prediction["score"] is None for prediction in predicted] == [True, False, True, False]
    note = "has no label: Shipping. Where one of them is the best, nothing is predicted."
    assert run.stderr.count(note) == 1

    run = lsml("evaluate", *common, "--json", tmp_path / "metrics.json")
    assert run.returncode == 0, run.stderr
    assert json.loads((tmp_path / "metrics.json").read_bytes())["controls"]["category"]["accuracy"] == 0.5
    assert run.stderr.count(note) == 1

    server = serve("--model", ticket_model)
    for _ in range(2):
        answer = server.request_ok("POST", "/predict", {"tasks": tasks, "label_config": CONFIG, "project": "1"})
        assert [(result["result"], result["score"]) for result in answer["results"]] == [
            (prediction["result"], prediction["score"]) for prediction in predicted
        ]
    assert "\n".join(server.lines()).count(note) == 1


def choice(label: str) -> dict[str, Any]:
    return {"from_name": "category", "to_name": "ticket", "type": "choices", "value": {"choices": [label]}}


def test_prediction_with_a_single_label_to_choose_from_is_refused_with_the_reason(tmp_path: Path) -> None:
    config = CONFIG.replace('<Choice value="Billing"/><Choice value="Delivery"/><Choice value="Returns"/>', "")
    (tmp_path / "config.xml").write_text(config.replace('<Choice value="Technical"/>', ""), "utf-8")
    (tmp_path / "tasks.jsonl").write_text('{"data": {"text": "hello"}}', "utf-8")
    run = run_in_process(
        *("predict", tmp_path / "tasks.jsonl", "--model", "text-classifier", "-c", tmp_path / "config.xml"),
        *("-o", tmp_path / "out.jsonl", "--workers", "1"),
    )
    assert run.returncode == 1
    reason = '<Choices name="category"> has a single label, so there is nothing to choose from: no predictions there.'
    assert reason in " ".join(run.stderr.split())
