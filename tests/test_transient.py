"""Errors of anybody's HTTP client: which are worth another try, without importing that client."""

from __future__ import annotations

import errno
import http.client
import socket
import ssl
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from email.message import Message
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any, ClassVar

import pytest

from lsml_cli.errors import TransientError
from lsml_cli.inference.record_codec import BindingKey
from lsml_cli.inference.replica import Replica
from lsml_cli.models.base import Binding, Model
from lsml_cli.models.spec import ModelSpec
from lsml_cli.runtime import Retrier
from lsml_cli.schema.label_config import LabelConfig
from lsml_cli.schema.predictions import Failure, Prediction
from lsml_cli.schema.tasks import Task
from lsml_cli.transient import is_transient
from tests.helpers.cli import run_in_process
from tests.helpers.models import TEXT_CONFIG

STATUSES = {200: None, 400: False, 401: False, 404: False, 422: False, 429: True, 500: True, 502: True, 503: True}


class _Handler(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        action = self.path.strip("/")
        if action == "hang up":
            self.close_connection = True
        elif action == "short":
            self.send_response(200)
            self.send_header("Content-Length", "100")
            self.end_headers()
            self.wfile.write(b"x")
            self.close_connection = True
        else:
            self.send_response(int(action))
            self.send_header("Content-Length", "0")
            self.end_headers()

    def log_message(self, *args: object) -> None:
        pass


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Handler)
    Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def get_with_urllib(url: str) -> None:
    with urllib.request.urlopen(url, timeout=5) as response:
        response.read()


def get_with_requests(url: str) -> None:
    requests = pytest.importorskip("requests")
    with requests.Session() as session, session.get(url, timeout=5) as response:
        response.raise_for_status()


def get_with_httpx(url: str) -> None:
    httpx = pytest.importorskip("httpx")
    httpx.get(url, timeout=5).raise_for_status()


def get_with_aiohttp(url: str) -> None:
    aiohttp = pytest.importorskip("aiohttp")
    import asyncio

    async def get() -> None:
        async with aiohttp.ClientSession(raise_for_status=True) as session, session.get(url) as response:
            await response.read()

    asyncio.run(get())


CLIENTS = [get_with_urllib, get_with_requests, get_with_httpx, get_with_aiohttp]


def error_of(get: Callable[[str], None], url: str) -> Exception:
    with pytest.raises(Exception) as raised:  # noqa: PT011  # each library has its own
        get(url)
    if isinstance(raised.value, urllib.error.HTTPError):
        raised.value.close()  # it holds the response, and so a socket
    return raised.value


@pytest.mark.parametrize("get", CLIENTS)
@pytest.mark.parametrize("status", [status for status in STATUSES if status != 200])
def test_status_decides_in_every_client(get: Callable[[str], None], status: int, url: str) -> None:
    assert is_transient(error_of(get, f"{url}/{status}")) is STATUSES[status]


@pytest.mark.parametrize("get", CLIENTS)
@pytest.mark.parametrize("action", ["short"])
def test_answer_that_breaks_off_is_transient(get: Callable[[str], None], action: str, url: str) -> None:
    assert is_transient(error_of(get, f"{url}/{action}"))


@pytest.mark.parametrize("get", CLIENTS)
def test_refused_connection_is_transient(get: Callable[[str], None]) -> None:
    with socket.socket() as held:  # bound, and not listening
        held.bind(("127.0.0.1", 0))
        assert is_transient(error_of(get, f"http://127.0.0.1:{held.getsockname()[1]}/"))


@pytest.mark.parametrize("get", CLIENTS)
@pytest.mark.parametrize("bad", ["nonsense://host/", "no scheme"])
def test_wrong_url_is_not_transient(get: Callable[[str], None], bad: str) -> None:
    assert not is_transient(error_of(get, bad))


