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
from lsml_cli.evaluation.metrics.calibration import Calibration, calibration
from lsml_cli.evaluation.metrics.choices import ChoiceCounts, Confusion
from lsml_cli.evaluation.metrics.regions import RegionCounts
from lsml_cli.evaluation.prediction_file import Answer
from lsml_cli.evaluation.scorers import AnyMetrics, Judge, Result, judges_of
from lsml_cli.inference.dispatch import predict_stream
from lsml_cli.inference.replica import Replica
from lsml_cli.inference.replica_process import GC_THRESHOLD, ReplicaProcess
from lsml_cli.models.base import Model
from lsml_cli.schema.annotations import Answered, Which, answered
from lsml_cli.schema.label_config import Control, LabelConfig
from lsml_cli.schema.predictions import Failure, Outcome, Prediction
from lsml_cli.schema.tasks import Labelled, Task, Unreadable
from lsml_cli.training.splits import FOREIGN, SHOWN, UNREADABLE, answers, bare, nothing_is_an_answer, question

BLOCK = 512  # tasks that are predicted together
REASONS = 100  # kinds of failures that are told apart
MISSING = "no prediction in the file"
SEEN = "a model that was trained on it"
WORST = 12  # tasks on which model and people disagree most, for each control


class Subject(Protocol):
    """What is measured. `answers` has one for each task, in order; None where there is none to measure.

    given   the controls that are not measured, since they are part of the question; see `Model.given`
    filled  those that it can fill; None where nobody knows. See `Binding.filled`
    """

    name: str
    given: Set[str]
    filled: Set[str] | None

    def answers(self, examples: Sequence[Labelled]) -> Sequence[Answer | None]: ...


class ModelSubject:
    """A model that is open."""

    def __init__(
        self,
        name: str,
        replicas: Sequence[Replica | ReplicaProcess],
        batch_size: int,
        given: Set[str],
        filled: Set[str] | None,
    ) -> None:
        self.name = name
        self.given = given
        self.filled = filled
        self._replicas = replicas
        self._batch_size = batch_size

    def answers(self, examples: Sequence[Labelled]) -> list[Answer | None]:
        asked = [question(each, self.given) for each in examples]
        stream = predict_stream(self._replicas, asked, batch_size=self._batch_size)
        return [answer_of(outcome) for _, outcome in stream]


class FileSubject:
    """Predictions that are looked up task by task, see `predicted.PredictionFile.take`."""

    def __init__(self, name: str, take: Callable[[Task], Answer | None]) -> None:
        self.name = name
        self.given: Set[str] = frozenset()
        self.filled: Set[str] | None = None
        self._take = take

    def answers(self, examples: Sequence[Labelled]) -> list[Answer | None]:
        return [self._take(each.task) for each in examples]


@dataclass(frozen=True)
class Disagreement:
    """A task on which model and people disagree. `truth` is the annotation that counts, the first of several."""

    task: Task
    truth: Result
    guess: Result
    badness: tuple[float, ...]


@dataclass(frozen=True)
class Judged:
    """Everything about one control.

    intervals    by the names of `metrics.values()`, those of a class as "f1:CLASS"
    confusion    of single choices
    calibration  of single choices whose predictions have scores; of regions, whether those that are found are right
    agreement    people against people, where tasks have several annotations
    worst        the tasks on which model and people disagree most, the worst first
    """

    control: Control
    kind: str
    metrics: AnyMetrics
    intervals: Mapping[str, Interval] = field(default_factory=dict)
    confusion: Confusion | None = None
    calibration: Calibration | None = None
    agreement: Agreement | None = None
    worst: Sequence[Disagreement] = ()

    def to_json(self) -> dict[str, Any]:
        optional = {"confusion": self.confusion, "calibration": self.calibration, "agreement": self.agreement}
        return {
            "kind": self.kind,
            **self.metrics.to_json(),
            "intervals": {name: each.to_json() for name, each in self.intervals.items()},
            **{name: each.to_json() for name, each in optional.items() if each is not None},
            "worst": [{"task": each.task.id, "index": each.task.index} for each in self.worst],
        }


