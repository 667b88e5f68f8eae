"""Serve each project with its own promoted version, and switch to newer versions while serving.

    the default model            serves every project that has no version of its own
    VERSIONS/project-3/current   the promoted version, if there is one, serves project 3 and no other

A newer version is loaded beside the one that serves; then they are swapped between two requests. The older one
finishes its requests, so that each request sees one version.
"""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections.abc import Mapping
from pathlib import Path

from lsml_cli.errors import LsmlError, ModelError
from lsml_cli.models.spec import Json, ModelSpec
from lsml_cli.registry import resolve, versions
from lsml_cli.registry.model_location import locate_model
from lsml_cli.runtime import error_reason
from lsml_cli.server.capacity import Capacity
from lsml_cli.server.job_store import project_versions_folder
from lsml_cli.server.model_slot import ModelSlot
from lsml_cli.server.prediction_log import describe_project
from lsml_cli.server.served_model import UNLOAD_GRACE, ModelLoader, ServedModel

POLL_INTERVAL = 1.0  # seconds between two checks for newly promoted versions
MAX_LOADED_MODELS = 8  # projects whose own version is in memory; the least recently requested one is unloaded first
RETRY_AFTER = 30.0  # seconds after which a version that could not be loaded is tried again

log = logging.getLogger("lsml.serve")


