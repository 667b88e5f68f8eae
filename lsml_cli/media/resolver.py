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

from lsml_cli.media.credentials import Login
from lsml_cli.media.files import Below
from lsml_cli.media.hosts import BUCKETS

SHOWN = 200  # characters of a value in a sentence

UPLOAD = "/data/upload/"
LOCAL_FILES = re.compile(r"/data/local-files/?\?")
SERVED = re.compile(r"/(data/upload|data/local-files|storage-data)\b|/(tasks|projects)/\d+/(presign|resolve)/\?")


@dataclass(frozen=True)
class Place:
    """Where the bytes of a value may be.

    kind   "data": in the value; "file": only on this machine; "web": at `where`, a URL; "studio": at `where`, a path
           below the address of Label Studio; "cloud": in a bucket, `where` is its URI
    files  where they may lie on this machine, in the order to look
    """

    kind: Literal["data", "file", "web", "studio", "cloud"]
    where: str = ""
    files: tuple[Below, ...] = ()


def shown(value: str) -> str:
    """A value in a sentence."""
    return value if len(value) <= SHOWN else f"{value[:SHOWN]}..."


def locate(
    value: str,
    *,
    root: Path | None,
    document_root: Path | None,
    upload_root: Path | None,
    maps: Sequence[tuple[str, Path]],
    login: Login | None,
    confined: bool = True,
) -> Place:
    """Where to look for what a value points to. The arguments are those of `Media`.

    Raises ValueError with a sentence when it points nowhere.
    """
    if "\0" in value:
        raise ValueError(f"{shown(value)!r} holds a NUL character")
    for prefix, folder in maps:
        if (rest := _after(prefix, value)) is not None:
            return _file(value, folder, _spellings(rest.lstrip("/")))
    scheme = scheme_of(value)
    if scheme == "data":
        return Place("data")
    if scheme in BUCKETS:
        return Place("cloud", value)
    served = _served(value, scheme, login)
    if served is not None:
        # The tasks themselves may lie in a folder of this machine that is called /data/upload.
        below = root is not None and (not confined or Path(value).is_relative_to(root.absolute()))
        plain = (Below(root, value, confined),) if root is not None and below else ()
        return Place("studio", served, files=(*_local(served, document_root, upload_root), *plain))
    if scheme in ("http", "https"):
        return Place("web", value)
    if scheme:
        raise ValueError(
            f"{shown(value)} is neither a file on this machine nor an http(s) or data: URI, nor in a bucket (s3, gs, "
            "azure-blob)"
        )
    if root is None:
        why = "no folder was named that files are read from"
        if document_root is not None:
            why = "plain paths are not read here; a file below the document root is named /data/local-files/?d=PATH"
        raise ValueError(f"{shown(value)} is a path, and {why}")
    return _file(value, root, _spellings(value), confined)


def scheme_of(value: str) -> str:
    """ "" for a path. Raises ValueError with a sentence for what looks like an address and is none."""
    if value[:5].lower() == "data:":  # which may be long
        return "data"
    try:
        scheme = urlsplit(value).scheme
    except ValueError as error:
        raise ValueError(f"{shown(value)} is no address: {error}") from None
    return scheme if len(scheme) > 1 else ""  # one letter is a drive


def host_of(url: str) -> tuple[str, int]:
    """Host and port of an http(s) URL. Raises ValueError with a sentence."""
    parts = urlsplit(url)
    try:
        port = parts.port or {"http": 80, "https": 443}[parts.scheme]
    except ValueError as error:
        raise ValueError(f"{shown(url)} is no address: {error}") from None
    if not parts.hostname:
        raise ValueError(f"{shown(url)} is no address: it names no host")
    return parts.hostname, port


def bucket_of(uri: str) -> str:
    """ "s3://bucket" of "s3://bucket/some/key"."""
    parts = urlsplit(uri)
    return f"{parts.scheme}://{parts.netloc}"


def data_uri(value: str) -> bytes:
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


def _after(prefix: str, value: str) -> str | None:
    """What follows a prefix. One that ends within a name, s3://bucket, is not a prefix of s3://bucket-2/a.png."""
    if not value.startswith(prefix):
        return None
    rest = value[len(prefix) :]
    return rest if not prefix[-1:].isalnum() or rest[:1] in ("", "/", "?", "#") else None


def _served(value: str, scheme: str, login: Login | None) -> str | None:
    """The path below the address of Label Studio when this is a file that Label Studio serves, None when it is not."""
    if not scheme:
        inner = login.inner_path(value) if login else None
        served = next((path for path in (value, inner) if path is not None and SERVED.match(path)), None)
    elif login is not None and value.startswith(f"{login.url}/"):
        served = value.removeprefix(login.url)
        served = served if SERVED.match(served) else None
    else:
        return None
    if served is not None and ".." in decoded(served).replace("\\", "/").split("?")[0].split("/"):
        raise ValueError(f"{shown(value)} leads upwards (..), which nothing that Label Studio serves does")
    return served


def _local(served: str, document_root: Path | None, upload_root: Path | None) -> tuple[Below, ...]:
    """Where a file that Label Studio serves lies when its folders are on this machine."""
    if upload_root is not None and served.startswith(UPLOAD):
        return _all_below(upload_root, _spellings(served.removeprefix(UPLOAD)))
    if document_root is not None and LOCAL_FILES.match(served):
        query = served.partition("?")[2]
        # As Label Studio reads it: decoded once, + is a space, the last d counts, and a slash before it does not.
        wanted = parse_qs(query, keep_blank_values=True, errors="surrogateescape").get("d", [])[-1:]
        # Written by hand it may not be encoded at all, and then hold & and +.
        raw = [query.partition("d=")[2]]
        names = [name.lstrip("/") for name in (*wanted, *raw, *map(decoded, raw))]
        return _all_below(document_root, names)
    return ()


def _file(value: str, folder: Path, paths: Sequence[str], confined: bool = True) -> Place:
    if not (files := _all_below(folder, paths, confined)):
        raise ValueError(f"{shown(value)!r} names no file")
    return Place("file", files=files)


def _spellings(path: str) -> list[str]:
    """A path as it stands, and percent-decoded; both also without what a URL may have behind it."""
    base = path.partition("?")[0]
    return [path, decoded(path), base, decoded(base)]


def _all_below(folder: Path, paths: Sequence[str], confined: bool = True) -> tuple[Below, ...]:
    return tuple(Below(folder, path, confined) for path in dict.fromkeys(paths) if path)


def decoded(path: str) -> str:
    """A percent-encoded path as a file system spells it; bytes that are no UTF-8 survive."""
    return unquote(path, errors="surrogateescape")
