"""Which loaded model answers for which project, and how a newer version takes over.

    what was started             answers for every project that has no version of its own
    VERSIONS/project-3/current   once there is one, it answers for project 3, and for nobody else

A newer version is loaded beside the one that answers; then the two change places between one request and the next.
The older one finishes the requests that it has begun, so that each of them sees one version.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from lsml_cli import registry, versions
from lsml_cli.errors import LsmlError, ModelError
from lsml_cli.media import Media
from lsml_cli.models.base import Json, ModelSpec
from lsml_cli.replica import reason
from lsml_cli.replica_process import Placement, ReplicaProcess
from lsml_cli.server.batcher import Batched, Batcher
from lsml_cli.server.jobs import versions_of

LOOK_EVERY = 1.0  # seconds between two looks for newly promoted versions
MOST_LOADED = 8  # projects whose own version stays in memory; who was not asked for longest is the next to go

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
        """Raises LsmlError when the model cannot be loaded."""
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
    """One loaded model, and the requests that it is working on."""

    def __init__(self, spec: ModelSpec, replica: ReplicaProcess, batcher: Batcher) -> None:
        self.spec = spec
        self.batcher = batcher
        self._replica = replica
        self._requests = 0
        self._retired = False
        self._closing: asyncio.Task[None] | None = None

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

    async def close(self) -> None:
        self.retire()
        if self._closing is not None:
            await self._closing

    def _close_if_done(self) -> None:
        if self._retired and not self._requests and self._closing is None:
            self._closing = asyncio.get_running_loop().create_task(self._close())

    async def _close(self) -> None:
        await self.batcher.drain()
        await asyncio.to_thread(self._replica.close)


class _Place:
    """What answers for one project, or for all that have nothing of their own."""

    def __init__(self, root: Path | None, find: Callable[[], ModelSpec]) -> None:
        self.root = root  # the folder whose promoted version answers; None: what was started, for good
        self.find = find
        self.served: Served | None = None
        self.loading: asyncio.Task[Served] | None = None
        self.refused: tuple[str | None, LsmlError] | None = None  # a version that cannot be loaded, and why
        self.asked = time.monotonic()

    def promoted(self) -> str | None:
        """The name of the version that should answer; None where nothing says so."""
        try:
            return versions.current(self.root) if self.root else None
        except ModelError:
            return None

    def require_loadable(self) -> None:
        """Raises what loading the promoted version raised, until another one is promoted."""
        if self.refused is not None and self.refused[0] == self.promoted():
            raise self.refused[1]


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

    async def open(self) -> None:
        """Load what was started. Raises LsmlError."""
        await self._load(self._everyone, self.started)

    async def close(self) -> None:
        for place in (self._everyone, *self._projects.values()):
            if place.loading is not None:
                place.loading.cancel()
            if place.served is not None:
                await place.served.close()

    async def model_for(self, project: int | None) -> Served:
        """The model that answers for a project; waits while its own version is loaded for the first time.

        Raises LsmlError when that version cannot be loaded: predictions of another model would be none of its own.
        """
        place = self._place(project)
        place.asked = time.monotonic()
        if place.served is not None:
            return place.served
        place.require_loadable()
        return await asyncio.shield(self._begin(place))

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
            if place.root is None or place.loading is not None:
                continue
            promoted = await asyncio.to_thread(place.promoted)
            serving = place.served.spec.version if place.served else None
            known = promoted in (None, serving) or (place.refused is not None and place.refused[0] == promoted)
            if not known:
                try:
                    await self._begin(place)
                except LsmlError as error:
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
        self._make_room(keep=project)

    def _place(self, project: int | None) -> _Place:
        if project is None or self._versions is None or project in self._preparing:
            return self._everyone
        if project not in self._projects:
            if not (versions_of(self._versions, project) / versions.CURRENT).is_file():
                return self._everyone
            self._projects[project] = self._new_place(project, self._versions)
            self._make_room(keep=project)
        return self._projects[project]

    def _new_place(self, project: int, root: Path) -> _Place:
        home = versions_of(root, project)
        return _Place(home, lambda: self._find_promoted(home))

    def _make_room(self, keep: int) -> None:
        loaded = [number for number, place in self._projects.items() if place.served and number != keep]
        if len(loaded) < MOST_LOADED:
            return
        longest = min(loaded, key=lambda number: self._projects[number].asked)
        place = self._projects.pop(longest)
        assert place.served is not None
        place.served.retire()

    def _begin(self, place: _Place) -> asyncio.Task[Served]:
        if place.loading is None:
            place.loading = asyncio.get_running_loop().create_task(self._replace(place))
            place.loading.add_done_callback(_look_at)
        return place.loading

    async def _replace(self, place: _Place) -> Served:
        promoted = place.promoted()
        try:
            return await self._load(place, await asyncio.to_thread(place.find))
        except LsmlError as error:
            place.refused = (promoted, error)
            raise
        except Exception as error:
            place.refused = (promoted, ModelError(f"The model cannot be loaded: {reason(error)}."))
            raise place.refused[1] from error
        finally:
            place.loading = None

    async def _load(self, place: _Place, spec: ModelSpec) -> Served:
        for note in spec.notes:
            log.warning(note)
        older, place.served = place.served, await self._how.open(spec)
        place.refused = None
        if older is not None:
            log.info("%s takes over from %s.", spec.model_version, older.spec.model_version)
            older.retire()
        elif place is not self._everyone:
            log.info("%s is loaded.", spec.model_version)
        return place.served

    def _find_started(self) -> ModelSpec:
        assert self._everyone.root is not None
        return self._find_promoted(self._everyone.root, self._params)

    def _find_promoted(self, root: Path, params: Mapping[str, Json] | None = None) -> ModelSpec:
        """A version has to be of the class that was started: a folder may not decide which code runs."""
        folder = versions.resolve(str(root))
        return registry.version_spec(folder, params, target=self.started.target, named=str(root))


def followed_folder(name: str) -> Path | None:
    """The folder whose promoted version a model's name means: "models/news", but not "models/news@VERSION"."""
    both = registry.split_class(name)
    root = Path(both[1] if both else name)
    return root if (root / versions.CURRENT).is_file() else None


def _whose(project: int | None) -> str:
    return "The started model" if project is None else f"Project {project}"


def _look_at(task: asyncio.Task[Served]) -> None:
    if not task.cancelled():
        task.exception()  # whoever waits for it gets it; nobody may
