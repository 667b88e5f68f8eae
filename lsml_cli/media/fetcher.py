"""Fetch the bytes that a value of a task points to.

The modules of this package, in the order in which a value passes through them:

    resolver     where the bytes may be, by the spelling of the value
    files        files on this machine, confined to a folder
    buckets      files in buckets, with the credentials of this machine
    web          files from servers: credentials, redirects, limits
    ssrf_guard   connections to allowed addresses only
    hosts        which hosts and addresses these are
    credentials  the Label Studio that the tasks belong to, and its API key
    cache        fetched files on disk
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from hashlib import blake2b
from pathlib import Path
from typing import TYPE_CHECKING

from lsml_cli.errors import TransientError
from lsml_cli.media import buckets, files
from lsml_cli.media.cache import Cache
from lsml_cli.media.credentials import LabelStudioCredentials
from lsml_cli.media.hosts import ANY_HOST, AllowedHosts
from lsml_cli.media.process_state import ProcessState
from lsml_cli.media.resolver import (
    UPLOAD_PREFIX,
    MediaLocation,
    abbreviate,
    decode_data_uri,
    locate,
    parse_bucket,
    parse_host,
)

if TYPE_CHECKING:
    from lsml_cli.media.web import HttpFetcher

__all__ = ["ANY_HOST", "AllowedHosts", "Cache", "LabelStudioCredentials", "Media"]

MAX_FILE_BYTES = 256 << 20  # bytes of one file
TOTAL_TIMEOUT = 120.0  # seconds for one remote file, from the request to the last byte
READ_TIMEOUT = 15.0  # seconds without a byte


@dataclass(frozen=True)
class Media:
    """Where media are looked for, and within which limits.

    Picklable, so that every replica process fetches for itself; safe to use from many threads at a time, which fetch a
    file that several of them want only once.

    A value is looked for in this order:

        a prefix of `prefix_map`            that folder, and nowhere else
        data:                               the value itself
        /data/upload/…, /data/local-files/  `upload_root` or `document_root`, then `label_studio`
        http://, https://                   the server; with the API key where `label_studio` serves the file
        s3://, gs://, azure-blob://         the bucket, with the credentials of this machine; where these do not open
                                            it, through `label_studio`, which has to know the task
        a path                              below `root`

    Attributes:
        root: Folder that plain paths lie below, relative or absolute; None: no plain path is read.
        document_root: Folder that /data/local-files/?d=… lies below.
        upload_root: Folder that /data/upload/… lies below: media/upload in the data folder of Label Studio.
        prefix_map: (prefix of a value, folder that the rest is looked for in); the longest prefix counts.
        label_studio: The Label Studio that the tasks belong to, and its API key.
        allowed_hosts: Hosts and buckets that requests may go to.
        cache: Keeps remote files on disk.
        max_bytes: Bytes of one file.
        total_timeout: Seconds for one remote file, from the request to the last byte.
        read_timeout: Seconds without a byte.
        confined: Whether plain paths have to lie below `root`. False only where the user names the files, never where
            a task does: relative paths then begin at `root`.
    """

    root: Path | None = None
    document_root: Path | None = None
    upload_root: Path | None = None
    prefix_map: tuple[tuple[str, Path], ...] = ()
    label_studio: LabelStudioCredentials | None = None
    allowed_hosts: AllowedHosts = ANY_HOST
    cache: Cache | None = None
    max_bytes: int = MAX_FILE_BYTES
    total_timeout: float = TOTAL_TIMEOUT
    read_timeout: float = READ_TIMEOUT
    confined: bool = True
    _process_state: ProcessState = field(default_factory=ProcessState, init=False, compare=False, repr=False)

    def __post_init__(self) -> None:
        longest_first = sorted(self.prefix_map, key=lambda pair: -len(pair[0]))
        object.__setattr__(self, "prefix_map", tuple(longest_first))

    def fetch(self, value: str, task_id: int | None = None) -> bytes:
        """Return the bytes that `value` points to.

        Args:
            value: What a task's data hold.
            task_id: Id of that task; Label Studio presigns files of buckets only for a task of its own.

        Raises:
            ValueError: The bytes cannot be had; the message is one sentence.
            OSError: A file cannot be read.
            TransientError: A server or the way to it fails for the moment.
        """
        location = self._locate(value)
        if location.kind == "data":
            return decode_data_uri(value)
        if (path := files.first_existing(location.candidates)) is not None:
            return files.read(path, self.max_bytes)
        if location.kind == "file":
            return files.read(location.candidates[0].resolve(), self.max_bytes)  # raises what is wrong with it
        route = self._resolve_route(location, value, task_id)
        return self._process_state.run_once(value, lambda: self._read_through_cache(value, route))

    def find_problem(self, value: str, task_id: int | None = None, *, check_remote: bool = False) -> str | None:
        """Return why `fetch` would fail, without reading the file; None if it would not, or if that is not known.

        Args:
            value: What a task's data hold.
            task_id: Id of that task.
            check_remote: Whether to ask servers and buckets if they have the file.
        """
        try:
            location = self._locate(value)
            if location.kind == "data":
                decode_data_uri(value)
            elif (path := files.first_existing(location.candidates)) is not None:
                return files.find_problem(path, self.max_bytes)
            elif location.kind == "file":
                return f"there is no file {location.candidates[0].resolve()}"
            else:
                route = self._resolve_route(location, value, task_id)
                if check_remote:
                    self._check_remote(route, value)
        except (ValueError, TransientError) as error:
            return str(error)
        return None

    def digest(self, value: str) -> bytes | None:
        """Return a digest of the content of a file on this machine, None for any other value.

        Two names of the same image have the same digest.
        """
        try:
            path = files.first_existing(self._locate(value).candidates)
            return None if path is None else blake2b(files.read(path, self.max_bytes), digest_size=16).digest()
        except (ValueError, OSError):
            return None

    def local_path(self, value: str) -> Path | None:
        """Return the file on this machine that a value points to, links followed; None for any other value.

        Raises:
            ValueError: The value points nowhere, or out of the folder that it has to lie below.
        """
        return files.first_existing(self._locate(value).candidates)

    def close(self) -> None:
        """Close the connections to servers; the next `fetch` opens new ones."""
        self._process_state.close()

    def _locate(self, value: str) -> MediaLocation:
        return locate(
            value,
            root=self.root,
            document_root=self.document_root,
            upload_root=self.upload_root,
            prefix_map=self.prefix_map,
            credentials=self.label_studio,
            confined=self.confined,
        )

    def _resolve_route(self, location: MediaLocation, value: str, task_id: int | None) -> _Route:
        """Return where to request a file that is not on this machine; raise ValueError if it can be had nowhere."""
        if location.kind == "bucket":
            return self._bucket_route(value, task_id)
        if location.kind == "label_studio":
            if self.label_studio is None:
                raise ValueError(_unreachable_message(location, value))
            deleted = {500: " (as Label Studio does for an upload that was deleted)"}
            hints = deleted if location.address.startswith(UPLOAD_PREFIX) else {}
            return _Route(url=self.label_studio.url + location.address, hints=hints)
        host, port = parse_host(value)
        self._effective_hosts.require_allowed(host, port)
        return _Route(url=value)

    def _bucket_route(self, uri: str, task_id: int | None) -> _Route:
        direct = self.allowed_hosts.is_bucket_allowed(parse_bucket(uri))
        problem = (
            buckets.missing_driver_message(uri)
            if direct
            else f"{parse_bucket(uri)} is not named (--allow-host names it)"
        )
        bucket = uri if problem is None else None
        if self.label_studio is not None and task_id is not None:
            unknown = f" (it has no task {task_id}, or no storage is connected to its project that has this file)"
            return _Route(bucket, self.label_studio.presign_url(uri, task_id), {404: unknown})
        if problem is None:
            return _Route(bucket)
        if self.label_studio is not None:
            raise ValueError(f"{abbreviate(uri)}: {problem}; and Label Studio presigns it only for a task with an id")
        raise ValueError(
            f"{abbreviate(uri)}: {problem}, or name the Label Studio that can presign it: --label-studio-url"
        )

    @property
    def _effective_hosts(self) -> AllowedHosts:
        return self.allowed_hosts.extended_with(self.label_studio.netloc) if self.label_studio else self.allowed_hosts

    def _read_through_cache(self, value: str, route: _Route) -> bytes:
        if self.cache is None:
            return self._read(route, value)
        key = self._cache_key(value)
        content = self.cache.get(key)
        if content is None or len(content) > self.max_bytes:
            content = self._read(route, value)
            self.cache.put(key, content)
        return content

    def _cache_key(self, value: str) -> str:
        """Return the key of a value in the cache.

        The allowed hosts are part of it: a file that may not be requested does not come out of a shared cache either.
        The spelling is fixed, whatever the fields are called: another one would make every kept file useless.
        """
        url = self.label_studio.url if self.label_studio else None
        hosts = f"Hosts(names={self.allowed_hosts.patterns!r}, anywhere={self.allowed_hosts.allow_any!r})"
        return f"({url!r}, {hosts}, {value!r})"

    def _read(self, route: _Route, value: str) -> bytes:
        if route.bucket is not None and (
            route.url is None or parse_bucket(value) not in self._process_state.closed_buckets
        ):
            try:
                return buckets.read(route.bucket, self.max_bytes)
            except buckets.BucketAccessError:
                if route.url is None:
                    raise
                self._process_state.closed_buckets.add(parse_bucket(value))
        assert route.url is not None
        return self._process_state.get_fetcher(self._create_fetcher).get(route.url, value, route.hints)

    def _check_remote(self, route: _Route, value: str) -> None:
        """Raise what `_read` would raise, as far as that is known without reading."""
        if route.bucket is not None:
            try:
                buckets.check_readable(route.bucket, self.max_bytes)
                return
            except buckets.BucketAccessError:
                if route.url is None:
                    raise
        assert route.url is not None
        self._process_state.get_fetcher(self._create_fetcher).check_available(route.url, value, route.hints)

    def _create_fetcher(self) -> HttpFetcher:
        from lsml_cli.media.web import HttpFetcher

        return HttpFetcher(
            self._effective_hosts,
            self.label_studio,
            max_bytes=self.max_bytes,
            total_timeout=self.total_timeout,
            read_timeout=self.read_timeout,
        )


@dataclass(frozen=True)
class _Route:
    """Where a remote file is requested: a bucket, a server, or the server if the bucket does not open.

    Attributes:
        bucket: URI of the file, to be read with the credentials of this machine.
        url: Address of the file on a server.
        hints: What a status of the server's response means for this file.
    """

    bucket: str | None = None
    url: str | None = None
    hints: Mapping[int, str] = field(default_factory=dict)


def _unreachable_message(location: MediaLocation, value: str) -> str:
    """Return the message for a file of Label Studio that is neither on this machine nor at a known server."""
    if location.candidates:
        return f"there is no file {location.candidates[0].resolve()}; with --label-studio-url the server is asked"
    uploaded = location.address.startswith(UPLOAD_PREFIX)
    folder = "its media/upload folder with --upload-root" if uploaded else "its document root with --document-root"
    return f"{abbreviate(value)} is a file of Label Studio: name the server with --label-studio-url, or {folder}"
