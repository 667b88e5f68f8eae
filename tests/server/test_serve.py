"""`lsml serve` from outside: a process on a port of its own, asked over HTTP."""

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

from tests.helpers.cli import EXAMPLE, ROOT, Lsml
from tests.helpers.models import TEXT_CONFIG
from tests.helpers.serve_process import Server, ServerFactory, wait_until

MODELS = ROOT / "tests" / "helpers" / "models.py"
SERVED = ROOT / "tests" / "helpers" / "server_models.py"


@pytest.fixture
def serve(tmp_path: Path) -> Iterator[ServerFactory]:
    """`serve("--model", model, …)` -> a server that answers; gone with the test."""
    started = ServerFactory(tmp_path)
    yield started
    started.close()


@pytest.fixture(scope="module")
def protected(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server that asks for a password, shared in the same way."""
    started = ServerFactory(tmp_path_factory.mktemp("protected"))
    yield started("--model", f"{MODELS}:Words", env={"LSML_BASIC_AUTH": "ann:s3cret"})
    started.close()


@pytest.fixture(scope="module")
def fragile(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server whose model does what tasks say, shared by the tests that leave no trace."""
    started = ServerFactory(tmp_path_factory.mktemp("fragile"))
    yield started("--model", f"{MODELS}:Fragile")
    started.close()


def tasks_of(number: int, first: int = 1, **data: Any) -> list[dict[str, Any]]:
    return [{"id": first + n, "data": {"text": "a few words " * (n % 4), **data}} for n in range(number)]


def body(tasks: list[Any], config: str = TEXT_CONFIG, project: str = "1.17", context: Any = None) -> dict[str, Any]:
    params = {"login": None, "password": None, "context": context}
    return {"tasks": tasks, "project": project, "label_config": config, "params": params}


def predict(server: Server, tasks: list[Any], **more: Any) -> list[dict[str, Any]]:
    answer = server.request_ok("POST", "/predict", body(tasks, **more))
    assert len(answer["results"]) == len(tasks)
    return list(answer["results"])


def choices(results: list[dict[str, Any]]) -> list[str | None]:
    return [each["result"][0]["value"]["choices"][0] if each else None for each in results]


# What comes back


def test_as_many_results_as_tasks_in_order_and_of_the_version_that_setup_said(fragile: Server) -> None:
    version = fragile.request_ok("POST", "/setup", {"project": "1.17", "schema": TEXT_CONFIG})["model_version"]
    results = predict(fragile, tasks_of(200))
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
def test_one_bad_task_in_a_hundred_costs_one_task(fragile: Server, do: str, stage: str, reason: str) -> None:
    tasks = tasks_of(100)
    tasks[42] = {"id": 4711, "data": {"text": "hello", "do": do}}
    results = predict(fragile, tasks)
    assert results[42] == {}
    assert all(results[:42] + results[43:])
    line = next(line for line in reversed(fragile.lines()) if "task 4711 failed" in line)
    assert f"({stage})" in line
    assert reason in line
    assert "Traceback" not in "\n".join(fragile.lines())


def test_what_is_no_task_costs_its_place_only(fragile: Server) -> None:
    odd: list[Any] = [None, 5, [], "text", {}, {"id": 7}, {"id": 8, "data": None}, {"id": 9, "data": {}}]
    results = predict(fragile, [*odd, *tasks_of(1)])
    assert results[:-1] == [{}] * len(odd)
    assert results[-1]


def test_nothing_found_is_an_answer(fragile: Server) -> None:
    (result,) = predict(fragile, tasks_of(1, do="nothing"))
    assert result["result"] == []
    assert result["model_version"]


def test_ten_thousand_tasks_in_one_request(fragile: Server) -> None:
    results = predict(fragile, tasks_of(10_000))
    assert choices(results[:4]) == ["short", "short", "long", "long"]
    assert all(results)


def test_half_of_a_character_costs_nothing_but_itself(fragile: Server) -> None:
    """A text that was cut in the middle of an emoji: Label Studio sends such a task together with all the others."""
    tasks = tasks_of(5)
    tasks[1]["data"]["text"] = "\ud83d"
    tasks[2] = {"id": 4712, "data": {"text": "cut \ud83d", "do": "raise in encode", "large": 2**70}}
    tasks[3] = {"id": 4713, "data": {"text": "cut \ud83d", "none": [[]]}}
    for _ in range(300):
        tasks[3]["data"]["none"] = [tasks[3]["data"]["none"]]
    results = predict(fragile, tasks)
    assert [bool(each) for each in results] == [True, True, False, True, True]
    assert any("task 4712 failed (encode)" in line for line in fragile.lines())
    config = TEXT_CONFIG.replace("</View>", '<Header value="\ud83d"/></View>')
    assert all(predict(fragile, tasks, config=config)[3:])
    assert fragile.request_ok("POST", "/setup", {"project": "1.1", "schema": config})["model_version"]
    for wrong in ({"tasks": [], "project": "\ud83d"}, {"tasks": [], "label_config": ["\ud83d"]}, ["\ud83d"]):
        assert fragile.request("POST", "/predict", wrong)[0] == 400
    assert not any("bug" in line for line in fragile.lines())


@pytest.mark.parametrize("body", [b"{", b'{"tasks": ["\\ud83d", NaN]}', b'{"tasks": ["\\ud83d"', b"\xff"])
def test_what_is_no_json_is_refused_and_logged(fragile: Server, body: bytes) -> None:
    connection = http.client.HTTPConnection(fragile.root.removeprefix("http://"), timeout=10)
    connection.request("POST", "/predict", body, {"Content-Type": "application/json"})
    response = connection.getresponse()
    assert response.status == 400
    assert json.loads(response.read())["detail"].startswith("the body is not JSON: ")
    connection.close()
    assert " /predict: the body is not JSON: " in fragile.lines()[-1]


@pytest.mark.parametrize(
    ("path", "sent", "sentence"),
    [
        ("/predict", {}, '"tasks" is null, expected a list of tasks.'),
        ("/predict", [], "the body is a list, expected an object."),
        ("/predict", {"tasks": [{}]}, '"label_config" is missing, and the model remembers none.'),
        ("/predict", {"tasks": [{}], "label_config": "<View"}, "The label config is not well-formed XML"),
        ("/predict", {"tasks": [{}], "label_config": TEXT_CONFIG, "project": "../1"}, '"project" is a string'),
        ("/predict", {"tasks": [], "label_config": 5}, '"label_config" is a number (5), expected labelling XML.'),
        ("/setup", {"project": {}}, '"project" is an object, expected a project\'s id.'),
        ("/webhook", {}, '"action" is null, expected the name of an event.'),
        ("/train", {}, "Training is off"),
    ],
)
def test_a_body_that_is_not_what_it_should_be_is_told_so(
    fragile: Server, path: str, sent: object, sentence: str
) -> None:
    status, answer = fragile.request("POST", path, sent)
    assert status in (400, 409)
    assert sentence in answer["detail"]


def test_a_label_config_that_the_model_cannot_fill_is_refused_at_setup(
    serve: ServerFactory, ticket_model: Path
) -> None:
    server = serve("--model", ticket_model)
    status, answer = server.request("POST", "/setup", {"project": "1.17", "schema": TEXT_CONFIG.replace("size", "s")})
    assert status == 400
    assert "short" in answer["detail"]
    assert "Billing" in answer["detail"]
    assert answer["detail"] in "\n".join(server.lines())  # Label Studio shows nobody the body
    assert server.request_ok("POST", "/setup", {"project": "1.17", "schema": "<View></View>"})["model_version"]


def test_the_context_of_an_interactive_editor_reaches_the_model(serve: ServerFactory) -> None:
    server = serve("--model", f"{SERVED}:Attentive")
    assert choices(predict(server, tasks_of(1), context={"size": "long"})) == ["long"]
    assert choices(predict(server, tasks_of(1))) == ["short"]


def test_each_project_has_its_own_label_config(serve: ServerFactory) -> None:
    server = serve("--model", "text-classifier")
    colours = TEXT_CONFIG.replace("short", "red").replace("long", "blue")
    with ThreadPoolExecutor(8) as pool:
        asked = [
            pool.submit(predict, server, tasks_of(5), config=config, project=project)
            for config, project in [(TEXT_CONFIG, "1.1"), (colours, "2.1")] * 8
        ]
    for number, answer in enumerate(asked):
        assert set(choices(answer.result())) <= ({"red", "blue"} if number % 2 else {"short", "long"})


# Batches


def test_requests_share_batches_and_a_single_task_does_not_wait_for_a_selection(
    serve: ServerFactory, tmp_path: Path
) -> None:
    diary = tmp_path / "diary"
    server = serve("--model", f"{SERVED}:Patient", "--with", f"diary={diary}", "--max-wait-ms", "200")
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda n: predict(server, tasks_of(1, first=n)), range(1, 6)))
    assert sorted(map(int, diary.read_text().split())) == [1, 2, 3, 4, 5]
    assert len(diary.read_text().splitlines()) < 5
    diary.unlink()
    with ThreadPoolExecutor(2) as pool:
        selection = pool.submit(predict, server, tasks_of(2000, seconds=0.002))
        wait_until("the selection is under way", lambda: diary.exists() and len(diary.read_text().splitlines()) > 3)
        assert all(predict(server, tasks_of(1, first=9999)))
        assert not selection.done()
        batches = diary.read_text().splitlines()
        found = next(number for number, batch in enumerate(batches) if "9999" in batch.split())
        assert "9999" in batches[found]
        assert len(batches[found].split()) > 1  # it shares its batch with the selection
        assert len(batches) - found < 10
        assert all(selection.result())


