"""`lsml serve` as a process, over HTTP."""

from __future__ import annotations

import base64
import http.client
import json
import shutil
import signal
import socket
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.helpers.cli import EXAMPLE, ROOT, Lsml, run_in_process
from tests.helpers.models import TEXT_CONFIG
from tests.helpers.serve_process import Server, ServerFactory, wait_until

MODELS = ROOT / "tests" / "helpers" / "models.py"
SERVED = ROOT / "tests" / "helpers" / "server_models.py"


@pytest.fixture
def serve(tmp_path: Path) -> Iterator[ServerFactory]:
    """Return a function that starts servers, `serve("--model", model, …)`; they end with the test."""
    factory = ServerFactory(tmp_path)
    yield factory
    factory.close()


@pytest.fixture(scope="module")
def protected(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server with a password, shared by tests that leave no trace."""
    factory = ServerFactory(tmp_path_factory.mktemp("protected"))
    yield factory("--model", f"{MODELS}:Words", env={"LSML_BASIC_AUTH": "ann:s3cret"})
    factory.close()


@pytest.fixture(scope="module")
def fragile(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server whose model fails as tasks say, shared by tests that leave no trace."""
    factory = ServerFactory(tmp_path_factory.mktemp("fragile"))
    yield factory("--model", f"{MODELS}:Fragile")
    factory.close()


def make_tasks(count: int, first: int = 1, **data: Any) -> list[dict[str, Any]]:
    return [{"id": first + n, "data": {"text": "a few words " * (n % 4), **data}} for n in range(count)]


def make_body(
    tasks: list[Any], config: str = TEXT_CONFIG, project: str = "1.17", context: Any = None
) -> dict[str, Any]:
    params = {"login": None, "password": None, "context": context}
    return {"tasks": tasks, "project": project, "label_config": config, "params": params}


def predict(server: Server, tasks: list[Any], **options: Any) -> list[dict[str, Any]]:
    answer = server.request_ok("POST", "/predict", make_body(tasks, **options))
    assert len(answer["results"]) == len(tasks)
    return list(answer["results"])


def choices(results: list[dict[str, Any]]) -> list[str | None]:
    return [result["result"][0]["value"]["choices"][0] if result else None for result in results]


# Results


def test_results_match_tasks_in_number_order_and_announced_version(fragile: Server) -> None:
    version = fragile.request_ok("POST", "/setup", {"project": "1.17", "schema": TEXT_CONFIG})["model_version"]
    results = predict(fragile, make_tasks(200))
    assert choices(results) == ["short" if n % 4 < 2 else "long" for n in range(200)]
    assert {result["model_version"] for result in results} == {version}
    assert fragile.request_ok("GET", "/versions")["versions"] == [version]
    assert fragile.request_ok("GET", "/")["status"] == fragile.request_ok("GET", "/health")["status"] == "UP"
    assert predict(fragile, []) == []


@pytest.mark.parametrize(
    ("do", "stage", "reason"),
    [
        ("raise in encode", "encode", "this one cannot be encoded"),
        ("raise in forward", "forward", "RuntimeError: out of luck"),
        ("lose one", "forward", "the model returned 0 outputs for 1 inputs"),
        ("raise in decode", "decode", "KeyError: 'label'"),
        ("return a dict", "decode", "the model's decode returned an object, expected a Prediction"),
        ("unknown label", "check", "huge"),
        ("die", "forward", "the model's process died: killed by SIGKILL"),
    ],
)
def test_failing_task_does_not_affect_others(fragile: Server, do: str, stage: str, reason: str) -> None:
    tasks = make_tasks(100)
    tasks[42] = {"id": 4711, "data": {"text": "hello", "do": do}}
    results = predict(fragile, tasks)
    assert results[42] == {}
    assert all(results[:42] + results[43:])
    line = next(line for line in reversed(fragile.lines()) if "task 4711 failed" in line)
    assert f"({stage})" in line
    assert reason in line
    assert "Traceback" not in "\n".join(fragile.lines())


def test_invalid_task_gets_empty_result(fragile: Server) -> None:
    invalid: list[Any] = [None, 5, [], "text", {}, {"id": 7}, {"id": 8, "data": None}, {"id": 9, "data": {}}]
    results = predict(fragile, [*invalid, *make_tasks(1)])
    assert results[:-1] == [{}] * len(invalid)
    assert results[-1]


def test_prediction_without_regions_is_returned(fragile: Server) -> None:
    (result,) = predict(fragile, make_tasks(1, do="nothing"))
    assert result["result"] == []
    assert result["model_version"]


def test_ten_thousand_tasks_in_one_request(fragile: Server) -> None:
    results = predict(fragile, make_tasks(10_000))
    assert choices(results[:4]) == ["short", "short", "long", "long"]
    assert all(results)


def test_lone_surrogates_are_replaced(fragile: Server) -> None:
    """Label Studio sends texts that were cut in the middle of an emoji."""
    tasks = make_tasks(5)
    tasks[1]["data"]["text"] = "\ud83d"
    tasks[2] = {"id": 4712, "data": {"text": "cut \ud83d", "do": "raise in encode", "large": 2**70}}
    tasks[3] = {"id": 4713, "data": {"text": "cut \ud83d", "none": [[]]}}
    for _ in range(300):
        tasks[3]["data"]["none"] = [tasks[3]["data"]["none"]]
    results = predict(fragile, tasks)
    assert [bool(result) for result in results] == [True, True, False, True, True]
    assert any("task 4712 failed (encode)" in line for line in fragile.lines())
    config = TEXT_CONFIG.replace("</View>", '<Header value="\ud83d"/></View>')
    assert all(predict(fragile, tasks, config=config)[3:])
    assert fragile.request_ok("POST", "/setup", {"project": "1.1", "schema": config})["model_version"]
    for invalid_body in ({"tasks": [], "project": "\ud83d"}, {"tasks": [], "label_config": ["\ud83d"]}, ["\ud83d"]):
        assert fragile.request("POST", "/predict", invalid_body)[0] == 400
    assert not any("bug" in line for line in fragile.lines())


@pytest.mark.parametrize("body", [b"{", b'{"tasks": ["\\ud83d", NaN]}', b'{"tasks": ["\\ud83d"', b"\xff"])
def test_invalid_json_is_rejected_and_logged(fragile: Server, body: bytes) -> None:
    connection = http.client.HTTPConnection(fragile.root.removeprefix("http://"), timeout=10)
    connection.request("POST", "/predict", body, {"Content-Type": "application/json"})
    response = connection.getresponse()
    assert response.status == 400
    assert json.loads(response.read())["detail"].startswith("the body is not JSON: ")
    connection.close()
    assert " /predict: the body is not JSON: " in fragile.lines()[-1]


@pytest.mark.parametrize(
    ("path", "body", "message"),
    [
        ("/predict", {}, '"tasks" is null, expected a list of tasks.'),
        ("/predict", [], "the body is a list, expected an object."),
        ("/predict", {"tasks": [{}]}, '"label_config" is missing, and the model has none stored.'),
        ("/predict", {"tasks": [{}], "label_config": "<View"}, "The label config is not well-formed XML"),
        ("/predict", {"tasks": [{}], "label_config": TEXT_CONFIG, "project": "../1"}, '"project" is a string'),
        ("/predict", {"tasks": [], "label_config": 5}, '"label_config" is a number (5), expected labelling XML.'),
        ("/setup", {"project": {}}, '"project" is an object, expected a project\'s id.'),
        ("/webhook", {}, '"action" is null, expected the name of an event.'),
        ("/train", {}, "Training is off"),
    ],
)
def test_invalid_body_is_rejected_with_the_reason(fragile: Server, path: str, body: object, message: str) -> None:
    status, answer = fragile.request("POST", path, body)
    assert status in (400, 409)
    assert message in answer["detail"]


def test_setup_rejects_label_config_that_the_model_cannot_fill(serve: ServerFactory, ticket_model: Path) -> None:
    server = serve("--model", ticket_model)
    status, answer = server.request("POST", "/setup", {"project": "1.17", "schema": TEXT_CONFIG.replace("size", "s")})
    assert status == 400
    assert "short" in answer["detail"]
    assert "Billing" in answer["detail"]
    assert answer["detail"] in "\n".join(server.lines())  # Label Studio does not show error bodies
    assert server.request_ok("POST", "/setup", {"project": "1.17", "schema": "<View></View>"})["model_version"]


def test_interactive_context_reaches_the_model(serve: ServerFactory) -> None:
    server = serve("--model", f"{SERVED}:Attentive")
    assert choices(predict(server, make_tasks(1), context={"size": "long"})) == ["long"]
    assert choices(predict(server, make_tasks(1))) == ["short"]


def test_projects_have_separate_label_configs(serve: ServerFactory) -> None:
    server = serve("--model", "text-classifier")
    colours = TEXT_CONFIG.replace("short", "red").replace("long", "blue")
    with ThreadPoolExecutor(8) as pool:
        answers = [
            pool.submit(predict, server, make_tasks(5, text="a few words"), config=config, project=project)
            for config, project in [(TEXT_CONFIG, "1.1"), (colours, "2.1")] * 8
        ]
    for number, answer in enumerate(answers):
        assert set(choices(answer.result())) <= ({"red", "blue"} if number % 2 else {"short", "long"})


# Batches


def test_requests_share_batches_and_single_task_is_not_delayed_by_large_request(
    serve: ServerFactory, tmp_path: Path
) -> None:
    diary = tmp_path / "diary"
    server = serve("--model", f"{SERVED}:Patient", "--with", f"diary={diary}", "--max-wait-ms", "200")
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda n: predict(server, make_tasks(1, first=n)), range(1, 6)))
    assert sorted(map(int, diary.read_text().split())) == [1, 2, 3, 4, 5]
    assert len(diary.read_text().splitlines()) < 5
    diary.unlink()
    with ThreadPoolExecutor(2) as pool:
        large_request = pool.submit(predict, server, make_tasks(2000, seconds=0.002))
        wait_until(
            "the large request is being predicted", lambda: diary.exists() and len(diary.read_text().splitlines()) > 3
        )
        assert all(predict(server, make_tasks(1, first=9999)))
        assert not large_request.done()
        batches = diary.read_text().splitlines()
        position = next(number for number, batch in enumerate(batches) if "9999" in batch.split())
        assert "9999" in batches[position]
        assert len(batches[position].split()) > 1  # it shares its batch with the large request
        assert len(batches) - position < 10
        assert all(large_request.result())


