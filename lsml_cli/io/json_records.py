"""Split JSON into the bytes of one task at a time.

JSON Lines, a JSON array and objects that follow each other are split into `Record`s without being parsed: parsing
happens where the model is, which may be another process. Memory holds one chunk and the current task.
(`csv_records` does the same for CSV.)
"""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

CHUNK = 1 << 18  # bytes read at a time
MAX_TASK_BYTES = 32 << 20  # a larger task is reported instead of filling the memory
WHITESPACE = b" \t\r\n"

# Called without an argument: why the input ended early, "" if it did not. With a sentence: the same, but that sentence
# where the input itself knows no reason.
EndReason = Callable[..., str]


class Record(NamedTuple):
    """The bytes of one task, not parsed yet.

    Attributes:
        index: Position in the input, from 0.
        location: Where it starts: "line 12", "byte 4,096".
        body: One JSON object; empty when there is a problem.
        problem: Why there is no task here.
        truncated: Whether the input cannot be read any further from here, so that what followed is lost.
    """

    index: int  # type: ignore[assignment]  # hides the method of tuples, which is not needed
    location: str
    body: bytes
    problem: str = ""
    truncated: bool = False


def too_large_message(size: int) -> str:
    return f"this task has {size:,} bytes, and {MAX_TASK_BYTES:,} is the most that lsml takes"


# --- JSON Lines


def read_lines(stream: io.BufferedReader[Any], end_reason: EndReason) -> Iterator[Record]:
    """Yield one record per line; blank lines are skipped."""
    index = 0
    number = 0
    while line := stream.readline(MAX_TASK_BYTES):
        number += 1
        location = f"line {number}"
        if len(line) == MAX_TASK_BYTES and not line.endswith(b"\n"):
            yield Record(index, location, b"", too_large_message(len(line) + skip_line(stream)))
        elif line.isspace():
            continue
        elif line.endswith(b"\n") or BraceDepth().feed(line):
            yield Record(index, location, line)
        else:  # the last line, and its braces are open: say that the file ends too early, not that it is not JSON
            yield Record(index, location, b"", end_reason("ends in the middle of a task"), truncated=True)
            return
        index += 1
    if end_reason():
        yield Record(index, f"line {number + 1}", b"", end_reason(), truncated=True)


def skip_line(stream: io.BufferedReader[Any]) -> int:
    """Read to the end of the line without keeping it; return the number of bytes skipped."""
    skipped = 0
    while piece := stream.readline(CHUNK):
        skipped += len(piece)
        if piece.endswith(b"\n"):
            break
    return skipped


# --- a JSON array of objects, or objects that follow each other

# Where an object of the outermost array may end: a closing brace, then what cannot follow one further in (a missing
# comma), a comma and anything but the next key, or the last bracket of all. Objects further in look like that now and
# then; counting braces tells.
_END_IN_ARRAY = re.compile(
    rb"""\}(?=\s*(?:
        ,\s*(?:[^"\s]|"[^"\\]*+(?:\\.[^"\\]*+)*(?:"\s*[,\]]|\\?\Z))  # \Z: the string goes on behind the buffer
        |\]\s*(?:\Z|,\s*[^"\s]|[^\s,\]}])
        |[^\s,\]}]
    ))""",
    re.DOTALL | re.VERBOSE,
)
_END_IN_STREAM = re.compile(rb"\}(?=\s*\{)")
_CLOSING_BRACE = re.compile(rb"\}")
_ESCAPE = re.compile(rb"\\.", re.DOTALL)
_NOT_STRUCTURAL = bytes(byte for byte in range(256) if byte not in b'"{}')
_SPACE = re.compile(rb"\s*")
_TOKEN = re.compile(rb'"[^"\\]*(?:\\.[^"\\]*)*"|["\[\]{},]', re.DOTALL)  # a lone quote opens a string that goes on
_IN_STRING = re.compile(rb'[^"\\]*(?:\\.[^"\\]*)*', re.DOTALL)


