"""A task's value -> where its bytes may be, by its spelling alone: no disk and no server is asked."""

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
from lsml_cli.media.hosts import BUCKET_SCHEMES

MAX_SHOWN_CHARS = 200  # characters of a value in a sentence

UPLOAD_PREFIX = "/data/upload/"
LOCAL_FILES_PATTERN = re.compile(r"/data/local-files/?\?")
SERVED_PATTERN = re.compile(
    r"/(data/upload|data/local-files|storage-data)\b|/(tasks|projects)/\d+/(presign|resolve)/\?"
)


@dataclass(frozen=True)
class MediaLocation:
    """Where the bytes of a value may be.

    kind   "data": in the value; "file": only on this machine; "web": at `where`, a URL; "studio": at `where`, a path
           below the address of Label Studio; "cloud": in a bucket, `where` is its URI
    files  where they may lie on this machine, in the order to look
    """

    kind: Literal["data", "file", "web", "studio", "cloud"]
    address: str = ""
    candidates: tuple[ConfinedPath, ...] = ()


def abbreviate(value: str) -> str:
    """A value in a sentence."""
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
    """Where to look for what a value points to. The arguments are those of `Media`.

    Raises ValueError with a sentence when it points nowhere.
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
        return MediaLocation("cloud", value)
    served = _served_path(value, scheme, credentials)
    if served is not None:
        # The tasks themselves may lie in a folder of this machine that is called /data/upload.
        below = root is not None and (not confined or Path(value).is_relative_to(root.absolute()))
        plain = (ConfinedPath(root, value, confined),) if root is not None and below else ()
        return MediaLocation(
            "studio", served, candidates=(*_local_candidates(served, document_root, upload_root), *plain)
        )
    if scheme in ("http", "https"):
        return MediaLocation("web", value)
    if scheme:
        raise ValueError(
            f"{abbreviate(value)} is neither a file on this machine nor an http(s) or data: URI, nor in a bucket (s3, gs, "
            "azure-blob)"
        )
    if root is None:
        why = "no folder was named that files are read from"
        if document_root is not None:
            why = "plain paths are not read here; a file below the document root is named /data/local-files/?d=PATH"
        raise ValueError(f"{abbreviate(value)} is a path, and {why}")
    return _file_location(value, root, _path_variants(value), confined)


def parse_scheme(value: str) -> str:
    """ "" for a path. Raises ValueError with a sentence for what looks like an address and is none."""
    if value[:5].lower() == "data:":  # which may be long
        return "data"
    try:
        scheme = urlsplit(value).scheme
    except ValueError as error:
        raise ValueError(f"{abbreviate(value)} is no address: {error}") from None
    return scheme if len(scheme) > 1 else ""  # one letter is a drive


def parse_host(url: str) -> tuple[str, int]:
    """Host and port of an http(s) URL. Raises ValueError with a sentence."""
    parts = urlsplit(url)
    try:
        port = parts.port or {"http": 80, "https": 443}[parts.scheme]
    except ValueError as error:
        raise ValueError(f"{abbreviate(url)} is no address: {error}") from None
    if not parts.hostname:
        raise ValueError(f"{abbreviate(url)} is no address: it names no host")
    return parts.hostname, port


def parse_bucket(uri: str) -> str:
    """ "s3://bucket" of "s3://bucket/some/key"."""
    parts = urlsplit(uri)
    return f"{parts.scheme}://{parts.netloc}"


def decode_data_uri(value: str) -> bytes:
    """The bytes in a data: URI. Raises ValueError with a sentence."""
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
    """What follows a prefix. One that ends within a name, s3://bucket, is not a prefix of s3://bucket-2/a.png."""
    if not value.startswith(prefix):
        return None
    rest = value[len(prefix) :]
    return rest if not prefix[-1:].isalnum() or rest[:1] in ("", "/", "?", "#") else None


def _served_path(value: str, scheme: str, credentials: LabelStudioCredentials | None) -> str | None:
    """The path below the address of Label Studio when this is a file that Label Studio serves, None when it is not."""
    if not scheme:
        inner = credentials.relative_path(value) if credentials else None
        served = next((path for path in (value, inner) if path is not None and SERVED_PATTERN.match(path)), None)
    elif credentials is not None and value.startswith(f"{credentials.url}/"):
        served = value.removeprefix(credentials.url)
        served = served if SERVED_PATTERN.match(served) else None
    else:
        return None
    if served is not None and ".." in decode_path(served).replace("\\", "/").split("?")[0].split("/"):
        raise ValueError(f"{abbreviate(value)} leads upwards (..), which nothing that Label Studio serves does")
    return served


def _local_candidates(
    served_path: str, document_root: Path | None, upload_root: Path | None
) -> tuple[ConfinedPath, ...]:
    """Where a file that Label Studio serves lies when its folders are on this machine."""
    if upload_root is not None and served_path.startswith(UPLOAD_PREFIX):
        return _confined_paths(upload_root, _path_variants(served_path.removeprefix(UPLOAD_PREFIX)))
    if document_root is not None and LOCAL_FILES_PATTERN.match(served_path):
        query = served_path.partition("?")[2]
        # As Label Studio reads it: decoded once, + is a space, the last d counts, and a slash before it does not.
        wanted = parse_qs(query, keep_blank_values=True, errors="surrogateescape").get("d", [])[-1:]
        # Written by hand it may not be encoded at all, and then hold & and +.
        raw = [query.partition("d=")[2]]
        names = [name.lstrip("/") for name in (*wanted, *raw, *map(decode_path, raw))]
        return _confined_paths(document_root, names)
    return ()


def _file_location(value: str, folder: Path, paths: Sequence[str], confined: bool = True) -> MediaLocation:
    if not (files := _confined_paths(folder, paths, confined)):
        raise ValueError(f"{abbreviate(value)!r} names no file")
    return MediaLocation("file", candidates=files)


def _path_variants(path: str) -> list[str]:
    """A path as it stands, and percent-decoded; both also without what a URL may have behind it."""
    base = path.partition("?")[0]
    return [path, decode_path(path), base, decode_path(base)]


def _confined_paths(folder: Path, paths: Sequence[str], confined: bool = True) -> tuple[ConfinedPath, ...]:
    return tuple(ConfinedPath(folder, path, confined) for path in dict.fromkeys(paths) if path)


def decode_path(path: str) -> str:
    """A percent-encoded path as a file system spells it; bytes that are no UTF-8 survive."""
    return unquote(path, errors="surrogateescape")
