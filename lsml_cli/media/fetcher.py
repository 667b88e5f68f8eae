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
from lsml_cli.media.credentials import Login
from lsml_cli.media.hosts import ANYWHERE, Hosts
from lsml_cli.media.resolver import UPLOAD, Place, bucket_of, data_uri, host_of, locate, shown

if TYPE_CHECKING:
    from lsml_cli.media.web import Web

__all__ = ["ANYWHERE", "Cache", "Hosts", "Login", "Media"]

LARGEST_FILE = 256 << 20  # bytes of one file
SLOWEST_FILE = 120.0  # seconds for one remote file from the first byte asked for to the last one there
PATIENCE = 15.0  # seconds without a byte


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
    maps: tuple[tuple[str, Path], ...] = ()
    label_studio: Login | None = None
    hosts: Hosts = ANYWHERE
    cache: Cache | None = None
    largest: int = LARGEST_FILE
    slowest: float = SLOWEST_FILE
    patience: float = PATIENCE
    confined: bool = True
    _process: _Process = field(default_factory=lambda: _Process(), init=False, compare=False, repr=False)

    def __post_init__(self) -> None:
        longest_first = sorted(self.maps, key=lambda pair: -len(pair[0]))
        object.__setattr__(self, "maps", tuple(longest_first))

    def fetch(self, value: str, task_id: int | None = None) -> bytes:
        """The bytes that `value` points to.

        task_id  of the task whose value it is: Label Studio presigns files of buckets only for a task of its own

        Raises ValueError with a sentence when they cannot be had, OSError when a file cannot be read, TransientError
        when a server or the way to it fails for the moment.
        """
        place = self._locate(value)
        if place.kind == "data":
            return data_uri(value)
        if (path := files.first(place.files)) is not None:
            return files.read(path, self.largest)
        if place.kind == "file":
            return files.read(place.files[0].resolve(), self.largest)  # raises what is wrong with it
        route = self._route(place, value, task_id)
        return self._process.once(value, lambda: self._kept(value, route))

    def problem(self, value: str, task_id: int | None = None, *, ask_remote: bool = False) -> str | None:
        """Why `fetch` would fail, without reading the file; None when it would not, or when that is not known.

        A server is asked whether it has the file only if `ask_remote`.
        """
        try:
            place = self._locate(value)
            if place.kind == "data":
                data_uri(value)
            elif (path := files.first(place.files)) is not None:
                return files.problem(path, self.largest)
            elif place.kind == "file":
                return f"there is no file {place.files[0].resolve()}"
            else:
                route = self._route(place, value, task_id)
                if ask_remote:
                    self._ask(route, value)
        except (ValueError, TransientError) as error:
            return str(error)
        return None

    def digest(self, value: str) -> bytes | None:
        """Digest of the file that `value` points to, for a file on this machine; None for any other.

        So the same picture under two names is known for one.
        """
        try:
            place = self._locate(value)
            path = files.first(place.files)
            return None if path is None else blake2b(files.read(path, self.largest), digest_size=16).digest()
        except (ValueError, OSError):
            return None

    def close(self) -> None:
        """Close the connections to servers; the next `fetch` would open new ones."""
        self._process.close()

    def _locate(self, value: str) -> Place:
        return locate(
            value,
            root=self.root,
            document_root=self.document_root,
            upload_root=self.upload_root,
            maps=self.maps,
            login=self.label_studio,
            confined=self.confined,
        )

    def _route(self, place: Place, value: str, task_id: int | None) -> _Route:
        """Who is asked for what is not on this machine. Raises ValueError when there is nobody."""
        if place.kind == "cloud":
            return self._way_to_bucket(value, task_id)
        if place.kind == "studio":
            if self.label_studio is None:
                raise ValueError(_how_to_reach(place, value))
            deleted = {500: " (as Label Studio does for an upload that was deleted)"}
            hints = deleted if place.where.startswith(UPLOAD) else {}
            return _Route(url=self.label_studio.url + place.where, hints=hints)
        host, port = host_of(value)
        self._allowed.require(host, port)
        return _Route(url=value)

    def _way_to_bucket(self, uri: str, task_id: int | None) -> _Route:
        direct = self.hosts.names_bucket(bucket_of(uri))
        problem = buckets.missing_driver(uri) if direct else f"{bucket_of(uri)} is not named (--allow-host names it)"
        bucket = uri if problem is None else None
        if self.label_studio is not None and task_id is not None:
            unknown = f" (it has no task {task_id}, or no storage is connected to its project that has this file)"
            return _Route(bucket, self.label_studio.presign_url(uri, task_id), {404: unknown})
        if problem is None:
            return _Route(bucket)
        if self.label_studio is not None:
            raise ValueError(f"{shown(uri)}: {problem}; and Label Studio presigns it only for a task with an id")
        raise ValueError(f"{shown(uri)}: {problem}, or name the Label Studio that can presign it: --label-studio-url")

    @property
    def _allowed(self) -> Hosts:
        return self.hosts.also(self.label_studio.netloc) if self.label_studio else self.hosts

    def _kept(self, value: str, route: _Route) -> bytes:
        """From the cache, or fetched and put there."""
        if self.cache is None:
            return self._read(route, value)
        # What may be asked belongs to the name: where less is allowed, nothing comes in through the cache.
        url = self.label_studio.url if self.label_studio else None
        key = repr((url, self.hosts, value))
        content = self.cache.get(key)
        if content is None or len(content) > self.largest:
            content = self._read(route, value)
            self.cache.put(key, content)
        return content

    def _read(self, route: _Route, value: str) -> bytes:
        if route.bucket is not None and (route.url is None or bucket_of(value) not in self._process.closed_buckets):
            try:
                return buckets.read(route.bucket, self.largest)
            except buckets.NoAccess:
                if route.url is None:
                    raise
                self._process.closed_buckets.add(bucket_of(value))
        assert route.url is not None
        return self._process.web(self._new_web).get(route.url, value, route.hints)

    def _ask(self, route: _Route, value: str) -> None:
        """Raises what `_read` would raise, as far as that is known without reading."""
        if route.bucket is not None:
            try:
                buckets.ask(route.bucket, self.largest)
                return
            except buckets.NoAccess:
                if route.url is None:
                    raise
        assert route.url is not None
        self._process.web(self._new_web).ask(route.url, value, route.hints)

    def _new_web(self) -> Web:
        from lsml_cli.media.web import Web

        return Web(self._allowed, self.label_studio, largest=self.largest, slowest=self.slowest, patience=self.patience)


