"""Run the command line: as a process, or inside of this one where no signal, pipe or memory is tested."""

from __future__ import annotations

import contextlib
import functools
import os
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from subprocess import CompletedProcess
from typing import Protocol
from unittest import mock

import typer.main

from lsml_cli import cli

ROOT = Path(__file__).parents[2]
EXAMPLE = ROOT / "examples" / "support-tickets"
SHARED_DATA = ROOT.parent / "shared" / "data"

# Typer builds all commands anew for each command line, which is most of the time of a short one.
build_command = functools.cache(typer.main.get_command)


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

    Descriptors 0 to 2 are redirected meanwhile, so it reads and writes as a process does. Whatever is interrupted or
    killed, limited, measured, or must not find modules loaded needs `run_lsml`. The parameters are those of `run_lsml`;
    `timeout` is not used.
    """
    command = ["lsml", *map(str, args)]
    code = 0
    with (
        mock.patch.object(sys, "argv", command),
        mock.patch.object(typer.main, "get_command", build_command),
        mock.patch.dict(os.environ, _environment() | (env or {}), clear=True),
        contextlib.chdir(cwd or Path()),
        tempfile.TemporaryFile() as stdout,
        tempfile.TemporaryFile() as stderr,
    ):
        with _pipe_from(input or "") as stdin, _standard_streams(stdin, stdout.fileno(), stderr.fileno()):
            try:
                cli.main()
            except SystemExit as ended:
                code = ended.code if isinstance(ended.code, int) else int(ended.code is not None)
        outputs = []
        for file in (stdout, stderr):
            file.seek(0)
            outputs.append(file.read().decode())
    return CompletedProcess(command, code, *outputs)


@contextlib.contextmanager
def _standard_streams(*descriptors: int) -> Iterator[None]:
    """Lead stdin, stdout and stderr to other descriptors, for Python and for what writes below it."""
    sys.stdout.flush()
    sys.stderr.flush()
    saved = [os.dup(number) for number in range(3)]
    for number, descriptor in enumerate(descriptors):
        os.dup2(descriptor, number)
    try:
        with (
            open(0, encoding="utf-8", closefd=False) as stdin,
            open(1, "w", encoding="utf-8", closefd=False) as stdout,
            open(2, "w", encoding="utf-8", errors="backslashreplace", buffering=1, closefd=False) as stderr,
            mock.patch.multiple(sys, stdin=stdin, stdout=stdout, stderr=stderr),
        ):
            yield
    finally:
        for number, descriptor in enumerate(saved):
            os.dup2(descriptor, number)
            os.close(descriptor)


@contextlib.contextmanager
def _pipe_from(text: str) -> Iterator[int]:
    """Return the end to read from of a pipe that gets the text."""
    reader, writer = os.pipe()

    def write() -> None:
        with contextlib.suppress(BrokenPipeError), os.fdopen(writer, "wb") as file:
            file.write(text.encode())

    thread = threading.Thread(target=write)
    thread.start()
    try:
        yield reader
    finally:
        os.close(reader)
        thread.join()


def _environment() -> dict[str, str]:
    """Return a fixed width, and no variable of the person running the tests that would change what is printed."""
    own = {name: value for name, value in os.environ.items() if not name.startswith("LSML_")}
    return own | {"COLUMNS": "160", "NO_COLOR": "1", "TERM": "dumb"}
