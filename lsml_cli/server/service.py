"""What the server answers, without HTTP: tasks in, rendered predictions out, in time."""

from __future__ import annotations

import asyncio
import logging
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import orjson

from lsml_cli.errors import format_list
from lsml_cli.inference.record_codec import BindingKey
from lsml_cli.models.spec import ModelSpec
from lsml_cli.registry.resolve import stored_label_config
from lsml_cli.schema.label_config import LabelConfig
from lsml_cli.schema.predictions import Failure
from lsml_cli.server.batching import TIMED_OUT, PendingRequest
from lsml_cli.server.metrics import ServerMetrics
from lsml_cli.server.model_pool import ModelPool, ServedModel
from lsml_cli.server.requests import BadRequest, PredictRequest
from lsml_cli.server.result_cache import ResultCache, cache_key
from lsml_cli.server.task_codec import FailedTask, RequestCodec, RequestTask

SLOW_REQUEST = 1.0  # seconds; what took longer than that is kept for a while, should the answer get lost
SETUP_TIMEOUT = 2.0  # seconds that /setup may wait for a version to load; Label Studio gives up after 3
MAX_PARSED_CONFIGS = 64  # label configs that are kept parsed
MAX_CHECKED_BINDINGS = 256  # pairs of a model and a label config that are known to fit together
MAX_LOGGED_FAILURES = 10  # failed tasks of one request that get a line of their own in the log
EMPTY_RESULT = b"{}"  # what Label Studio skips, and asks for again; an empty result would mark the task as predicted

log = logging.getLogger("lsml.serve")

WaitForDisconnect = Callable[[], Awaitable[None]]  # returns when the client has hung up


class ClientDisconnected(Exception):
    """Nobody waits for the answer any more."""


@dataclass(frozen=True)
class Limits:
    """deadline: seconds until an answer has to be on its way; most_tasks: of one request, further ones get nothing."""

    deadline: float = 90.0
    max_tasks: int = 50_000


@dataclass(frozen=True)
class PredictResponse:
    """One rendered result for each task, in order; `NOTHING` where there is none."""

    results: Sequence[bytes]
    version: str

    def to_bytes(self) -> bytes:
        return b'{"results":[' + b",".join(self.results) + b'],"model_version":' + orjson.dumps(self.version) + b"}"


