"""Predictions for requests, without HTTP: tasks in, rendered predictions out, before the deadline."""

from __future__ import annotations

import asyncio
import logging
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import orjson

from lsml_cli.inference.record_codec import BindingKey
from lsml_cli.models.spec import ModelSpec
from lsml_cli.registry.resolve import stored_label_config
from lsml_cli.schema.label_config import LabelConfig
from lsml_cli.schema.predictions import Failure
from lsml_cli.server.batching import TIMED_OUT, PendingRequest
from lsml_cli.server.metrics import ServerMetrics
from lsml_cli.server.model_pool import ModelPool
from lsml_cli.server.prediction_log import describe_project, describe_tasks, log_unpredicted_tasks
from lsml_cli.server.requests import BadRequest, PredictRequest
from lsml_cli.server.result_cache import ResultCache, cache_key
from lsml_cli.server.served_model import ServedModel
from lsml_cli.server.task_codec import FailedTask, RequestCodec

SLOW_REQUEST = 1.0  # seconds; the results of a slower request are cached, in case its answer gets lost
SETUP_TIMEOUT = 2.0  # seconds that /setup may wait for a version to load; Label Studio gives up after 3
MAX_PARSED_CONFIGS = 64  # parsed label configs that are cached
MAX_CHECKED_BINDINGS = 256  # pairs of model and label config that are known to fit

# Label Studio skips it and asks for the task again; an empty list of results would mark the task as predicted.
EMPTY_RESULT = b"{}"

log = logging.getLogger("lsml.serve")

WaitForDisconnect = Callable[[], Awaitable[None]]  # returns when the client has disconnected


class ClientDisconnected(Exception):
    """The client closed the connection before it had its answer."""


@dataclass(frozen=True)
class Limits:
    """Limits of one request.

    Attributes:
        deadline: Seconds until the answer is sent, finished or not.
        max_tasks: Number of tasks; further ones get no result.
    """

    deadline: float
    max_tasks: int


@dataclass(frozen=True)
class PredictResponse:
    """One rendered result for each task, in order; `EMPTY_RESULT` for a task without one."""

    results: Sequence[bytes]
    version: str

    def to_bytes(self) -> bytes:
        """Return the body of the answer."""
        return b'{"results":[' + b",".join(self.results) + b'],"model_version":' + orjson.dumps(self.version) + b"}"


@dataclass
class Service:
    """Answer the requests of all projects.

    Attributes:
        label_map, threshold: How every model is bound, see `BindingKey`.
        default_label_config: That of a project of `lsml init`, for requests without one; None if there is none.
        result_cache: Results of slow requests, which their clients may not have received.
    """

    model_pool: ModelPool
    metrics: ServerMetrics
    limits: Limits
    label_map: Mapping[str, str] = field(default_factory=dict)
    threshold: float | None = None
    default_label_config: LabelConfig | None = None
    result_cache: ResultCache = field(default_factory=ResultCache)
    _checked_bindings: OrderedDict[tuple[object, ...], None] = field(default_factory=OrderedDict)

    async def setup(self, project: int | None, label_config_xml: str | None) -> str:
        """Return the `model_version` that a project's predictions will have.

        Raises:
            LsmlError: The model cannot be loaded, or cannot fill the label config. A config without controls is not
                checked: its project is not set up yet.
        """
        version = self.model_pool.version_for(project)
        try:
            async with asyncio.timeout(SETUP_TIMEOUT):
                served = await self.model_pool.model_for(project)
        except TimeoutError:
            return version
        if label_config_xml and (config := parse_config(label_config_xml)).controls:
            self._check_binding(served.spec, self._binding_key(config, project))
        return served.spec.model_version

    async def predict(
        self,
        predict_request: PredictRequest,
        task_count: int,
        started_at: float,
        wait_for_disconnect: WaitForDisconnect,
    ) -> PredictResponse:
        """Return a result for every task, before the deadline.

        Args:
            task_count: Number of tasks of the request, which may exceed those in `predict_request`.
            started_at: When the request came, on the event loop's clock.

        Raises:
            BadRequest: There is no label config.
            LsmlError: The model cannot be loaded, or cannot fill the label config.
            ClientDisconnected: The client went away.
        """
        deadline_at = started_at + self.limits.deadline
        project = predict_request.project
        try:
            async with asyncio.timeout_at(deadline_at):
                served = await self.model_pool.model_for(project)
        except TimeoutError:
            log.warning("The model was not loaded in time for %s.", describe_tasks(task_count, project))
            return PredictResponse([EMPTY_RESULT] * task_count, self.model_pool.version_for(project))
        version = served.spec.model_version
        with served.in_use():
            binding_key = self._binding_key(self._label_config(predict_request, served.spec), project)
            self._check_binding(served.spec, binding_key)
            results = await self._collect_results(
                predict_request, served, binding_key, deadline_at, wait_for_disconnect
            )
        results += [TIMED_OUT] * (task_count - len(results))
        log_unpredicted_tasks(results, predict_request, task_count, self.limits.deadline, version)
        rendered = [result if isinstance(result, bytes) else EMPTY_RESULT for result in results]
        return PredictResponse(rendered, version)

    async def _collect_results(
        self,
        predict_request: PredictRequest,
        served: ServedModel,
        binding_key: BindingKey,
        deadline_at: float,
        wait_for_disconnect: WaitForDisconnect,
    ) -> list[bytes | FailedTask | Failure | object]:
        """Return the results, see `PendingRequest`, when all are ready or the deadline has come."""
        loop = asyncio.get_running_loop()
        started_at = loop.time()
        cache = _RequestCache(self.result_cache, predict_request, served.spec.digest, binding_key.cache_key())
        codec = RequestCodec(served.spec.model_version, frozenset(binding_key.config.controls))
        request = PendingRequest(predict_request.tasks, binding_key, codec, on_late_result=cache.put)
        cached = cache.find_all()
        request.set_cached_results(cached)
        served.batcher.submit(request)
        try:
            await _wait_until_done(request.done, deadline_at, wait_for_disconnect)
        finally:
            served.batcher.close_request(request)
            if loop.time() - started_at > SLOW_REQUEST:
                for position, result in enumerate(request.results):
                    cache.put(position, result)
        self.metrics.count_tasks(*_count_outcomes(request.results, len(cached)))
        return request.results

    def _label_config(self, predict_request: PredictRequest, spec: ModelSpec) -> LabelConfig:
        if predict_request.label_config_xml is not None:
            return parse_config(predict_request.label_config_xml)
        config = stored_label_config(spec) or self.default_label_config
        if config is None:
            raise BadRequest('"label_config" is missing, and the model has none stored')
        return config

    def _binding_key(self, config: LabelConfig, project: int | None) -> BindingKey:
        return BindingKey(config, self.label_map, None if project is None else str(project), self.threshold)

    def _check_binding(self, spec: ModelSpec, binding_key: BindingKey) -> None:
        """Bind a model without weights in this process, as the replica may be busy; remember that it fits.

        Raises:
            LsmlError: The model cannot fill the label config.
        """
        key = (spec.digest, *binding_key.cache_key())
        if key in self._checked_bindings:
            return
        notes = spec.build().bind(binding_key.config, binding_key.label_map, binding_key.project).notes
        for note in notes:
            log.info("%s: %s", describe_project(binding_key.project), note)
        self._checked_bindings[key] = None
        if len(self._checked_bindings) > MAX_CHECKED_BINDINGS:
            self._checked_bindings.popitem(last=False)


