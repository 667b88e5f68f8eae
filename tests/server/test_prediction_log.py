"""The log of `lsml serve` about predictions."""

from __future__ import annotations

import logging

import pytest

from lsml_cli.schema.predictions import Failure
from lsml_cli.server.prediction_log import log_unpredicted_tasks
from lsml_cli.server.requests import PredictRequest
from lsml_cli.server.task_codec import FailedTask, RequestTask


def test_failed_tasks_of_a_request_are_logged_by_cause(caplog: pytest.LogCaptureFixture) -> None:
    results = [FailedTask(i, Failure("fetch", f"images/{i}.png: no such file")) for i in range(46)]
    results.append(FailedTask(None, Failure("forward", "out of luck")))
    request = PredictRequest([RequestTask(i, b"{}") for i in range(47)], None, 3, is_interactive=False)
    with caplog.at_level(logging.WARNING, "lsml.serve"):
        log_unpredicted_tasks(results, request, 47, 10.0, "v1")
    assert caplog.messages == [
        "Project 3: 46 tasks, such as task 0, failed (fetch): images/0.png: no such file",
        "Project 3: task at position 47, without an id, failed (forward): out of luck",
        f"Project 3: all 47 tasks that failed: {', '.join(map(str, range(46)))}, None",
    ]
