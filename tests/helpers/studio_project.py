"""A fake of the part of Label Studio's API that pull and push use, from memory, with faults on demand.

It behaves like the real one, which the slow suite has: it does not deduplicate, drops invalid predictions silently,
rejects a whole request over one unknown task, and finds versions by a part of their name, ignoring case.
"""

from __future__ import annotations

import json
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from urllib.parse import parse_qs, urlsplit

from tests.helpers.stub_http import KEY, StubHandler, make_jwt, run_server

CONFIG = """<View><Text name="text" value="$text"/><Choices name="kind" toName="text">
<Choice value="ham"/><Choice value="spam"/></Choices></View>"""


class StubProject:
    """Project 3 of a Label Studio.

    Attributes:
        faults: One for each mutating request, in turn: "cut" (handled, then the connection breaks), "cut before" (not
            handled), "lost" (handled `lost_delay` after the connection broke), a status (sent, not handled),
            "500 after" (handled, then 500) and so on, "slow" (answered after two seconds).
        lost_delay: Seconds until a "lost" request is handled.
        backends: Titles of the connected ML backends.
        dropped_task_ids: Tasks whose predictions are dropped silently.
        requests: (method, path without query, number of items in the body).
        expired_token_count: Access tokens that are rejected first.
        late_requests: Timers of the requests that are handled after their connection broke.
    """

    def __init__(self, url: str) -> None:
        self.url = url
        self.lock = threading.RLock()
        self.config = CONFIG
        self.tasks: dict[int, dict[str, Any]] = {}
        self.predictions: list[dict[str, Any]] = []
        self.views: dict[int, dict[str, Any]] = {}
        self.model_version = ""
        self.backends: set[str] = set()
        self.faults: list[str] = []
        self.lost_delay = 1.0
        self.dropped_task_ids: set[int] = set()
        self.requests: list[tuple[str, str, int]] = []
        self.expired_token_count = 0
        self.max_body_bytes = 1 << 30
        self.next_id = 1
        self.late_requests: list[threading.Thread] = []

    def add_tasks(self, count: int) -> list[int]:
        """Add tasks with gaps between their ids; return the ids."""
        return [self.add_task({"text": f"message {n}"}) for n in range(count)]

    def add_task(self, data: dict[str, Any], **fields: Any) -> int:
        number = 10 + 3 * len(self.tasks)
        self.tasks[number] = {
            "id": number,
            "data": data,
            "meta": {},
            "annotations": [],
            "drafts": [],
            "updated_at": "2026-11-01T00:00:00.000000Z",
            **fields,
        }
        return number

    def add_prediction(self, task: int, version: str, result: Any = None, score: float | None = 0.5) -> int:
        self.next_id += 1
        self.predictions.append(
            {"id": self.next_id, "task": task, "model_version": version, "result": result or [], "score": score}
        )
        return self.next_id

    def count_predictions(self, version: str) -> Counter[int]:
        """Count the predictions of a version by task."""
        with self.lock:
            return Counter(stored["task"] for stored in self.predictions if stored["model_version"] == version)

    # --- the API

    def respond(self, method: str, path: str, query: dict[str, list[str]], body: Any) -> tuple[int, Any]:
        with self.lock:
            path = path.rstrip("/")
            if path == "/api/tasks":
                return self._list_tasks(query)
            if path.startswith("/api/dm/views/"):
                view = self.views.get(int(path.rsplit("/", 1)[1]))
                return (200, view) if view else (404, {"detail": "Not found."})
            if path.startswith("/api/predictions/"):
                return self._delete_prediction(int(path.rsplit("/", 1)[1]))
            if not path.startswith("/api/projects/3"):
                return 404, {"detail": "Not found."}
            return self._project(method, path.removeprefix("/api/projects/3"), query, body)

    def _project(self, method: str, rest: str, query: dict[str, list[str]], body: Any) -> tuple[int, Any]:
        if rest == "" and method == "PATCH":
            self.model_version = body["model_version"]
            return 200, {}
        if rest == "":
            fields = {"id": 3, "label_config": self.config, "task_number": len(self.tasks)}
            return 200, fields | {"model_version": self.model_version, "show_collab_predictions": True}
        if rest == "/model-versions" and method == "DELETE":
            kept = [stored for stored in self.predictions if stored["model_version"] != body["model_version"]]
            deleted, self.predictions = len(self.predictions) - len(kept), kept
            if self.model_version in {body["model_version"], *self.backends}:
                self.model_version = ""
            return 200, {"deleted_predictions": deleted}
        if rest == "/model-versions":
            counts = Counter(stored["model_version"] for stored in self.predictions)
            return 200, {"static": [{"model_version": name, "count": count} for name, count in counts.items()]}
        if rest == "/export":
            ids = [int(text) for text in query["ids[]"]]
            return 200, [self._to_export_task(self.tasks[id]) for id in reversed(ids) if id in self.tasks]
        if rest == "/import/predictions":
            return self._import_predictions(body)
        assert rest == "/import", rest
        return self._import_tasks(body)

    def _import_predictions(self, body: list[dict[str, Any]]) -> tuple[int, Any]:
        for item in body:
            assert set(item) == {"task", "result", "score", "model_version"}
            if item["task"] not in self.tasks:
                return 400, {"detail": "Validation error", "validation_errors": [f"no task {item['task']}"]}
        accepted = [item for item in body if item["task"] not in self.dropped_task_ids]
        for item in accepted:
            self.add_prediction(item["task"], item["model_version"], item["result"], item["score"])
        return 201, {"created": len(accepted)}

    def _import_tasks(self, body: list[dict[str, Any]]) -> tuple[int, Any]:
        for task in body:
            assert "id" not in task
            assert "annotations" not in task
            number = self.add_task(task["data"])
            for prediction in task["predictions"]:
                self.add_prediction(number, prediction["model_version"], prediction["result"], prediction["score"])
        return 201, {"task_count": len(body), "prediction_count": sum(len(task["predictions"]) for task in body)}

    def _delete_prediction(self, number: int) -> tuple[int, Any]:
        kept = [stored for stored in self.predictions if stored["id"] != number]
        existed, self.predictions = len(kept) < len(self.predictions), kept
        return (204, None) if existed else (404, {"detail": "Not found."})

    def _list_tasks(self, query: dict[str, list[str]]) -> tuple[int, Any]:
        if query["project"] != ["3"]:
            return 404, {"detail": "Not found."}
        selection = json.loads(query["query"][0])
        assert query["resolve_uri"] == ["false"]
        assert selection["ordering"] == ["tasks:id"]
        combine = any if selection["filters"]["conjunction"] == "or" else all
        matching = [
            task
            for _, task in sorted(self.tasks.items())
            if combine(self._matches_filter(task, item) for item in selection["filters"]["items"])
        ]
        size, number = int(query["page_size"][0]), int(query["page"][0])
        page = matching[size * (number - 1) : size * number]
        return 200, {"total": len(matching), "tasks": [self._select_fields(task, query) for task in page]}

    def _select_fields(self, task: dict[str, Any], query: dict[str, list[str]]) -> dict[str, Any]:
        if query["fields"] == ["all"]:
            return task | {"predictions": self._predictions_of(task)}
        light = {key: value for key, value in task.items() if key not in ("annotations", "drafts")}
        return {name: light[name] for name in query["include"][0].split(",") if name in light}

    def _to_export_task(self, task: dict[str, Any]) -> dict[str, Any]:
        return task | {"predictions": [stored["id"] for stored in self._predictions_of(task)]}

    def _predictions_of(self, task: dict[str, Any]) -> list[dict[str, Any]]:
        return [stored for stored in self.predictions if stored["task"] == task["id"]]

    def _matches_filter(self, task: dict[str, Any], item: dict[str, Any]) -> bool:
        column, operator, value = item["filter"].removeprefix("filter:tasks:"), item["operator"], item["value"]
        if column == "predictions_model_versions":
            versions = [stored["model_version"].lower() for stored in self._predictions_of(task)]
            if operator == "empty":
                return not versions
            return any(value[0].lower() in version for version in versions)
        counts = {
            "total_annotations": sum(not stored.get("was_cancelled") for stored in task["annotations"]),
            "total_predictions": len(self._predictions_of(task)),
        }
        actual = counts[column] if column in counts else task[column]
        operators: dict[str, Callable[[], bool]] = {
            "greater": lambda: actual > value,
            "greater_or_equal": lambda: actual >= value,
            "equal": lambda: actual == value,
            "less": lambda: actual < value,
            "in": lambda: value["min"] <= actual <= value["max"],
            "in_list": lambda: actual in value,
        }
        return operators[operator]()


