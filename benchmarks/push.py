"""Compare `lsml push` to a real Label Studio with bare calls, and calls of several sizes.

    LSML_LABEL_STUDIO=.venvs/label-studio/bin/label-studio python benchmarks/push.py [--only rate|size] [--rounds 3]

rate  5,000 predictions into a project of 5,000 tasks: one bare call of import/predictions with the same payload, and
      `lsml push` as a whole process, in turn; the version is deleted after each
size  a project of 50,000 tasks: one call of 500 predictions, one of 5,000, and `lsml push` of all 50,000
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

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
    options = parser.parse_args()
    program = os.environ.get("LSML_LABEL_STUDIO")
    if not program:
        print("LSML_LABEL_STUDIO does not name the program, so nothing is measured; `make test-slow` installs one.")
        return
    with tempfile.TemporaryDirectory() as name, run_label_studio(Path(program), Path(name)) as studio:
        for part in options.only or PARTS:
            if part == "rate":
                rate(studio, Path(name), options.rounds)
            else:
                size(studio, Path(name))


def rate(studio: LabelStudio, folder: Path, rounds: int) -> None:
    project, predictions = create_project(studio, FEW)
    payload, file = orjson.dumps(predictions), write_predictions(folder, predictions)
    bare, sending, whole = [], [], []
    for number in range(rounds):
        bare.append(call(studio, project, payload))
        delete(studio, project)
        pushed, seconds = push(studio, folder, file, project)
        delete(studio, project)
        assert pushed["created"] == FEW, pushed
        sending.append(pushed["sending_seconds"])
        whole.append(seconds)
        print(
            f"  round {number + 1}: bare call {bare[-1]:.2f} s, lsml push {whole[-1]:.2f} s, {sending[-1]:.2f} s of "
            f"them sending, in {pushed['calls']} call",
            flush=True,
        )
    print(f"\n{FEW:,} predictions into a project of as many tasks, least to most of {rounds} rounds")
    for name, measured in (("bare call", bare), ("lsml push, sending", sending), ("lsml push, all of it", whole)):
        ratios = [bare_seconds / seconds for bare_seconds, seconds in zip(bare, measured, strict=True)]
        print(
            f"{name:22}{FEW / statistics.mean(measured):8,.0f}/s, {statistics.mean(ratios):.2f} of the bare call's "
            f"rate ({min(ratios):.2f} to {max(ratios):.2f})"
        )


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
    pushed, seconds = push(studio, folder, write_predictions(folder, predictions), project)
    assert pushed["created"] == MANY, pushed
    print(
        f"lsml push of {MANY:,}: {seconds:.0f} s, {MANY / seconds:.0f}/s, in {pushed['calls']} call, "
        f"{pushed['sending_seconds']:.0f} s of them sending"
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


def push(studio: LabelStudio, folder: Path, file: Path, project: int) -> tuple[dict[str, Any], float]:
    """Run `lsml push`; return its summary and its seconds."""
    summary = folder / "summary.json"
    command = [sys.executable, "-m", "lsml_cli", "push", str(file), "--project", str(project), "--quiet"]
    env = {
        "LABEL_STUDIO_URL": studio.url,
        "LABEL_STUDIO_API_KEY": studio.token,
        "XDG_STATE_HOME": str(folder / "state"),
    }
    started_at = time.perf_counter()
    subprocess.run([*command, "--summary", str(summary)], env=os.environ | env, check=True)
    seconds = time.perf_counter() - started_at
    pushed: dict[str, Any] = json.loads(summary.read_bytes())
    summary.unlink()
    return pushed, seconds


def delete(studio: LabelStudio, project: int) -> None:
    status, answer = studio.request(
        "DELETE", f"/api/projects/{project}/model-versions/", {"model_version": VERSION}, timeout=3600
    )
    assert status < 300, answer


if __name__ == "__main__":
    main()
