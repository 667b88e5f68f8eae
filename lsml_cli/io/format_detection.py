"""Detect the format of an input by its first bytes: a JSON array, JSON Lines, a stream of objects, CSV or TSV."""

from __future__ import annotations

import json
import re

import orjson

from lsml_cli.errors import InputError
from lsml_cli.io.foreign_formats import recognize_content
from lsml_cli.io.image_paths import is_image
from lsml_cli.io.json_records import CHUNK, MAX_TASK_BYTES, WHITESPACE, BraceDepth, EndReason

EXPECTED_TASKS_HINT = (
    "Expected a JSON array of tasks, JSON Lines, CSV or TSV, as Label Studio exports and imports them."
)
BOM = b"\xef\xbb\xbf"
UTF16_BOMS = (b"\xff\xfe", b"\xfe\xff")
ZIP_MAGIC = b"PK\x03\x04"
BINARY_SAMPLE_BYTES = 4096  # bytes that tell text from anything else
_PRINTABLE = bytes({*range(256)} - {*range(32), 127} | {*b"\t\n\f\r"})
_CONTROL_OR_INVALID = re.compile("[\0-\x08\x0b\x0e-\x1f\x7f\udc80-\udcff]")  # the last range: bytes that are not UTF-8
_DECODER = json.JSONDecoder(parse_int=float)  # says where a text stops being JSON; int refuses 5,000 digits
_HEADER_PATTERN = re.compile(r'("?)[^\W\d][\w .-]{0,63}\1\s*')


def is_format_visible(head: bytes) -> bool:
    """Return whether the format shows: in one line, or in three when the first begins an object without ending it."""
    *lines, _ = head.removeprefix(BOM).split(b"\n")
    lines = [line for line in lines if line.strip()]
    return bool(lines) and (len(lines) >= 3 or not lines[0].lstrip().startswith(b"{") or _is_json_object(lines[0]))


def detect_format(head: bytes, name: str, end_reason: EndReason) -> str:
    """Return the format of an input: "array", "lines", "stream" or "csv".

    Args:
        head: Its first bytes, without a byte order mark.
        name: The input, for messages.
        end_reason: Why the input ended early, "" if it did not.

    Raises:
        InputError: It holds nothing that could be tasks.
        UsageError: It holds a data set of another format.
    """
    start = head.lstrip(WHITESPACE)
    if not start:
        raise InputError(f"{end_reason() or _blank_reason(head, name)}.", EXPECTED_TASKS_HINT)
    if start.startswith(ZIP_MAGIC):
        raise _zip_error(name)
    first_line, newline, _ = start.partition(b"\n")
    if _is_binary(start):
        raise _not_text_error(name)
    if error := recognize_content(start, name):
        raise error
    if start.startswith(b"["):
        return "array"
    if start.startswith(b"{"):
        return _detect_object_format(start)
    if is_image(name):  # PGM begins like a CSV file with one column
        raise _not_text_error(name)
    text = first_line.decode("utf-8", "surrogateescape")
    separator = re.search(r"[,;\t]", text)
    if separator and _CONTROL_OR_INVALID.search(text):
        raise _not_text_error(name)
    if separator or (newline and _HEADER_PATTERN.fullmatch(text)):
        return "csv"
    excerpt = first_line[:40].decode("utf-8", "replace")
    raise InputError(
        f"{name} is neither JSON nor CSV: it starts with {excerpt!r}.",
        f"{EXPECTED_TASKS_HINT} lsml predict reads plain text, one task a line, with --from lines.",
    )


def require_path_list(head: bytes, name: str, end_reason: EndReason) -> None:
    """Raise InputError for an input that is certainly no list of paths, instead of looking for a file per line.

    The arguments are those of `detect_format`.
    """
    start = head.strip(WHITESPACE + b"\0")
    if not start:
        raise InputError(f"{end_reason() or _blank_reason(head, name)}.", "Expected a path or a URL on each line.")
    if start.startswith(UTF16_BOMS) or is_image(name):
        raise _not_text_error(name)
    if re.match(rb"\[\s*[{\]]", start) or _is_json_object(start.partition(b"\n")[0]):
        raise InputError(f"{name} is JSON, not a list of paths.", "Leave out --from paths.")


def require_text(head: bytes, name: str, end_reason: EndReason) -> None:
    """Raise InputError for an input that is certainly no lines of text.

    The arguments are those of `detect_format`.
    """
    start = head.lstrip(WHITESPACE)
    if not start:
        raise InputError(f"{end_reason() or _blank_reason(head, name)}.", "Expected a text on each line.")
    if start.startswith(ZIP_MAGIC):
        raise _zip_error(name)
    if _is_binary(start) or is_image(name):
        raise _not_text_error(name)
    if re.match(rb"\[\s*[{\]]", start) or _is_json_object(start.partition(b"\n")[0]):
        raise InputError(f"{name} is JSON, not lines of text.", "Leave out --from lines.")


def _zip_error(name: str) -> InputError:
    return InputError(f"{name} is a zip archive (or an Excel file).", "Unpack it, or export it as CSV.")


def _blank_reason(head: bytes, name: str) -> str:
    if len(head) > MAX_TASK_BYTES:
        return f"{name} begins with more than {MAX_TASK_BYTES:,} bytes of white space, and lsml looks no further"
    return f"{name} is empty"


def _not_text_error(name: str) -> InputError:
    if is_image(name):
        return InputError(
            f"{name} is an image, not a file of tasks.",
            "Name the folder that it is in, or pipe its path: echo IMAGE | lsml predict - --from paths",
        )
    return InputError(
        f"{name} is UTF-16 or binary, not UTF-8 text.",
        "Convert it first, for example: iconv -f UTF-16 -t UTF-8 tasks.json > tasks-utf8.json",
    )


def _is_binary(start: bytes) -> bool:
    """Return whether this is UTF-16, or to a good part what no text holds: one NUL in one task costs only that task."""
    sample = start[:BINARY_SAMPLE_BYTES]
    odd_bytes = len(sample.translate(None, _PRINTABLE))
    odd_bytes += len(sample) - len(sample.decode("utf-8", "ignore").encode())
    return start.startswith(UTF16_BOMS) or b"\0" in sample[:4] or 3 * odd_bytes > max(len(sample), 256)


def _detect_object_format(start: bytes) -> str:
    """Return "lines" for one object per line, "stream" for any other way: pretty-printed, several on a line.

    A first line that is no object may be a broken one, which costs a task, or the beginning of an object over several
    lines, which a reader of lines would turn into many failures. The next two lines tell which.
    """
    first, *others = [line for line in start[:CHUNK].split(b"\n") if line.strip()][:3]
    if _is_json_object(first):
        return "lines"
    second = others[0].lstrip() if others else b""
    text = b"\n".join([first, *others]).rstrip(WHITESPACE)
    is_complete = bool(others) or len(start) < CHUNK
    try:
        _, end = _DECODER.raw_decode(text.decode("latin-1"))
        return "stream" if end > len(first) or first[end:].lstrip().startswith(b"{") else "lines"
    except RecursionError:  # deep nesting: only its braces can tell
        return "lines" if BraceDepth().feed(first) else "stream"
    except json.JSONDecodeError as error:
        is_unfinished = error.pos >= len(text)
    if is_unfinished and is_complete and not (len(others) == 1 and _is_json_object(second)):
        return "stream"
    return "lines" if second.startswith(b"{") or BraceDepth().feed(first) or not is_complete else "stream"


def _is_json_object(line: bytes) -> bool:
    try:
        return isinstance(orjson.loads(line), dict)
    except (orjson.JSONDecodeError, RecursionError):
        return False