# Time


def test_deadline_returns_finished_results_and_caches_late_ones(serve: ServerFactory, tmp_path: Path) -> None:
    diary = tmp_path / "diary"
    server = serve(
        *("--model", f"{SERVED}:Patient", "--with", f"diary={diary}"),
        *("--deadline", "1.5", "--batch-size", "1", "--max-wait-ms", "0"),
    )
    tasks = make_tasks(20, seconds=0.25)
    started_at = time.monotonic()
    first = predict(server, tasks)
    assert time.monotonic() - started_at < 2.5
    done = sum(map(bool, first))
    assert 0 < done < 20
    assert first[:done] == [result for result in first if result]  # in order; unfinished tasks have {}
    assert any(f"{20 - done} of 20 tasks of project 1 are left" in line for line in server.lines())
    assert any("lsml predict" in line for line in server.lines())
    wait_until(
        "the running batches have finished",
        lambda: f"lsml_kept_results {done + 2}.0" in server.request_ok("GET", "/metrics"),
    )
    again = predict(server, tasks)
    assert again[:done] == first[:done]
    assert sum(map(bool, again)) > done
    predicted_ids = list(map(int, diary.read_text().split()))
    assert len(predicted_ids) == len(set(predicted_ids))  # nothing was computed twice


def test_disconnect_drops_queued_tasks_and_caches_finished_results(serve: ServerFactory, tmp_path: Path) -> None:
    diary = tmp_path / "diary"
    server = serve("--model", f"{SERVED}:Patient", "--with", f"diary={diary}", "--batch-size", "1")
    tasks = make_tasks(100, seconds=0.2)
    with pytest.raises(TimeoutError):
        server.request("POST", "/predict", make_body(tasks), timeout=2)
    wait_until("the server has noticed the disconnect", lambda: any("disconnected" in line for line in server.lines()))
    assert all(predict(server, make_tasks(1, first=1000)))  # not queued behind the other 90
    before = len(diary.read_text().split())
    assert before < 40
    assert all(predict(server, tasks[:5]))
    assert len(diary.read_text().split()) == before


