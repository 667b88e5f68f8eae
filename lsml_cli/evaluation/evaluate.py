"""Predictions against annotations: of a model, or of a file that somebody's model wrote.

Tasks are read one at a time, and so are predictions; what is kept of a task are a few numbers (`judges`, `metrics`) and
the handful of tasks on which model and people disagree most. `lsml fit` measures its hold-out the same way.
"""

from __future__ import annotations

import gc
import heapq
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, field
from itertools import groupby, islice
from typing import Any, Protocol

from lsml_cli.evaluation import gates
from lsml_cli.evaluation.metrics import bootstrap
from lsml_cli.evaluation.metrics.agreement import Agreement
from lsml_cli.evaluation.metrics.bootstrap import Interval
from lsml_cli.evaluation.metrics.calibration import Calibration, compute_calibration
from lsml_cli.evaluation.metrics.choices import ChoiceCounts, ConfusionMatrix
from lsml_cli.evaluation.metrics.regions import RegionCounts
from lsml_cli.evaluation.prediction_file import StoredPrediction
from lsml_cli.evaluation.scorers import ControlMetrics, RegionList, Scorer, build_scorers
from lsml_cli.inference.dispatch import predict_stream
from lsml_cli.inference.replica import Replica
from lsml_cli.inference.replica_process import GC_THRESHOLD, ReplicaProcess
from lsml_cli.models.base import Model
from lsml_cli.schema.annotations import (
    MAX_LISTED_UNREADABLE,
    NO_RELEVANT_ANSWER,
    UNREADABLE,
    AnnotationPolicy,
    TaskAnnotations,
    is_empty_annotation_valid,
    is_relevant,
    iter_task_annotations,
    make_input_task,
    strip_annotations,
)
from lsml_cli.schema.label_config import Control, LabelConfig
from lsml_cli.schema.predictions import Failure, Outcome, Prediction
from lsml_cli.schema.tasks import AnnotatedTask, Task, UnreadableRecord

BLOCK_SIZE = 512  # tasks that are predicted together
MAX_REASONS = 100  # kinds of failures that are told apart
NO_PREDICTION = "no prediction in the file"
IN_TRAINING_DATA = "a model that was trained on it"
MAX_EXAMPLES = 12  # tasks on which model and people disagree most, for each control


class PredictionSource(Protocol):
    """What is measured. `answers` has one for each task, in order; None where there is none to measure.

    given   the controls that are not measured, since they are part of the question; see `Model.given`
    filled  those that it can fill; None where nobody knows. See `Binding.filled`
    """

    name: str
    input_controls: Set[str]
    output_controls: Set[str] | None

    def predict(self, examples: Sequence[AnnotatedTask]) -> Sequence[StoredPrediction | None]: ...


class ModelPredictionSource:
    """A model that is open."""

    def __init__(
        self,
        name: str,
        replicas: Sequence[Replica | ReplicaProcess],
        batch_size: int,
        input_controls: Set[str],
        output_controls: Set[str] | None,
    ) -> None:
        self.name = name
        self.input_controls = input_controls
        self.output_controls = output_controls
        self._replicas = replicas
        self._batch_size = batch_size

    def predict(self, examples: Sequence[AnnotatedTask]) -> list[StoredPrediction | None]:
        asked = [make_input_task(each, self.input_controls) for each in examples]
        stream = predict_stream(self._replicas, asked, batch_size=self._batch_size)
        return [to_stored_prediction(outcome) for _, outcome in stream]


class FilePredictionSource:
    """Predictions that are looked up task by task, see `predicted.PredictionFile.take`."""

    def __init__(self, name: str, lookup: Callable[[Task], StoredPrediction | None]) -> None:
        self.name = name
        self.input_controls: Set[str] = frozenset()
        self.output_controls: Set[str] | None = None
        self._lookup = lookup

    def predict(self, examples: Sequence[AnnotatedTask]) -> list[StoredPrediction | None]:
        return [self._lookup(each.task) for each in examples]


