"""Replay requests that a real Label Studio 1.23.2 sent to an ML backend."""

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
    factory = ServerFactory(tmp_path_factory.mktemp("replay"))
    yield factory(*OPTIONS)
    factory.close()


def recorded_requests(path: Path) -> list[dict[str, Any]]:
    """Return the requests of one recording that were stored in full."""
    calls = json.loads(path.read_text("utf-8")).get("ml_backend_calls") or []
    return [call["request"] for call in calls if "headers" in call["request"]]


def test_recordings_exist(shared_data: Path) -> None:
    assert sum(len(recorded_requests(path)) for path in RECORDED) > 150


@pytest.mark.parametrize("path", [path for path in RECORDED if recorded_requests(path)], ids=lambda path: path.stem)
def test_recorded_requests_get_valid_answers(server: Server, path: Path) -> None:
    version = server.request_ok("GET", "/health")["model_version"]
    for request in recorded_requests(path):
        skipped = ("Host", "Content-Length", "Authorization", "Accept-Encoding", "Connection")
        headers = {name: value for name, value in request["headers"].items() if name not in skipped}
        status, answer = send_request(request["method"], server.root + request["path"], request.get("body"), headers)
        if request["path"] == "/a/b/health":
            assert status == 404  # nothing was served below /a/b, neither then nor now
            continue
        body = request.get("body") or {}
        if body.get("action") == "START_TRAINING":
            assert (status, answer["detail"][:16]) == (409, "Training is off:")
            continue
        assert 200 <= status < 300, answer
        if request["path"] == "/health":
            assert answer["status"] == "UP"
        elif request["path"] == "/setup":
            assert answer["model_version"] == version
        elif request["path"] == "/versions":
            assert answer["versions"] == [version]
        elif request["path"] == "/predict":
            assert_storable(body, answer, version)


def assert_storable(body: dict[str, Any], answer: dict[str, Any], version: str) -> None:
    """Assert that Label Studio would store every prediction, by the rules of its own validation."""
    assert len(answer["results"]) == len(body["tasks"])
    interface = LabelInterface(body["label_config"])
    for prediction in answer["results"]:
        assert prediction["model_version"] == version
        assert interface.validate_prediction(prediction, return_errors=True) == []
        if "<Choices" in body["label_config"]:
            assert prediction["result"]