@dataclass
class Service:
    """Predictions for requests. `label_map` and `threshold`: how the models are bound, see `Setting`."""

    model_pool: ModelPool
    metrics: ServerMetrics
    limits: Limits = field(default_factory=Limits)
    label_map: Mapping[str, str] = field(default_factory=dict)
    threshold: float | None = None
    result_cache: ResultCache = field(default_factory=ResultCache)
    _checked_bindings: OrderedDict[tuple[object, ...], None] = field(default_factory=OrderedDict)

    async def setup(self, project: int | None, config: str | None) -> str:
        """The `model_version` that a project's predictions will carry.

        Raises LsmlError when the model cannot fill the label config; one without any controls is not ready yet.
        """
        version = self.model_pool.version_for(project)
        try:
            async with asyncio.timeout(SETUP_TIMEOUT):
                served = await self.model_pool.model_for(project)
        except TimeoutError:
            return version
        if config and (parsed := parse_config(config)).controls:
            self._check_binding(served.spec, self._binding_key(parsed, project))
        return served.spec.model_version

    async def predict(
        self,
        predict_request: PredictRequest,
        task_count: int,
        started_at: float,
        wait_for_disconnect: WaitForDisconnect,
    ) -> PredictResponse:
        """An answer for all `tasks`, of which `wanted` has the first; never later than the deadline.

        begun  when the request came, on the event loop's clock

        Raises LsmlError when nothing of it can be predicted, HungUp when nobody waits for it any more.
        """
        ends = started_at + self.limits.deadline
        try:
            async with asyncio.timeout_at(ends):
                served = await self.model_pool.model_for(predict_request.project)
        except TimeoutError:
            log.warning(
                "The model was not loaded in time for %s.", _describe_tasks(task_count, predict_request.project)
            )
            return PredictResponse([EMPTY_RESULT] * task_count, self.model_pool.version_for(predict_request.project))
        with served.in_use():
            setting = self._binding_key(self._label_config(predict_request, served.spec), predict_request.project)
            self._check_binding(served.spec, setting)
            results = await self._collect_results(predict_request, served, setting, ends, wait_for_disconnect)
        results += [TIMED_OUT] * (task_count - len(results))
        self._log_unpredicted_tasks(results, predict_request, task_count, served.spec)
        rendered = [result if isinstance(result, bytes) else EMPTY_RESULT for result in results]
        return PredictResponse(rendered, served.spec.model_version)

    async def _collect_results(
        self,
        predict_request: PredictRequest,
        served: ServedModel,
        binding_key: BindingKey,
        deadline_at: float,
        wait_for_disconnect: WaitForDisconnect,
    ) -> list[bytes | FailedTask | Failure | object]:
        """What there is of each task when all are done, or when time is up."""
        loop = asyncio.get_running_loop()
        begun = loop.time()
        model, version = served.spec.digest, served.spec.model_version

        def keep(position: int, result: Any) -> None:
            if isinstance(result, bytes) and not predict_request.is_interactive:
                self.result_cache.put(
                    cache_key(model, binding_key.cache_key(), predict_request.tasks[position].body), result
                )

        job = RequestCodec(version, frozenset(binding_key.config.controls))
        request = PendingRequest(predict_request.tasks, binding_key, job, on_late_result=keep)
        if len(self.result_cache) and not predict_request.is_interactive:
            request.set_cached_results(self._find_cached_results(model, binding_key, predict_request.tasks))
        kept = len(predict_request.tasks) - request.pending_count
        served.batcher.submit(request)
        try:
            await _wait_until_done(request.done, deadline_at, wait_for_disconnect)
        finally:
            served.batcher.close_request(request)
            if loop.time() - begun > SLOW_REQUEST:
                for position, result in enumerate(request.results):
                    keep(position, result)
        self.metrics.count_tasks(*_count_outcomes(request.results, kept))
        return request.results

    def _find_cached_results(
        self, model_digest: str, binding_key: BindingKey, tasks: Sequence[RequestTask]
    ) -> dict[int, bytes]:
        key = binding_key.cache_key()
        found = {each.position: self.result_cache.get(cache_key(model_digest, key, each.body)) for each in tasks}
        return {position: result for position, result in found.items() if result is not None}

    def _label_config(self, predict_request: PredictRequest, spec: ModelSpec) -> LabelConfig:
        if predict_request.label_config_xml is not None:
            return parse_config(predict_request.label_config_xml)
        remembered = stored_label_config(spec)
        if remembered is None:
            raise BadRequest('"label_config" is missing, and the model remembers none')
        return remembered

    def _binding_key(self, config: LabelConfig, project: int | None) -> BindingKey:
        return BindingKey(config, self.label_map, None if project is None else str(project), self.threshold)

    def _check_binding(self, spec: ModelSpec, binding_key: BindingKey) -> None:
        """Bind a model without weights, here: the one with weights may be busy. Raises LsmlError."""
        key = (spec.digest, *binding_key.cache_key())
        if key in self._checked_bindings:
            return
        notes = spec.build().bind(binding_key.config, binding_key.label_map, binding_key.project).notes
        for note in notes:
            log.info("%s: %s", _describe_project(binding_key.project), note)
        self._checked_bindings[key] = None
        if len(self._checked_bindings) > MAX_CHECKED_BINDINGS:
            self._checked_bindings.popitem(last=False)

    def _log_unpredicted_tasks(
        self, results: Sequence[Any], predict_request: PredictRequest, task_count: int, spec: ModelSpec
    ) -> None:
        """Log what was not predicted, and why."""
        failed = [
            (position, result) for position, result in enumerate(results) if isinstance(result, FailedTask | Failure)
        ]
        for position, result in failed[:MAX_LOGGED_FAILURES]:
            failure = result if isinstance(result, Failure) else result.failure
            number = result.id if isinstance(result, FailedTask) else _task_id(predict_request.tasks[position])
            named = f"task {number}" if number is not None else f"task at position {position + 1}, without an id,"
            log.warning(
                "%s: %s failed (%s): %s",
                _describe_project(predict_request.project),
                named,
                failure.stage,
                failure.reason,
            )
        if more := failed[MAX_LOGGED_FAILURES:]:
            ids = (
                str(result.id if isinstance(result, FailedTask) else _task_id(predict_request.tasks[at]))
                for at, result in more
            )
            log.warning(
                "%s: %d more tasks failed: %s",
                _describe_project(predict_request.project),
                len(more),
                format_list(ids, 100),
            )
        if unasked := task_count - len(predict_request.tasks):
            log.warning(
                "A request has %s; the last %d are left for a later one. Larger ones: --max-tasks N.",
                *(_describe_tasks(task_count, predict_request.project), unasked),
            )
        if late := sum(result is TIMED_OUT for result in results) - unasked:
            log.warning(
                "After %.0f s, %d of %s are left for the next request. "
                "For all of a large project: lsml predict EXPORT.json --model MODEL (now %s).",
                *(self.limits.deadline, late, _describe_tasks(task_count, predict_request.project), spec.model_version),
            )


@lru_cache(MAX_PARSED_CONFIGS)
def parse_config(xml: str) -> LabelConfig:
    """The label config in labelling XML. Raises LabelConfigError."""
    return LabelConfig.parse(xml)


async def _wait_until_done(
    done: asyncio.Future[None], deadline_at: float, wait_for_disconnect: WaitForDisconnect
) -> None:
    """Until done, or time is up. Raises HungUp when the client has gone before; a short wait does not look for that."""
    loop = asyncio.get_running_loop()
    await asyncio.wait([done], timeout=min(SLOW_REQUEST, deadline_at - loop.time()))
    if done.done() or loop.time() >= deadline_at:
        return
    hung_up = loop.create_task(_await_disconnect(wait_for_disconnect))
    await asyncio.wait([done, hung_up], timeout=deadline_at - loop.time(), return_when=asyncio.FIRST_COMPLETED)
    if hung_up.done() and not done.done():
        raise ClientDisconnected
    hung_up.cancel()


async def _await_disconnect(wait_for_disconnect: WaitForDisconnect) -> None:
    await wait_for_disconnect()


def _count_outcomes(results: Sequence[Any], cached: int) -> tuple[int, int, int, int]:
    predicted = sum(isinstance(result, bytes) for result in results)
    late = sum(result is TIMED_OUT for result in results)
    return predicted - cached, len(results) - predicted - late, late, cached


def _task_id(request_task: RequestTask) -> int | None:
    try:
        task = orjson.loads(request_task.body)
    except orjson.JSONDecodeError:  # numbers that Python writes and orjson does not read
        return None
    found = task.get("id") if isinstance(task, dict) else None
    return found if type(found) is int else None


def _describe_tasks(task_count: int, project: int | None) -> str:
    return f"{task_count:,} {'task' if task_count == 1 else 'tasks'} of {_describe_project(project).lower()}"


def _describe_project(project: int | str | None) -> str:
    return "Some project" if project is None else f"Project {project}"