@dataclass(frozen=True)
class Difference:
    """How much better or worse the first of two is by one metric, on the same tasks."""

    mine: float
    other: float
    interval: Interval | None

    def to_json(self) -> dict[str, Any]:
        found = {"measured": self.mine, "other": self.other, "difference": self.mine - self.other}
        return found | (self.interval.to_json() if self.interval else {})


@dataclass(frozen=True)
class Compared:
    """What the first of two is compared with. `differences` are by control, then by metric ("accuracy", "f1:spam")."""

    name: str
    differences: Mapping[str, Mapping[str, Difference]]
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
    controls: Mapping[str, Judged]
    failed: Mapping[str, int] = field(default_factory=dict)
    left_out: Mapping[str, int] = field(default_factory=dict)
    unreadable: Sequence[Unreadable] = ()
    blank: Sequence[str] = ()
    silent: Sequence[str] = ()
    compared: Compared | None = None
    resamples: int = 0
    seed: int = 0

    @property
    def found_nothing(self) -> bool:
        """Whether there is no region and no text in any prediction."""
        return bool(self.controls) and set(self.blank) == set(self.controls)

    @property
    def metrics(self) -> dict[str, AnyMetrics]:
        return {name: each.metrics for name, each in self.controls.items()}

    def compare(self, wanted: Iterable[gates.Gate]) -> list[gates.Comparison]:
        """What `--fail-if-worse` saw."""
        found = []
        for gate in wanted:
            of_control = self.compared.differences.get(gate.control, {}) if self.compared else {}
            each = of_control.get(gate.metric_name)
            if each is None:
                found.append(gates.Comparison(gate, None, None))
                continue
            low, high = (each.interval.low, each.interval.high) if each.interval else (None, None)
            found.append(gates.Comparison(gate, each.mine, each.other, low, high))
        return found

    def to_json(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "tasks": self.tasks,
            "annotations": self.annotations,
            "failed": dict(self.failed),
            "left_out": dict(self.left_out),
            "controls": {name: each.to_json() for name, each in self.controls.items()},
            "nothing_found": list(self.blank),
            "not_predicted": list(self.silent),
            "compared": self.compared.to_json() if self.compared else None,
            "resamples": self.resamples,
            "seed": self.seed,
        }


