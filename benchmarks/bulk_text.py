"""Compare `lsml predict` on many exported texts with a notebook's loop and with the limit.

    python benchmarks/bulk_text.py [--tasks 200000] [--rounds 5] [--memory]

Tasks are those of ../shared/data/exports/sms-spam-*.json where present (900 bytes measurement, as exported), else of
examples/support-tickets, repeated with new ids. `--memory` also compares 10,000 with 1,000,000 tasks.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import orjson
from _measure import Measurement, rounds, run

ROOT = Path(__file__).parents[1]
NOTEBOOK = str(ROOT / "benchmarks" / "_notebook.py")
SMS = ROOT.parent / "shared" / "data" / "exports"
TICKETS = ROOT / "examples" / "support-tickets"


def sources() -> tuple[Path, Path, Path]:
    """Return the annotated export, the tasks to predict, and the label config."""
    if SMS.is_dir():
        return SMS / "sms-spam-annotated.json", SMS / "sms-spam-all-tasks.json", SMS / "sms-spam.xml"
    return TICKETS / "annotated.json", TICKETS / "tasks.json", TICKETS / "label_config.xml"


def multiply(source: Path, count: int, folder: Path) -> tuple[str, str]:
    """Write `count` tasks as an array and as lines."""
    tasks = json.loads(source.read_bytes())
    array, lines = folder / f"{count}.json", folder / f"{count}.jsonl"
    with array.open("wb") as as_array, lines.open("wb") as as_lines:
        for number in range(count):
            body = orjson.dumps(tasks[number % len(tasks)] | {"id": number + 1, "inner_id": number + 1})
            as_array.write((b"," if number else b"[") + body)
            as_lines.write(body + b"\n")
        as_array.write(b"]")
    return str(array), str(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", type=int, default=200_000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--memory", action="store_true")
    options = parser.parse_args()
    annotated, tasks, config = sources()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        model, pipeline, output = str(folder / "model"), str(folder / "pipeline"), str(folder / "out.json")
        lsml = [sys.executable, "-m", "lsml_cli"]
        fit = ["fit", str(annotated), "--model", "text-classifier", "--label-config", str(config), "--output", model]
        subprocess.run([*lsml, *fit], check=True, stdout=subprocess.DEVNULL)
        subprocess.run([sys.executable, NOTEBOOK, "fit", str(annotated), pipeline], check=True)
        array, lines = multiply(tasks, options.tasks, folder)

        def predict(source: str, workers: int) -> Callable[[], tuple[float, float]]:
            command = [*lsml, "predict", source, "--model", model, "-o", output, "--workers", str(workers)]
            return lambda: run(command)

        def limit() -> tuple[float, float]:
            command = [sys.executable, NOTEBOOK, "limit", pipeline, array]
            return float(subprocess.run(command, check=True, capture_output=True).stdout), 0.0

        print(f"{options.tasks:,} tasks, {Path(array).stat().st_size / options.tasks:.0f} bytes each")
        measurements = rounds(
            {
                "notebook loop": lambda: run([sys.executable, NOTEBOOK, "run", pipeline, array, output]),
                "predict_proba alone": limit,
                "lsml, array, 1 worker": predict(array, 1),
                "lsml, array, 2 workers": predict(array, 2),
                "lsml, lines, 1 worker": predict(lines, 1),
                "lsml, lines, 2 workers": predict(lines, 2),
            },
            options.rounds,
        )
        report(measurements, options.tasks)
        if options.memory:
            memory(tasks, folder, predict, options.rounds)


def report(measurements: dict[str, Measurement], tasks: int) -> None:
    notebook, limit = measurements["notebook loop"], measurements["predict_proba alone"]
    print(
        f"\n{'':24}{'mean (lowest to highest)':>28}"
        f"{'tasks/s':>10}{'of loop':>9}{'of limit':>9}{'peak':>9}{'of loop':>9}"
    )
    for name, measurement in measurements.items():
        of_loop = statistics.mean(a / b for a, b in zip(measurement.seconds, notebook.seconds, strict=True))
        of_limit = statistics.mean(b / a for a, b in zip(measurement.seconds, limit.seconds, strict=True))
        weight = f"{measurement.peak:6.0f} MB{measurement.peak / notebook.peak:9.2f}" if measurement.peak else ""
        print(
            f"{name:24}{measurement.spread():>28}{tasks / measurement.mean:10,.0f}{of_loop:9.2f}{of_limit:9.2f}{weight}"
        )
    print("\nof loop: time (memory) as a share of the notebook's; of limit: rate as a share of predict_proba alone.")


def memory(
    tasks: Path, folder: Path, predict: Callable[[str, int], Callable[[], tuple[float, float]]], count: int
) -> None:
    few, _ = multiply(tasks, 10_000, folder)
    many, _ = multiply(tasks, 1_000_000, folder)
    for workers in (1, 2):
        small = statistics.mean(predict(few, workers)()[1] for _ in range(count))
        large = predict(many, workers)()[1]
        print(
            f"peak with {workers} worker(s): {small:.0f} MB at 10,000 tasks, "
            f"{large:.0f} MB at 1,000,000: x{large / small:.2f}"
        )


if __name__ == "__main__":
    main()