def test_botocore_errors() -> None:
    exceptions = pytest.importorskip("botocore.exceptions")
    where = {"endpoint_url": "http://x"}
    assert is_transient(exceptions.EndpointConnectionError(**where))
    assert is_transient(exceptions.ConnectTimeoutError(**where))
    assert is_transient(exceptions.ReadTimeoutError(**where))
    assert is_transient(exceptions.ConnectionClosedError(**where))
    assert not is_transient(exceptions.SSLError(endpoint_url="x", error="[SSL: CERTIFICATE_VERIFY_FAILED] expired"))
    assert not is_transient(exceptions.NoCredentialsError())
    for status, code, expected in (
        (503, "SlowDown", True),
        (500, "InternalError", True),
        (429, "TooMany", True),
        (400, "ThrottlingException", True),
        (403, "AccessDenied", False),
        (404, "NoSuchKey", False),
    ):
        response = {"Error": {"Code": code}, "ResponseMetadata": {"HTTPStatusCode": status}}
        assert is_transient(exceptions.ClientError(response, "GetObject")) is expected, code


def look_alike(module: str, *names: str, base: type[Exception] = Exception) -> type[Exception]:
    """Return a class with these names in its bases, the last one its own, as if it came from `module`."""
    cls = base
    for name in names:
        cls = type(name, (cls,), {"__module__": module})
    return cls


LOOK_ALIKES = [
    ("requests.exceptions", ("RequestException", "ConnectionError", "ProxyError"), True),
    ("requests.exceptions", ("RequestException", "Timeout", "ReadTimeout"), True),
    ("requests.exceptions", ("RequestException", "ChunkedEncodingError"), True),
    ("requests.exceptions", ("RequestException", "TooManyRedirects"), False),
    ("requests.exceptions", ("RequestException", "InvalidURL"), False),
    ("httpx", ("RequestError", "TransportError", "NetworkError", "ConnectError"), True),
    ("httpx", ("RequestError", "TransportError", "UnsupportedProtocol"), False),
    ("httpx", ("RequestError", "DecodingError"), False),
    ("aiohttp.client_exceptions", ("ClientError", "ClientConnectionError", "ServerDisconnectedError"), True),
    ("aiohttp.client_exceptions", ("ClientError", "ClientPayloadError"), True),
    ("aiohttp.client_exceptions", ("ClientConnectionError", "ClientConnectorCertificateError"), False),
    ("aiohttp.client_exceptions", ("ClientError", "InvalidURL"), False),
    ("botocore.exceptions", ("BotoCoreError", "HTTPClientError", "ReadTimeoutError"), True),
    ("botocore.exceptions", ("BotoCoreError", "ParamValidationError"), False),
    ("urllib3.exceptions", ("HTTPError", "ProtocolError"), True),
    ("my_own.client", ("NetworkError", "ConnectError"), False),  # its name alone says nothing
]


@pytest.mark.parametrize(("module", "names", "expected"), LOOK_ALIKES)
def test_errors_are_known_by_class_and_package(module: str, names: tuple[str, ...], expected: bool) -> None:
    error = look_alike(module, *names)("down")
    assert is_transient(error) is expected
    wrapper = RuntimeError("the service failed")
    wrapper.__cause__ = error
    assert is_transient(wrapper) is expected


def test_own_subclass_of_a_known_error_counts() -> None:
    known = look_alike("httpx", "TransportError", "NetworkError")
    assert is_transient(type("BackendDown", (known,), {"__module__": "models.mine"})())


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (TransientError("later"), True),
        (ConnectionResetError(), True),
        (TimeoutError(), True),
        (socket.gaierror(socket.EAI_AGAIN, "try again"), True),
        (OSError(errno.EHOSTUNREACH, "no route"), True),
        (OSError(errno.ENETUNREACH, "no network"), True),
        (OSError(errno.ENOSPC, "full"), False),
        (FileNotFoundError(errno.ENOENT, "none"), False),
        (http.client.IncompleteRead(b"x", 9), True),
        (http.client.RemoteDisconnected("gone"), True),
        (urllib.error.URLError(TimeoutError("slow")), True),
        (urllib.error.URLError(socket.gaierror(-2, "unknown")), True),
        (urllib.error.URLError(FileNotFoundError(2, "none")), False),
        (urllib.error.URLError("unknown url type: x"), False),
        (urllib.error.URLError(ssl.SSLCertVerificationError(1, "CERTIFICATE_VERIFY_FAILED")), False),
        (urllib.error.HTTPError("http://x", 503, "busy", Message(), None), True),
        (urllib.error.HTTPError("http://x", 404, "none", Message(), None), False),
        (ValueError("bad text"), False),
        (KeyError("text"), False),
        (MemoryError(), False),
    ],
    ids=repr,
)
def test_errors_of_python_itself(error: Exception, expected: bool) -> None:
    assert is_transient(error) is expected