class BraceDepth:
    """Count how deep in braces a position is, given the bytes between two places where an object might end.

    Braces inside strings do not count. A string may begin in one segment and end in a later one.
    """

    def __init__(self) -> None:
        self.braces = 0
        self.in_string = False

    def feed(self, segment: bytes) -> bool:
        """Return whether the position after `segment` is outside of every brace and string.

        One brace too many is outside as well, so that it costs its own task only.
        """
        if b"\\" in segment:
            segment = _ESCAPE.sub(b"", segment)
        skeleton = segment.translate(None, _NOT_STRUCTURAL)
        if self.in_string:
            skeleton = b'"' + skeleton
        outside = skeleton.replace(b'""', b"")  # strings without a brace, which is nearly all of them
        self.in_string = False
        if b'"' in outside:  # the first string that has a brace in it, or goes on, left its opening quote
            pieces = skeleton.split(b'"')
            outside = b"".join(pieces[::2])
            self.in_string = len(pieces) % 2 == 0
        self.braces += outside.count(b"{") - outside.count(b"}")
        return self.braces <= 0 and not self.in_string


def split_objects(stream: io.BufferedReader[Any], end_reason: EndReason, *, in_array: bool) -> Iterator[Record]:
    """Return one record per object of a JSON array, or of a stream of objects that follow each other."""
    return _ObjectSplitter(stream, end_reason, in_array).records()