def test_stuck_model_is_restarted(serve: ServerFactory) -> None:
    server = serve("--model", f"{SERVED}:Patient", "--deadline", "0.5")
    assert predict(server, make_tasks(1, seconds=60)) == [{}]
    wait_until("the model was restarted", lambda: all(predict(server, make_tasks(3))), 20)
    assert any("1 of 1 task of project 1" in line for line in server.lines())


def test_two_stuck_tasks_in_a_row_do_not_affect_others(serve: ServerFactory) -> None:
    """The second one is lost with the process that the first one blocks, is sent again, and blocks it as well."""
    server = serve("--model", f"{SERVED}:Patient", "--deadline", "0.5", "--batch-size", "1")
    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(predict, server, make_tasks(1, seconds=1000))
        time.sleep(0.3)
        second = pool.submit(predict, server, make_tasks(1, seconds=1000))
        assert first.result() == second.result() == [{}]
    wait_until("other requests are answered", lambda: all(predict(server, make_tasks(3))), 20)
    assert any("the model was stuck for 1 s, and was started again" in line for line in server.lines())
    replicas = psutil.Process(server.process.pid).children(recursive=True)
    predict(server, make_tasks(1, seconds=1000))  # SIGTERM comes while the model hangs once more
    server.process.send_signal(signal.SIGTERM)
    assert server.process.wait(20) == 0
    wait_until("its processes are gone", lambda: not any(replica.is_running() for replica in replicas))