class ModelPool:
    """All models of one server.

    Args:
        default_spec: The model that the server was started with.
        params: Parameters of the default model (`--with`).
        watched_folder: Folder of the default model if its promoted version is served; None for a fixed version.
        versions_folder: Folder that holds a folder of versions for each project; None: no project has its own.
        max_loaded_models: Maximum number of projects' own models in memory.
        retry_after: Seconds after which a version that could not be loaded is tried again.
    """

    def __init__(
        self,
        default_spec: ModelSpec,
        loader: ModelLoader,
        *,
        params: Mapping[str, Json] | None = None,
        watched_folder: Path | None = None,
        versions_folder: Path | None = None,
        max_loaded_models: int = MAX_LOADED_MODELS,
        retry_after: float = RETRY_AFTER,
    ) -> None:
        self.default_spec = default_spec
        self._params = params or {}
        self._versions_folder = versions_folder
        self._loader = loader
        self._default_slot = ModelSlot(watched_folder, self._find_default_spec)
        self._project_slots: dict[int, ModelSlot] = {}
        self._preparing_projects: set[int] = set()
        self._retry_after = retry_after
        self._open_models: set[ServedModel] = set()  # all that have a process, retired ones too
        self._capacity = Capacity(max_loaded_models, self._unload_one)

    async def open(self) -> None:
        """Load the default model.

        Raises:
            LsmlError: It cannot be loaded.
        """
        await self._load(self._default_slot, self.default_spec)

    async def close(self) -> None:
        """Cancel loads and unload every model."""
        load_tasks = [slot.load_task for slot in self._all_slots() if slot.load_task]
        for load_task in load_tasks:
            load_task.cancel()
        if load_tasks:
            await asyncio.wait(load_tasks, timeout=UNLOAD_GRACE)
        await asyncio.gather(*(served.close() for served in self._open_models))

    async def model_for(self, project: int | None) -> ServedModel:
        """Return the model of a project, after loading the project's own version if necessary.

        Raises:
            LsmlError: That version cannot be loaded. The default model does not replace it: its predictions would be
                taken for those of the project's own model.
        """
        slot = self._slot_for(project)
        slot.last_requested_at = time.monotonic()
        if slot.model is None:
            self._require_loadable(slot)
            slot.waiting_requests += 1
            try:
                await asyncio.shield(self._start_loading(slot))
            finally:
                slot.waiting_requests -= 1
                # Soon, not now: by then the waiting request uses the model, which is not idle any more.
                asyncio.get_running_loop().call_soon(self._capacity.admit_waiters)
        assert slot.model is not None
        return slot.model

    def version_for(self, project: int | None) -> str:
        """Return the `model_version` of a project's predictions without waiting; start loading the version.

        Raises:
            LsmlError: The version cannot be loaded.
        """
        slot = self._slot_for(project)
        if slot.model is not None:
            return slot.model.spec.model_version
        self._require_loadable(slot)
        self._start_loading(slot)  # a request for predictions will follow
        assert slot.root is not None
        return f"{slot.root.name}@{slot.promoted_version()}"

    def loaded_versions(self) -> dict[str, str]:
        """Return the loaded versions by project: "" is the default model, "3" project 3's own."""
        slots = {"": self._default_slot} | {str(project): slot for project, slot in sorted(self._project_slots.items())}
        return {name: slot.model.spec.model_version for name, slot in slots.items() if slot.model}

    @property
    def queued_task_count(self) -> int:
        """Number of tasks that wait for a batch, in all models."""
        return sum(slot.model.batcher.queued_task_count for slot in self._all_slots() if slot.model)

    async def watch_versions(self) -> None:
        """Load newly promoted versions until cancelled."""
        while True:
            await asyncio.sleep(POLL_INTERVAL)
            await self.load_promoted()

    async def load_promoted(self) -> None:
        """Load every version that was promoted since the last check, and swap it in."""
        for project, slot in [(None, self._default_slot), *self._project_slots.items()]:
            if slot.root is None:
                continue
            promoted = await asyncio.to_thread(slot.promoted_version)
            if project is not None and self._project_slots.get(project) is not slot:  # unloaded meanwhile
                continue
            loaded = slot.model.version_folder_name if slot.model else None
            # Without a loaded model, requests try again; this loop need not.
            error = slot.recent_load_error(self._retry_after if slot.model else math.inf)
            if promoted in (None, loaded) or error is not None or slot.load_task is not None:
                continue
            await self._load_newer(slot, describe_project(project, none="Default model"))

    async def load_project(self, project: int) -> None:
        """Load a project's first or newer version; the present model serves the project until it is loaded."""
        if self._versions_folder is None or project in self._project_slots or project in self._preparing_projects:
            await self.load_promoted()
            return
        slot = self._new_slot(project, self._versions_folder)
        self._preparing_projects.add(project)
        try:
            await self._start_loading(slot)
        except LsmlError as error:
            log.error("Project %d: the new version cannot be loaded. %s", project, error)
        finally:
            self._preparing_projects.discard(project)
        self._project_slots[project] = slot
        self._capacity.admit_waiters()

    async def _load_newer(self, slot: ModelSlot, slot_name: str) -> None:
        """Load a slot's promoted version; log a failure unless it is the previous one once more."""
        previous_failure = slot.load_failure
        try:
            await self._start_loading(slot)
        except LsmlError as error:
            if slot.load_failure is not None and not slot.load_failure.is_same_failure(previous_failure):
                present = slot.model and (slot.model.version_folder_name or slot.model.spec.model_version)
                consequence = f"{present} stays in use" if present else "there is no other one"
                log.error("%s: the new version cannot be loaded, so %s. %s", slot_name, consequence, error)

    def _all_slots(self) -> list[ModelSlot]:
        return [self._default_slot, *self._project_slots.values()]

    def _require_loadable(self, slot: ModelSlot) -> None:
        """Raise the error of the last load while it is too recent for another try."""
        if (error := slot.recent_load_error(self._retry_after)) is not None:
            raise error

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
        """Retire the model of one project to make room for another, see `Capacity`.

        It is the least recently requested of the idle ones; if all are busy, of all.
        """
        candidates = {project: slot for project, slot in self._project_slots.items() if slot.can_unload}
        idle = {project: slot for project, slot in candidates.items() if slot.model is not None and slot.model.is_idle}
        if not candidates:
            return None
        project, slot = min((idle or candidates).items(), key=lambda item: item[1].last_requested_at)
        del self._project_slots[project]
        assert slot.model is not None
        slot.model.retire()
        return slot.model

    def _start_loading(self, slot: ModelSlot) -> asyncio.Task[ServedModel]:
        if slot.load_task is None:
            slot.load_task = asyncio.get_running_loop().create_task(self._load_within_capacity(slot))
            slot.load_task.add_done_callback(_retrieve_exception)
        return slot.load_task

    async def _load_within_capacity(self, slot: ModelSlot) -> ServedModel:
        # A newer version of a loaded model takes over its room as well.
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
        stamp = slot.file_stamp(promoted)  # from before the load, so that a repair during the load counts as a change
        try:
            return await self._load(slot, await asyncio.to_thread(slot.find_spec))
        except LsmlError as error:
            slot.record_load_failure(promoted, stamp, error)
            raise
        except Exception as error:
            model_error = ModelError(f"The model cannot be loaded: {error_reason(error)}.")
            slot.record_load_failure(promoted, stamp, model_error)
            raise model_error from error

    async def _load(self, slot: ModelSlot, spec: ModelSpec) -> ServedModel:
        for note in spec.notes:
            log.warning(note)
        newer = await self._loader.load(spec)
        self._open_models.add(newer)
        newer.unloaded.add_done_callback(lambda _: self._open_models.discard(newer))
        older, slot.model = slot.model, newer
        slot.load_failure = None
        if older is not None:
            log.info("%s replaces %s.", spec.model_version, older.spec.model_version)
            older.retire()
        elif slot is not self._default_slot:
            log.info("%s is loaded.", spec.model_version)
        return newer

    def _find_default_spec(self) -> ModelSpec:
        assert self._default_slot.root is not None
        return self._find_promoted_spec(self._default_slot.root, self._params)

    def _find_promoted_spec(self, root: Path, params: Mapping[str, Json] | None = None) -> ModelSpec:
        """Return the spec of a folder's promoted version, of the default model's class: a folder must not name code."""
        spec = self.default_spec
        confirmed = {name: value for name, value in spec.params.items() if name not in spec.unconfirmed_params}
        folder = versions.resolve(str(root))
        return resolve.version_spec(
            folder, params, target=spec.target, display_name=str(root), confirmed_params=confirmed
        )


def find_watched_folder(name: str) -> Path | None:
    """Return the folder whose promoted version a model's name means, None for a name that means a fixed model.

    That is the folder itself for "models/news", none for "models/news@VERSION", and for a project of `lsml init` the
    folder of its versions, also while there is no version yet.
    """
    return locate_model(name).versions_root


def _retrieve_exception(task: asyncio.Task[ServedModel]) -> None:
    """Mark a load's exception as retrieved: asyncio would log one that no request waits for."""
    if not task.cancelled():
        task.exception()
