"""A server that plays the part of Label Studio's API that pull and push use, from memory, with faults on demand.

What it does was seen on a real one, which the slow suite has: no deduplication, invalid predictions dropped in silence,
an unknown task that costs a whole call, versions found by a part of their name in any case.
"""

from __future__ import annotations

import json
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit

from tests.helpers.studio_server import KEY, make_jwt

CONFIG = """<View><Text name="text" value="$text"/><Choices name="kind" toName="text">
<Choice value="ham"/><Choice value="spam"/></Choices></View>"""


class StubProject:
    """Project 3 of a Label Studio.

    faults    one for each request that changes something, in turn: "cut" (handled, then the
              connection breaks), "cut before" (not handled), "lost" (handled a second after the connection broke), a
              number (answered so, not handled), "500 after" (handled, then 500), "slow" (answered after two seconds)
    drops     ids of the tasks whose predictions are left out in silence
    asked     (method, path without query, number of items in the body)
    """

    def __init__(self, url: str) -> None:
        self.url = url
        self.lock = threading.RLock()
        self.config = CONFIG
        self.tasks: dict[int, dict[str, Any]] = {}
        self.predictions: list[dict[str, Any]] = []
        self.views: dict[int, dict[str, Any]] = {}
        self.model_version = ""
        self.faults: list[str] = []
        self.dropped_task_ids: set[int] = set()
        self.requests: list[tuple[str, str, int]] = []
        self.expired_token_count = 0  # access tokens that are refused first
        self.max_body_bytes = 1 << 30
        self.next_id = 1
        self.pending: list[threading.Thread] = []

    def add_tasks(self, count: int) -> list[int]:
        """New tasks, with gaps between their ids."""
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
        found = {"id": self.next_id, "task": task, "model_version": version, "result": result or [], "score": score}
        self.predictions.append(found)
        return self.next_id

    def count_predictions(self, version: str) -> Counter[int]:
        """How many predictions of a version each task has."""
        with self.lock:
            return Counter(each["task"] for each in self.predictions if each["model_version"] == version)

    # --- the API

    def respond(self, method: str, path: str, query: dict[str, list[str]], body: Any) -> tuple[int, Any]:
        with self.lock:
            where = path.rstrip("/")
            if where == "/api/tasks":
                return self._list_tasks(query)
            if where.startswith("/api/dm/views/"):
                view = self.views.get(int(where.rsplit("/", 1)[1]))
                return (200, view) if view else (404, {"detail": "Not found."})
            if where.startswith("/api/predictions/"):
                return self._delete_prediction(int(where.rsplit("/", 1)[1]))
            if not where.startswith("/api/projects/3"):
                return 404, {"detail": "Not found."}
            return self._project(method, where.removeprefix("/api/projects/3"), query, body)

    def _project(self, method: str, rest: str, query: dict[str, list[str]], body: Any) -> tuple[int, Any]:
        if rest == "" and method == "PATCH":
            self.model_version = body["model_version"]
            return 200, {}
        if rest == "":
            fields = {"id": 3, "label_config": self.config, "task_number": len(self.tasks)}
            return 200, fields | {"model_version": self.model_version, "show_collab_predictions": True}
        if rest == "/model-versions" and method == "DELETE":
            kept = [each for each in self.predictions if each["model_version"] != body["model_version"]]
            gone, self.predictions = len(self.predictions) - len(kept), kept
            self.model_version = "" if self.model_version == body["model_version"] else self.model_version
            return 200, {"deleted_predictions": gone}
        if rest == "/model-versions":
            counts = Counter(each["model_version"] for each in self.predictions)
            return 200, {"static": [{"model_version": name, "count": count} for name, count in counts.items()]}
        if rest == "/export":
            ids = [int(each) for each in query["ids[]"]]
            return 200, [self._to_export_task(self.tasks[each]) for each in reversed(ids) if each in self.tasks]
        if rest == "/import/predictions":
            return self._import_predictions(body)
        assert rest == "/import", rest
        return self._import_tasks(body)

    def _import_predictions(self, body: list[dict[str, Any]]) -> tuple[int, Any]:
        for item in body:
            assert set(item) == {"task", "result", "score", "model_version"}
            if item["task"] not in self.tasks:
                return 400, {"detail": "Validation error", "validation_errors": [f"no task {item['task']}"]}
        taken = [item for item in body if item["task"] not in self.dropped_task_ids]
        for item in taken:
            self.add_prediction(item["task"], item["model_version"], item["result"], item["score"])
        return 201, {"created": len(taken)}

    def _import_tasks(self, body: list[dict[str, Any]]) -> tuple[int, Any]:
        for task in body:
            assert "id" not in task
            assert "annotations" not in task
            number = self.add_task(task["data"])
            for each in task["predictions"]:
                self.add_prediction(number, each["model_version"], each["result"], each["score"])
        return 201, {"task_count": len(body), "prediction_count": sum(len(task["predictions"]) for task in body)}

    def _delete_prediction(self, number: int) -> tuple[int, Any]:
        kept = [each for each in self.predictions if each["id"] != number]
        found, self.predictions = len(kept) < len(self.predictions), kept
        return (204, None) if found else (404, {"detail": "Not found."})

    def _list_tasks(self, query: dict[str, list[str]]) -> tuple[int, Any]:
        if query["project"] != ["3"]:
            return 404, {"detail": "Not found."}
        asked = json.loads(query["query"][0])
        assert query["resolve_uri"] == ["false"]
        assert asked["ordering"] == ["tasks:id"]
        join = any if asked["filters"]["conjunction"] == "or" else all
        found = [
            task
            for _, task in sorted(self.tasks.items())
            if join(self._matches_filter(task, item) for item in asked["filters"]["items"])
        ]
        size, number = int(query["page_size"][0]), int(query["page"][0])
        page = found[size * (number - 1) : size * number]
        shown = [self._select_fields(task, query) for task in page]
        return 200, {"total": len(found), "tasks": shown}

    def _select_fields(self, task: dict[str, Any], query: dict[str, list[str]]) -> dict[str, Any]:
        if query["fields"] == ["all"]:
            return task | {"predictions": self._predictions_of(task)}
        light = {key: value for key, value in task.items() if key not in ("annotations", "drafts")}
        return {name: light[name] for name in query["include"][0].split(",") if name in light}

    def _to_export_task(self, task: dict[str, Any]) -> dict[str, Any]:
        return task | {"predictions": [each["id"] for each in self._predictions_of(task)]}

    def _predictions_of(self, task: dict[str, Any]) -> list[dict[str, Any]]:
        return [each for each in self.predictions if each["task"] == task["id"]]

    def _matches_filter(self, task: dict[str, Any], item: dict[str, Any]) -> bool:
        column, operator, value = item["filter"].removeprefix("filter:tasks:"), item["operator"], item["value"]
        if column == "predictions_model_versions":
            versions = [each["model_version"].lower() for each in self._predictions_of(task)]
            if operator == "empty":
                return not versions
            return any(value[0].lower() in version for version in versions)
        counted = {
            "total_annotations": sum(not each.get("was_cancelled") for each in task["annotations"]),
            "total_predictions": len(self._predictions_of(task)),
        }
        mine = counted[column] if column in counted else task[column]
        tests: dict[str, Callable[[], bool]] = {
            "greater": lambda: mine > value,
            "greater_or_equal": lambda: mine >= value,
            "equal": lambda: mine == value,
            "less": lambda: mine < value,
            "in": lambda: value["min"] <= mine <= value["max"],
            "in_list": lambda: mine in value,
        }
        return tests[operator]()


