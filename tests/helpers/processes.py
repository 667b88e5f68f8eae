"""Start, watch and kill `lsml` as a process; shared by several suites, nothing here is a test."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path


def start_lsml(*arguments: str) -> subprocess.Popen[bytes]:
    """Start `lsml` in a process group of its own."""
    return subprocess.Popen([sys.executable, "-m", "lsml_cli", *arguments], start_new_session=True)


def kill_process(process: subprocess.Popen[bytes]) -> None:
    """Kill this process only, as the kernel does when memory runs out; its workers must end by themselves."""
    process.kill()
    process.wait()


def count_journaled(output: str) -> int:
    """Return how many tasks the journal of the unfinished run to `output` records as done, 0 without a journal."""
    try:
        lines = Path(f"{output}.part.journal").read_text().split("\n")[:-1]
    except FileNotFoundError:
        return 0
    records: int = json.loads(lines[-1]).get("records", 0) if len(lines) > 1 else 0
    return records


def wait_until_journaled(output: str, records: int) -> None:
    """Wait until the unfinished run to `output` has recorded more than `records` tasks as done."""
    wait_for(lambda: count_journaled(output) > records)


def wait_for(condition: Callable[[], object], seconds: float = 30) -> None:
    """Poll `condition` until it is true; fail after `seconds`."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited for too long"
        time.sleep(0.005)
