"""The clients of `serve_soak.py`: each function runs in a process of its own until `stop` is set, and reports once."""

from __future__ import annotations

import http.client
import json
import random
import resource
import selectors
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

KNOWN_PROJECT = 7
HEALTH_INTERVAL = 0.05  # seconds between two probes: 20/s
IDLE_PER_ADDRESS = 90  # the server keeps 100
REOPEN_PAUSE = 0.02  # seconds after which a closed connection is opened again
# Tasks of one request, seconds until the next one, threads that send such requests.
PREDICTIONS = ((1, 0.05, 3), (20, 0.2, 1), (200, 1.0, 1), (2000, 5.0, 1))
ANNOTATIONS_PER_SECOND = 4.0
FLOOD_PER_SECOND = 100.0  # events for made-up projects
MALFORMED_PER_SECOND = 10.0

Headers = Mapping[str, str]


@dataclass(frozen=True)
class LoadData:
    """What the load is made of.

    Attributes:
        tasks: Tasks as Label Studio sends them.
        expected: For each task, what `lsml predict` says: see `summarize`.
        config: The label config.
    """

    tasks: Sequence[dict[str, Any]]
    expected: Sequence[Any]
    config: str


@dataclass
class LoadCounts:
    """What has happened so far.

    Attributes:
        requests: By kind: "predict 20", "setup", "event", "flood", "malformed".
        tasks: Tasks that were predicted.
        wrong_counts: Answers with another number of results than tasks.
        wrong_results: Results that are not those of their tasks.
        failed: Requests without the expected answer, by kind and reason.
    """

    requests: Counter[str] = field(default_factory=Counter)
    tasks: int = 0
    wrong_counts: int = 0
    wrong_results: int = 0
    failed: Counter[str] = field(default_factory=Counter)


def summarize(prediction: Mapping[str, Any]) -> Any:
    """Reduce a prediction to what must be equal: the choices with their controls and scores."""
    regions = prediction.get("result")
    if not isinstance(regions, list):
        return prediction
    return [(region["from_name"], region["value"]["choices"], region["score"]) for region in regions]


