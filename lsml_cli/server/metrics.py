"""What `/metrics` tells, in Prometheus' own format."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Histogram,
    ProcessCollector,
    disable_created_metrics,
    generate_latest,
)
from prometheus_client.core import GaugeMetricFamily, InfoMetricFamily, Metric

from lsml_cli.server.batching import BatchStats

_SECONDS_BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 100)
_TASK_COUNT_BUCKETS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512)


class ServerMetrics:
    """The counters of one server.

    waiting   tasks that wait for a batch now
    kept      results that nobody received, kept for the next request
    versions  {"": version of the started model, "3": that of project 3's own}
    jobs      {state: number of training jobs}, and facts about the last job of each project
    """

    def __init__(
        self,
        queued_task_count: Callable[[], int],
        cached_result_count: Callable[[], int],
        versions: Callable[[], Mapping[str, str]],
        jobs: Callable[[], tuple[Mapping[str, int], Iterable[Mapping[str, str]]]],
    ) -> None:
        disable_created_metrics()  # type: ignore[no-untyped-call]  # a time for each counter, which doubles the page and is of no use to anybody
        self._registry = CollectorRegistry()
        ProcessCollector(registry=self._registry)
        self._registry.register(_LiveCollector(queued_task_count, cached_result_count, versions, jobs))
        requests = Counter("lsml_requests", "Requests, by route and status", ["route", "status"], registry=None)
        seconds = Histogram(
            "lsml_request_seconds", "Seconds until the answer", ["route"], buckets=_SECONDS_BUCKETS, registry=None
        )
        self._requests, self._seconds = requests, seconds
        self._tasks = Counter("lsml_tasks", "Tasks, by what became of them", ["outcome"], registry=None)
        self._batch_tasks = Histogram(
            "lsml_batch_tasks", "Tasks of a batch", buckets=_TASK_COUNT_BUCKETS, registry=None
        )
        self._batch_seconds = Histogram(
            "lsml_batch_seconds", "Seconds of a batch", buckets=_SECONDS_BUCKETS, registry=None
        )
        for each in (requests, seconds, self._tasks, self._batch_tasks, self._batch_seconds):
            self._registry.register(each)

    def observe_request(self, route: str, status: int, seconds: float) -> None:
        self._requests.labels(route, str(status)).inc()
        self._seconds.labels(route).observe(seconds)

    def count_tasks(self, predicted: int, failed: int, timed_out: int, cached: int) -> None:
        """How many tasks of a request were predicted, failed, were not done in time, or were there from before."""
        for outcome, number in (("predicted", predicted), ("failed", failed), ("late", timed_out), ("kept", cached)):
            if number:
                self._tasks.labels(outcome).inc(number)

    def observe_batch(self, stats: BatchStats) -> None:
        self._batch_tasks.observe(stats.task_count)
        self._batch_seconds.observe(stats.seconds)

    def render(self) -> bytes:
        return generate_latest(self._registry)


class _LiveCollector:
    """What is looked up at the moment somebody asks."""

    def __init__(
        self,
        queued_task_count: Callable[[], int],
        cached_result_count: Callable[[], int],
        versions: Callable[[], Mapping[str, str]],
        jobs: Callable[[], tuple[Mapping[str, int], Iterable[Mapping[str, str]]]],
    ) -> None:
        self._queued_task_count = queued_task_count
        self._cached_result_count = cached_result_count
        self._versions = versions
        self._jobs = jobs

    def describe(self) -> Iterable[Metric]:
        return []

    def collect(self) -> Iterable[Metric]:
        yield GaugeMetricFamily("lsml_queue_tasks", "Tasks that wait for a batch", self._queued_task_count())
        yield GaugeMetricFamily("lsml_kept_results", "Results kept for a request to come", self._cached_result_count())
        model = InfoMetricFamily("lsml_model", "The version that answers, by project; empty for all others")
        for project, version in self._versions().items():
            model.add_metric([], {"project": project, "model_version": version})
        yield model
        states, last = self._jobs()
        jobs = GaugeMetricFamily("lsml_jobs", "Training jobs, by state", labels=["state"])
        for state, number in states.items():
            jobs.add_metric([state], number)
        yield jobs
        info = InfoMetricFamily("lsml_last_job", "The last training job of each project")
        for facts in last:
            info.add_metric([], dict(facts))
        yield info