@dataclass(frozen=True)
class Disagreement:
    """A task on which model and people disagree. `truth` is the annotation that counts, the first of several."""

    task: Task
    truth: RegionList
    prediction: RegionList
    severity: tuple[float, ...]


@dataclass(frozen=True)
class ControlEvaluation:
    """Everything about one control.

    intervals    by the names of `metrics.values()`, those of a class as "f1:CLASS"
    confusion    of single choices
    calibration  of single choices whose predictions have scores; of regions, whether those that are found are right
    agreement    people against people, where tasks have several annotations
    worst        the tasks on which model and people disagree most, the worst first
    """

    control: Control
    kind: str
    metrics: ControlMetrics
    intervals: Mapping[str, Interval] = field(default_factory=dict)
    confusion: ConfusionMatrix | None = None
    calibration: Calibration | None = None
    agreement: Agreement | None = None
    disagreements: Sequence[Disagreement] = ()

    def to_json(self) -> dict[str, Any]:
        optional = {"confusion": self.confusion, "calibration": self.calibration, "agreement": self.agreement}
        return {
            "kind": self.kind,
            **self.metrics.to_json(),
            "intervals": {name: each.to_json() for name, each in self.intervals.items()},
            **{name: each.to_json() for name, each in optional.items() if each is not None},
            "worst": [{"task": each.task.id, "index": each.task.index} for each in self.disagreements],
        }


@dataclass(frozen=True)
class MetricDifference:
    """How much better or worse the first of two is by one metric, on the same tasks."""

    candidate: float
    baseline: float
    interval: Interval | None

    def to_json(self) -> dict[str, Any]:
        found = {"measured": self.candidate, "other": self.baseline, "difference": self.candidate - self.baseline}
        return found | (self.interval.to_json() if self.interval else {})


@dataclass(frozen=True)
class BaselineComparison:
    """What the first of two is compared with. `differences` are by control, then by metric ("accuracy", "f1:spam")."""

    name: str
    differences: Mapping[str, Mapping[str, MetricDifference]]
    failed: Mapping[str, int] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "failed": dict(self.failed),
            "controls": {
                control: {metric: each.to_json() for metric, each in found.items()}
                for control, found in self.differences.items()
            },
        }


@dataclass(frozen=True)
class Evaluation:
    """How well the predictions of `name` meet the annotations.

    tasks       measured on; annotations: those that count
    controls    by name, those that people and predictions have something to say about
    blank       those of them for which nothing was found in any task, which is an answer
    failed      tasks without a prediction, by reason; they count as wrong
    left_out    tasks of the export that cannot be measured with, by reason
    unreadable  the first places where no task can be read, and the one where the file is torn
    silent      measurable controls that people filled and that nothing was predicted for
    resamples   of the bootstrap that the intervals come from, with its seed
    """

    name: str
    tasks: int
    annotations: int
    controls: Mapping[str, ControlEvaluation]
    failed: Mapping[str, int] = field(default_factory=dict)
    left_out: Mapping[str, int] = field(default_factory=dict)
    unreadable: Sequence[UnreadableRecord] = ()
    empty_controls: Sequence[str] = ()
    unpredicted_controls: Sequence[str] = ()
    comparison: BaselineComparison | None = None
    resamples: int = 0
    seed: int = 0

    @property
    def has_only_empty_predictions(self) -> bool:
        """Whether there is no region and no text in any prediction."""
        return bool(self.controls) and set(self.empty_controls) == set(self.controls)

    @property
    def metrics(self) -> dict[str, ControlMetrics]:
        return {name: each.metrics for name, each in self.controls.items()}

    def compare_gates(self, requested: Iterable[gates.Gate]) -> list[gates.ComparisonResult]:
        """What `--fail-if-worse` saw."""
        found = []
        for gate in requested:
            of_control = self.comparison.differences.get(gate.control, {}) if self.comparison else {}
            each = of_control.get(gate.metric_name)
            if each is None:
                found.append(gates.ComparisonResult(gate, None, None))
                continue
            low, high = (each.interval.low, each.interval.high) if each.interval else (None, None)
            found.append(gates.ComparisonResult(gate, each.candidate, each.baseline, low, high))
        return found

    def to_json(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "tasks": self.tasks,
            "annotations": self.annotations,
            "failed": dict(self.failed),
            "left_out": dict(self.left_out),
            "controls": {name: each.to_json() for name, each in self.controls.items()},
            "nothing_found": list(self.empty_controls),
            "not_predicted": list(self.unpredicted_controls),
            "compared": self.comparison.to_json() if self.comparison else None,
            "resamples": self.resamples,
            "seed": self.seed,
        }