# Time


def test_the_deadline_answers_with_what_is_done_and_keeps_what_comes_late(serve: ServerFactory, tmp_path: Path) -> None:
    diary = tmp_path / "diary"
    server = serve(
        *("--model", f"{SERVED}:Patient", "--with", f"diary={diary}"),
        *("--deadline", "1.5", "--batch-size", "1", "--max-wait-ms", "0"),
    )
    tasks = tasks_of(20, seconds=0.25)
    begun = time.monotonic()
    first = predict(server, tasks)
    assert time.monotonic() - begun < 2.5
    done = sum(map(bool, first))
    assert 0 < done < 20
    assert first[:done] == [each for each in first if each]  # in order, and what was not done is {}
    assert any(f"{20 - done} of 20 tasks of project 1 are left" in line for line in server.lines())
    assert any("lsml predict" in line for line in server.lines())
    wait_until(
        "what was under way has come back",
        lambda: f"lsml_kept_results {done + 2}.0" in server.request_ok("GET", "/metrics"),
    )
    again = predict(server, tasks)
    assert again[:done] == first[:done]
    assert sum(map(bool, again)) > done
    given = list(map(int, diary.read_text().split()))
    assert len(given) == len(set(given))  # nothing was computed twice


def test_work_for_a_client_that_hangs_up_is_dropped_and_what_was_done_is_kept(
    serve: ServerFactory, tmp_path: Path
) -> None:
    diary = tmp_path / "diary"
    server = serve("--model", f"{SERVED}:Patient", "--with", f"diary={diary}", "--batch-size", "1")
    tasks = tasks_of(100, seconds=0.2)
    with pytest.raises(TimeoutError):
        server.request("POST", "/predict", body(tasks), timeout=2)
    wait_until("the server has noticed", lambda: any("hung up" in line for line in server.lines()))
    assert all(predict(server, tasks_of(1, first=1000)))  # nobody waits for the other 90
    before = len(diary.read_text().split())
    assert before < 40
    assert all(predict(server, tasks[:5]))
    assert len(diary.read_text().split()) == before


