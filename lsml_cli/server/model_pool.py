"""Which loaded model answers for which project, and how a newer version takes over.

    what was started             answers for every project that has no version of its own
    VERSIONS/project-3/current   once there is one, it answers for project 3, and for nobody else

A newer version is loaded beside the one that answers; then the two change places between one request and the next.
The older one finishes the requests that it has begun, so that each of them sees one version.
"""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from lsml_cli.errors import LsmlError, ModelError
from lsml_cli.inference.replica import reason
from lsml_cli.inference.replica_process import Placement, ReplicaProcess
from lsml_cli.media.fetcher import Media
from lsml_cli.models.base import Json, ModelSpec
from lsml_cli.registry import resolve, versions
from lsml_cli.server.batching import Batched, Batcher
from lsml_cli.server.job_store import versions_of

LOOK_EVERY = 1.0  # seconds between two looks for newly promoted versions
MOST_LOADED = 8  # projects whose own version is in memory; who was not asked for longest is the next to go
TRY_AGAIN = 30.0  # seconds after which a version that could not be loaded may be tried once more
GRACE = 5.0  # seconds that what is under way gets when the server ends

log = logging.getLogger("lsml.serve")


@dataclass(frozen=True)
class Loading:
    """How a model is loaded and worked with; the same for every project. Times in seconds, see `Batcher`."""

    device: str
    threads: int = 0
    media: Media | None = None
    batch_size: int | None = None  # None: what the model's class says
    max_wait: float = 0.002
    stuck: float = 180.0
    seen: Callable[[Batched], None] = field(default=lambda batched: None, repr=False)

    async def open(self, spec: ModelSpec) -> Served:
        """Raises LsmlError when the model cannot be loaded; whatever it raises, nothing of it is left."""
        replica = ReplicaProcess(Placement(spec, None, self.device, threads=self.threads, media=self.media))
        try:
            await asyncio.to_thread(replica.wait_until_ready)
        except BaseException:
            await asyncio.to_thread(replica.close)
            raise
        batcher = Batcher(
            replica,
            batch_size=self.batch_size or spec.family().batch_size,
            max_wait=self.max_wait,
            stuck=self.stuck,
            seen=self.seen,
        )
        return Served(spec, replica, batcher)


class Served:
    """One loaded model, and the requests that it is working on. `gone` is done when it is out of the memory."""

    def __init__(self, spec: ModelSpec, replica: ReplicaProcess, batcher: Batcher) -> None:
        self.spec = spec
        self.batcher = batcher
        self.gone: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._replica = replica
        self._requests = 0
        self._retired = False
        self._closing: asyncio.Task[None] | None = None

    @property
    def idle(self) -> bool:
        return not self._requests

    @property
    def folder(self) -> str | None:
        """The name of the version's folder, which may be a copy of another version's; None without one."""
        return self.spec.path.name if self.spec.path else None

    @contextmanager
    def in_use(self) -> Iterator[None]:
        """Keeps the model loaded as long as a request needs it."""
        self._requests += 1
        try:
            yield
        finally:
            self._requests -= 1
            self._close_if_done()

    def retire(self) -> None:
        """No further request comes; unload when the last one is answered."""
        self._retired = True
        self._close_if_done()

    async def end(self) -> None:
        """Unload because the server ends: what is under way gets `GRACE` seconds, whoever may wait for it."""
        self._retired = True
        self._begin_to_close()
        await asyncio.wait([self.gone], timeout=GRACE)
        if not self.gone.done():
            await asyncio.to_thread(self._replica.close)  # and every batch fails at once
            await self.gone

    def _close_if_done(self) -> None:
        if self._retired and self.idle:
            self._begin_to_close()

    def _begin_to_close(self) -> None:
        if self._closing is None:
            self._closing = asyncio.get_running_loop().create_task(self._close())

    async def _close(self) -> None:
        try:
            await self.batcher.drain()
            await asyncio.to_thread(self._replica.close)
        finally:
            self.gone.set_result(None)