@contextmanager
def run_stub_project() -> Iterator[StubProject]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            self.handle_one()

        do_POST = do_PATCH = do_DELETE = do_GET

        def handle_one(self) -> None:
            where = urlsplit(self.path)
            raw = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            body = json.loads(raw) if raw else None
            state.requests.append((self.command, where.path, len(body) if isinstance(body, list) else 0))
            if where.path == "/api/token/refresh/":
                return self.reply(200, {"access": make_jwt("access")})
            sent = self.headers.get("Authorization", "")
            if sent.startswith("Bearer ") and state.expired_token_count:
                state.expired_token_count -= 1
                return self.reply(401, {"detail": "Given token not valid for any token type"})
            if sent != f"Token {KEY}" and not sent.startswith("Bearer "):
                return self.reply(401, {"detail": "Invalid token."})
            if len(raw) > state.max_body_bytes:
                return self.reply(413, None)
            changes = self.command != "GET"
            fault = state.faults.pop(0) if changes and state.faults else ""
            if fault == "cut before":
                return self.cut()
            if fault.isdigit():
                return self.reply(int(fault), {"detail": "as the test wants it"})
            query = parse_qs(where.query)
            if fault == "lost":
                late = threading.Timer(1.0, state.respond, (self.command, where.path, query, body))
                late.start()
                state.pending.append(late)
                return self.cut()
            status, answer = state.respond(self.command, where.path, query, body)
            if fault == "cut":
                return self.cut()
            if fault == "500 after":
                return self.reply(500, {"detail": "db_predictions"})
            if fault == "slow":
                time.sleep(2)
            return self.reply(status, answer)

        def cut(self) -> None:
            self.close_connection = True
            self.connection.close()

        def reply(self, status: int, answer: Any) -> None:
            content = b"" if answer is None else json.dumps(answer).encode()
            self.send_response(status)
            if status == 429:
                self.send_header("Retry-After", "0.2")
            if status == 302:
                self.send_header("Location", "https://elsewhere.example/")
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *_: object) -> None:
            pass

    class Server(ThreadingHTTPServer):
        def handle_error(self, request: Any, client_address: Any) -> None:
            pass  # a client that was killed

    server = Server(("127.0.0.1", 0), Handler)
    state = StubProject(f"http://127.0.0.1:{server.server_address[1]}")
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    try:
        yield state
    finally:
        for late in state.pending:
            late.join()
        server.shutdown()
        server.server_close()
        thread.join()