def test_a_model_that_is_stuck_is_started_again(serve: ServerFactory) -> None:
    server = serve("--model", f"{SERVED}:Patient", "--deadline", "0.5")
    assert predict(server, tasks_of(1, seconds=60)) == [{}]
    wait_until("it was started again", lambda: all(predict(server, tasks_of(3))), 20)
    assert any("1 of 1 task of project 1" in line for line in server.lines())


def test_two_tasks_that_hang_one_after_the_other_cost_nobody_else_anything(serve: ServerFactory) -> None:
    """The second one is lost with the process that the first one blocked, is sent again, and hangs as well."""
    server = serve("--model", f"{SERVED}:Patient", "--deadline", "0.5", "--batch-size", "1")
    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(predict, server, tasks_of(1, seconds=1000))
        time.sleep(0.3)
        second = pool.submit(predict, server, tasks_of(1, seconds=1000))
        assert first.result() == second.result() == [{}]
    wait_until("others are answered", lambda: all(predict(server, tasks_of(3))), 20)
    assert any("the model was stuck for 1 s, and was started again" in line for line in server.lines())
    replicas = psutil.Process(server.process.pid).children(recursive=True)
    predict(server, tasks_of(1, seconds=1000))  # SIGTERM comes while the model hangs once more
    server.process.send_signal(signal.SIGTERM)
    assert server.process.wait(20) == 0
    wait_until("its processes are gone", lambda: not any(each.is_running() for each in replicas))


