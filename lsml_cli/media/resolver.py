"""Map a task's value to where its bytes may be, by its spelling alone: no disk and no server is accessed."""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal
from urllib.parse import parse_qs, unquote, unquote_to_bytes, urlsplit

from lsml_cli.media.credentials import LabelStudioCredentials
from lsml_cli.media.files import ConfinedPath
from lsml_cli.media.hosts import BUCKET_SCHEMES, DEFAULT_PORTS

MAX_SHOWN_CHARS = 200  # characters of a value in a message

UPLOAD_PREFIX = "/data/upload/"
LOCAL_FILES_PATTERN = re.compile(r"/data/local-files/?\?")
SERVED_PATTERN = re.compile(
    r"/(data/upload|data/local-files|storage-data)\b|/(tasks|projects)/\d+/(presign|resolve)/\?"
)


@dataclass(frozen=True)
class MediaLocation:
    """Where the bytes of a value may be.

    Attributes:
        kind: "data": in the value; "file": only on this machine; "web": at the URL `address`; "label_studio": at the
            path `address` below the address of Label Studio; "bucket": at the URI `address`.
        address: URL, path or URI; empty for "data" and "file".
        candidates: Where the file may lie on this machine, in the order to look.
    """

    kind: Literal["data", "file", "web", "label_studio", "bucket"]
    address: str = ""
    candidates: tuple[ConfinedPath, ...] = ()


def abbreviate(value: str) -> str:
    """Return a value short enough for a message."""
    return value if len(value) <= MAX_SHOWN_CHARS else f"{value[:MAX_SHOWN_CHARS]}..."


def locate(
    value: str,
    *,
    root: Path | None,
    document_root: Path | None,
    upload_root: Path | None,
    prefix_map: Sequence[tuple[str, Path]],
    credentials: LabelStudioCredentials | None,
    confined: bool = True,
) -> MediaLocation:
    """Return where to look for what a value points to. The arguments are those of `Media`.

    Raises:
        ValueError: The value points nowhere; the message is one sentence.
    """
    if "\0" in value:
        raise ValueError(f"{abbreviate(value)!r} holds a NUL character")
    for prefix, folder in prefix_map:
        if (rest := _strip_prefix(prefix, value)) is not None:
            return _file_location(value, folder, _path_variants(rest.lstrip("/")))
    scheme = parse_scheme(value)
    if scheme == "data":
        return MediaLocation("data")
    if scheme in BUCKET_SCHEMES:
        return MediaLocation("bucket", value)
    served_path = _served_path(value, scheme, credentials)
    if served_path is not None:
        # The tasks themselves may lie in a folder of this machine that is called /data/upload.
        is_below_root = root is not None and (not confined or Path(value).is_relative_to(root.absolute()))
        plain = (ConfinedPath(root, value, confined),) if root is not None and is_below_root else ()
        local = _local_candidates(served_path, document_root, upload_root)
        return MediaLocation("label_studio", served_path, candidates=(*local, *plain))
    if scheme in ("http", "https"):
        return MediaLocation("web", value)
    if scheme:
        raise ValueError(
            f"{abbreviate(value)} is neither a file on this machine nor an http(s) or data: URI, nor in a bucket "
            "(s3, gs, azure-blob)"
        )
    if root is None:
        reason = "no folder was named that files are read from"
        if document_root is not None:
            reason = "plain paths are not read here; a file below the document root is named /data/local-files/?d=PATH"
        raise ValueError(f"{abbreviate(value)} is a path, and {reason}")
    return _file_location(value, root, _path_variants(value), confined)


def parse_scheme(value: str) -> str:
    """Return the scheme of a value, "" for a path.

    Raises:
        ValueError: The value looks like an address and is none.
    """
    if value[:5].lower() == "data:":  # urlsplit would be slow: it may be long
        return "data"
    try:
        scheme = urlsplit(value).scheme
    except ValueError as error:
        raise ValueError(f"{abbreviate(value)} is not a valid address: {error}") from None
    return scheme if len(scheme) > 1 else ""  # one letter is a drive


