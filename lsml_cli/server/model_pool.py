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
from lsml_cli.inference.replica_process import ReplicaConfig, ReplicaProcess
from lsml_cli.media.fetcher import Media
from lsml_cli.models.spec import Json, ModelSpec
from lsml_cli.registry import resolve, versions
from lsml_cli.runtime import error_reason
from lsml_cli.server.batching import Batcher, BatchStats
from lsml_cli.server.job_store import project_versions_folder

POLL_INTERVAL = 1.0  # seconds between two looks for newly promoted versions
MAX_LOADED_MODELS = 8  # projects whose own version is in memory; who was not asked for longest is the next to go
RETRY_AFTER = 30.0  # seconds after which a version that could not be loaded may be tried once more
UNLOAD_GRACE = 5.0  # seconds that what is under way gets when the server ends

log = logging.getLogger("lsml.serve")


@dataclass(frozen=True)
class ModelLoader:
    """How a model is loaded and worked with; the same for every project. Times in seconds, see `Batcher`."""

    device: str
    threads: int = 0
    media: Media | None = None
    batch_size: int | None = None  # None: what the model's class says
    max_wait: float = 0.002
    batch_timeout: float = 180.0
    on_batch: Callable[[BatchStats], None] = field(default=lambda batched: None, repr=False)

    async def load(self, spec: ModelSpec) -> ServedModel:
        """Raises LsmlError when the model cannot be loaded; whatever it raises, nothing of it is left."""
        replica = ReplicaProcess(ReplicaConfig(spec, None, self.device, encode_threads=self.threads, media=self.media))
        try:
            await asyncio.to_thread(replica.wait_until_ready)
        except BaseException:
            await asyncio.to_thread(replica.close)
            raise
        batcher = Batcher(
            replica,
            batch_size=self.batch_size or spec.model_class().batch_size,
            max_wait=self.max_wait,
            batch_timeout=self.batch_timeout,
            on_batch=self.on_batch,
        )
        return ServedModel(spec, replica, batcher)


class ServedModel:
    """One loaded model, and the requests that it is working on. `gone` is done when it is out of the memory."""

    def __init__(self, spec: ModelSpec, replica: ReplicaProcess, batcher: Batcher) -> None:
        self.spec = spec
        self.batcher = batcher
        self.unloaded: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._replica = replica
        self._active_requests = 0
        self._retired = False
        self._closing: asyncio.Task[None] | None = None

    @property
    def is_idle(self) -> bool:
        return not self._active_requests

    @property
    def version_folder_name(self) -> str | None:
        """The name of the version's folder, which may be a copy of another version's; None without one."""
        return self.spec.path.name if self.spec.path else None

    @contextmanager
    def in_use(self) -> Iterator[None]:
        """Keeps the model loaded as long as a request needs it."""
        self._active_requests += 1
        try:
            yield
        finally:
            self._active_requests -= 1
            self._close_if_done()

    def retire(self) -> None:
        """No further request comes; unload when the last one is answered."""
        self._retired = True
        self._close_if_done()

    async def close(self) -> None:
        """Unload because the server ends: what is under way gets `GRACE` seconds, whoever may wait for it."""
        self._retired = True
        self._begin_to_close()
        await asyncio.wait([self.unloaded], timeout=UNLOAD_GRACE)
        if not self.unloaded.done():
            await asyncio.to_thread(self._replica.close)  # and every batch fails at once
            await self.unloaded

    def _close_if_done(self) -> None:
        if self._retired and self.is_idle:
            self._begin_to_close()

    def _begin_to_close(self) -> None:
        if self._closing is None:
            self._closing = asyncio.get_running_loop().create_task(self._close())

    async def _close(self) -> None:
        try:
            await self.batcher.drain()
            await asyncio.to_thread(self._replica.close)
        finally:
            self.unloaded.set_result(None)


@dataclass(frozen=True)
class _LoadFailure:
    """A version that could not be loaded, and why; how its files were, and when that was, on the monotonic clock."""

    version: str | None
    file_stamp: object
    error: LsmlError
    failed_at: float

    def is_same_failure(self, other: _LoadFailure | None) -> bool:
        return other is not None and (self.version, str(self.error)) == (other.version, str(other.error))


