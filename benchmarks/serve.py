"""Compare `lsml serve` under load with label-studio-ml 1.0.9 and the same fitted pipeline, and with an empty app.

    python benchmarks/serve.py [--rounds 3] [--seconds 8] [--only speed|health|memory]

Needs wrk (scripts/system-deps). The requests are those of Label Studio when somebody opens a task: one task of
../shared/data/exports/sms-spam-*.json where present, else of examples/support-tickets. Only one server runs at a
time; label-studio-ml is installed into an environment of its own on the first run.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from _servers import HERE, PROJECT, ROOT, Server, baseline, empty, label_studio, lsml, start_server

SMS = ROOT.parent / "shared" / "data" / "exports"
TICKETS = ROOT / "examples" / "support-tickets"
# With one control, since the pipeline of a notebook fills no more.
TICKETS_CONFIG = """<View><Text name="ticket" value="$text"/><Choices name="category" toName="ticket" choice="single">
<Choice value="Billing"/><Choice value="Shipping"/><Choice value="Returns"/><Choice value="Technical"/>
<Choice value="Account"/></Choices></View>"""
CLIENTS = 32
BODIES = 500  # different requests, in turn
LARGE = 2000  # tasks of one large request
WARM_UP_SECONDS = 2.0  # of load before anything is measured


@dataclass(frozen=True)
class BenchmarkData:
    """An export to train on, its label config, and tasks as Label Studio sends them."""

    annotated: Path
    config: str
    tasks: list[dict[str, Any]]

    def body(self, tasks: Sequence[dict[str, Any]]) -> bytes:
        params = {"login": None, "password": None, "context": None}
        request = {"tasks": tasks, "project": PROJECT, "label_config": self.config, "params": params}
        return json.dumps(request).encode()

    def setup(self) -> bytes:
        request = {"project": PROJECT, "schema": self.config, "hostname": "http://localhost:8080", "access_token": "0"}
        return json.dumps(request | {"extra_params": None}).encode()


@dataclass
class Rounds:
    """The measurements of one server, by round."""

    rate: list[float] = field(default_factory=list)
    p50: list[float] = field(default_factory=list)
    p99: list[float] = field(default_factory=list)
    large: list[float] = field(default_factory=list)


def prepare_data(folder: Path) -> BenchmarkData:
    if SMS.is_dir():
        annotated, source = SMS / "sms-spam-annotated.json", SMS / "sms-spam-all-tasks.json"
        config = (SMS / "sms-spam.xml").read_text("utf-8")
    else:
        annotated, source, config = folder / "annotated.json", TICKETS / "tasks.json", TICKETS_CONFIG
        annotated_tasks = json.loads((TICKETS / "annotated.json").read_bytes())
        kept = []
        for task in annotated_tasks:
            (annotation,) = task["annotations"]
            annotation["result"] = [region for region in annotation["result"] if region["from_name"] == "category"]
            if annotation["result"] and not annotation["was_cancelled"]:
                kept.append(task)
        annotated.write_text(json.dumps(kept), "utf-8")
    exported = json.loads(source.read_bytes())
    tasks = [_as_sent(n, exported[n % len(exported)]["data"]) for n in range(LARGE)]
    return BenchmarkData(annotated, config, tasks)


def _as_sent(number: int, data: dict[str, Any]) -> dict[str, Any]:
    """Return a task as in a request of Label Studio 1.23."""
    timestamp = "2026-11-20T16:34:09.193978Z"
    counts = ("total_annotations", "cancelled_annotations", "total_predictions", "comment_count")
    return {
        "id": number + 1,
        "data": data,
        "meta": {},
        "created_at": timestamp,
        "updated_at": timestamp,
        "is_labeled": False,
        "overlap": 1,
        "inner_id": number + 1,
        **dict.fromkeys(counts, 0),
        "unresolved_comment_count": 0,
        "last_comment_updated_at": None,
        "project": 7,
        "updated_by": None,
        "file_upload": None,
        "comment_authors": [],
        "annotations": [],
        "predictions": [],
    }


def wrk(server: Server, bodies: Path, seconds: float) -> dict[str, float]:
    """Load a server from 32 clients for some seconds; no request may fail."""
    command = ["wrk", "--threads", "1", "--connections", str(CLIENTS), "--duration", f"{seconds:.0f}s"]
    script = ["--timeout", "30s", "--script", str(HERE / "_predict.lua"), f"http://127.0.0.1:{server.port}"]
    run = subprocess.run([*command, *script, "--", str(bodies)], check=True, capture_output=True, text=True)
    figures: dict[str, float] = json.loads(run.stdout.strip().splitlines()[-1])
    if figures["errors"]:
        raise SystemExit(f"{figures['errors']:.0f} requests failed:\n{run.stdout}\n{server.log.read_text()[-3000:]}")
    return figures


def choices(server: Server, body: bytes, tasks: int) -> tuple[float, list[str]]:
    """Send one request with that many tasks; return its seconds and the choice for each task."""
    started_at = time.perf_counter()
    status, response = server.request("POST", "/predict", body)
    seconds = time.perf_counter() - started_at
    assert status == 200, response
    assert len(response["results"]) == tasks
    return seconds, [prediction["result"][0]["value"]["choices"][0] for prediction in response["results"]]


def speed(data: BenchmarkData, folder: Path, rounds: int, seconds: float) -> None:
    bodies = folder / "bodies.jsonl"
    bodies.write_bytes(b"".join(data.body([task]) + b"\n" for task in data.tasks[:BODIES]))
    servers: dict[str, Callable[[], AbstractContextManager[Server]]] = {}
    model, pipeline = fit_models(data, folder)
    old = baseline(folder)
    old_env = {"LSML_PIPELINE": str(pipeline)}
    servers["label-studio-ml 1.0.9"] = lambda: start_server(old, folder, data.setup(), old_env)
    servers["lsml serve"] = lambda: start_server(lsml(model), folder, data.setup())
    servers["empty app"] = lambda: start_server(empty, folder, data.setup())
    size, large = len(data.body(data.tasks[:1])), data.body(data.tasks)
    print(f"{CLIENTS} clients, one task per request ({size:,} bytes), {rounds} rounds of {seconds:.0f} s", flush=True)
    measurements = {name: Rounds() for name in servers}
    answers: dict[str, list[str]] = {}
    for number in range(rounds):
        for name, start in servers.items():
            with start() as server:
                if name != "empty app":
                    answers[name] = choices(server, large, LARGE)[1]
                    measurements[name].large += [choices(server, large, LARGE)[0] for _ in range(5)]
                wrk(server, bodies, WARM_UP_SECONDS)
                figures = wrk(server, bodies, seconds)
            server_rounds = measurements[name]
            server_rounds.rate.append(figures["requests"] / figures["seconds"])
            server_rounds.p50.append(figures["p50"])
            server_rounds.p99.append(figures["p99"])
            rate, p99 = server_rounds.rate[-1], server_rounds.p99[-1]
            print(f"  round {number + 1}: {name}: {rate:,.0f} requests/s, p99 {p99:.1f} ms", flush=True)
    report(measurements)
    first, second = answers["label-studio-ml 1.0.9"], answers["lsml serve"]
    same = sum(a == b for a, b in zip(first, second, strict=True)) / len(first)
    print(f"the two models gave the same answer to {same:.1%} of {len(first):,} tasks")


def fit_models(data: BenchmarkData, folder: Path) -> tuple[Path, Path]:
    """Fit the same data with lsml and with a notebook's pipeline."""
    model, pipeline, config = folder / "model", folder / "pipeline", folder / "config.xml"
    config.write_text(data.config, "utf-8")
    fit = [data.annotated, "--model", "text-classifier", "--label-config", config, "--output", model]
    subprocess.run([sys.executable, "-m", "lsml_cli", "fit", "--quiet", *fit], check=True, stdout=subprocess.DEVNULL)
    subprocess.run([sys.executable, HERE / "_notebook.py", "fit", data.annotated, pipeline], check=True)
    return model, pipeline


