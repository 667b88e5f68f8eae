"""Split JSON into the bytes of one task at a time.

JSON Lines, a JSON array and objects that follow each other are split into `Record`s without being parsed: parsing
happens where the model is, which may be another process. Memory holds one chunk and the current task, and time grows
with the bytes alone, however they are arranged and in whatever pieces they arrive. (`csv_records` does the same for
CSV.)
"""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

CHUNK = 1 << 18  # bytes read at a time
# A larger task is reported instead of filling the memory. Exported tasks have 1 to 50 KB, with long transcripts or
# hundreds of polygons 1 MB, and a few MB with masks of several annotators.
MAX_TASK_BYTES = 32 << 20
# The same for a record that lsml wrote, which holds a whole task and the predictions about it.
MAX_OUTPUT_RECORD_BYTES = 256 << 20
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
        end: Bytes of the input (decompressed) up to the end of the record; 0 where nobody asks for the progress.
    """

    index: int  # type: ignore[assignment]  # hides the method of tuples, which is not needed
    location: str
    body: bytes
    problem: str = ""
    truncated: bool = False
    end: int = 0


def too_large_message(size: int, max_bytes: int) -> str:
    return (
        f"this task has {size:,} bytes, and {max_bytes:,} is the most that lsml takes: "
        "split it, or keep media in files and name them in the task"
    )


# --- JSON Lines


def read_lines(
    stream: io.BufferedReader[Any], end_reason: EndReason, max_bytes: int = MAX_TASK_BYTES
) -> Iterator[Record]:
    """Yield one record per line; blank lines are skipped."""
    index = 0
    number = 0
    end = 0
    while line := stream.readline(CHUNK):
        number += 1
        size = len(line)
        if size == CHUNK and not line.endswith(b"\n"):
            line, size = read_long_line(stream, line, max_bytes)
        end += size
        location = f"line {number}"
        if size > max_bytes:
            yield Record(index, location, b"", too_large_message(size, max_bytes), end=end)
        elif line.isspace():
            continue
        elif line.endswith(b"\n") or BraceDepth().feed(line):
            yield Record(index, location, line, end=end)
        else:  # the last line, and its braces are open: say that the file ends too early, not that it is not JSON
            yield Record(index, location, b"", end_reason("ends in the middle of a task"), truncated=True)
            return
        index += 1
    if end_reason():
        yield Record(index, f"line {number + 1}", b"", end_reason(), truncated=True)


def read_long_line(stream: io.BufferedReader[Any], head: bytes, max_bytes: int) -> tuple[bytes, int]:
    """Read on to the end of a line that begins with `head`.

    Returns:
        The line, empty if it has more than `max_bytes` (then memory holds none of it), and its size.
    """
    held = bytearray(head)
    size = len(held)
    while piece := stream.readline(CHUNK):
        size += len(piece)
        if size <= max_bytes:
            held += piece
        else:
            held.clear()
        if piece.endswith(b"\n"):
            break
    return bytes(held), size


# --- a JSON array of objects, or objects that follow each other

# Where an object of the outermost array may end: a closing brace, then what cannot follow one further in (a missing
# comma), a comma and anything but the next key, or the last bracket of all. Objects further in look like that now and
# then; counting braces tells. Much white space may follow any of them, so that what decides is never far away.
_END_IN_ARRAY = re.compile(
    rb"""\}(?=
        \s{0,255}(?:
            ,(?:\s{0,255}(?:
                [^"\s]
                |"[^"\\]*+(?:\\.[^"\\]*+)*+(?:"(?:\s{0,255}(?:[,\]]|\Z)|\s{256})|\\?\Z)  # \Z: goes on behind the buffer
            )|\s{256})
            |\](?:\s{0,255}(?:\Z|,(?:\s{0,255}[^"\s]|\s{256})|[^\s,\]}])|\s{256})
            |[^\s,\]}]
        )
        |\s{256}
    )""",
    re.DOTALL | re.VERBOSE,
)
_END_IN_STREAM = re.compile(rb"\}(?=\s{0,255}\{|\s{256})")
_MAX_LOOKAHEAD = 1_000  # bytes behind a brace within which these patterns match, or never will
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

    def __init__(self, braces: int = 0, in_string: bool = False) -> None:
        self.braces = braces
        self.in_string = in_string

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


def split_objects(
    stream: io.BufferedReader[Any], end_reason: EndReason, *, in_array: bool, max_bytes: int = MAX_TASK_BYTES
) -> Iterator[Record]:
    """Return one record per object of a JSON array, or of a stream of objects that follow each other."""
    return _ObjectSplitter(stream, end_reason, in_array, max_bytes).records()


class _ObjectSplitter:
    """Find where each element ends by counting braces between the few places where it can end.

    `buffer[start:]` is the current element, or the part of a large one that is not counted yet; `offset` is the
    position of the buffer in the input.
    """

    def __init__(self, stream: io.BufferedReader[Any], end_reason: EndReason, in_array: bool, max_bytes: int) -> None:
        self.stream = stream
        self.end_reason = end_reason
        self.in_array = in_array
        self.max_bytes = max_bytes
        self.end_pattern = _END_IN_ARRAY if in_array else _END_IN_STREAM
        self.buffer = b""
        self.start = self.offset = 0
        self.index = -1
        self.is_fully_buffered = False  # the rest of the input is in the buffer
        self.is_finished = False

    def read_more(self) -> bool:
        """Drop what is before `start` and read on; return False at the end of the input, where nothing changes."""
        chunk = self.stream.read1(CHUNK)
        if not chunk:
            self.is_fully_buffered = True
            return False
        self.offset += self.start
        self.buffer = self.buffer[self.start :] + chunk
        self.start = 0
        return True

    def make_record(self, body: bytes, problem: str = "", position: int | None = None) -> Record:
        """Return the next record; `position` is where it starts in the input, if that is not `start`."""
        self.index += 1
        here = self.offset + self.start
        if position is None:
            position = here
        size = len(body)
        end = position + size if size else here
        if size > self.max_bytes:
            body, problem = b"", too_large_message(size, self.max_bytes)
        truncated = self.is_finished and bool(problem)
        return Record(self.index, f"byte {position:,}", body, problem, truncated, end)

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
        seen = self.start  # braces were counted up to here
        while True:
            buffer = self.buffer
            for match in self.end_pattern.finditer(buffer, seen):
                end = match.end()
                complete = depth.feed(buffer[seen:end])
                seen = end
                if complete:
                    yield self.make_record(buffer[self.start : end])
                    self.start = end
                    if not self.step_to_object():
                        return
                    seen = self.start
                    depth.braces = 0  # an object with a brace too many leaves its trace
            if self.buffer is buffer:  # stepping to the next object has not read on
                yield from self.large_object(depth, seen)
                return

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

    def large_object(self, depth: BraceDepth, seen: int) -> Iterator[Record]:
        """Yield the object that goes on behind the buffer.

        What was counted leaves the buffer, so that nothing is searched or copied again for each piece that arrives. Of
        an object that is too large, nothing is kept.
        """
        position = self.offset + self.start
        held = bytearray()
        size = 0  # of what has left the buffer
        # The last place where the object could have ended, and the depth there.
        candidate, braces, in_string = seen - self.start, depth.braces, depth.in_string
        while True:
            settled = self.settled_end(seen)
            depth.feed(self.buffer[seen:settled])
            size += settled - self.start
            if size <= self.max_bytes:
                held += self.buffer[self.start : settled]
            else:
                held.clear()
            self.start = settled
            if not self.read_more():
                break
            seen = self.start
            for match in self.end_pattern.finditer(self.buffer, seen):
                end = match.end()
                complete = depth.feed(self.buffer[seen:end])
                seen = end
                if complete:
                    size += end - self.start
                    if size <= self.max_bytes:
                        held += self.buffer[self.start : end]
                        yield self.make_record(bytes(held), position=position)
                    else:
                        yield self.make_record(b"", too_large_message(size, self.max_bytes), position)
                    self.start = end
                    self.step_to_object()
                    return
                candidate, braces, in_string = size + end - self.start, depth.braces, depth.in_string
        size += len(self.buffer) - self.start
        if size > self.max_bytes:
            self.is_finished = True
            problem = f"{too_large_message(size, self.max_bytes)}; {self.end_reason('ends inside of it')}"
            yield self.make_record(b"", problem, position)
            return
        self.buffer = bytes(held) + self.buffer[self.start :]
        self.start = 0
        self.offset = position
        yield from self.last_object(BraceDepth(braces, in_string), candidate)

    def settled_end(self, seen: int) -> int:
        """Return the end of what can be counted whatever follows: up to a brace that may turn out to end the object."""
        brace = self.buffer.rfind(b"}", max(seen, len(self.buffer) - _MAX_LOOKAHEAD))
        end = brace if brace >= 0 else len(self.buffer)
        backslashes = end - seen - len(self.buffer[seen:end].rstrip(b"\\"))
        return end - backslashes % 2  # an escape is not cut in two

    def last_object(self, depth: BraceDepth, counted: int) -> Iterator[Record]:
        """Yield an object after which the input ends, with or without something odd in between, or a truncated one.

        `depth` is that of the first `counted` bytes of the object.
        """
        seen = self.start + counted
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