class _ObjectSplitter:
    """Find where each element ends by counting braces between the few places where it can end.

    `buffer[start:]` is the current element, `buffer[start:seen]` the part of it whose braces were counted, `offset`
    the position of the buffer in the input.
    """

    def __init__(self, stream: io.BufferedReader[Any], end_reason: EndReason, in_array: bool) -> None:
        self.stream = stream
        self.end_reason = end_reason
        self.in_array = in_array
        self.end_pattern = _END_IN_ARRAY if in_array else _END_IN_STREAM
        self.buffer = b""
        self.start = self.offset = 0
        self.index = -1
        self.is_fully_buffered = False  # the rest of the input is in the buffer
        self.is_finished = False

    def read_more(self) -> bool:
        """Drop what was yielded and read on; return False at the end of the input, where nothing changes."""
        chunk = self.stream.read1(CHUNK)
        if not chunk:
            self.is_fully_buffered = True
            return False
        self.offset += self.start
        self.buffer = self.buffer[self.start :] + chunk
        self.start = 0
        return True

    def make_record(self, body: bytes, problem: str = "") -> Record:
        self.index += 1
        truncated = self.is_finished and bool(problem)
        return Record(self.index, f"byte {self.offset + self.start:,}", body, problem, truncated)

    def next_byte(self) -> bytes:
        """Skip white space; return the byte behind it, empty at the end of the input."""
        while True:
            match = _SPACE.match(self.buffer, self.start)
            self.start = match.end() if match else self.start
            if self.start < len(self.buffer):
                return self.buffer[self.start : self.start + 1]
            if not self.read_more():
                return b""

    def records(self) -> Iterator[Record]:
        if self.in_array:
            self.next_byte()
            self.start += 1  # the opening bracket
        while not self.is_finished:
            byte = self.next_byte()
            if byte == b"{":
                yield from self.last_object(BraceDepth(), 0) if self.is_fully_buffered else self.split_buffer()
            elif not byte:
                self.is_finished = True
                if self.in_array or self.end_reason():
                    yield self.make_record(b"", self.end_reason("ends before the list is closed"))
            elif self.in_array and byte == b"]":
                self.start += 1
                self.is_finished = True
                if self.next_byte():
                    yield self.make_record(b"", "the list of tasks is closed here, but the file goes on")
            elif self.in_array:
                yield self.skip_non_object()
            else:
                self.is_finished = True
                yield self.make_record(b"", f"expected the next task, an object, found {self.describe_next()}")

    def split_buffer(self) -> Iterator[Record]:
        """Yield the objects from here to the end of the buffer, and the one that goes on after it."""
        depth = BraceDepth()
        seen = self.start
        while True:
            for match in self.end_pattern.finditer(self.buffer, seen):
                end = match.end()
                complete = depth.feed(self.buffer[seen:end])
                seen = end
                if complete:
                    yield self.make_record(self.buffer[self.start : end])
                    self.start = end
                    if not self.step_to_object():
                        return
                    seen = self.start
            scanned = seen - self.start
            if len(self.buffer) - self.start > MAX_TASK_BYTES:
                yield self.skip_oversized(depth, scanned)
                return
            if not self.read_more():
                yield from self.last_object(depth, scanned)
                return
            seen = scanned

    def step_to_object(self) -> bool:
        """Step over the comma after an element; return whether the next object begins in the buffer, and go there."""
        if self.in_array and self.buffer.startswith(b",{", self.start):
            self.start += 1
            return True
        if self.in_array and self.next_byte() == b",":
            self.start += 1
        match = _SPACE.match(self.buffer, self.start)
        position = match.end() if match else self.start
        if self.buffer[position : position + 1] != b"{":
            return False
        self.start = position
        return True

    def last_object(self, depth: BraceDepth, scanned: int) -> Iterator[Record]:
        """Yield an object after which the input ends, with or without something odd in between, or a truncated one."""
        seen = self.start + scanned
        for match in _CLOSING_BRACE.finditer(self.buffer, seen):
            complete = depth.feed(self.buffer[seen : match.end()])
            seen = match.end()
            if complete:
                yield self.make_record(self.buffer[self.start : seen])
                self.start = seen
                self.step_to_object()
                return
        self.is_finished = True
        yield self.make_record(b"", self.end_reason("ends in the middle of a task"))

    def skip_oversized(self, depth: BraceDepth, scanned: int) -> Record:
        """Count on to the end of an object that is too large to keep; return a record with the problem."""
        record = self.make_record(b"")
        size = 0
        seen = self.start + scanned
        while True:
            for match in self.end_pattern.finditer(self.buffer, seen):
                end = match.end()
                complete = depth.feed(self.buffer[seen:end])
                seen = end
                if complete:
                    size += end - self.start
                    self.start = end
                    if self.in_array and self.next_byte() == b",":
                        self.start += 1
                    return record._replace(problem=too_large_message(size))
            # The braces up to the last one are counted now, a part of a match or of an escape may follow it.
            keep = self.buffer.rfind(b"}", seen)
            keep = max(seen, (keep if keep >= 0 else len(self.buffer) - 1))
            while keep > seen and self.buffer[keep - 1 : keep] == b"\\":
                keep -= 1
            depth.feed(self.buffer[seen:keep])
            size += keep - self.start
            self.start = seen = keep
            if not self.read_more():
                self.is_finished = True
                return record._replace(
                    problem=f"{too_large_message(size)}; {self.end_reason('ends inside of it')}", truncated=True
                )
            seen = 0

    def skip_non_object(self) -> Record:
        """Skip an element of the array that is no object, without keeping it; return a record with the problem."""
        description = self.describe_next()
        record = self.make_record(b"", f"expected a task, an object, found {description}")
        depth = 0
        while True:
            for match in _TOKEN.finditer(self.buffer, self.start):
                token = match.group()
                if depth <= 0 and token in (b",", b"]"):
                    self.start = match.end() if token == b"," else match.start()
                    return record
                depth += (token in (b"[", b"{")) - (token in (b"]", b"}"))
                if token == b'"':
                    self.start = match.end()
                    has_more = self.skip_string()
                    break
            else:
                self.start = len(self.buffer)
                has_more = self.read_more()
            if not has_more:
                self.is_finished = True
                return record._replace(
                    problem=self.end_reason(f"ends inside {description}, where a task was expected"), truncated=True
                )

    def skip_string(self) -> bool:
        """Skip the rest of a string, behind its opening quote; return False when the input ends inside of it."""
        while match := _IN_STRING.match(self.buffer, self.start):
            self.start = match.end()  # a quote, an escape that is cut in two, or the end of the buffer
            if self.buffer.startswith(b'"', self.start):
                self.start += 1
                return True
            if not self.read_more():
                break
        return False

    def describe_next(self) -> str:
        """Describe the JSON value that begins here: "a list", "the number 5"."""
        start = self.buffer[self.start : self.start + 1]
        kinds = {b"[": "a list", b'"': "a string", b",": "a comma", b"n": "null", b"t": "true", b"f": "false"}
        text = self.buffer[self.start : self.start + 12].split(b",")[0].split(b"]")[0].decode("utf-8", "replace")
        return kinds.get(start) or (f"the number {text.strip()}" if start in b"-0123456789" else repr(text.strip()))
