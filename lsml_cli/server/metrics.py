"""Count what the server does, and render it in Prometheus' text format."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Histogram,
    ProcessCollector,
    disable_created_metrics,
    generate_latest,
)
from prometheus_client.core import GaugeMetricFamily, InfoMetricFamily, Metric
from prometheus_client.registry import Collector

from lsml_cli.server.batching import BatchStats

_SECONDS_BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 100)
_TASK_COUNT_BUCKETS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512)


@dataclass(frozen=True)
class LiveValues(Collector):
    """Values that are read when `/metrics` is requested.

    Attributes:
        queued_task_count: Number of tasks that wait for a batch.
        cached_result_count: Number of results that are kept for a later request.
        versions: {"": version of the default model, "3": version of project 3's own model}.
        jobs: {state: number of training jobs}, and the labels of `lsml_last_job`, one mapping for each project.
    """

    queued_task_count: Callable[[], int]
    cached_result_count: Callable[[], int]
    versions: Callable[[], Mapping[str, str]]
    jobs: Callable[[], tuple[Mapping[str, int], Iterable[Mapping[str, str]]]]

    def describe(self) -> Iterable[Metric]:
        """Declare nothing, so that registering does not call `collect` before the server is complete."""
        return []

    def collect(self) -> Iterable[Metric]:
        """Yield the current values, as Prometheus' registry asks for them."""
        yield GaugeMetricFamily("lsml_queue_tasks", "Tasks that wait for a batch", self.queued_task_count())
        yield GaugeMetricFamily("lsml_kept_results", "Results kept for a later request", self.cached_result_count())
        model = InfoMetricFamily("lsml_model", "Version of the model, by project; empty for all others")
        for project, version in self.versions().items():
            model.add_metric([], {"project": project, "model_version": version})
        yield model
        state_counts, last_jobs = self.jobs()
        jobs = GaugeMetricFamily("lsml_jobs", "Training jobs, by state", labels=["state"])
        for state, count in state_counts.items():
            jobs.add_metric([state], count)
        yield jobs
        info = InfoMetricFamily("lsml_last_job", "The last training job of each project")
        for labels in last_jobs:
            info.add_metric([], dict(labels))
        yield info


class ServerMetrics:
    """The counters and histograms of one server, beside its live values."""

    def __init__(self, live_values: LiveValues) -> None:
        # Creation times would double the page, and nothing uses them.
        disable_created_metrics()  # type: ignore[no-untyped-call]
        self._registry = CollectorRegistry()
        ProcessCollector(registry=self._registry)
        self._registry.register(live_values)
        self._requests = Counter(
            "lsml_requests", "Requests, by route and status", ["route", "status"], registry=self._registry
        )
        self._request_seconds = Histogram(
            "lsml_request_seconds",
            "Seconds until the answer",
            ["route"],
            buckets=_SECONDS_BUCKETS,
            registry=self._registry,
        )
        self._tasks = Counter("lsml_tasks", "Tasks, by outcome", ["outcome"], registry=self._registry)
        self._batch_tasks = Histogram(
            "lsml_batch_tasks", "Tasks of a batch", buckets=_TASK_COUNT_BUCKETS, registry=self._registry
        )
        self._batch_seconds = Histogram(
            "lsml_batch_seconds", "Seconds of a batch", buckets=_SECONDS_BUCKETS, registry=self._registry
        )

    def observe_request(self, route: str, status: int, seconds: float) -> None:
        """Count an answered request."""
        self._requests.labels(route, str(status)).inc()
        self._request_seconds.labels(route).observe(seconds)

    def count_tasks(self, predicted: int, failed: int, timed_out: int, cached: int) -> None:
        """Count the tasks of a request by outcome: predicted now, failed, past the deadline, found in the cache."""
        for outcome, count in (("predicted", predicted), ("failed", failed), ("late", timed_out), ("kept", cached)):
            if count:
                self._tasks.labels(outcome).inc(count)

    def observe_batch(self, stats: BatchStats) -> None:
        """Count a finished batch."""
        self._batch_tasks.observe(stats.task_count)
        self._batch_seconds.observe(stats.seconds)

    def render(self) -> bytes:
        """Return the page that Prometheus scrapes."""
        return generate_latest(self._registry)