@dataclass(frozen=True)
class _Refusal:
    """A version that could not be loaded, and why; how its files were, and when that was, on the monotonic clock."""

    version: str | None
    stamp: object
    error: LsmlError
    at: float

    def says_the_same(self, other: _Refusal | None) -> bool:
        return other is not None and (self.version, str(self.error)) == (other.version, str(other.error))


class _Place:
    """What answers for one project, or for all that have nothing of their own."""

    def __init__(self, root: Path | None, find: Callable[[], ModelSpec]) -> None:
        self.root = root  # the folder whose promoted version answers; None: what was started, for good
        self.find = find
        self.served: Served | None = None
        self.loading: asyncio.Task[Served] | None = None
        self.refused: _Refusal | None = None
        self.asked = time.monotonic()
        self.waiting = 0  # requests that wait until it is loaded

    def promoted(self) -> str | None:
        """The name of the version that should answer; None where nothing says so."""
        try:
            return versions.current(self.root) if self.root else None
        except ModelError:
            return None

    def refuse(self, version: str | None, stamp: object, error: LsmlError) -> None:
        self.refused = _Refusal(version, stamp, error, time.monotonic())

    def refusal(self, lasts: float) -> LsmlError | None:
        """What loading the promoted version raised; None where it is worth another try.

        It is when another one was promoted, when somebody has been at its files, and after so many seconds in any case:
        what was wrong may have been a full disk, or a folder on a network.
        """
        known = self.refused
        if known is None or time.monotonic() - known.at >= lasts:
            return None
        version = self.promoted()
        return known.error if (known.version, known.stamp) == (version, self.stamp(version)) else None

    def require_loadable(self) -> None:
        """Raises what loading the promoted version raised a moment ago."""
        if (error := self.refusal(TRY_AGAIN)) is not None:
            raise error

    def stamp(self, version: str | None) -> object:
        """What is another one when the version's files have been changed; None where they cannot be looked at."""
        if self.root is None or version is None:
            return None
        folder = self.root / version
        try:
            return folder.stat().st_mtime_ns, (folder / versions.DESCRIPTION).stat().st_mtime_ns
        except (OSError, ValueError):  # ValueError: `current` may hold anything
            return None

    @property
    def dispensable(self) -> bool:
        """Whether it could be unloaded: nobody is just about to use it."""
        return self.served is not None and self.loading is None and not self.waiting


