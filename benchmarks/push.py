"""Compare `lsml push` to a real Label Studio with bare calls, and calls of several sizes.

    LSML_LABEL_STUDIO=.venvs/label-studio/bin/label-studio python benchmarks/push.py [--only rate|size] [--rounds 3]
        [--against DIR]

rate  5,000 predictions into a project of 5,000 tasks: one bare call of import/predictions with the same payload, and
      `lsml push` as a whole process, in turn, each into a project of its own, since deleting takes Label Studio ten
      times as long. With --against, `lsml push` of another checkout as well (`git worktree add DIR COMMIT`)
size  a project of 50,000 tasks: one call of 500 predictions, one of 5,000, and `lsml push` of all 50,000
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, NamedTuple

import orjson

ROOT = Path(__file__).parents[1]
TICKETS = ROOT / "examples" / "support-tickets"
sys.path.insert(0, str(ROOT))

from tests.helpers.label_studio_server import LabelStudio, run_label_studio  # noqa: E402

VERSION = "benchmark@1"
FEW, MANY = 5_000, 50_000  # tasks of a project
PARTS = ("rate", "size")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=PARTS, action="append", help="a part to run; repeat for several")
    parser.add_argument("--rounds", type=int, default=3, help="of the rates")
    parser.add_argument("--against", type=Path, metavar="DIR", help="a checkout to compare with")
    options = parser.parse_args()
    program = os.environ.get("LSML_LABEL_STUDIO")
    if not program:
        print("LSML_LABEL_STUDIO does not name the program, so nothing is measured; `make test-slow` installs one.")
        return
    with tempfile.TemporaryDirectory() as name, run_label_studio(Path(program), Path(name)) as studio:
        for part in options.only or PARTS:
            if part == "rate":
                rate(studio, Path(name), options.rounds, options.against)
            else:
                size(studio, Path(name))


def rate(studio: LabelStudio, folder: Path, rounds: int, against: Path | None) -> None:
    checkouts = {"lsml push": ROOT} | ({f"the one in {against.name}": against} if against else {})
    bare: list[float] = []
    pushes: dict[str, list[Push]] = {name: [] for name in checkouts}
    for number in range(rounds):
        project, predictions = create_project(studio, FEW)
        bare.append(call(studio, project, orjson.dumps(predictions)))
        line = f"  round {number + 1}: bare call {bare[-1]:.2f} s"
        # The second of two finds the files of Python in memory, so they take turns.
        for name in sorted(checkouts, reverse=number % 2 == 1):
            project, predictions = create_project(studio, FEW)
            file = write_predictions(folder, predictions)
            pushes[name].append(pushed := push(studio, folder, file, project, checkouts[name]))
            assert pushed.summary["created"] == FEW, pushed
            line += (
                f"; {name} {pushed.seconds:.2f} s, {pushed.sending_seconds:.2f} s of them sending, in "
                f"{pushed.summary['calls']} call, {pushed.cpu_seconds:.2f} s of processor"
            )
        print(line, flush=True)
    print(f"\n{FEW:,} predictions into a project of as many tasks, least to most of {rounds} rounds")
    rows = {"bare call": bare}
    for name, measured in pushes.items():
        rows[f"{name}, sending"] = [pushed.sending_seconds for pushed in measured]
        rows[f"{name}, all of it"] = [pushed.seconds for pushed in measured]
    for name, seconds in rows.items():
        ratios = describe_ratios(bare, seconds)
        print(f"{name:38}{FEW / statistics.mean(seconds):8,.0f}/s, {ratios} of the bare call's rate")
    if against:
        new, old = pushes.values()
        for what in ("seconds", "cpu_seconds"):
            ratios = describe_ratios(
                [getattr(pushed, what) for pushed in new], [getattr(pushed, what) for pushed in old]
            )
            print(f"{what} of lsml push, times those of the other: {ratios}")


def describe_ratios(left: list[float], right: list[float]) -> str:
    ratios = [one / other for one, other in zip(left, right, strict=True)]
    return f"{statistics.mean(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})"


def size(studio: LabelStudio, folder: Path) -> None:
    project, predictions = create_project(studio, MANY)
    print(f"\na project of {MANY:,} tasks")
    for count in (500, 5_000):
        seconds = call(studio, project, orjson.dumps(predictions[:count]))
        print(
            f"one call of {count:6,}: {seconds:6.1f} s, {count / seconds:5.0f}/s; all {MANY:,} in such calls would "
            f"take {MANY / count * seconds / 60:.0f} minutes",
            flush=True,
        )
        delete(studio, project)
    pushed = push(studio, folder, write_predictions(folder, predictions), project)
    assert pushed.summary["created"] == MANY, pushed
    print(
        f"lsml push of {MANY:,}: {pushed.seconds:.0f} s, {MANY / pushed.seconds:.0f}/s, in {pushed.summary['calls']} "
        f"call, {pushed.sending_seconds:.0f} s of them sending"
    )


def create_project(studio: LabelStudio, count: int) -> tuple[int, list[dict[str, Any]]]:
    """Create a project with that many tasks; return its id and a prediction for each task."""
    project = studio.create_project(f"{count} tasks", (TICKETS / "label_config.xml").read_text())
    tickets = json.loads((TICKETS / "tasks.json").read_bytes())
    tasks = [{"data": tickets[n % len(tickets)]["data"]} for n in range(count)]
    ids: list[int] = []
    for first in range(0, count, 10_000):
        ids += studio.import_tasks(project, tasks[first : first + 10_000])["task_ids"]
    region = {
        **{"id": "answer", "from_name": "category", "to_name": "ticket", "type": "choices", "score": 0.8123},
        "value": {"choices": ["Billing"]},
    }
    return project, [{"task": id, "result": [region], "score": 0.8123, "model_version": VERSION} for id in ids]


def write_predictions(folder: Path, predictions: list[dict[str, Any]]) -> Path:
    path = folder / "predictions.jsonl"
    path.write_bytes(b"".join(orjson.dumps(prediction) + b"\n" for prediction in predictions))
    return path


def call(studio: LabelStudio, project: int, payload: bytes) -> float:
    """Send predictions in one bare call, and return its seconds."""
    import httpx

    started_at = time.perf_counter()
    response = httpx.post(
        f"{studio.url}/api/projects/{project}/import/predictions",
        content=payload,
        headers={"Authorization": f"Token {studio.token}", "Content-Type": "application/json"},
        timeout=3600,
    )
    seconds = time.perf_counter() - started_at
    response.raise_for_status()
    return seconds


class Push(NamedTuple):
    """A run of `lsml push`: its summary, its seconds, and those of the processor."""

    summary: dict[str, Any]
    seconds: float
    cpu_seconds: float

    @property
    def sending_seconds(self) -> float:
        return float(self.summary["sending_seconds"])


def push(studio: LabelStudio, folder: Path, file: Path, project: int, checkout: Path = ROOT) -> Push:
    """Run `lsml push` of a checkout."""
    summary = folder / "summary.json"
    command = [sys.executable, "-m", "lsml_cli", "push", str(file), "--project", str(project), "--quiet"]
    env = {
        "LABEL_STUDIO_URL": studio.url,
        "LABEL_STUDIO_API_KEY": studio.token,
        "XDG_STATE_HOME": str(folder / "state"),
    }
    started_at, cpu_before = time.perf_counter(), children_cpu()
    subprocess.run([*command, "--summary", str(summary)], env=os.environ | env, check=True, cwd=checkout)
    seconds = time.perf_counter() - started_at
    pushed = Push(json.loads(summary.read_bytes()), seconds, children_cpu() - cpu_before)
    summary.unlink()
    return pushed


def children_cpu() -> float:
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def delete(studio: LabelStudio, project: int) -> None:
    status, answer = studio.request(
        "DELETE", f"/api/projects/{project}/model-versions/", {"model_version": VERSION}, timeout=3600
    )
    assert status < 300, answer


if __name__ == "__main__":
    main()
