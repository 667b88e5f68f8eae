"""The only way to a terminal: text that comes from data is escaped before it is printed.

Names of files, labels, values of tasks and answers of servers may hold anything, and a terminal obeys control
characters. Standard error is written here, standard output in `commands.console.stdout`, logs by
`server.log_setup`; a test checks that nothing else prints.
"""

from __future__ import annotations

import os
import re
import sys
from typing import TextIO

# What a terminal obeys or hides instead of showing it. Marks that join letters are shown between letters of a script
# that needs them, see `_JOINER`.
_CONTROLS = (
    "\x00-\x1f\x7f-\x9f"  # C0, DEL, C1
    "\u00ad\u061c\u070f\u180e\u200b-\u200f\u2028-\u202f\u2060-\u206f\ufeff\ufff0-\ufffb"  # bidirectional, invisible
    "\u115f\u1160\u2800\u3164\uffa0"  # blank, but no white space: they pad a name out of sight
    "\ud800-\udfff"  # lone surrogates: bytes of a file name that are not UTF-8
    "\U000110bd\U000110cd\U00013430-\U0001343f\U0001bca0-\U0001bca3\U0001d173-\U0001d17a"
    "\U000e0000-\U000e00ff\U000e01f0-\U000e0fff"
)
_JOINER = "(?<=[^\x00-\xff])[\u200c\u200d](?=[^\x00-\xff])"  # Persian, Hindi, and emoji of several people
_UNSAFE = re.compile(f"(?P<joiner>{_JOINER})|[{_CONTROLS}]")
_RED, _RESET = "\x1b[31m", "\x1b[0m"
_SHORT = {"\n": r"\n", "\r": r"\r", "\t": r"\t"}


def escape_controls(text: str) -> str:
    r"""Return text on one line, with control, invisible and direction-changing characters as escapes: `\u001b`.

    The escapes are those of JSON and TOML, so a quoted string stays the same string.
    """
    return text if text.isascii() and text.isprintable() else _UNSAFE.sub(_escape, text)


def escape_lines(text: str) -> str:
    """Return text of several lines, such as a traceback, each escaped."""
    return "\n".join(map(escape_controls, text.splitlines()))


def print_message(message: str, hint: str | None = None, *, red: bool = False) -> None:
    """Print a sentence to stderr, `lsml: ` before it, and on a second line what to do next.

    Args:
        message: What is said.
        hint: What to do next.
        red: Print in red, where stderr is a terminal that shows colours.
    """
    text = f"lsml: {escape_controls(message)}" + (f"\n      {escape_controls(hint)}" if hint else "")
    if red and shows_colours(sys.stderr):
        text = f"{_RED}{text}{_RESET}"
    print(text, file=sys.stderr, flush=True)


def print_details(text: str) -> None:
    """Print text of several lines, such as a traceback, to stderr."""
    print(escape_lines(text), file=sys.stderr, flush=True)


def shows_colours(stream: TextIO) -> bool:
    """Return whether a stream is a terminal that shows colours, and the user wants them."""
    return stream.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"


def _escape(match: re.Match[str]) -> str:
    character = match.group()
    if match["joiner"]:
        return character
    code = ord(character)
    return _SHORT.get(character) or (f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}")