def test_health_and_setup_answer_while_the_model_predicts(serve: ServerFactory) -> None:
    server = serve("--model", f"{SERVED}:Patient")
    with ThreadPoolExecutor(1) as pool:
        busy = pool.submit(predict, server, tasks_of(1, seconds=2))
        begun = time.monotonic()
        for _ in range(20):
            server.request_ok("GET", "/health")
            server.request_ok("POST", "/setup", {"project": "5.17", "schema": TEXT_CONFIG})
        assert time.monotonic() - begun < 1.5
        assert not busy.done()
        assert all(busy.result())


def test_sigterm_finishes_the_requests_that_have_begun(serve: ServerFactory, tmp_path: Path) -> None:
    diary = tmp_path / "diary"
    server = serve("--model", f"{SERVED}:Patient", "--with", f"diary={diary}")
    replicas = psutil.Process(server.process.pid).children(recursive=True)
    with ThreadPoolExecutor(1) as pool:
        busy = pool.submit(predict, server, tasks_of(10, seconds=0.1))
        wait_until("it is under way", diary.exists)
        server.process.send_signal(signal.SIGTERM)
        assert all(busy.result())
    assert server.process.wait(20) == 0
    wait_until("its processes are gone", lambda: not any(each.is_running() for each in replicas))
    assert server.lines()[-1].endswith("Stopped.")


def test_sigterm_waits_a_moment_and_no_more_for_what_nobody_waits_for(serve: ServerFactory) -> None:
    server = serve("--model", f"{SERVED}:Patient", "--deadline", "60")
    replicas = psutil.Process(server.process.pid).children(recursive=True)
    with pytest.raises(TimeoutError):
        server.request("POST", "/predict", body(tasks_of(1, seconds=1000)), timeout=2)
    wait_until("the server has noticed", lambda: any("hung up" in line for line in server.lines()))
    server.process.send_signal(signal.SIGTERM)
    assert server.process.wait(20) == 0
    wait_until("its processes are gone", lambda: not any(each.is_running() for each in replicas))


def test_ctrl_c_ends_with_130(serve: ServerFactory) -> None:
    server = serve("--model", f"{MODELS}:Words")
    server.process.send_signal(signal.SIGINT)
    assert server.process.wait(20) == 130
    assert server.lines()[-1] == "lsml: Stopped."


# Limits


def send_for_ever(connection: socket.socket, piece: bytes) -> None:
    while True:
        connection.sendall(piece)


def test_a_body_that_is_too_large_or_never_ends_is_refused(serve: ServerFactory) -> None:
    server = serve("--model", f"{MODELS}:Words", "--max-body", "1")
    assert server.request("POST", "/predict", body(tasks_of(20_000)))[0] == 413
    host, port = server.root.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=20) as endless:
        endless.sendall(b"POST /predict HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n")
        piece = b"10000\r\n" + b" " * 0x10000 + b"\r\n"
        with pytest.raises((BrokenPipeError, ConnectionResetError)):
            send_for_ever(endless, piece * 100)
    assert all(predict(server, tasks_of(3)))


def test_tasks_beyond_the_limit_are_left_for_later(serve: ServerFactory) -> None:
    server = serve("--model", f"{MODELS}:Words", "--max-tasks", "5")
    assert [bool(each) for each in predict(server, tasks_of(8))] == [True] * 5 + [False] * 3
    assert any("the last 3 are left" in line for line in server.lines())


# Who may ask


def test_basic_auth(serve: ServerFactory) -> None:
    server = serve("--model", f"{MODELS}:Words", env={"LSML_BASIC_AUTH": "ann:s3cret"})
    for route in ("/health", "/versions", "/metrics", "/docs", "/openapi.json"):
        assert server.request("GET", route)[0] == 401
        assert server.request("GET", route, basic_auth="ann:s3cre")[0] == 401
        assert server.request("GET", route, basic_auth="ann:s3cret")[0] == 200
    assert server.request("POST", "/webhook", {"action": "ANNOTATION_CREATED"})[0] == 401
    assert "s3cret" not in server.log.read_text()