def test_health_and_setup_answer_while_the_model_predicts(serve: ServerFactory) -> None:
    server = serve("--model", f"{SERVED}:Patient")
    with ThreadPoolExecutor(1) as pool:
        busy = pool.submit(predict, server, make_tasks(1, seconds=2))
        started_at = time.monotonic()
        for _ in range(20):
            server.request_ok("GET", "/health")
            server.request_ok("POST", "/setup", {"project": "5.17", "schema": TEXT_CONFIG})
        assert time.monotonic() - started_at < 1.5
        assert not busy.done()
        assert all(busy.result())


def test_sigterm_finishes_running_requests(serve: ServerFactory, tmp_path: Path) -> None:
    diary = tmp_path / "diary"
    server = serve("--model", f"{SERVED}:Patient", "--with", f"diary={diary}")
    replicas = psutil.Process(server.process.pid).children(recursive=True)
    with ThreadPoolExecutor(1) as pool:
        busy = pool.submit(predict, server, make_tasks(10, seconds=0.1))
        wait_until("the request is being predicted", diary.exists)
        server.process.send_signal(signal.SIGTERM)
        assert all(busy.result())
    assert server.process.wait(20) == 0
    wait_until("its processes are gone", lambda: not any(replica.is_running() for replica in replicas))
    assert server.lines()[-1].endswith("Stopped.")


def test_sigterm_does_not_wait_for_abandoned_batches(serve: ServerFactory) -> None:
    server = serve("--model", f"{SERVED}:Patient", "--deadline", "60")
    replicas = psutil.Process(server.process.pid).children(recursive=True)
    with pytest.raises(TimeoutError):
        server.request("POST", "/predict", make_body(make_tasks(1, seconds=1000)), timeout=2)
    wait_until("the server has noticed the disconnect", lambda: any("disconnected" in line for line in server.lines()))
    server.process.send_signal(signal.SIGTERM)
    assert server.process.wait(20) == 0
    wait_until("its processes are gone", lambda: not any(replica.is_running() for replica in replicas))


def test_ctrl_c_exits_with_130(serve: ServerFactory) -> None:
    server = serve("--model", f"{MODELS}:Words")
    server.process.send_signal(signal.SIGINT)
    assert server.process.wait(20) == 130
    assert server.lines()[-1] == "lsml: Stopped."


# Limits


def send_endlessly(connection: socket.socket, chunk: bytes) -> None:
    while True:
        connection.sendall(chunk)