@dataclass(frozen=True)
class _RequestCache:
    """The server's result cache for the tasks of one request; unused for interactive ones, as their context counts."""

    results: ResultCache
    predict_request: PredictRequest
    model_digest: str
    binding: tuple[object, ...]

    def find_all(self) -> dict[int, bytes]:
        """Return the cached results by position."""
        if not len(self.results) or self.predict_request.is_interactive:
            return {}
        cached = {task.position: self.results.get(self._key(task.position)) for task in self.predict_request.tasks}
        return {position: result for position, result in cached.items() if result is not None}

    def put(self, position: int, result: Any) -> None:
        """Cache a result if it is a prediction."""
        if isinstance(result, bytes) and not self.predict_request.is_interactive:
            self.results.put(self._key(position), result)

    def _key(self, position: int) -> bytes:
        return cache_key(self.model_digest, self.binding, self.predict_request.tasks[position].body)


@lru_cache(MAX_PARSED_CONFIGS)
def parse_config(xml: str) -> LabelConfig:
    """Parse labelling XML.

    Raises:
        LabelConfigError: It is invalid.
    """
    return LabelConfig.parse(xml)


async def _wait_until_done(
    done: asyncio.Future[None], deadline_at: float, wait_for_disconnect: WaitForDisconnect
) -> None:
    """Wait until `done` or the deadline, on the event loop's clock.

    Raises:
        ClientDisconnected: The client went away; noticed after `SLOW_REQUEST` seconds at the earliest.
    """
    loop = asyncio.get_running_loop()
    await asyncio.wait([done], timeout=min(SLOW_REQUEST, deadline_at - loop.time()))
    if done.done() or loop.time() >= deadline_at:
        return
    disconnected = loop.create_task(_await_disconnect(wait_for_disconnect))
    await asyncio.wait([done, disconnected], timeout=deadline_at - loop.time(), return_when=asyncio.FIRST_COMPLETED)
    if disconnected.done() and not done.done():
        raise ClientDisconnected
    disconnected.cancel()


async def _await_disconnect(wait_for_disconnect: WaitForDisconnect) -> None:
    await wait_for_disconnect()


def _count_outcomes(results: Sequence[Any], cached: int) -> tuple[int, int, int, int]:
    """Return the arguments of `ServerMetrics.count_tasks`."""
    predicted = sum(isinstance(result, bytes) for result in results)
    timed_out = sum(result is TIMED_OUT for result in results)
    return predicted - cached, len(results) - predicted - timed_out, timed_out, cached
