"""`lsml predict` on photographs, against the obvious loop and against the limit of the cores.

    python benchmarks/bulk_images.py [--pictures 960] [--rounds 3] [--memory] [--fit]

ResNet-18 with random weights on the photographs of ../shared/data/ants-bees, repeated. Rates are those of the pictures
beyond the first 240, without any start-up. The limit is cores / (decode + transform + forward) with each stage
measured alone and all cores busy. `--memory`: 1,000 against 20,000 tasks; `--fit`: head against full.
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
from collections.abc import Callable
from pathlib import Path
from typing import Any

from _measure import run

ROOT = Path(__file__).parents[1]
DATA = ROOT.parent / "shared" / "data"
EXPORTS = DATA / "exports"
FEW = 240  # pictures of the short run that is taken off
CORES = len(os.sched_getaffinity(0))
LSML = [sys.executable, "-m", "lsml_cli"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pictures", type=int, default=960)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--memory", action="store_true")
    parser.add_argument("--fit", action="store_true")
    asked = parser.parse_args()
    if not (DATA / "ants-bees").is_dir():
        raise SystemExit("needs the photographs in ../shared/data/ants-bees, which are not here")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        model = fit(folder / "model")
        rates(folder, model, asked.pictures, asked.rounds)
        if asked.memory:
            memory(folder, model)
        if asked.fit:
            strategies(folder)


def fit(output: Path, *options: str) -> str:
    command = [
        *(*LSML, "fit", str(EXPORTS / "ants-bees-annotated.json"), "--model", "image-classifier", "-q"),
        *("--with", "weights=none", "-c", str(EXPORTS / "ants-bees.xml"), "--document-root", str(DATA)),
        *("-o", str(output), *options),
    ]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return str(output)


def tasks_of(folder: Path, count: int) -> str:
    tasks = json.loads((EXPORTS / "ants-bees-all-tasks.json").read_bytes())
    path = folder / f"{count}.json"
    path.write_text(json.dumps([tasks[n % len(tasks)] | {"id": n + 1} for n in range(count)]))
    return str(path)


def predict(folder: Path, model: str, *options: str) -> Callable[[str], list[str]]:
    out = str(folder / "out.json")
    common = ["--document-root", str(DATA), "-o", out, "-q", "--workers", str(CORES), *options]
    return lambda tasks: [*LSML, "predict", tasks, "--model", model, *common]


def rates(folder: Path, model: str, count: int, rounds: int) -> None:
    few, many = tasks_of(folder, FEW), tasks_of(folder, count)
    loop = [str(ROOT / "benchmarks" / "_picture_loop.py"), str(DATA), "ant,bee", str(folder / "loop.json")]
    ways: dict[str, Callable[[str], list[str]]] = {
        "the obvious loop": lambda tasks: [sys.executable, loop[0], tasks, *loop[1:]],
        "lsml, fp32": predict(folder, model, "--precision", "fp32"),
        "lsml, bf16": predict(folder, model, "--precision", "bf16"),
    }
    found: dict[str, list[float]] = {name: [] for name in ways}
    limits: dict[str, list[float]] = {"fp32": [], "bf16": []}
    for number in range(rounds):
        costs = stages(model)
        for precision, share in limits.items():
            share.append(1 / (costs["decode + transform"] + costs[f"forward {precision}"]))
        print(
            f"round {number + 1}, ms of a core per picture:",
            {name: round(c * CORES * 1e3, 1) for name, c in costs.items()},
        )
        for name, command in ways.items():
            seconds = [run(command(tasks))[0] for tasks in (few, many)]
            found[name].append((count - FEW) / (seconds[1] - seconds[0]))
            print(f"  {name}: {found[name][-1]:.1f}/s", flush=True)
    plain = statistics.mean(found["the obvious loop"])
    print(f"\n{CORES} cores, {count} pictures, mean of {rounds} rounds (lowest to highest)")
    for name, each in found.items():
        mean = statistics.mean(each)
        line = f"{name:18} {mean:6.1f}/s ({min(each):.1f} to {max(each):.1f}), {mean / plain:.2f} of the loop"
        if name.startswith("lsml"):
            limit = statistics.mean(limits[name[-4:]])
            line += f", {mean / limit:.2f} of the limit ({limit:.1f}/s)"
        print(line)


def stages(model: str) -> dict[str, float]:
    """Seconds of the machine per picture, all cores busy, for each stage alone."""
    script = f"""
import json, sys, time
from pathlib import Path
import torch
from lsml_cli.models.image_classifier.looking import Eye
from lsml_cli.models.image_classifier import nets
look = nets.preprocessing_of("resnet18")
contents = [path.read_bytes() for path in sorted(Path({str(DATA)!r}).glob("ants-bees/*/*.jpg"))[:192]]
def timed(work):
    work(); begun = time.perf_counter(); work(); return time.perf_counter() - begun
costs = {{}}
with ThreadPoolExecutor({CORES}) as pool:
    costs["decode + transform"] = timed(lambda: list(pool.map(look.pixels, contents))) / len(contents)
    pixels = list(pool.map(look.pixels, contents))
import torchvision
net = torchvision.models.resnet18(weights=None, num_classes=2)
for precision in ("fp32", "bf16"):
    eye = Eye(net, "cpu", look, precision)
    costs["forward " + precision] = timed(lambda: [eye.scores(pixels[n:n + 32]) for n in range(0, 192, 32)]) / 192
print(json.dumps(costs))
"""
    done = subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, text=True)
    costs: dict[str, float] = json.loads(done.stdout)
    return costs


def memory(folder: Path, model: str) -> None:
    command = predict(folder, model, "--precision", "bf16")
    peaks = {count: run(command(tasks_of(folder, count)))[1] for count in (1_000, 20_000)}
    print("\npeak memory:", {f"{count:,}": f"{peak:.0f} MB" for count, peak in peaks.items()})
    print(f"20,000 tasks need {peaks[20_000] / peaks[1_000]:.2f} of what 1,000 need")


def strategies(folder: Path) -> None:
    found: dict[str, Any] = {}
    for strategy in ("head", "full"):
        begun = time.perf_counter()
        patience = ["--with", "patience=25"]
        home = fit(folder / strategy, "--with", f"strategy={strategy}", "--with", "epochs=25", *patience)
        seconds = time.perf_counter() - begun
        listed = subprocess.run([*LSML, "versions", home, "--json"], check=True, capture_output=True, text=True)
        found[strategy] = seconds
        accuracy = json.loads(listed.stdout)[0]["metrics"]["insect"]["accuracy"]
        print(f"fit, {strategy}: {seconds:.0f} s, hold-out accuracy {accuracy:.3f} (from random weights)", flush=True)
    print(f"head is {found['full'] / found['head']:.0f} times as fast as 25 epochs of full")


if __name__ == "__main__":
    main()
