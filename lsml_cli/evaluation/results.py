"""The results of an evaluation, and how they are written as JSON."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from lsml_cli.errors import format_list
from lsml_cli.evaluation.gates import ComparisonResult, Gate
from lsml_cli.evaluation.metrics.agreement import Agreement
from lsml_cli.evaluation.metrics.calibration import Calibration
from lsml_cli.evaluation.metrics.choices import ConfusionMatrix
from lsml_cli.evaluation.metrics.intervals import Interval, few_tasks_note
from lsml_cli.evaluation.scorers import ControlMetrics, RegionList
from lsml_cli.evaluation.training_data import TrainingDataUse
from lsml_cli.evaluation.unreadable_log import UnreadableLog
from lsml_cli.schema.failure_causes import FailureCauses
from lsml_cli.schema.label_config import Control
from lsml_cli.schema.tasks import Task

Verdict = Literal["better", "worse", "equal", "could be chance"]


@dataclass(frozen=True)
class Disagreement:
    """A task on which model and people disagree. `truth` is the first of the selected annotations."""

    task: Task
    truth: RegionList
    prediction: RegionList
    severity: tuple[float, ...]


@dataclass(frozen=True)
class ControlEvaluation:
    """The results for one control.

    Attributes:
        control: The control.
        kind: "choices", "regions" or "texts".
        metrics: Its metrics.
        intervals: 95 % confidence intervals by the names of `metrics.values()`, those of a class as "f1:CLASS".
        confusion: Of single choices.
        calibration: Of single choices whose predictions have scores, and of regions (is a detected region correct?).
        agreement: Of people with each other, if tasks have several annotations.
        disagreements: The tasks on which model and people disagree most, the worst first.
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
            "intervals": {name: interval.to_json() for name, interval in self.intervals.items()},
            **{name: value.to_json() for name, value in optional.items() if value is not None},
            "worst": [{"task": example.task.id, "index": example.task.index} for example in self.disagreements],
        }


@dataclass(frozen=True)
class MetricDifference:
    """One metric of candidate and baseline on the same tasks, with the interval of their difference."""

    candidate: float
    baseline: float
    interval: Interval | None
    is_lower_better: bool = False

    @property
    def verdict(self) -> Verdict:
        """What the interval says. Equal are two sides that do not differ on any task."""
        if self.interval is None:
            return "could be chance"
        if self.interval.low == self.interval.high == 0:
            return "equal"
        if self.interval.low <= 0 <= self.interval.high:
            return "could be chance"
        return "better" if (self.candidate < self.baseline) == self.is_lower_better else "worse"

    def to_json(self) -> dict[str, Any]:
        values: dict[str, Any] = {
            "measured": self.candidate,
            "other": self.baseline,
            "difference": self.candidate - self.baseline,
        }
        values |= {"verdict": self.verdict}
        return values | (self.interval.to_json() if self.interval else {})


@dataclass(frozen=True)
class BaselineComparison:
    """The comparison with a baseline.

    Attributes:
        name: What the baseline is called.
        differences: By control, then by metric ("accuracy", "f1:spam").
        failed: Tasks that the baseline has no prediction for, by cause.
    """

    name: str
    differences: Mapping[str, Mapping[str, MetricDifference]]
    failed: FailureCauses = field(default_factory=FailureCauses)

    def to_json(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "failed": self.failed.by_reason(),
            "controls": {
                control: {metric: difference.to_json() for metric, difference in by_metric.items()}
                for control, by_metric in self.differences.items()
            },
        }


@dataclass(frozen=True)
class Evaluation:
    """How well predictions match annotations.

    Attributes:
        name: What was evaluated: a model version or a file.
        tasks: Number of evaluated tasks.
        annotations: Number of annotations that these were compared with.
        controls: By name, the controls that both people and predictions fill.
        failed: Tasks without a prediction, by cause; they count as wrong.
        left_out: Number of tasks that could not be evaluated, by reason.
        unreadable: Records that are not tasks.
        empty_controls: Those of `controls` for which no task has a predicted region or text, which is a valid answer.
        unpredicted_controls: Controls that people filled and nothing was predicted for.
        unmeasurable_controls: Controls that people filled and that cannot be measured yet, with their tags.
        comparison: With a baseline, if there is one.
        resamples: Number of bootstrap samples behind the intervals.
        seed: Of the bootstrap.
        training_data: How tasks were treated that a model was trained on.
    """

    name: str
    tasks: int
    annotations: int
    controls: Mapping[str, ControlEvaluation]
    failed: FailureCauses = field(default_factory=FailureCauses)
    left_out: Mapping[str, int] = field(default_factory=dict)
    unreadable: UnreadableLog = field(default_factory=UnreadableLog)
    empty_controls: Sequence[str] = ()
    unpredicted_controls: Sequence[str] = ()
    unmeasurable_controls: Sequence[str] = ()
    comparison: BaselineComparison | None = None
    resamples: int = 0
    seed: int = 0
    training_data: TrainingDataUse = field(default_factory=TrainingDataUse)

    @property
    def warnings(self) -> list[str]:
        """What to know before the numbers are believed."""
        counts = [control.metrics.count for control in self.controls.values()]
        note = few_tasks_note(counts)
        return [*self.training_data.warning_lines(self.tasks), *([note] if note else [])]

    def why_nothing_was_measured(self) -> str | None:
        """Return a sentence if no control at all was measured."""
        if self.controls:
            return None
        reasons = []
        if self.unmeasurable_controls:
            reasons.append(f"{format_list(self.unmeasurable_controls)} cannot be measured yet")
        if self.unpredicted_controls:
            reasons.append(f"nothing was predicted for {format_list(self.unpredicted_controls)}")
        return f"Nothing was measured: {'; '.join(reasons) or 'people and predictions fill no control together'}."

    @property
    def has_only_empty_predictions(self) -> bool:
        """Tell whether no prediction has any region or text."""
        return bool(self.controls) and set(self.empty_controls) == set(self.controls)

    @property
    def metrics(self) -> dict[str, ControlMetrics]:
        return {name: control.metrics for name, control in self.controls.items()}

    def compare_gates(self, gates: Iterable[Gate]) -> list[ComparisonResult]:
        """Apply the gates of `--fail-if-worse` to the comparison with the baseline."""
        return [self._compare_gate(gate) for gate in gates]

    def _compare_gate(self, gate: Gate) -> ComparisonResult:
        differences = self.comparison.differences.get(gate.control, {}) if self.comparison else {}
        difference = differences.get(gate.metric_name)
        if difference is None:
            return ComparisonResult(gate, None, None)
        interval = difference.interval
        low, high = (interval.low, interval.high) if interval else (None, None)
        return ComparisonResult(gate, difference.candidate, difference.baseline, low, high)

    def to_json(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "tasks": self.tasks,
            "annotations": self.annotations,
            "failed": self.failed.by_reason(),
            "left_out": dict(self.left_out),
            "controls": {name: control.to_json() for name, control in self.controls.items()},
            "nothing_found": list(self.empty_controls),
            "not_predicted": list(self.unpredicted_controls),
            "cannot_be_measured": list(self.unmeasurable_controls),
            "compared": self.comparison.to_json() if self.comparison else None,
            "training_data": self.training_data.to_json(),
            "warnings": self.warnings,
            "resamples": self.resamples,
            "seed": self.seed,
        }