def report(measurements: dict[str, Rounds]) -> None:
    base = measurements["label-studio-ml 1.0.9"]
    print(f"\n{'':24}{'requests/s':>28}{'of 1.0.9':>22}{'p50':>10}{'p99':>24}{f'{LARGE:,} tasks':>14}")
    for name, server_rounds in measurements.items():
        ratios = [a / b for a, b in zip(server_rounds.rate, base.rate, strict=True)]
        large = f"{1000 * statistics.median(server_rounds.large):.0f} ms" if server_rounds.large else ""
        print(
            f"{name:24}{spread(server_rounds.rate, ',.0f'):>28}{spread(ratios, '.2f'):>22}"
            f"{statistics.median(server_rounds.p50):7.1f} ms{spread(server_rounds.p99, '.1f') + ' ms':>24}{large:>14}"
        )
    print("lowest / median / highest of the rounds; 1.0.9 and what is compared with it ran in the same round.\n")


def spread(values: Sequence[float], form: str) -> str:
    return f"{min(values):{form}} / {statistics.median(values):{form}} / {max(values):{form}}"


def health(data: BenchmarkData, folder: Path, rounds: int) -> None:
    """Measure how long /health takes while large requests are computed and a training runs."""
    model, _ = fit_models(data, folder)
    print(f"\n/health, every 10 ms over a connection of its own, and {LARGE:,} tasks in one request:")
    with label_studio(data.config, many_annotated(data, folder)) as url:
        for number in range(rounds):
            options = ["--versions", str(folder / f"versions-{number}"), "--label-studio-url", url]
            key = {"LABEL_STUDIO_API_KEY": "0" * 40}
            with start_server(lsml(model, *options), folder, data.setup(), key) as server:
                alone = poll_health(server, lambda: False, 3.0)
                busy, seconds, large = health_when_busy(server, data)
                versions = server.request("GET", "/versions")[1]["versions"]
            middle = 1000 * statistics.median(large)
            print(f"  round {number + 1}, idle: {latencies(alone)}")
            print(f"  round {number + 1}, training and large requests: {latencies(busy)}")
            print(f"    ({seconds:.1f} s of training, {len(large)} requests one after the other, {middle:.0f} ms each)")
            if len(versions) != 2:
                raise SystemExit(f"The training came to nothing:\n{server.log.read_text()[-3000:]}")