def test_too_large_or_endless_body_is_rejected(serve: ServerFactory) -> None:
    server = serve("--model", f"{MODELS}:Words", "--max-body", "1")
    assert server.request("POST", "/predict", make_body(make_tasks(20_000)))[0] == 413
    host, port = server.root.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=20) as endless:
        endless.sendall(b"POST /predict HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n")
        chunk = b"10000\r\n" + b" " * 0x10000 + b"\r\n"
        with pytest.raises((BrokenPipeError, ConnectionResetError)):
            send_endlessly(endless, chunk * 100)
    assert all(predict(server, make_tasks(3)))


def test_tasks_beyond_max_tasks_get_no_result(serve: ServerFactory) -> None:
    server = serve("--model", f"{MODELS}:Words", "--max-tasks", "5")
    assert [bool(result) for result in predict(server, make_tasks(8))] == [True] * 5 + [False] * 3
    assert any("the last 3 are left" in line for line in server.lines())


# Access


def test_basic_auth(serve: ServerFactory) -> None:
    server = serve("--model", f"{MODELS}:Words", env={"LSML_BASIC_AUTH": "ann:s3cret"})
    for route in ("/health", "/versions", "/metrics", "/docs", "/openapi.json"):
        assert server.request("GET", route)[0] == 401
        assert server.request("GET", route, basic_auth="ann:s3cre")[0] == 401
        assert server.request("GET", route, basic_auth="ann:s3cret")[0] == 200
    assert server.request("POST", "/webhook", {"action": "ANNOTATION_CREATED"})[0] == 401
    assert "s3cret" not in server.log.read_text()


def test_secret_path_admits_events_without_password_only(serve: ServerFactory) -> None:
    secret = "a/quiet-place"
    server = serve(
        *("--model", f"{MODELS}:Words", "--basic-auth", "ann:s3cret", "--secret-path", secret), *("--max-body", "1")
    )
    outside = Server(server.process, server.log, server.root, "")
    assert outside.request("GET", "/health", basic_auth="ann:s3cret")[0] == 404
    assert server.request("POST", "/setup", {"schema": "<View"}, basic_auth="ann:s3cret")[0] == 400
    assert server.request("POST", "/setup", {"schema": 5}, basic_auth="ann:s3cret")[0] == 400
    assert server.request("POST", "/setup", {"schema": "x" * (2 << 20)}, basic_auth="ann:s3cret")[0] == 413
    assert sum(" /setup: " in line for line in server.lines()) == 3
    assert server.request("POST", "/webhook", {"action": "ANNOTATION_CREATED", "project": {"id": 1}})[0] == 200
    assert server.request("POST", "/webhook", {"action": "START_TRAINING", "project": {"id": 1}})[0] == 401
    assert server.request("GET", "/health")[0] == 401
    assert server.request_ok("GET", "/health", basic_auth="ann:s3cret")["status"] == "UP"
    assert server.request("POST", "/predict", make_body(make_tasks(1)), basic_auth="ann:s3cret")[0] == 200
    assert server.request("GET", "/docs", basic_auth="ann:s3cret")[0] == 200
    assert secret not in server.log.read_text()


def test_cross_origin_request_is_rejected(fragile: Server) -> None:
    connection = http.client.HTTPConnection(fragile.root.removeprefix("http://"), timeout=10)
    connection.request("POST", "/train", json.dumps({"project": "1"}), {"Origin": "https://evil.example"})
    assert connection.getresponse().status == 403
    connection.close()


@pytest.mark.parametrize(
    ("host", "status_without_password", "status_with_password"),
    [
        ("127.0.0.1:9090", 409, 409),
        ("localhost:9090", 409, 409),
        ("[::1]:9090", 409, 409),
        ("evil.example:9090", 403, 409),  # DNS rebinding: the site's name now has the address of this machine
        ("localhost.evil.example", 403, 409),
        ("127.0.0.1.evil.example:9090", 403, 409),
    ],
)
def test_same_origin_request_needs_an_address_or_a_password(
    fragile: Server, protected: Server, host: str, status_without_password: int, status_with_password: int
) -> None:
    def train(server: Server, **extra_headers: str) -> int:
        connection = http.client.HTTPConnection(server.root.removeprefix("http://"), timeout=10)
        headers = {"Host": host, "Origin": f"http://{host}"} | extra_headers
        connection.request("POST", "/train", json.dumps({"project": "1"}), headers)
        status = connection.getresponse().status
        connection.close()
        return status

    assert train(fragile) == status_without_password
    assert train(protected) == 401
    assert train(protected, Authorization="Basic " + base64.b64encode(b"ann:s3cret").decode()) == status_with_password