class Serving:
    """All models of one server.

    started   the spec that the server was started with; `params` are those that were given there (`--with`)
    follows   the folder of `started`, when its promoted version is meant, whichever that is
    versions  folder with a folder of versions for each project; None: no project has one
    """

    def __init__(
        self,
        started: ModelSpec,
        loading: Loading,
        *,
        params: Mapping[str, Json] | None = None,
        follows: Path | None = None,
        versions: Path | None = None,
    ) -> None:
        self.started = started
        self._params = params or {}
        self._versions = versions
        self._how = loading
        self._everyone = _Place(follows, self._find_started)
        self._projects: dict[int, _Place] = {}
        self._preparing: set[int] = set()
        self._open: set[Served] = set()  # whatever has a process, also what only finishes its last requests
        self._room = _Room(MOST_LOADED, self._unload_one)

    async def open(self) -> None:
        """Load what was started. Raises LsmlError."""
        await self._load(self._everyone, self.started)

    async def close(self) -> None:
        loading = [place.loading for place in (self._everyone, *self._projects.values()) if place.loading]
        for each in loading:
            each.cancel()
        if loading:
            await asyncio.wait(loading, timeout=GRACE)
        await asyncio.gather(*(served.end() for served in self._open))

    async def model_for(self, project: int | None) -> Served:
        """The model that answers for a project; waits while its own version is loaded for the first time.

        Raises LsmlError when that version cannot be loaded: predictions of another model would be none of its own.
        """
        place = self._place(project)
        place.asked = time.monotonic()
        if place.served is None:
            place.require_loadable()
            place.waiting += 1
            try:
                await asyncio.shield(self._begin(place))
            finally:
                place.waiting -= 1
                asyncio.get_running_loop().call_soon(self._room.look)  # when whoever waited has begun to use it
        assert place.served is not None
        return place.served

    def version_for(self, project: int | None) -> str:
        """The `model_version` of the predictions that a project gets now, without waiting.

        Raises LsmlError when the version cannot be loaded.
        """
        place = self._place(project)
        if place.served is not None:
            return place.served.spec.model_version
        place.require_loadable()
        self._begin(place)  # it will be asked for in a moment
        assert place.root is not None
        return f"{place.root.name}@{place.promoted()}"

    def versions(self) -> dict[str, str]:
        """What answers now: {"": the started model, "3": project 3's own}."""
        found = {"": self._everyone} | {str(number): place for number, place in sorted(self._projects.items())}
        return {name: place.served.spec.model_version for name, place in found.items() if place.served}

    @property
    def waiting(self) -> int:
        """Tasks that wait for a batch, in all models."""
        places = (self._everyone, *self._projects.values())
        return sum(place.served.batcher.waiting for place in places if place.served)

    async def watch(self) -> None:
        """Look for newly promoted versions, for ever."""
        while True:
            await asyncio.sleep(LOOK_EVERY)
            await self.look()

    async def look(self) -> None:
        """Load what has been promoted since, by whomever, and let it take over."""
        for number, place in [(None, self._everyone), *self._projects.items()]:
            if place.root is None:
                continue
            promoted = await asyncio.to_thread(place.promoted)
            if number is not None and self._projects.get(number) is not place:  # it had to make room meanwhile
                continue
            serving = place.served.folder if place.served else None
            # Where nothing answers yet, whoever asks tries again; nobody else need do so for ever.
            refusal = place.refusal(TRY_AGAIN if serving else math.inf)
            if promoted in (None, serving) or refusal is not None or place.loading is not None:
                continue
            before = place.refused
            try:
                await self._begin(place)
            except LsmlError as error:
                if place.refused is not None and not place.refused.says_the_same(before):
                    still = f"{serving} goes on" if serving else "there is nothing else"
                    log.error("%s: the new version cannot be loaded, so %s. %s", _whose(number), still, error)

    async def prepare(self, project: int) -> None:
        """A project has a new version: load it. Whoever answered for the project does so until it is there."""
        if self._versions is None or project in self._projects or project in self._preparing:
            await self.look()
            return
        place = self._new_place(project, self._versions)
        self._preparing.add(project)
        try:
            await self._begin(place)
        except LsmlError as error:
            log.error("Project %d: its new version cannot be loaded. %s", project, error)
        finally:
            self._preparing.discard(project)
        self._projects[project] = place
        self._room.look()

    def _place(self, project: int | None) -> _Place:
        if project is None or self._versions is None or project in self._preparing:
            return self._everyone
        if project not in self._projects:
            if not (versions_of(self._versions, project) / versions.CURRENT).is_file():
                return self._everyone
            self._projects[project] = self._new_place(project, self._versions)
        return self._projects[project]

    def _new_place(self, project: int, root: Path) -> _Place:
        home = versions_of(root, project)
        return _Place(home, lambda: self._find_promoted(home))

    def _unload_one(self) -> Served | None:
        """The model of a project that has to make room for another, on its way out; None where none can.

        The one that was not asked for longest; where all are busy, one that has requests to finish first.
        """
        could = [number for number, place in self._projects.items() if place.dispensable]
        served = {number: self._projects[number].served for number in could}
        idle = [number for number, each in served.items() if each is not None and each.idle]
        if not could:
            return None
        longest = min(idle or could, key=lambda number: self._projects[number].asked)
        leaving = self._projects.pop(longest).served
        assert leaving is not None
        leaving.retire()
        return leaving

    def _begin(self, place: _Place) -> asyncio.Task[Served]:
        if place.loading is None:
            place.loading = asyncio.get_running_loop().create_task(self._replace(place))
            place.loading.add_done_callback(_look_at)
        return place.loading

    async def _replace(self, place: _Place) -> Served:
        # What takes over from an older version of the same project takes over its room as well.
        needs_room = place is not self._everyone and place.served is None
        try:
            if needs_room:
                await self._room.enter()
            try:
                return await self._find_and_load(place)
            finally:
                if needs_room and place.served is None:
                    self._room.leave()
        finally:
            place.loading = None
            self._room.look()

    async def _find_and_load(self, place: _Place) -> Served:
        promoted = place.promoted()
        stamp = place.stamp(promoted)  # of before: what is mended while it is looked at is worth another look
        try:
            return await self._load(place, await asyncio.to_thread(place.find))
        except LsmlError as error:
            place.refuse(promoted, stamp, error)
            raise
        except Exception as error:
            refusal = ModelError(f"The model cannot be loaded: {reason(error)}.")
            place.refuse(promoted, stamp, refusal)
            raise refusal from error

    async def _load(self, place: _Place, spec: ModelSpec) -> Served:
        for note in spec.notes:
            log.warning(note)
        newer = await self._how.open(spec)
        self._open.add(newer)
        newer.gone.add_done_callback(lambda _: self._open.discard(newer))
        older, place.served = place.served, newer
        place.refused = None
        if older is not None:
            log.info("%s takes over from %s.", spec.model_version, older.spec.model_version)
            older.retire()
        elif place is not self._everyone:
            log.info("%s is loaded.", spec.model_version)
        return newer

    def _find_started(self) -> ModelSpec:
        assert self._everyone.root is not None
        return self._find_promoted(self._everyone.root, self._params)

    def _find_promoted(self, root: Path, params: Mapping[str, Json] | None = None) -> ModelSpec:
        """A version has to be of the class that was started: a folder may not decide which code runs."""
        folder = versions.resolve(str(root))
        return resolve.version_spec(folder, params, target=self.started.target, named=str(root))


