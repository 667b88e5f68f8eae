"""Digest files and JSON values. Resuming and finished work are keyed by these digests."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import orjson

DIGEST_BYTES = 16


def file_digest(path: Path) -> str:
    """Digest the content of a file; hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=DIGEST_BYTES)).hexdigest()


def json_digest(value: Any) -> str:
    """Digest a JSON value, independently of the order of its keys; hexadecimal."""
    content = orjson.dumps(value, option=orjson.OPT_SORT_KEYS)
    return hashlib.blake2b(content, digest_size=DIGEST_BYTES).hexdigest()
