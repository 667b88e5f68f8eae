"""Raw byte streams under a source: look ahead, and decompress gzip as far as it goes."""

from __future__ import annotations

import io
import zlib
from collections.abc import Callable
from typing import Any

from lsml_cli.io.json_records import CHUNK, MAX_TASK_BYTES, WHITESPACE

_COMPRESSED_CHUNK = 1 << 16
_FIRST_PIECE = 1 << 10  # of a gzip member, which may be tiny; what follows it is copied once


class PrefixedStream(io.RawIOBase):
    """Bytes that were read already, then the rest of the stream that they came from."""

    def __init__(self, head: bytes, rest: io.RawIOBase) -> None:
        self._head = memoryview(head)
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
        expansion: Bytes of content per compressed byte, so far.
    """

    def __init__(self, file: io.RawIOBase) -> None:
        self._file = file
        self._decompressor = zlib.decompressobj(wbits=31)
        self._piece_bytes = _FIRST_PIECE
        self._compressed = b""
        self._position = 0  # in `_compressed`
        self._compressed_bytes = self._content_bytes = 0
        self.truncation_reason = ""

    @property
    def expansion(self) -> float:
        return self._content_bytes / max(1, self._compressed_bytes)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        """Fill `buffer` as far as what was read of the file goes; read more of it only if there is nothing else."""
        filled = 0
        while filled < len(buffer) and not self.truncation_reason:
            if self._position == len(self._compressed):
                if filled:
                    break
                self._compressed = self._file.read(_COMPRESSED_CHUNK) or b""
                self._position = 0
            if self._decompressor.eof:
                if self._is_at_end():
                    break
                self._decompressor = zlib.decompressobj(wbits=31)
                self._piece_bytes = _FIRST_PIECE
            elif not self._compressed:
                self.truncation_reason = "the gzip data is cut off"
                break
            data = self._decompress(len(buffer) - filled)
            buffer[filled : filled + len(data)] = data
            filled += len(data)
        return filled

    def _decompress(self, max_bytes: int) -> bytes:
        piece = self._compressed[self._position : self._position + self._piece_bytes]
        self._piece_bytes = _COMPRESSED_CHUNK
        try:
            data = self._decompressor.decompress(piece, max_bytes)
        except zlib.error as error:
            self.truncation_reason = f"the gzip data is damaged ({error})"
            return b""
        rest = self._decompressor.unused_data if self._decompressor.eof else self._decompressor.unconsumed_tail
        self._position += len(piece) - len(rest)
        self._compressed_bytes += len(piece) - len(rest)
        self._content_bytes += len(data)
        return data

    def _is_at_end(self) -> bool:
        """Return whether nothing follows a member but padding, which gzip allows."""
        next_byte = self._compressed[self._position : self._position + 1]
        return not next_byte or (next_byte == b"\0" and not self._compressed[self._position :].strip(b"\0"))


def read_head(raw: io.RawIOBase, head: bytes, is_enough: Callable[[bytes], bool]) -> bytes:
    """Return `head` and what follows it, until `is_enough` or a chunk was read. A pipe may deliver byte by byte.

    White space at the beginning does not count, but more than `MAX_TASK_BYTES` of it is no reason to go on.
    """
    content = bytearray(head)
    start = len(head) - len(head.lstrip(WHITESPACE))
    while start <= MAX_TASK_BYTES and len(content) - start < CHUNK and not is_enough(bytes(content[start:])):
        more = raw.read(CHUNK)
        if not more:
            break
        if start == len(content):
            start += len(more) - len(more.lstrip(WHITESPACE))
        content += more
    return bytes(content)
