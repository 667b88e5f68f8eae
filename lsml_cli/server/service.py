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

from lsml_cli.errors import listed
from lsml_cli.inference.replica import Setting
from lsml_cli.models.base import ModelSpec
from lsml_cli.registry.resolve import trained_config
from lsml_cli.schema.label_config import LabelConfig
from lsml_cli.schema.predictions import Failure
from lsml_cli.server.batching import LATE, Request
from lsml_cli.server.metrics import Numbers
from lsml_cli.server.model_pool import Served, Serving
from lsml_cli.server.requests import BadRequest, Predict
from lsml_cli.server.result_cache import Finished, identity
from lsml_cli.server.task_codec import AnswerJob, Asked, Failed

SLOW = 1.0  # seconds; what took longer than that is kept for a while, should the answer get lost
SETUP_WAIT = 2.0  # seconds that /setup may wait for a version to load; Label Studio gives up after 3
CONFIGS = 64  # label configs that are kept parsed
FITTING = 256  # pairs of a model and a label config that are known to fit together
NAMED = 10  # failed tasks of one request that get a line of their own in the log
NOTHING = b"{}"  # what Label Studio skips, and asks for again; an empty result would mark the task as predicted

log = logging.getLogger("lsml.serve")

Gone = Callable[[], Awaitable[None]]  # returns when the client has hung up


class HungUp(Exception):
    """Nobody waits for the answer any more."""


@dataclass(frozen=True)
class Limits:
    """deadline: seconds until an answer has to be on its way; most_tasks: of one request, further ones get nothing."""

    deadline: float = 90.0
    most_tasks: int = 50_000


@dataclass(frozen=True)
class Answer:
    """One rendered result for each task, in order; `NOTHING` where there is none."""

    results: Sequence[bytes]
    version: str

    def body(self) -> bytes:
        return b'{"results":[' + b",".join(self.results) + b'],"model_version":' + orjson.dumps(self.version) + b"}"