class ModelSlot:
    """What answers for one project, or for all that have nothing of their own."""

    def __init__(self, root: Path | None, find_spec: Callable[[], ModelSpec]) -> None:
        self.root = root  # the folder whose promoted version answers; None: what was started, for good
        self.find_spec = find_spec
        self.model: ServedModel | None = None
        self.load_task: asyncio.Task[ServedModel] | None = None
        self.load_failure: _LoadFailure | None = None
        self.last_requested_at = time.monotonic()
        self.waiting_requests = 0  # requests that wait until it is loaded

    def promoted_version(self) -> str | None:
        """The name of the version that should answer; None where nothing says so."""
        try:
            return versions.current_version(self.root) if self.root else None
        except ModelError:
            return None

    def record_load_failure(self, version: str | None, file_stamp: object, error: LsmlError) -> None:
        self.load_failure = _LoadFailure(version, file_stamp, error, time.monotonic())

    def recent_load_error(self, max_age: float) -> LsmlError | None:
        """What loading the promoted version raised; None where it is worth another try.

        It is when another one was promoted, when somebody has been at its files, and after so many seconds in any case:
        what was wrong may have been a full disk, or a folder on a network.
        """
        known = self.load_failure
        if known is None or time.monotonic() - known.failed_at >= max_age:
            return None
        version = self.promoted_version()
        return known.error if (known.version, known.file_stamp) == (version, self.file_stamp(version)) else None

    def require_loadable(self) -> None:
        """Raises what loading the promoted version raised a moment ago."""
        if (error := self.recent_load_error(RETRY_AFTER)) is not None:
            raise error

    def file_stamp(self, version: str | None) -> object:
        """What is another one when the version's files have been changed; None where they cannot be looked at."""
        if self.root is None or version is None:
            return None
        folder = self.root / version
        try:
            return folder.stat().st_mtime_ns, (folder / versions.METADATA_FILE).stat().st_mtime_ns
        except (OSError, ValueError):  # ValueError: `current` may hold anything
            return None

    @property
    def can_unload(self) -> bool:
        """Whether it could be unloaded: nobody is just about to use it."""
        return self.model is not None and self.load_task is None and not self.waiting_requests


