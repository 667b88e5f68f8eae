"""Compare `lsml predict` on photographs with the obvious loop and with the limit of the cores.

    python benchmarks/bulk_images.py [--only rate|memory|fit|gpu] [--quick] [--workers N]

The tasks are those of ../shared/data/exports/ants-bees-all-tasks.json, repeated with new ids; ResNet-18 is trained
by `lsml fit` on random weights. Each run is a process of its own.

rate    the loop and `lsml predict` in turn, each on a few images and on many: their difference gives the rate without
        the start-up. Before each round the stages are measured alone, with all cores busy; the limit is 1 / their sum
memory  1,000 against 20,000 tasks
fit     `strategy=head` against 25 epochs of `strategy=full`
gpu     ResNet-50: `lsml predict --device cuda:0` against what decoding and the device can do, each alone
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
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from _measure import run

from lsml_cli.runtime import available_cores

HERE = Path(__file__).parent
DATA = HERE.parents[1] / "shared" / "data"
PHOTOS, EXPORTS = DATA / "ants-bees", DATA / "exports"
PARTS = ("rate", "memory", "fit", "gpu")
PRECISIONS = ("fp32", "bf16")
LSML = [sys.executable, "-m", "lsml_cli"]


@dataclass(frozen=True)
class Sizes:
    """How much is measured. `few` is at least 64: for fewer tasks `--precision auto` stays with fp32."""

    rounds: int = 2
    few: int = 128
    more: int = 640  # than few
    small: int = 1_000
    large: int = 20_000
    epochs: int = 25


QUICK = Sizes(rounds=1, few=64, more=256, small=500, large=3_000, epochs=3)


@dataclass
class Way:
    """One way to predict, round by round."""

    command: Callable[[str], list[str]]
    precision: str = "fp32"
    rates: list[float] = field(default_factory=list)  # images per second beyond the few
    whole: list[float] = field(default_factory=list)  # images per second of the longer run with its start-up
    used: list[float] = field(default_factory=list)  # processor seconds per image beyond the few


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=PARTS, action="append", help="a part; repeat for several")
    parser.add_argument("--quick", action="store_true", help="about two minutes, and figures to match")
    parser.add_argument("--rounds", type=int, help="of the rates")
    parser.add_argument("--workers", type=int, help="for lsml predict; its own default if not given")
    arguments = parser.parse_args()
    if not PHOTOS.is_dir():
        print(f"There are no photographs in {PHOTOS}, so nothing is measured.")
        return
    sizes = QUICK if arguments.quick else Sizes()
    options = ["--workers", str(arguments.workers)] if arguments.workers else []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for part in arguments.only or PARTS:
            print(f"\n{part}: {available_cores()} cores, load {os.getloadavg()[0]:.1f} before it", flush=True)
            if part == "rate":
                rates(folder, sizes, arguments.rounds or sizes.rounds, options)
            elif part == "memory":
                memory(folder, sizes, options)
            elif part == "fit":
                strategies(folder, sizes)
            else:
                gpu(folder, sizes)
    print(
        f"\nload {os.getloadavg()[0]:.1f} at the end; anything above 1 before a part came from other processes",
        flush=True,
    )


# ---- rate


def rates(folder: Path, sizes: Sizes, rounds: int, options: list[str]) -> None:
    model = fit(folder / "resnet18")
    version = str(next(path for path in Path(model).iterdir() if (path / "weights.safetensors").is_file()))
    few, many = tasks_of(folder, sizes.few), tasks_of(folder, sizes.few + sizes.more)

    def lsml(*given: str) -> Callable[[str], list[str]]:
        return lambda tasks: predict(tasks, model, f"{tasks}{''.join(given)}.out", *given, *options)

    def loop(tasks: str) -> list[str]:
        return [sys.executable, str(HERE / "_image_loop.py"), tasks, str(DATA), version, f"{tasks}.loop.out"]

    ways = {
        "the loop": Way(loop),
        "lsml, fp32": Way(lsml("--precision", "fp32")),
        "lsml, bf16": Way(lsml("--precision", "bf16"), "bf16"),
        "lsml, as it comes": Way(lsml(), "bf16"),
    }
    stages: list[dict[str, list[float]]] = []
    for number in range(rounds):
        stages.append(stage_costs("resnet18", "cpu"))
        for name, way in ways.items():
            took = [timed(way.command(tasks)) for tasks in (few, many)]
            way.rates.append(sizes.more / (took[1][0] - took[0][0]))
            way.whole.append((sizes.few + sizes.more) / took[1][0])
            way.used.append((took[1][1] - took[0][1]) / sizes.more)
            print(f"  round {number + 1}: {name}: {way.rates[-1]:.1f}/s, load {os.getloadavg()[0]:.1f}", flush=True)
    stage_table(stages)
    rate_table(ways, stages, sizes)
    loops, ours = (answers(f"{many}{end}") for end in (".loop.out", "--precisionfp32.out"))
    print(f"Equal answers of the loop and of lsml in fp32: {share_equal(loops, ours):.1%} of {len(ours):,}.")
    low = answers(f"{many}--precisionbf16.out")
    print(f"Equal answers of lsml in fp32 and in bf16: {share_equal(ours, low):.1%}.")


def stage_costs(arch: str, device: str) -> dict[str, list[float]]:
    """Return {stage: [wall seconds, processor seconds] per image}."""
    command = [sys.executable, "-W", "ignore", str(HERE / "_image_stages.py"), str(PHOTOS), arch, device]
    costs: dict[str, list[float]] = json.loads(subprocess.run(command, check=True, capture_output=True).stdout)
    return costs


def parts_of(costs: dict[str, list[float]], precision: str, kind: int = 0) -> list[float]:
    """Return the cost of an image in each stage of one precision; kind 0: wall seconds, 1: processor seconds."""
    return [
        cost[kind] for stage, cost in costs.items() if not stage.startswith("forward ") or stage.endswith(precision)
    ]


def stage_table(stages: list[dict[str, list[float]]]) -> None:
    print("\nmilliseconds of one core per image, each stage alone with all cores busy: lowest to highest of the rounds")
    for stage in stages[0]:
        milliseconds = [1e3 * available_cores() * costs[stage][0] for costs in stages]
        print(f"{stage:18}{min(milliseconds):8.1f} to {max(milliseconds):.1f}")
    for precision in PRECISIONS:
        whole = statistics.mean(sum(parts_of(costs, precision)) for costs in stages)
        names = [name for name in stages[0] if not name.startswith("forward ") or name.endswith(precision)]
        share = {name: statistics.mean(costs[name][0] for costs in stages) / whole for name in names}
        slowest = max(share, key=lambda name: share[name])
        print(f"In {precision} the bottleneck is {slowest}: {share[slowest]:.0%} of the work.")


def rate_table(ways: dict[str, Way], stages: list[dict[str, list[float]]], sizes: Sizes) -> None:
    loop = ways["the loop"]
    print(f"\n{'':18}{'images/s':>24}{'of the loop':>24}{'of the limit':>24}{'in work':>9}{'with start-up':>15}")
    for name, way in ways.items():
        of_loop = [rate / loop_rate for rate, loop_rate in zip(way.rates, loop.rates, strict=True)]
        limits = [1 / sum(parts_of(costs, way.precision)) for costs in stages]
        of_limit = [rate / limit for rate, limit in zip(way.rates, limits, strict=True)]
        stage_work = [sum(parts_of(costs, way.precision, 1)) for costs in stages]
        work = statistics.mean(needed / used for needed, used in zip(stage_work, way.used, strict=True))
        print(
            f"{name:18}{spread(way.rates, 1):>24}{spread(of_loop):>24}{spread(of_limit):>24}{work:9.2f}"
            f"{statistics.mean(way.whole):13.1f}/s"
        )
    print(
        f"\nMean, lowest and highest of the rounds, images {sizes.few + 1:,} to {sizes.few + sizes.more:,}; "
        "'with start-up' is the rate of all of them.\nin work: processor time of the stages alone, as a share of what "
        "the run used; unlike the rates, it does not suffer\nfrom other processes."
    )


def spread(values: list[float], digits: int = 2) -> str:
    return f"{statistics.mean(values):.{digits}f} ({min(values):.{digits}f} to {max(values):.{digits}f})"


def answers(path: str) -> list[list[str]]:
    tasks = json.loads(Path(path).read_bytes())
    return [task["predictions"][0]["result"][0]["value"]["choices"] for task in tasks]


def share_equal(one: list[list[str]], other: list[list[str]]) -> float:
    return statistics.mean(a == b for a, b in zip(one, other, strict=True))


# ---- memory


def memory(folder: Path, sizes: Sizes, options: list[str]) -> None:
    """Measure with a small network, since what could grow is not in the network, and 20,000 images take a while."""
    model = fit(folder / "mobilenet", "--with", "arch=mobilenet_v3_small")
    peaks = {}
    for count in (sizes.small, sizes.large):
        tasks = tasks_of(folder, count)
        seconds, peaks[count] = run(predict(tasks, model, f"{tasks}.out", "--precision", "bf16", *options))
        print(f"{count:,} tasks: at most {peaks[count]:.0f} MB, {count / seconds:.0f}/s with start-up", flush=True)
    ratio = peaks[sizes.large] / peaks[sizes.small]
    print(f"{sizes.large // sizes.small} times the tasks need {ratio:.2f} times the memory.")


# ---- fit


def strategies(folder: Path, sizes: Sizes) -> None:
    took = {}
    for strategy in ("head", "full"):
        params = [f"strategy={strategy}", f"epochs={sizes.epochs}", f"patience={sizes.epochs}"]
        started_at = time.perf_counter()
        home = fit(folder / strategy, *(word for param in params for word in ("--with", param)))
        took[strategy] = time.perf_counter() - started_at
        listed = subprocess.run([*LSML, "versions", home, "--json"], check=True, capture_output=True)
        accuracy = json.loads(listed.stdout)[0]["metrics"]["insect"]["accuracy"]
        what = strategy if strategy == "head" else f"full, {sizes.epochs} epochs"
        print(f"{what}: {took[strategy]:.1f} s, hold-out accuracy {accuracy:.3f} (from random weights)", flush=True)
    print(f"head is {took['full'] / took['head']:.0f} times as quick.")


# ---- gpu


def gpu(folder: Path, sizes: Sizes) -> None:
    counted = subprocess.run(
        [sys.executable, "-c", "import torch; print(torch.cuda.device_count())"], check=True, capture_output=True
    )
    if not int(counted.stdout):
        print("There is no GPU here, so nothing is measured on one.")
        return
    costs = stage_costs("resnet50", "cuda:0")
    before = sum(seconds for stage, (seconds, _) in costs.items() if not stage.startswith("forward "))
    ceilings = {"decoding, on all cores": 1 / before, "the device": 1 / costs["forward fp16"][0]}
    model = fit(folder / "resnet50", "--with", "arch=resnet50")
    few, many = tasks_of(folder, 10 * sizes.few), tasks_of(folder, 10 * (sizes.few + 2 * sizes.more))
    options = ["--device", "cuda:0", "--precision", "fp16", "--workers", str(available_cores())]
    lsml_rates = []
    for _ in range(sizes.rounds):
        took = [timed(predict(tasks, model, f"{tasks}.out", *options))[0] for tasks in (few, many)]
        lsml_rates.append(20 * sizes.more / (took[1] - took[0]))
    for name, ceiling in ceilings.items():
        print(f"{name} alone: {ceiling:,.0f}/s")
    print(
        f"lsml predict: {spread(lsml_rates, 0)}/s, "
        f"{statistics.mean(lsml_rates) / min(ceilings.values()):.2f} of the lesser"
    )


# ---- shared


def fit(home: Path, *options: str) -> str:
    command = [
        *(*LSML, "fit", str(EXPORTS / "ants-bees-annotated.json"), "--model", "image-classifier", "--quiet"),
        *("--with", "weights=none", "--label-config", str(EXPORTS / "ants-bees.xml"), "--document-root", str(DATA)),
        *("--output", str(home), *options),
    ]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return str(home)


def predict(tasks: str, model: str, output: str, *options: str) -> list[str]:
    given = ["--model", model, "--document-root", str(DATA), "--output", output, "--format", "json", "--quiet"]
    return [*LSML, "predict", tasks, *given, *options]


def tasks_of(folder: Path, count: int) -> str:
    """Write a file of `count` exported tasks (600 bytes each) with new ids."""
    exported: list[dict[str, Any]] = json.loads((EXPORTS / "ants-bees-all-tasks.json").read_bytes())
    path = folder / f"{count}.json"
    path.write_text(json.dumps([exported[n % len(exported)] | {"id": n + 1, "inner_id": n + 1} for n in range(count)]))
    return str(path)


def timed(command: list[str]) -> tuple[float, float]:
    """Return wall seconds and processor seconds of a process and its children."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    seconds, _ = run(command)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return seconds, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


if __name__ == "__main__":
    main()
