"""Log why requests are rejected. Anybody may send them, so lines are short, and few of a kind are written a minute."""

from __future__ import annotations

import asyncio
import logging

from lsml_cli.terminal import escape_controls

MAX_CHARACTERS = 300  # of one line, after escaping
MAX_MISMATCH_CHARACTERS = 2000  # the same, where a model cannot fill a label config: both lists of labels are shown
MAX_LINES = 20  # of one kind in an interval
INTERVAL = 60.0  # seconds

log = logging.getLogger("lsml.serve")


class RejectionLog:
    """Log rejected requests, at most `MAX_LINES` of a kind in an interval, and then how many more there were.

    Runs in the event loop. The caller has few kinds, none of which comes from a request.

    Args:
        interval: Seconds.
    """

    def __init__(self, interval: float = INTERVAL) -> None:
        self._interval = interval
        self._counts: dict[str, int] = {}  # by kind, since its interval began

    def warning(self, kind: str, reason: str, max_characters: int = MAX_CHARACTERS) -> None:
        """Log the reason for one rejection.

        Args:
            kind: What was requested: the path of a route.
            reason: A sentence; it may quote the request.
            max_characters: Of the line.
        """
        if self.admits(kind):
            log.warning("%s", shorten_line(f"{kind}: {reason}", max_characters))

    def admits(self, kind: str) -> bool:
        """Tell whether another line of this kind is to be logged; otherwise it is only counted."""
        count = self._counts[kind] = self._counts.get(kind, 0) + 1
        if count == 1:
            asyncio.get_running_loop().call_later(self._interval, self._end_interval, kind)
        elif count == MAX_LINES + 1:
            log.warning("%s: more rejected requests are counted, not logged, for a minute.", kind)
        return count <= MAX_LINES

    def _end_interval(self, kind: str) -> None:
        more = self._counts.pop(kind) - MAX_LINES
        if more > 0:
            log.warning("%s: %s more requests were rejected.", kind, f"{more:,}")


def shorten_line(text: str, max_characters: int = MAX_CHARACTERS) -> str:
    """Return text on one printable line, cut to `max_characters` with a note of how many the text has."""
    line = escape_controls(text[: max_characters + 1])
    if len(line) <= max_characters:
        return line
    note = f"… ({len(text):,} characters)"
    return line[: max_characters - len(note)] + note
