"""Measure time and memory of processes."""

from __future__ import annotations

import statistics
import subprocess
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import psutil


@dataclass
class Measurement:
    """Several rounds of one command: wall seconds, and peak megabytes summed over its processes."""

    name: str
    seconds: list[float] = field(default_factory=list)
    megabytes: list[float] = field(default_factory=list)

    @property
    def mean(self) -> float:
        return statistics.mean(self.seconds)

    @property
    def peak(self) -> float:
        return max(self.megabytes)

    def spread(self) -> str:
        return f"{self.mean:7.2f} s ({min(self.seconds):.2f} to {max(self.seconds):.2f})"


def run(command: Sequence[str], stdin: str | None = None) -> tuple[float, float]:
    """Return wall seconds and peak megabytes (resident, summed over the process tree, sampled every 20 ms) of a run."""
    input_file = open(stdin, "rb") if stdin else subprocess.DEVNULL  # noqa: PTH123, SIM115
    started_at = time.perf_counter()
    with subprocess.Popen(command, stdin=input_file, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE) as process:
        peak = 0
        root = psutil.Process(process.pid)
        while process.poll() is None:
            peak = max(peak, _resident(root))
            time.sleep(0.02)
        seconds = time.perf_counter() - started_at
        if process.returncode:
            assert process.stderr
            raise SystemExit(f"{' '.join(command)} failed:\n{process.stderr.read().decode()}")
    return seconds, peak / 1e6


def _resident(root: psutil.Process) -> int:
    total = 0
    try:
        for process in (root, *root.children(recursive=True)):
            total += process.memory_info().rss
    except psutil.NoSuchProcess:
        pass
    return total


def rounds(commands: dict[str, Callable[[], tuple[float, float]]], count: int) -> dict[str, Measurement]:
    """Run each command `count` times in turn (A B C A B C), so that a slow minute hits all of them."""
    measured = {name: Measurement(name) for name in commands}
    for number in range(count):
        for name, once in commands.items():
            seconds, megabytes = once()
            measured[name].seconds.append(seconds)
            measured[name].megabytes.append(megabytes)
            print(f"  round {number + 1}: {name}: {seconds:.2f} s, {megabytes:.0f} MB", flush=True)
    return measured