def test_below_a_secret_path_events_need_no_password_and_everything_else_does(serve: ServerFactory) -> None:
    secret = "a/quiet-place"
    server = serve(
        *("--model", f"{MODELS}:Words", "--basic-auth", "ann:s3cret", "--secret-path", secret), *("--max-body", "1")
    )
    elsewhere = Server(server.process, server.log, server.root, "")
    assert elsewhere.request("GET", "/health", basic_auth="ann:s3cret")[0] == 404
    assert server.request("POST", "/setup", {"schema": "<View"}, basic_auth="ann:s3cret")[0] == 400
    assert server.request("POST", "/setup", {"schema": 5}, basic_auth="ann:s3cret")[0] == 400
    assert server.request("POST", "/setup", {"schema": "x" * (2 << 20)}, basic_auth="ann:s3cret")[0] == 413
    assert sum(" /setup: " in line for line in server.lines()) == 3
    assert server.request("POST", "/webhook", {"action": "ANNOTATION_CREATED", "project": {"id": 1}})[0] == 200
    assert server.request("POST", "/webhook", {"action": "START_TRAINING", "project": {"id": 1}})[0] == 401
    assert server.request("GET", "/health")[0] == 401
    assert server.request_ok("GET", "/health", basic_auth="ann:s3cret")["status"] == "UP"
    assert server.request("POST", "/predict", body(tasks_of(1)), basic_auth="ann:s3cret")[0] == 200
    assert server.request("GET", "/docs", basic_auth="ann:s3cret")[0] == 200
    assert secret not in server.log.read_text()


def test_a_page_of_another_site_cannot_use_it(fragile: Server) -> None:
    connection = http.client.HTTPConnection(fragile.root.removeprefix("http://"), timeout=10)
    connection.request("POST", "/train", json.dumps({"project": "1"}), {"Origin": "https://evil.example"})
    assert connection.getresponse().status == 403
    connection.close()


@pytest.mark.parametrize(
    ("host", "without", "with_password"),
    [
        ("127.0.0.1:9090", 409, 409),
        ("localhost:9090", 409, 409),
        ("[::1]:9090", 409, 409),
        ("evil.example:9090", 403, 409),  # its own site until a moment ago, and now the address of this machine
        ("localhost.evil.example", 403, 409),
        ("127.0.0.1.evil.example:9090", 403, 409),
    ],
)
def test_a_page_of_this_server_can_use_it_unless_its_name_could_be_anybodys(
    fragile: Server, protected: Server, host: str, without: int, with_password: int
) -> None:
    def train(server: Server, **more: str) -> int:
        connection = http.client.HTTPConnection(server.root.removeprefix("http://"), timeout=10)
        headers = {"Host": host, "Origin": f"http://{host}"} | more
        connection.request("POST", "/train", json.dumps({"project": "1"}), headers)
        status = connection.getresponse().status
        connection.close()
        return status

    assert train(fragile) == without
    assert train(protected) == 401
    assert train(protected, Authorization="Basic " + base64.b64encode(b"ann:s3cret").decode()) == with_password


def test_a_request_cannot_write_a_line_into_the_log(serve: ServerFactory) -> None:
    server = serve("--model", f"{MODELS}:Words", "--verbose")
    server.request("GET", "/a%0alsml:%2012:00:00%20Stopped.%0d%e2%80%a8%1b[2J")
    (line,) = wait_until("it is in the log", lambda: [line for line in server.lines() if "Stopped." in line])
    assert "GET /a?lsml: 12:00:00 Stopped.???[2J: 404" in line
    assert "\x1b" not in line


def test_metrics_and_docs(fragile: Server) -> None:
    predict(fragile, tasks_of(3))
    metrics = fragile.request_ok("GET", "/metrics")
    version = fragile.request_ok("GET", "/health")["model_version"]
    assert 'lsml_requests_total{route="/predict",status="200"}' in metrics
    assert f'model_version="{version}"' in metrics
    for name in ("lsml_queue_tasks", "lsml_batch_tasks_count", "lsml_request_seconds_bucket", "lsml_tasks_total"):
        assert name in metrics
    assert "swagger" in fragile.request_ok("GET", "/docs").lower()
    assert "/predict" in fragile.request_ok("GET", "/openapi.json")["paths"]


