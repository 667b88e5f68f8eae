"""What a real Label Studio 1.23.2 sent to an ML backend, recorded, is sent to `lsml serve` again."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from label_studio_sdk.label_interface.interface import LabelInterface

from tests.helpers.cli import ROOT, SHARED_DATA
from tests.helpers.serve_process import Server, ServerFactory, send_request

RECORDED = sorted((SHARED_DATA / "protocol").glob("*.json"))
OPTIONS = ("--model", f"{ROOT / 'tests' / 'helpers' / 'server_models.py'}:Anything")


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("replay")
    started = ServerFactory(folder)
    yield started(*OPTIONS)
    started.close()


def calls(path: Path) -> list[dict[str, Any]]:
    """The requests of one recording that were kept in full."""
    recorded = json.loads(path.read_text("utf-8")).get("ml_backend_calls") or []
    return [call["request"] for call in recorded if "headers" in call["request"]]


def test_there_is_something_to_replay(shared_data: Path) -> None:
    assert sum(len(calls(path)) for path in RECORDED) > 150


@pytest.mark.parametrize("path", [path for path in RECORDED if calls(path)], ids=lambda path: path.stem)
def test_a_recorded_exchange(server: Server, path: Path) -> None:
    version = server.request_ok("GET", "/health")["model_version"]
    for call in calls(path):
        skipped = ("Host", "Content-Length", "Authorization", "Accept-Encoding", "Connection")
        headers = {name: value for name, value in call["headers"].items() if name not in skipped}
        status, answer = send_request(call["method"], server.root + call["path"], call.get("body"), headers)
        if call["path"] == "/a/b/health":
            assert status == 404  # nothing was served below /a/b, then as now
            continue
        body = call.get("body") or {}
        if body.get("action") == "START_TRAINING":
            assert (status, answer["detail"][:16]) == (409, "Training is off:")
            continue
        assert 200 <= status < 300, answer
        if call["path"] == "/health":
            assert answer["status"] == "UP"
        elif call["path"] == "/setup":
            assert answer["model_version"] == version
        elif call["path"] == "/versions":
            assert answer["versions"] == [version]
        elif call["path"] == "/predict":
            require_storable(body, answer, version)


def require_storable(body: dict[str, Any], answer: dict[str, Any], version: str) -> None:
    """What Label Studio needs to store every prediction, by the rules of its own validation."""
    assert len(answer["results"]) == len(body["tasks"])
    interface = LabelInterface(body["label_config"])
    for prediction in answer["results"]:
        assert prediction["model_version"] == version
        assert interface.validate_prediction(prediction, return_errors=True) == []
        if "<Choices" in body["label_config"]:
            assert prediction["result"]