def test_request_cannot_forge_log_lines(serve: ServerFactory) -> None:
    server = serve("--model", f"{MODELS}:Words", "--verbose")
    server.request("GET", "/a%0alsml:%2012:00:00%20Stopped.%0d%e2%80%a8%1b[2J")
    (line,) = wait_until("the request is in the log", lambda: [line for line in server.lines() if "Stopped." in line])
    assert r"GET /a\nlsml: 12:00:00 Stopped.\r\u2028\u001b[2J: 404" in line
    assert "\x1b" not in line


def test_metrics_and_docs(fragile: Server) -> None:
    predict(fragile, make_tasks(3))
    metrics = fragile.request_ok("GET", "/metrics")
    version = fragile.request_ok("GET", "/health")["model_version"]
    assert 'lsml_requests_total{route="/predict",status="200"}' in metrics
    assert f'model_version="{version}"' in metrics
    for name in ("lsml_queue_tasks", "lsml_batch_tasks_count", "lsml_request_seconds_bucket", "lsml_tasks_total"):
        assert name in metrics
    assert "/predict" in fragile.request_ok("GET", "/docs")
    assert "/predict" in fragile.request_ok("GET", "/openapi.json")["paths"]


# Versions


def test_promoted_version_replaces_old_one_without_lost_requests(
    serve: ServerFactory, lsml: Lsml, ticket_model: Path, tmp_path: Path
) -> None:
    home = tmp_path / "tickets"
    shutil.copytree(ticket_model, home)
    config = (EXAMPLE / "label_config.xml").read_text()
    server = serve("--model", home)
    old = server.request_ok("GET", "/health")["model_version"]
    tasks = json.loads((EXAMPLE / "tasks.json").read_text())[:20]
    answered_versions: list[str] = []
    is_finished = False

    def request_repeatedly() -> None:
        while not is_finished:
            time.sleep(0.01)  # leaves the training some of the cores
            versions = {result["model_version"] for result in predict(server, tasks, config=config)}
            assert len(versions) == 1  # a request sees one version
            answered_versions.extend(versions)

    with ThreadPoolExecutor(4) as pool:
        requesters = [pool.submit(request_repeatedly) for _ in range(4)]
        run = lsml("fit", EXAMPLE / "annotated.json", "--model", home, "--output", home)
        assert run.returncode == 0, run.stderr
        new = wait_until("the new version serves", lambda: newer_version(server, old))
        wait_until("requests see it", lambda: answered_versions[-1] == new)
        is_finished = True
        for requester in requesters:
            requester.result()
    assert set(answered_versions) == {old, new}
    assert server.request_ok("POST", "/setup", {"project": "1.17", "schema": config})["model_version"] == new
    wait_until(
        "the old process is gone",
        lambda: (
            len([c for c in psutil.Process(server.process.pid).children() if "spawn_main" in " ".join(c.cmdline())])
            == 1
        ),
    )


@pytest.mark.parametrize("has_version_at_start", [False, True])
def test_project_follows_what_fit_promotes_in_it(
    serve: ServerFactory, lsml: Lsml, tmp_path: Path, has_version_at_start: bool
) -> None:
    assert lsml("init", "demo", cwd=tmp_path).returncode == 0
    project = tmp_path / "demo"
    fit = "fit", "annotated.json", "--model", ".", "-c", "label_config.xml", "-o", "models/demo"
    if has_version_at_start:
        assert lsml(*fit, cwd=project).returncode == 0
    server = serve(project)
    old = server.request_ok("GET", "/health")["model_version"]
    (project / "models" / "demo" / "damaged").mkdir(parents=True)
    current = project / "models" / "demo" / "current"
    promoted_before = current.read_text().strip() if has_version_at_start else None
    current.write_text("damaged\n")
    wait_until("the server says why", lambda: f"{promoted_before or old} stays in use" in server.log.read_text())
    if promoted_before:
        current.write_text(promoted_before + "\n")
    else:
        current.unlink()
    assert server.request_ok("GET", "/health")["model_version"] == old
    run = lsml(*fit, cwd=project)
    assert run.returncode == 0, run.stderr
    new = wait_until("the new version serves", lambda: newer_version(server, old))
    assert new == f"demo@{current.read_text().strip()}"
    config = (project / "label_config.xml").read_text()
    (result,) = predict(server, json.loads((project / "tasks.json").read_text())[:1], config=config)
    assert result["model_version"] == new