class _ProjectHandler(StubHandler[StubProject]):
    def handle_request(self) -> None:
        url = urlsplit(self.path)
        raw = self.read_body()
        body = json.loads(raw) if raw else None
        self.state.requests.append((self.command, url.path, len(body) if isinstance(body, list) else 0))
        if url.path == "/api/token/refresh/":
            return self.reply(200, {"access": make_jwt("access")})
        authorization = self.authorization or ""
        if authorization.startswith("Bearer ") and self.state.expired_token_count:
            self.state.expired_token_count -= 1
            return self.reply(401, {"detail": "Given token not valid for any token type"})
        if authorization != f"Token {KEY}" and not authorization.startswith("Bearer "):
            return self.reply(401, {"detail": "Invalid token."})
        if len(raw) > self.state.max_body_bytes:
            return self.reply(413, None)
        return self.handle_with_fault(url.path, parse_qs(url.query), body)

    def handle_with_fault(self, path: str, query: dict[str, list[str]], body: Any) -> None:
        state = self.state
        fault = state.faults.pop(0) if self.command != "GET" and state.faults else ""
        if fault == "cut before":
            return self.cut()
        if fault.isdigit():
            return self.reply(int(fault), {"detail": "as the test wants it"})
        if fault == "lost":
            timer = threading.Timer(state.lost_delay, state.respond, (self.command, path, query, body))
            timer.start()
            state.late_requests.append(timer)
            return self.cut()
        status, response = state.respond(self.command, path, query, body)
        if fault == "cut":
            return self.cut()
        if fault.endswith(" after"):
            return self.reply(int(fault.removesuffix(" after")), {"detail": "db_predictions"})
        if fault == "slow":
            time.sleep(2)
        return self.reply(status, response)

    def cut(self) -> None:
        self.close_connection = True
        self.connection.close()

    def reply(self, status: int, response: Any) -> None:
        headers = {429: {"Retry-After": "0.2"}, 302: {"Location": "https://elsewhere.example/"}}
        self.send_body(status, b"" if response is None else json.dumps(response).encode(), headers.get(status))


@contextmanager
def run_stub_project() -> Iterator[StubProject]:
    """Run a `StubProject`."""
    with run_server(_ProjectHandler, StubProject) as project:
        yield project
        for timer in project.late_requests:
            timer.join()
