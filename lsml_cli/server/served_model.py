"""Load a model into a replica process, and unload it when its last request is answered."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from lsml_cli.inference.replica_process import ReplicaConfig, ReplicaProcess
from lsml_cli.media.fetcher import Media
from lsml_cli.models.spec import ModelSpec
from lsml_cli.server.batching import Batcher, BatchStats

UNLOAD_GRACE = 5.0  # seconds that running batches and loads get when the server stops


@dataclass(frozen=True)
class ModelLoader:
    """Load models with the same options for every project; see `Batcher` for batches and times.

    Attributes:
        threads: Threads that fetch and encode media, 0 for none.
        batch_size: Maximum number of tasks of a batch, None for the model class's own.
        max_wait, batch_timeout: Seconds.
    """

    device: str
    threads: int = 0
    media: Media | None = None
    batch_size: int | None = None
    max_wait: float = 0.002
    batch_timeout: float = 180.0
    on_batch: Callable[[BatchStats], None] = field(default=lambda stats: None, repr=False)

    async def load(self, spec: ModelSpec) -> ServedModel:
        """Load a model in a process of its own.

        Raises:
            LsmlError: The model cannot be loaded; its process is gone.
        """
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
    """One loaded model and the number of requests that use it.

    Attributes:
        unloaded: Resolved when the model's process is gone.
    """

    def __init__(self, spec: ModelSpec, replica: ReplicaProcess, batcher: Batcher) -> None:
        self.spec = spec
        self.batcher = batcher
        self.unloaded: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._replica = replica
        self._active_requests = 0
        self._is_retired = False
        self._closing: asyncio.Task[None] | None = None

    @property
    def is_idle(self) -> bool:
        """Tell whether no request uses the model."""
        return not self._active_requests

    @property
    def version_folder_name(self) -> str | None:
        """Name of the version's folder, which differs from the version in a copied folder; None without a folder."""
        return self.spec.path.name if self.spec.path else None

    @contextmanager
    def in_use(self) -> Iterator[None]:
        """Keep the model loaded while a request uses it."""
        self._active_requests += 1
        try:
            yield
        finally:
            self._active_requests -= 1
            self._close_if_done()

    def retire(self) -> None:
        """Unload the model as soon as its last request is answered; no new ones may use it."""
        self._is_retired = True
        self._close_if_done()

    async def close(self) -> None:
        """Unload the model because the server stops: running batches get `UNLOAD_GRACE` seconds, then they fail."""
        self._is_retired = True
        self._begin_to_close()
        await asyncio.wait([self.unloaded], timeout=UNLOAD_GRACE)
        if not self.unloaded.done():
            await asyncio.to_thread(self._replica.close)  # every batch fails at once, which ends `drain`
            await self.unloaded

    def _close_if_done(self) -> None:
        if self._is_retired and self.is_idle:
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
