"""Measure time and memory of `lsml evaluate` on a file of text predictions.

    python benchmarks/evaluate.py [--tasks 100000] [--rounds 3]

Annotated tasks are those of examples/support-tickets, repeated with new ids; nine in ten predictions agree with them.
They are in the order of the tasks, or shuffled. For scale, parsing both files alone is measurements, too.
"""

from __future__ import annotations

import argparse
import random
import sys
import tempfile
import time
from pathlib import Path

import orjson
from _measure import rounds, run

TICKETS = Path(__file__).parents[1] / "examples" / "support-tickets"
FEWER = 10  # times fewer tasks, for the comparison of memory


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", type=int, default=100_000)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        few = evaluation(*files(folder / "few", options.tasks // FEWER))
        tasks, predictions = files(folder / "many", options.tasks)
        shuffled = shuffle_lines(predictions)
        measurements = rounds(
            {
                f"{options.tasks // FEWER:,} tasks": lambda: run(few),
                f"{options.tasks:,} tasks": lambda: run(evaluation(tasks, predictions)),
                "shuffled": lambda: run(evaluation(tasks, shuffled)),
            },
            options.rounds,
        )
        started_at = time.perf_counter()
        for path in (tasks, predictions):
            with path.open("rb") as file:
                for line in file:
                    orjson.loads(line)
        parsed = time.perf_counter() - started_at
    first, second, _ = measurements.values()
    print()
    for measurement in measurements.values():
        print(f"{measurement.name:16}{measurement.spread()}, at most {measurement.peak:.0f} MB")
    print(f"{FEWER} times the tasks need {second.peak / first.peak:.2f} times the memory.")
    print(f"Only parsing both files takes {parsed:.2f} s: evaluate takes {second.mean / parsed:.1f} times as long.")


def files(folder: Path, count: int) -> tuple[Path, Path]:
    """Write annotated tasks and predictions as lines."""
    folder.mkdir()
    exported = [task for task in orjson.loads((TICKETS / "annotated.json").read_bytes()) if task["annotations"]]
    rng = random.Random(0)
    categories = ["Billing", "Shipping", "Returns", "Technical", "Account"]
    tasks, predictions = folder / "tasks.jsonl", folder / "predictions.jsonl"
    with tasks.open("wb") as as_tasks, predictions.open("wb") as as_predictions:
        for number in range(count):
            task = exported[number % len(exported)]
            result = [dict(region, score=round(rng.uniform(0.4, 1), 4)) for region in task["annotations"][0]["result"]]
            if rng.random() < 0.1 and result and result[0]["from_name"] == "category":
                result[0]["value"] = {"choices": [rng.choice(categories)]}
            as_tasks.write(orjson.dumps(task | {"id": number + 1}) + b"\n")
            prediction = {"task": number + 1, "result": result, "score": 0.5, "model_version": "benchmark"}
            as_predictions.write(orjson.dumps(prediction) + b"\n")
    return tasks, predictions


def shuffle_lines(path: Path) -> Path:
    lines = path.read_bytes().splitlines(keepends=True)
    random.Random(1).shuffle(lines)
    shuffled = path.with_name("shuffled.jsonl")
    shuffled.write_bytes(b"".join(lines))
    return shuffled


def evaluation(tasks: Path, predictions: Path) -> list[str]:
    command = [sys.executable, "-m", "lsml_cli", "evaluate", str(tasks), "--predictions", str(predictions)]
    return [*command, "--label-config", str(TICKETS / "label_config.xml"), "--quiet"]


if __name__ == "__main__":
    main()
