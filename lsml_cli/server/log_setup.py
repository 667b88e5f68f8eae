"""Log to stderr, one printable line for each message."""

from __future__ import annotations

import logging
import sys

from lsml_cli.server.rejection_log import RejectionLog, shorten_line
from lsml_cli.terminal import escape_controls

MAX_MESSAGE_CHARACTERS = 4000  # of any message: it may quote a label config or a task, which may have megabytes


class PrintableFormatter(logging.Formatter):
    """Show control characters escaped.

    Text from requests, tasks and models may contain anything: control characters act on a terminal, and text after a
    line break would look like a line of the server's own.
    """

    def formatMessage(self, record: logging.LogRecord) -> str:
        """Format the message as one line of at most `MAX_MESSAGE_CHARACTERS`."""
        return shorten_line(super().formatMessage(record).rstrip(), MAX_MESSAGE_CHARACTERS)

    def format(self, record: logging.LogRecord) -> str:
        """Format a record: the message, then the indented lines of a traceback."""
        return "\n    ".join(escape_controls(line) for line in super().format(record).splitlines())


class InvalidHttpFilter(logging.Filter):
    """Limit uvicorn's warnings about what is no HTTP: one for each connection that sends such bytes."""

    def __init__(self, rejections: RejectionLog) -> None:
        super().__init__()
        self._rejections = rejections

    def filter(self, record: logging.LogRecord) -> bool:
        """Tell whether to log a record."""
        return record.levelno != logging.WARNING or self._rejections.admits("Invalid HTTP")


def log_everything_to_stderr() -> None:
    """Send the warnings of all libraries to stderr as well: for a process that does nothing but one job."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(PrintableFormatter("lsml: %(message)s"))
    logging.basicConfig(handlers=[handler])


def log_to_stderr() -> None:
    """Send the logs of lsml and uvicorn to stderr."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(PrintableFormatter("lsml: %(asctime)s %(message)s", "%H:%M:%S"))
    for name, level in (("lsml", logging.INFO), ("uvicorn", logging.WARNING)):
        logger = logging.getLogger(name)
        logger.setLevel(level)
        logger.handlers = [handler]
        logger.propagate = False
    logging.getLogger("uvicorn.error").addFilter(InvalidHttpFilter(RejectionLog()))