# Versions


def test_a_version_that_is_promoted_takes_over_without_a_lost_request(
    serve: ServerFactory, lsml: Lsml, ticket_model: Path, tmp_path: Path
) -> None:
    home = tmp_path / "tickets"
    shutil.copytree(ticket_model, home)
    config = (EXAMPLE / "label_config.xml").read_text()
    server = serve("--model", home)
    old = server.request_ok("GET", "/health")["model_version"]
    tasks = json.loads((EXAMPLE / "tasks.json").read_text())[:20]
    seen: list[str] = []
    ended = False

    def ask_again_and_again() -> None:
        while not ended:
            versions = {each["model_version"] for each in predict(server, tasks, config=config)}
            assert len(versions) == 1  # a request sees one version
            seen.extend(versions)

    with ThreadPoolExecutor(4) as pool:
        asking = [pool.submit(ask_again_and_again) for _ in range(4)]
        run = lsml("fit", EXAMPLE / "annotated.json", "--model", home, "--output", home)
        assert run.returncode == 0, run.stderr
        new = wait_until("the new version serves", lambda: _other(server, old))
        wait_until("requests see it", lambda: seen[-1] == new)
        ended = True
        for each in asking:
            each.result()
    assert set(seen) == {old, new}
    assert server.request_ok("POST", "/setup", {"project": "1.17", "schema": config})["model_version"] == new
    wait_until(
        "the old process is gone",
        lambda: (
            len([c for c in psutil.Process(server.process.pid).children() if "spawn_main" in " ".join(c.cmdline())])
            == 1
        ),
    )


def _other(server: Server, old: str) -> str | None:
    found = str(server.request_ok("GET", "/health")["model_version"])
    return found if found != old else None


def test_a_projects_own_version_answers_for_that_project_only(
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
    weights.write_bytes(b"torn")
    broken = serve(
        *("--model", "text-classifier", "--versions", tmp_path / "versions"),
        *("--label-studio-url", "http://127.0.0.1:9"),
        env={"LABEL_STUDIO_API_KEY": "none"},
    )
    status, answer = broken.request("POST", "/setup", {"project": "3.17", "schema": config})
    assert status == 400  # another model's predictions would be none of this project
    assert "damaged" in answer["detail"]
    assert broken.request("POST", "/setup", {"project": "4.17", "schema": config})[0] == 200


# What does not start


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["--basic-auth", "ann"], "--basic-auth is not USER:PASS."),
        (["--secret-path", "a b"], "--secret-path has signs that have a meaning of their own"),
        (["--train-every", "5"], "--train-every is about training, which is off."),
        (["--versions", "v"], "Training needs to know the Label Studio that has the annotations."),
        (
            ["--versions", "v", "--label-studio-url", "http://x", "--jobs", "elsewhere"],
            "--jobs 'elsewhere' is neither embedded nor an address.",
        ),
        (["--versions", "v", "--label-studio-url", "http://x"], "cannot be trained"),
        (["--device", "cpu,cpu"], "lsml serve uses one device."),
        (["--device", "cuda"], "cannot run on 'cuda'"),
    ],
)
def test_what_makes_no_sense_is_said_before_anything_is_loaded(
    lsml: Lsml, tmp_path: Path, options: list[str], sentence: str
) -> None:
    run = lsml("serve", "--model", f"{MODELS}:Words", "--port", "0", *options, cwd=tmp_path)
    assert run.returncode == 2
    assert sentence in run.stderr


def test_a_port_that_is_taken_is_said_before_the_model_is_loaded(lsml: Lsml) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        run = lsml("serve", "--model", f"{MODELS}:NeverLoads", "--port", str(port))
    assert run.returncode == 1
    assert f"Port {port} on 127.0.0.1 cannot be had" in run.stderr


def test_a_model_that_does_not_load(lsml: Lsml) -> None:
    run = lsml("serve", "--model", f"{MODELS}:NeverLoads", "--port", "0")
    assert run.returncode == 1
    assert "the weights are in another castle" in run.stderr
    assert "Traceback" not in run.stderr
