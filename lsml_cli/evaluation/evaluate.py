"""Evaluate predictions against annotations: those of a model, or those in a file.

Tasks and predictions are read one at a time. What is kept of a task are a few numbers (`scorers`, `metrics`) and the
tasks on which model and people disagree most. `lsml fit` evaluates its hold-out the same way.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterable, Sequence, Set
from itertools import groupby, islice

from lsml_cli.evaluation.evaluator import Evaluator
from lsml_cli.evaluation.prediction_sources import PredictionSource, to_stored_prediction
from lsml_cli.evaluation.results import Evaluation
from lsml_cli.evaluation.scorers import build_scorers
from lsml_cli.evaluation.training_data import TrainingDataFilter
from lsml_cli.inference.replica_process import GC_THRESHOLD
from lsml_cli.progress import ProgressReporter, SilentReporter
from lsml_cli.schema.annotations import (
    AnnotationPolicy,
    TaskAnnotations,
    is_empty_annotation_valid,
    iter_task_annotations,
)
from lsml_cli.schema.failure_causes import FailureNotes
from lsml_cli.schema.label_config import LabelConfig
from lsml_cli.schema.predictions import Outcome
from lsml_cli.schema.tasks import AnnotatedTask, Task, UnreadableRecord

BLOCK_SIZE = 512  # tasks that are predicted together
MAX_EXAMPLES = 12  # disagreements kept for each control


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
    training_data: TrainingDataFilter | None = None,
    reporter: ProgressReporter | None = None,
    share_read: Callable[[], float | None] = lambda: None,
    failure_notes: FailureNotes | None = None,
) -> Evaluation:
    """Evaluate on every annotated task.

    Args:
        tasks: With their annotations.
        config: The label config.
        source: What to evaluate.
        baseline: What to compare it with, on the tasks for which both have a prediction.
        annotation_policy: Which of several annotations count, see `annotations.select_annotated_tasks`.
        threshold: Regions with a lower score do not count as predicted, except for average precision.
        max_examples: How many disagreements to keep for each control.
        seed: Of the bootstrap.
        training_data: Tells which tasks to leave out because a model was trained on them.
        reporter: Gets progress.
        share_read: Returns which part (0..1) of the tasks was read; None if their number is not known.
        failure_notes: Tells at once of tasks that `source` fails on.
    """
    sources = [source] if baseline is None else [source, baseline]
    evaluator = Evaluator(
        config,
        names=[entry.name for entry in sources],
        input_controls=frozenset().union(*(entry.input_controls for entry in sources)),
        output_controls=[entry.output_controls for entry in sources],
        threshold=threshold,
        max_examples=max_examples,
        seed=seed,
        failure_notes=failure_notes,
    )
    stream = iter_task_annotations(
        evaluator.unreadable.filter_readable(tasks),
        config,
        annotation_policy,
        allow_empty=is_empty_annotation_valid(config),
    )
    usable = evaluator.filter_usable(stream, training_data or TrainingDataFilter())
    gc.set_threshold(*GC_THRESHOLD)
    progress = _BlockProgress(reporter or SilentReporter(), evaluator, len(sources))
    while block := list(islice(usable, BLOCK_SIZE)):
        progress.start_block(len(block), share_read())
        examples = [AnnotatedTask(entry.task, entry.selected[-1]) for entry in block]
        predictions = zip(*(entry.predict(examples, progress.add) for entry in sources), strict=True)
        for entry, by_source in zip(block, predictions, strict=True):
            evaluator.add(entry, by_source)
    progress.reporter.start_phase("computing metrics")
    return evaluator.build_evaluation()


class _BlockProgress:
    """Report the progress within a block of tasks: each is predicted by every source before it is done."""

    def __init__(self, reporter: ProgressReporter, evaluator: Evaluator, source_count: int) -> None:
        self.reporter = reporter
        self._evaluator = evaluator
        self._source_count = source_count
        self._done_before = self._size = self._predictions = 0
        self._share_before: float | None = 0.0
        self._share_after: float | None = 0.0
        reporter.start_phase("evaluating")

    def start_block(self, size: int, share_after: float | None) -> None:
        """Begin with a block of so many tasks, after which that part of all tasks is done."""
        self._done_before += self._size
        self._size, self._predictions = size, 0
        self._share_before, self._share_after = self._share_after, share_after

    def add(self, predictions: int) -> None:
        """Report so many more predictions of one source."""
        self._predictions += predictions
        part = self._predictions / (self._size * self._source_count)
        share = None
        if self._share_before is not None and self._share_after is not None:
            share = self._share_before + part * (self._share_after - self._share_before)
        done = self._done_before + self._predictions // self._source_count
        self.reporter.progress(done, self._evaluator.failed[0].total, share)


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
    """Evaluate what was predicted already, such as the hold-out of a fit.

    Args:
        config: The label config.
        examples: Annotated tasks; several annotations of one task follow each other.
        outcomes: The outcome of each example, in order.
        name: What was evaluated.
        input_controls: See `PredictionSource`.
        output_controls: See `PredictionSource`.
        max_examples: How many disagreements to keep for each control.
    """
    evaluator = Evaluator(
        config,
        names=[name],
        input_controls=input_controls,
        output_controls=[output_controls],
        max_examples=max_examples,
    )
    pairs = zip(examples, outcomes, strict=True)
    for _, group in groupby(pairs, key=lambda pair: pair[0].task.index):
        of_task = list(group)
        task, outcome = of_task[0][0].task, of_task[0][1]
        annotations = [example.annotation for example, _ in of_task]
        evaluator.add(TaskAnnotations(task, annotations, annotations), [to_stored_prediction(outcome)])
    return evaluator.build_evaluation()


def measurable_controls(config: LabelConfig) -> tuple[dict[str, list[str] | None], dict[str, str]]:
    """Return the controls that have metrics: {name: classes} and {name: kind}.

    Classes are None if they come with the tasks.
    """
    scorers = build_scorers(config)
    classes = {
        name: None if scorer.control.has_dynamic_labels else [label.name for label in scorer.control.labels]
        for name, scorer in scorers.items()
    }
    return classes, {name: scorer.kind for name, scorer in scorers.items()}
