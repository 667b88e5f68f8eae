"""Raw byte streams under a source: look ahead, and decompress gzip as far as it goes."""

from __future__ import annotations

import io
import zlib
from collections.abc import Callable
from typing import Any

from lsml_cli.io.json_records import CHUNK, WHITESPACE


class PrefixedStream(io.RawIOBase):
    """Bytes that were read already, then the rest of the stream that they came from."""

    def __init__(self, head: bytes, rest: io.RawIOBase) -> None:
        self._head = head
        self._rest = rest

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int | None:
        if not self._head:
            return self._rest.readinto(buffer)
        data, self._head = self._head[: len(buffer)], self._head[len(buffer) :]
        buffer[: len(data)] = data
        return len(data)


class GzipStream(io.RawIOBase):
    """The content of a gzip stream, up to where it is truncated or damaged.

    Attributes:
        truncation_reason: Why the content ended early, "" if it did not (yet).
    """

    def __init__(self, file: io.RawIOBase) -> None:
        self._file = file
        self._decompressor = zlib.decompressobj(wbits=31)
        self._unread = b""
        self.truncation_reason = ""

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        data = b""
        while not data and not self.truncation_reason:
            self._unread = self._unread or self._file.read(1 << 16) or b""
            if self._decompressor.eof:
                if not self._unread.strip(b"\0"):  # gzip allows padding after the last member
                    break
                self._decompressor = zlib.decompressobj(wbits=31)
            elif not self._unread:
                self.truncation_reason = "the gzip data is cut off"
                break
            try:
                data = self._decompressor.decompress(self._unread, len(buffer))
            except zlib.error as error:
                self.truncation_reason = f"the gzip data is damaged ({error})"
                break
            self._unread = (
                self._decompressor.unused_data if self._decompressor.eof else self._decompressor.unconsumed_tail
            )
        buffer[: len(data)] = data
        return len(data)


def read_until(raw: io.RawIOBase, head: bytes, is_enough: Callable[[bytes], bool]) -> bytes:
    """Return `head` and what follows it, until `is_enough` or a chunk was read. A pipe may deliver byte by byte."""
    while not is_enough(head) and (len(head) < CHUNK or not head.strip(WHITESPACE)):
        more = raw.read(CHUNK)
        if not more:
            break
        head += more
    return head
