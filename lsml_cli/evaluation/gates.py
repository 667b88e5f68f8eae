"""Gates: what a new version must reach before it is promoted, `--fail-under METRIC=VALUE`.

accuracy=0.98            of every <Choices>; also macro-f1, micro-f1
f1:spam=0.92             of every control that has this class; also precision:spam, recall:spam
category.f1:Billing=0.9  of one control
map=0.5, ap50:car=0.8    of regions of pictures; also map50, precision, recall, f1, and by class ap, precision, ...
hmean=0.8, cer=0.05      of texts; also wer, cer-found, wer-found, precision, recall, exact

Of error rates (cer, wer) less is better: their gate is the most that they may be.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, NoReturn, Protocol

from lsml_cli.errors import UsageError, format_list, sort_by_similarity

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

_TOLERANCE = 1e-9  # a mean of several numbers may end one bit below the value that was typed

# The classes of each control that is measured; None where they come with the tasks, so that any may be named.
KnownClasses = Mapping[str, Sequence[str] | None]


class MetricsLike(Protocol):
    """The metrics of a control, or of one of its classes: its numbers by the name that a gate has for them."""

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
    """One metric of one control, and the least it must be (of an error rate the most).

    `label` is None for a metric of the whole control.
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
        """1 where more is better, -1 where less is."""
        return -1 if self.metric in LOWER_IS_BETTER else 1


@dataclass(frozen=True)
class GateResult:
    """What a gate saw. `measured` is None when there was nothing to measure, which does not pass; `why` says why."""

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
        where = "below" if gap > _TOLERANCE else "above" if gap < -_TOLERANCE else "at"
        distance = "" if where == "at" else f"{abs(gap):.{digits}f} "
        return f"{self.gate.name} is {self.measured:.{digits}f}, {distance}{where} {self.gate.threshold}"

    def to_json(self) -> dict[str, Any]:
        return asdict(self.gate) | {"name": self.gate.name, "measured": self.measured, "passed": self.passed}


