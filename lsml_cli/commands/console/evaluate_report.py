"""What `lsml evaluate` says: numbers on stdout, sentences on stderr."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from lsml_cli.commands.console import metrics_tables
from lsml_cli.errors import GateMissed, format_list

if TYPE_CHECKING:
    from lsml_cli.evaluation.evaluate import Evaluation
    from lsml_cli.evaluation.gates import ComparisonResult, GateResult


def print_evaluation(evaluation: Evaluation) -> None:
    metrics_tables.print_metrics(evaluation.controls, "tasks", intervals=True)
    if evaluation.comparison is not None:
        metrics_tables.print_comparison(evaluation.comparison, evaluation.controls)
    metrics_tables.print_calibration(evaluation.controls)
    metrics_tables.print_agreement(evaluation.controls)


def summary_lines(evaluation: Evaluation, gate_results: Sequence[GateResult | ComparisonResult]) -> Iterator[str]:
    """What was measured, what was not, and which gates were passed."""
    several = f" with {evaluation.annotations:,} annotations" if evaluation.annotations != evaluation.tasks else ""
    yield f"Measured {evaluation.name} on {evaluation.tasks:,} annotated tasks{several}."
    if evaluation.left_out:
        yield f"Left out: {format_exclusions(evaluation)}."
    for reason, count in evaluation.failed.items():
        yield f"{count:,} {'task' if count == 1 else 'tasks'} failed, and count as wrong: {reason}."
    if evaluation.comparison is not None:
        for reason, count in evaluation.comparison.failed.items():
            yield f"{count:,} {'task' if count == 1 else 'tasks'} of {evaluation.comparison.name} failed: {reason}."
    if evaluation.has_only_empty_predictions:
        yield f"{evaluation.name} found nothing at all in the {evaluation.tasks:,} annotated tasks."
    elif evaluation.empty_controls:
        yield f"Nothing was found, in any task, for: {format_list(evaluation.empty_controls)}."
    if evaluation.unpredicted_controls:
        yield f"Nothing was predicted, so nothing measured, for: {format_list(evaluation.unpredicted_controls)}."
    if not evaluation.controls:
        yield "Nothing was measured: people and predictions fill no control together."
    for verdict in gate_results:
        if verdict.passed:
            yield f"Gate passed: {verdict}."


def unreadable_lines(evaluation: Evaluation, annotated: str) -> Iterator[str]:
    """The first places where no task could be read."""
    for place in evaluation.unreadable:
        where = "standard input" if annotated == "-" else annotated
        yield f"{where}, {place.location} could not be read: {place.reason}."


def format_exclusions(evaluation: Evaluation) -> str:
    """Why tasks were left out: "no annotation (5), skipped (2)"."""
    return (
        ", ".join(f"{reason} ({count:,})" for reason, count in evaluation.left_out.items()) or "there is no task at all"
    )


def require_gates_passed(evaluation: Evaluation, gate_results: Sequence[GateResult | ComparisonResult]) -> None:
    """Raises GateMissed that names every missed gate, and by how much."""
    missed = [str(verdict) for verdict in gate_results if not verdict.passed]
    if missed:
        count = f"{len(missed)} of {len(gate_results)} gates" if len(gate_results) > 1 else "its gate"
        raise GateMissed(f"{evaluation.name} missed {count}: {'; '.join(missed)}.")
