"""Log to stderr, one printable line for each message."""

from __future__ import annotations

import logging
import sys


class PrintableFormatter(logging.Formatter):
    """Replace characters that are not printable by question marks.

    Text from requests, tasks and models may contain anything: control characters act on a terminal, and text after a
    line break would look like a line of the server's own.
    """

    def formatMessage(self, record: logging.LogRecord) -> str:
        """Format the message as one line."""
        return _replace_unprintable(super().formatMessage(record).rstrip())

    def format(self, record: logging.LogRecord) -> str:
        """Format a record: the message, then the indented lines of a traceback."""
        return "\n    ".join(_replace_unprintable(line) for line in super().format(record).splitlines())


def log_to_stderr() -> None:
    """Send the logs of lsml and uvicorn to stderr."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(PrintableFormatter("lsml: %(asctime)s %(message)s", "%H:%M:%S"))
    for name, level in (("lsml", logging.INFO), ("uvicorn", logging.WARNING)):
        logger = logging.getLogger(name)
        logger.setLevel(level)
        logger.handlers = [handler]
        logger.propagate = False


def _replace_unprintable(text: str) -> str:
    return "".join(character if character.isprintable() else "?" for character in text)