class _Room:
    """Room in memory for the models of `most` projects; who comes when it is full waits until another one is gone.

    unload_one  sends one that is inside on its way out; None where there is none that could go now
    """

    def __init__(self, most: int, unload_one: Callable[[], Served | None]) -> None:
        self._most = most
        self._unload_one = unload_one
        self._inside = 0  # also those that are being loaded, and those that are on their way out
        self._leaving = 0
        self._queue: deque[asyncio.Future[None]] = deque()

    async def enter(self) -> None:
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._queue.append(turn)
        self.look()
        try:
            await turn
        except asyncio.CancelledError:
            if not turn.cancelled():  # it was let in at the same moment
                self.leave()
            raise

    def leave(self) -> None:
        self._inside -= 1
        self.look()

    def look(self) -> None:
        """Let in whom there is room for, and make room for the others. To be called when somebody might go now."""
        self._queue = deque(turn for turn in self._queue if not turn.cancelled())
        while self._queue and self._inside < self._most:
            self._inside += 1
            self._queue.popleft().set_result(None)
        while self._leaving < len(self._queue) and (leaving := self._unload_one()) is not None:
            self._leaving += 1
            leaving.gone.add_done_callback(self._is_gone)

    def _is_gone(self, _: asyncio.Future[None]) -> None:
        self._leaving -= 1
        self.leave()


def followed_folder(name: str) -> Path | None:
    """The folder whose promoted version a model's name means: "models/news", but not "models/news@VERSION"."""
    both = resolve.split_class(name)
    root = Path(both[1] if both else name)
    return root if (root / versions.CURRENT).is_file() else None


def _whose(project: int | None) -> str:
    return "The started model" if project is None else f"Project {project}"


def _look_at(task: asyncio.Task[Served]) -> None:
    if not task.cancelled():
        task.exception()  # whoever waits for it gets it; nobody may
