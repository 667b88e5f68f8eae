"""`lsml predict` with an object detector: against the toolkit's own loop, and against the limit of the cores.

    .venvs/openmmlab/bin/python benchmarks/bulk_detection.py [--config NAME] [--rounds N] [--quick] [--gpu]

The pictures are those of ../shared/data/coco128, repeated with new ids; YOLOX-tiny with random weights, the same file
of them on both sides. Everything is a whole process, each on a few pictures and on many: the difference is the rate, the
rest the start-up. Before each round the stages alone, with all cores busy; the limit is 1 / their sum.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from _measure import run

HERE = Path(__file__).parent
DATA = HERE.parents[1] / "shared" / "data"
TASKS, CONFIG = DATA / "exports" / "coco128-all-tasks.json", DATA / "exports" / "coco128.xml"
LSML = [sys.executable, "-W", "ignore", "-m", "lsml_cli"]
TOOLKIT = [sys.executable, "-W", "ignore", str(HERE / "_toolkit.py")]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", default="yolox_tiny_8xb8-300e_coco")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--quick", action="store_true", help="fewer pictures")
    parser.add_argument("--gpu", action="store_true", help="on cuda:0; the ops of mmcv have to be compiled for it")
    asked = parser.parse_args()
    if not TASKS.is_file():
        print(f"There are no photographs in {DATA}, so nothing is measured.")
        return
    few, more = (64, 128) if asked.quick else (64, 384)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        weights = str(folder / "weights.pth")
        subprocess.run([*TOOLKIT, "weights", asked.config, "mmdet", weights], check=True)
        rates(folder, asked, weights, few, more)
        memory(folder, asked, weights, 256, 1_280 if asked.quick else 5_120)


def rates(folder: Path, asked: argparse.Namespace, weights: str, few: int, more: int) -> None:
    paths = tasks_of(folder, few), tasks_of(folder, few + more)
    ways = {"inference_detector": [*TOOLKIT, "detect"], "lsml, fp32": ["fp32"], "lsml, bf16": ["bf16"]}
    found: dict[str, list[float]] = {name: [] for name in ways}
    limits: dict[str, list[float]] = {"fp32": [], "bf16": []}
    for number in range(asked.rounds):
        costs = json.loads(
            subprocess.run(
                [*TOOLKIT, "stages", str(DATA / "coco128"), asked.config, weights], check=True, capture_output=True
            ).stdout
        )
        for precision, values in limits.items():
            parts = [cost[0] for stage, cost in costs.items() if not stage.startswith("forward ")]
            values.append(1 / (sum(parts) + costs[f"forward {precision}"][0]))
        print(f"  stages, ms per picture: { {stage: round(1e3 * cost[0], 1) for stage, cost in costs.items()} }")
        for name, way in ways.items():
            took = []
            for path in paths:
                if len(way) > 1:
                    command = [*way, path, str(DATA), f"{path}.loop", asked.config, weights]
                else:
                    command = predict(path, asked, weights, f"{path}.{way[0]}", "--precision", way[0])
                took.append(run(command)[0])
            found[name].append(more / (took[1] - took[0]))
            print(f"  round {number + 1}: {name}: {found[name][-1]:.1f}/s, load {os.getloadavg()[0]:.1f}", flush=True)
    loop = found["inference_detector"]
    print(f"\n{'':20}{'pictures/s':>22}{'of the loop':>22}{'of the limit':>22}")
    for name, values in found.items():
        of_loop = [one / other for one, other in zip(values, loop, strict=True)]
        limit = limits[name[-4:]] if name[-4:] in limits else limits["fp32"]
        of_limit = [one / other for one, other in zip(values, limit, strict=True)]
        print(f"{name:20}{spread(values, 1):>22}{spread(of_loop):>22}{spread(of_limit):>22}")
    print("Mean, and least to most of the rounds.")


def memory(folder: Path, asked: argparse.Namespace, weights: str, small: int, large: int) -> None:
    peaks = {}
    for count in (small, large):
        path = tasks_of(folder, count)
        _, peaks[count] = run(predict(path, asked, weights, f"{path}.out", "--precision", "bf16"))
        print(f"{count:,} tasks: at most {peaks[count]:.0f} MB", flush=True)
    print(f"{large // small} times the tasks need {peaks[large] / peaks[small]:.2f} times the memory.")


def predict(tasks: str, asked: argparse.Namespace, weights: str, output: str, *options: str) -> list[str]:
    device = "cuda:0" if asked.gpu else "cpu"
    return [
        *(*LSML, "predict", tasks, "--model", "object-detector", "--label-config", str(CONFIG)),
        *("--document-root", str(DATA), "--output", output, "--format", "json", "--quiet", "--device", device),
        *("--with", f"config_file={asked.config}", "--with", f"checkpoint_file={weights}", *options),
    ]


def tasks_of(folder: Path, count: int) -> str:
    """A file of `count` tasks, each as it was exported, with new ids."""
    exported: list[dict[str, Any]] = json.loads(TASKS.read_bytes())
    path = folder / f"{count}.json"
    path.write_text(json.dumps([exported[n % len(exported)] | {"id": n + 1, "inner_id": n + 1} for n in range(count)]))
    return str(path)


def spread(values: list[float], digits: int = 2) -> str:
    return f"{statistics.mean(values):.{digits}f} ({min(values):.{digits}f} to {max(values):.{digits}f})"


if __name__ == "__main__":
    main()
