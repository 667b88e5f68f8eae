"""What a task's value points to -> its bytes on this machine.

places    a value -> where its bytes may be: by its spelling alone
files     files on this machine, below a folder that a path must not leave
web       files from servers: credentials, redirects, limits
guard     connections that reach only the addresses that are allowed
hosts     which hosts and addresses these are
studio    the Label Studio that tasks belong to, and the key to it
cloud     files in buckets, with the credentials of this machine
cache     what was fetched before, on disk
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from dataclasses import dataclass, field
from hashlib import blake2b
from pathlib import Path
from typing import TYPE_CHECKING

from lsml_cli.errors import TransientError
from lsml_cli.media import buckets, files
from lsml_cli.media.cache import Cache
from lsml_cli.media.credentials import LabelStudioCredentials
from lsml_cli.media.hosts import ANY_HOST, AllowedHosts
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
TOTAL_TIMEOUT = 120.0  # seconds for one remote file from the first byte asked for to the last one there
READ_TIMEOUT = 15.0  # seconds without a byte


@dataclass(frozen=True)
class Media:
    """Where media are looked for, and within which limits. Picklable, so that every replica process fetches for itself.

    A value is looked for in this order:

        a prefix of `maps`                  that folder, and nowhere else
        data:                               the value itself
        /data/upload/…, /data/local-files/  `upload_root` or `document_root`, then `label_studio`
        http://, https://                   the server; with the key where it is a file that `label_studio` serves
        s3://, gs://, azure-blob://         the bucket, with the credentials of this machine; where those do not open
                                            it, through `label_studio`, which has to know the task
        a path                              below `root`

    root           folder that plain paths are below, relative or absolute; None: no plain path is read
    confined       whether a plain path has to lie below `root`. Only where the user names the files himself, not where
                   a task does that somebody else wrote, it need not: then `root` is where relative ones begin
    document_root  what /data/local-files/?d=… is below
    upload_root    what /data/upload/… is below: media/upload in the data folder of Label Studio
    maps           (prefix of a value, folder that the rest is looked for in); the longest prefix counts
    label_studio   the Label Studio that the tasks belong to, and the key to it
    hosts          who may be asked; see `Hosts` also for which buckets
    cache          keeps remote files on disk
    largest        bytes of one file
    slowest        seconds for one remote file from the first byte asked for to the last one there
    patience       seconds without a byte

    Used by many threads at a time; those that want the same remote file fetch it once.
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
    _process_state: _ProcessState = field(
        default_factory=lambda: _ProcessState(), init=False, compare=False, repr=False
    )

    def __post_init__(self) -> None:
        longest_first = sorted(self.prefix_map, key=lambda pair: -len(pair[0]))
        object.__setattr__(self, "maps", tuple(longest_first))

    def fetch(self, value: str, task_id: int | None = None) -> bytes:
        """The bytes that `value` points to.

        task_id  of the task whose value it is: Label Studio presigns files of buckets only for a task of its own

        Raises ValueError with a sentence when they cannot be had, OSError when a file cannot be read, TransientError
        when a server or the way to it fails for the moment.
        """
        place = self._locate(value)
        if place.kind == "data":
            return decode_data_uri(value)
        if (path := files.first_existing(place.candidates)) is not None:
            return files.read(path, self.max_bytes)
        if place.kind == "file":
            return files.read(place.candidates[0].resolve(), self.max_bytes)  # raises what is wrong with it
        route = self._resolve_route(place, value, task_id)
        return self._process_state.run_once(value, lambda: self._read_through_cache(value, route))

    def find_problem(self, value: str, task_id: int | None = None, *, check_remote: bool = False) -> str | None:
        """Why `fetch` would fail, without reading the file; None when it would not, or when that is not known.

        A server is asked whether it has the file only if `ask_remote`.
        """
        try:
            place = self._locate(value)
            if place.kind == "data":
                decode_data_uri(value)
            elif (path := files.first_existing(place.candidates)) is not None:
                return files.find_problem(path, self.max_bytes)
            elif place.kind == "file":
                return f"there is no file {place.candidates[0].resolve()}"
            else:
                route = self._resolve_route(place, value, task_id)
                if check_remote:
                    self._check_remote(route, value)
        except (ValueError, TransientError) as error:
            return str(error)
        return None

    def digest(self, value: str) -> bytes | None:
        """Digest of the file that `value` points to, for a file on this machine; None for any other.

        So the same picture under two names is known for one.
        """
        try:
            place = self._locate(value)
            path = files.first_existing(place.candidates)
            return None if path is None else blake2b(files.read(path, self.max_bytes), digest_size=16).digest()
        except (ValueError, OSError):
            return None

    def close(self) -> None:
        """Close the connections to servers; the next `fetch` would open new ones."""
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
        """Who is asked for what is not on this machine. Raises ValueError when there is nobody."""
        if location.kind == "cloud":
            return self._bucket_route(value, task_id)
        if location.kind == "studio":
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
        """From the cache, or fetched and put there."""
        if self.cache is None:
            return self._read(route, value)
        # What may be asked belongs to the name: where less is allowed, nothing comes in through the cache.
        url = self.label_studio.url if self.label_studio else None
        key = repr((url, self.allowed_hosts, value))
        content = self.cache.get(key)
        if content is None or len(content) > self.max_bytes:
            content = self._read(route, value)
            self.cache.put(key, content)
        return content

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
        """Raises what `_read` would raise, as far as that is known without reading."""
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
    """Who is asked: the bucket itself, a server, or the server where the bucket does not open.

    hints  what a status of the server's answer means here
    """

    bucket: str | None = None
    url: str | None = None
    hints: Mapping[int, str] = field(default_factory=dict)


class _ProcessState:
    """What a process keeps between two fetches. It stays behind when its `Media` is pickled."""

    def __init__(self) -> None:
        self.closed_buckets: set[str] = set()  # which the credentials of this machine do not open
        self._lock = threading.Lock()
        self._fetcher: HttpFetcher | None = None
        self._in_flight: dict[str, Future[bytes]] = {}

    def get_fetcher(self, create: Callable[[], HttpFetcher]) -> HttpFetcher:
        with self._lock:
            if self._fetcher is None:
                self._fetcher = create()
            return self._fetcher

    def run_once(self, value: str, work: Callable[[], bytes]) -> bytes:
        """What `work` returns or raises; for threads that want the same at the same time, one of them works."""
        with self._lock:
            result = self._in_flight.get(value)
            if result is None:
                mine = self._in_flight[value] = Future()
        if result is not None:
            return result.result()
        try:
            mine.set_result(work())
        except BaseException as error:
            mine.set_exception(error)
        finally:
            with self._lock:
                del self._in_flight[value]
        return mine.result()

    def close(self) -> None:
        with self._lock:
            web, self._fetcher = self._fetcher, None
        if web is not None:
            web.close()

    def __reduce__(self) -> tuple[type, tuple[()]]:
        return _ProcessState, ()


def _unreachable_message(location: MediaLocation, value: str) -> str:
    """What would help where Label Studio has the file and nobody said where that is."""
    if location.candidates:
        return f"there is no file {location.candidates[0].resolve()}; with --label-studio-url the server is asked"
    uploaded = location.address.startswith(UPLOAD_PREFIX)
    folder = "its media/upload folder with --upload-root" if uploaded else "its document root with --document-root"
    return f"{abbreviate(value)} is a file of Label Studio: name the server with --label-studio-url, or {folder}"