def test_outer_verdict_counts_before_that_of_the_cause() -> None:
    refused = urllib.error.HTTPError("http://x", 403, "no", Message(), None)
    refused.__cause__ = ConnectionResetError()
    assert not is_transient(refused)


def test_circle_of_causes_ends() -> None:
    first, second = RuntimeError("a"), RuntimeError("b")
    first.__cause__, second.__cause__ = second, first
    assert not is_transient(first)


def test_error_that_cannot_be_formatted_is_no_harm() -> None:
    def fail(self: object) -> str:
        raise RuntimeError

    cls = type("TransportError", (Exception,), {"__module__": "httpx", "__str__": fail})
    assert not is_transient(cls())


def test_retrier_retries_foreign_errors_and_no_others() -> None:
    error = look_alike("aiohttp", "ClientError", "ClientConnectionError")
    for raised, expected_calls in ((error, 3), (ValueError, 1)):
        calls: list[int] = []

        def step(raised: Any = raised, calls: list[int] = calls) -> None:
            calls.append(1)
            raise raised("x")

        with pytest.raises(raised):
            Retrier((0.0, 0.0)).call(step)
        assert len(calls) == expected_calls


class _Failing(Model):
    """Raise the error of a foreign client for every task, and count the tries."""

    supported_controls: ClassVar[Mapping[str, Sequence[str]]] = {"Choices": ("Text",)}
    retry_delays = (0.0,)
    calls = 0

    def encode(self, task: Task, binding: Binding, media: Mapping[str, bytes]) -> Any:
        self.calls += 1
        raise RuntimeError("the service failed") from look_alike("botocore", "HTTPClientError")("down")

    def forward(self, inputs: Sequence[Any], binding: Binding) -> Sequence[Any]:
        return inputs

    def decode(self, output: Any, task: Task, binding: Binding) -> Prediction:
        raise AssertionError("no task gets here")


def test_failure_of_a_task_is_retried_and_marked_transient() -> None:
    config = LabelConfig.parse(TEXT_CONFIG)
    model = _Failing(ModelSpec("failing", "tests:Failing", "0"))
    [outcome] = Replica(model, BindingKey(config, {}, None, None)).predict([Task(0, 1, {"text": "x"}, {})])
    assert isinstance(outcome, Failure)
    assert outcome.transient
    assert model.calls == 2


@pytest.mark.parametrize("model", ["text-classifier", "image-classifier", "object-detector", "ocr"])
@pytest.mark.parametrize("control", ["Taxonomy", "Rating", "TimeSeriesLabels"])
def test_control_without_a_model_leads_to_a_model_of_ones_own(model: str, control: str, tmp_path: Path) -> None:
    config = tmp_path / "config.xml"
    config.write_text(f'<View><Text name="t" value="$text"/><{control} name="c" toName="t"/></View>')
    tasks = tmp_path / "tasks.json"
    tasks.write_text('[{"id": 1, "data": {"text": "x"}}]')
    run = run_in_process("predict", tasks, "-m", model, "-c", config)
    assert run.returncode == 1
    assert f"<{control}" in run.stderr
    assert "lsml init NAME -c config.xml" in run.stderr


@pytest.mark.parametrize("model", ["text-classifier", "image-classifier"])
@pytest.mark.parametrize("command", ["predict --check", "evaluate", "fit -o versions"])
def test_every_command_leads_to_a_model_of_ones_own(model: str, command: str, tmp_path: Path) -> None:
    (tmp_path / "c.xml").write_text('<View><Text name="t" value="$text"/><Taxonomy name="c" toName="t"/></View>')
    (tmp_path / "tasks.json").write_text('[{"id": 1, "data": {"text": "x"}}]')
    name, *options = command.split()
    run = run_in_process(name, "tasks.json", "-m", model, "-c", "c.xml", *options, cwd=tmp_path)
    assert run.returncode == 1
    assert "lsml init NAME -c config.xml" in run.stderr


def test_no_client_is_imported_to_know_its_errors() -> None:
    code = (
        "import sys; from lsml_cli.transient import is_transient; "
        "is_transient(ValueError()); "
        "print(sorted({'requests','httpx','aiohttp','botocore','urllib3'} & set(sys.modules)))"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout == "[]\n"