def newer_version(server: Server, old: str) -> str | None:
    version = str(server.request_ok("GET", "/health")["model_version"])
    return version if version != old else None


def test_version_of_a_project_serves_only_that_project(
    serve: ServerFactory, ticket_model: Path, tmp_path: Path
) -> None:
    home = tmp_path / "versions" / "project-3"
    shutil.copytree(ticket_model, home)
    config = (EXAMPLE / "label_config.xml").read_text()
    server = serve(
        *("--model", "text-classifier", "--versions", tmp_path / "versions"),
        *("--label-studio-url", "http://127.0.0.1:9"),
        env={"LABEL_STUDIO_API_KEY": "none"},
    )

    def version(project: str) -> str:
        return str(server.request_ok("POST", "/setup", {"project": project, "schema": config})["model_version"])

    assert version("3.17").startswith(ticket_model.name)
    assert version("4.17") == server.request_ok("GET", "/health")["model_version"] != version("3.17")
    task = json.loads((EXAMPLE / "tasks.json").read_text())[:1]
    (own,) = predict(server, task, config=config, project="3.17")
    assert own["model_version"] == version("3.17")
    weights = next(home.glob("*/*.safetensors"))
    weights.write_bytes(b"truncated")
    broken = serve(
        *("--model", "text-classifier", "--versions", tmp_path / "versions"),
        *("--label-studio-url", "http://127.0.0.1:9"),
        env={"LABEL_STUDIO_API_KEY": "none"},
    )
    status, answer = broken.request("POST", "/setup", {"project": "3.17", "schema": config})
    assert status == 400  # the default model must not replace the project's own
    assert "damaged" in answer["detail"]
    assert broken.request("POST", "/setup", {"project": "4.17", "schema": config})[0] == 200


# Errors at start


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--basic-auth", "ann"], "--basic-auth is not USER:PASS."),
        (["--secret-path", "a b"], "--secret-path has characters that are not allowed in it."),
        (["--train-every", "5"], "--train-every needs training, which is off."),
        (["--versions", "v"], "Training needs the URL of the Label Studio that has the annotations."),
        (
            ["--versions", "v", "--label-studio-url", "http://x", "--jobs", "elsewhere"],
            "--jobs 'elsewhere' is neither embedded nor a URL.",
        ),
        (["--versions", "v", "--label-studio-url", "http://x"], "cannot be trained"),
        (["--device", "cpu,cpu"], "lsml serve uses one device."),
        (["--device", "cuda"], "cannot run on 'cuda'"),
    ],
)
def test_invalid_options_are_rejected_before_the_model_is_loaded(
    tmp_path: Path, options: list[str], message: str
) -> None:
    run = run_in_process("serve", "--model", f"{MODELS}:Words", "--port", "0", *options, cwd=tmp_path)
    assert run.returncode == 2
    assert message in run.stderr


def test_taken_port_is_reported_before_the_model_is_loaded(lsml_process: Lsml) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        run = lsml_process("serve", "--model", f"{MODELS}:NeverLoads", "--port", str(port))
    assert run.returncode == 1
    assert f"Port {port} on 127.0.0.1 is not available" in run.stderr


def test_model_that_cannot_be_loaded_is_reported(lsml_process: Lsml) -> None:
    run = lsml_process("serve", "--model", f"{MODELS}:NeverLoads", "--port", "0")
    assert run.returncode == 1
    assert "the weights are in another castle" in run.stderr
    assert "Traceback" not in run.stderr
