"""Gates: thresholds that a new version must reach before it is promoted, `--fail-under METRIC=VALUE`.

accuracy=0.98            of every <Choices>; also macro-f1, micro-f1
f1:spam=0.92             of every control that has this class; also precision:spam, recall:spam
category.f1:Billing=0.9  of one control
map=0.5, ap50:car=0.8    of regions of images; also map50, precision, recall, f1, and by class ap, precision, ...
hmean=0.8, cer=0.05      of texts; also wer, cer-found, wer-found, precision, recall, exact

Of error rates (cer, wer) less is better: their gate is a maximum.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn, Protocol

from lsml_cli.errors import UsageError, suggest_names

CHOICES = "choices"
CONTROL_METRICS: Mapping[str, Sequence[str]] = {
    CHOICES: ("accuracy", "macro-f1", "micro-f1"),
    "regions": ("map", "map50", "precision", "recall", "f1"),
    "texts": ("cer", "wer", "cer-found", "wer-found", "precision", "recall", "hmean", "exact"),
}
CLASS_METRICS: Mapping[str, Sequence[str]] = {
    CHOICES: ("f1", "precision", "recall"),
    "regions": ("f1", "precision", "recall", "ap", "ap50"),
    "texts": (),
}
LOWER_IS_BETTER = frozenset({"cer", "wer", "cer-found", "wer-found"})
FAIL_UNDER, FAIL_IF_WORSE = "--fail-under", "--fail-if-worse"

_TOLERANCE = 1e-9  # a mean may end one bit below the value that was typed

# The classes of each control that has metrics; None if they come with the tasks, so that any name is valid.
KnownClasses = Mapping[str, Sequence[str] | None]


class MetricsLike(Protocol):
    """The metrics of a control or of one of its classes, by the names that gates use."""

    def values(self) -> Mapping[str, float | None]: ...


class ClassMetricsLike(MetricsLike, Protocol):
    @property
    def name(self) -> str: ...

    @property
    def support(self) -> int: ...


class ControlMetricsLike(MetricsLike, Protocol):
    @property
    def classes(self) -> Sequence[ClassMetricsLike]: ...


@dataclass(frozen=True)
class Gate:
    """One metric of one control and its threshold: a minimum, or of an error rate a maximum.

    Attributes:
        control: The name of the control.
        metric: The name of the metric.
        label: The class whose metric it is; None for the whole control.
        threshold: In 0..1. For `--fail-if-worse` the margin by which the metric may be worse.
    """

    control: str
    metric: str
    label: str | None
    threshold: float

    @property
    def name(self) -> str:
        return f"{self.control}.{self.metric_name}"

    @property
    def metric_name(self) -> str:
        return self.metric + (f":{self.label}" if self.label is not None else "")

    @property
    def sign(self) -> int:
        """1 if more is better, -1 if less is."""
        return -1 if self.metric in LOWER_IS_BETTER else 1


@dataclass(frozen=True)
class GateResult:
    """The outcome of a gate. `measured` is None, for the given reason, if there was nothing to measure: a failure."""

    gate: Gate
    measured: float | None
    reason: str = ""

    @property
    def passed(self) -> bool:
        return self.measured is not None and self.gate.sign * (self.measured - self.gate.threshold) >= -_TOLERANCE

    def __str__(self) -> str:
        if self.measured is None:
            return f"{self.gate.name} could not be measured, because {self.reason}"
        gap = self.gate.threshold - self.measured
        digits = 8 if _TOLERANCE < abs(gap) < 0.0001 else 4
        relation = "below" if gap > _TOLERANCE else "above" if gap < -_TOLERANCE else "at"
        distance = "" if relation == "at" else f"{abs(gap):.{digits}f} "
        return f"{self.gate.name} is {self.measured:.{digits}f}, {distance}{relation} {self.gate.threshold}"

    def to_json(self) -> dict[str, Any]:
        return {
            "control": self.gate.control,
            "metric": self.gate.metric,
            "label": self.gate.label,
            "at_least": self.gate.threshold,
            "name": self.gate.name,
            "measured": self.measured,
            "passed": self.passed,
        }


@dataclass(frozen=True)
class ComparisonResult:
    """The outcome of a comparison gate. A number is None if there was nothing to measure: a failure.

    Attributes:
        gate: Its threshold is the margin by which the metric may be worse.
        candidate: The metric of what is evaluated.
        baseline: The metric of what it is compared with.
        low: Lower end of the 95 % interval of the difference, if known.
        high: Its upper end.
    """

    gate: Gate
    candidate: float | None
    baseline: float | None
    low: float | None = None
    high: float | None = None

    @property
    def difference(self) -> float | None:
        return None if self.candidate is None or self.baseline is None else self.candidate - self.baseline

    @property
    def passed(self) -> bool:
        return self.difference is not None and self.gate.sign * self.difference >= -self.gate.threshold - _TOLERANCE

    def __str__(self) -> str:
        if self.difference is None:
            return f"{self.gate.name} could not be compared, because one of the two has no number for it"
        interval = f" (95 %: {self.low:+.4f} to {self.high:+.4f})" if self.low is not None else ""
        interval = " (equal on every task)" if self.low == self.high == self.difference == 0 else interval
        margin = f", the margin is {self.gate.threshold:g}" if self.gate.threshold else ""
        values = f"{self.candidate:.4f}, {self.difference:+.4f}{interval} from {self.baseline:.4f}"
        return f"{self.gate.name} is {values}{margin}"

    def to_json(self) -> dict[str, Any]:
        return {
            "name": self.gate.name,
            "control": self.gate.control,
            "metric": self.gate.metric,
            "label": self.gate.label,
            "margin": self.gate.threshold,
            "measured": self.candidate,
            "other": self.baseline,
            "difference": self.difference,
            "low": self.low,
            "high": self.high,
            "passed": self.passed,
        }


def parse_gates(
    texts: Iterable[str], known_classes: KnownClasses, metric_kinds: Mapping[str, str] | None = None
) -> list[Gate]:
    """Parse `--fail-under` options into gates, one for each control that they apply to.

    Args:
        texts: "METRIC=VALUE", see the top of this module.
        known_classes: By control.
        metric_kinds: By control, the keys of `CONTROL_METRICS`; "choices" by default.

    Raises:
        UsageError: A metric, a control or a class is unknown. The message lists the known ones.
    """
    return [
        gate
        for text in texts
        for gate in _parse_option(_GateOption(FAIL_UNDER, text, known_classes, metric_kinds or {}))
    ]


def parse_comparisons(
    texts: Iterable[str], known_classes: KnownClasses, metric_kinds: Mapping[str, str] | None = None
) -> list[Gate]:
    """Parse `--fail-if-worse METRIC[=MARGIN]` options into gates whose threshold is the margin, by default 0."""
    return [
        gate
        for text in texts
        for gate in _parse_option(_GateOption(FAIL_IF_WORSE, text, known_classes, metric_kinds or {}))
    ]


def evaluate_gates(
    gates: Iterable[Gate], metrics: Mapping[str, ControlMetricsLike], task_noun: str = "held-out task"
) -> list[GateResult]:
    """Evaluate all gates, also after one that fails. `task_noun` names the tasks in messages."""
    return [_evaluate_gate(gate, metrics.get(gate.control), task_noun) for gate in gates]


@dataclass(frozen=True)
class _GateOption:
    """An option as it was typed, with what is needed to interpret it."""

    option: str
    text: str
    known_classes: KnownClasses
    metric_kinds: Mapping[str, str]

    def metric_kind(self, control: str) -> str:
        return self.metric_kinds.get(control, CHOICES)

    def metric_names(self) -> list[str]:
        """Return the names of the metrics that at least one control has."""
        kinds = dict.fromkeys(self.metric_kind(control) for control in self.known_classes)
        of_control = dict.fromkeys(name for kind in kinds for name in CONTROL_METRICS[kind])
        return [*of_control, *dict.fromkeys(f"{name}:CLASS" for kind in kinds for name in CLASS_METRICS[kind])]

    def raise_usage_error(self, reason: str, hint: str | None = None) -> NoReturn:
        raise UsageError(f"{self.option} {self.text!r}{reason}", hint)


def _parse_option(option: _GateOption) -> list[Gate]:
    name, threshold = _split_option(option)
    if not option.known_classes:
        option.raise_usage_error(
            ": nothing of this label config can be measured.",
            "Gates are for <Choices> about whole tasks, labelled regions of images, and <TextArea>.",
        )
    controls, metric_name = _split_control(name, option.known_classes)
    metric, colon, label = metric_name.partition(":")
    with_class = [control for control in controls if metric in CLASS_METRICS[option.metric_kind(control)]]
    if label and with_class:
        return [Gate(control, metric, label, threshold) for control in _require_class(option, with_class, label)]
    of_control = [control for control in controls if metric in CONTROL_METRICS[option.metric_kind(control)]]
    if colon or not of_control:
        _raise_unknown_metric(option, metric_name)
    return [Gate(control, metric, None, threshold) for control in of_control]


def _require_class(option: _GateOption, controls: Sequence[str], label: str) -> list[str]:
    """Return the controls that have a class; raise UsageError if none has."""
    having = []
    known: dict[str, None] = {}
    for control in controls:
        classes = option.known_classes[control]
        known |= dict.fromkeys(classes or ())
        if classes is None or label in classes:
            having.append(control)
    if not having:
        option.raise_usage_error(f": there is no class {label!r}.", suggest_names(label, known, "Known classes"))
    return having


def _split_option(option: _GateOption) -> tuple[str, float]:
    """Split an option into the name of a metric and its value; a margin may be left out."""
    name, equals, text = option.text.rpartition("=")
    value = _parse_number(text)
    if option.option == FAIL_IF_WORSE and value is None:
        return option.text, 0.0
    if not equals or not name:
        option.raise_usage_error(" is not METRIC=VALUE.", f"For example: {option.option} accuracy=0.98")
    if value is None or not 0 <= value <= 1:
        noun = "value" if option.option == FAIL_UNDER else "margin"
        option.raise_usage_error(f": the {noun} must be a number from 0 to 1, not {text!r}.")
    return name, value


def _parse_number(text: str) -> float | None:
    """Return the number in a text; None if it is none, or NaN."""
    try:
        value = float(text)
    except ValueError:
        return None
    return None if math.isnan(value) else value


def _split_control(name: str, known_classes: KnownClasses) -> tuple[list[str], str]:
    """Split "CONTROL.METRIC"; without a control all controls are meant. Names of controls may contain dots."""
    for control in sorted(known_classes, key=len, reverse=True):
        if name.startswith(f"{control}."):
            return [control], name.removeprefix(f"{control}.")
    return list(known_classes), name


def _raise_unknown_metric(option: _GateOption, metric_name: str) -> NoReturn:
    prefix, dot, rest = metric_name.split(":")[0].rpartition(".")
    all_metrics = {name for by_kind in (CONTROL_METRICS, CLASS_METRICS) for names in by_kind.values() for name in names}
    if dot and rest in all_metrics:
        hint = suggest_names(prefix, option.known_classes, "Known controls")
        option.raise_usage_error(f": there is no control {prefix!r} to be measured.", hint)
    known = option.metric_names()
    needs_class = " (it needs a class)" if f"{metric_name.rstrip(':')}:CLASS" in known else ""
    metric, _, label = metric_name.partition(":")
    compared = f"{metric}:CLASS" if label and metric not in known else metric
    hint = suggest_names(compared, known, "Known metrics")
    option.raise_usage_error(f": there is no metric {metric_name!r}{needs_class}.", hint)


def _evaluate_gate(gate: Gate, metrics: ControlMetricsLike | None, task_noun: str) -> GateResult:
    if metrics is None:
        return GateResult(gate, None, f"no {task_noun} has an answer for it, or the model gave none at all")
    if gate.label is None:
        return GateResult(gate, metrics.values()[gate.metric], f"no {task_noun} has anything to count")
    of_class = next((entry for entry in metrics.classes if entry.name == gate.label), None)
    if of_class is None or not of_class.support:
        return GateResult(gate, None, f'no {task_noun} has the class "{gate.label}"')
    return GateResult(gate, of_class.values()[gate.metric])