class ModelPool:
    """All models of one server.

    started   the spec that the server was started with; `params` are those that were given there (`--with`)
    follows   the folder of `started`, when its promoted version is meant, whichever that is
    versions  folder with a folder of versions for each project; None: no project has one
    """

    def __init__(
        self,
        default_spec: ModelSpec,
        loader: ModelLoader,
        *,
        params: Mapping[str, Json] | None = None,
        watched_folder: Path | None = None,
        versions_folder: Path | None = None,
    ) -> None:
        self.default_spec = default_spec
        self._params = params or {}
        self._versions_folder = versions_folder
        self._loader = loader
        self._default_slot = ModelSlot(watched_folder, self._find_default_spec)
        self._project_slots: dict[int, ModelSlot] = {}
        self._preparing_projects: set[int] = set()
        self._open_models: set[ServedModel] = set()  # whatever has a process, also what only finishes its last requests
        self._capacity = _Capacity(MAX_LOADED_MODELS, self._unload_one)

    async def open(self) -> None:
        """Load what was started. Raises LsmlError."""
        await self._load(self._default_slot, self.default_spec)

    async def close(self) -> None:
        loading = [place.load_task for place in (self._default_slot, *self._project_slots.values()) if place.load_task]
        for each in loading:
            each.cancel()
        if loading:
            await asyncio.wait(loading, timeout=UNLOAD_GRACE)
        await asyncio.gather(*(served.close() for served in self._open_models))

    async def model_for(self, project: int | None) -> ServedModel:
        """The model that answers for a project; waits while its own version is loaded for the first time.

        Raises LsmlError when that version cannot be loaded: predictions of another model would be none of its own.
        """
        place = self._slot_for(project)
        place.last_requested_at = time.monotonic()
        if place.model is None:
            place.require_loadable()
            place.waiting_requests += 1
            try:
                await asyncio.shield(self._start_loading(place))
            finally:
                place.waiting_requests -= 1
                asyncio.get_running_loop().call_soon(
                    self._capacity.admit_waiters
                )  # when whoever waited has begun to use it
        assert place.model is not None
        return place.model

    def version_for(self, project: int | None) -> str:
        """The `model_version` of the predictions that a project gets now, without waiting.

        Raises LsmlError when the version cannot be loaded.
        """
        place = self._slot_for(project)
        if place.model is not None:
            return place.model.spec.model_version
        place.require_loadable()
        self._start_loading(place)  # it will be asked for in a moment
        assert place.root is not None
        return f"{place.root.name}@{place.promoted_version()}"

    def loaded_versions(self) -> dict[str, str]:
        """What answers now: {"": the started model, "3": project 3's own}."""
        found = {"": self._default_slot} | {str(number): place for number, place in sorted(self._project_slots.items())}
        return {name: place.model.spec.model_version for name, place in found.items() if place.model}

    @property
    def queued_task_count(self) -> int:
        """Tasks that wait for a batch, in all models."""
        places = (self._default_slot, *self._project_slots.values())
        return sum(place.model.batcher.queued_task_count for place in places if place.model)

    async def watch_versions(self) -> None:
        """Look for newly promoted versions, for ever."""
        while True:
            await asyncio.sleep(POLL_INTERVAL)
            await self.load_promoted()

    async def load_promoted(self) -> None:
        """Load what has been promoted since, by whomever, and let it take over."""
        for number, place in [(None, self._default_slot), *self._project_slots.items()]:
            if place.root is None:
                continue
            promoted = await asyncio.to_thread(place.promoted_version)
            if number is not None and self._project_slots.get(number) is not place:  # it had to make room meanwhile
                continue
            serving = place.model.version_folder_name if place.model else None
            # Where nothing answers yet, whoever asks tries again; nobody else need do so for ever.
            refusal = place.recent_load_error(RETRY_AFTER if serving else math.inf)
            if promoted in (None, serving) or refusal is not None or place.load_task is not None:
                continue
            before = place.load_failure
            try:
                await self._start_loading(place)
            except LsmlError as error:
                if place.load_failure is not None and not place.load_failure.is_same_failure(before):
                    still = f"{serving} goes on" if serving else "there is nothing else"
                    log.error(
                        "%s: the new version cannot be loaded, so %s. %s", _describe_project(number), still, error
                    )

    async def load_project(self, project: int) -> None:
        """A project has a new version: load it. Whoever answered for the project does so until it is there."""
        if self._versions_folder is None or project in self._project_slots or project in self._preparing_projects:
            await self.load_promoted()
            return
        place = self._new_slot(project, self._versions_folder)
        self._preparing_projects.add(project)
        try:
            await self._start_loading(place)
        except LsmlError as error:
            log.error("Project %d: its new version cannot be loaded. %s", project, error)
        finally:
            self._preparing_projects.discard(project)
        self._project_slots[project] = place
        self._capacity.admit_waiters()

    def _slot_for(self, project: int | None) -> ModelSlot:
        if project is None or self._versions_folder is None or project in self._preparing_projects:
            return self._default_slot
        if project not in self._project_slots:
            if not (project_versions_folder(self._versions_folder, project) / versions.CURRENT_FILE).is_file():
                return self._default_slot
            self._project_slots[project] = self._new_slot(project, self._versions_folder)
        return self._project_slots[project]

    def _new_slot(self, project: int, root: Path) -> ModelSlot:
        home = project_versions_folder(root, project)
        return ModelSlot(home, lambda: self._find_promoted_spec(home))

    def _unload_one(self) -> ServedModel | None:
        """The model of a project that has to make room for another, on its way out; None where none can.

        The one that was not asked for longest; where all are busy, one that has requests to finish first.
        """
        could = [number for number, place in self._project_slots.items() if place.can_unload]
        served = {number: self._project_slots[number].model for number in could}
        idle = [number for number, each in served.items() if each is not None and each.is_idle]
        if not could:
            return None
        longest = min(idle or could, key=lambda number: self._project_slots[number].last_requested_at)
        leaving = self._project_slots.pop(longest).model
        assert leaving is not None
        leaving.retire()
        return leaving

    def _start_loading(self, slot: ModelSlot) -> asyncio.Task[ServedModel]:
        if slot.load_task is None:
            slot.load_task = asyncio.get_running_loop().create_task(self._load_within_capacity(slot))
            slot.load_task.add_done_callback(_retrieve_exception)
        return slot.load_task

    async def _load_within_capacity(self, slot: ModelSlot) -> ServedModel:
        # What takes over from an older version of the same project takes over its room as well.
        needs_room = slot is not self._default_slot and slot.model is None
        try:
            if needs_room:
                await self._capacity.acquire()
            try:
                return await self._find_and_load(slot)
            finally:
                if needs_room and slot.model is None:
                    self._capacity.release()
        finally:
            slot.load_task = None
            self._capacity.admit_waiters()

    async def _find_and_load(self, slot: ModelSlot) -> ServedModel:
        promoted = slot.promoted_version()
        stamp = slot.file_stamp(promoted)  # of before: what is mended while it is looked at is worth another look
        try:
            return await self._load(slot, await asyncio.to_thread(slot.find_spec))
        except LsmlError as error:
            slot.record_load_failure(promoted, stamp, error)
            raise
        except Exception as error:
            refusal = ModelError(f"The model cannot be loaded: {error_reason(error)}.")
            slot.record_load_failure(promoted, stamp, refusal)
            raise refusal from error

    async def _load(self, slot: ModelSlot, spec: ModelSpec) -> ServedModel:
        for note in spec.notes:
            log.warning(note)
        newer = await self._loader.load(spec)
        self._open_models.add(newer)
        newer.unloaded.add_done_callback(lambda _: self._open_models.discard(newer))
        older, slot.model = slot.model, newer
        slot.load_failure = None
        if older is not None:
            log.info("%s takes over from %s.", spec.model_version, older.spec.model_version)
            older.retire()
        elif slot is not self._default_slot:
            log.info("%s is loaded.", spec.model_version)
        return newer

    def _find_default_spec(self) -> ModelSpec:
        assert self._default_slot.root is not None
        return self._find_promoted_spec(self._default_slot.root, self._params)

    def _find_promoted_spec(self, root: Path, params: Mapping[str, Json] | None = None) -> ModelSpec:
        """A version has to be of the class that was started: a folder may not decide which code runs."""
        folder = versions.resolve(str(root))
        return resolve.version_spec(folder, params, target=self.default_spec.target, display_name=str(root))


