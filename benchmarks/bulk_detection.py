"""Compare `lsml predict` with an object detector with the toolkit's own loop and with the limit of the cores.

    .venvs/openmmlab/bin/python benchmarks/bulk_detection.py [--config NAME] [--rounds N] [--quick] [--gpu]

The images are those of ../shared/data/coco128, repeated with new ids; both sides run YOLOX-tiny with the same random
weights. Each run is a process of its own, on a few images and on many: their difference gives the rate without the
start-up. Before each round the stages are measured alone, with all cores busy; the limit is 1 / their sum.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from _measure import run

HERE = Path(__file__).parent
DATA = HERE.parents[1] / "shared" / "data"
TASKS, CONFIG = DATA / "exports" / "coco128-all-tasks.json", DATA / "exports" / "coco128.xml"
Ways = dict[str, Callable[[str], list[str]]]
LSML = [sys.executable, "-W", "ignore", "-m", "lsml_cli"]
TOOLKIT = [sys.executable, "-W", "ignore", str(HERE / "_toolkit.py")]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", default="yolox_tiny_8xb8-300e_coco")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--quick", action="store_true", help="fewer images")
    parser.add_argument("--gpu", action="store_true", help="on cuda:0; the ops of mmcv have to be compiled for it")
    options = parser.parse_args()
    if not TASKS.is_file():
        print(f"There are no photographs in {DATA}, so nothing is measured.")
        return
    few, more = (64, 128) if options.quick else (64, 384)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        weights = str(folder / "weights.pth")
        subprocess.run([*TOOLKIT, "weights", options.config, "mmdet", weights], check=True)
        rates(folder, options, weights, few, more)
        memory(folder, options, weights, 256, 1_280 if options.quick else 5_120)


def rates(folder: Path, options: argparse.Namespace, weights: str, few: int, more: int) -> None:
    ways: Ways = {
        "inference_detector": lambda tasks: [
            *(*TOOLKIT, "detect", tasks, str(DATA), f"{tasks}.loop", options.config, weights)
        ],
        "lsml, fp32": lambda tasks: predict(tasks, options, weights, f"{tasks}.fp32", "--precision", "fp32"),
        "lsml, bf16": lambda tasks: predict(tasks, options, weights, f"{tasks}.bf16", "--precision", "bf16"),
    }
    stages = [*TOOLKIT, "stages", str(DATA / "coco128"), options.config, weights]
    compare(ways, (tasks_of(folder, few), tasks_of(folder, few + more)), more, options.rounds, stages)


def compare(ways: Ways, paths: tuple[str, str], more: int, rounds: int, stages: list[str]) -> None:
    """Print the rate of each way, relative to the loop and to the limit.

    Args:
        ways: Commands by name, the loop first; a name ends in its precision, fp32 without one.
        paths: Files of few and of many tasks.
        more: How many more the second file has.
        rounds: How often to measure.
        stages: A command that prints {stage: [wall seconds, processor seconds] per image}.
    """
    rates_of: dict[str, list[float]] = {name: [] for name in ways}
    limits: dict[str, list[float]] = {"fp32": [], "bf16": []}
    for number in range(rounds):
        costs = json.loads(subprocess.run(stages, check=True, capture_output=True).stdout)
        for precision, values in limits.items():
            other = "bf16" if precision == "fp32" else "fp32"
            values.append(1 / sum(cost[0] for stage, cost in costs.items() if not stage.endswith(other)))
        print(f"  stages, ms per image: { {stage: round(1e3 * cost[0], 1) for stage, cost in costs.items()} }")
        for name, command in ways.items():
            seconds = [run(command(path))[0] for path in paths]
            rates_of[name].append(more / (seconds[1] - seconds[0]))
            print(
                f"  round {number + 1}: {name}: {rates_of[name][-1]:.2f}/s, load {os.getloadavg()[0]:.1f}", flush=True
            )
    loop = next(iter(rates_of.values()))
    print(f"\n{'':20}{'images/s':>24}{'of the loop':>24}{'of the limit':>24}")
    for name, values in rates_of.items():
        of_loop = [rate / other for rate, other in zip(values, loop, strict=True)]
        of_limit = [rate / limit for rate, limit in zip(values, limits.get(name[-4:], limits["fp32"]), strict=True)]
        print(f"{name:20}{spread(values):>24}{spread(of_loop):>24}{spread(of_limit):>24}")
    print("Mean, lowest and highest of the rounds.")


def memory(folder: Path, options: argparse.Namespace, weights: str, small: int, large: int) -> None:
    peaks = {}
    for count in (small, large):
        path = tasks_of(folder, count)
        _, peaks[count] = run(predict(path, options, weights, f"{path}.out", "--precision", "bf16"))
        print(f"{count:,} tasks: at most {peaks[count]:.0f} MB", flush=True)
    print(f"{large // small} times the tasks need {peaks[large] / peaks[small]:.2f} times the memory.")


def predict(tasks: str, options: argparse.Namespace, weights: str, output: str, *arguments: str) -> list[str]:
    device = "cuda:0" if options.gpu else "cpu"
    return [
        *(*LSML, "predict", tasks, "--model", "object-detector", "--label-config", str(CONFIG)),
        *("--document-root", str(DATA), "--output", output, "--format", "json", "--quiet", "--device", device),
        *("--with", f"config_file={options.config}", "--with", f"checkpoint_file={weights}", *arguments),
    ]


def tasks_of(folder: Path, count: int) -> str:
    """Write a file of `count` exported tasks with new ids."""
    exported: list[dict[str, Any]] = json.loads(TASKS.read_bytes())
    path = folder / f"{count}.json"
    path.write_text(json.dumps([exported[n % len(exported)] | {"id": n + 1, "inner_id": n + 1} for n in range(count)]))
    return str(path)


def spread(values: list[float], digits: int = 2) -> str:
    return f"{statistics.mean(values):.{digits}f} ({min(values):.{digits}f} to {max(values):.{digits}f})"


if __name__ == "__main__":
    main()
