"""Run the command line: as a process, or inside of this one where no signal, pipe or memory is tested."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from pathlib import Path
from subprocess import CompletedProcess
from typing import Protocol
from unittest import mock

from typer.testing import CliRunner

from lsml_cli import cli

ROOT = Path(__file__).parents[2]
EXAMPLE = ROOT / "examples" / "support-tickets"
SHARED_DATA = ROOT.parent / "shared" / "data"


class Lsml(Protocol):
    """`lsml("predict", path, "--model", model)` -> the finished process, its stdout and stderr as text."""

    def __call__(
        self,
        *args: str | Path,
        input: str | None = None,
        timeout: float = 120,
        env: dict[str, str] | None = None,
        cwd: Path | None = None,
    ) -> CompletedProcess[str]: ...


def run_lsml(
    *args: str | Path,
    input: str | None = None,
    timeout: float = 120,
    env: dict[str, str] | None = None,
    cwd: Path | None = None,
) -> CompletedProcess[str]:
    """Run `lsml ARGS` as a process to its end.

    Args:
        args: What follows `lsml` on the command line.
        input: What arrives on its stdin, which is empty otherwise.
        timeout: Seconds.
        env: Variables on top of this process's own.
        cwd: The folder it runs in.
    """
    return subprocess.run(
        [sys.executable, "-m", "lsml_cli", *map(str, args)],
        input="" if input is None else input,
        capture_output=True,
        encoding="utf-8",
        timeout=timeout,
        env=_environment() | (env or {}),
        cwd=cwd,
        check=False,
    )


def run_in_process(
    *args: str | Path,
    input: str | None = None,
    timeout: float = 120,
    env: dict[str, str] | None = None,
    cwd: Path | None = None,
) -> CompletedProcess[str]:
    """Run `lsml ARGS` inside of this process: twenty times faster than a process of its own.

    For usage errors, help and short reports. Whatever starts replicas, reads signals or measures memory needs
    `run_lsml`. The parameters are those of `run_lsml`; `timeout` is not used.
    """
    command = ["lsml", *map(str, args)]
    with (
        mock.patch.object(sys, "argv", command),
        mock.patch.dict(os.environ, _environment() | (env or {}), clear=True),
        contextlib.chdir(cwd or Path()),
        CliRunner().isolation(input or "") as streams,
    ):
        code = 0
        try:
            cli.main()
        except SystemExit as ended:
            code = ended.code if isinstance(ended.code, int) else int(ended.code is not None)
        sys.stdout.flush()
        sys.stderr.flush()
        stdout, stderr = streams[0].getvalue().decode(), streams[1].getvalue().decode()
    return CompletedProcess(command, code, stdout, stderr)


def _environment() -> dict[str, str]:
    """Return a fixed width, and no variable of the person running the tests that would change what is printed."""
    own = {name: value for name, value in os.environ.items() if not name.startswith("LSML_")}
    return own | {"COLUMNS": "160", "NO_COLOR": "1", "TERM": "dumb"}
