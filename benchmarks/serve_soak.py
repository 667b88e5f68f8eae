"""Load one `lsml serve` in many ways at once, for a minute or for long, and check every answer.

    python benchmarks/serve_soak.py [--minutes 20] [--idle 900]

At the same time: predict requests of 1 to 2,000 tasks over several connections, for a project with a version of its own
and for one without; idle connections; annotation events of a known project, which train it again and again, and of
made-up ones; malformed requests; and /health, 20 times a second. All of it stays on this machine. It ends with status 1
if an answer was wrong or a request failed.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
from _servers import Server, label_studio, lsml, start_server
from _soak_load import KNOWN_PROJECT, LoadCounts, LoadData, run_idlers, run_load, run_probes, summarize
from serve import BenchmarkData, latencies, prepare_data

TRAIN_EVERY = 100  # annotations: about every half minute
SAMPLE_INTERVAL = 1.0  # seconds between two measurements of the memory
SETTLED_AFTER = 60.0  # seconds after which memory should not grow any more


@dataclass(frozen=True)
class MemorySample:
    """Resident memory in MB, of the server's processes and of the trainings that it has started."""

    seconds: float
    server: float
    training: float


def fit_model(data: BenchmarkData, folder: Path) -> Path:
    config, model = folder / "config.xml", folder / "model"
    config.write_text(data.config, "utf-8")
    fit = [data.annotated, "--model", "text-classifier", "--label-config", config, "--output", model]
    subprocess.run([sys.executable, "-m", "lsml_cli", "fit", "--quiet", *fit], check=True, stdout=subprocess.DEVNULL)
    return model


def expected_results(data: BenchmarkData, model: Path, folder: Path) -> list[Any]:
    """Return what `lsml predict` says about each task."""
    tasks, output = folder / "tasks.json", folder / "predictions.json"
    tasks.write_text(json.dumps(data.tasks), "utf-8")
    command = ["predict", "--quiet", tasks, "--model", model, "--label-config", folder / "config.xml", "-o", output]
    subprocess.run([sys.executable, "-m", "lsml_cli", *command], check=True, stdout=subprocess.DEVNULL)
    return [summarize(task["predictions"][0]) for task in json.loads(output.read_bytes())]


def soak(data: BenchmarkData, folder: Path, minutes: float, idle: int, seed: int) -> bool:
    """Run the load; print the figures; tell whether every answer was right."""
    model = fit_model(data, folder)
    load_data = LoadData(data.tasks, expected_results(data, model, folder), data.config)
    with label_studio(data.config, data.annotated) as url:
        options = ["--versions", str(folder / "versions"), "--label-studio-url", url, "--train-every", str(TRAIN_EVERY)]
        with start_server(lsml(model, *options), folder, data.setup(), {"LABEL_STUDIO_API_KEY": "0" * 40}) as server:
            train_first_version(server)
            print(f"{minutes:g} minutes of load, {idle} idle connections", flush=True)
            processes = LoadProcesses(server.port, load_data, idle, seed)
            samples = watch_memory(server, minutes * 60)
            counts, (health, health_failures), (open_counts, reopened) = processes.stop()
            trained = len(list((folder / "versions" / ".jobs").glob("*.json"))) - 1
            # Still as it should be after all that?
            status, _ = server.request("GET", "/health")
        log = server.log.read_text("utf-8", "replace")
    failed = sum((count.failed for count in counts), health_failures)
    report_requests(counts, failed, len(health))
    print(f"/health, {len(health):,} probes: {latencies(health)}")
    print(
        f"idle connections: {statistics.mean(open_counts):.0f} on average, {min(open_counts)} at least; "
        f"opened again {reopened:,} times"
    )
    report_memory(samples)
    print(f"trainings under load: {trained}; the log has {len(log):,} bytes")
    wrong = sum(count.wrong_counts + count.wrong_results for count in counts)
    is_right = not wrong and not failed and status == 200
    if not is_right:
        print(f"The end of the log:\n{log[-3000:]}", file=sys.stderr)
    return is_right