@dataclass(frozen=True)
class _Route:
    """Who is asked: the bucket itself, a server, or the server where the bucket does not open.

    hints  what a status of the server's answer means here
    """

    bucket: str | None = None
    url: str | None = None
    hints: Mapping[int, str] = field(default_factory=dict)


class _Process:
    """What a process keeps between two fetches. It stays behind when its `Media` is pickled."""

    def __init__(self) -> None:
        self.closed_buckets: set[str] = set()  # which the credentials of this machine do not open
        self._lock = threading.Lock()
        self._web: Web | None = None
        self._under_way: dict[str, Future[bytes]] = {}

    def web(self, new: Callable[[], Web]) -> Web:
        with self._lock:
            if self._web is None:
                self._web = new()
            return self._web

    def once(self, value: str, work: Callable[[], bytes]) -> bytes:
        """What `work` returns or raises; for threads that want the same at the same time, one of them works."""
        with self._lock:
            result = self._under_way.get(value)
            if result is None:
                mine = self._under_way[value] = Future()
        if result is not None:
            return result.result()
        try:
            mine.set_result(work())
        except BaseException as error:
            mine.set_exception(error)
        finally:
            with self._lock:
                del self._under_way[value]
        return mine.result()

    def close(self) -> None:
        with self._lock:
            web, self._web = self._web, None
        if web is not None:
            web.close()

    def __reduce__(self) -> tuple[type, tuple[()]]:
        return _Process, ()


def _how_to_reach(place: Place, value: str) -> str:
    """What would help where Label Studio has the file and nobody said where that is."""
    if place.files:
        return f"there is no file {place.files[0].resolve()}; with --label-studio-url the server is asked"
    uploaded = place.where.startswith(UPLOAD)
    folder = "its media/upload folder with --upload-root" if uploaded else "its document root with --document-root"
    return f"{shown(value)} is a file of Label Studio: name the server with --label-studio-url, or {folder}"