def evaluate(
    tasks: Iterable[Task | Unreadable],
    config: LabelConfig,
    subject: Subject,
    other: Subject | None = None,
    *,
    which: Which = "last",
    threshold: float = 0.0,
    worst: int = WORST,
    seed: int = 0,
    unseen: Callable[[Task], bool] = lambda task: True,
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
    subjects = [subject] if other is None else [subject, other]
    given = frozenset().union(*(each.given for each in subjects))
    names, filled = [each.name for each in subjects], [each.filled for each in subjects]
    found = _Collector(config, names, given, filled, threshold, worst, seed)
    stream = answered(found.readable(tasks), config, which, empty=nothing_is_an_answer(config))
    usable = (known for each in stream if (known := found.known(each)) is not None and found.fair(known, unseen))
    gc.set_threshold(*GC_THRESHOLD)
    while block := list(islice(usable, BLOCK)):
        asked = [Labelled(each.task, each.counting[-1]) for each in block]
        several = zip(*(each.answers(asked) for each in subjects), strict=True)
        for each, answer in zip(block, several, strict=True):
            found.add(each, answer)
        progress(found.tasks, found.failed[0].total())
    return found.evaluation()


def evaluate_outcomes(
    config: LabelConfig,
    examples: Sequence[Labelled],
    outcomes: Sequence[Outcome],
    *,
    name: str = "",
    given: Set[str] = frozenset(),
    filled: Set[str] | None = None,
    worst: int = WORST,
) -> Evaluation:
    """The same of what was predicted already: the outcome of each example, in order. For the hold-out of a fit.

    Several annotations of one task follow each other. given, filled: see `Subject`.
    """
    found = _Collector(config, [name], given, [filled], 0.0, worst, 0)
    pairs = zip(examples, outcomes, strict=True)
    for _, several in groupby(pairs, key=lambda pair: pair[0].task.index):
        together = list(several)
        annotations = [example.annotation for example, _ in together]
        found.add(Answered(together[0][0].task, annotations, annotations), [answer_of(together[0][1])])
    return found.evaluation()


def measurable(config: LabelConfig) -> tuple[dict[str, list[str] | None], dict[str, str]]:
    """The controls that have numbers: {name: classes, None where these come with the tasks} and {name: kind}."""
    judges = judges_of(config)
    classes = {
        name: None if each.control.dynamic else [label.name for label in each.control.labels]
        for name, each in judges.items()
    }
    return classes, {name: each.kind for name, each in judges.items()}


def filled_by(model: Model, config: LabelConfig) -> Set[str] | None:
    """See `Subject.filled`. What a class does not say about itself it is not asked."""
    return model.bind(config, {}, None).filled if model.fills else None


def answer_of(outcome: Outcome) -> Answer:
    if isinstance(outcome, Failure):
        return Answer((), outcome.reason)
    if isinstance(outcome, Prediction):
        return Answer([region.to_json() for region in outcome.result])
    return Answer(outcome.prediction["result"])


class _Collector:
    """Takes task by task, and has the evaluation at the end."""

    def __init__(
        self,
        config: LabelConfig,
        names: Sequence[str],
        given: Set[str],
        filled: Sequence[Set[str] | None],
        threshold: float,
        worst: int,
        seed: int,
    ) -> None:
        self.tasks = self.annotations = 0
        self.failed: list[Counter[str]] = [Counter() for _ in names]
        self._config = config
        self._names = names
        self._filled = filled
        self._seed = seed
        self._judges: list[dict[str, Judge]] = [
            {name: judge for name, judge in judges_of(config, threshold).items() if name not in given} for _ in names
        ]
        self._worst = {name: _Worst(worst) for name in self._judges[0]}
        self._left_out: Counter[str] = Counter()
        self._unreadable: list[Unreadable] = []

    def readable(self, tasks: Iterable[Task | Unreadable]) -> Iterator[Task]:
        for task in tasks:
            if isinstance(task, Task):
                yield task
                continue
            self._left_out[UNREADABLE] += 1
            if len(self._unreadable) < SHOWN or task.torn:
                self._unreadable.append(task)

    def known(self, each: Answered) -> Answered | None:
        """The task with the annotations that say something; None without any, and why is noted down."""
        counting = [one for one in each.counting if answers(one, self._config)]
        if not counting:
            self._left_out[each.reason or FOREIGN] += 1
            return None
        return each if len(counting) == len(each.counting) else each._replace(counting=counting)

    def fair(self, each: Answered, unseen: Callable[[Task], bool]) -> bool:
        """Whether to measure with it."""
        fair = unseen(each.task)
        self._left_out[SEEN] += not fair
        return fair

    def add(self, each: Answered, several: Sequence[Answer | None]) -> None:
        if any(answer is None for answer in several):
            self._left_out[MISSING] += 1
            return
        truths = [one.result for one in each.counting]
        self.tasks += 1
        self.annotations += len(truths)
        for failed, judges, answer in zip(self.failed, self._judges, several, strict=True):
            assert answer is not None
            if answer.failure is not None:
                failed[answer.failure if answer.failure in failed or len(failed) < REASONS else "other reasons"] += 1
            for name, judge in judges.items():
                verdict = judge.add(truths, answer.result)
                if judges is self._judges[0] and verdict.counts and not verdict.right and answer.failure is None:
                    self._worst[name].add(verdict.badness, each.task, truths[0], answer.result)
        if len(each.usable) > 1:
            for judge in self._judges[0].values():
                judge.agree([one.result for one in each.usable])

    def evaluation(self) -> Evaluation:
        mine = {name: judge for name, judge in self._judges[0].items() if judge.counts.is_true}
        spoken = {name: judge for name, judge in mine.items() if self._has_answers(0, judge)}
        samples = bootstrap.distributions(
            {f"{i} {name}": judges[name].counts for i, judges in enumerate(self._judges) for name in spoken},
            self.tasks,
            self._seed,
        )
        controls = {name: self._judged(judge, samples[f"0 {name}"]) for name, judge in spoken.items()}
        return Evaluation(
            self._names[0],
            self.tasks,
            self.annotations,
            controls,
            dict(self.failed[0].most_common()),
            dict(sorted((+self._left_out).items())),
            self._unreadable,
            [name for name, judge in spoken.items() if judge.kind != "choices" and not judge.counts.is_predicted],
            [name for name in mine if name not in spoken],
            self._compared(spoken, samples) if len(self._judges) > 1 else None,
            bootstrap.resamples(self.tasks) if spoken else 0,
            self._seed,
        )

    def _has_answers(self, subject: int, judge: Judge) -> bool:
        """Whether a subject has said something about a control.

        Nothing is an answer where any number of labels may apply, and where things are found: of a model that can fill
        the control and has not failed on every task. Where nobody knows what it can fill, one that has left out this
        control alone is silent about it, and one that has predicted nothing whatever has found nothing.
        """
        if judge.counts.is_predicted:
            return True
        if judge.kind == "choices":
            return not judge.control.single
        if self.failed[subject].total() >= self.tasks:
            return False
        filled = self._filled[subject]
        if filled is not None:
            return judge.control.name in filled
        return not any(each.counts.is_predicted for each in self._judges[subject].values())

    def _judged(self, judge: Judge, samples: Mapping[str, Any]) -> Judged:
        control, counts = judge.control, judge.counts
        intervals = {name: bootstrap.interval(values) for name, values in samples.items()}
        single = counts if isinstance(counts, ChoiceCounts) and control.single else None
        scored = counts if isinstance(counts, RegionCounts) else single
        return Judged(
            control,
            judge.kind,
            counts.metrics(),
            {name: each for name, each in intervals.items() if each is not None},
            single.confusion() if single else None,
            calibration(*scored.scored()) if scored else None,
            judge.agreement(),
            self._worst[control.name].found(),
        )

    def _compared(self, spoken: Mapping[str, Judge], samples: Mapping[str, Mapping[str, Any]]) -> Compared:
        differences = {}
        for name, judge in spoken.items():
            theirs = self._judges[1][name]
            if not self._has_answers(1, theirs):
                continue
            mine, other = (values_of(each.counts.metrics()) for each in (judge, theirs))
            differences[name] = {
                metric: Difference(
                    value, against, bootstrap.interval(samples[f"0 {name}"][metric] - samples[f"1 {name}"][metric])
                )
                for metric, value in mine.items()
                if value is not None and (against := other.get(metric)) is not None
            }
        return Compared(self._names[1], differences, dict(self.failed[1].most_common()))


def values_of(metrics: AnyMetrics) -> dict[str, float | None]:
    """All numbers of a control by name, those of its classes as "f1:CLASS"."""
    return dict(metrics.values()) | {
        f"{metric}:{each.name}": value for each in metrics.classes for metric, value in each.values().items()
    }


class _Worst:
    """The few tasks where most is wrong; of equal ones those that come first."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._heap: list[tuple[tuple[float, ...], int, Disagreement]] = []
        self._seen = 0

    def add(self, badness: tuple[float, ...], task: Task, truth: Result, guess: Result) -> None:
        self._seen += 1
        if len(self._heap) == self._most and (not self._most or badness <= self._heap[0][0]):
            return
        entry = badness, -self._seen, Disagreement(bare(task), truth, guess, badness)
        if len(self._heap) < self._most:
            heapq.heappush(self._heap, entry)
        else:
            heapq.heapreplace(self._heap, entry)

    def found(self) -> list[Disagreement]:
        return [each for *_, each in sorted(self._heap, key=lambda entry: entry[:2], reverse=True)]