def health_when_busy(server: Server, data: BenchmarkData) -> tuple[list[float], float, list[float]]:
    """Return the seconds of each /health while a training runs, of the training, and of each large request."""
    body = data.body(data.tasks)
    large: list[float] = []
    over = threading.Event()

    def send_large_requests() -> None:
        while not over.is_set():
            large.append(choices(server, body, LARGE)[0])

    def training() -> bool:
        return bool(server.request("GET", "/is_training?project=7")[1]["is_training"])

    event = {"action": "START_TRAINING", "project": {"id": 7, "label_config": data.config}}
    status, answer = server.request("POST", "/webhook", json.dumps(event).encode())
    assert status < 300, answer
    while not training():
        time.sleep(0.01)
    started_at = time.monotonic()
    requester = threading.Thread(target=send_large_requests)
    requester.start()
    try:
        found = poll_health(server, lambda: not training(), 120.0)
    finally:
        over.set()
        requester.join()
    return found, time.monotonic() - started_at, large


def many_annotated(data: BenchmarkData, folder: Path) -> Path:
    """Repeat the annotated tasks, so that training takes a while."""
    tasks = json.loads(data.annotated.read_bytes())
    many = []
    for n in range(max(1, 40_000 // len(tasks))):
        for task in tasks:
            data = {key: f"{value} {n}" if isinstance(value, str) else value for key, value in task["data"].items()}
            many.append(task | {"id": len(many) + 1, "data": data})
    path = folder / "many.json"
    path.write_text(json.dumps(many), "utf-8")
    return path


def poll_health(server: Server, over: Callable[[], bool], longest: float) -> list[float]:
    """Return the seconds of each /health, polled by a process of its own until `over` or for `longest` seconds."""
    context = multiprocessing.get_context("spawn")
    stop, queue = context.Event(), context.SimpleQueue()
    prober = context.Process(target=probe, args=(server.port, stop, queue))
    prober.start()
    assert queue.get() == "ready"
    ends = time.monotonic() + longest
    while time.monotonic() < ends and not over():
        time.sleep(0.25)
    stop.set()
    found: list[float] = queue.get()
    prober.join()
    return found


def probe(port: int, stop: Any, queue: Any) -> None:
    import http.client

    queue.put("ready")
    found = []
    while not stop.is_set():
        started_at = time.perf_counter()
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
        connection.request("GET", "/health")
        assert connection.getresponse().read()
        connection.close()
        found.append(time.perf_counter() - started_at)
        time.sleep(0.01)
    queue.put(found)


def latencies(seconds: Sequence[float]) -> str:
    cuts = statistics.quantiles(seconds, n=100)
    return f"p50 {1000 * cuts[49]:.1f} ms, p99 {1000 * cuts[98]:.1f} ms, highest {1000 * max(seconds):.1f} ms"


def memory(data: BenchmarkData, folder: Path) -> None:
    """Measure the memory of the server after 1,000 and after 50,000 requests."""
    model, _ = fit_models(data, folder)
    bodies = folder / "bodies.jsonl"
    bodies.write_bytes(b"".join(data.body([task]) + b"\n" for task in data.tasks[:BODIES]))
    with start_server(lsml(model), folder, data.setup()) as server:
        at_first = server.megabytes()
        for n in range(1000):
            choices(server, data.body([data.tasks[n % BODIES]]), 1)
        early, answered = server.megabytes(), 1000.0
        while answered < 50_000:
            answered += wrk(server, bodies, 5)["requests"]
        late = server.megabytes()
    print(
        f"\nmemory: {at_first:.0f} MB when it starts, {early:.0f} MB after 1,000 requests, "
        f"{late:.0f} MB after {answered:,.0f}: x{late / early:.3f}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=8)
    parser.add_argument("--only", choices=["speed", "health", "memory"])
    options = parser.parse_args()
    if shutil.which("wrk") is None:
        raise SystemExit("This needs wrk: scripts/system-deps installs it.")
    parts: dict[str, Callable[[BenchmarkData, Path], None]] = {
        "speed": lambda data, folder: speed(data, folder, options.rounds, options.seconds),
        "health": lambda data, folder: health(data, folder, options.rounds),
        "memory": memory,
    }
    for name, part in parts.items():
        if options.only in (None, name):
            with tempfile.TemporaryDirectory() as folder:
                part(prepare_data(Path(folder)), Path(folder))


if __name__ == "__main__":
    main()