class _Client:
    """A client with one connection, which it opens again after an error."""

    def __init__(self, port: int, counts: LoadCounts) -> None:
        self.port = port
        self.counts = counts
        self._connection: http.client.HTTPConnection | None = None

    def send(
        self, kind: str, path: str, body: bytes, expects: Callable[[int], bool] = lambda status: status < 300
    ) -> Any:
        """Send a POST request; return the parsed answer, None if it is not as expected."""
        self.counts.requests[kind] += 1
        try:
            if self._connection is None:
                self._connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=100)
            self._connection.request("POST", path, body, {"Content-Type": "application/json"})
            response = self._connection.getresponse()
            answer = response.read()
        except (OSError, http.client.HTTPException) as error:
            self.counts.failed[f"{kind}: {type(error).__name__}: {error}"] += 1
            self.close()
            return None
        if not expects(response.status):
            self.counts.failed[f"{kind}: status {response.status}: {answer[:100].decode(errors='replace')}"] += 1
            return None
        return json.loads(answer) if response.status < 300 else None

    def close(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None


def run_load(port: int, data: LoadData, seed: int, stop: Any, queue: Any) -> None:
    """Send predict requests, events and malformed requests; put the `LoadCounts` of each thread into the queue."""
    threads: list[tuple[threading.Thread, LoadCounts]] = []

    def start(target: Callable[..., None], *arguments: Any) -> None:
        counts = LoadCounts()
        rng = random.Random(f"{seed} {len(threads)}")
        threads.append((threading.Thread(target=target, args=(_Client(port, counts), rng, stop, *arguments)), counts))

    for size, pause, copies in PREDICTIONS:
        for _ in range(copies):
            start(_predict, data, size, pause)
    start(_annotate)
    start(_flood)
    start(_send_malformed, data)
    for thread, _ in threads:
        thread.start()
    for thread, _ in threads:
        thread.join()
    queue.put([counts for _, counts in threads])


def _predict(client: _Client, rng: random.Random, stop: Any, data: LoadData, size: int, pause: float) -> None:
    """Send requests of one size, and compare every result with that of `lsml predict`."""
    counts = client.counts
    while not stop.wait(pause * rng.uniform(0.5, 1.5)):
        project = rng.choice(
            (KNOWN_PROJECT, KNOWN_PROJECT, KNOWN_PROJECT + 1)
        )  # the last one has no version of its own
        positions = rng.sample(range(len(data.tasks)), size)
        tasks = [data.tasks[position] | {"project": project} for position in positions]
        request = {"tasks": tasks, "project": f"{project}.1795192449", "label_config": data.config}
        if size == 1:  # as Label Studio does when somebody opens a task
            setup = {"project": request["project"], "schema": data.config, "hostname": "http://localhost:8080"}
            client.send("setup", "/setup", json.dumps(setup).encode())
        answer = client.send(
            f"predict {size}", "/predict", json.dumps(request | {"params": {"context": None}}).encode()
        )
        if answer is None:
            continue
        counts.tasks += size
        results = answer["results"]
        if len(results) != size:
            counts.wrong_counts += 1
            continue
        expected = [data.expected[position] for position in positions]
        counts.wrong_results += sum(a != b for a, b in zip(map(summarize, results), expected, strict=True))
    client.close()


def _annotate(client: _Client, rng: random.Random, stop: Any) -> None:
    """Send events about annotations of the project that Label Studio knows."""
    project = {"id": KNOWN_PROJECT, "title": "soak"}
    while not stop.wait(rng.expovariate(ANNOTATIONS_PER_SECOND)):
        number = rng.randrange(1, 1 << 31)
        if rng.random() < 0.9:
            event = {"action": "ANNOTATION_CREATED", "annotation": {"id": number, "result": []}, "project": project}
        else:
            event = {"action": "ANNOTATIONS_DELETED", "annotations": [{"id": number}], "project": project}
        client.send("event", "/webhook", json.dumps(event).encode())
    client.close()


def _flood(client: _Client, rng: random.Random, stop: Any) -> None:
    """Send events for projects that do not exist, in bursts."""
    burst = 50
    while not stop.wait(rng.expovariate(FLOOD_PER_SECOND / burst)):
        for _ in range(burst):
            event = {"action": "ANNOTATION_CREATED", "annotation": {}, "project": {"id": rng.randrange(100, 10**12)}}
            client.send("flood", "/webhook", json.dumps(event).encode())
    client.close()


def _send_malformed(client: _Client, rng: random.Random, stop: Any, data: LoadData) -> None:
    """Send requests that have to be refused with a status of 4xx, or with a closed connection where it is no HTTP."""
    good = json.dumps({"tasks": data.tasks[:5], "label_config": data.config}).encode()
    control_characters = "".join(map(chr, range(1, 32))) + "\u202e" * 50
    bodies: list[Callable[[], bytes]] = [
        lambda: good[: rng.randrange(len(good))],  # torn
        lambda: rng.randbytes(rng.randrange(1, 2000)),
        lambda: b"[" * 10_000,
        lambda: json.dumps({"tasks": rng.choice([None, 3, {}, "x" * 10_000])}).encode(),
        lambda: json.dumps({"tasks": data.tasks[:1], "label_config": rng.choice([5, "<View", "<a/>"])}).encode(),
        lambda: json.dumps({"action": rng.choice([None, 1, {}])}).encode(),
        lambda: json.dumps({"action": "ANNOTATION_CREATED", "project": control_characters * 20}).encode(),
        lambda: json.dumps({"project": rng.choice([[], True, "-1", "1e5", "9" * 400])}).encode(),
    ]
    while not stop.wait(rng.expovariate(MALFORMED_PER_SECOND)):
        if rng.random() < 0.2:
            _send_garbage(client, rng)
        else:
            body, path = (
                rng.choice(bodies)(),
                rng.choice(("/predict", "/setup", "/webhook", "/train", f"/{rng.random()}")),
            )
            # Some of them are valid for one of the paths, such as an object without a project for /setup.
            client.send("malformed", path, body, lambda status: status < 500)
    client.close()


def _send_garbage(client: _Client, rng: random.Random) -> None:
    """Send bytes that are no HTTP, or a request that ends in the middle, and hang up."""
    client.counts.requests["malformed"] += 1
    kind = rng.randrange(3)
    content = (
        rng.randbytes(500),
        b"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Length: 100000000000\r\n\r\n{",
        b"POST /webhook HTTP/1.1\r\nHost: x\r\nContent-Length: 500\r\n\r\n" + b"{" * 100,
    )[kind]
    try:
        with socket.create_connection(("127.0.0.1", client.port), timeout=10) as connection:
            connection.sendall(content)
            connection.settimeout(1)
            connection.recv(1000)
    except OSError:  # that it closes the connection, or waits for the rest, is as good an answer
        pass


def run_probes(port: int, stop: Any, queue: Any) -> None:
    """Ask for /health 20 times a second, each time over a new connection; put the seconds and the failures.

    A probe that has to wait for the answer to the one before counts from when it was due.
    """
    seconds: list[float] = []
    failures: Counter[str] = Counter()
    due = time.perf_counter()
    previous_end = due
    while not stop.is_set():
        now = time.perf_counter()
        if now < due:
            time.sleep(due - now)
        started_at = due if previous_end > due else time.perf_counter()
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
        try:
            connection.request("GET", "/health")
            response = connection.getresponse()
            body = response.read()
            if response.status != 200 or json.loads(body)["status"] != "UP":
                failures[f"health: status {response.status}"] += 1
        except (OSError, http.client.HTTPException) as error:
            failures[f"health: {type(error).__name__}: {error}"] += 1
        finally:
            connection.close()
        previous_end = time.perf_counter()
        seconds.append(previous_end - started_at)
        due += HEALTH_INTERVAL
    queue.put((seconds, failures))


def run_idlers(port: int, count: int, stop: Any, queue: Any) -> None:
    """Keep idle connections open, each opened again when the server closes it; put how many were open each second.

    A third of them never sends anything, a third has sent one request, a third the beginning of its headers. They come
    from several loopback addresses, because the server keeps a limited number of idle connections of each.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, min(hard, count + 100)), hard))
    selector = selectors.DefaultSelector()
    closed = list(range(count))
    open_counts: list[int] = []
    reopened = -count
    next_count = time.monotonic() + 10  # when all of them are open
    while not stop.is_set():
        for index in closed[:100]:
            try:
                connection = _open_idle(port, index)
            except OSError:
                continue
            selector.register(connection, selectors.EVENT_READ, index)
            closed.remove(index)
            reopened += 1
        for key, _ in selector.select(REOPEN_PAUSE):
            connection = key.fileobj  # type: ignore[assignment]
            try:
                is_closed = not connection.recv(65536)
            except OSError:
                is_closed = True
            if is_closed:
                selector.unregister(connection)
                connection.close()
                closed.append(key.data)
        if time.monotonic() >= next_count:
            open_counts.append(count - len(closed))
            next_count += 1
    queue.put((open_counts, reopened))


def _open_idle(port: int, index: int) -> socket.socket:
    address = f"127.0.0.{2 + index // IDLE_PER_ADDRESS}"
    try:
        connection = socket.create_connection(("127.0.0.1", port), timeout=5, source_address=(address, 0))
    except OSError:  # only Linux has all of 127.0.0.0/8
        connection = socket.create_connection(("127.0.0.1", port), timeout=5)
    if index % 3 == 1:
        connection.sendall(b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n")
    elif index % 3 == 2:
        connection.sendall(b"POST /predict HTTP/1.1\r\nHost: localh")
    return connection
