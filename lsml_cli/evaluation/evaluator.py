"""Accumulate predictions and annotations task by task, and compute the evaluation at the end."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence, Set
from typing import Any

from lsml_cli.evaluation.disagreements import TopDisagreements
from lsml_cli.evaluation.gates import LOWER_IS_BETTER
from lsml_cli.evaluation.metrics import bootstrap
from lsml_cli.evaluation.metrics import intervals as intervals_of
from lsml_cli.evaluation.metrics.calibration import compute_calibration
from lsml_cli.evaluation.metrics.choices import ChoiceCounts
from lsml_cli.evaluation.metrics.regions import RegionCounts
from lsml_cli.evaluation.prediction_records import StoredPrediction
from lsml_cli.evaluation.results import BaselineComparison, ControlEvaluation, Evaluation, MetricDifference
from lsml_cli.evaluation.scorers import (
    ControlMetrics,
    Scorer,
    build_scorers,
    describe_controls,
    filled_unmeasurable_controls,
)
from lsml_cli.evaluation.training_data import TrainingDataFilter
from lsml_cli.evaluation.unreadable_log import UnreadableLog
from lsml_cli.schema.annotations import NO_RELEVANT_ANSWER, UNREADABLE, TaskAnnotations, is_relevant
from lsml_cli.schema.failure_causes import FailureCauses, FailureNotes
from lsml_cli.schema.label_config import LabelConfig
from lsml_cli.schema.tasks import Task

NO_PREDICTION = "no prediction in the file"


class Evaluator:
    """Compares the predictions of one source, or of a source and its baseline, with annotations.

    Args:
        config: The label config.
        names: Of the sources.
        input_controls: Controls that are not evaluated, see `PredictionSource`.
        output_controls: For each source, see `PredictionSource`.
        threshold: Regions with a lower score do not count as predicted, except for average precision.
        max_examples: How many disagreements to keep for each control.
        seed: Of the bootstrap.
        failure_notes: Tells at once of tasks that the first source fails on.

    Attributes:
        tasks: Number of tasks so far.
        failed: For each source the tasks without a prediction, by cause.
        unreadable: Records that are not tasks.
    """

    def __init__(
        self,
        config: LabelConfig,
        *,
        names: Sequence[str],
        input_controls: Set[str],
        output_controls: Sequence[Set[str] | None],
        max_examples: int,
        threshold: float = 0.0,
        seed: int = 0,
        failure_notes: FailureNotes | None = None,
    ) -> None:
        self.tasks = 0
        self._failure_notes = failure_notes
        self.failed = [FailureCauses() for _ in names]
        self.unreadable = UnreadableLog()
        self._annotations = 0
        self._config = config
        self._names = names
        self._output_controls = output_controls
        self._seed = seed
        self._scorers: list[dict[str, Scorer]] = [
            {name: scorer for name, scorer in build_scorers(config, threshold).items() if name not in input_controls}
            for _ in names
        ]
        self._disagreements = {name: TopDisagreements(max_examples) for name in self._scorers[0]}
        self._left_out: Counter[str] = Counter()
        self._training_data = TrainingDataFilter()
        self._unmeasurable: set[str] = set()

    def filter_usable(
        self, stream: Iterable[TaskAnnotations], training_data: TrainingDataFilter
    ) -> Iterator[TaskAnnotations]:
        """Yield the tasks to evaluate, with the annotations that fill a control; the others are counted by reason."""
        self._training_data = training_data
        for entry in stream:
            relevant = [annotation for annotation in entry.selected if is_relevant(annotation, self._config)]
            if not relevant:
                self._left_out[entry.reason or NO_RELEVANT_ANSWER] += 1
            elif reason := training_data.reason_to_leave_out(entry.task):
                self._left_out[reason] += 1
            else:
                yield entry._replace(selected=relevant)

    def add(self, task_annotations: TaskAnnotations, predictions: Sequence[StoredPrediction | None]) -> None:
        """Add a task with the prediction of each source. It is left out if one of them is None."""
        available = [prediction for prediction in predictions if prediction is not None]
        if len(available) < len(predictions):
            self._left_out[NO_PREDICTION] += 1
            return
        truths = [annotation.result for annotation in task_annotations.selected]
        self._unmeasurable |= filled_unmeasurable_controls(truths, self._config)
        self.tasks += 1
        self._annotations += len(truths)
        for source_index, prediction in enumerate(available):
            if prediction.failure is not None:
                self._count_failure(source_index, prediction, task_annotations.task)
                for scorer in self._scorers[source_index].values():
                    scorer.add_failure(truths)
                continue
            for name, scorer in self._scorers[source_index].items():
                score = scorer.add(truths, prediction.result)
                is_wrong = score.is_counted and not score.is_correct
                if source_index == 0 and is_wrong:
                    self._disagreements[name].add(score.severity, task_annotations.task, truths[0], prediction.result)
        if len(task_annotations.usable) > 1:
            for scorer in self._scorers[0].values():
                scorer.add_agreement([annotation.result for annotation in task_annotations.usable])

    def build_evaluation(self) -> Evaluation:
        """Compute metrics, intervals and the comparison from all tasks added so far."""
        annotated = {name: scorer for name, scorer in self._scorers[0].items() if scorer.counts.has_truth}
        evaluated = {name: scorer for name, scorer in annotated.items() if self._has_predictions(0, scorer)}
        samples = bootstrap.resample_metrics(
            {f"{i} {name}": scorers[name].counts for i, scorers in enumerate(self._scorers) for name in evaluated},
            self.tasks,
            self._seed,
        )
        return Evaluation(
            name=self._names[0],
            tasks=self.tasks,
            annotations=self._annotations,
            controls={name: self._evaluate_control(scorer, samples[f"0 {name}"]) for name, scorer in evaluated.items()},
            failed=self.failed[0],
            left_out=self._count_left_out(),
            unreadable=self.unreadable,
            empty_controls=[
                name
                for name, scorer in evaluated.items()
                if scorer.kind != "choices" and not scorer.counts.has_predictions
            ],
            unmeasurable_controls=describe_controls(self._config, self._unmeasurable),
            unpredicted_controls=[name for name in annotated if name not in evaluated],
            comparison=self._compare_to_baseline(evaluated, samples) if len(self._scorers) > 1 else None,
            resamples=bootstrap.resample_count(self.tasks) if evaluated else 0,
            seed=self._seed,
            training_data=self._training_data.use,
        )

    def _count_failure(self, source_index: int, prediction: StoredPrediction, task: Task) -> None:
        causes = self.failed[source_index]
        task_name = f"record {task.index + 1:,}" if task.id is None else f"task {task.id}"
        cause = causes.add(prediction.stage, prediction.failure or "", task_name)
        if self._failure_notes is not None and source_index == 0:
            self._failure_notes.add(causes, cause, all_failed=causes.total == self.tasks)

    def _count_left_out(self) -> dict[str, int]:
        counts = self._left_out + Counter({UNREADABLE: self.unreadable.count})
        return dict(sorted(counts.items()))

    def _has_predictions(self, source_index: int, scorer: Scorer) -> bool:
        """Return whether the predictions of a source say anything about a control.

        An empty prediction is an answer for multiple choices. For regions and texts it is one if the source can fill
        the control and has not failed on every task. If it is not known what the source can fill, a control that is
        empty while others are filled was not predicted, and if all of them are empty, nothing was detected.
        """
        if scorer.counts.has_predictions:
            return True
        if scorer.kind == "choices":
            return not scorer.control.is_single_choice
        if self.failed[source_index].total >= self.tasks:
            return False
        output_controls = self._output_controls[source_index]
        if output_controls is not None:
            return scorer.control.name in output_controls
        return not any(other.counts.has_predictions for other in self._scorers[source_index].values())

    def _evaluate_control(self, scorer: Scorer, samples: Mapping[str, Any]) -> ControlEvaluation:
        control, counts = scorer.control, scorer.counts
        metrics = counts.metrics()
        values, unit_counts = flatten_metrics(metrics), self._unit_counts(metrics)
        intervals = {
            name: intervals_of.widen_interval(
                name, values.get(name), bootstrap.percentile_interval(resampled), unit_counts.get(name, 0)
            )
            for name, resampled in samples.items()
        }
        single = counts if isinstance(counts, ChoiceCounts) and control.is_single_choice else None
        scored = counts if isinstance(counts, RegionCounts) else single
        return ControlEvaluation(
            control,
            scorer.kind,
            metrics,
            {name: interval for name, interval in intervals.items() if interval is not None},
            single.confusion() if single else None,
            compute_calibration(*scored.calibration_data()) if scored else None,
            scorer.agreement(),
            self._disagreements[control.name].to_list(),
        )

    def _unit_counts(self, metrics: ControlMetrics) -> dict[str, int]:
        """Return the number of independent things behind each metric: labels of a class, but no more than tasks."""
        of_control = min(metrics.count, self.tasks)
        return dict.fromkeys(metrics.values(), of_control) | {
            f"{metric}:{entry.name}": min(of_control, entry.predicted if metric == "precision" else entry.support)
            for entry in metrics.classes
            for metric in entry.values()
        }

    def _compare_to_baseline(
        self, scorers: Mapping[str, Scorer], samples: Mapping[str, Mapping[str, Any]]
    ) -> BaselineComparison:
        differences = {}
        for name, scorer in scorers.items():
            baseline_scorer = self._scorers[1][name]
            if not self._has_predictions(1, baseline_scorer):
                continue
            metrics = scorer.counts.metrics()
            candidates, unit_counts = flatten_metrics(metrics), self._unit_counts(metrics)
            baselines = flatten_metrics(baseline_scorer.counts.metrics())
            resampled, resampled_baseline = samples[f"0 {name}"], samples[f"1 {name}"]
            differences[name] = {
                metric: MetricDifference(
                    candidate,
                    baseline,
                    intervals_of.widen_difference(
                        candidate,
                        baseline,
                        bootstrap.percentile_interval(resampled[metric] - resampled_baseline[metric])
                        if metric in resampled and metric in resampled_baseline
                        else None,  # a rare class among very many
                        unit_counts[metric],
                    ),
                    is_lower_better=metric in LOWER_IS_BETTER,
                )
                for metric, candidate in candidates.items()
                if candidate is not None and (baseline := baselines.get(metric)) is not None
            }
        return BaselineComparison(self._names[1], differences, self.failed[1])


def flatten_metrics(metrics: ControlMetrics) -> dict[str, float | None]:
    """Return all metrics of a control by name, those of its classes as "f1:CLASS"."""
    of_classes = {
        f"{metric}:{entry.name}": value for entry in metrics.classes for metric, value in entry.values().items()
    }
    return dict(metrics.values()) | of_classes