class _Capacity:
    """Room in memory for the models of `most` projects; who comes when it is full waits until another one is gone.

    unload_one  sends one that is inside on its way out; None where there is none that could go now
    """

    def __init__(self, max_models: int, unload_one: Callable[[], ServedModel | None]) -> None:
        self._max_models = max_models
        self._unload_one = unload_one
        self._occupied = 0  # also those that are being loaded, and those that are on their way out
        self._unloading = 0
        self._waiters: deque[asyncio.Future[None]] = deque()

    async def acquire(self) -> None:
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiters.append(turn)
        self.admit_waiters()
        try:
            await turn
        except asyncio.CancelledError:
            if not turn.cancelled():  # it was let in at the same moment
                self.release()
            raise

    def release(self) -> None:
        self._occupied -= 1
        self.admit_waiters()

    def admit_waiters(self) -> None:
        """Let in whom there is room for, and make room for the others. To be called when somebody might go now."""
        self._waiters = deque(turn for turn in self._waiters if not turn.cancelled())
        while self._waiters and self._occupied < self._max_models:
            self._occupied += 1
            self._waiters.popleft().set_result(None)
        while self._unloading < len(self._waiters) and (leaving := self._unload_one()) is not None:
            self._unloading += 1
            leaving.unloaded.add_done_callback(self._on_unloaded)

    def _on_unloaded(self, _: asyncio.Future[None]) -> None:
        self._unloading -= 1
        self.release()


def find_watched_folder(name: str) -> Path | None:
    """The folder whose promoted version a model's name means: "models/news", but not "models/news@VERSION"."""
    both = resolve.split_class(name)
    root = Path(both[1] if both else name)
    return root if (root / versions.CURRENT_FILE).is_file() else None


def _describe_project(project: int | None) -> str:
    return "The started model" if project is None else f"Project {project}"


def _retrieve_exception(task: asyncio.Task[ServedModel]) -> None:
    if not task.cancelled():
        task.exception()  # whoever waits for it gets it; nobody may