def parse_host(url: str) -> tuple[str, int]:
    """Return host and port of an http(s) URL; raise ValueError if it has none."""
    parts = urlsplit(url)
    try:
        port = parts.port or DEFAULT_PORTS[parts.scheme]
    except ValueError as error:
        raise ValueError(f"{abbreviate(url)} is not a valid address: {error}") from None
    if not parts.hostname:
        raise ValueError(f"{abbreviate(url)} is not a valid address: it names no host")
    return parts.hostname, port


def parse_bucket(uri: str) -> str:
    """Return "s3://bucket" for "s3://bucket/some/key"."""
    parts = urlsplit(uri)
    return f"{parts.scheme}://{parts.netloc}"


def decode_data_uri(value: str) -> bytes:
    """Return the bytes in a data: URI; raise ValueError if it is damaged."""
    header, comma, body = value.partition(",")
    if not comma:
        raise ValueError("the data: URI has no comma before its data")
    try:
        if header.lower().endswith(";base64"):
            return base64.b64decode(unquote_to_bytes(body), validate=True)
        return unquote_to_bytes(body)
    except binascii.Error as error:
        raise ValueError(f"the data: URI is not base64: {error}") from None


def _strip_prefix(prefix: str, value: str) -> str | None:
    """Return what follows a prefix, None without it. "s3://bucket" is no prefix of "s3://bucket-2/a.png"."""
    if not value.startswith(prefix):
        return None
    rest = value[len(prefix) :]
    return rest if not prefix[-1:].isalnum() or rest[:1] in ("", "/", "?", "#") else None


def _served_path(value: str, scheme: str, credentials: LabelStudioCredentials | None) -> str | None:
    """Return the path below the address of Label Studio for a file that it serves, None for any other value."""
    if not scheme:
        below_prefix = credentials.relative_path(value) if credentials else None
        paths = (path for path in (value, below_prefix) if path is not None)
    elif credentials is not None and value.startswith(f"{credentials.url}/"):
        paths = (path for path in (value.removeprefix(credentials.url),))
    else:
        return None
    served = next((path for path in paths if SERVED_PATTERN.match(path)), None)
    if served is not None and ".." in decode_path(served).replace("\\", "/").split("?")[0].split("/"):
        raise ValueError(f"{abbreviate(value)} leads upwards (..), which nothing that Label Studio serves does")
    return served


def _local_candidates(
    served_path: str, document_root: Path | None, upload_root: Path | None
) -> tuple[ConfinedPath, ...]:
    """Return where a file that Label Studio serves lies if its folders are on this machine."""
    if upload_root is not None and served_path.startswith(UPLOAD_PREFIX):
        return _confined_paths(upload_root, _path_variants(served_path.removeprefix(UPLOAD_PREFIX)))
    if document_root is not None and LOCAL_FILES_PATTERN.match(served_path):
        query = served_path.partition("?")[2]
        # As Label Studio reads it: decoded once, + is a space, the last d counts, and a slash before it does not.
        decoded = parse_qs(query, keep_blank_values=True, errors="surrogateescape").get("d", [])[-1:]
        # Written by hand it may not be encoded at all, and then hold & and +.
        raw = query.partition("d=")[2]
        names = [name.lstrip("/") for name in (*decoded, raw, decode_path(raw))]
        return _confined_paths(document_root, names)
    return ()


def _file_location(value: str, folder: Path, paths: Sequence[str], confined: bool = True) -> MediaLocation:
    if not (files := _confined_paths(folder, paths, confined)):
        raise ValueError(f"{abbreviate(value)!r} names no file")
    return MediaLocation("file", candidates=files)


def _path_variants(path: str) -> list[str]:
    """Return a path as it stands and percent-decoded, both also without a query."""
    base = path.partition("?")[0]
    return [path, decode_path(path), base, decode_path(base)]


def _confined_paths(folder: Path, paths: Sequence[str], confined: bool = True) -> tuple[ConfinedPath, ...]:
    return tuple(ConfinedPath(folder, path, confined) for path in dict.fromkeys(paths) if path)


def decode_path(path: str) -> str:
    """Return a percent-encoded path as a file system spells it; bytes that are not UTF-8 survive."""
    return unquote(path, errors="surrogateescape")