@dataclass
class Service:
    """Predictions for requests. `label_map` and `threshold`: how the models are bound, see `Setting`."""

    serving: Serving
    numbers: Numbers
    limits: Limits = field(default_factory=Limits)
    label_map: Mapping[str, str] = field(default_factory=dict)
    threshold: float | None = None
    finished: Finished = field(default_factory=Finished)
    _fitting: OrderedDict[tuple[object, ...], None] = field(default_factory=OrderedDict)

    async def setup(self, project: int | None, config: str | None) -> str:
        """The `model_version` that a project's predictions will carry.

        Raises LsmlError when the model cannot fill the label config; one without any controls is not ready yet.
        """
        version = self.serving.version_for(project)
        try:
            async with asyncio.timeout(SETUP_WAIT):
                served = await self.serving.model_for(project)
        except TimeoutError:
            return version
        if config and (parsed := parse_config(config)).controls:
            self._require_fitting(served.spec, self._setting(parsed, project))
        return served.spec.model_version

    async def predict(self, wanted: Predict, tasks: int, begun: float, gone: Gone) -> Answer:
        """An answer for all `tasks`, of which `wanted` has the first; never later than the deadline.

        begun  when the request came, on the event loop's clock

        Raises LsmlError when nothing of it can be predicted, HungUp when nobody waits for it any more.
        """
        ends = begun + self.limits.deadline
        try:
            async with asyncio.timeout_at(ends):
                served = await self.serving.model_for(wanted.project)
        except TimeoutError:
            log.warning("The model was not loaded in time for %s.", _counted(tasks, wanted.project))
            return Answer([NOTHING] * tasks, self.serving.version_for(wanted.project))
        with served.in_use():
            setting = self._setting(self._config(wanted, served.spec), wanted.project)
            self._require_fitting(served.spec, setting)
            results = await self._results(wanted, served, setting, ends, gone)
        results += [LATE] * (tasks - len(results))
        self._tell(results, wanted, tasks, served.spec)
        rendered = [result if isinstance(result, bytes) else NOTHING for result in results]
        return Answer(rendered, served.spec.model_version)

    async def _results(
        self, wanted: Predict, served: Served, setting: Setting, ends: float, gone: Gone
    ) -> list[bytes | Failed | Failure | object]:
        """What there is of each task when all are done, or when time is up."""
        loop = asyncio.get_running_loop()
        begun = loop.time()
        model, version = served.spec.digest, served.spec.model_version

        def keep(position: int, result: Any) -> None:
            if isinstance(result, bytes) and not wanted.interactive:
                self.finished.keep(identity(model, setting.key(), wanted.asked[position].body), result)

        job = AnswerJob(version, frozenset(setting.config.controls))
        request = Request(wanted.asked, setting, job, late=keep)
        if len(self.finished) and not wanted.interactive:
            request.skip(self._known(model, setting, wanted.asked))
        kept = len(wanted.asked) - request.missing
        served.batcher.submit(request)
        try:
            await _wait(request.done, ends, gone)
        finally:
            served.batcher.end(request)
            if loop.time() - begun > SLOW:
                for position, result in enumerate(request.results):
                    keep(position, result)
        self.numbers.tasks(*_counts(request.results, kept))
        return request.results

    def _known(self, model: str, setting: Setting, asked: Sequence[Asked]) -> dict[int, bytes]:
        key = setting.key()
        found = {each.position: self.finished.find(identity(model, key, each.body)) for each in asked}
        return {position: result for position, result in found.items() if result is not None}

    def _config(self, wanted: Predict, spec: ModelSpec) -> LabelConfig:
        if wanted.config is not None:
            return parse_config(wanted.config)
        remembered = trained_config(spec)
        if remembered is None:
            raise BadRequest('"label_config" is missing, and the model remembers none')
        return remembered

    def _setting(self, config: LabelConfig, project: int | None) -> Setting:
        return Setting(config, self.label_map, None if project is None else str(project), self.threshold)

    def _require_fitting(self, spec: ModelSpec, setting: Setting) -> None:
        """Bind a model without weights, here: the one with weights may be busy. Raises LsmlError."""
        key = (spec.digest, *setting.key())
        if key in self._fitting:
            return
        notes = spec.build().bind(setting.config, setting.label_map, setting.project).notes
        for note in notes:
            log.info("%s: %s", _whose(setting.project), note)
        self._fitting[key] = None
        if len(self._fitting) > FITTING:
            self._fitting.popitem(last=False)

    def _tell(self, results: Sequence[Any], wanted: Predict, tasks: int, spec: ModelSpec) -> None:
        """Log what was not predicted, and why."""
        failed = [(position, result) for position, result in enumerate(results) if isinstance(result, Failed | Failure)]
        for position, result in failed[:NAMED]:
            failure = result if isinstance(result, Failure) else result.failure
            number = result.id if isinstance(result, Failed) else _id_of(wanted.asked[position])
            named = f"task {number}" if number is not None else f"task at position {position + 1}, without an id,"
            log.warning("%s: %s failed (%s): %s", _whose(wanted.project), named, failure.stage, failure.reason)
        if more := failed[NAMED:]:
            ids = (str(result.id if isinstance(result, Failed) else _id_of(wanted.asked[at])) for at, result in more)
            log.warning("%s: %d more tasks failed: %s", _whose(wanted.project), len(more), listed(ids, 100))
        if unasked := tasks - len(wanted.asked):
            log.warning(
                "A request has %s; the last %d are left for a later one. Larger ones: --max-tasks N.",
                *(_counted(tasks, wanted.project), unasked),
            )
        if late := sum(result is LATE for result in results) - unasked:
            log.warning(
                "After %.0f s, %d of %s are left for the next request. "
                "For all of a large project: lsml predict EXPORT.json --model MODEL (now %s).",
                *(self.limits.deadline, late, _counted(tasks, wanted.project), spec.model_version),
            )


@lru_cache(CONFIGS)
def parse_config(xml: str) -> LabelConfig:
    """The label config in labelling XML. Raises LabelConfigError."""
    return LabelConfig.parse(xml)


async def _wait(done: asyncio.Future[None], ends: float, gone: Gone) -> None:
    """Until done, or time is up. Raises HungUp when the client has gone before; a short wait does not look for that."""
    loop = asyncio.get_running_loop()
    await asyncio.wait([done], timeout=min(SLOW, ends - loop.time()))
    if done.done() or loop.time() >= ends:
        return
    hung_up = loop.create_task(_until(gone))
    await asyncio.wait([done, hung_up], timeout=ends - loop.time(), return_when=asyncio.FIRST_COMPLETED)
    if hung_up.done() and not done.done():
        raise HungUp
    hung_up.cancel()


async def _until(gone: Gone) -> None:
    await gone()


def _counts(results: Sequence[Any], kept: int) -> tuple[int, int, int, int]:
    predicted = sum(isinstance(result, bytes) for result in results)
    late = sum(result is LATE for result in results)
    return predicted - kept, len(results) - predicted - late, late, kept


def _id_of(asked: Asked) -> int | None:
    try:
        task = orjson.loads(asked.body)
    except orjson.JSONDecodeError:  # numbers that Python writes and orjson does not read
        return None
    found = task.get("id") if isinstance(task, dict) else None
    return found if type(found) is int else None


def _counted(tasks: int, project: int | None) -> str:
    return f"{tasks:,} {'task' if tasks == 1 else 'tasks'} of {_whose(project).lower()}"


def _whose(project: int | str | None) -> str:
    return "Some project" if project is None else f"Project {project}"