def train_first_version(server: Server) -> None:
    """Give the known project a version of its own; trained on the same annotations, it gives the same answers."""
    event = {"action": "START_TRAINING", "project": {"id": KNOWN_PROJECT}}
    status, answer = server.request("POST", "/webhook", json.dumps(event).encode())
    assert status == 201, answer
    deadline = time.monotonic() + 120
    while str(KNOWN_PROJECT) not in server.request("GET", "/versions")[1]["projects"]:
        if time.monotonic() > deadline:
            raise SystemExit(f"The first training came to nothing:\n{server.log.read_text()[-3000:]}")
        time.sleep(0.2)


class LoadProcesses:
    """The processes that make the load."""

    def __init__(self, port: int, data: LoadData, idle: int, seed: int) -> None:
        context = multiprocessing.get_context("spawn")
        self._stop = context.Event()
        self._running: list[tuple[Any, Any]] = []
        for target, arguments in (
            (run_load, (port, data, seed)),
            (run_probes, (port,)),
            (run_idlers, (port, idle)),
        ):
            queue = context.SimpleQueue()
            process = context.Process(target=target, args=(*arguments, self._stop, queue), daemon=True)
            process.start()
            self._running.append((process, queue))

    def stop(self) -> list[Any]:
        """End the load; return what each process reports."""
        self._stop.set()
        reports = [queue.get() for _, queue in self._running]
        for process, _ in self._running:
            process.join()
        return reports


def watch_memory(server: Server, seconds: float) -> list[MemorySample]:
    started_at = time.monotonic()
    samples: list[MemorySample] = []
    while (elapsed := time.monotonic() - started_at) < seconds:
        server_bytes = training_bytes = 0
        for process in (server.process, *server.process.children(recursive=True)):
            try:
                is_training, rss = "lsml_cli.server.training_job" in process.cmdline(), process.memory_info().rss
            except psutil.NoSuchProcess:
                continue
            server_bytes += 0 if is_training else rss
            training_bytes += rss if is_training else 0
        samples.append(MemorySample(elapsed, server_bytes / 1e6, training_bytes / 1e6))
        time.sleep(SAMPLE_INTERVAL)
    return samples


def report_requests(counts: Sequence[LoadCounts], failed: Counter[str], probes: int) -> None:
    requests = sum((count.requests for count in counts), Counter[str]())
    kinds = ", ".join(f"{kind}: {number:,}" for kind, number in sorted(requests.items()))
    print(f"requests: {requests.total() + probes:,} ({kinds}, health: {probes:,})")
    print(
        f"tasks predicted: {sum(count.tasks for count in counts):,}; "
        f"wrong counts: {sum(count.wrong_counts for count in counts)}; "
        f"results of another task: {sum(count.wrong_results for count in counts)}; failed requests: {failed.total()}"
    )
    for reason, number in failed.most_common(20):
        print(f"  {number:,} times {reason}")


def report_memory(samples: Sequence[MemorySample]) -> None:
    """Print the memory around the end of the first minute, at the end, and at most."""
    settled = [sample for sample in samples if sample.seconds >= SETTLED_AFTER] or samples[-10:]

    def middle(part: Sequence[MemorySample], megabytes: Callable[[MemorySample], float]) -> float:
        return statistics.median(map(megabytes, part))

    early, late = (middle(part, lambda sample: sample.server) for part in (settled[:30], settled[-30:]))
    print(
        f"memory: {early:.0f} MB after {settled[0].seconds:.0f} s, {late:.0f} MB at the end (x{late / early:.3f}), "
        f"{max(sample.server for sample in samples):.0f} MB at most; with its trainings "
        f"{max(sample.server + sample.training for sample in samples):.0f} MB at most"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=1.0)
    parser.add_argument("--idle", type=int, default=900)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        if not soak(prepare_data(Path(folder)), Path(folder), options.minutes, options.idle, options.seed):
            raise SystemExit(1)


if __name__ == "__main__":
    main()