def evaluate(
    tasks: Iterable[Task | UnreadableRecord],
    config: LabelConfig,
    source: PredictionSource,
    baseline: PredictionSource | None = None,
    *,
    annotation_policy: AnnotationPolicy = "last",
    threshold: float = 0.0,
    max_examples: int = MAX_EXAMPLES,
    seed: int = 0,
    is_unseen: Callable[[Task], bool] = lambda task: True,
    progress: Callable[[int, int], None] = lambda tasks, failed: None,
) -> Evaluation:
    """Measure on every annotated task.

    other      what `subject` is compared with, on the tasks for which both have an answer
    which      of several annotations, see `annotations.labelled`
    threshold  regions with a lower score are no predictions, except for average precision
    worst      how many tasks to remember on which model and people disagree most, for each control
    seed       of the bootstrap
    unseen     False for a task that a model was trained on: it is left out
    progress   takes the numbers of tasks that are done and of those that failed
    """
    subjects = [source] if baseline is None else [source, baseline]
    given = frozenset().union(*(each.input_controls for each in subjects))
    names, filled = [each.name for each in subjects], [each.output_controls for each in subjects]
    found = _Evaluator(config, names, given, filled, threshold, max_examples, seed)
    stream = iter_task_annotations(
        found.filter_readable(tasks), config, annotation_policy, allow_empty=is_empty_annotation_valid(config)
    )
    usable = (
        known
        for each in stream
        if (known := found.select_relevant(each)) is not None and found.can_measure(known, is_unseen)
    )
    gc.set_threshold(*GC_THRESHOLD)
    while block := list(islice(usable, BLOCK_SIZE)):
        asked = [AnnotatedTask(each.task, each.selected[-1]) for each in block]
        several = zip(*(each.predict(asked) for each in subjects), strict=True)
        for each, answer in zip(block, several, strict=True):
            found.add(each, answer)
        progress(found.tasks, found.failed[0].total())
    return found.build_evaluation()


def evaluate_outcomes(
    config: LabelConfig,
    examples: Sequence[AnnotatedTask],
    outcomes: Sequence[Outcome],
    *,
    name: str = "",
    input_controls: Set[str] = frozenset(),
    output_controls: Set[str] | None = None,
    max_examples: int = MAX_EXAMPLES,
) -> Evaluation:
    """The same of what was predicted already: the outcome of each example, in order. For the hold-out of a fit.

    Several annotations of one task follow each other. given, filled: see `Subject`.
    """
    found = _Evaluator(config, [name], input_controls, [output_controls], 0.0, max_examples, 0)
    pairs = zip(examples, outcomes, strict=True)
    for _, several in groupby(pairs, key=lambda pair: pair[0].task.index):
        together = list(several)
        annotations = [example.annotation for example, _ in together]
        found.add(
            TaskAnnotations(together[0][0].task, annotations, annotations), [to_stored_prediction(together[0][1])]
        )
    return found.build_evaluation()


def measurable_controls(config: LabelConfig) -> tuple[dict[str, list[str] | None], dict[str, str]]:
    """The controls that have numbers: {name: classes, None where these come with the tasks} and {name: kind}."""
    judges = build_scorers(config)
    classes = {
        name: None if each.control.has_dynamic_labels else [label.name for label in each.control.labels]
        for name, each in judges.items()
    }
    return classes, {name: each.kind for name, each in judges.items()}


def model_output_controls(model: Model, config: LabelConfig) -> Set[str] | None:
    """See `Subject.filled`. What a class does not say about itself it is not asked."""
    return model.bind(config, {}, None).output_controls if model.supported_controls else None


