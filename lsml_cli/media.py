"""What a task's value points to -> its bytes."""

from __future__ import annotations

import base64
import binascii
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote_to_bytes, urlsplit


@dataclass(frozen=True)
class LocalMedia:
    """Files below one folder, and `data:` URIs. Picklable, so that every replica fetches for itself."""

    root: Path

    def fetch(self, value: str) -> bytes:
        """The bytes that `value` points to: a path below `root`, or relative to it, or a `data:` URI.

        Raises ValueError when it points somewhere else, OSError when the file cannot be read.
        """
        scheme = urlsplit(value).scheme
        if scheme == "data":
            return _data_uri(value)
        if len(scheme) > 1:  # one letter is a drive
            raise ValueError(f"{value} is not on this machine; lsml reads local files and data: URIs")
        root = self.root.resolve()
        path = (root / value).resolve()
        if not path.is_relative_to(root):
            raise ValueError(f"{value} lies outside of {root}")
        return path.read_bytes()


def _data_uri(value: str) -> bytes:
    header, comma, body = value.partition(",")
    if not comma:
        raise ValueError("the data: URI has no comma before its data")
    try:
        return base64.b64decode(body, validate=True) if header.endswith(";base64") else unquote_to_bytes(body)
    except binascii.Error as error:
        raise ValueError(f"the data: URI is not base64: {error}") from None