@dataclass(frozen=True)
class ComparisonResult:
    """What a comparison saw: a metric of what is measured (`mine`) and of what it is compared with (`other`).

    low, high  where the difference is with a probability of 95 %; None where that is not known
    gate       its `at_least` is the margin: by how much the metric may be worse

    None instead of a number when there was nothing to measure, which does not pass.
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
        margin = f", the margin is {self.gate.threshold:g}" if self.gate.threshold else ""
        return f"{self.gate.name} is {self.candidate:.4f}, {self.difference:+.4f}{interval} from {self.baseline:.4f}{margin}"

    def to_json(self) -> dict[str, Any]:
        return {
            **{"name": self.gate.name, "control": self.gate.control, "metric": self.gate.metric},
            **{
                "label": self.gate.label,
                "margin": self.gate.threshold,
                "measured": self.candidate,
                "other": self.baseline,
            },
            **{"difference": self.difference, "low": self.low, "high": self.high, "passed": self.passed},
        }


def parse_gates(
    texts: Iterable[str], known_classes: KnownClasses, metric_kinds: Mapping[str, str] | None = None
) -> list[Gate]:
    """`--fail-under` options as gates, one for each control that they apply to.

    known  see `Known`
    kinds  what is measured of each control, see OF_CONTROL; "choices" where it does not say

    Raises UsageError that lists the known names when a metric, a control or a class is unknown.
    """
    return [
        gate
        for text in texts
        for gate in _parse_option(_GateOption(FAIL_UNDER, text, known_classes, metric_kinds or {}))
    ]


def parse_comparisons(
    texts: Iterable[str], known_classes: KnownClasses, metric_kinds: Mapping[str, str] | None = None
) -> list[Gate]:
    """`--fail-if-worse METRIC[=MARGIN]` options as gates whose value is the margin, 0 if it is not given."""
    return [
        gate
        for text in texts
        for gate in _parse_option(_GateOption(FAIL_IF_WORSE, text, known_classes, metric_kinds or {}))
    ]


def evaluate_gates(
    gates: Iterable[Gate], metrics: Mapping[str, ControlMetricsLike], task_noun: str = "held-out task"
) -> list[GateResult]:
    """All of them, also after the first that is missed. `task` is what is measured on, for sentences about it."""
    return [_evaluate_gate(gate, metrics.get(gate.control), task_noun) for gate in gates]


@dataclass(frozen=True)
class _GateOption:
    """An option as it was given."""

    option: str
    text: str
    known_classes: KnownClasses
    metric_kinds: Mapping[str, str]

    def metric_kind(self, control: str) -> str:
        return self.metric_kinds.get(control, CHOICES)

    def metric_names(self) -> list[str]:
        """The names of all metrics that some control has."""
        kinds = dict.fromkeys(self.metric_kind(control) for control in self.known_classes)
        of_control = dict.fromkeys(name for kind in kinds for name in CONTROL_METRICS[kind])
        return [*of_control, *dict.fromkeys(f"{name}:CLASS" for kind in kinds for name in CLASS_METRICS[kind])]

    def raise_usage_error(self, reason: str, hint: str | None = None) -> NoReturn:
        raise UsageError(f"{self.option} {self.text!r}{reason}", hint)


def _parse_option(option: _GateOption) -> list[Gate]:
    name, at_least = _split_option(option)
    known = option.known_classes
    if not known:
        option.raise_usage_error(
            ": nothing of this label config can be measured.",
            "Gates are for <Choices> about whole tasks, labelled regions of pictures, and <TextArea>.",
        )
    controls, metric = _split_control(name, known)
    kind, colon, label = metric.partition(":")
    if colon and label and any(kind in CLASS_METRICS[option.metric_kind(control)] for control in controls):
        able = [control for control in controls if kind in CLASS_METRICS[option.metric_kind(control)]]
        having = [control for control in able if (classes := known[control]) is None or label in classes]
        if not having:
            there = dict.fromkeys(each for control in able for each in known[control] or ())
            known_classes = format_list(sort_by_similarity(label, there))
            option.raise_usage_error(f": there is no class {label!r}.", f"Known classes: {known_classes}.")
        return [Gate(control, kind, label, at_least) for control in having]
    able = [control for control in controls if kind in CONTROL_METRICS[option.metric_kind(control)]]
    if colon or not able:
        _raise_unknown_metric(option, metric)
    return [Gate(control, kind, None, at_least) for control in able]


def _split_option(option: _GateOption) -> tuple[str, float]:
    """The name of a metric, and the value behind it; a margin may be left out."""
    name, equals, value = option.text.rpartition("=")
    if option.option == FAIL_IF_WORSE and not _is_number(value):
        return option.text, 0.0
    if not equals or not name:
        option.raise_usage_error(" is not METRIC=VALUE.", f"For example: {option.option} accuracy=0.98")
    if not _is_number(value) or not 0 <= float(value) <= 1:
        what = "value" if option.option == FAIL_UNDER else "margin"
        option.raise_usage_error(f": the {what} must be a number from 0 to 1, not {value!r}.")
    return name, float(value)


def _is_number(text: str) -> bool:
    try:
        return float(text) == float(text)
    except ValueError:
        return False


def _split_control(name: str, known_classes: KnownClasses) -> tuple[list[str], str]:
    """The controls that a name is about, and the metric in it. A control's own name may hold dots."""
    for control in sorted(known_classes, key=len, reverse=True):
        if name.startswith(f"{control}."):
            return [control], name.removeprefix(f"{control}.")
    return list(known_classes), name


def _raise_unknown_metric(option: _GateOption, metric: str) -> NoReturn:
    before, dot, rest = metric.split(":")[0].rpartition(".")
    of_class = {name for each in CLASS_METRICS.values() for name in each}
    if dot and rest in of_class.union(*CONTROL_METRICS.values()):
        controls = format_list(sort_by_similarity(before, option.known_classes))
        option.raise_usage_error(f": there is no control {before!r} to be measured.", f"Known controls: {controls}.")
    known = option.metric_names()
    needs_class = " (it needs a class)" if f"{metric.rstrip(':')}:CLASS" in known else ""
    option.raise_usage_error(
        f": there is no metric {metric!r}{needs_class}.",
        f"Known metrics: {format_list(sort_by_similarity(metric, known))}.",
    )


def _evaluate_gate(gate: Gate, metrics: ControlMetricsLike | None, task_noun: str) -> GateResult:
    if metrics is None:
        return GateResult(gate, None, f"no {task_noun} has an answer for it, or the model gave none at all")
    if gate.label is None:
        return GateResult(gate, metrics.values()[gate.metric], f"no {task_noun} has anything to count")
    found = next((each for each in metrics.classes if each.name == gate.label), None)
    if found is None or not found.support:
        return GateResult(gate, None, f'no {task_noun} has the class "{gate.label}"')
    return GateResult(gate, found.values()[gate.metric])