def to_stored_prediction(outcome: Outcome) -> StoredPrediction:
    if isinstance(outcome, Failure):
        return StoredPrediction((), outcome.reason)
    if isinstance(outcome, Prediction):
        return StoredPrediction([region.to_json() for region in outcome.result])
    return StoredPrediction(outcome.prediction["result"])


class _Evaluator:
    """Takes task by task, and has the evaluation at the end."""

    def __init__(
        self,
        config: LabelConfig,
        names: Sequence[str],
        input_controls: Set[str],
        output_controls: Sequence[Set[str] | None],
        threshold: float,
        max_examples: int,
        seed: int,
    ) -> None:
        self.tasks = self.annotations = 0
        self.failed: list[Counter[str]] = [Counter() for _ in names]
        self._config = config
        self._names = names
        self._output_controls = output_controls
        self._seed = seed
        self._scorers: list[dict[str, Scorer]] = [
            {name: judge for name, judge in build_scorers(config, threshold).items() if name not in input_controls}
            for _ in names
        ]
        self._disagreements = {name: _TopDisagreements(max_examples) for name in self._scorers[0]}
        self._left_out: Counter[str] = Counter()
        self._unreadable: list[UnreadableRecord] = []

    def filter_readable(self, tasks: Iterable[Task | UnreadableRecord]) -> Iterator[Task]:
        for task in tasks:
            if isinstance(task, Task):
                yield task
                continue
            self._left_out[UNREADABLE] += 1
            if len(self._unreadable) < MAX_LISTED_UNREADABLE or task.truncated:
                self._unreadable.append(task)

    def select_relevant(self, task_annotations: TaskAnnotations) -> TaskAnnotations | None:
        """The task with the annotations that say something; None without any, and why is noted down."""
        counting = [one for one in task_annotations.selected if is_relevant(one, self._config)]
        if not counting:
            self._left_out[task_annotations.reason or NO_RELEVANT_ANSWER] += 1
            return None
        return (
            task_annotations
            if len(counting) == len(task_annotations.selected)
            else task_annotations._replace(selected=counting)
        )

    def can_measure(self, task_annotations: TaskAnnotations, is_unseen: Callable[[Task], bool]) -> bool:
        """Whether to measure with it."""
        fair = is_unseen(task_annotations.task)
        self._left_out[IN_TRAINING_DATA] += not fair
        return fair

    def add(self, task_annotations: TaskAnnotations, predictions: Sequence[StoredPrediction | None]) -> None:
        if any(answer is None for answer in predictions):
            self._left_out[NO_PREDICTION] += 1
            return
        truths = [one.result for one in task_annotations.selected]
        self.tasks += 1
        self.annotations += len(truths)
        for failed, judges, answer in zip(self.failed, self._scorers, predictions, strict=True):
            assert answer is not None
            if answer.failure is not None:
                failed[
                    answer.failure if answer.failure in failed or len(failed) < MAX_REASONS else "other reasons"
                ] += 1
            for name, judge in judges.items():
                verdict = judge.add(truths, answer.result)
                if (
                    judges is self._scorers[0]
                    and verdict.is_counted
                    and not verdict.is_correct
                    and answer.failure is None
                ):
                    self._disagreements[name].add(verdict.severity, task_annotations.task, truths[0], answer.result)
        if len(task_annotations.usable) > 1:
            for judge in self._scorers[0].values():
                judge.add_agreement([one.result for one in task_annotations.usable])

    def build_evaluation(self) -> Evaluation:
        mine = {name: judge for name, judge in self._scorers[0].items() if judge.counts.has_truth}
        spoken = {name: judge for name, judge in mine.items() if self._has_predictions(0, judge)}
        samples = bootstrap.resample_metrics(
            {f"{i} {name}": judges[name].counts for i, judges in enumerate(self._scorers) for name in spoken},
            self.tasks,
            self._seed,
        )
        controls = {name: self._evaluate_control(judge, samples[f"0 {name}"]) for name, judge in spoken.items()}
        return Evaluation(
            self._names[0],
            self.tasks,
            self.annotations,
            controls,
            dict(self.failed[0].most_common()),
            dict(sorted((+self._left_out).items())),
            self._unreadable,
            [name for name, judge in spoken.items() if judge.kind != "choices" and not judge.counts.has_predictions],
            [name for name in mine if name not in spoken],
            self._compare_to_baseline(spoken, samples) if len(self._scorers) > 1 else None,
            bootstrap.resample_count(self.tasks) if spoken else 0,
            self._seed,
        )

    def _has_predictions(self, source_index: int, scorer: Scorer) -> bool:
        """Whether a subject has said something about a control.

        Nothing is an answer where any number of labels may apply, and where things are found: of a model that can fill
        the control and has not failed on every task. Where nobody knows what it can fill, one that has left out this
        control alone is silent about it, and one that has predicted nothing whatever has found nothing.
        """
        if scorer.counts.has_predictions:
            return True
        if scorer.kind == "choices":
            return not scorer.control.is_single_choice
        if self.failed[source_index].total() >= self.tasks:
            return False
        filled = self._output_controls[source_index]
        if filled is not None:
            return scorer.control.name in filled
        return not any(each.counts.has_predictions for each in self._scorers[source_index].values())

    def _evaluate_control(self, scorer: Scorer, samples: Mapping[str, Any]) -> ControlEvaluation:
        control, counts = scorer.control, scorer.counts
        intervals = {name: bootstrap.percentile_interval(values) for name, values in samples.items()}
        single = counts if isinstance(counts, ChoiceCounts) and control.is_single_choice else None
        scored = counts if isinstance(counts, RegionCounts) else single
        return ControlEvaluation(
            control,
            scorer.kind,
            counts.metrics(),
            {name: each for name, each in intervals.items() if each is not None},
            single.confusion() if single else None,
            compute_calibration(*scored.calibration_data()) if scored else None,
            scorer.agreement(),
            self._disagreements[control.name].to_list(),
        )

    def _compare_to_baseline(
        self, scorers: Mapping[str, Scorer], samples: Mapping[str, Mapping[str, Any]]
    ) -> BaselineComparison:
        differences = {}
        for name, judge in scorers.items():
            theirs = self._scorers[1][name]
            if not self._has_predictions(1, theirs):
                continue
            mine, other = (flatten_metrics(each.counts.metrics()) for each in (judge, theirs))
            differences[name] = {
                metric: MetricDifference(
                    value,
                    against,
                    bootstrap.percentile_interval(samples[f"0 {name}"][metric] - samples[f"1 {name}"][metric]),
                )
                for metric, value in mine.items()
                if value is not None and (against := other.get(metric)) is not None
            }
        return BaselineComparison(self._names[1], differences, dict(self.failed[1].most_common()))


def flatten_metrics(metrics: ControlMetrics) -> dict[str, float | None]:
    """All numbers of a control by name, those of its classes as "f1:CLASS"."""
    return dict(metrics.values()) | {
        f"{metric}:{each.name}": value for each in metrics.classes for metric, value in each.values().items()
    }


class _TopDisagreements:
    """The few tasks where most is wrong; of equal ones those that come first."""

    def __init__(self, max_size: int) -> None:
        self._max_size = max_size
        self._heap: list[tuple[tuple[float, ...], int, Disagreement]] = []
        self._count = 0

    def add(self, severity: tuple[float, ...], task: Task, truth: RegionList, prediction: RegionList) -> None:
        self._count += 1
        if len(self._heap) == self._max_size and (not self._max_size or severity <= self._heap[0][0]):
            return
        entry = severity, -self._count, Disagreement(strip_annotations(task), truth, prediction, severity)
        if len(self._heap) < self._max_size:
            heapq.heappush(self._heap, entry)
        else:
            heapq.heapreplace(self._heap, entry)

    def to_list(self) -> list[Disagreement]:
        return [each for *_, each in sorted(self._heap, key=lambda entry: entry[:2], reverse=True)]
