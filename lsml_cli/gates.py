"""Gates: what a new version must reach before it is promoted, `--fail-under METRIC=VALUE`.

accuracy=0.98            of every control
macro-f1=0.9
f1:spam=0.92             of every control that has this class; also precision:spam, recall:spam
category.f1:Billing=0.9  of one control
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from lsml_cli.errors import UsageError, closest_first, listed
from lsml_cli.metrics import ClassMetrics, Metrics

OF_CONTROL = ("accuracy", "macro-f1")
OF_CLASS = ("f1", "precision", "recall")
KNOWN = (*OF_CONTROL, *(f"{name}:CLASS" for name in OF_CLASS))

_EXACT = 1e-9  # a mean of several numbers may end one bit below the value that was typed

# The classes of each control that is measured; None where they come with the tasks, so that any may be named.
Known = Mapping[str, Sequence[str] | None]


@dataclass(frozen=True)
class Gate:
    """One metric of one control, and the least it must be. `label` is None for a metric of the whole control."""

    control: str
    metric: str
    label: str | None
    at_least: float

    @property
    def name(self) -> str:
        return f"{self.control}.{self.metric}" + (f":{self.label}" if self.label is not None else "")


@dataclass(frozen=True)
class Verdict:
    """What a gate saw. `measured` is None when there was nothing to measure, which does not pass; `why` says why."""

    gate: Gate
    measured: float | None
    why: str = ""

    @property
    def passed(self) -> bool:
        return self.measured is not None and self.measured >= self.gate.at_least - _EXACT

    def __str__(self) -> str:
        if self.measured is None:
            return f"{self.gate.name} could not be measured, because {self.why}"
        gap = self.gate.at_least - self.measured
        digits = 8 if _EXACT < abs(gap) < 0.0001 else 4
        where = "below" if gap > _EXACT else "above" if gap < -_EXACT else "at"
        distance = "" if where == "at" else f"{abs(gap):.{digits}f} "
        return f"{self.gate.name} is {self.measured:.{digits}f}, {distance}{where} {self.gate.at_least}"

    def to_json(self) -> dict[str, Any]:
        return asdict(self.gate) | {"name": self.gate.name, "measured": self.measured, "passed": self.passed}


def parse_gates(wanted: Iterable[str], known: Known) -> list[Gate]:
    """`--fail-under` options as gates, one for each control that they apply to.

    known  see `Known`

    Raises UsageError that lists the known names when a metric, a control or a class is unknown.
    """
    return [gate for text in wanted for gate in _parse(text, known)]


def judge(gates: Iterable[Gate], metrics: Mapping[str, Metrics]) -> list[Verdict]:
    """All of them, also after the first that is missed."""
    return [_judge(gate, metrics.get(gate.control)) for gate in gates]


def _parse(text: str, known: Known) -> list[Gate]:
    name, equals, value = text.rpartition("=")
    if not equals or not name:
        raise UsageError(f"--fail-under {text!r} is not METRIC=VALUE.", "For example: --fail-under accuracy=0.98")
    try:
        at_least = float(value)
    except ValueError:
        at_least = float("nan")
    if not 0 <= at_least <= 1:
        raise UsageError(f"--fail-under {text!r}: the value must be a number from 0 to 1, not {value!r}.")
    if not known:
        raise UsageError(
            f"--fail-under {text!r}: nothing of this label config can be measured.",
            "Gates are for <Choices> about whole tasks.",
        )
    controls, metric = _controls(name, known)
    kind, colon, label = metric.partition(":")
    if colon and kind in OF_CLASS and label:
        having = [control for control in controls if (classes := known[control]) is None or label in classes]
        if not having:
            there = dict.fromkeys(each for control in controls for each in known[control] or ())
            known_classes = listed(closest_first(label, there))
            raise UsageError(f"--fail-under {text!r}: there is no class {label!r}.", f"Known classes: {known_classes}.")
        return [Gate(control, kind, label, at_least) for control in having]
    if colon or kind not in OF_CONTROL:
        _refuse(text, metric, known)
    return [Gate(control, kind, None, at_least) for control in controls]


def _controls(name: str, known: Known) -> tuple[list[str], str]:
    """The controls that a name is about, and the metric in it. A control's own name may hold dots."""
    for control in sorted(known, key=len, reverse=True):
        if name.startswith(f"{control}."):
            return [control], name.removeprefix(f"{control}.")
    return list(known), name


def _refuse(text: str, metric: str, known: Known) -> None:
    before, dot, rest = metric.split(":")[0].rpartition(".")
    if dot and rest in (*OF_CONTROL, *OF_CLASS):
        controls = listed(closest_first(before, known))
        raise UsageError(
            f"--fail-under {text!r}: there is no control {before!r} to be measured.", f"Known controls: {controls}."
        )
    metrics = listed(closest_first(metric, KNOWN))
    of_class = " (it needs a class)" if metric.rstrip(":") in OF_CLASS else ""
    raise UsageError(f"--fail-under {text!r}: there is no metric {metric!r}{of_class}.", f"Known metrics: {metrics}.")


def _judge(gate: Gate, metrics: Metrics | None) -> Verdict:
    if metrics is None:
        return Verdict(gate, None, "no held-out task has an answer for it, or the model gave none at all")
    if gate.label is None:
        return Verdict(gate, metrics.accuracy if gate.metric == "accuracy" else metrics.macro_f1)
    found = next((each for each in metrics.classes if each.name == gate.label), None)
    if found is None or not found.support:
        return Verdict(gate, None, f'no held-out task has the class "{gate.label}"')
    return Verdict(gate, _of_class(gate.metric, found))


def _of_class(metric: str, found: ClassMetrics) -> float:
    return {"f1": found.f1, "precision": found.precision, "recall": found.recall}[metric]
